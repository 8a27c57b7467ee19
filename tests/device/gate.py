"""A gate with requests that do what a test says, so that who passes when is all there is to see.

`Gate.issued` names the requests in the order in which they reached the storage, once for each time that they did.
"""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.queue import RequestQueue
from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.device.waiting import OnStandby
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError
from tests.device.rig import TOP, Asked, Rig, rig_of, three_deltas

HOLD_EVENTS = ("held", "released", "hold_timeout", "hold_refused")


class Gate:
    """`outage` is the errno that whatever reaches the storage meets (0: none); while `hangs` is set (an Event) nothing
    is answered."""

    def __init__(self, rig: Rig, nursery: trio.Nursery) -> None:
        self.rig = rig
        self.issued: list[str] = []
        self.generations: list[int] = []
        self.asked: list[Asked] = []
        self.outage = 0
        self.hangs: trio.Event | None = None
        self._nursery = nursery

    @property
    def queue(self) -> RequestQueue:
        return self.rig.queue

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """held, held_bytes, parked, in flight"""
        room = self.queue.room
        return room.held, room.held_bytes, room.parked, self.queue.stats.in_flight

    def ask(self, name: str, op: Op = Op.READ, length: int = 512, *, may_be_held: bool = True) -> Asked:
        work = partial(self._work, name)
        asked = Asked(self._nursery, self.queue.run(op, length, work, may_be_held=may_be_held))
        self.asked.append(asked)
        return asked

    async def asked_one_by_one(self, *names: str, op: Op = Op.READ, length: int = 512) -> list[Asked]:
        """In this order: a nursery starts what is given to it together in any."""
        asked = []
        for name in names:
            asked.append(self.ask(name, op, length))
            await wait_all_tasks_blocked()
        return asked

    async def enter_standby(self, number: int = errno.ENOTCONN) -> Asked:
        """By a request `first`, which meets the outage that lasts from now on."""
        self.outage = number
        [first] = await self.asked_one_by_one("first")
        assert self.rig.state is State.ON
        return first

    async def recover(self) -> None:
        self.outage = 0
        async with self.queue.quiesced():
            self.queue.swap(self.queue.stack)
            self.queue.standby.recovered()

    def events(self, *names: str) -> list[tuple[str, dict[str, object]]]:
        """Those of these names (by default those of holding), and their facts."""
        records = self.rig.registry.events.since(0)
        return [(record.event, dict(record.facts)) for record in records if record.event in (names or HOLD_EVENTS)]

    async def _work(self, name: str, _stack: Stack) -> str:
        self.issued.append(name)
        self.generations.append(self.queue.generation)
        hangs = self.hangs
        await trio.lowlevel.checkpoint()
        if hangs is not None:
            await hangs.wait()
        if self.outage:
            raise BackendError(self.outage, "read", TOP, offset=0, length=512)
        return name


@asynccontextmanager
async def gate_of(
    *,
    on_standby: OnStandby = OnStandby.HOLD,
    bounds: Bounds | None = None,
    timeout_ms: int = 300_000,
    armed: bool = True,
) -> AsyncIterator[Gate]:
    """When the block ends nobody waits, and the counters add up to nothing."""
    rig = await rig_of(three_deltas(), bounds=bounds, armed=armed)
    rig.queue.set_on_standby(on_standby)
    rig.queue.set_hold_timeout(timeout_ms)
    async with trio.open_nursery() as nursery:
        gate = Gate(rig, nursery)
        yield gate
        await wait_all_tasks_blocked()
        assert all(asked.ended for asked in gate.asked)
    assert gate.counts == (0, 0, 0, 0)


async def after(clock: MockClock, seconds: float) -> None:
    """That much later, and everybody has noticed."""
    await wait_all_tasks_blocked()
    clock.jump(seconds)
    await wait_all_tasks_blocked()
