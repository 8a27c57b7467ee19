"""The engine's bounds, each reached: threads, the close of a hung file, fault commands, what a probe reads again."""

import fcntl
import os
import threading
from pathlib import Path

import pytest
import trio

from ploopfs.bounds import MAX_REREAD_BYTES, MAX_RULE_CHARACTERS
from ploopfs.engine import os_file
from ploopfs.engine.confined import open_image
from ploopfs.engine.inject.grammar import execute
from ploopfs.engine.inject.injector import Injector
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.probe import ProbedImage
from ploopfs.errors import BadValue

HANG_S = 60
"""Only a failing test waits that long."""


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "image").write_bytes(bytes(3 * MAX_REREAD_BYTES))
    return str(tmp_path / "image")


async def test_with_every_thread_in_the_storage_the_next_operation_waits_for_one(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await OsFiles(threads=2).open(path, writable=False)
    came, go = threading.Semaphore(0), threading.Semaphore(0)
    real = os.preadv

    def hung(*arguments: object) -> int:
        came.release()
        assert go.acquire(timeout=HANG_S)
        return real(*arguments)  # type: ignore[arg-type]  # as it came

    def arrivals(count: int) -> bool:
        return all(came.acquire(timeout=HANG_S) for _ in range(count))

    monkeypatch.setattr(os, "preadv", hung)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(file.read, 0, 10)
        assert await trio.to_thread.run_sync(arrivals, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert not came.acquire(blocking=False), "the third is in no thread"
        go.release()
        assert await trio.to_thread.run_sync(arrivals, 1)
        go.release(2)


@pytest.mark.parametrize(("is_over", "limit"), [(False, "CLOSE_TIMEOUT_S"), (True, "CLOSE_GRACE_MS")])
async def test_a_close_that_hangs_is_waited_for_in_bounds(
    path: str, monkeypatch: pytest.MonkeyPatch, is_over: bool, limit: str
) -> None:
    file = await OsFiles(threads=2).open(path, writable=False)
    go, closed = threading.Event(), threading.Event()
    real = os.close

    def hung(fd: int) -> None:
        assert go.wait(HANG_S)
        real(fd)
        closed.set()

    monkeypatch.setattr(os, "close", hung)
    monkeypatch.setattr(os_file, limit, 0.05)
    with trio.CancelScope() as scope:
        if is_over:
            scope.cancel()
        await file.aclose()
    assert not closed.is_set()
    go.set()
    assert await trio.to_thread.run_sync(closed.wait, HANG_S), "the thread goes on"


async def test_a_close_that_finds_no_thread_in_its_time_is_done_as_soon_as_there_is_one(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = OsFiles(threads=1)
    file, other = await files.open(path, writable=False), await files.open(path, writable=False)
    go, came, closed = threading.Event(), threading.Event(), threading.Event()
    fd, real = file._fd, os.close

    def hung(_fd: int, _offset: int, _data: bytearray) -> int:
        came.set()
        assert go.wait(HANG_S)
        return 0

    def close(number: int) -> None:
        real(number)
        if number == fd:
            closed.set()

    monkeypatch.setattr(other, "_read", hung)
    monkeypatch.setattr(os, "close", close)
    monkeypatch.setattr(os_file, "CLOSE_TIMEOUT_S", 0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.read, 0, 10)
        assert await trio.to_thread.run_sync(came.wait, HANG_S)
        await file.aclose()
        assert not closed.is_set()
        go.set()
    assert await trio.to_thread.run_sync(closed.wait, HANG_S), "nobody waits, but it is not forgotten"
    await other.aclose()


def test_a_command_of_faults_has_as_many_characters_as_the_bound_says() -> None:
    injector = Injector()
    too_long = rf"has {MAX_RULE_CHARACTERS + 1} characters, expected at most {MAX_RULE_CHARACTERS}$"
    with pytest.raises(BadValue, match=too_long):
        execute(injector, "add,op=".ljust(MAX_RULE_CHARACTERS + 1, "x"))
    with pytest.raises(BadValue, match=r"^what the rule does is missing"):
        execute(injector, "add,op=".ljust(MAX_RULE_CHARACTERS, "x"))
    assert injector.rules == []


async def test_of_a_large_read_that_failed_a_probe_tries_the_beginning(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    real = os.pread

    def recorded(fd: int, length: int, offset: int) -> bytes:
        lengths.append(length)
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", recorded)
    await OsFiles().probe([ProbedImage(path=path, failed=(0, 3 * MAX_REREAD_BYTES))])
    assert lengths[-1] == MAX_REREAD_BYTES


async def test_a_file_that_is_opened_after_it_was_given_up_does_not_stay_open(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each attempt on a store that hangs would leave a descriptor behind when it answers again."""
    came, go, closed = threading.Event(), threading.Event(), threading.Event()
    real, close = open_image, os.close

    def hung(*arguments: object) -> int:
        came.set()
        assert go.wait(HANG_S)
        return real(*arguments)  # type: ignore[arg-type]  # as they came

    def watched(fd: int) -> None:
        # The first descriptor of it that is closed has only looked at it.
        is_open = os.readlink(f"/proc/self/fd/{fd}") == path and not is_only_a_place(fd)
        close(fd)
        if is_open:
            closed.set()

    monkeypatch.setattr("ploopfs.engine.os_file.open_image", hung)
    monkeypatch.setattr(os, "close", watched)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_for_reading, path)
        assert await trio.to_thread.run_sync(came.wait, HANG_S)
        nursery.cancel_scope.cancel()
    go.set()
    assert await trio.to_thread.run_sync(closed.wait, HANG_S)


async def open_for_reading(path: str) -> None:
    await OsFiles().open(path, writable=False)


def is_only_a_place(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH)
