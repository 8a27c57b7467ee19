"""Reads that are answered without a turn of their own: only if everything is at hand and nothing is in the way."""

import errno
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.device import Device
from ploopfs.device.standby import State
from ploopfs.engine.failing import error_disk
from ploopfs.engine.file import Buffer
from ploopfs.engine.inject.grammar import execute
from ploopfs.engine.memory import READ_ROOM
from ploopfs.engine.stack import Stack
from ploopfs.errors import InStandby
from tests.device.ready import ReadyFiles
from tests.device.rig import (
    CLUSTER,
    CONTENT,
    DISK_BYTES,
    Asked,
    Rig,
    errno_of,
    rig_of,
    three_deltas,
)

IN_TOP = 2 * CLUSTER
HOLE = 3 * CLUSTER


def read_nowait(device: Device, offset: int, length: int) -> Buffer | None:
    """In a turn of its own."""
    turn = device.begin_turn()
    found = None if turn is None else turn.read(offset, length)
    if turn is not None:
        turn.settle()
    return found


def read(device: Device) -> object:
    """One that the storage could answer at once."""
    return read_nowait(device, IN_TOP, 512)


@pytest.fixture
async def rig() -> Rig:
    return await rig_of(three_deltas(), storage=ReadyFiles)


def counted(rig: Rig) -> tuple[object, ...]:
    stats, counters = rig.device.stats, rig.device.counters
    by_op = [(each.ios, each.length_bytes, each.in_flight, sum(each.buckets)) for each in stats.by_op.values()]
    return by_op, stats.in_flight, counters.bio_in, counters.bio_out, counters.bio_rzero, counters.bio_splits


# --- what is answered ---------------------------------------------------------------------------------------------


async def test_a_read_that_is_at_hand_is_what_a_read_gives(rig: Rig) -> None:
    ranges = [(0, DISK_BYTES), (10, 0), (CLUSTER - 3, 7), (HOLE, 9), (DISK_BYTES - 2, 9), (DISK_BYTES, 5)]
    assert [read_nowait(rig.device, *each) for each in ranges] == [CONTENT[at : at + length] for at, length in ranges]


async def test_a_large_one_has_zeroes_where_nobody_has_anything(rig: Rig) -> None:
    READ_ROOM[:] = b"x" * len(READ_ROOM)
    assert read_nowait(rig.device, 0, DISK_BYTES) == CONTENT
    READ_ROOM[:] = b"x" * len(READ_ROOM)
    assert read_nowait(rig.device, IN_TOP, 3 * CLUSTER) == CONTENT[IN_TOP : IN_TOP + 3 * CLUSTER]


async def test_nobody_can_write_to_the_zeroes_that_all_holes_have(rig: Rig) -> None:
    for length in (512, 3 * CLUSTER):
        zeroes = read_nowait(rig.device, HOLE, length)
        assert zeroes == bytes(length)
        assert memoryview(zeroes).readonly


@pytest.mark.parametrize("length", [0, 512, 2 * CLUSTER])
async def test_it_is_counted_as_if_it_had_waited(length: int) -> None:
    """Both devices see the same requests."""
    quick, slow = [await rig_of(three_deltas(), storage=ReadyFiles) for _ in range(2)]
    assert read_nowait(quick.device, IN_TOP, length) is not None
    await slow.device.read(IN_TOP, length)
    assert counted(quick) == counted(slow)


async def test_a_turn_of_them_is_counted_as_one_after_the_other(rig: Rig) -> None:
    other = await rig_of(three_deltas(), storage=ReadyFiles)
    turn = rig.device.begin_turn()
    assert turn is not None
    for length in range(100):
        assert turn.read(IN_TOP, length) == await other.device.read(IN_TOP, length)
    turn.settle()
    assert counted(rig) == counted(other)
    turn.settle()
    assert counted(rig) == counted(other)


async def test_a_disk_that_answers_at_once_is_busy_meanwhile(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = iter(range(0, 1000 * 10**6, 10**6))
    monkeypatch.setattr("time.monotonic_ns", lambda: next(now_ns))
    for _ in range(3):
        read_nowait(rig.device, HOLE, 512)
    _in_flight, busy_ms, queue_ms = rig.device.stats.stat_columns()[8:11]
    assert (busy_ms, queue_ms) == (3, 3)


# --- what is in the way -------------------------------------------------------------------------------------------


async def untouched(rig: Rig, call: Callable[[Device], object] = read) -> None:
    """It gets no answer, and nothing is counted."""
    before = counted(rig)
    assert call(rig.device) is None
    assert counted(rig) == before


@pytest.mark.expects_warnings
async def test_in_standby_nobody_is_answered(rig: Rig) -> None:
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    await untouched(rig)
    with pytest.raises(InStandby):
        await rig.device.read(IN_TOP, 1)


async def test_nor_while_the_queue_is_quiesced_suspended_aborted_or_closing(rig: Rig) -> None:
    async with rig.queue.quiesced():
        await untouched(rig)
    await rig.queue.suspend()
    await untouched(rig)
    rig.queue.resume()
    rig.queue.set_aborted(True)
    await untouched(rig)
    rig.queue.set_aborted(False)
    assert read(rig.device) is not None
    rig.queue.close_gate()
    await untouched(rig)


async def test_nobody_overtakes_who_waits(rig: Rig) -> None:
    async with trio.open_nursery() as nursery:
        async with rig.queue.quiesced():
            asked = Asked(nursery, rig.device.read(IN_TOP, 1))
            await wait_all_tasks_blocked()
        assert rig.queue.parked == 1
        await untouched(rig)
    assert asked.ended
    assert read(rig.device) is not None


async def test_nor_is_it_more_than_the_queue_takes() -> None:
    rig = await rig_of(three_deltas(), storage=ReadyFiles, bounds=Bounds(requests=1))
    released = rig.hang("fsync")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.device.flush)
        await wait_all_tasks_blocked()
        await untouched(rig)
        released.set()
    assert read(rig.device) is not None


@pytest.mark.expects_warnings
async def test_an_error_of_the_storage_is_left_for_who_waits(rig: Rig) -> None:
    rig.lose(errno.ENOTCONN, "read")
    await untouched(rig)
    assert not rig.queue.standby.refuses
    assert rig.device.stats.errors == {}
    assert await errno_of(rig.device.read(IN_TOP, 512)) == errno.ENOTCONN
    assert rig.state is State.ON


async def test_a_fault_rule_sees_every_request() -> None:
    rig = await rig_of(three_deltas(), storage=ReadyFiles)
    assert read(rig.device) is not None
    execute(rig.device.injector, "add,op=READ,errno=ENOSPC")
    await untouched(rig)
    rig.device.injector.remove_all()
    assert read(rig.device) is not None


async def test_an_error_target_has_nothing_at_hand() -> None:
    disk: Stack = error_disk(size_bytes=DISK_BYTES, cluster_bytes=CLUSTER)
    assert disk.read_nowait(0, 1) is None
