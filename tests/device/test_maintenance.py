"""A device whose stack is grown or merged: requests beside it, and an outage in the middle of it."""

import errno
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.device.waiting import OnStandby
from ploopfs.engine.grow import grown
from ploopfs.engine.merge import copied_up, without_level
from ploopfs.errors import BackendError, Busy, RequestFailed
from tests.device.rig import BASE, CLUSTER, CONTENT, DISK_BYTES, MIDDLE, TOP, Rig

LARGE_SECTORS = 20000 * CLUSTER // 512


@pytest.mark.parametrize("arrived", [False, True], ids=["header-lost", "header-arrived"])
async def test_reopen_takes_back_a_top_whose_growth_was_cut_off(rig: Rig, arrived: bool) -> None:
    # One copy out of the way, one page of the map, then the header.
    rule = rig.faults.fail(errno.ENOTCONN, "write", skip=2, after=arrived)
    with pytest.raises(BackendError):
        await grown(rig.device.stack, LARGE_SECTORS)
    rig.faults.remove(rule)
    assert (rig.store.bytes_of(TOP)[36:40] == LARGE_SECTORS.to_bytes(4, "little")) is arrived
    rig.device.queue.set_aborted(True)  # the old top is not to be written to any more
    await rig.device.reopen()
    assert await rig.device.read(0, DISK_BYTES) == CONTENT
    rig.device.queue.swap(await grown(rig.device.stack, LARGE_SECTORS))
    await rig.device.write(0, b"w" * 512)
    assert rig.device.stack.size_bytes == 20000 * CLUSTER
    assert await rig.device.read(0, DISK_BYTES) == b"w" * 512 + CONTENT[512:]


async def test_levels_are_merged_through_the_gate_beside_requests(rig: Rig) -> None:
    for left in ((BASE, TOP), (TOP,)):
        stack = rig.device.stack
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.device.write, CLUSTER + 512, b"w" * 512)
            copied = await copied_up(stack, partial(rig.queue.run, Op.WRITE, CLUSTER))
        async with rig.queue.quiesced():
            rig.queue.swap(without_level(rig.queue.stack, copied))
        await copied.dropped.aclose(clean=False)
        assert tuple(delta.path for delta in rig.device.stack.deltas) == left
    expected = CONTENT[: CLUSTER + 512] + b"w" * 512 + CONTENT[CLUSTER + 1024 :]
    assert await rig.device.read(0, DISK_BYTES) == expected


@pytest.mark.expects_warnings
async def test_a_merge_ends_when_the_storage_is_lost_and_can_be_done_again(rig: Rig) -> None:
    rule = rig.faults.fail(errno.ENOTCONN, "write")
    with pytest.raises(RequestFailed):
        await copied_up(rig.device.stack, partial(rig.queue.run, Op.WRITE, CLUSTER))
    assert rig.queue.standby.state is State.ON
    rig.faults.remove(rule)
    await rig.device.reopen()
    rig.queue.swap(without_level(rig.queue.stack, await copied_up(rig.device.stack)))
    assert rig.device.stack.level_of(MIDDLE) is None
    assert await rig.device.read(0, DISK_BYTES) == CONTENT


@pytest.mark.expects_warnings
async def test_a_merge_that_is_held_in_standby_ends_when_another_stack_has_come_into_force(rig: Rig) -> None:
    rig.queue.set_on_standby(OnStandby.HOLD)
    rule = rig.faults.fail(errno.ENOTCONN, "write")
    ended = []

    async def merge() -> None:
        with pytest.raises(Busy):
            await copied_up(rig.device.stack, partial(rig.queue.run, Op.WRITE, CLUSTER))
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(merge)
        await wait_all_tasks_blocked()
        assert ended == []
        rig.faults.remove(rule)
        await rig.device.reopen()
    assert await rig.device.read(0, DISK_BYTES) == CONTENT
