"""Writes that the kernel makes and answers by itself, on real mounts: what is told of them; a storage that hangs."""

import os
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from ploopfs.cli.exits import Exit
from tests.mounted.blocks import EXT4, XFS, FileSystem, looped, mounted, run
from tests.mounted.daemon import Daemon, device, errno_of, opened, serving, until
from tests.mounted.disks import BLOCK_BYTES, MIB, assert_closed, make_disk
from tests.mounted.planes import OWN, carried_by
from tests.realparts import need

pytestmark = pytest.mark.real

serving_own = partial(serving, options=carried_by(OWN))
TIMES = 200
MOMENTS = 30
ACROSS = 2 * MIB - 3
PIECE_BYTES = 64 << 10
SHORT_OF_MEMORY = """
import sys
from random import Random
from ploopfs.cli import main
from ploopfs.engine import ring

really, hold, random, held = ring._call, ring.Write.hold, Random(1), []

def call(number, *arguments):
    if number == ring._ENTER:
        fd, count, *rest = arguments
        arguments = (fd, random.randrange(count + 1), *rest)
    return really(number, *arguments)

def hold_and_count(write, part, go_on):
    held.append(part)
    hold(write, part, go_on)

ring._call, ring.Write.hold = call, hold_and_count
code = main.main()
print("held:", len(held), file=sys.stderr)
sys.exit(code)
"""
"""A daemon whose kernel takes at random how much of what it is given in a call."""


def test_what_was_acknowledged_is_counted_for_who_looks_at_once(tmp_path: Path) -> None:
    need(io_uring=True)
    disk = make_disk(tmp_path / "disk", size_bytes=64 * MIB)
    with serving_own(tmp_path, device(disk.directory)) as daemon:
        with opened(daemon.disk()) as fd:
            os.fsync(fd)
            for number in range(1, TIMES + 1):
                data = bytes([number]) * PIECE_BYTES
                for part in range(4):
                    assert os.pwrite(fd, data, (4 * number + part) * PIECE_BYTES) == PIECE_BYTES
                kept, stat = int(daemon.value("ploopfs/unflushed_bytes")), daemon.value("stat").split()
                assert (kept, stat[4]) == (4 * PIECE_BYTES, str(4 * number))
                assert int(stat[6]) == 4 * number * PIECE_BYTES // 512
                assert daemon.value("inflight").split() == ["0", "0"]
                os.fsync(fd)
                assert daemon.value("ploopfs/unflushed_bytes") == "0"
        assert daemon.end() == Exit.OK
    assert_closed(disk.top)


@contextmanager
def frozen(place: Path) -> Iterator[None]:
    """What writes to the file system there waits."""
    run("fsfreeze", "--freeze", place)
    try:
        yield
    finally:
        run("fsfreeze", "--unfreeze", place)


def open_files(daemon: Daemon) -> Counter[str]:
    fds = Path(f"/proc/{daemon.process.pid}/fd")
    return Counter(os.readlink(fd) for fd in fds.iterdir() if fd.is_symlink())


@contextmanager
def beside_one_to_freeze(tmp_path: Path, kind: FileSystem) -> Iterator[tuple[Daemon, Path]]:
    """A daemon with a disk on a file system of its own, which may be frozen, and ploop1 on another one; both are closed
    clean in the end."""
    commands = ("fsfreeze", kind.make[0], "losetup")
    need(commands=commands, loop=True, root=True, file_systems=(kind.name,), io_uring=True)
    (tmp_path / "store").write_bytes(b"")
    os.truncate(tmp_path / "store", kind.disk_bytes)
    with looped(tmp_path / "store", direct_io=False) as block:
        run(*kind.make, block)
        with mounted(block, tmp_path / "frozen") as place:
            disk = make_disk(place / "disk", size_bytes=4 * MIB)
            healthy = make_disk(tmp_path / "healthy", size_bytes=4 * MIB, seed=2)
            with serving_own(tmp_path, device(disk.directory), device(healthy.directory, "ploop1")) as daemon:
                yield daemon, place
                assert daemon.end() == Exit.OK
            assert_closed(disk.top)
            assert_closed(healthy.top)


@pytest.mark.parametrize("kind", [EXT4, XFS], ids=["ext4", "xfs"])
def test_a_storage_that_lets_no_write_end_keeps_nobody_from_being_cut_off_and_its_replies_go_nowhere(
    tmp_path: Path, kind: FileSystem
) -> None:
    with beside_one_to_freeze(tmp_path, kind) as (daemon, place):
        _cut_off(daemon, place)


@pytest.mark.parametrize("kind", [EXT4, XFS], ids=["ext4", "xfs"])
def test_a_thread_that_hangs_in_a_write_to_a_frozen_store_keeps_nobody_waiting_but_who_writes_there(
    tmp_path: Path, kind: FileSystem
) -> None:
    with beside_one_to_freeze(tmp_path, kind) as (daemon, place):
        _freeze_a_writer(daemon, place)


def _freeze_a_writer(daemon: Daemon, place: Path) -> None:
    """Whether he is served by a thread at that moment is a matter of luck, so there are some moments."""
    stopped = threading.Event()

    def write(fd: int) -> int:
        number = 0
        while not stopped.is_set():
            assert os.pwrite(fd, b"%4096d" % number, MIB + number % 8 * BLOCK_BYTES) == BLOCK_BYTES
            number += 1
        return number

    with opened(daemon.disk()) as fd, opened(daemon.disk("ploop1")) as other, ThreadPoolExecutor(1) as threads:
        os.pwrite(fd, b"o" * 8 * BLOCK_BYTES, MIB)  # so that the top has the cluster
        writing = threads.submit(write, fd)
        try:
            for moment in range(MOMENTS):
                with frozen(place):
                    until(lambda: daemon.value("inflight").split() == ["0", "1"], "the write in flight")
                    is_left = "D" in states_of_threads(daemon, "stand-in")
                    assert os.pwrite(other, b"%7d" % moment, 0) == 7
                    os.fsync(other)
                    assert daemon.value("inflight").split() == ["0", "1"]
                if is_left:
                    break
                before = written_ios(daemon)
                until(lambda before=before: written_ios(daemon) > before + 100, "the writer goes on")  # type: ignore[misc]
        finally:
            stopped.set()
        count = writing.result(60)
        assert is_left
        os.fsync(fd)
        last = [max(range(each, count, 8)) for each in range(8)]
        assert os.pread(fd, 8 * BLOCK_BYTES, MIB) == b"".join(b"%4096d" % number for number in last)
        assert written_ios(daemon) == count + 1


def written_ios(daemon: Daemon) -> int:
    return int(daemon.value("stat").split()[4])


def states_of_threads(daemon: Daemon, name: str) -> list[str]:
    """As proc_pid_stat(5) has them."""
    tasks = Path(f"/proc/{daemon.process.pid}/task").glob("*/stat")
    stats = [stat.read_text() for stat in tasks]
    return [stat.rpartition(") ")[2][0] for stat in stats if f"({name})" in stat]


def _cut_off(daemon: Daemon, place: Path) -> None:
    with opened(daemon.disk()) as fd, opened(daemon.disk("ploop1")) as other, ThreadPoolExecutor(10) as threads:
        os.pwrite(fd, b"o" * 8 * BLOCK_BYTES, MIB)  # so that the top has the cluster
        os.fsync(fd)
        before = open_files(daemon)
        with frozen(place):
            offsets = [MIB + number * BLOCK_BYTES for number in range(8)]
            writes = [threads.submit(errno_of, os.pwrite, fd, b"late", offset) for offset in offsets]
            until(lambda: daemon.value("inflight").split() == ["0", "8"], "the writes in flight")
            writes.append(threads.submit(errno_of, os.pwrite, fd, b"across", ACROSS))  # two clusters: a task's
            until(lambda: daemon.value("inflight").split() == ["0", "9"], "the write of a task")
            daemon.store("ploopfs/connection", "abort")
            assert {write.result(10) for write in writes} <= {"ECONNABORTED", "ENOTCONN"}
            assert os.pwrite(other, b"goes on", 0) == 7
            os.fsync(other)
            assert daemon.value("inflight").split() == ["0", "9"]
            assert daemon.value("ploopfs/connection") == "aborted"
            attaching = threads.submit(errno_of, daemon.store, "ploopfs/connection", "attach")
            until(lambda: not attaching.done() or attaching.result() == "EBUSY", "nothing is mounted yet")
            # The number that the replies were left for: there nobody's file is in the way.
            assert open_files(daemon)[os.devnull] == before[os.devnull] + 1
            assert open_files(daemon)["/dev/fuse"] == before["/dev/fuse"] - 1
        assert attaching.result(60) == "success"
        until(lambda: open_files(daemon) == before, "what was left for the replies is closed")
    with opened(daemon.disk()) as fd:
        assert [os.pread(fd, 4, offset) for offset in offsets] == [b"late"] * 8
        assert os.pwrite(fd, b"new", MIB) == 3
        assert os.pread(fd, 4, MIB) == b"newe"


def test_a_kernel_that_is_short_of_memory_writes_and_answers_everything_all_the_same(tmp_path: Path) -> None:
    need(io_uring=True)
    disk = make_disk(tmp_path / "disk", size_bytes=16 * MIB)
    offsets = range(0, disk.size_bytes, PIECE_BYTES // 2)
    command = (sys.executable, "-c", SHORT_OF_MEMORY)
    with serving_own(tmp_path, device(disk.directory), command=command) as daemon:
        with opened(daemon.disk()) as fd, ThreadPoolExecutor(8) as threads:
            data = {offset: struct.pack("<Q", offset + 1) * 512 for offset in offsets}
            written = threads.map(lambda offset: os.pwrite(fd, data[offset], offset), offsets)
            assert set(written) == {BLOCK_BYTES}
            os.fsync(fd)
            assert [offset for offset in offsets if os.pread(fd, BLOCK_BYTES, offset) != data[offset]] == []
        assert daemon.end() == Exit.OK
    assert int(daemon.log.rpartition("held: ")[2]) > 0, daemon.log
    assert "refused" not in daemon.log
    assert_closed(disk.top)
