"""Lookup counts and handles of the request handlers, with the kernel's part played here."""

import errno
import os
from types import SimpleNamespace
from typing import cast

import pyfuse3
import pytest
from pyfuse3 import ROOT_INODE, ReaddirToken, RequestContext

from ploopfs.device.signal import Signal
from ploopfs.fuse.entry import KEPT_S, ROOT_KEPT_S
from ploopfs.fuse.operations import Operations
from ploopfs.sysfs.nodes import Attribute, Directory, Disk, Link, Node
from tests.fuse.toy import MemoryDisk

CALLER = cast(RequestContext, SimpleNamespace(uid=0))
TOKEN = cast(ReaddirToken, None)


@pytest.fixture
def device() -> MemoryDisk:
    return MemoryDisk()


@pytest.fixture
def operations(device: MemoryDisk) -> Operations:
    names: dict[str, Node] = {"disk": Disk(device), "link": Link("disk"), "other": Link("disk")}
    return Operations(Directory(lambda: names))


async def number_of(operations: Operations, name: bytes) -> int:
    return (await operations.lookup(ROOT_INODE, name, CALLER)).st_ino


async def test_each_lookup_counts(operations: Operations) -> None:
    number = await number_of(operations, b"link")
    assert await number_of(operations, b"link") == number
    assert operations._inodes[number].lookups == 2
    await operations.forget([(number, 2)])
    assert operations._inodes[number].lookups == 0


async def test_the_kernel_keeps_a_name_that_cannot_change_and_asks_for_every_other(
    device: MemoryDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    below: dict[str, Node] = {
        "value": Attribute(str),
        "fixed": Directory(dict, is_fixed=True),
        "changing": Directory(dict),
        "disk": Disk(device),
    }
    root: dict[str, Node] = {"fixed": Directory(lambda: below, is_fixed=True), "changing": Directory(lambda: below)}
    root["lending"] = Directory(lambda: below, changed=Signal(), lend=dict.fromkeys(below, 0.2).__getitem__)
    kept: dict[bytes, tuple[float, float]] = {}

    def reply(_token: object, name: bytes, entry: pyfuse3.EntryAttributes, _next_id: int) -> bool:
        kept[name] = (entry.entry_timeout, entry.attr_timeout)
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    operations = Operations(Directory(lambda: root))
    assert (await Operations(Directory(dict, is_fixed=True)).getattr(ROOT_INODE, CALLER)).attr_timeout == ROOT_KEPT_S
    for parent, name_s, parent_s in ((b"fixed", KEPT_S, KEPT_S), (b"changing", 0, 0), (b"lending", 0.2, KEPT_S)):
        found = await operations.lookup(ROOT_INODE, parent, CALLER)
        assert (found.entry_timeout, found.attr_timeout) == (0, parent_s), "the root is none that is fixed"
        expected = {b"value": (name_s, KEPT_S), b"fixed": (name_s, KEPT_S), b"changing": (name_s, 0)}
        expected[b"disk"] = (name_s, 0)
        looked_up = {}
        for name in expected:
            entry = await operations.lookup(found.st_ino, name, CALLER)
            looked_up[name] = (entry.entry_timeout, entry.attr_timeout)
            assert (await operations.getattr(entry.st_ino, CALLER)).attr_timeout == entry.attr_timeout
        kept.clear()
        handle = await operations.opendir(found.st_ino, CALLER)
        await operations.readdir(handle, 0, TOKEN)
        assert looked_up == kept == expected


async def test_the_kernel_keeps_that_a_name_is_missing_only_where_none_can_come() -> None:
    root: dict[str, Node] = {
        "fixed": Directory(dict, is_fixed=True),
        "lending": Directory(dict, changed=Signal(), lend=lambda _: 0.2),
        "changing": Directory(dict),
    }
    operations = Operations(Directory(lambda: root))
    for name in (b"lending", b"changing"):
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await operations.lookup(await number_of(operations, name), b"none", CALLER)
        assert refused.value.errno == errno.ENOENT
    entry = await operations.lookup(await number_of(operations, b"fixed"), b"none", CALLER)
    assert (entry.st_ino, entry.entry_timeout) == (0, KEPT_S)


async def test_what_was_said_of_a_directory_is_taken_back_when_its_names_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken_back: list[int] = []
    changed = Signal()

    def invalidate(number: int, *, attr_only: bool) -> None:
        assert attr_only
        taken_back.append(number)
        raise OSError(errno.ENOENT, "the kernel has it no more")

    monkeypatch.setattr(pyfuse3, "invalidate_inode", invalidate)
    names: dict[str, Node] = {"changing": Directory(dict, changed=changed)}
    operations = Operations(Directory(lambda: names))
    changed.fire()
    for _ in range(2):
        number = (await operations.lookup(ROOT_INODE, b"changing", CALLER)).st_ino
    changed.fire()
    assert taken_back == [number]
    operations.release_all()
    changed.fire()
    assert taken_back == [number]


async def test_a_listing_counts_only_the_entries_that_the_kernel_took(
    operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[tuple[bytes, int, int]] = []

    def reply(_token: object, name: bytes, entry: pyfuse3.EntryAttributes, next_id: int) -> bool:
        offered.append((name, entry.st_ino, next_id))
        return len(offered) != 2

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    handle = await operations.opendir(ROOT_INODE, CALLER)
    await operations.readdir(handle, 0, TOKEN)
    assert [(name, operations._inodes[number].lookups) for name, number, _ in offered] == [(b"disk", 1), (b"link", 0)]
    _, _, next_id = offered[0]
    await operations.readdir(handle, next_id, TOKEN)
    await operations.releasedir(handle)
    assert [name for name, _, _ in offered] == [b"disk", b"link", b"link", b"other"]
    assert operations._inodes[offered[1][1]].lookups == 1


async def test_a_disk_is_open_until_it_is_released(operations: Operations, device: MemoryDisk) -> None:
    number = await number_of(operations, b"disk")
    opened = await operations.open(number, os.O_RDWR, CALLER)
    assert (opened.direct_io, opened.keep_cache, device.open_count) == (True, False, 1)
    await operations.release(opened.fh)
    assert device.open_count == 0


async def test_a_file_that_was_released_is_released_once(operations: Operations, device: MemoryDisk) -> None:
    number = await number_of(operations, b"disk")
    opened = await operations.open(number, os.O_RDONLY, CALLER)
    await operations.release(opened.fh)
    operations.release_all()
    assert device.open_count == 0


async def test_the_end_of_the_session_releases_what_is_still_open(operations: Operations, device: MemoryDisk) -> None:
    number = await number_of(operations, b"disk")
    for _ in range(3):
        await operations.open(number, os.O_RDONLY, CALLER)
    assert device.open_count == 3
    operations.release_all()
    assert device.open_count == 0
