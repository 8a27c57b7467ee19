"""Requests that wait at the gate: in the order in which they came, each with a bound on its time.

A request waits held (the device is in standby, and its policy is to hold) or parked (suspended, quiesced, or behind
others that wait). Knows nothing of why a queue is shut. Invariants: the oldest is let go first and nobody overtakes;
a request that failed in the storage and is held keeps the place that it had when it came; a request fails when it would
be held later than `hold_timeout_ms` after it was held first, however often it was let go in between; who is in the room
has not been refused.
"""

import bisect
import errno
import math
from dataclasses import dataclass, field
from enum import Enum

import trio

from ploopfs import bounds
from ploopfs.device.signal import Signal
from ploopfs.device.stats import Op
from ploopfs.errors import (
    HeldFailed,
    HoldFull,
    HoldTimeout,
    InStandby,
    Interrupted,
    ParkTimeout,
    PloopError,
    RequestFailed,
)


class OnStandby(Enum):
    """What happens to a request in standby. The value is the text of `on_standby`."""

    FAIL = "fail"
    """It is refused at once with EIO: for multipath and ALUA, which fail over on an error and cannot on a hang."""
    HOLD = "hold"
    """It waits for recovery, bounded: for a loop device, tgt, NBD, a virtual machine."""


class Kind(Enum):
    """Why somebody waits."""

    PARKED = "parked"
    HELD = "held"


@dataclass(slots=True)
class HoldPolicy:
    """What may be set on a device at any time. `requests` and `data_bytes` bound what is held."""

    on_standby: OnStandby = OnStandby.FAIL
    timeout_ms: int = bounds.HOLD_TIMEOUT_MS
    requests: int = bounds.HELD_REQUESTS
    data_bytes: int = bounds.HELD_MIB * bounds.MIB


@dataclass(eq=False, slots=True)
class Ticket:
    """One waiting request. `order` is when it came (ns), `data_bytes` what it keeps in memory while it waits.

    `held_since_s` is set by the first time that it is held, in the seconds of trio's clock. `is_waiting`: in the room.
    `may_be_held`: standby is for it to wait out. `task` is who waits. `was_tried`: the storage has had it, and failed.
    """

    op: Op
    order: int
    data_bytes: int
    may_be_held: bool = True
    held_since_s: float | None = None
    kind: Kind = Kind.PARKED
    is_waiting: bool = False
    refusal: PloopError | None = None
    task: trio.lowlevel.Task = field(default_factory=trio.lowlevel.current_task)
    was_tried: bool = False
    _deadline_s: float = math.inf
    _go: trio.Event = field(default_factory=trio.Event)
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def let_go(self) -> None:
        self._go.set()

    def refuse(self, error: PloopError) -> None:
        self.refusal = error
        self._go.set()

    def bound(self, deadline_s: float) -> None:
        """In the seconds of trio's clock; counts for who waits already, too."""
        self._deadline_s = self._scope.deadline = deadline_s

    async def wait_let_go(self) -> bool:
        """False if the time ran out."""
        self._go = trio.Event()
        self._scope = trio.CancelScope(deadline=self._deadline_s)
        with self._scope:
            await self._go.wait()
        return not self._scope.cancelled_caught


class WaitingRoom:
    """The waiting requests of one queue; `changed` fires when the number of held ones does, `held`: those that standby
    delays, though it may be over by now."""

    def __init__(self, policy: HoldPolicy, park_timeout_s: float) -> None:
        self.policy = policy
        self.changed = Signal()
        self.held = 0
        self.held_bytes = 0
        self._park_timeout_s = park_timeout_s
        self._kind = Kind.PARKED
        self._tickets: list[Ticket] = []

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def parked(self) -> int:
        return len(self._tickets) - self.held

    @property
    def oldest(self) -> Ticket | None:
        return self._tickets[0] if self._tickets else None

    @property
    def newest_order(self) -> int:
        return self._tickets[-1].order if self._tickets else 0

    @property
    def oldest_held_s(self) -> float | None:
        """For how long the request that waits longest has been held."""
        since = [ticket.held_since_s for ticket in self._tickets if ticket.held_since_s is not None]
        return trio.current_time() - min(since) if since else None

    def enter(self, ticket: Ticket, kind: Kind) -> None:
        """Raises HoldFull if the ticket would be held and there is no room."""
        if not self._tickets:
            self._kind = kind
        assert kind is self._kind, (kind, self._kind)
        if kind is Kind.HELD or ticket.held_since_s is not None:
            self._check_bounds(ticket)
        bisect.insort(self._tickets, ticket, key=lambda each: each.order)
        ticket.is_waiting = True
        if ticket.held_since_s is not None:
            # It was let go and came back before anything was done: it still is one of those that standby delays.
            self._count_held(ticket, +1)
        self._set_kind(ticket, kind)

    def leave(self, ticket: Ticket) -> None:
        """Nothing happens if it has left already."""
        if ticket.is_waiting:
            ticket.is_waiting = False
            self._tickets.remove(ticket)
            if ticket.held_since_s is not None:
                self._count_held(ticket, -1)

    def refuse(self, ticket: Ticket, error: PloopError) -> None:
        self.leave(ticket)
        ticket.refuse(error)

    def wait_as(self, kind: Kind) -> HoldFull | None:
        """From now on everybody waits for this reason; who is then held beyond the bounds is refused, newest first, and
        the result says so."""
        if kind is self._kind:
            return None
        self._kind = kind
        refusal: HoldFull | None = None
        for ticket in tuple(self._tickets):
            if kind is Kind.HELD and not ticket.may_be_held:
                self.refuse(ticket, InStandby("the device is in standby, and this request is not held"))
                continue
            if kind is Kind.HELD and ticket.held_since_s is None:
                try:
                    self._check_bounds(ticket)
                except HoldFull as error:
                    refusal = error
                    self.refuse(ticket, error)
                    continue
            self._set_kind(ticket, kind)
        return refusal

    def renew_bounds(self) -> None:
        """The policy's timeout has changed."""
        if self._kind is Kind.HELD:
            for ticket in self._tickets:
                self._set_kind(ticket, Kind.HELD)

    def interrupt(self, task: trio.lowlevel.Task, op: Op) -> bool:
        """Refuse what this task waits for, on behalf of a request of this kind; False if it does not wait. Only of what
        has certainly not been done is it said that it was not."""
        for ticket in self._tickets:
            if ticket.task is task:
                is_undone = ticket.op is op and not (ticket.was_tried and op.is_write)
                told = "interrupted while it waited"
                self.refuse(ticket, Interrupted(told) if is_undone else RequestFailed(errno.EIO, f"{told}, half done"))
                return True
        return False

    def refuse_held(self) -> int:
        """Fail everybody who is held; how many."""
        held = [ticket for ticket in self._tickets if ticket.held_since_s is not None]
        for ticket in held:
            self.refuse(ticket, HeldFailed("failed by fail_held while it was held in standby"))
        return len(held)

    def timeout_of(self, ticket: Ticket) -> PloopError:
        if ticket.kind is Kind.HELD:
            return HoldTimeout(f"held in standby for more than {self.policy.timeout_ms} ms")
        return ParkTimeout(f"the queue let nothing pass for more than {self._park_timeout_s} s")

    def _check_bounds(self, ticket: Ticket) -> None:
        if self.held >= self.policy.requests:
            raise HoldFull(f"{self.held} requests are already held in standby")
        if self.held_bytes + ticket.data_bytes > self.policy.data_bytes:
            raise HoldFull(f"{self.held_bytes} bytes are already held in standby, and {ticket.data_bytes} more are not")

    def _set_kind(self, ticket: Ticket, kind: Kind) -> None:
        ticket.kind = kind
        if kind is Kind.PARKED:
            ticket.bound(trio.current_time() + self._park_timeout_s)
            return
        if ticket.held_since_s is None:
            ticket.held_since_s = trio.current_time()
            self._count_held(ticket, +1)
        ticket.bound(ticket.held_since_s + self.policy.timeout_ms / 1000)

    def _count_held(self, ticket: Ticket, by: int) -> None:
        self.held += by
        self.held_bytes += by * ticket.data_bytes
        self.changed.fire()
