"""Holding everybody behind the gate of a queue, until nothing is in flight.

Knows nothing of why, nor of standby. Invariant: one task at a time quiesces, and to quiesce and to suspend are
independent: the queue is open when neither is wanted.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from ploopfs.device.signal import Signal
from ploopfs.device.stats import DiskStats
from ploopfs.errors import Busy, QuiesceTimeout


class Stillness:
    """`let_go` looks after those who wait, and is called whenever they may go on, or must not any more; `changed` fires
    when `suspended` does. `stats` says how many requests are in flight, and `request_ended` is called after each."""

    def __init__(self, stats: DiskStats, timeout_s: float, let_go: Callable[[], None], changed: Signal) -> None:
        self.quiescing = self.suspended = False
        self._stats, self._timeout_s = stats, timeout_s
        self._let_go, self._changed = let_go, changed
        self._idle = trio.lowlevel.ParkingLot()

    @property
    def is_wanted(self) -> bool:
        return self.quiescing or self.suspended

    def request_ended(self) -> None:
        if (self.quiescing or self.suspended) and not self._stats.in_flight:
            self._idle.unpark_all()

    @asynccontextmanager
    async def quiesced(self) -> AsyncIterator[None]:
        if self.quiescing:
            raise Busy("another operation holds the queue quiesced")
        self.quiescing = True
        self._let_go()
        try:
            await self._wait_drained()
            yield
        finally:
            self.quiescing = False
            self._let_go()

    async def suspend(self) -> None:
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
            self._changed.fire()

    def resume(self) -> None:
        if self.suspended:
            self.suspended = False
            self._changed.fire()
            self._let_go()
            self._idle.unpark_all()

    async def _wait_drained(self) -> None:
        with trio.move_on_after(self._timeout_s) as timeout:
            while self._stats.in_flight and self.is_wanted:
                await self._idle.park()
        if timeout.cancelled_caught:
            stay = f"{self._stats.in_flight} requests in flight did not end within {self._timeout_s} s"
            raise QuiesceTimeout(stay)
