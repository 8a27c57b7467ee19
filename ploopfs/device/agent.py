"""The recovery agent of one device: what vStorage's user-space side does for a ploop in standby.

It sees standby by itself, asks the storage until that is trusted again, and then recovers the device as its policy
says. One task, one attempt at a time; each state of the machine (agent_state.py) is a step of that task, and a change
of state ends the step. It never fights an operator: while somebody else keeps the queue quiesced or suspended it stands
back, what was recovered by hand is left alone until the next standby, and a pause also ends the attempt under way.
Knows nothing of files in the tree. Invariant: without a policy, or outside of standby, it touches nothing.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import trio

from ploopfs.bounds import LOGGED_LINES
from ploopfs.device.agent_state import TRANSITIONS, AgentEvent, AgentState
from ploopfs.device.events import DeviceEvents, declare
from ploopfs.device.queue import RequestQueue
from ploopfs.device.recovery import Command, Manual, Policy, Recovery, Replace
from ploopfs.device.signal import Signal
from ploopfs.device.standby import State
from ploopfs.engine.command import Ended, run_command
from ploopfs.engine.delta import Delta
from ploopfs.engine.file import Files
from ploopfs.engine.probe import ProbedImage
from ploopfs.errors import BadValue, Busy, CommandFailed, PloopError, StorageTimeout
from ploopfs.image.header import MUTABLE_START

log = logging.getLogger(__name__)

PROBE = declare("agent_probe", "the storage's answer to the agent's probes changed; `healthy`, `error` in words")
ATTEMPT = declare("agent_attempt", "the agent began an attempt; `attempt`, `policy`")
RESULT = declare(
    "agent_result",
    "it ended; `attempt`, `result` (ok, failed, stood_back, cancelled), `error` in words, `seconds`",
)
GAVE_UP = declare("agent_gave_up", "no attempt is left in this outage; `attempts`")
PAUSED = declare("agent_paused", "an operator paused the agent")
RESUMED = declare("agent_resumed", "an operator resumed it; `state` that it is in")
POLICY = declare("agent_policy", "an operator changed what the agent does; `policy`")

RunCommand = Callable[[Sequence[str], Mapping[str, str], float], Awaitable[Ended]]


class Recoverable(Protocol):
    """What the agent needs of a device."""

    name: str
    queue: RequestQueue
    events: DeviceEvents

    async def reopen(self) -> None: ...

    async def replace_top(self, path: str) -> None: ...


class Agent:
    """`changed` fires when the state or the policy changes. `attempts` are those of the present or last outage,
    `results` those of all. `next_at_s` is when it acts next, in trio's time, while it waits for that.

    `environment` is what a command gets beside the facts of the outage.
    """

    def __init__(
        self,
        device: Recoverable,
        files: Files,
        *,
        run_command: RunCommand = run_command,
    ) -> None:
        self.configured = Recovery()
        self.policy = self.configured.policy
        self.patience = self.configured.patience
        self.environment: Mapping[str, str] = {}
        self.state = AgentState.MANUAL
        self.changed = Signal()
        self.attempts = 0
        self.results: Counter[str] = Counter()
        self.next_at_s: float | None = None
        self._device = device
        self._queue = device.queue
        self._files = files
        self._run_command = run_command
        self._delay_s = 0.0
        self._recovered_at_s: float | None = None
        self._answer: str | None = None
        self._step = trio.CancelScope()
        self._nap = trio.CancelScope()
        self._life = trio.CancelScope()
        self._ended: trio.Event | None = None
        self._attempt_ended = trio.Event()

    async def run(self) -> None:
        """Until it is cancelled or closed."""
        steps: Mapping[AgentState, Callable[[], Awaitable[None]]] = {
            AgentState.PROBING: self._probe_until_healthy,
            AgentState.WAITING: self._wait,
            AgentState.RECOVERING: self._recover,
        }
        forget = self._queue.standby.changed.subscribe(self._look)
        self._ended = trio.Event()
        try:
            with self._life:
                self._look()
                while True:
                    with trio.CancelScope() as self._step:
                        await self._guarded(steps.get(self.state, trio.sleep_forever))
        finally:
            forget()
            self._ended.set()

    async def aclose(self) -> None:
        """End it for good; an attempt under way is over afterwards."""
        self._life.cancel()
        if self._ended is not None:
            await self._ended.wait()

    def configure(self, recovery: Recovery) -> None:
        """What the device is recovered by from the start."""
        self.configured, self.policy, self.patience = recovery, recovery.policy, recovery.patience
        self._apply(AgentEvent.DISARM if isinstance(self.policy, Manual) else AgentEvent.ARM)

    # --- what an operator asks for --------------------------------------------------------------------------------

    def pause(self) -> None:
        if self.state is not AgentState.PAUSED:
            self._apply(AgentEvent.PAUSE)
            self._device.events.emit(PAUSED)

    def resume(self) -> None:
        """The outage is new to it: no attempt counts any more."""
        if self.state is not AgentState.PAUSED:
            return
        self._apply(AgentEvent.RESUME)
        if isinstance(self.policy, Manual):
            self._apply(AgentEvent.DISARM)
        self._start_anew()
        self._device.events.emit(RESUMED, state=self.state.value)

    async def wait_given_way(self) -> None:
        """An operator is about to recover the device: an attempt of our own that is under way ends first. Not that of a
        command, which may be who asks."""
        if self.state is not AgentState.RECOVERING or isinstance(self.policy, Command) or not self._is_in_standby:
            return
        self.attempts -= 1
        self._delay_s = self.patience.probe_interval_s
        self._apply(AgentEvent.STOOD_BACK)
        await self._attempt_ended.wait()

    def hurry(self) -> None:
        """Do now what is waited for. Raises BadValue if nothing is."""
        if self.state not in (AgentState.PROBING, AgentState.WAITING, AgentState.GAVE_UP):
            raise BadValue(f"now is for an agent that waits, and this one is {self.state.value}")
        if self.state is AgentState.GAVE_UP:
            self.attempts = 0
        self._nap.cancel()
        self._apply(AgentEvent.DUE)

    def set_policy(self, policy: Policy) -> None:
        """Ends what was done for the old one; no attempt counts any more."""
        self.policy = policy
        self._device.events.emit(POLICY, policy=str(policy))
        self._apply(AgentEvent.DISARM if isinstance(policy, Manual) else AgentEvent.ARM)
        self._start_anew()
        self.changed.fire()

    # --- the machine ----------------------------------------------------------------------------------------------

    @property
    def _is_in_standby(self) -> bool:
        return self._queue.standby.state is State.ON

    def _apply(self, event: AgentEvent) -> None:
        before, after = self.state, TRANSITIONS[self.state, event]
        if after is before:
            return
        self.state = after
        if before is not AgentState.RECOVERING or self._is_in_standby:
            # An attempt that has succeeded already is let finish, whatever is asked for then.
            self._step.cancel()
        self.changed.fire()

    def _start_anew(self) -> None:
        self._recovered_at_s = None
        self._look()

    def _look(self) -> None:
        """Follow the device into standby and out of it."""
        if not self._is_in_standby:
            if self.state in (AgentState.PROBING, AgentState.WAITING, AgentState.GAVE_UP):
                # By hand. What then fails is not the agent's failure.
                self._recovered_at_s = None
            self._apply(AgentEvent.ENDED)
        elif self.state is AgentState.IDLE:
            self._begin_outage()

    def _begin_outage(self) -> None:
        self._answer = None
        now_s = trio.current_time()
        if self._recovered_at_s is None or now_s - self._recovered_at_s >= self.patience.settle_s:
            self.attempts = 0
            self._apply(AgentEvent.LOST)
        elif self._has_attempt_left:
            self._delay_s = self.patience.backoff_after_s(self.attempts)
            self._apply(AgentEvent.RELAPSED)
        else:
            self._give_up()

    @property
    def _has_attempt_left(self) -> bool:
        return self.patience.attempts is None or self.attempts < self.patience.attempts

    def _give_up(self) -> None:
        self._device.events.emit(GAVE_UP, attempts=self.attempts)
        log.error("%s: %d attempts to recover it have failed; giving up", self._device.name, self.attempts)
        self._apply(AgentEvent.EXHAUSTED)

    # --- its steps ------------------------------------------------------------------------------------------------

    async def _guarded(self, step: Callable[[], Awaitable[None]]) -> None:
        """A bug in here, or in what an attempt calls, must not end the daemon, and must not be met again and again."""
        try:
            await step()
        except Exception:
            log.exception("%s: the recovery agent met a bug and is paused", self._device.name)
            self.pause()

    async def _wait(self) -> None:
        await self._nap_for(self._delay_s)
        self._apply(AgentEvent.DUE)

    async def _nap_for(self, seconds: float) -> None:
        self.next_at_s = trio.current_time() + seconds
        try:
            with trio.CancelScope(deadline=self.next_at_s) as self._nap:
                await trio.sleep_forever()
        finally:
            self.next_at_s = None

    async def _probe_until_healthy(self) -> None:
        wanted = self.patience.healthy_probes if self.patience.probes_for(self.policy) else 0
        healthy = 0
        while healthy < wanted:
            error = await self._probe()
            healthy = 0 if error else healthy + 1
            self._report_probe(error)
            if healthy < wanted:
                await self._nap_for(self.patience.probe_interval_s)
        self._apply(AgentEvent.HEALTHY)

    async def _probe(self) -> str:
        """What speaks against the storage; empty if nothing does."""
        limit_s = self.patience.probe_timeout_s
        with trio.move_on_after(limit_s):
            try:
                await self._files.probe(self._images())
            except PloopError as error:
                return str(error)
            return ""
        return str(StorageTimeout(f"the storage did not answer within {limit_s:g} s"))

    def _images(self) -> list[ProbedImage]:
        """All that the recovered stack will be made of; what is known of an image is what opening never changes."""
        lower, top = self._queue.stack.deltas[:-1], self._queue.stack.top
        if isinstance(self.policy, Replace):
            new_top = ProbedImage(path=self.policy.path, write_beside=top.writable)
        else:
            new_top = self._known(top)
        return [*map(self._known, lower), new_top]

    def _known(self, delta: Delta) -> ProbedImage:
        reason = self._queue.standby.reason
        is_failed_read = reason is not None and reason.file == delta.path and reason.operation == "read"
        return ProbedImage(
            path=delta.path,
            start=delta.header.raw[:MUTABLE_START] if delta.header else b"",
            failed=(reason.offset, reason.length) if reason is not None and is_failed_read else None,
            write_beside=delta.writable,
        )

    def _report_probe(self, error: str) -> None:
        if error != self._answer:
            self._answer = error
            self._device.events.emit(PROBE, healthy=not error, error=error)
            log.info("%s: the storage %s", self._device.name, f"fails: {error}" if error else "answers again")

    async def _recover(self) -> None:
        if self._queue.is_stopped:
            self._stand_back()
            return
        self.attempts += 1
        attempt, self._attempt_ended = self.attempts, trio.Event()
        self._device.events.emit(ATTEMPT, attempt=attempt, policy=str(self.policy))
        generation, started_s = self._queue.generation, trio.current_time()
        result, reason = "cancelled", ""
        try:
            await self._carry_out(self.policy)
            result = "ok"
        except Busy as error:
            result, reason = "stood_back", str(error)
        except PloopError as error:
            # A command may fail after it has recovered the device; and a device that is lost again before its attempt
            # has ended was recovered all the same.
            was_recovered = self._queue.generation != generation or self._queue.standby.state is State.OFF
            result, reason = "ok" if was_recovered else "failed", str(error)
        finally:
            self._attempt_ended.set()
            self._report(attempt, result, reason, trio.current_time() - started_s)
        self._conclude(result)

    async def _carry_out(self, policy: Policy) -> None:
        match policy:
            case Command(arguments):
                await self._run(arguments)
            case Replace(path):
                await self._device.replace_top(path)
            case _:
                await self._device.reopen()

    async def _run(self, arguments: Sequence[str]) -> None:
        """Whether the device is in standby afterwards counts, not only what the program says."""
        generation = self._queue.generation
        environment = {**self.environment, **self._facts()}
        ended = await self._run_command(arguments, environment, self.patience.command_timeout_s)
        for line in ended.output.splitlines()[-LOGGED_LINES:]:
            log.info("%s: %s: %s", self._device.name, arguments[0], line)
        if ended.code != 0:
            raise CommandFailed(f"{arguments[0]} {ended}")
        if self._is_in_standby and self._queue.generation == generation:
            raise CommandFailed(f"{arguments[0]} {ended}, and the device is still in standby")

    def _facts(self) -> dict[str, str]:
        """The outage, for a command. What is not known is empty."""
        standby = self._queue.standby
        facts: dict[str, object] = {
            "DEVICE": self._device.name,
            "TOP": self._queue.stack.top.path,
            "GENERATION": self._queue.generation,
            "ATTEMPT": self.attempts,
            "SINCE": f"{standby.since_s:.3f}",
        }
        reason = standby.reason
        names = ("errno", "operation", "file", "level", "offset", "length")
        facts |= {f"REASON_{name.upper()}": reason.facts[name] if reason else None for name in names}
        return {f"PLOOPFS_{name}": "" if value is None else str(value) for name, value in facts.items()}

    def _report(self, attempt: int, result: str, reason: str, seconds: float) -> None:
        self.results[result] += 1
        self._device.events.emit(RESULT, attempt=attempt, result=result, error=reason, seconds=round(seconds, 3))
        level = logging.WARNING if result == "failed" else logging.INFO
        ended = f"{result}: {reason}" if reason else result
        log.log(level, "%s: attempt %d (%s): %s", self._device.name, attempt, self.policy, ended)

    def _conclude(self, result: str) -> None:
        if result == "stood_back":
            self.attempts -= 1
            self._stand_back()
        elif result == "ok" or not self._is_in_standby:
            self._recovered_at_s = trio.current_time() if result == "ok" else None
            self._apply(AgentEvent.DONE)
            self._look()
        elif self._has_attempt_left:
            self._delay_s = self.patience.backoff_after_s(self.attempts)
            self._apply(AgentEvent.FAILED)
        else:
            self._give_up()

    def _stand_back(self) -> None:
        """Look again a little later, and trust the storage anew."""
        self._delay_s = self.patience.probe_interval_s
        self._apply(AgentEvent.STOOD_BACK)
        if not self._is_in_standby:
            self._apply(AgentEvent.ENDED)
