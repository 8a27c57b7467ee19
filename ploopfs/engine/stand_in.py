"""A thread that takes the event loop's place for a turn, and can be left behind in a write that hangs.

Who asks for one thing after the other is served best by whoever hears him, with nobody woken in between. But a write
may have to wait for the storage, and the event loop may not. So it lends its place: it waits while the thread does its
work, and goes on without it when a write takes too long. Knows nothing of what is written. Invariants: what belongs to
the event loop is touched by one of both at a time, and never by a thread that was left behind; what needs the loop
itself (left_to_loop.py) is done by it when the turn has ended.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

import trio
from outcome import Outcome

from ploopfs.bounds import LEFT_BEHIND
from ploopfs.engine.left_to_loop import THREAD
from ploopfs.engine.made_write import Made
from ploopfs.engine.ring import Ring

log = logging.getLogger(__name__)


class StandIn:
    """Made in the event loop; `end` it there. `ring` hears of the writes with which it is left behind."""

    # Lock protocol: the thread has `_turn` while it works, but for its writes, and the loop only waits meanwhile. Who
    # takes it from a thread that is in a write decides that it is left behind.

    def __init__(self, ring: Ring) -> None:
        self._ring, self._token = ring, trio.lowlevel.current_trio_token()
        self._turn, self._asked, self._answered = threading.Lock(), threading.Lock(), threading.Lock()
        self._asked.acquire()
        self._answered.acquire()
        self._work: Callable[[], bool] | None = None
        self._result = False
        self._left: list[Callable[[], object]] = []
        self._made: Made | None = None
        self.is_left_behind = False
        trio.lowlevel.start_thread_soon(self._serve, _ended, "stand-in")

    @staticmethod
    def may_begin(ring: Ring) -> bool:
        """Not while so many threads hang in writes already."""
        return len(ring.left_behind) < LEFT_BEHIND

    # --- in the event loop ----------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    def lend(self, work: Callable[[], bool], limit_s: float) -> bool:
        """What `work` has returned, in the thread, and what it has left to the loop is done; False if it takes longer,
        and then the thread was left behind and this is of no use any more. The caller waits, and so does the loop."""
        self._work = work
        self._asked.release()
        if not self._answered.acquire(timeout=limit_s):
            with self._turn:
                self.is_left_behind = not self._answered.acquire(blocking=False)
            if self.is_left_behind:
                self._result = False
                if self._made is not None:  # else it has yet to begin, and will not
                    self._made.enter(hangs=True)
                    self._ring.left_behind.append(self._made)
        left, self._left[:] = self._left[:], []
        for call in left:
            try:
                call()
            except Exception:
                log.exception("what was left to the event loop met a bug")
        return self._result

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
        finally:
            THREAD.left = None

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
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._ring.deliver)
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


def _ended(outcome: Outcome[None]) -> None:
    outcome.unwrap()
