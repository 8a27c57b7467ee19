"""What a tree keeps to, whoever asks: open files, stores under way, requests that the kernel may send."""

import errno
import logging
import os
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from pyfuse3 import ROOT_INODE, FUSEError, RequestContext
from trio.testing import wait_all_tasks_blocked

from ploopfs.bounds import MAX_BACKGROUND, MAX_OPEN_FILES, MAX_OTHERS_FILES, MAX_STORES, STATUS_TASKS
from ploopfs.fuse import mount
from ploopfs.fuse.operations import Operations
from ploopfs.sysfs.nodes import Attribute, Directory, Disk, Node
from tests.fuse.toy import MemoryDisk

CALLER = cast(RequestContext, SimpleNamespace(uid=os.geteuid()))
OTHER = cast(RequestContext, SimpleNamespace(uid=os.geteuid() + 1000))


class Tree:
    """`disk`, and `control`, whose store waits until it is `released`."""

    def __init__(self) -> None:
        self.released = trio.Event()
        self.under_way = 0
        nodes: dict[str, Node] = {"disk": Disk(MemoryDisk()), "control": Attribute(lambda: "shown", self._store)}
        self.operations = Operations(Directory(lambda: nodes))

    async def _store(self, _text: str) -> None:
        self.under_way += 1
        try:
            await self.released.wait()
        finally:
            self.under_way -= 1

    async def opened(self, name: bytes, flags: int = os.O_RDWR, caller: RequestContext = CALLER) -> int:
        number = (await self.operations.lookup(ROOT_INODE, name, caller)).st_ino
        return (await self.operations.open(number, flags, caller)).fh


@pytest.fixture
def tree() -> Tree:
    return Tree()


async def test_more_files_and_directories_than_the_bound_are_not_opened_until_some_are_closed(tree: Tree) -> None:
    disk = await tree.opened(b"disk")
    handles = [await tree.operations.opendir(ROOT_INODE, CALLER) for _ in range(MAX_OPEN_FILES - 1)]
    for name in (b"disk", b"control"):
        with pytest.raises(FUSEError) as raised:
            await tree.opened(name)
        assert raised.value.errno == errno.ENFILE
    with pytest.raises(FUSEError) as raised:
        await tree.operations.opendir(ROOT_INODE, CALLER)
    assert raised.value.errno == errno.ENFILE
    await tree.operations.releasedir(handles.pop())
    await tree.operations.release(await tree.opened(b"control"))
    await tree.operations.release(disk)
    await tree.opened(b"disk")


async def test_other_users_leave_half_of_the_files_to_the_owner_whatever_they_open(tree: Tree) -> None:
    handles = [await tree.operations.opendir(ROOT_INODE, OTHER) for _ in range(MAX_OTHERS_FILES)]
    for opening in (partial(tree.opened, b"control", os.O_RDONLY, OTHER), partial(tree.operations.opendir, 1, OTHER)):
        with pytest.raises(FUSEError) as raised:
            await opening()
        assert raised.value.errno == errno.ENFILE
    await tree.operations.release(await tree.opened(b"disk"))
    await tree.operations.releasedir(handles.pop())
    await tree.opened(b"control", os.O_RDONLY, OTHER)
    assert MAX_OTHERS_FILES * 2 == MAX_OPEN_FILES


async def test_more_stores_than_the_bound_are_busy_and_neither_reads_nor_disks_are_kept_from_anything(
    tree: Tree,
) -> None:
    control, disk = await tree.opened(b"control"), await tree.opened(b"disk")
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_STORES):
            nursery.start_soon(tree.operations.write, control, 0, b"1")
        await wait_all_tasks_blocked()
        assert tree.under_way == MAX_STORES
        with pytest.raises(FUSEError) as raised, trio.fail_after(0):
            await tree.operations.write(control, 0, b"1")
        assert raised.value.errno == errno.EBUSY
        assert await tree.operations.read(control, 0, 100) == b"shown\n"
        assert await tree.operations.write(disk, 0, b"data") == 4
        tree.released.set()
    assert await tree.operations.write(control, 0, b"1") == 1


async def test_a_store_that_is_cut_off_makes_room_again(tree: Tree) -> None:
    control = await tree.opened(b"control")
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_STORES):
            nursery.start_soon(tree.operations.write, control, 0, b"1")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    tree.released.set()
    assert await tree.operations.write(control, 0, b"1") == 1


def test_stores_leave_requests_for_the_status_files() -> None:
    assert MAX_STORES < STATUS_TASKS


@pytest.mark.parametrize("limit", [300, MAX_BACKGROUND, MAX_BACKGROUND + 1, 10**6])
def test_the_kernel_is_asked_for_no_more_background_requests_than_it_knows(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would refuse the number, and keep its own of 12, for all the devices of a large mount."""
    commands: list[str] = []

    def run(command: list[str], **_others: object) -> subprocess.CompletedProcess[str]:
        commands.append(command[-1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    mount._raise_background_limit(77, limit)
    [command] = commands
    assert f"echo {min(limit, 65535)} > /sys/fs/fuse/connections/77/max_background" in command


def test_a_program_that_hangs_does_not_keep_the_tree_from_being_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("sh", "unshare"):
        program = tmp_path / name
        program.write_text("#!/bin/bash\nexec sleep 1000\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(mount, "HELPER_TIMEOUT_S", 0.2)
    caplog.set_level(logging.INFO)
    mount._raise_background_limit(77, 300)
    assert "stays at the kernel's default" in caplog.text
