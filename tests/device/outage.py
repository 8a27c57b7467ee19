"""A device with its agent at work, and what the agent reported, with the seconds since the outage began.

Time is the test's: `passes` lets it go by.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.agent import Agent
from ploopfs.device.agent_state import AgentState
from ploopfs.device.recovery import Patience, Policy, Recovery, Reopen
from ploopfs.engine.command import Ended
from ploopfs.engine.inject.rule import Rule
from tests.device.rig import Rig

IMPATIENT = Patience(probe=False)
"""The storage is not asked: every attempt is due at once."""

HANG_S = 1e6


async def passes(seconds: float) -> None:
    with trio.move_on_after(seconds):
        await trio.sleep_forever()


@dataclass
class Outage:
    """`reports` are the agent's events with their facts."""

    rig: Rig
    clock: MockClock
    started_s: float = 0
    reports: list[tuple[float, str, Mapping[str, object]]] = field(default_factory=list)
    _next: int = 1

    @property
    def agent(self) -> Agent:
        return self.rig.device.agent

    @property
    def now_s(self) -> float:
        return round(self.clock.current_time() - self.started_s, 3)

    def report(self) -> None:
        for record in self.rig.registry.events.since(self._next):
            self._next = record.sequence + 1
            if record.event.startswith("agent_"):
                self.reports.append((self.now_s, record.event.removeprefix("agent_"), record.facts))

    def times_of(self, event: str) -> list[float]:
        return [at_s for at_s, name, _ in self.reports if name == event]

    def facts_of(self, event: str, fact: str) -> list[object]:
        return [facts[fact] for _, name, facts in self.reports if name == event]

    async def begin(self, number: int) -> Rule:
        """The storage answers everything on the top with this errno from now on."""
        rule = await self.rig.enter_standby(number)
        self.started_s = self.clock.current_time()
        return rule

    async def wait_until(self, state: AgentState) -> None:
        with trio.fail_after(HANG_S):
            while self.agent.state is not state:
                changed = trio.Event()
                forget = self.agent.changed.subscribe(changed.set)
                try:
                    await changed.wait()
                finally:
                    forget()


@asynccontextmanager
async def agent_at_work(
    rig: Rig, clock: MockClock, policy: Policy | None = None, patience: Patience | None = None
) -> AsyncIterator[Outage]:
    """Inside, its agent runs, and time jumps to whatever is waited for next."""
    rig.device.agent.configure(Recovery(policy or Reopen(), patience or Patience()))
    outage = Outage(rig, clock)
    forget = rig.registry.events.changed.subscribe(outage.report)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.device.agent.run)
            await wait_all_tasks_blocked()
            yield outage
            nursery.cancel_scope.cancel()
    finally:
        forget()


@dataclass
class FakeProgram:
    """What an agent runs instead of a program: `does` on the device, for `seconds`, with this end."""

    rig: Rig
    code: int = 0
    recovers: bool = True
    seconds: float = 0
    output: str = ""
    bug: bool = False
    calls: list[tuple[Sequence[str], Mapping[str, str]]] = field(default_factory=list)
    was_cancelled: bool = False

    def __post_init__(self) -> None:
        self.rig.device.agent._run_command = self

    async def __call__(self, arguments: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Ended:
        self.calls.append((arguments, environment))
        with trio.move_on_after(timeout_s) as limit:
            try:
                await passes(self.seconds)
            except trio.Cancelled:
                self.was_cancelled = True
                raise
            if self.bug:
                raise ZeroDivisionError
            if self.recovers:
                await self.rig.device.reopen()
        return Ended(None if limit.cancelled_caught else self.code, self.output)
