"""The gate: who is refused, who waits and for how long, who is counted."""

import errno

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.errors import Busy, DeviceAborted, InStandby, ParkTimeout, QueueFull, QuiesceTimeout
from tests.device.rig import CLUSTER, CONTENT, REQUESTS, Asked, Rig, backend_error, errno_of, rig_of, three_deltas

each_op = pytest.mark.parametrize("op", Op)
WRITES = [op for op in Op if op.is_write]


async def quiesce(rig: Rig, until: trio.Event, *, inside: trio.Event | None = None) -> None:
    async with rig.queue.quiesced():
        if inside is not None:
            inside.set()
        await until.wait()


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
@each_op
async def test_in_standby_a_request_is_refused_at_once_with_eio(rig: Rig, op: Op) -> None:
    await rig.enter_standby(errno.ENOTCONN)
    rig.faults.log.clear()
    with pytest.raises(InStandby) as refusal:
        await REQUESTS[op](rig.device)
    assert refusal.value.errno == errno.EIO
    assert rig.faults.log == []


@pytest.mark.expects_warnings
@each_op
async def test_in_standby_nobody_waits_for_a_quiesce(rig: Rig, op: Op) -> None:
    await rig.enter_standby(errno.ENOTCONN)
    async with rig.queue.quiesced():
        with pytest.raises(InStandby):
            await REQUESTS[op](rig.device)


@pytest.mark.expects_warnings
@each_op
async def test_a_request_that_waited_is_refused_if_standby_came_meanwhile(rig: Rig, op: Op) -> None:
    released = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(quiesce, rig, released)
        await wait_all_tasks_blocked()
        asked = Asked(nursery, REQUESTS[op](rig.device))
        await wait_all_tasks_blocked()
        assert not asked.ended
        assert rig.queue.parked == 1
        rig.queue.judge(Op.READ, backend_error(errno.EIO), rig.queue.generation)
        released.set()
    assert isinstance(asked.error, InStandby)
    assert rig.queue.parked == 0


@pytest.mark.parametrize("op", WRITES)
async def test_an_aborted_device_refuses_what_writes_with_eio(rig: Rig, op: Op) -> None:
    rig.queue.set_aborted(True)
    rig.faults.log.clear()
    with pytest.raises(DeviceAborted) as refusal:
        await REQUESTS[op](rig.device)
    assert refusal.value.errno == errno.EIO
    assert rig.faults.log == []


async def test_an_aborted_device_still_reads(rig: Rig) -> None:
    rig.queue.set_aborted(True)
    assert await rig.content() == CONTENT


@each_op
async def test_clearing_aborted_lets_everybody_pass_again(rig: Rig, op: Op) -> None:
    rig.queue.set_aborted(True)
    rig.queue.set_aborted(False)
    assert await errno_of(REQUESTS[op](rig.device)) == 0


async def test_aborted_and_generation_fire_once_per_change(rig: Rig) -> None:
    seen = rig.queue.changed.version
    for aborted in (False, True, True, False):
        rig.queue.set_aborted(aborted)
    assert rig.queue.changed.version == seen + 2
    rig.queue.swap(rig.device.stack)
    assert rig.queue.changed.version == seen + 3
    assert rig.queue.generation == 2


# --- waiting ------------------------------------------------------------------------------------------------------


@each_op
async def test_requests_wait_while_the_queue_is_quiesced_and_pass_when_it_is_released(rig: Rig, op: Op) -> None:
    async with trio.open_nursery() as nursery:
        async with rig.queue.quiesced():
            asked = [Asked(nursery, REQUESTS[op](rig.device)) for _ in range(3)]
            await wait_all_tasks_blocked()
            assert rig.queue.parked == 3
            assert rig.device.stats.in_flight == 0
            assert not any(each.ended for each in asked)
        await wait_all_tasks_blocked()
    assert [each.errno for each in asked] == [0, 0, 0]
    assert rig.queue.parked == 0


async def test_a_quiesce_waits_for_what_is_in_flight(rig: Rig) -> None:
    healed = rig.hang("read")
    inside, released = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        first, second = (Asked(nursery, REQUESTS[Op.READ](rig.device)) for _ in range(2))
        await wait_all_tasks_blocked()
        entered = Asked(nursery, quiesce(rig, released, inside=inside))
        await wait_all_tasks_blocked()
        assert (rig.device.stats.in_flight, inside.is_set()) == (2, False)
        healed.set()
        await wait_all_tasks_blocked()
        assert (first.errno, second.errno, rig.device.stats.in_flight) == (0, 0, 0)
        assert inside.is_set()
        released.set()
    assert entered.errno == 0


async def test_one_quiesce_at_a_time_and_the_next_may_follow(rig: Rig) -> None:
    at_once = trio.Event()
    at_once.set()
    async with rig.queue.quiesced():
        with pytest.raises(Busy) as refusal:
            await quiesce(rig, at_once)
        assert refusal.value.errno == errno.EBUSY
    await quiesce(rig, at_once)
    assert await rig.content() == CONTENT


async def test_a_request_parked_at_two_quiesces_in_a_row_waits_for_both(rig: Rig) -> None:
    first, second = trio.Event(), trio.Event()

    async def twice() -> None:
        await quiesce(rig, first)
        await quiesce(rig, second)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(twice)
        await wait_all_tasks_blocked()
        asked = Asked(nursery, REQUESTS[Op.READ](rig.device))
        await wait_all_tasks_blocked()
        first.set()
        await wait_all_tasks_blocked()
        assert (asked.ended, rig.queue.parked) == (False, 1)
        second.set()
    assert asked.errno == 0


# --- bounds -------------------------------------------------------------------------------------------------------


async def test_a_request_parked_for_too_long_fails_with_eio(autojump_clock: MockClock) -> None:
    rig = await rig_of(three_deltas(), bounds=Bounds(park_timeout_s=7))
    started_s = autojump_clock.current_time()
    async with rig.queue.quiesced():
        with trio.fail_after(60), pytest.raises(ParkTimeout) as timeout:
            await REQUESTS[Op.READ](rig.device)
    assert timeout.value.errno == errno.EIO
    assert autojump_clock.current_time() - started_s == 7
    assert rig.queue.parked == 0
    assert await rig.content() == CONTENT


async def test_a_quiesce_gives_up_on_a_request_that_hangs_and_lets_the_others_go_on(autojump_clock: MockClock) -> None:
    rig = await rig_of(three_deltas(), bounds=Bounds(quiesce_timeout_s=7))
    started_s = autojump_clock.current_time()
    healed = rig.hang("read", count=1)
    async with trio.open_nursery() as nursery:
        hung = Asked(nursery, REQUESTS[Op.READ](rig.device))
        await wait_all_tasks_blocked()
        quiesced = Asked(nursery, quiesce(rig, trio.Event()))
        await wait_all_tasks_blocked()
        parked = Asked(nursery, REQUESTS[Op.READ](rig.device))
        with trio.move_on_after(60):
            await trio.sleep_forever()
        assert isinstance(quiesced.error, QuiesceTimeout)
        assert quiesced.errno == errno.EBUSY
        assert (parked.errno, hung.ended) == (0, False)
        healed.set()
    assert hung.errno == 0
    assert autojump_clock.current_time() - started_s == 60


async def test_a_full_queue_refuses_with_eio_whoever_waits_or_is_in_flight(rig: Rig) -> None:
    rig.queue.bounds = Bounds(requests=2)
    healed = rig.hang("read", count=1)
    async with trio.open_nursery() as nursery:
        in_flight = Asked(nursery, REQUESTS[Op.READ](rig.device))
        await wait_all_tasks_blocked()
        released = trio.Event()
        nursery.start_soon(quiesce, rig, released)
        await wait_all_tasks_blocked()
        parked = Asked(nursery, REQUESTS[Op.READ](rig.device))
        await wait_all_tasks_blocked()
        with pytest.raises(QueueFull) as refusal:
            await REQUESTS[Op.WRITE](rig.device)
        assert refusal.value.errno == errno.EIO
        healed.set()
        released.set()
    assert (in_flight.errno, parked.errno) == (0, 0)
    assert await errno_of(REQUESTS[Op.WRITE](rig.device)) == 0


# --- counting -----------------------------------------------------------------------------------------------------


@each_op
async def test_a_request_in_flight_is_counted_by_its_kind(rig: Rig, op: Op) -> None:
    healed = rig.hang()
    async with trio.open_nursery() as nursery:
        Asked(nursery, REQUESTS[op](rig.device))
        await wait_all_tasks_blocked()
        assert [other for other in Op if rig.device.stats.by_op[other].in_flight] == [op]
        assert rig.device.stats.inflight_columns() == ((0, 1) if op.is_write else (1, 0))
        assert rig.device.stats.by_op[op].ios == 0
        healed.set()
    assert rig.device.stats.in_flight == 0
    assert rig.device.stats.by_op[op].ios == 1


@pytest.mark.expects_warnings
@each_op
async def test_a_request_that_fails_is_counted_out_and_one_that_is_refused_never_in(rig: Rig, op: Op) -> None:
    rule = rig.lose(errno.ENOTCONN)
    assert await errno_of(REQUESTS[op](rig.device)) != 0
    rig.faults.remove(rule)
    assert rig.state is State.ON
    assert await errno_of(REQUESTS[op](rig.device)) == errno.EIO
    stats = rig.device.stats
    assert (stats.in_flight, stats.by_op[op].ios) == (0, 1)


@each_op
async def test_a_request_that_is_cancelled_in_flight_is_counted_out_and_a_quiesce_hears_of_it(rig: Rig, op: Op) -> None:
    rig.hang()
    released = trio.Event()
    async with trio.open_nursery() as nursery:
        asked = Asked(nursery, REQUESTS[op](rig.device))
        await wait_all_tasks_blocked()
        waiting = Asked(nursery, quiesce(rig, released))
        await wait_all_tasks_blocked()
        asked.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert rig.device.stats.in_flight == 0
        assert (rig.state, rig.queue.aborted) == (State.OFF, False)
        released.set()
    assert waiting.errno == 0


async def test_a_request_that_is_cancelled_while_parked_leaves_the_queue(rig: Rig) -> None:
    async with trio.open_nursery() as nursery, rig.queue.quiesced():
        asked = Asked(nursery, REQUESTS[Op.READ](rig.device))
        await wait_all_tasks_blocked()
        asked.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert rig.queue.parked == 0
    assert (rig.device.stats.in_flight, rig.device.stats.by_op[Op.READ].ios) == (0, 0)


async def test_a_quiesce_that_is_cancelled_releases_who_waits(rig: Rig) -> None:
    async with trio.open_nursery() as nursery:
        quiesced = Asked(nursery, quiesce(rig, trio.Event()))
        await wait_all_tasks_blocked()
        parked = Asked(nursery, REQUESTS[Op.READ](rig.device))
        await wait_all_tasks_blocked()
        quiesced.cancel_scope.cancel()
    assert parked.errno == 0


async def test_the_columns_of_a_disk_count_what_was_asked(rig: Rig) -> None:
    device = rig.device
    await device.read(0, 1024)
    await device.write(2 * CLUSTER, bytes(4096))
    await device.discard(2 * CLUSTER, CLUSTER)
    await device.flush()
    columns = device.stats.stat_columns()
    assert [columns[at] for at in (0, 2, 4, 6, 8, 11, 13, 15)] == [1, 2, 1, 8, 0, 1, CLUSTER // 512, 1]


# --- nobody waits for standby -------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
async def test_while_one_request_hangs_and_another_failed_everybody_else_is_refused_at_once(rig: Rig) -> None:
    rig.hang("write")
    async with trio.open_nursery() as nursery:
        Asked(nursery, REQUESTS[Op.WRITE](rig.device))
        await wait_all_tasks_blocked()
        rig.lose(errno.ENOTCONN, "read")
        assert await errno_of(REQUESTS[Op.READ](rig.device)) == errno.ENOTCONN
        refusals = [await errno_of(request(rig.device)) for request in REQUESTS.values()]
        assert refusals == [errno.EIO] * len(Op)
        assert rig.device.stats.in_flight == 1
        nursery.cancel_scope.cancel()
