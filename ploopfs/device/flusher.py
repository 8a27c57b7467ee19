"""What a device does though nobody asked for it, so that writers need not wait: what is kept for a recovery is flushed,
in the background from half of its bound on, and by whoever writes at the bound; the top's file is made longer ahead.

One flush of ours at a time, a request like any other once it has passed the gate; at a gate that is shut none waits.
Knows nothing of what a flush does. Invariants: after one that failed none is begun before less is kept, or the queue
has changed; a recovery waits for none, as one that is under way when standby begins is given up.
"""

import errno
import logging
from collections.abc import Awaitable, Callable

import trio

from ploopfs.device.queue import RequestQueue
from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.device.unflushed import Unflushed
from ploopfs.engine.answers import SURELY_NOT_WRITTEN
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError, PloopError, RequestFailed

log = logging.getLogger(__name__)


class Flusher:
    """`flush` is the work of a flush, on the stack that is then in force. `in_flight` is how many requests of the queue
    are those of `run`: 0 or 1. Where that does not run, whoever writes at the bound flushes as well."""

    def __init__(
        self, device_name: str, queue: RequestQueue, unflushed: Unflushed, flush: Callable[[Stack], Awaitable[None]]
    ) -> None:
        self.in_flight = 0
        self._name, self._queue, self._unflushed, self._work = device_name, queue, unflushed, flush
        self._asked, self._over = trio.Event(), trio.Event()
        self._is_closing = False
        self._attempt = trio.CancelScope()
        self._ended: trio.Event | None = None

    async def run(self) -> None:
        """Until it is cancelled or closed."""
        self._ended = trio.Event()
        forget = (
            self._unflushed.due.subscribe(self.look),
            self._queue.changed.subscribe(self.look),
            self._queue.standby.changed.subscribe(self._standby_changed),
        )
        try:
            self.look()
            while not self._is_closing:
                await self._asked.wait()
                is_done = await self._flush()
                self._end_round()
                if is_done:
                    self.look()  # more may have come meanwhile than fits below the half
        finally:
            for each in forget:
                each()
            self._end_round()
            self._ended.set()

    async def aclose(self) -> None:
        """End it for good. A flush under way ends first, or is given up together with who waits for that here."""
        self._is_closing = True
        if self._ended is None or self._ended.is_set():
            return
        self._asked.set()
        try:
            await self._ended.wait()
        except trio.Cancelled:
            self._attempt.cancel()
            raise

    async def wait_room(self) -> None:
        """For who may have filled what is kept, before he has his answer: there is room for the next. Flushes whatever
        `pass_flushes` says. Raises RequestFailed if what waits here to be acknowledged was given up meanwhile."""
        if not self._unflushed.is_full:
            return
        before = self._unflushed.times_given_up
        if self._asked.is_set():
            await self._over.wait()
        if self._unflushed.is_full:
            await self._queue.run(Op.FLUSH, 0, self._work)
        if self._unflushed.times_given_up != before:
            raise RequestFailed(errno.EIO, f"{self._name}: what was written was given up before it was flushed")

    @property
    def _wants_room(self) -> bool:
        room = self._queue.stack.room
        return room is not None and room.is_wanted

    @property
    def _may_begin(self) -> bool:
        """Not behind a gate that is shut, nor of a storage that is lost, whose next flush fails."""
        return self._queue.is_free and not self._queue.is_lost

    def look(self) -> None:
        """Whether there is something to do: a flush is due, or the stack in force wants room. Nothing, where `run` does
        not run."""
        is_running = self._ended is not None and not self._ended.is_set()
        if not is_running or not (self._unflushed.is_due or self._wants_room):
            return
        if self._may_begin:
            self._asked.set()
        elif not self._queue.is_lost:
            self._unflushed.tell_again()

    def _end_round(self) -> None:
        over, self._asked, self._over = self._over, trio.Event(), trio.Event()
        over.set()

    def _standby_changed(self) -> None:
        """From now on no flush of this stack is believed, and the storage may keep us waiting for ever."""
        if self._queue.standby.state is State.ON:
            self._attempt.cancel()

    async def _flush(self) -> bool:
        """And room for what is allocated next, which is no request of anybody; whether all has succeeded."""
        if self._is_closing or not self._may_begin:
            self.look()
            return False
        self.in_flight = 1
        try:
            with trio.CancelScope() as self._attempt:
                if self._wants_room:
                    await self._make_room()
                if self._unflushed.is_due:
                    await self._queue.run(Op.FLUSH, 0, self._work, may_be_held=False)
                return True
        except PloopError as error:
            log.info("%s: a flush in the background failed: %s", self._name, error)
        except Exception:
            log.exception("%s: a flush in the background met a bug", self._name)
        finally:
            self.in_flight = 0
        return False

    async def _make_room(self) -> None:
        """A storage that was lost may say so once, to whoever comes first (real-parts.md 2.1): it is judged as any."""
        begun = self._queue.begin(Op.FLUSH, 0)
        try:
            if begun.stack.room is not None:
                await begun.stack.room.make()
        except BackendError as error:
            if error.errno not in SURELY_NOT_WRITTEN:
                raise self._queue.judge(Op.FLUSH, error, begun.generation) from error
            log.info("%s: no room was made: %s", self._name, error)
        finally:
            self._queue.end(begun, is_over=False)
