"""One store that is mounted twice, as on two hosts: the second mount does not see the locks of the first."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import trio

from ploopfs.engine.counters import Counters
from ploopfs.engine.opening import open_stack, resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.storage import Storage
from ploopfs.errors import ImageNotClosed
from tests.mounted.disks import make_disk
from tests.mounted.storage import Bindfs

pytestmark = pytest.mark.real


async def open_and_close(image: Path, *, beside: Callable[[], None] = lambda: None) -> None:
    files = OsFiles()
    stack = await open_stack(files, await resolve(files, str(image)), read_only=False, counters=Counters())
    beside()
    await stack.aclose(clean=True)


def has_locks(image: Path) -> bool:
    async def opened() -> bool:
        file = await OsFiles().open(str(image), writable=True)
        await file.aclose()
        return file.identity.has_locks

    return trio.run(opened)


def test_an_image_in_use_through_another_mount_gets_no_second_writer(bindfs: Bindfs, tmp_path: Path) -> None:
    disk = make_disk(bindfs.bricks / "disk", depth=1)
    inside = disk.top.relative_to(bindfs.bricks)
    (tmp_path / "second").mkdir()
    second = Bindfs(bindfs.bricks, tmp_path / "second")
    second.mount()

    def open_through_second() -> None:
        before = disk.top.read_bytes()
        with ThreadPoolExecutor(1) as another, pytest.raises(ImageNotClosed, match="locks that reach") as refused:
            another.submit(partial(trio.run, open_and_close, second.path / inside)).result()
        assert f"`ploopfs check -r {second.path / inside}`" in str(refused.value)
        assert disk.top.read_bytes() == before

    try:
        trio.run(partial(open_and_close, bindfs.path / inside, beside=open_through_second))
        trio.run(open_and_close, second.path / inside)
    finally:
        second.close()


def test_a_lock_that_a_server_has_is_believed(bindfs: Bindfs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel, which does not keep it, does not show it."""
    disk = make_disk(bindfs.bricks / "disk", depth=1)
    top = bindfs.path / disk.top.relative_to(bindfs.bricks)
    assert not has_locks(top)
    monkeypatch.setattr("ploopfs.engine.lock.locked_file", lambda _fd: "")
    assert has_locks(top)


@pytest.mark.parametrize(
    ("filesystem", "option", "shares", "asks"),
    [
        ("ext4", "", True, False),
        ("nfs4", "local_lock=none", True, False),
        ("nfs4", "local_lock=all", False, False),
        ("nfs", "nolock", False, False),
        ("fuse.sshfs", "", True, True),
        ("fuse.vstorage", "", True, False),
    ],
)
def test_what_is_known_of_the_locks_of_a_storage(filesystem: str, option: str, shares: bool, asks: bool) -> None:
    storage = Storage(filesystem, frozenset({"rw", option}))
    assert (storage.shares_locks, storage.is_behind_client) == (shares, asks)
