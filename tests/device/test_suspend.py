"""Suspend and resume: what comes is parked, what is in flight is waited for, nobody fails."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.stats import Op
from ploopfs.errors import Busy, ParkTimeout, QuiesceTimeout
from tests.device.gate import Gate, after, gate_of
from tests.device.rig import Asked

each_op = pytest.mark.parametrize("op", Op)


async def suspending(gate: Gate, nursery: trio.Nursery) -> Asked:
    asked = Asked(nursery, gate.queue.suspend())
    await wait_all_tasks_blocked()
    return asked


@each_op
async def test_while_a_queue_is_suspended_every_request_waits_and_passes_when_it_is_resumed(op: Op) -> None:
    async with gate_of() as gate:
        await gate.queue.suspend()
        asked = await gate.asked_one_by_one(*"abc", op=op)
        assert (gate.counts, gate.issued) == ((0, 0, 3, 0), [])
        gate.queue.resume()
        await wait_all_tasks_blocked()
        assert [each.value for each in asked] == [*"abc"]
    assert gate.issued == [*"abc"]


async def test_a_suspend_waits_for_what_is_in_flight_and_fails_nobody() -> None:
    async with gate_of() as gate, trio.open_nursery() as nursery:
        hangs = gate.hangs = trio.Event()
        [in_flight] = await gate.asked_one_by_one("in flight")
        suspend = await suspending(gate, nursery)
        [parked] = await gate.asked_one_by_one("parked")
        assert (suspend.ended, parked.ended) == (False, False)
        gate.hangs = None
        hangs.set()
        await wait_all_tasks_blocked()
        assert (suspend.errno, in_flight.value, parked.ended) == (0, "in flight", False)
        gate.queue.resume()


async def test_a_second_suspend_is_one_and_waits_for_what_is_in_flight_too() -> None:
    async with gate_of() as gate, trio.open_nursery() as nursery:
        hangs = gate.hangs = trio.Event()
        await gate.asked_one_by_one("in flight")
        first, second = await suspending(gate, nursery), await suspending(gate, nursery)
        assert (first.ended, second.ended) == (False, False)
        hangs.set()
        await wait_all_tasks_blocked()
        assert (first.errno, second.errno, gate.queue.suspended) == (0, 0, True)
        gate.queue.resume()
        assert not gate.queue.suspended


async def test_a_suspend_that_is_resumed_before_it_is_done_says_so_at_once() -> None:
    async with gate_of() as gate, trio.open_nursery() as nursery:
        hangs = gate.hangs = trio.Event()
        await gate.asked_one_by_one("in flight")
        suspend = await suspending(gate, nursery)
        gate.queue.resume()
        await wait_all_tasks_blocked()
        assert (type(suspend.error), gate.queue.suspended) == (Busy, False)
        hangs.set()


async def test_a_suspend_gives_up_on_a_request_that_hangs_and_the_queue_is_as_it_was(mock_clock: MockClock) -> None:
    async with gate_of(bounds=Bounds(quiesce_timeout_s=7)) as gate, trio.open_nursery() as nursery:
        hangs = gate.hangs = trio.Event()
        await gate.asked_one_by_one("hung")
        gate.hangs = None
        suspend = await suspending(gate, nursery)
        [parked] = await gate.asked_one_by_one("parked")
        await after(mock_clock, 7)
        assert (type(suspend.error), gate.queue.suspended, parked.value) == (QuiesceTimeout, False, "parked")
        hangs.set()


async def test_a_suspend_that_gives_up_leaves_a_queue_suspended_that_was() -> None:
    async with gate_of() as gate, trio.open_nursery() as nursery:
        await gate.queue.suspend()
        gate.queue.stats.start(Op.READ)
        second = await suspending(gate, nursery)
        assert not second.ended
        second.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        gate.queue.stats.abandon(Op.READ)
        assert gate.queue.suspended
        gate.queue.resume()


async def test_suspended_fires_when_it_is_and_when_it_is_no_longer() -> None:
    async with gate_of() as gate:
        seen = gate.queue.changed.version
        await gate.queue.suspend()
        await gate.queue.suspend()
        assert gate.queue.changed.version == seen + 1
        gate.queue.resume()
        gate.queue.resume()
        assert gate.queue.changed.version == seen + 2


async def test_a_request_parked_for_too_long_fails_however_often_the_queue_is_let_go_in_between(
    mock_clock: MockClock,
) -> None:
    """Only what it waits for counts anew: a request is never let go and stopped again without having been issued."""
    async with gate_of(bounds=Bounds(park_timeout_s=10)) as gate:
        await gate.queue.suspend()
        [parked] = await gate.asked_one_by_one("parked")
        await after(mock_clock, 6)
        gate.queue.resume()
        await gate.queue.suspend()
        await after(mock_clock, 3.999)
        assert not parked.ended
        await after(mock_clock, 0.001)
        assert type(parked.error) is ParkTimeout
        gate.queue.resume()


async def test_a_resume_does_not_open_a_queue_that_is_quiesced() -> None:
    async with gate_of() as gate:
        async with gate.queue.quiesced():
            await gate.queue.suspend()
            [parked] = await gate.asked_one_by_one("parked")
            gate.queue.resume()
            await wait_all_tasks_blocked()
            assert not parked.ended
        await wait_all_tasks_blocked()
        assert parked.value == "parked"


async def test_the_end_of_a_quiesce_does_not_open_a_queue_that_is_suspended() -> None:
    async with gate_of() as gate:
        await gate.queue.suspend()
        async with gate.queue.quiesced():
            [parked] = await gate.asked_one_by_one("parked")
        await wait_all_tasks_blocked()
        assert not parked.ended
        gate.queue.resume()
        await wait_all_tasks_blocked()
        assert parked.value == "parked"
