"""Who holds a lock is named as /proc shows it: commands and process ids, in no case an error or a long wait."""

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ploopfs.engine.holders import holders, locked_file
from ploopfs.engine.lock import claim
from ploopfs.engine.os_file import OsFiles
from ploopfs.errors import ImageLocked

LOCK = """
import fcntl, struct, sys
file = open(sys.argv[1], "r+b")
fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("@hhqqi0q", fcntl.F_RDLCK, 0, int(sys.argv[2]), int(sys.argv[3]), 0))
print("locked", flush=True)
sys.stdin.read()
"""
FILE = "fe:00:1234"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    return path


@contextmanager
def locking(image: Path, start: int, length: int) -> Iterator[int]:
    """The id of another process that read-locks these bytes."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(image), str(start), str(length)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "locked\n"
        yield process.pid
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


async def refused(image: Path, *, writable: bool = True) -> str:
    file = await OsFiles().open(str(image), writable=writable)
    with pytest.raises(ImageLocked) as raised:
        await file.lock()
    await file.aclose()
    return str(raised.value)


async def test_a_refused_lock_names_the_process_that_holds_it(image: Path) -> None:
    with locking(image, 101, 1) as pid:
        told = await refused(image)
    assert told.startswith(f"{image}: cannot be opened for writing: its write lock is held by python")
    assert told.endswith(f" (pid {pid})")


async def test_every_process_that_holds_the_lock_is_named(image: Path) -> None:
    with locking(image, 100, 4) as one, locking(image, 101, 1) as other:
        told = await refused(image, writable=False)
    assert told.count("(pid ") == 2
    assert all(f"(pid {pid})" in told for pid in (one, other))


async def test_a_lock_on_other_bytes_or_on_another_file_is_nobodys(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(4096))
    with locking(image, 50, 1), locking(other, 101, 1) as of_other, locking(image, 101, 1) as of_image:
        told = await refused(image)
    assert f"(pid {of_image})" in told
    assert f"(pid {of_other})" not in told
    assert told.count("(pid ") == 1


async def test_a_lock_of_this_process_is_named_as_any_other(image: Path) -> None:
    first = await OsFiles().open(str(image), writable=True)
    await first.lock()
    assert f"(pid {os.getpid()})" in await refused(image)
    await first.aclose()


async def test_a_refused_open_keeps_no_lock(image: Path) -> None:
    with locking(image, 101, 1):
        await refused(image)
    file = await OsFiles().open(str(image), writable=True)
    await file.lock()
    await file.aclose()


async def test_who_cannot_be_found_is_waited_for_in_bounds_and_then_another_process(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept_s = [0.0]
    monkeypatch.setattr("ploopfs.engine.lock.holders", lambda *_: [])
    monkeypatch.setattr("ploopfs.engine.lock.time.monotonic", lambda: sum(slept_s))
    monkeypatch.setattr("ploopfs.engine.lock.time.sleep", slept_s.append)
    with locking(image, 101, 1):
        assert (await refused(image)).endswith("its write lock is held by another process")
    assert 0.5 <= sum(slept_s) < 0.6


def test_a_lock_whose_process_is_gone_is_taken_when_the_kernel_lets_go_of_it(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with image.open("r+b") as mine:
        theirs = os.open(image, os.O_RDWR)
        claim(theirs, str(image), writable=True)
        monkeypatch.setattr("ploopfs.engine.lock.holders", lambda *_: [])
        monkeypatch.setattr("ploopfs.engine.lock.time.sleep", lambda _s: os.close(theirs))
        claim(mine.fileno(), str(image), writable=True)
        other = os.open(image, os.O_RDWR)
        monkeypatch.undo()
        with pytest.raises(ImageLocked, match=f"pid {os.getpid()}"):
            claim(other, str(image), writable=True)
        os.close(other)


def test_a_descriptor_without_a_lock_has_no_locked_file(image: Path) -> None:
    with image.open("r+b") as file:
        assert locked_file(file.fileno()) == ""
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("@hhqqi0q", fcntl.F_RDLCK, 0, 7, 1, 0))
        assert locked_file(file.fileno()).endswith(f":{image.stat().st_ino}")


# A /proc of our own making.


def process(proc: Path, pid: int, comm: str, *locks: str, program: str = "/usr/bin/python3") -> None:
    """Each lock is `FILE FIRST LAST`."""
    place = proc / str(pid)
    (place / "fdinfo").mkdir(parents=True)
    (place / "comm").write_text(f"{comm}\n")
    (place / "exe").symlink_to(program)
    (place / "fdinfo" / "0").write_text("pos:\t0\nflags:\t0100002\nmnt_id:\t15\nino:\t9\n")
    lines = (f"lock:\t{number}: OFDLCK ADVISORY  READ -1 {lock}\n" for number, lock in enumerate(locks, 1))
    (place / "fdinfo" / "7").write_text("pos:\t0\nflags:\t02100002\nmnt_id:\t27\nino:\t1234\n" + "".join(lines))


def test_processes_come_in_the_order_of_their_ids_with_their_full_names(tmp_path: Path) -> None:
    program = "/usr/bin/qemu-storage-daemon"
    process(tmp_path, 10, "qemu-storage-da", f"{FILE} 100 100", f"{FILE} 101 101", program=program)
    process(tmp_path, 9, "ploopfs", f"{FILE} 101 EOF")
    process(tmp_path, 11, "cat", f"{FILE} 102 EOF", "fe:00:99 101 101")
    (tmp_path / "self").mkdir()
    assert holders(FILE, 101, proc=str(tmp_path)) == ["ploopfs (pid 9)", "qemu-storage-daemon (pid 10)"]


def test_what_is_not_shown_or_is_no_lock_line_is_passed_over(tmp_path: Path) -> None:
    process(tmp_path, 5, "gone", f"{FILE} 101 101")
    for name in ("comm", "exe"):
        (tmp_path / "5" / name).unlink()
    (tmp_path / "6").mkdir()
    process(tmp_path, 7, "odd")
    (tmp_path / "7" / "fdinfo" / "8").write_text(f"lock:\t1: {FILE} 101 101\nlock:\n\ntfd: 101\n")
    assert holders(FILE, 101, proc=str(tmp_path)) == ["a process (pid 5)"]
    assert holders("", 101, proc=str(tmp_path)) == []
    assert holders(FILE, 101, proc=str(tmp_path / "none")) == []


def test_the_search_ends_at_its_deadline(tmp_path: Path) -> None:
    process(tmp_path, 5, "holder", f"{FILE} 101 101")
    assert holders(FILE, 101, proc=str(tmp_path), limit_s=-1) == []
