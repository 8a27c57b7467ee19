"""The gate in any sequence of requests, answers, outages, recoveries, policies and operators, one step at a time.

After every step, when nobody can go on by himself, the gate is compared with what must be true of it; at the end
everybody is let go, and nobody is left. Time is the test's own.
"""

import errno
from collections.abc import Callable
from functools import partial
from unittest import mock

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device import queue as queue_module
from ploopfs.device.bounds import Bounds
from ploopfs.device.flavour import VZ7
from ploopfs.device.queue import RequestQueue
from ploopfs.device.standby import STANDBY_ERRNOS
from ploopfs.device.stats import Op
from ploopfs.device.waiting import Kind, OnStandby
from ploopfs.engine.stack import Stack
from ploopfs.errors import (
    BackendError,
    Busy,
    DeviceAborted,
    HeldFailed,
    HoldFull,
    HoldTimeout,
    InStandby,
    ParkTimeout,
    QueueFull,
    QuiesceTimeout,
    RequestFailed,
    ShuttingDown,
)
from tests.device.rig import TOP, Asked, rig_of, three_deltas

pytestmark = pytest.mark.expects_warnings

PACE = 2
BOUNDS = Bounds(requests=8, park_timeout_s=10, quiesce_timeout_s=5, held_requests=4, held_bytes=1000)
REFUSALS = (DeviceAborted, HeldFailed, HoldFull, HoldTimeout, InStandby, ParkTimeout, QueueFull, ShuttingDown)
LENGTHS = (0, 100, 400, 900)
Story = list[list[tuple[str, int]]]


class Request:
    """`answers` has one errno (0: done) for each time that it was issued and answered; `number` says when it came."""

    def __init__(self, op: Op, length: int) -> None:
        self.op, self.length = op, length
        self.number = -1
        self.answers: list[int] = []
        self.in_flight: trio.Event | None = None
        self.answer = 0
        self.was_stopped = False
        self.asked: Asked | None = None

    @property
    def waits(self) -> bool:
        return self.in_flight is None and not self.has_ended

    @property
    def has_ended(self) -> bool:
        return self.asked is not None and self.asked.ended

    def assert_ended_rightly(self) -> None:
        assert self.asked is not None
        assert self.answers.count(0) <= 1
        error = self.asked.error
        if self.asked.cancel_scope.cancelled_caught:
            return
        if error is None:
            assert self.asked.value == self.number
            assert self.answers[-1] == 0, "acknowledged what was not done"
        else:
            assert 0 not in self.answers, "done and not acknowledged"
            assert isinstance(error, (RequestFailed, *REFUSALS)), error
            assert not isinstance(error, RequestFailed) or error.errno == VZ7.request_errno(self.op, self.answers[-1])
        assert all(number in STANDBY_ERRNOS for number in self.answers[:-1]), "issued anew without need"


class World:
    """The gate with who is at it, and the operators, whose operations run beside."""

    def __init__(
        self, queue: RequestQueue, set_key: Callable[[bool], None], clock: MockClock, nursery: trio.Nursery
    ) -> None:
        self.queue, self.set_key, self.clock, self.nursery = queue, set_key, clock, nursery
        self.requests: list[Request] = []
        self.operations: list[Asked] = []
        self.overtaken: list[tuple[Request, Request]] = []

    # --- requests -------------------------------------------------------------------------------------------------

    def ask(self, op: Op, length: int) -> None:
        request = Request(op, length)
        request.asked = Asked(self.nursery, self._arrive(request))

    async def _arrive(self, request: Request) -> int:
        request.number = len(self.requests)
        self.requests.append(request)
        return await self.queue.run(request.op, request.length, partial(self._work, request))

    async def _work(self, request: Request, _stack: Stack) -> int:
        queue = self.queue
        is_shut = queue.suspended or queue._stillness.quiescing or queue.standby.refuses
        assert not is_shut, "issued through a shut gate"
        assert not (queue.aborted and request.op.is_write)
        request.in_flight = trio.Event()
        in_flight = sum(each.in_flight is not None for each in self.requests)
        assert in_flight == queue.stats.in_flight
        if request.was_stopped:
            assert in_flight <= PACE
        self.overtaken += [(request, each) for each in self.requests[: request.number] if each.waits]
        try:
            await request.in_flight.wait()
            request.answers.append(request.answer)
        finally:
            request.in_flight = None
        if request.answer:
            raise BackendError(request.answer, "read", TOP)
        return request.number

    def answer(self, which: int, number: int) -> None:
        in_flight = [request for request in self.requests if request.in_flight is not None]
        if in_flight:
            request = in_flight[which % len(in_flight)]
            request.answer = number
            assert request.in_flight is not None
            request.in_flight.set()

    def cancel(self, which: int) -> None:
        there = [request for request in self.requests if not request.has_ended]
        if there:
            asked = there[which % len(there)].asked
            assert asked is not None
            asked.cancel_scope.cancel()

    # --- operators ------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        self.operations.append(Asked(self.nursery, self._recover()))

    async def _recover(self) -> None:
        async with self.queue.quiesced():
            assert self.queue.stats.in_flight == 0
            await trio.lowlevel.checkpoint()
            self.queue.swap(self.queue.stack)
            self.queue.standby.recovered()

    def suspend(self) -> None:
        self.operations.append(Asked(self.nursery, self._suspend()))

    async def _suspend(self) -> None:
        await self.queue.suspend()
        assert self.queue.stats.in_flight == 0

    # --- what must be true ----------------------------------------------------------------------------------------

    async def settle(self) -> None:
        await wait_all_tasks_blocked()
        self.assert_right()

    def assert_right(self) -> None:
        queue, room, now_s = self.queue, self.queue.room, trio.current_time()
        waiting = [request for request in self.requests if request.waits]
        tickets = room._tickets
        assert len(tickets) == len(room) == len(waiting) == room.held + room.parked
        assert queue.stats.in_flight == sum(request.in_flight is not None for request in self.requests)
        assert len(room) + queue.stats.in_flight <= BOUNDS.requests
        held = [ticket for ticket in tickets if ticket.held_since_s is not None]
        assert (room.held, room.held_bytes) == (len(held), sum(ticket.data_bytes for ticket in held))
        assert room.held <= BOUNDS.held_requests
        assert room.held_bytes <= BOUNDS.held_bytes
        assert [ticket.order for ticket in tickets] == sorted(ticket.order for ticket in tickets)
        self._assert_kinds(now_s)
        for overtaker, request in self.overtaken:
            assert request.has_ended, f"{overtaker.number} overtook {request.number}"
        self.overtaken.clear()
        is_shut = queue.suspended or queue._stillness.quiescing or queue.standby.refuses
        for request in waiting:
            request.was_stopped |= is_shut
        assert is_shut or not tickets or queue.stats.in_flight >= PACE, "somebody waits for nothing"
        for request in self.requests:
            if request.has_ended:
                request.assert_ended_rightly()

    def _assert_kinds(self, now_s: float) -> None:
        queue = self.queue
        is_holding = queue.standby.refuses and not queue.suspended
        for ticket in queue.room._tickets:
            assert now_s < ticket._deadline_s
            assert (ticket.kind is Kind.HELD) is is_holding
            if is_holding:
                assert ticket.held_since_s is not None
                assert ticket._deadline_s == pytest.approx(ticket.held_since_s + queue.policy.timeout_ms / 1000)
            else:
                assert ticket._deadline_s <= now_s + BOUNDS.park_timeout_s
        if is_holding and queue.policy.on_standby is OnStandby.FAIL:
            assert not queue.room

    async def end(self) -> None:
        """All is well again, and everybody is answered."""
        self.set_key(True)
        self.queue.set_aborted(False)
        while True:
            self.queue.resume()
            await self.settle()
            if any(request.in_flight is not None for request in self.requests):
                self.answer(0, 0)
            elif self.queue.standby.refuses and self.queue._closing:
                self.queue.standby.recovered()  # no operation begins any more
            elif self.queue.standby.refuses:
                self.recover()
            else:
                break
        assert all(request.has_ended for request in self.requests)
        for operation in self.operations:
            assert operation.ended
            assert operation.error is None or isinstance(operation.error, Busy | QuiesceTimeout | ShuttingDown)
        assert (len(self.queue.room), self.queue.room.held_bytes, self.queue.stats.in_flight) == (0, 0, 0)


Deed = Callable[[World, int], object]

DEEDS: dict[str, tuple[int, Deed]] = {
    "a read is asked for": (4, lambda world, _: world.ask(Op.READ, 512)),
    "a write is asked for": (8, lambda world, number: world.ask(Op.WRITE, LENGTHS[number % len(LENGTHS)])),
    "a flush is asked for": (2, lambda world, _: world.ask(Op.FLUSH, 0)),
    "a discard is asked for": (1, lambda world, _: world.ask(Op.DISCARD, 1 << 20)),
    "one is done": (6, lambda world, number: world.answer(number, 0)),
    "the storage is lost": (6, lambda world, number: world.answer(number, errno.ENOTCONN)),
    "the lease is stolen": (1, lambda world, number: world.answer(number, errno.EBUSY)),
    "the storage is full": (1, lambda world, number: world.answer(number, errno.ENOSPC)),
    "it fails in another way": (1, lambda world, number: world.answer(number, errno.ETIMEDOUT)),
    "it is recovered": (5, lambda world, _: world.recover()),
    "it is suspended": (3, lambda world, _: world.suspend()),
    "it is resumed": (4, lambda world, _: world.queue.resume()),
    "who is held is failed": (1, lambda world, _: world.queue.fail_held()),
    "on_standby is fail": (1, lambda world, _: world.queue.set_on_standby(OnStandby.FAIL)),
    "on_standby is hold": (4, lambda world, _: world.queue.set_on_standby(OnStandby.HOLD)),
    "hold_timeout_ms is short": (1, lambda world, _: world.queue.set_hold_timeout(3000)),
    "hold_timeout_ms is long": (1, lambda world, _: world.queue.set_hold_timeout(20_000)),
    "it is aborted": (1, lambda world, _: world.queue.set_aborted(True)),
    "it is no longer aborted": (3, lambda world, _: world.queue.set_aborted(False)),
    "the key is out": (1, lambda world, _: world.set_key(False)),
    "the key is in": (4, lambda world, _: world.set_key(True)),
    "STANDBY_EN is out": (1, lambda world, _: world.queue.standby.detach()),
    "STANDBY_EN is in": (4, lambda world, _: world.queue.standby.attach()),
    "one is cancelled": (3, lambda world, number: world.cancel(number)),
    "time passes": (3, lambda world, number: world.clock.jump((0.5, 2, 5)[number % 3])),
}
"""How often, and what it does; the number says which, where there is a choice."""

WEIGHED = [name for name, (weight, _) in DEEDS.items() for _ in range(weight)]
steps = st.lists(st.tuples(st.sampled_from(WEIGHED), st.integers(0, 7)), min_size=1, max_size=3)
"""What happens before anybody else can run."""


async def live(clock: MockClock, story: Story, ends: bool) -> None:
    rig = await rig_of(three_deltas(), bounds=BOUNDS)
    rig.queue.set_on_standby(OnStandby.HOLD)
    rig.queue.set_hold_timeout(8000)
    async with trio.open_nursery() as nursery:
        world = World(rig.queue, partial(setattr, rig.registry.key, "enabled"), clock, nursery)
        for step in story:
            for name, number in step:
                DEEDS[name][1](world, number)
            await world.settle()
        if ends:
            rig.queue.close_gate()
            await wait_all_tasks_blocked()
            assert not (rig.queue.room and (rig.queue.standby.refuses or rig.queue.suspended))
        await world.end()
    told = [record.event for record in rig.registry.events.since(0)]
    assert_told_rightly(told)


def assert_told_rightly(told: list[str]) -> None:
    assert [event for event in told if event in ("held", "released")] == ["held", "released"] * told.count("held")
    standbys = "".join({"standby_on": "|", "hold_refused": "r"}.get(event, "") for event in told).split("|")
    assert all(len(refused) <= 1 for refused in standbys)


@settings(max_examples=300)
@given(st.lists(steps, min_size=10, max_size=40), st.booleans())
def test_nobody_is_lost_or_overtaken_or_held_beyond_the_bounds_whatever_happens(story: Story, ends: bool) -> None:
    clock = MockClock()
    with mock.patch.object(queue_module, "PACE", PACE):
        trio.run(live, clock, story, ends, clock=clock)
