"""Names of devices that somebody may go by for a while without asking again."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.bounds import NAME_GRACE_MS, NAME_LENT_MS
from ploopfs.device.flavour import VZ7
from ploopfs.device.registry import Registry
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder

IMAGE = "/store/top.hds"
LENT_S, FORGOTTEN_S = NAME_LENT_MS / 1000, (NAME_LENT_MS + NAME_GRACE_MS) / 1000

Add = Callable[[], Awaitable[object]]


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def add(registry: Registry) -> Add:
    store = MemoryFiles()
    store.put(IMAGE, ImageBuilder(4).build())
    return lambda: registry.add("ploop0", flavour=VZ7, image=IMAGE, files=store)


async def test_a_device_is_not_removed_before_its_name_is_forgotten(
    registry: Registry, add: Add, autojump_clock: MockClock
) -> None:
    await add()
    assert registry.lend("ploop0") == LENT_S
    autojump_clock.jump(0.1)
    told_s = trio.current_time()
    assert registry.lend("ploop0") == LENT_S
    await registry.remove("ploop0")
    assert trio.current_time() == pytest.approx(told_s + FORGOTTEN_S)
    assert registry.events.record(registry.events.next_sequence - 1).event == "device_removed"


async def test_it_is_out_of_the_registry_meanwhile_and_no_other_comes_under_its_name(
    registry: Registry, add: Add, mock_clock: MockClock
) -> None:
    await add()
    registry.lend("ploop0")
    versions = [registry.census.version]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.remove, "ploop0")
        await wait_all_tasks_blocked()
        nursery.start_soon(add)
        mock_clock.jump(LENT_S)
        await wait_all_tasks_blocked()
        versions.append(registry.census.version)
        assert not registry.devices
        mock_clock.jump(FORGOTTEN_S - LENT_S)
    assert list(registry.devices) == ["ploop0"]
    assert versions == [2, 3]


async def test_what_nobody_was_told_of_goes_at_once_as_do_all_at_the_end(
    registry: Registry, add: Add, mock_clock: MockClock
) -> None:
    before_s = trio.current_time()
    await add()
    await registry.remove("ploop0")
    await add()
    registry.lend("ploop0")
    assert await registry.aclose()
    assert mock_clock.current_time() == before_s
