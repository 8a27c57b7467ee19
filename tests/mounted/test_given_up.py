"""A write that hangs in a store and was given up, and the same store mounted anew in the place of the mount that has
it."""

import os
from pathlib import Path

import pytest
import trio

from ploopfs.cli.namespace import bind
from ploopfs.engine.file import File
from ploopfs.engine.os_file import OsFiles
from ploopfs.errors import StorageTimeout
from tests.mounted.daemon import HANG_S
from tests.mounted.storage import Bindfs

pytestmark = pytest.mark.real


async def give_up_a_write(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    began, really = trio.Event(), os.pwrite
    token = trio.lowlevel.current_trio_token()

    def told(fd: int, data: bytes, offset: int) -> int:
        token.run_sync_soon(began.set)
        return really(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", told)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.write, 0, b"late")
        await began.wait()
        nursery.cancel_scope.cancel()


async def wait_open(files: OsFiles, path: str) -> bytes:
    with trio.fail_after(HANG_S):
        while True:
            try:
                file = await files.open(path, writable=True)
            except StorageTimeout:
                await trio.lowlevel.checkpoint()
            else:
                found = await file.read(0, 4)
                await file.aclose()
                return bytes(found)


async def test_what_the_old_mount_may_yet_do_to_an_image_keeps_it_from_being_written_through_the_new_one(
    tmp_path: Path, bindfs: Bindfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mounted without a program: one that is started closes what it inherits, and waits for the old store in that."""
    (bindfs.bricks / "image").write_bytes(bytes(4096))
    files, path = OsFiles(), str(bindfs.path / "image")
    anew = Bindfs(bindfs.bricks, tmp_path / "anew")
    anew.path.mkdir()
    anew.mount()
    try:
        file = await files.open(path, writable=True)
        with bindfs.stopped():
            await give_up_a_write(file, monkeypatch)
            bind(str(anew.path), str(bindfs.path))
            with pytest.raises(StorageTimeout, match=f"{path}.* through the mount .* that was here before"):
                await files.open(path, writable=True)
        assert await wait_open(files, path) == b"late"
    finally:
        anew.close()
