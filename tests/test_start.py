"""The devices of a configuration when a tree is mounted: opened together, and yet as if one after the other."""

import errno
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.bounds import OPENING
from ploopfs.device.registry import Registry
from ploopfs.errors import ConfigError
from ploopfs.scst.module import Scst
from tests.device.rig import image
from tests.test_configured import FIRST, PLOOP0, PLOOP1, PLOOP2, SECOND, THIRD, Daemon, device


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path / "ploopfs.yaml")


async def test_devices_come_in_the_order_of_the_file_whatever_storage_answers_first(
    daemon: Daemon, nursery: trio.Nursery
) -> None:
    first = daemon.faults.on(FIRST, daemon.faults.pause("fsync"))
    second = daemon.faults.on(SECOND, daemon.faults.pause("read"))
    nursery.start_soon(daemon.start, PLOOP0, PLOOP1, PLOOP2)
    await wait_all_tasks_blocked()
    assert daemon.is_marked(THIRD), "it is opened beside those that hang"
    assert list(daemon.registry.devices) == []
    assert second.released is not None
    second.released.set()
    await wait_all_tasks_blocked()
    assert list(daemon.registry.devices) == []
    assert first.released is not None
    first.released.set()
    await wait_all_tasks_blocked()
    assert list(daemon.registry.devices) == ["ploop0", "ploop1", "ploop2"]
    sequence = [daemon[name].diskseq for name in ("ploop0", "ploop1", "ploop2")]
    assert sequence == sorted(sequence)


async def test_of_two_devices_with_one_image_the_second_is_the_mistake(daemon: Daemon) -> None:
    with pytest.raises(ConfigError, match=r"devices\[2\] \(ploop2\): /store/first.hds: "):
        await daemon.start(PLOOP0, PLOOP1, device("ploop2", FIRST))
    assert list(daemon.registry.devices) == ["ploop0", "ploop1"]


async def test_what_was_opened_behind_a_device_that_cannot_be_is_closed_again(daemon: Daemon) -> None:
    daemon.faults.on(SECOND, daemon.faults.fail(errno.ENOTCONN, "open"))
    with pytest.raises(ConfigError, match=r"devices\[1\] \(ploop1\): /store/second.hds: open: ENOTCONN"):
        await daemon.start(PLOOP0, PLOOP1, PLOOP2)
    assert list(daemon.registry.devices) == ["ploop0"]
    assert (daemon.is_marked(THIRD), daemon.is_held(THIRD)) == (False, False)
    assert await daemon.registry.aclose()
    assert not daemon.is_marked(FIRST)


async def test_a_fault_that_passes_while_devices_are_opened_costs_none_of_them(daemon: Daemon) -> None:
    daemon.faults.on(SECOND, daemon.faults.fail(errno.EINTR, "read", count=1))
    await daemon.start(PLOOP0, PLOOP1, PLOOP2)
    assert list(daemon.registry.devices) == ["ploop0", "ploop1", "ploop2"]


async def test_no_more_images_than_the_bound_are_opened_at_the_same_time(
    daemon: Daemon, nursery: trio.Nursery
) -> None:
    count = OPENING + 3
    daemon.registry = Registry(capacity=count)
    daemon.scst = Scst(daemon.registry, "/mnt")
    paths = [f"/store/{number}.hds" for number in range(count)]
    for path in paths:
        daemon.store.put(path, image({0: b"d"}).build())
    hung = daemon.faults.pause("fsync")
    nursery.start_soon(daemon.start, *(device(f"ploop{number}", path) for number, path in enumerate(paths)))
    await wait_all_tasks_blocked()
    opened = {path for operation, path in daemon.faults.log if operation == "open"}
    assert opened == set(paths[:OPENING])
    assert hung.released is not None
    hung.released.set()
    await wait_all_tasks_blocked()
    assert list(daemon.registry.devices) == [f"ploop{number}" for number in range(count)]


async def test_a_start_that_is_cancelled_leaves_no_image_open(daemon: Daemon) -> None:
    daemon.faults.on(FIRST, daemon.faults.pause("read"))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.start, PLOOP0, PLOOP1, PLOOP2)
            await wait_all_tasks_blocked()
            assert daemon.is_held(SECOND)
            scope.cancel()
    assert [path for path in (FIRST, SECOND, THIRD) if daemon.is_held(path) or daemon.is_marked(path)] == []

