"""The request queue of one device: its gate, and how to hold everybody behind it.

Every operation on a disk passes `run`, which holds the check at the start and the check at the end of the
specification; nothing else mentions standby. The queue outlives its stack: standby, statistics and waiting requests
stay when a top is replaced. Lock protocol: `quiesced` is entered by one task at a time; inside it, and while suspended,
no request is in flight, new ones wait (or are refused in standby), and `swap` may be called."""

import errno
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from ploopfs.bounds import PACE
from ploopfs.device.bounds import DEFAULT_BOUNDS, Bounds
from ploopfs.device.events import DeviceEvents, Events
from ploopfs.device.flavour import Flavour
from ploopfs.device.holding import HoldReport
from ploopfs.device.signal import Signal
from ploopfs.device.standby import Reason, Standby, StandbyKey, State, tells_of_loss
from ploopfs.device.stats import DiskStats, Op
from ploopfs.device.waiting import HoldPolicy, Kind, OnStandby, Ticket, WaitingRoom
from ploopfs.engine.stack import Stack
from ploopfs.errors import (
    BackendError,
    Busy,
    DeviceAborted,
    HoldFull,
    InStandby,
    PloopError,
    QueueFull,
    QuiesceTimeout,
    RequestFailed,
    ShuttingDown,
    TruncatedImage,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

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
        self.suspended = False
        self.bounds = bounds
        self.policy = HoldPolicy(requests=bounds.held_requests, data_bytes=bounds.held_bytes)
        self.room = WaitingRoom(self.policy, bounds.park_timeout_s)
        self._name, self._flavour = device_name, flavour
        self._failed_generation = 0
        self._quiescing = False
        self._closing = False
        self._has_stopped_some = False
        self._paced_up_to = 0
        self._report = HoldReport(self.events)
        self._idle = trio.lowlevel.ParkingLot()
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
        return self._quiescing or self.suspended

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
        while True:
            generation, stack = self.generation, self.stack
            started_ns = self.stats.start(op)
            if ticket is not None and ticket.is_waiting:
                self._report.passed(ticket)
                self._depart(ticket)
            try:
                result = await work(stack)
            except (BackendError, TruncatedImage) as error:
                is_held = may_be_held and self._is_for_hold(error)
                self._count_out(op, length_bytes, started_ns, is_over=not is_held)
                failure = self.judge(op, error, generation)
                if not is_held:
                    raise failure from error
                ticket = ticket or Ticket(op, started_ns, length_bytes if op is Op.WRITE else 0)
                ticket.was_tried = True
                try:
                    await self._wait_turn(ticket)
                except HoldFull:
                    self.stats.count(op, length_bytes, started_ns)
                    raise failure from error
            except BaseException:
                self._count_out(op, length_bytes, started_ns)
                raise
            else:
                self._count_out(op, length_bytes, started_ns)
                return result

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

    @asynccontextmanager
    async def quiesced(self) -> AsyncIterator[None]:
        """Inside, no request is in flight. Raises Busy if somebody else quiesces, QuiesceTimeout, ShuttingDown."""
        self.check_lives()
        if self._quiescing:
            raise Busy("another operation holds the queue quiesced")
        self._quiescing = True
        self._let_go()
        try:
            await self._wait_drained()
            yield
        finally:
            self._quiescing = False
            self._let_go()

    async def suspend(self) -> None:
        """Park what comes and wait for what is in flight; nobody fails. Raises QuiesceTimeout if requests do not end,
        and the queue is then as it was; Busy if somebody resumes meanwhile. A second suspend is one, and waits too."""
        was_suspended, self.suspended = self.suspended, True
        self._let_go()
        try:
            await self._wait_drained()
        except BaseException:
            if not was_suspended:
                self.resume()
            raise
        if not self.suspended:
            raise Busy("the queue was resumed before the requests in flight had ended")
        if not was_suspended:
            self.changed.fire()

    def resume(self) -> None:
        if self.suspended:
            self.suspended = False
            self.changed.fire()
            self._let_go()
            self._idle.unpark_all()

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
        return self.suspended or self._quiescing or self.aborted or self._closing or self.standby.refuses

    @property
    def is_free(self) -> bool:
        """Whether any request that came now would pass at once."""
        return not (self.room or self._is_shut or self._is_full)

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
        return Kind.PARKED if self._quiescing else None

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

    def _count_out(self, op: Op, length_bytes: int, started_ns: int, *, is_over: bool = True) -> None:
        if is_over:
            self.stats.finish(op, length_bytes, started_ns)
        else:
            self.stats.abandon(op)
        if self.room:
            self._let_go()
        if (self._quiescing or self.suspended) and not self.stats.in_flight:
            self._idle.unpark_all()

    async def _wait_drained(self) -> None:
        with trio.move_on_after(self.bounds.quiesce_timeout_s) as timeout:
            while self.stats.in_flight and (self._quiescing or self.suspended):
                await self._idle.park()
        if timeout.cancelled_caught:
            stay = f"{self.stats.in_flight} requests in flight did not end within {self.bounds.quiesce_timeout_s} s"
            raise QuiesceTimeout(stay)
