"""A device whose ranges become zeroes: gate, ends, statistics, what is kept for a recovery; and where its holes are."""

import errno
from collections.abc import Awaitable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.device import Device
from ploopfs.device.flavour import BLOCK
from ploopfs.device.messages import answer
from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.device.waiting import OnStandby
from ploopfs.engine.inject.rule import Rule as Delay
from ploopfs.errors import BadValue, BeyondEnd, DeviceAborted, InStandby, ReadOnly
from ploopfs.sysfs.nodes import BlockDevice
from tests.device.mapped import line, mapped_rig, mapper_of, reload
from tests.device.rig import (
    BASE,
    CLUSTER,
    CONTENT,
    DISK_BYTES,
    MIDDLE,
    NEW,
    STACK,
    TOP,
    Asked,
    Rig,
    errno_of,
    image,
    rig_of,
    three_deltas,
)
from tests.device.test_unflushed import kept

ALONE = {TOP: image({0: b"a", 1: b"b", 2: b"c"}).build()}
either = pytest.mark.parametrize("unmap", [True, False], ids=["unmap", "keep"])


def allocated(device: Device) -> int:
    """As whoever looks at each cluster would count it."""
    stack = device.stack
    return sum(not stack.map.is_hole(slot) for slot in range(len(stack.map))) * stack.cluster_bytes


def device_of(rig: Rig) -> BlockDevice:
    """What a front may ask of it."""
    return rig.device


# --- the range ----------------------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, DISK_BYTES),
        (0, 1),
        (CLUSTER - 1, 2),
        (CLUSTER // 2, 2 * CLUSTER),
        (2 * CLUSTER, CLUSTER),
        (DISK_BYTES - 9, 1 << 40),
        (0, 0),
    ],
)
async def test_exactly_the_range_reads_as_zeroes(rig: Rig, offset: int, length: int, unmap: bool) -> None:
    await rig.device.write(3 * CLUSTER, b"x" * 3 * CLUSTER)
    expected = bytearray(CONTENT[: 3 * CLUSTER] + b"x" * 3 * CLUSTER)
    end = min(offset + length, DISK_BYTES)
    expected[offset:end] = bytes(end - offset)
    await device_of(rig).write_zeroes(offset, length, unmap=unmap)
    assert await rig.content() == expected
    assert rig.device.allocated_bytes == allocated(rig.device)


@either
@pytest.mark.parametrize("offset", [DISK_BYTES, DISK_BYTES + 1, 1 << 60])
async def test_at_or_past_the_end_they_are_einval_as_of_a_block_device(rig: Rig, offset: int, unmap: bool) -> None:
    with pytest.raises(BadValue, match=str(offset)) as refusal:
        await rig.device.write_zeroes(offset, 1, unmap=unmap)
    assert refusal.value.errno == errno.EINVAL
    assert rig.device.stats.by_op[Op.DISCARD].ios == 0


@either
async def test_a_read_only_device_refuses_them_with_erofs_and_tells_of_its_holes(unmap: bool) -> None:
    rig = await rig_of(three_deltas(), read_only=True)
    with pytest.raises(ReadOnly):
        await rig.device.write_zeroes(0, 1, unmap=unmap)
    assert (rig.device.seek_hole(0), rig.device.allocated_bytes) == (3 * CLUSTER, 3 * CLUSTER)
    assert await rig.device.aclose()
    assert all(rig.store.bytes_of(path) == before for path, before in three_deltas().items())


@either
async def test_they_are_one_request_counted_as_a_discard(rig: Rig, unmap: bool) -> None:
    await rig.device.write_zeroes(100, DISK_BYTES, unmap=unmap)
    shown = {op: (stats.ios, stats.length_bytes) for op, stats in rig.device.stats.by_op.items()}
    assert shown == {Op.READ: (0, 0), Op.WRITE: (0, 0), Op.FLUSH: (0, 0), Op.DISCARD: (1, DISK_BYTES - 100)}


@either
async def test_a_raw_disk_that_ends_within_a_cluster_is_zeroed_to_its_end(unmap: bool) -> None:
    size = CLUSTER + 512
    images = {"/store/disk.raw": b"r" * size}
    rig = await rig_of(images, stack=["raw@/store/disk.raw"], name="xvda", flavour=BLOCK, armed=False)
    await rig.device.write_zeroes(512, 1 << 30, unmap=unmap)
    assert await rig.device.read(0, 1 << 30) == b"r" * 512 + bytes(CLUSTER)
    assert len(rig.store.bytes_of("/store/disk.raw")) == size
    assert (rig.device.allocated_bytes, rig.device.seek_hole(0)) == (size, size)
    assert rig.device.seek_data(size - 1) == size - 1


# --- the gate -----------------------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
@either
async def test_in_standby_they_are_refused_and_holes_are_told_all_the_same(rig: Rig, unmap: bool) -> None:
    await rig.enter_standby(errno.ENOTCONN)
    since = len(rig.faults.log)
    with pytest.raises(InStandby):
        await rig.device.write_zeroes(0, CLUSTER, unmap=unmap)
    assert (rig.device.seek_data(0), rig.device.seek_hole(0)) == (0, 3 * CLUSTER)
    assert rig.device.allocated_bytes == 3 * CLUSTER
    assert rig.faults.log[since:] == []


@pytest.mark.expects_warnings
@either
async def test_held_they_take_no_room_of_data_and_are_done_after_the_recovery(unmap: bool) -> None:
    rig = await rig_of(three_deltas(), bounds=Bounds(held_bytes=10))
    rig.queue.set_on_standby(OnStandby.HOLD)
    rule = rig.lose(errno.ENOTCONN)
    async with trio.open_nursery() as nursery:
        asked = Asked(nursery, rig.device.write_zeroes(0, DISK_BYTES, unmap=unmap))
        await wait_all_tasks_blocked()
        assert (rig.state, asked.ended, rig.queue.room.held) == (State.ON, False, 1)
        rig.faults.remove(rule)
        await rig.device.reopen()
    assert asked.errno == 0
    assert not any(await rig.content())


@pytest.mark.expects_warnings
async def test_an_error_of_the_storage_on_their_way_is_judged_like_that_of_any_request(rig: Rig) -> None:
    rule = rig.lose(errno.ENOTCONN, "punch hole")
    assert await errno_of(rig.device.write_zeroes(2 * CLUSTER, CLUSTER, unmap=True)) == errno.ENOTCONN
    assert rig.state is State.ON
    rig.faults.remove(rule)
    assert kept(rig) == []
    await rig.device.reopen()
    assert await rig.content() == CONTENT


@pytest.mark.expects_warnings
async def test_with_a_fuse_out_an_error_aborts_vz7_and_they_are_refused_then(unarmed: Rig) -> None:
    rule = unarmed.lose(errno.EBUSY, "punch hole")
    assert await errno_of(unarmed.device.write_zeroes(2 * CLUSTER, CLUSTER, unmap=True)) == errno.EBUSY
    unarmed.faults.remove(rule)
    with pytest.raises(DeviceAborted):
        await unarmed.device.write_zeroes(2 * CLUSTER, CLUSTER, unmap=True)


async def test_zeroes_past_the_end_of_the_shorter_table_that_they_waited_for_are_enospc(nursery: trio.Nursery) -> None:
    rig = await mapped_rig()
    mapper = mapper_of(rig)
    await mapper.suspend()
    asked = Asked(nursery, rig.device.write_zeroes(0, DISK_BYTES, unmap=True))
    await wait_all_tasks_blocked()
    await mapper.load(line(*STACK, sectors=64))
    await mapper.resume()
    await wait_all_tasks_blocked()
    assert (asked.errno, type(asked.error)) == (errno.ENOSPC, BeyondEnd)
    assert await rig.device.read(0, CLUSTER) == b"a" * CLUSTER


async def test_a_long_range_is_several_requests_and_a_replace_comes_in_between(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ploopfs.device.device.ZEROES_MAX_BYTES", 2 * CLUSTER)
    released = rig.hang("truncate", count=1)
    ended: list[str] = []

    async def noted(name: str, call: Awaitable[None]) -> None:
        await call
        ended.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(noted, "zeroes", rig.device.write_zeroes(100, DISK_BYTES, unmap=True))
        await wait_all_tasks_blocked()
        nursery.start_soon(noted, "reopen", rig.device.reopen())
        await wait_all_tasks_blocked()
        assert ended == []
        released.set()
    assert ended == ["reopen", "zeroes"]
    discards = rig.device.stats.by_op[Op.DISCARD]
    assert (discards.ios, discards.length_bytes) == (3, DISK_BYTES - 100)
    assert await rig.content() == CONTENT[:100] + bytes(DISK_BYTES - 100)
    assert rig.device.allocated_bytes == 3 * CLUSTER, "only the first part began within a cluster"


# --- a table that shows a part of its images -----------------------------------------------------------------------


@pytest.mark.expects_warnings
async def test_a_table_with_an_offset_shifts_zeroes_and_holes() -> None:
    rig = await mapped_rig()
    mapper = mapper_of(rig)
    await mapper.load(line(*STACK, sectors=4 * 64, options="off=64"))
    await mapper.resume()
    assert (rig.device.seek_data(5), rig.device.seek_hole(5)) == (5, 2 * CLUSTER)
    assert rig.device.seek_data(2 * CLUSTER) is None
    await rig.device.write_zeroes(CLUSTER, 1 << 40, unmap=True)
    assert rig.device.allocated_bytes == 3 * CLUSTER
    await reload(rig, *STACK)
    assert (await rig.content())[: 3 * CLUSTER] == CONTENT[: 2 * CLUSTER] + bytes(CLUSTER)


async def test_a_table_that_ends_before_its_images_ends_with_a_hole() -> None:
    rig = await mapped_rig(ALONE, stack=[TOP])
    await mapper_of(rig).load(line(TOP, sectors=2 * 64))
    await mapper_of(rig).resume()
    assert (rig.device.seek_hole(0), rig.device.seek_data(2 * CLUSTER)) == (2 * CLUSTER, None)
    assert rig.device.allocated_bytes == 2 * CLUSTER


async def test_an_error_target_has_no_holes_to_skip() -> None:
    rig = await mapped_rig()
    await mapper_of(rig).load(f"0 {DISK_BYTES // 512} error")
    await mapper_of(rig).resume()
    assert (rig.device.seek_data(3 * CLUSTER), rig.device.seek_hole(0)) == (3 * CLUSTER, DISK_BYTES)
    assert rig.device.allocated_bytes == DISK_BYTES
    assert await errno_of(rig.device.write_zeroes(0, 1, unmap=True)) == errno.EIO


# --- kept until a flush, and written again ------------------------------------------------------------------------


async def test_the_edges_are_kept_as_writes_and_the_clusters_between_as_zeroes(rig: Rig) -> None:
    await rig.device.write_zeroes(CLUSTER - 3, 3 * CLUSTER + 5, unmap=True)
    edges = (CLUSTER - 3, 3, bytes(3)), (4 * CLUSTER, 2, bytes(2))
    assert kept(rig) == [edges[0], (CLUSTER, 3 * CLUSTER, None), edges[1]]
    await rig.device.flush()
    await rig.device.write_zeroes(CLUSTER - 3, 5, unmap=True)
    assert kept(rig) == [(CLUSTER - 3, 5, bytes(5))]


async def test_with_a_fuse_out_nothing_of_them_is_kept(unarmed: Rig) -> None:
    await unarmed.device.write_zeroes(0, DISK_BYTES, unmap=True)
    assert kept(unarmed) == []


@pytest.mark.expects_warnings
@either
async def test_a_copy_that_lacks_them_gets_them_again_and_what_came_after_them(unmap: bool) -> None:
    rig = await rig_of(three_deltas())
    rig.copy(TOP, NEW)
    await rig.device.write_zeroes(100, DISK_BYTES - 200, unmap=unmap)
    await rig.device.write(CLUSTER + 7, b"later")
    expected = await rig.content()
    await rig.enter_standby(errno.ENOTCONN)
    await rig.device.replace(NEW)
    assert await rig.content() == expected
    assert expected[100 : CLUSTER + 12] == bytes(CLUSTER - 93) + b"later"


@pytest.mark.expects_warnings
async def test_what_was_written_before_them_does_not_come_back_with_a_recovery() -> None:
    rig = await rig_of(ALONE)
    rig.copy(TOP, NEW)
    await rig.device.write(2 * CLUSTER, b"x" * CLUSTER)
    await rig.device.write_zeroes(2 * CLUSTER, CLUSTER, unmap=True)
    rule = rig.lose(errno.ENOTCONN)
    assert await errno_of(rig.device.read(0, 1)) == errno.ENOTCONN
    rig.faults.remove(rule)
    await rig.device.replace(NEW)
    assert not any(await rig.device.read(2 * CLUSTER, CLUSTER))
    assert rig.device.allocated_bytes == 2 * CLUSTER


@pytest.mark.expects_warnings
async def test_the_bound_on_a_recovery_is_on_each_part_of_a_long_range_of_zeroes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ploopfs.device.unflushed._SLOTS_AT_ONCE", 1)
    rig = await rig_of(three_deltas(), bounds=Bounds(quiesce_timeout_s=10))
    await rig.device.write_zeroes(0, 3 * CLUSTER, unmap=True)
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    rig.device.injector.add(Delay(frozenset({"punch hole"}), delay_s=9))
    started_s = autojump_clock.current_time()
    await rig.device.reopen()
    assert (rig.state, autojump_clock.current_time() - started_s) == (State.OFF, 27)


# --- the counter --------------------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
async def test_what_is_allocated_stays_right_through_every_change_of_the_stack() -> None:
    rig = await mapped_rig()
    device, mapper = rig.device, mapper_of(rig)
    sizes: list[int] = []

    def look() -> None:
        assert device.allocated_bytes == allocated(device)
        sizes.append(device.allocated_bytes // CLUSTER)

    await device.write(3 * CLUSTER, b"x")
    look()
    await device.write_zeroes(0, 4 * CLUSTER, unmap=True)
    look()
    rig.copy(TOP, NEW)
    await rig.enter_standby(errno.EBUSY)
    await reload(rig, BASE, MIDDLE, NEW)
    look()
    await answer(mapper, f"resize {20 * 64}")
    await mapper.load(line(BASE, MIDDLE, NEW, sectors=20 * 64))
    await mapper.resume()
    look()
    await device.write(19 * CLUSTER, b"x")
    look()
    await answer(mapper, "merge")
    look()
    assert sizes == [4, 3, 3, 3, 4, 4]
