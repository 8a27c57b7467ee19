"""What is given up may yet happen: an injected hang that is released late, and who may write the image before that.

`scene` is a file in memory below an injector; `files` are the very files of a machine.
"""

import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.engine import lock
from ploopfs.engine.file import File
from ploopfs.engine.given_up import Change, GivenUp
from ploopfs.engine.inject.grammar import execute
from ploopfs.engine.inject.injector import Injector
from ploopfs.engine.os_file import OsFile, OsFiles
from ploopfs.engine.storage import Identity
from ploopfs.errors import BackendError, StorageTimeout
from ploopfs.testing.files import MemoryFiles

PATH = "/store/image"
CHANGES: dict[str, tuple[Callable[[File], Awaitable[object]], bytes]] = {
    "WRITE": (lambda file: file.write(1, b"late"), b".late..."),
    "TRUNCATE": (lambda file: file.truncate(3), b"..."),
    "DISCARD": (lambda file: file.punch(2, 3), b"..\0\0\0..."),
}


HANGING: dict[str, tuple[Any, str]] = {"write": (os, "pwrite"), "read": (os, "preadv"), "lock": (lock, "claim")}
"""What the storage is asked with."""
HUNG: dict[str, Callable[[File], Awaitable[object]]] = {
    "write": lambda file: file.write(0, b"late"),
    "read": lambda file: file.read(0, 8),
    "lock": lambda file: file.lock(),
}


class Scene:
    def __init__(self) -> None:
        self.memory = MemoryFiles(answers_at_once=False)
        self.memory.put(PATH, b"." * 8)
        self.injector = Injector()
        self.files = self.injector.around(self.memory)

    async def give_up(self, file: File, op: str, words: str) -> None:
        execute(self.injector, f"add,op={op},hang{words}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(CHANGES[op][0], file)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    async def release(self) -> None:
        execute(self.injector, "removeall")
        await wait_all_tasks_blocked()


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize("op", CHANGES)
async def test_a_change_that_was_given_up_happens_when_it_is_released(scene: Scene, op: str) -> None:
    file = await scene.files.open(PATH, writable=True)
    await scene.give_up(file, op, ",late")
    assert scene.memory.bytes_of(PATH) == b"." * 8
    await scene.release()
    assert scene.memory.bytes_of(PATH) == CHANGES[op][1]


@pytest.mark.parametrize(
    ("words", "happens"),
    [("", False), (",late,errno=EIO", False), (",late,errno=EIO,after", True)],
    ids=["not late", "refused", "reply lost"],
)
async def test_unless_it_would_not_have_happened_either_way(scene: Scene, words: str, happens: bool) -> None:
    file = await scene.files.open(PATH, writable=True)
    await scene.give_up(file, "WRITE", words)
    await scene.release()
    assert (scene.memory.bytes_of(PATH) == CHANGES["WRITE"][1]) is happens


async def test_it_happens_though_its_file_was_closed_which_then_is_closed_for_good(scene: Scene) -> None:
    file = await scene.files.open(PATH, writable=True)
    await file.lock()
    await scene.give_up(file, "WRITE", ",late")
    await file.aclose()
    assert scene.memory.images[PATH].writers
    await scene.release()
    assert scene.memory.bytes_of(PATH) == CHANGES["WRITE"][1]
    assert not scene.memory.images[PATH].writers
    with pytest.raises(BackendError):
        await file.read(0, 1)


async def test_a_late_change_that_fails_is_nobodys(scene: Scene) -> None:
    file = await scene.files.open(PATH, writable=True)
    await scene.give_up(file, "WRITE", ",late")
    await file._inner.aclose()  # type: ignore[attr-defined]
    await scene.release()
    assert scene.memory.bytes_of(PATH) == b"." * 8


async def test_before_that_the_image_is_not_opened_for_writing_and_another_one_is(scene: Scene) -> None:
    scene.memory.put("/store/other", b"")
    await scene.give_up(await scene.files.open(PATH, writable=True), "WRITE", ",late")
    with pytest.raises(StorageTimeout, match="may yet happen"):
        await scene.files.open(PATH, writable=True)
    await (await scene.files.open(PATH, writable=False)).aclose()
    await (await scene.files.open("/store/other", writable=True)).aclose()
    await scene.release()
    await (await scene.files.open(PATH, writable=True)).aclose()


# --- which image it is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "device", "inode", "reaches"),
    [
        ("/mnt/image", 1, 7, True),
        ("/elsewhere/image", 1, 7, True),
        ("/mnt/image", 1, 8, False),
        ("/mnt/image", 2, 7, True),
        ("/mnt/image", 2, 8, True),
        ("/mnt/other", 2, 7, False),
    ],
    ids=["the same", "by another path", "a new file", "mounted anew", "with other numbers", "another file there"],
)
def test_a_change_reaches_its_own_file_and_whatever_a_new_mount_shows_at_its_path(
    path: str, device: int, inode: int, reaches: bool
) -> None:
    given_up = GivenUp()
    given_up.add(Change("/mnt/image", Identity(1, 7, "fuse.store"), lambda: True))
    if not reaches:
        given_up.check(path, Identity(device, inode, "fuse.store"))
        return
    with pytest.raises(StorageTimeout, match="0:1 that was here before" if device == 2 else "may yet happen$"):
        given_up.check(path, Identity(device, inode, "fuse.store"))


def test_a_change_that_has_ended_is_forgotten() -> None:
    given_up, under_way = GivenUp(), [True]
    given_up.add(Change("/image", Identity(1, 7, "ext4"), lambda: bool(under_way)))
    under_way.clear()
    given_up.check("/image", Identity(1, 7, "ext4"))
    under_way.append(True)
    given_up.check("/image", Identity(1, 7, "ext4"))


@asynccontextmanager
async def given_up_write(files: OsFiles, path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Inside, a write to the file at `path` was given up and is still under way."""
    began, go_on, really = trio.Event(), threading.Event(), os.pwrite
    token = trio.lowlevel.current_trio_token()

    def hanging(fd: int, data: bytes, offset: int) -> int:
        token.run_sync_soon(began.set)
        go_on.wait()
        return really(fd, data, offset)

    file = await files.open(os.fspath(path), writable=True)
    monkeypatch.setattr(os, "pwrite", hanging)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.write, 0, b"late")
            await began.wait()
            scope.cancel()
    try:
        yield
    finally:
        go_on.set()


@pytest.mark.usefixtures("in_threads")
async def test_a_link_to_the_image_is_its_path_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a new mount, the file at the path is another one, on another device."""
    (tmp_path / "image").write_bytes(bytes(8))
    (tmp_path / "link").symlink_to("image")
    files = OsFiles()
    async with given_up_write(files, tmp_path / "link", monkeypatch):
        monkeypatch.setattr(
            "ploopfs.engine.os_file.Identity", lambda device, inode, *rest: Identity(device + 1, inode + 1, *rest)
        )
        with pytest.raises(StorageTimeout, match="that was here before and still hangs"):
            await files.open(os.fspath(tmp_path / "image"), writable=True)


@pytest.mark.usefixtures("in_threads")
async def test_who_comes_anew_is_kept_off_what_somebody_else_gave_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that was removed and is added again has Files of its own."""
    path = tmp_path / "image"
    path.write_bytes(bytes(8))
    async with given_up_write(OsFiles(), path, monkeypatch):
        with pytest.raises(StorageTimeout, match=r"may yet happen$"):
            await OsFiles().open(os.fspath(path), writable=True)


@pytest.mark.usefixtures("in_threads")
@pytest.mark.parametrize("operation", ["write", "read", "lock"])
async def test_a_file_that_is_done_with_is_closed_when_what_was_given_up_has_ended_and_its_lock_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Also a lock that the storage grants when nobody waits for it any more."""
    path = tmp_path / "image"
    path.write_bytes(bytes(8))
    began, closed, go_on = trio.Event(), trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    really = {name: getattr(*of) for name, of in HANGING.items()}

    def hanging(*arguments: object, **others: object) -> object:
        token.run_sync_soon(began.set)
        go_on.wait()
        return really[operation](*arguments, **others)

    def close(file: OsFile) -> None:
        really_close(file)
        token.run_sync_soon(closed.set)

    really_close = OsFile.close
    monkeypatch.setattr(OsFile, "close", close)
    file = await OsFiles().open(os.fspath(path), writable=True)
    if operation != "lock":
        await file.lock()
    with monkeypatch.context() as patched:
        patched.setattr(*HANGING[operation], hanging)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(HUNG[operation], file)
            await began.wait()
            nursery.cancel_scope.cancel()
    await file.aclose()
    os.fstat(file._fd)
    go_on.set()
    await closed.wait()
    with pytest.raises(BackendError, match="EBADF"):
        await file.read(0, 1)
    another = await OsFiles().open(os.fspath(path), writable=True)
    await another.lock()
    await another.aclose()
