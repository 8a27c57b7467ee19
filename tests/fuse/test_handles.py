"""Open files, without a kernel: what they take, they give back, and pollers are told once."""

import errno
import os
import select
from collections.abc import Callable

import pytest

from ploopfs.device.signal import Signal
from ploopfs.errors import NoSuchDevice, PermissionDenied
from ploopfs.fuse.handles import AttributeHandle, DirectoryHandle, DiskHandle, open_file
from ploopfs.sysfs.nodes import Attribute, Directory, Disk, Link, Node
from ploopfs.sysfs.openfile import READY
from tests.fuse.toy import MemoryDisk

CHANGED = select.POLLPRI | select.POLLERR


class Waiting:
    """Stands for pyfuse3's poll handle."""

    def __init__(self, error: OSError | None = None) -> None:
        self.notified, self._error = 0, error

    def notify(self) -> None:
        self.notified += 1
        if self._error is not None:
            raise self._error


def poll(handle: AttributeHandle, waiting: Waiting | None = None) -> int:
    return handle.poll(waiting)  # type: ignore[arg-type]


@pytest.fixture
def signal() -> Signal:
    return Signal()


@pytest.fixture
async def handle(signal: Signal) -> AttributeHandle:
    handle = AttributeHandle(Attribute(lambda: "on", None, signal), os.O_RDONLY)
    await handle.read(0, 100)
    return handle


def listeners(signal: Signal) -> int:
    return len(signal._listeners)


async def test_a_waiter_is_told_once_and_then_dropped(handle: AttributeHandle, signal: Signal) -> None:
    waiting = Waiting()
    assert poll(handle, waiting) == READY
    signal.fire()
    signal.fire()
    assert waiting.notified == 1
    assert poll(handle) == READY | CHANGED


async def test_only_the_newest_waiter_is_told(handle: AttributeHandle, signal: Signal) -> None:
    first, second = Waiting(), Waiting()
    poll(handle, first)
    poll(handle, second)
    assert listeners(signal) == 1
    signal.fire()
    assert (first.notified, second.notified) == (0, 1)


async def test_who_does_not_wait_does_not_listen(handle: AttributeHandle, signal: Signal) -> None:
    poll(handle)
    assert listeners(signal) == 0


async def test_a_released_file_listens_no_more(handle: AttributeHandle, signal: Signal) -> None:
    waiting = Waiting()
    poll(handle, waiting)
    handle.release()
    signal.fire()
    assert (listeners(signal), waiting.notified) == (0, 0)


async def test_whoever_changes_a_value_does_not_suffer_from_a_mount_that_is_gone(
    handle: AttributeHandle, signal: Signal
) -> None:
    gone = Waiting(OSError(errno.ENODEV, "gone"))
    poll(handle, gone)
    signal.fire()
    assert gone.notified == 1


async def test_an_attribute_without_a_signal_is_polled_all_the_same() -> None:
    handle = AttributeHandle(Attribute(lambda: "1"), os.O_RDONLY)
    assert poll(handle, Waiting()) == READY | CHANGED
    await handle.read(0, 10)
    assert poll(handle, Waiting()) == READY
    handle.release()


def test_a_refused_open_of_a_disk_does_not_count() -> None:
    device = MemoryDisk(read_only=True)
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(PermissionDenied):
            DiskHandle(Disk(device), flags)
    assert device.open_count == 0
    handle = DiskHandle(Disk(device), os.O_RDONLY)
    assert device.open_count == 1
    handle.release()
    assert device.open_count == 0


def test_only_attributes_and_disks_are_opened_as_files() -> None:
    for node in (Link("."), Directory(dict)):
        with pytest.raises(PermissionDenied):
            open_file(node, os.O_RDONLY)


def test_a_listing_goes_on_where_it_was_though_the_directory_changes() -> None:
    names: dict[str, Node] = {name: Link(".") for name in "abc"}
    handle = DirectoryHandle(Directory(lambda: names))
    assert [name for name, _ in handle.entries(0)] == ["a", "b", "c"]
    del names["a"]
    names["d"] = Link(".")
    assert [name for name, _ in handle.entries(1)] == ["b", "c"]
    assert [name for name, _ in handle.entries(0)] == ["b", "c", "d"]


async def test_a_change_between_looking_and_waiting_is_told(signal: Signal) -> None:
    changes: list[Callable[[], None]] = []

    def is_removed() -> bool:
        """Looked at by poll when it knows the version already."""
        while changes:
            changes.pop()()
        return False

    handle = AttributeHandle(Attribute(lambda: "on", None, signal, is_removed), os.O_RDONLY)
    await handle.read(0, 100)
    changes.append(signal.fire)
    waiting = Waiting()
    mask = poll(handle, waiting)
    assert mask & CHANGED or waiting.notified == 1


@pytest.mark.parametrize(("flags", "fua"), [(0, False), (os.O_SYNC, True), (os.O_DSYNC, True)])
async def test_what_is_written_through_o_sync_or_o_dsync_is_durable_and_nothing_else(flags: int, fua: bool) -> None:
    disk = MemoryDisk()
    handle = open_file(Disk(disk), os.O_RDWR | flags)
    await handle.write(0, b"data")
    assert disk.fua_writes == int(fua)


def test_a_disk_that_was_removed_after_its_name_was_looked_up_is_not_opened() -> None:
    disk = MemoryDisk()
    with pytest.raises(NoSuchDevice):
        open_file(Disk(disk, lambda: True), os.O_RDONLY)
    assert disk.open_count == 0
