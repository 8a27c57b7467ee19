"""The request queue of one device: its gate, and how to hold everybody behind it.

Every operation on a disk passes `run`, which holds the check at the start and the check at the end of the
specification; nothing else mentions standby. The queue outlives its stack: standby, statistics and waiting requests
stay when a top is replaced. Lock protocol: `quiesced` is entered by one task at a time; inside it, and while suspended,
no request is in flight, new ones wait (or are refused in standby), and `swap` may be called."""

import errno
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

from ploopfs.bounds import PACE
from ploopfs.device.bounds import DEFAULT_BOUNDS, Bounds
from ploopfs.device.events import DeviceEvents, Events
from ploopfs.device.flavour import Flavour
from ploopfs.device.holding import HoldReport
from ploopfs.device.signal import Signal
from ploopfs.device.standby import Reason, Standby, StandbyKey, State, tells_of_loss
from ploopfs.device.stats import DiskStats, Op
from ploopfs.device.stillness import Stillness
from ploopfs.device.waiting import HoldPolicy, Kind, OnStandby, Ticket, WaitingRoom
from ploopfs.engine.stack import Stack
from ploopfs.errors import (
    BackendError,
    DeviceAborted,
    HoldFull,
    InStandby,
    PloopError,
    QueueFull,
    RequestFailed,
    ShuttingDown,
    TruncatedImage,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

@dataclass(slots=True)
class Begun:
    """A request in flight, on the stack of its generation."""

    op: Op
    length_bytes: int
    generation: int
    stack: Stack
    started_ns: int


_NO_FAULT = frozenset({errno.ENOSPC, errno.EOPNOTSUPP})
"""Answers of a sound storage, which is full or cannot make holes: they change nothing on the queue."""


class RequestQueue:
    """`changed` fires when `aborted`, `generation` or `suspended` changes; `standby.changed` when the standby state
    does; `storage_full` for every request that the storage had no room for. `forget_key` is for its end."""

    def __init__(
        self,
        device_name: str,
        flavour: Flavour,
        key: StandbyKey,
        stack: Stack,
        bounds: Bounds = DEFAULT_BOUNDS,
        events: DeviceEvents | None = None,
    ) -> None:
        self.events = events or DeviceEvents(Events(), device_name)
        self.standby = Standby(device_name, key, self.events)
        self.stats = DiskStats()
        self.changed = Signal()
        self.storage_full = Signal()
        self.stack = stack
        self.generation = 1
        self._loss: tuple[int, Reason | None] = (0, None)
        self.aborted = False
        self.bounds = bounds
        self.policy = HoldPolicy(requests=bounds.held_requests, data_bytes=bounds.held_bytes)
        self.room = WaitingRoom(self.policy, bounds.park_timeout_s)
        self._name, self._flavour = device_name, flavour
        self._failed_generation = 0
        self._closing = False
        self._has_stopped_some = False
        self._paced_up_to = 0
        self._report = HoldReport(self.events)
        self._stillness = Stillness(self.stats, bounds.quiesce_timeout_s, self._let_go, self.changed)
        self.standby.changed.subscribe(self._standby_changed)
        self.forget_key = key.changed.subscribe(self._let_go)

    @property
    def loss(self) -> Reason | None:
        """What the storage of the stack in force failed with for good: what meant standby, any answer to an fsync, or
        the loss of a top with something unconfirmed. It stays when the target lets go, which heals nothing."""
        generation, reason = self._loss
        return reason if generation == self.generation else None

    @property
    def is_lost(self) -> bool:
        """Nothing is written to the stack in force any more but by requests: who stole its lease may be writing it."""
        return self.standby.refuses or self.aborted or self.stack.is_lost or self.loss is not None

    @property
    def has_failed(self) -> bool:
        """A request has met a fault of some storage of the stack in force, and nothing but its caller was told."""
        return self._failed_generation == self.generation

    @property
    def parked(self) -> int:
        return self.room.parked

    @property
    def is_stopped(self) -> bool:
        """Somebody keeps it quiesced or suspended."""
        return self._stillness.is_wanted

    @property
    def suspended(self) -> bool:
        return self._stillness.suspended

    async def run(
        self, op: Op, length_bytes: int, work: Callable[[Stack], Awaitable[T]], *, may_be_held: bool = True
    ) -> T:
        """Pass the gate and execute `work` on the stack of the present generation, which it must be possible to do
        again: a request that is held and met the storage's error itself is issued anew on the recovered stack.

        Raises RequestFailed for an answer of the storage, and what the gate refuses with. With `may_be_held` false it
        does so in standby whatever the policy: for requests of our own, on which a recovery may have to wait.
        """
        if self._is_full:
            raise QueueFull(f"{self.bounds.requests} requests are already in the queue")
        ticket: Ticket | None = None
        if self.room or self._is_shut:
            ticket = Ticket(op, time.monotonic_ns(), length_bytes if op is Op.WRITE else 0, may_be_held)
            await self._wait_turn(ticket)
        return await self._attempt(self.begin(op, length_bytes, ticket), work, ticket, may_be_held)

    async def run_again(self, begun: Begun, error: BackendError, work: Callable[[Stack], Awaitable[T]]) -> T:
        """Go on as `run` with a request that `begin` has counted in, and that has met this error."""
        ticket = await self._wait_again(begun, error, None, may_be_held=True)
        return await self._attempt(self.begin(begun.op, begun.length_bytes, ticket), work, ticket, may_be_held=True)

    def begin(self, op: Op, length_bytes: int, ticket: Ticket | None = None, since_ns: int | None = None) -> Begun:
        """Count a request in that is in nobody's way (`is_free`), or whose turn it is, and that began now, if not
        `since_ns`; then it has to `end`."""
        begun = Begun(op, length_bytes, self.generation, self.stack, self.stats.start(op, since_ns))
        if ticket is not None and ticket.is_waiting:
            self._report.passed(ticket)
            self._depart(ticket)
        return begun

    async def _attempt(
        self, begun: Begun, work: Callable[[Stack], Awaitable[T]], ticket: Ticket | None, may_be_held: bool
    ) -> T:
        while True:
            try:
                result = await work(begun.stack)
            except (BackendError, TruncatedImage) as error:
                ticket = await self._wait_again(begun, error, ticket, may_be_held=may_be_held)
            except BaseException:
                self.end(begun)
                raise
            else:
                self.end(begun)
                return result
            begun = self.begin(begun.op, begun.length_bytes, ticket)

    async def _wait_again(
        self, begun: Begun, error: BackendError | TruncatedImage, ticket: Ticket | None, *, may_be_held: bool
    ) -> Ticket:
        """The check at the end of a request that met this error: if it is to be held, its turn has come again."""
        is_held = may_be_held and self._is_for_hold(error)
        self.end(begun, is_over=not is_held)
        failure = self.judge(begun.op, error, begun.generation)
        if not is_held:
            raise failure from error
        if ticket is None:
            ticket = Ticket(begun.op, begun.started_ns, begun.length_bytes if begun.op is Op.WRITE else 0)
        ticket.was_tried = True
        try:
            await self._wait_turn(ticket)
        except HoldFull:
            self.stats.count(begun.op, begun.length_bytes, begun.started_ns)
            raise failure from error
        return ticket

    def set_aborted(self, aborted: bool, reason: Reason | None = None) -> None:
        """`reason`: what the storage answered; None if somebody else asks for it."""
        if aborted != self.aborted:
            self.aborted = aborted
            self.events.emit("aborted", aborted=aborted, **(reason.facts if reason else {}))
            log.info("%s: aborted is now %d: %s", self._name, aborted, reason or "set by hand")
            self.changed.fire()
            self._let_go()

    def set_on_standby(self, on_standby: OnStandby) -> None:
        """Who is held when it becomes `fail` is refused at once."""
        self.policy.on_standby = on_standby
        self._let_go()

    def set_hold_timeout(self, timeout_ms: int) -> None:
        """Counts for those who are held already, from when they came."""
        self.policy.timeout_ms = timeout_ms
        self.room.renew_bounds()

    def fail_held(self) -> int:
        """Fail every held request with EIO; how many there were."""
        count = self.room.refuse_held()
        self._let_go()
        return count

    def close_gate(self) -> None:
        """The device or the daemon ends: nobody waits for recovery or a resume any more, and nobody will."""
        self._closing = True
        self._let_go()

    def check_lives(self) -> None:
        """Raises ShuttingDown once its device or the daemon ends: what an operation opened then nobody would close."""
        if self._closing:
            raise ShuttingDown("the device, or its daemon, ends")

    def quiesced(self) -> AbstractAsyncContextManager[None]:
        """Inside, no request is in flight. Raises Busy if somebody else quiesces, QuiesceTimeout, ShuttingDown."""
        self.check_lives()
        return self._stillness.quiesced()

    async def suspend(self) -> None:
        """Park what comes and wait for what is in flight; nobody fails. Raises QuiesceTimeout if requests do not end,
        and the queue is then as it was; Busy if somebody resumes meanwhile. A second suspend is one, and waits too."""
        await self._stillness.suspend()

    def resume(self) -> None:
        self._stillness.resume()

    def swap(self, stack: Stack) -> None:
        """Put another stack in force in one step, inside `quiesced` or suspended. An error target heals nothing."""
        self._loss = self._loss if stack.deltas else (self.generation + 1, self.loss)
        self.stack = stack
        self.generation += 1
        if self.aborted and stack.deltas:
            self.aborted = False
            self.events.emit("aborted", aborted=False)
        self.changed.fire()

    def judge(self, op: Op, error: PloopError, generation: int) -> RequestFailed:
        """The check at the end of a failed request: does it mean standby, or vz7's aborted state, and what does its
        caller see? A late error of a replaced stack (an older generation) changes nothing here."""
        if isinstance(error, BackendError):
            self.stats.failed(error.errno, error.operation)
        # Whoever asked for it: an fsync that failed is a failed flush, in a write's barrier or behind its FUA too.
        is_fsync = isinstance(error, BackendError) and error.operation == "fsync"
        request_errno = self._flavour.request_errno(Op.FLUSH if is_fsync else op, error.errno)
        if error.errno == errno.ENOSPC:
            self.storage_full.fire()
        if generation == self.generation:
            is_fault, means_standby, reason = request_errno not in _NO_FAULT, False, None
            if isinstance(error, BackendError):
                reason = Reason.of(error, self.stack.level_of(error.path))
                means_standby = is_fault and self.standby.storage_lost(reason)
                if means_standby or (self.loss is None and (is_fsync or self._has_lost(error))):
                    self._loss = (generation, self.standby.reason or reason)
                    self.stack.note_loss(error)
            if is_fault and not means_standby and self._flavour.aborts:
                self.set_aborted(True, reason)
            elif is_fault and not means_standby and not self.has_failed:
                self._failed_generation = generation
                log.info("%s: a request failed: %s", self._name, error)
        return RequestFailed(request_errno, str(error))

    def _has_lost(self, error: BackendError) -> bool:
        """With a fuse out, too, a storage that was gone may be back without what no fsync has confirmed."""
        return tells_of_loss(error) and self.stack.is_unconfirmed and error.path == self.stack.top.path

    # --- the check at the start -----------------------------------------------------------------------------------

    @property
    def _is_full(self) -> bool:
        return self.stats.in_flight + len(self.room) >= self.bounds.requests

    @property
    def _is_shut(self) -> bool:
        return self._stillness.is_wanted or self.aborted or self._closing or self.standby.refuses

    @property
    def is_free(self) -> bool:
        """Whether any request that came now would pass at once."""
        return not (self._is_shut or self.room or self.stats.in_flight >= self.bounds.requests)

    def _verdict(self, ticket: Ticket) -> Kind | PloopError | None:
        """What the gate says to a request now: wait, an error, or nothing in the way. Suspended comes first, as
        device-mapper stops a request before its target sees it. Standby comes before a quiesce: it refuses at once."""
        if self._closing and self.standby.refuses:
            return ShuttingDown("the device is in standby, and its daemon ends")
        if self.suspended:
            return ShuttingDown("the device is suspended, and its daemon ends") if self._closing else Kind.PARKED
        if self.standby.refuses:
            # Without images there is nothing to wait for: an error target answers at once.
            holds = self.policy.on_standby is OnStandby.HOLD and bool(self.stack.deltas)
            return Kind.HELD if holds and ticket.may_be_held else InStandby("the device is in standby")
        if self.aborted and ticket.op.is_write:
            return DeviceAborted("the device is aborted")
        return Kind.PARKED if self._stillness.quiescing else None

    async def _wait_turn(self, ticket: Ticket) -> None:
        """Until the gate lets this request through; its ticket is still in the room then, so that nobody overtakes it
        before it is counted in, unless there was nothing to wait for. Bounded in number, bytes and time."""
        verdict = self._verdict(ticket)
        if isinstance(verdict, PloopError):
            raise verdict
        if verdict is None and not self.room:
            return
        self._enter(ticket, verdict)
        try:
            await self._wait_let_go(ticket)
        except BaseException:
            self._depart(ticket)
            raise

    def _enter(self, ticket: Ticket, verdict: Kind | None) -> None:
        self._has_stopped_some |= verdict is not None
        try:
            self.room.enter(ticket, verdict or Kind.PARKED)
        except HoldFull as error:
            self._report.refused(self.room, error)
            raise
        self._report.began(self.room)

    async def _wait_let_go(self, ticket: Ticket) -> None:
        while True:
            in_time = await ticket.wait_let_go()
            if ticket.refusal is not None:
                raise ticket.refusal
            if not in_time:
                raise self._timed_out(ticket)
            if isinstance(verdict := self._verdict(ticket), PloopError):
                raise verdict
            if verdict is None:
                if self.room.oldest is ticket:
                    return
                self._let_go()  # somebody older has come back

    def _timed_out(self, ticket: Ticket) -> PloopError:
        if ticket.kind is Kind.HELD:
            self.events.emit("hold_timeout", operation=ticket.op.value, timeout_ms=self.policy.timeout_ms)
        return self.room.timeout_of(ticket)

    def _is_for_hold(self, error: PloopError) -> bool:
        """Whether a request that met this error is to wait for recovery instead of failing."""
        return (
            isinstance(error, BackendError)
            and self.standby.means_standby(error.errno)
            and self.policy.on_standby is OnStandby.HOLD
            and not self._closing
        )

    def _depart(self, ticket: Ticket) -> None:
        self.room.leave(ticket)
        self._let_go()

    def _standby_changed(self) -> None:
        if self.standby.state is State.ON:
            self._report.new_standby()
        self._let_go()

    def _let_go(self) -> None:
        """Look at who waits, the oldest first: who must not wait any longer is refused; of the others one is let go at
        a time, and looks after the next when it is counted in."""
        while (ticket := self.room.oldest) is not None:
            verdict = self._verdict(ticket)
            if isinstance(verdict, PloopError):
                self.room.refuse(ticket, verdict)
                continue
            refusal = self.room.wait_as(verdict or Kind.PARKED)
            if refusal is not None:
                self._report.refused(self.room, refusal)
            self._report.began(self.room)
            if verdict is None:
                self._let_go_paced(ticket)
            else:
                self._has_stopped_some = True
            break
        self._report.ended(self.room, in_standby=self.standby.refuses)

    def _let_go_paced(self, oldest: Ticket) -> None:
        """Who comes while those who were stopped still wait is behind them, but is not held up by the pace."""
        if self._has_stopped_some:
            self._has_stopped_some, self._paced_up_to = False, self.room.newest_order
        if self.stats.in_flight < PACE or oldest.order > self._paced_up_to:
            oldest.let_go()

    def end(self, begun: Begun, *, is_over: bool = True) -> None:
        """Count it out; not over, it will begin again."""
        if is_over:
            self.stats.finish(begun.op, begun.length_bytes, begun.started_ns)
        else:
            self.stats.abandon(begun.op)
        if self.room:
            self._let_go()
        self._stillness.request_ended()
