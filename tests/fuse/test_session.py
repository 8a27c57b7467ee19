"""The life of a mount: how it starts, ends, dies, and what is done about a dead one."""

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import pytest
import trio

from ploopfs.errors import MountError
from ploopfs.fuse import mount
from ploopfs.fuse.mount import LEAST_MAX_TASKS, check_fuse, serve, terminate
from ploopfs.fuse.mountpoint import State, inspect_mountpoint, ploopfs_mounts, replace_stale
from ploopfs.sysfs.nodes import Directory
from tests.fuse.mounting import HANG_S, ROOT, errno_of, mounted, until
from tests.realparts import need

EMPTY = Directory(dict)
GONE = ("ENOTCONN", "ECONNABORTED")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A path that the mount table has to escape."""
    place = tmp_path / "a b\\c"
    place.mkdir()
    return place


@pytest.mark.real
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["terminated", "cancelled"])
def test_an_ended_session_leaves_a_plain_directory(place: Path, number: signal.Signals) -> None:
    need(fuse=True)
    with mounted(place) as toy:
        assert inspect_mountpoint(str(toy.path)) is State.SERVING
        assert str(toy.path) in ploopfs_mounts()
        assert toy.end(number) == 0
        assert inspect_mountpoint(str(toy.path)) is State.FREE
        assert str(toy.path) not in ploopfs_mounts()


@pytest.mark.real
def test_unmounting_from_outside_ends_the_session(place: Path) -> None:
    need(fuse=True, root=True)
    with mounted(place) as toy:
        subprocess.run(["umount", toy.path], check=True)
        assert toy.process.wait(HANG_S) == 0


@pytest.mark.real
def test_a_cancelled_session_unmounts_though_a_request_waits(place: Path) -> None:
    need(fuse=True)
    with mounted(place) as toy:
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.append(errno_of((toy.path / "dev/stuck").read_bytes)))
        reader.start()
        until(toy.path / "waiting", "1\n")
        assert toy.end(signal.SIGINT) == 0
        reader.join()
        assert errors[0] in GONE
        assert inspect_mountpoint(str(toy.path)) is State.FREE


@pytest.mark.real
def test_open_files_and_pollers_do_not_keep_a_session_from_ending(place: Path) -> None:
    need(fuse=True)
    with mounted(place) as toy:
        fd = os.open(toy.path / "level", os.O_RDONLY)
        waiter = select.epoll()
        waiter.register(fd, select.EPOLLPRI)
        assert toy.end() == 0
        assert errno_of(os.read, fd, 10) in GONE
        waiter.close()
        assert errno_of(os.close, fd) in ("success", *GONE)
        assert inspect_mountpoint(str(toy.path)) is State.FREE


@pytest.mark.real
def test_a_killed_server_leaves_a_stale_mount_that_can_be_replaced(place: Path) -> None:
    need(fuse=True)
    with mounted(place) as toy:
        path = str(toy.path)
        toy.end(signal.SIGKILL)
        deadline = time.monotonic() + HANG_S
        while errno_of(os.stat, path) != "ENOTCONN":  # for some ms the kernel goes by what it was told of the root
            assert time.monotonic() < deadline
        assert inspect_mountpoint(path) is State.STALE
        assert path in ploopfs_mounts()
        assert refusal_of(path) == f"refused: {path} is a dead ploopfs mount, left by a daemon that was killed\n"
        replace_stale(path)
        assert inspect_mountpoint(path) is State.FREE
        with mounted(place) as again:
            assert (again.path / "counter").read_text() == "1\n"


@pytest.mark.real
def test_a_second_server_is_refused_and_the_first_goes_on(place: Path) -> None:
    need(fuse=True)
    with mounted(place) as toy:
        assert refusal_of(str(toy.path)) == f"refused: {toy.path} is already served by a running ploopfs\n"
        with pytest.raises(MountError, match="is not a dead ploopfs mount: is already served"):
            replace_stale(str(toy.path))
        assert (toy.path / "counter").read_text()


def refusal_of(path: str) -> str:
    """What a toy says that cannot mount at `path`."""
    command = [sys.executable, "-m", "tests.fuse.toy", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda _path: None, "does not exist"),
        (lambda path: path.touch(), "is not a directory"),
        (lambda path: (path / "file").mkdir(parents=True), "is not empty"),
    ],
)
async def test_a_mountpoint_that_would_not_do_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Path], None], reason: str
) -> None:
    monkeypatch.setattr(mount, "check_fuse", lambda **_: None)
    prepare(tmp_path / "mnt")
    with pytest.raises(MountError, match=reason):
        await serve(EMPTY, str(tmp_path / "mnt"), allow_other=False, max_tasks=100)


async def test_too_few_tasks_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="max_tasks"):
        await serve(EMPTY, "nowhere", allow_other=False, max_tasks=LEAST_MAX_TASKS - 1)


def test_a_missing_fuse_device_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mount, "_FUSE_DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(MountError, match="fuse is missing: load the module"):
        check_fuse()


def test_a_fuse_device_that_cannot_be_opened_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fuse").mkdir()
    monkeypatch.setattr(mount, "_FUSE_DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(MountError, match="Is a directory: run as root, or allow"):
        check_fuse()


@pytest.mark.parametrize(
    ("fusermount", "allowed", "reason"),
    [(None, True, "fusermount3 is missing"), ("/bin/true", False, "needs root, or a line user_allow_other")],
)
def test_a_user_without_root_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, fusermount: str | None, allowed: bool, reason: str
) -> None:
    monkeypatch.setattr(mount, "_FUSE_DEVICE", os.devnull)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda _: fusermount)
    monkeypatch.setattr(mount, "_user_allow_other", lambda: allowed)
    with pytest.raises(MountError, match=reason):
        check_fuse(allow_other=True)


class FakePyfuse3:
    """pyfuse3's session as far as `serve` knows it; `outcome` is what its main loop ends with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, outcome: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self.outcome, self.answering = outcome, trio.Event()
        monkeypatch.setattr(mount, "check_fuse", lambda **_: None)
        monkeypatch.setattr(mount, "_raise_background_limit", lambda *_: None)
        monkeypatch.setattr(pyfuse3, "init", self.init)
        monkeypatch.setattr(pyfuse3, "main", self.main)
        monkeypatch.setattr(pyfuse3, "terminate", lambda: self.calls.append("terminate"))
        monkeypatch.setattr(pyfuse3, "close", lambda *, unmount: self.calls.append(f"close unmount={unmount}"))

    def init(self, _operations: object, _mountpoint: str, options: set[str]) -> None:
        self.calls.append(f"init allow_other={'allow_other' in options}")

    async def main(self, *, min_tasks: int, max_tasks: int) -> None:
        assert min_tasks < max_tasks
        if self.outcome is not None:
            raise self.outcome
        await trio.sleep_forever()


async def test_a_crash_of_the_main_loop_leaves_the_mountpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakePyfuse3(monkeypatch, OSError(errno.EIO, "fuse_session_receive_buf failed"))
    with pytest.raises(ExceptionGroup):
        await serve(EMPTY, str(tmp_path), allow_other=True, max_tasks=100)
    assert fake.calls == ["init allow_other=True", "close unmount=False"]


async def test_one_process_has_one_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakePyfuse3(monkeypatch)
    terminate()
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: serve(EMPTY, str(tmp_path), allow_other=False, max_tasks=100, task_status=task_status)
        )
        with pytest.raises(MountError, match="serves a tree already"):
            await serve(EMPTY, str(tmp_path), allow_other=False, max_tasks=100)
        terminate()
        nursery.cancel_scope.cancel()
    terminate()
    assert fake.calls == ["init allow_other=False", "terminate", "close unmount=True"]


async def test_a_mount_that_libfuse_refuses_is_an_expected_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakePyfuse3(monkeypatch)

    def refuse(*_: object) -> None:
        raise RuntimeError("fuse_session_mount failed")

    monkeypatch.setattr(pyfuse3, "init", refuse)
    with pytest.raises(MountError, match="fuse_session_mount failed"):
        await serve(EMPTY, str(tmp_path), allow_other=False, max_tasks=100)
    terminate()
    assert fake.calls == []
