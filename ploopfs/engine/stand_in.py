"""A thread that takes the event loop's place while the loop sleeps, and can be left behind in a write that hangs.

Who asks for one thing after the other is served best by whoever hears him, with nobody woken in between. But a write
may have to wait for the storage, and the event loop may not. So it lends its place: the thread works while the loop has
nothing to do, or in turns with it where it always has, and the loop goes on without it when a write takes too long.
Knows nothing of what is written. Invariants: what belongs to the event loop is touched by one of both at a time, and
never by a thread that was left behind; what needs the loop itself (left_to_loop.py) is done by it, by the task that had
the thread work.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import trio
from outcome import Outcome
from trio.lowlevel import RunVar

from ploopfs.bounds import LEFT_BEHIND, LENT_US, POLL_TURN_US
from ploopfs.engine.left_to_loop import THREAD
from ploopfs.engine.made_write import Made
from ploopfs.engine.ring import Ring

log = logging.getLogger(__name__)


class _Place(trio.abc.Instrument):
    """The event loop's: lent while it waits, to one after the other of those who `want` it. With turns of 1 ms, though
    the loop sleeps, who writes 4 KiB at depth 16 would make an eighth fewer, and who allocates as well."""

    def __init__(self) -> None:
        self._wanting: deque[StandIn] = deque()
        self._lent_to: StandIn | None = None

    def want(self, stand_in: "StandIn") -> None:
        if not self._wanting:
            trio.lowlevel.add_instrument(self)
        self._wanting.append(stand_in)

    def leave(self, stand_in: "StandIn") -> None:
        self._wanting.remove(stand_in)
        if not self._wanting:
            trio.lowlevel.remove_instrument(self)

    def before_io_wait(self, timeout: float, /) -> None:
        if self._wanting:
            self._wanting.rotate(-1)
            if not self._wanting[0].is_recalled:
                self._lent_to = self._wanting[0]
                self._lent_to.begin_turn(is_asleep=timeout > 0, is_only=len(self._wanting) == 1)

    def after_io_wait(self, _timeout: float, /) -> None:
        if self._lent_to is not None:
            lent_to, self._lent_to = self._lent_to, None
            lent_to.end_turn()


_PLACE: RunVar[_Place] = RunVar("place")


def _place_of_loop() -> _Place:
    try:
        return _PLACE.get()
    except LookupError:
        place = _Place()
        _PLACE.set(place)
        return place


class StandIn:
    """Made in the event loop; `end` it there. `ring` hears of the writes with which it is left behind. What works is to
    come to an end when the clock has reached `until_ns`."""

    # Lock protocol: the thread has `_turn` while it works, but for its writes, and the loop only waits meanwhile. Who
    # takes it from a thread that is in a write decides that it is left behind.

    def __init__(self, ring: Ring) -> None:
        self._ring, self._token = ring, trio.lowlevel.current_trio_token()
        self._turn, self._asked, self._answered = threading.Lock(), threading.Lock(), threading.Lock()
        self._asked.acquire()
        self._answered.acquire()
        self._work: Callable[[], bool | None] | None = None
        self._patience_s = 0.0
        self._result: bool | None = None
        self._has_ended = trio.Event()
        self._is_asleep = self._is_endless = False
        self._left: list[Callable[[], object]] = []
        self._made: Made | None = None
        self._turn_ns = 0
        self.is_left_behind = False
        trio.lowlevel.start_thread_soon(self._serve, _ended, "stand-in")

    @staticmethod
    def prepare() -> None:
        """What all of a loop's have in common is there from now on, whoever of its disks is busy first, and when."""
        _place_of_loop()

    @staticmethod
    def may_begin(ring: Ring) -> bool:
        """Not while so many threads hang in writes already."""
        return len(ring.left_behind) < LEFT_BEHIND

    # --- in the event loop ----------------------------------------------------------------------------------------

    async def lend(self, work: Callable[[], bool | None], patience_s: float) -> bool | None:
        """What `work` has returned, in the thread, where it is called again as long as that is None and nothing was
        left to the loop, which then is done. None if it goes on for longer, or was `recall`ed; False if the loop, when
        it was awake, had no patience to wait any longer for it: then the thread was left behind, and this is of no use
        any more."""
        self._work, self._patience_s = work, patience_s
        self._result, self._has_ended = None, trio.Event()
        place = _place_of_loop()
        place.want(self)
        try:
            with trio.move_on_after(LENT_US / 1e6):  # a loop that sleeps sees nobody hang
                await self._has_ended.wait()
        finally:
            place.leave(self)
            left, self._left[:] = self._left[:], []
            for call in left:
                try:
                    call()
                except Exception:
                    log.exception("what was left to the event loop met a bug")
        return self._result

    def recall(self) -> None:
        """Have no more turns."""
        self._has_ended.set()

    @property
    def is_recalled(self) -> bool:
        return self._has_ended.is_set()

    def begin_turn(self, *, is_asleep: bool, is_only: bool) -> None:
        """The loop sleeps, or will wait for it; nobody else wants its place."""
        self._is_asleep, self._is_endless = is_asleep, is_asleep and is_only
        self._asked.release()

    def end_turn(self) -> None:
        """The loop is awake, and waits for it."""
        self._is_asleep = self._is_endless = False
        if not self._answered.acquire(timeout=self._patience_s):
            with self._turn:
                self.is_left_behind = not self._answered.acquire(blocking=False)
            if self.is_left_behind:
                self._result = False
                if self._made is not None:  # else it has yet to begin, and will not
                    self._made.enter(hangs=True)
                    self._ring.left_behind.append(self._made)
        if self._result is not None or self._left:
            self._has_ended.set()

    def end(self) -> None:
        if not self.is_left_behind:
            self._work = None
            self._asked.release()

    # --- in the thread --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        THREAD.left = self._left
        try:
            while self._asked.acquire() and self._work is not None:
                self._turn.acquire()
                if self.is_left_behind:
                    return
                self._turn_ns = time.monotonic_ns() + POLL_TURN_US * 1000
                try:
                    result = self._work()
                except Exception:
                    log.exception("who stood in for the event loop met a bug")
                    result = False
                if self.is_left_behind:
                    return
                self._result = result
                self._answered.release()  # before the turn: who has that sees this
                self._turn.release()
                if self._is_asleep:
                    self._wake(_nothing)
        finally:
            THREAD.left = None

    @property
    def until_ns(self) -> float:
        """It may change at any time."""
        return math.inf if self._is_endless else self._turn_ns

    def _wake(self, call: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call)

    def begin(self, made: Made) -> None:
        """It happens in `make`."""
        assert self._made is None
        self._made = made

    @property
    def has_begun(self) -> bool:
        return self._made is not None

    @property
    def has_left(self) -> bool:
        """Something for the loop."""
        return bool(self._left)

    def make(self, unanswered: list[Made] | None = None) -> bool:
        """What has begun, and tell of it. False: the loop went on without this thread, which is to touch nothing.
        Into `unanswered` goes one that has succeeded instead of its answer to whoever asked."""
        made = self._made
        assert made is not None
        self._turn.release()
        try:
            made.make(answers=unanswered is None)
        finally:
            self._turn.acquire()
        if self.is_left_behind:
            self._turn.release()
            made.reply()
            self._wake(self._ring.deliver)
            return False
        self._made = None
        if made.has_failed:
            made.enter(hangs=False)
            self._left.append(made.tell)  # it may have to go on in a task
        else:
            made.note()
            if unanswered is not None:
                unanswered.append(made)
        return True


def _nothing() -> None:
    """The loop wakes for it."""


def _ended(outcome: Outcome[None]) -> None:
    outcome.unwrap()
