"""The thread where processes are started: what it has open, and that its numbers of descriptors are its own."""

import ctypes
import errno
import gc
import logging
import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio

from ploopfs.engine import apart
from ploopfs.engine.apart import APART, Apart, path_of
from ploopfs.engine.command import run_command
from ploopfs.errors import CommandFailed


def descriptors() -> list[str]:
    """What the calling thread has open, but for the directory that tells it."""
    place = "/proc/thread-self/fd"
    with os.scandir(place) as entries:
        names = sorted((entry.name for entry in entries), key=int)
    return [os.readlink(f"{place}/{name}") for name in names if os.path.lexists(f"{place}/{name}")]


async def test_nothing_is_open_there_but_the_standard_streams_whatever_is_open_elsewhere(tmp_path: Path) -> None:
    with (tmp_path / "before").open("wb"):
        thread = Apart()
        thread.begin()
        with (tmp_path / "after").open("wb"):
            assert await thread.run(descriptors) == ["/dev/null"] * 3
            assert str(tmp_path / "before") in descriptors()
            assert str(tmp_path / "after") in descriptors()


async def test_it_closes_nothing_that_is_open_elsewhere(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        thread = Apart()
        await thread.run(partial(os.closerange, 3, 1000))
        assert file.write(b"still open") == len(b"still open")


async def test_what_was_open_when_the_thread_began_can_be_closed_for_good() -> None:
    """A copy of its descriptor would keep a pipe open, or a lock held, for ever."""
    reading, writing = os.pipe()
    await Apart().run(lambda: None)
    os.close(writing)
    with trio.fail_after(60):
        assert await trio.to_thread.run_sync(os.read, reading, 1, abandon_on_cancel=True) == b""
    os.close(reading)


async def test_what_the_work_raises_is_raised_and_the_next_one_is_done() -> None:
    thread = Apart()
    with pytest.raises(FileNotFoundError):
        await thread.run(partial(os.open, "/no/such/file", os.O_RDONLY))
    assert await thread.run(lambda: 5) == 5


async def test_a_pipe_of_the_caller_can_be_opened_there() -> None:
    reading, writing = os.pipe()
    path = path_of(writing)

    def write() -> None:
        with open(path, "wb", buffering=0) as pipe:
            pipe.write(b"from there")

    await Apart().run(write)
    assert os.read(reading, 100) == b"from there"
    os.close(reading)
    os.close(writing)


async def test_no_garbage_is_collected_there_whose_descriptors_are_others() -> None:
    assert gc.isenabled()
    assert await Apart().run(gc.isenabled) is False
    assert gc.isenabled()


async def test_one_thread_serves_whoever_begins_it_first() -> None:
    thread = Apart()
    names: list[str] = []

    async def ask() -> None:
        names.append(await thread.run(lambda: os.readlink("/proc/thread-self")))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert len(set(names)) == 1


async def test_where_the_kernel_forbids_a_table_of_its_own_nothing_is_closed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    class Forbidding:
        def unshare(self, _flags: int) -> int:
            ctypes.set_errno(errno.EPERM)
            return -1

    monkeypatch.setattr(apart, "_libc", Forbidding())
    caplog.set_level(logging.INFO)
    with (tmp_path / "file").open("wb"):
        assert str(tmp_path / "file") in await Apart().run(descriptors)
    assert "descriptors cannot be left behind (EPERM)" in caplog.text


async def test_a_process_that_cannot_be_made_is_told_by_the_name_of_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_arguments: object, **_others: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", fail)
    before = descriptors()
    with pytest.raises(CommandFailed, match="recover: no process could be started: Resource temporarily unavailable"):
        await run_command(["recover"], {}, 1)
    assert descriptors() == before


async def test_a_program_inherits_no_descriptor_of_ours(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("wb") as file:
        os.set_inheritable(file.fileno(), True)
        ended = await run_command(["/bin/sh", "-c", "ls -l /proc/$$/fd"], {}, 60)
    assert "secret" not in ended.output
    assert "0 -> /dev/null" in ended.output


def test_a_child_of_a_fork_has_a_thread_of_its_own() -> None:
    assert APART.run_blocking(lambda: "here") == "here"
    child = os.fork()
    if not child:
        signal.alarm(20)  # it would wait for the thread of its parent for ever
        os._exit(APART.run_blocking(lambda: 7))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
