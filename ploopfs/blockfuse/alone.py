"""Who writes one thing after the other on a connection, served by a thread that stands in for the event loop.

So nobody is woken between his request and his answer. Knows nothing of what requests say. Invariant: it begins when
nothing of the connection is under way, and ends its turn with the first request that is to wait.
"""

import os
import select
import time
from collections.abc import Callable

from ploopfs.bounds import POLL_TURN_US, POLL_US, STAND_IN_US
from ploopfs.engine.ring import Ring
from ploopfs.engine.stand_in import StandIn

_POLL_NS, _TURN_NS = POLL_US * 1000, POLL_TURN_US * 1000
_ALONE = 16
"""Writes with none beside them, after which the next ones are expected to be so."""


class Alone:
    """`take` reads one request, which was `asked` for, and answers it or begins a write by the stand-in; False if it is
    for the event loop, and left to it. Nobody stands in without a `ring`, to which several writes are left."""

    __slots__ = ("_asked", "_stand_in", "_take", "_writes", "ring")

    def __init__(self, asked: select.poll, take: Callable[[StandIn], bool]) -> None:
        self.ring: Ring | None = None
        self._asked, self._take = asked, take
        self._writes = 0
        self._stand_in: StandIn | None = None

    def wrote(self) -> None:
        """A write was begun, and whoever was asked for more had none."""
        self._writes += 1

    def met_others(self) -> None:
        """Another request came meanwhile, or one that waits."""
        self._writes = 0

    @property
    def is_due(self) -> bool:
        if self._writes < _ALONE or self.ring is None:
            return False
        return self.ring.can_link and StandIn.may_begin(self.ring)  # else no answer is left to who writes

    def serve(self) -> bool:
        """A turn; False if nothing more is asked, or the loop is better at it."""
        if self._stand_in is None:
            assert self.ring is not None
            self._stand_in = StandIn(self.ring)
        is_quick = self._stand_in.lend(self._serve, STAND_IN_US / 1e6)
        if self._stand_in.is_left_behind:
            self._stand_in = None
            self.met_others()
        if not (is_quick and self.is_due):
            self.end()
        return is_quick

    def end(self) -> None:
        if self._stand_in is not None:
            self._stand_in.end()
            self._stand_in = None

    def _serve(self) -> bool:
        """In the thread. At depth 1 it makes a third more writes of 4 KiB than the kernel's workers, 40 % more that
        allocate; of several at a time the ring makes more."""
        stand_in = self._stand_in
        assert stand_in is not None
        now_ns = time.monotonic_ns()
        turn_ns, quick_ns = now_ns + _TURN_NS, now_ns + _POLL_NS
        while now_ns < turn_ns:
            if self._asked.poll(0):
                if not self._take(stand_in):
                    self.met_others()
                    return True
                if stand_in.has_begun:
                    if not self._writes % _ALONE and self._asked.poll(0):
                        self.met_others()
                    if not stand_in.make():
                        return False
                if stand_in.has_left or not self._writes:
                    return True
                now_ns = time.monotonic_ns()
                quick_ns = now_ns + _POLL_NS
            else:
                # Who asks may have been put on this thread's CPU, where he would wait until it sleeps: 45 % more
                # writes of 4 KiB in the first 30 ms after a pause.
                os.sched_yield()
                now_ns = time.monotonic_ns()
                if now_ns >= quick_ns:
                    return False
        return True
