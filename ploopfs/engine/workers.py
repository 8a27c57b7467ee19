"""The threads in which the operations of one device wait for its storage, and the way back of their answers.

A device has at most so many at a time, lent by trio, which ends those that nobody wants; further operations wait for
one in the order in which they came. What shares a lane is done one after the other, in one thread. Answers that are
there together come back by one wake-up of the event loop. Knows nothing of what the work is. Invariants: who gives up
goes on at once, and his work is not begun any more unless it stays, or ends when nobody waits for it; who has his
answer does not wait for what the same thread does next."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import TypeVar, cast

import trio
from outcome import Outcome
from trio.lowlevel import Abort, RaiseCancelT, Task, TrioToken, current_task, current_trio_token

T = TypeVar("T")


class _Job:
    __slots__ = ("_context", "_work", "error", "is_given_up", "task", "value")

    def __init__(self, task: Task | None, context: Context, work: Callable[[], object]) -> None:
        self.task = task
        self._context = context
        self._work = work
        self.value: object = None
        self.error: BaseException | None = None
        self.is_given_up = False

    def do(self) -> None:
        try:
            self.value = self._context.run(self._work)
        except BaseException as error:
            self.error = error


class Lane:
    """Jobs of which one is done at a time, by the thread that serves the lane."""

    __slots__ = ("is_served", "jobs")

    def __init__(self) -> None:
        self.jobs: deque[_Job] = deque()
        self.is_served = False
        """Or it waits for a thread."""


class Workers:
    """`bound` is how many threads there may be at a time."""

    # Lock protocol: `_lock` is held for `_busy`, `_waiting` and all that a lane has. `_ended` is filled by the threads
    # and emptied by the event loop, and what is in `_told` is the loop that has been told since it began to empty it.

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._lock = threading.Lock()
        self._busy = 0
        self._waiting: OrderedDict[Lane, None] = OrderedDict()
        self._ended: deque[_Job] = deque()
        self._token: TrioToken | None = None
        self._told: TrioToken | None = None

    async def run(self, work: Callable[[], T], lane: Lane | None = None, *, stays: bool = False) -> T:
        """What `work` returns or raises, in a thread; by itself, if no lane is named. What `stays` is done, whoever
        gives up."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._token = current_trio_token()
        job, lane = _Job(current_task(), copy_context(), work), lane or Lane()
        self._hand_in(job, lane)

        def give_up(_raise_cancel: RaiseCancelT) -> Abort:
            job.is_given_up = True
            if not stays:
                self._withdraw(job, lane)
            return Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)
        if job.error is not None:
            try:
                raise job.error
            finally:
                job.error = None  # whose traceback leads to this job
        return cast("T", job.value)

    def start(self, work: Callable[[], object], lane: Lane) -> None:
        """Nobody waits for it; it raises nothing."""
        self._token = current_trio_token()
        self._hand_in(_Job(None, copy_context(), work), lane)

    def _hand_in(self, job: _Job, lane: Lane) -> None:
        with self._lock:
            lane.jobs.append(job)
            if lane.is_served:
                return
            lane.is_served = True
            if self._busy >= self._bound:
                self._waiting[lane] = None
                return
            self._busy += 1
        trio.lowlevel.start_thread_soon(partial(self._serve, lane), self._left)

    def _withdraw(self, job: _Job, lane: Lane) -> None:
        """Nothing happens if it is under way or has ended."""
        with self._lock, suppress(ValueError):
            lane.jobs.remove(job)
            if not lane.jobs and lane in self._waiting:
                del self._waiting[lane]
                lane.is_served = False

    # --- in a thread ----------------------------------------------------------------------------------------------

    def _serve(self, lane: Lane) -> None:
        is_lent_for = True
        while True:
            with self._lock:
                if lane.jobs:
                    self._waiting[lane] = None  # behind the lanes that wait for a thread, but for its first turn
                    self._waiting.move_to_end(lane, last=not is_lent_for)
                else:
                    lane.is_served = False
                is_lent_for = False
                if not self._waiting:
                    self._busy -= 1
                    return
                lane, _ = self._waiting.popitem(last=False)
                job = lane.jobs.popleft()
            self._tell()  # now, as this one may take for ever
            job.do()
            self._ended.append(job)

    def _left(self, outcome: Outcome[None]) -> None:
        # Only here the thread is free again for whoever is told.
        outcome.unwrap()
        self._tell()

    def _tell(self) -> None:
        """One wake-up for all that is answered until the loop looks: of 16 writes at a time each takes 21 us of the
        processor instead of 62."""
        token = self._token
        if not self._ended or token is None or self._told is token:
            return
        self._told = token
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(self._deliver)

    # --- in the event loop ----------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        self._told = None  # before looking, so that whatever comes from here on is told of
        while self._ended:
            job = self._ended.popleft()
            if job.task is not None and not job.is_given_up:
                trio.lowlevel.reschedule(job.task)
