"""The registry: names, what is refused, and closing everything within a deadline."""

import errno
import logging
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.device import Device
from ploopfs.device.flavour import BLOCK, VZ7, VZ9, Flavour
from ploopfs.device.registry import Registry
from ploopfs.engine import checking, unclosed
from ploopfs.engine.checking import Examined
from ploopfs.engine.file import File
from ploopfs.engine.inject.grammar import execute
from ploopfs.engine.os_file import OsFiles
from ploopfs.errors import (
    AlreadyExists,
    BackendError,
    BadImage,
    BadValue,
    ImageLocked,
    ImageRefused,
    ShuttingDown,
    StorageTimeout,
)
from ploopfs.image.header import HEADER_BYTES, IN_USE, V1, Header
from ploopfs.testing.faulty import Faults, FaultyFiles
from ploopfs.testing.files import MemoryFiles
from tests.device.rig import CLUSTER, Asked, image

HANG_S = 60
"""Only a failing test waits that long."""

FIRST, SECOND = "/store/first.hds", "/store/second.hds"


class Disks:
    """A registry over a store of two images."""

    def __init__(self) -> None:
        self.store, self.faults = MemoryFiles(), Faults()
        for path in (FIRST, SECOND):
            self.store.put(path, image({0: b"d"}).build())
        self.registry = Registry(pid=42)

    async def add(self, name: str, path: str) -> Device:
        return await self.registry.add(name, flavour=VZ7, image=path, files=FaultyFiles(self.store, self.faults))

    def is_marked(self, path: str) -> bool:
        return Header.parse(self.store.bytes_of(path)[:HEADER_BYTES], path).is_marked_in_use

    def is_held(self, path: str) -> bool:
        return bool(self.store.images[path].writers or self.store.images[path].readers)


@pytest.fixture
def disks() -> Disks:
    return Disks()


async def test_devices_stand_in_the_order_in_which_they_came(disks: Disks) -> None:
    seen = disks.registry.changed.version
    second = await disks.add("ploop7", SECOND)
    first = await disks.add("ploop0", FIRST)
    assert list(disks.registry.devices.items()) == [("ploop7", second), ("ploop0", first)]
    assert (second.major, second.minor, first.minor) == (182, 112, 0)
    assert disks.registry.changed.version == seen + 2
    assert disks.registry.pid == 42


async def test_all_devices_share_the_one_global_key(disks: Disks) -> None:
    devices = [await disks.add("ploop0", FIRST), await disks.add("ploop1", SECOND)]
    disks.registry.key.enabled = True
    for device in devices:
        device.queue.standby.attach()
    assert all(device.queue.standby.armed for device in devices)


@pytest.mark.parametrize("name", ["disk", "ploop01", "", "ploop0/"])
async def test_a_name_that_is_none_of_the_flavour_is_refused_before_anything_is_opened(disks: Disks, name: str) -> None:
    with pytest.raises(BadValue, match="not a vz7 device name"):
        await disks.add(name, FIRST)
    assert disks.faults.log == []


async def test_a_name_is_given_once(disks: Disks) -> None:
    await disks.add("ploop0", FIRST)
    with pytest.raises(AlreadyExists):
        await disks.add("ploop0", SECOND)
    assert not disks.is_held(SECOND)
    assert not disks.is_marked(SECOND)


async def test_of_two_that_ask_for_one_name_at_once_one_gets_it_and_the_other_image_is_closed(disks: Disks) -> None:
    opened = disks.faults.on(FIRST, disks.faults.pause("open")).released
    assert opened is not None
    async with trio.open_nursery() as nursery:
        late = Asked(nursery, disks.add("ploop0", FIRST))
        await wait_all_tasks_blocked()
        device = await disks.add("ploop0", SECOND)
        opened.set()
    assert isinstance(late.error, AlreadyExists)
    assert disks.registry.devices == {"ploop0": device}
    assert (disks.is_held(FIRST), disks.is_marked(FIRST), disks.is_held(SECOND)) == (False, False, True)


async def test_an_image_that_does_not_open_leaves_no_device(disks: Disks) -> None:
    disks.faults.on(FIRST, disks.faults.fail(errno.EIO, "read"))
    with pytest.raises(BackendError):
        await disks.add("ploop0", FIRST)
    assert disks.registry.devices == {}
    assert not disks.is_held(FIRST)
    disks.faults.rules.clear()
    await disks.add("ploop0", FIRST)


async def test_an_image_that_was_not_closed_is_checked_before_its_device_comes_and_an_event_says_so(
    disks: Disks,
) -> None:
    data = image({0: b"d"}, in_use=IN_USE).build()
    disks.store.put(FIRST, data + bytes(CLUSTER))
    device = await disks.add("ploop0", FIRST)
    assert not device.read_only
    checked, added = disks.registry.events.since(0)
    assert (checked.device, checked.event, added.event) == ("ploop0", "image_checked", "device_added")
    sizes = {"bytes_before": len(data) + CLUSTER, "bytes": len(data)}
    assert checked.facts == {"path": FIRST, "cleared_entries": 0} | sizes
    assert await disks.registry.aclose()
    assert disks.store.bytes_of(FIRST)[HEADER_BYTES:] == data[HEADER_BYTES:]


async def test_an_image_that_was_not_closed_and_is_not_sound_leaves_no_device(disks: Disks) -> None:
    data = image({0: b"d", 1: b"e"}, in_use=IN_USE).build()[:-CLUSTER]
    disks.store.put(FIRST, data)
    with pytest.raises(BadImage, match=f"`ploopfs check -r {FIRST}`"):
        await disks.add("ploop0", FIRST)
    assert (disks.registry.devices, disks.store.bytes_of(FIRST)) == ({}, data)
    assert not disks.is_held(FIRST)


# --- closing ------------------------------------------------------------------------------------------------------


async def test_closing_closes_every_device_cleanly(disks: Disks) -> None:
    for name, path in (("ploop0", FIRST), ("ploop1", SECOND)):
        device = await disks.add(name, path)
        await device.write(CLUSTER, b"w")
    seen = disks.registry.changed.version
    assert await disks.registry.aclose()
    assert disks.registry.devices == {}
    assert disks.registry.changed.version == seen + 2
    assert not any(disks.is_marked(path) or disks.is_held(path) for path in (FIRST, SECOND))


@pytest.mark.expects_warnings
async def test_one_lost_storage_makes_the_answer_false_and_the_others_are_closed(
    disks: Disks, caplog: pytest.LogCaptureFixture
) -> None:
    lost = await disks.add("ploop0", FIRST)
    await disks.add("ploop1", SECOND)
    lost.queue.set_aborted(True)
    assert not await disks.registry.aclose()
    assert (disks.is_marked(FIRST), disks.is_marked(SECOND)) == (True, False)
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any(f"ploop0: the storage of {FIRST} is lost" in error for error in errors)
    assert not any("ploop1" in error for error in errors)


@pytest.mark.expects_warnings
async def test_a_flush_that_fails_makes_the_answer_false_and_keeps_the_mark(
    disks: Disks, caplog: pytest.LogCaptureFixture
) -> None:
    await disks.add("ploop0", FIRST)
    await disks.add("ploop1", SECOND)
    disks.faults.on(FIRST, disks.faults.fail(errno.EIO, "fsync"))
    assert not await disks.registry.aclose()
    assert (disks.is_marked(FIRST), disks.is_marked(SECOND)) == (True, False)
    assert "ploop0: not closed cleanly" in caplog.text
    assert disks.registry.devices == {}


@pytest.mark.expects_warnings
async def test_a_storage_that_hangs_is_given_up_at_the_deadline_and_the_others_are_closed(
    disks: Disks, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await disks.add("ploop0", FIRST)
    await disks.add("ploop1", SECOND)
    disks.faults.on(FIRST, disks.faults.pause("fsync"))
    started_s = autojump_clock.current_time()
    with trio.fail_after(60):
        assert not await disks.registry.aclose(deadline_s=12)
    assert autojump_clock.current_time() - started_s == 12
    assert (disks.is_marked(FIRST), disks.is_marked(SECOND)) == (True, False)
    assert f"ploop0: {FIRST} did not answer within 12 s" in caplog.text
    assert disks.registry.devices == {}


@pytest.mark.expects_warnings
async def test_a_bug_in_the_end_of_one_device_keeps_no_other_from_being_closed(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = await disks.add("ploop0", FIRST)
    await disks.add("ploop1", SECOND)

    async def aclose() -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(broken, "aclose", aclose)
    assert not await disks.registry.aclose()
    assert disks.registry.devices == {}
    assert not disks.is_held(SECOND)
    assert not disks.is_marked(SECOND)
    assert "ZeroDivisionError" in caplog.text


async def test_what_happens_late_by_the_rules_of_one_device_keeps_another_from_writing_the_image(
    disks: Disks, autojump_clock: MockClock  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    device = await disks.add("ploop0", FIRST)
    execute(device.injector, "add,op=WRITE,hang,late")
    with trio.move_on_after(5):
        await device.write(0, b"late")
    disks.store.images[FIRST].writers.clear()
    with pytest.raises(StorageTimeout, match="may yet happen"):
        await disks.add("ploop1", FIRST)
    execute(device.injector, "removeall")
    await wait_all_tasks_blocked()
    disks.store.images[FIRST].writers.clear()


async def test_a_registry_without_devices_is_closed_cleanly(disks: Disks) -> None:
    assert await disks.registry.aclose()


# --- mapped devices, and other disks ------------------------------------------------------------------------------


async def add_mapped(disks: Disks, name: str, path: str, dm_name: str | None = None, dm_uuid: str = "") -> Device:
    files = FaultyFiles(disks.store, disks.faults)
    return await disks.registry.add(name, flavour=VZ9, image=path, files=files, dm_name=dm_name, dm_uuid=dm_uuid)


async def test_a_mapped_device_without_a_name_has_its_number_in_one(disks: Disks) -> None:
    first, second = await add_mapped(disks, "dm-4", FIRST), await add_mapped(disks, "dm-5", SECOND, "disk", "U")
    assert first.mapper is not None
    assert second.mapper is not None
    assert [(each.mapper.name, each.mapper.uuid) for each in (first, second) if each.mapper] == [
        ("ploop4", ""),
        ("disk", "U"),
    ]
    assert (first.major, first.minor) == (253, 4)


@pytest.mark.parametrize(("dm_name", "dm_uuid"), [("disk", "V"), ("other", "U")])
async def test_names_and_uuids_of_device_mapper_are_taken_once(disks: Disks, dm_name: str, dm_uuid: str) -> None:
    await add_mapped(disks, "dm-0", FIRST, "disk", "U")
    with pytest.raises(AlreadyExists):
        await add_mapped(disks, "dm-1", SECOND, dm_name, dm_uuid)
    assert not disks.is_held(SECOND)
    await add_mapped(disks, "dm-1", SECOND, "other", "V")


async def test_an_image_that_no_table_may_name_is_no_mapped_device(disks: Disks) -> None:
    disks.store.put(FIRST, image({}, version=V1).build())
    with pytest.raises(ImageRefused) as refused:
        await add_mapped(disks, "dm-0", FIRST)
    assert refused.value.errno == errno.EOPNOTSUPP
    assert (disks.is_held(FIRST), disks.is_marked(FIRST)) == (False, False)


async def test_a_disk_that_is_no_ploop_has_a_raw_image_only(disks: Disks) -> None:
    files = FaultyFiles(disks.store, disks.faults)
    with pytest.raises(BadValue, match="the image is not raw"):
        await disks.registry.add("xvda", flavour=BLOCK, image=FIRST, files=files)
    assert not disks.is_held(FIRST)
    disk = await disks.registry.add("xvda", flavour=BLOCK, image=f"raw@{FIRST}", files=files)
    assert (disk.mapper, disk.queue.standby.state.value) == (None, "not supported")
    assert await disk.read(0, 16) == b"WithouFreSpacExt"


@pytest.mark.parametrize("alias", ["the same path", "a hard link", "a symbolic link"])
async def test_one_image_cannot_be_two_devices_whatever_it_is_called_and_who_has_it_is_named(
    tmp_path: Path, alias: str
) -> None:
    first, second = tmp_path / "first.hds", tmp_path / "second.hds"
    first.write_bytes(image({0: b"d"}).build())
    match alias:
        case "a hard link":
            second.hardlink_to(first)
        case "a symbolic link":
            second.symlink_to(first)
        case _:
            second = first
    registry = Registry()
    await registry.add("ploop0", flavour=VZ7, image=[str(first)], files=OsFiles())
    told = rf"^{second}: cannot be opened for (writing|reading): its .* lock is held by .*\(pid {os.getpid()}\)"
    for read_only in (False, True):
        with pytest.raises(ImageLocked, match=told):
            await registry.add("ploop1", flavour=VZ7, image=[str(second)], files=OsFiles(), read_only=read_only)
    assert await registry.aclose()
    await registry.add("ploop1", flavour=VZ7, image=[str(second)], files=OsFiles())
    assert await registry.aclose()


async def test_an_image_whose_storage_hung_while_it_was_opened_can_be_opened_when_it_answers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hangs keeps its descriptor; with the lock it would keep ourselves off the image as long as we live."""
    path = tmp_path / "first.hds"
    path.write_bytes(image({0: b"d"}).build())
    registry, came, go = Registry(), threading.Event(), threading.Event()
    real = os.preadv

    def hung(fd: int, buffers: Sequence[bytearray | memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not in the page cache")
        came.set()
        assert go.wait(HANG_S)
        return real(fd, buffers, offset, flags)

    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", hung)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(registry.add, "ploop0", flavour=VZ7, image=[str(path)], files=OsFiles()))
            assert await trio.to_thread.run_sync(came.wait, HANG_S)
            nursery.cancel_scope.cancel()
        assert not registry.devices
        go.set()
    await registry.add("ploop0", flavour=VZ7, image=[str(path)], files=OsFiles())
    assert await registry.aclose()


async def test_an_unclosed_image_whose_storage_hung_while_it_was_checked_can_be_opened_when_it_answers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "first.hds"
    path.write_bytes(image({0: b"d"}, in_use=IN_USE).build())
    registry, came, go = Registry(), threading.Event(), threading.Event()
    really = checking.examine

    def hung(_fd: int, _buffers: Sequence[bytearray | memoryview], _offset: int, _flags: int = 0) -> int:
        came.set()
        assert go.wait(HANG_S)
        raise OSError(errno.EIO, "too late")

    async def examine(file: File) -> Examined:
        monkeypatch.setattr(os, "preadv", hung)
        return await really(file)

    with monkeypatch.context() as patched:
        patched.setattr(unclosed, "examine", examine)
        preadv = os.preadv
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(registry.add, "ploop0", flavour=VZ7, image=[str(path)], files=OsFiles()))
            assert await trio.to_thread.run_sync(came.wait, HANG_S)
            nursery.cancel_scope.cancel()
        go.set()
        monkeypatch.setattr(os, "preadv", preadv)
    await registry.add("ploop0", flavour=VZ7, image=[str(path)], files=OsFiles())
    assert await registry.aclose()


@pytest.mark.expects_warnings
@pytest.mark.parametrize("flavour", [VZ7, VZ9])
async def test_an_operation_that_waited_while_its_device_was_removed_opens_nothing(
    disks: Disks, flavour: Flavour
) -> None:
    """As an operator does for whom the attempt of the agent makes way: nobody would close what it opens."""
    if flavour is VZ9:
        device = await add_mapped(disks, "dm-0", FIRST)
        assert device.mapper is not None
        load = partial(device.mapper.load, f"0 {6 * CLUSTER // 512} ploop 6 {SECOND}")
    else:
        device = await disks.add("ploop0", FIRST)
        load = partial(device.replace, SECOND)
    assert await disks.registry.remove(device.name)
    for operation in (device.reopen, load):
        with pytest.raises(ShuttingDown):
            await operation()
    assert not any(disks.is_marked(path) or disks.is_held(path) for path in (FIRST, SECOND))
