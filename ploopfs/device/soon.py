"""Writes that wait in no task: begun on the stack in force, and told of when the storage has answered.

Knows nothing of what goes where, nor whether the gate is open. Invariant: what is done is recorded before anybody is
told of it, and nobody is told before more is kept than the bound allows, but for a flush.
"""

from collections.abc import Awaitable, Callable
from functools import partial

from ploopfs.device.queue import Begun, RequestQueue
from ploopfs.device.stats import Op
from ploopfs.device.unflushed import CHANGE_BYTES, Unflushed
from ploopfs.engine.counters import Counters
from ploopfs.engine.file import Buffer
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError

Written = Callable[[Callable[[], Awaitable[None]] | None], None]
"""Hears once how a write has ended, in the event loop: None, it is acknowledged; else when this has been awaited, or it
is refused with what that raises. It raises nothing and waits for nothing, and hears of success as `Answered` does."""


class SoonWrites:
    """Of one device. `wrote` records one that has ended well; `again` goes on with one that met an error, in a task,
    and `end` waits until it may be acknowledged."""

    def __init__(
        self,
        queue: RequestQueue,
        unflushed: Unflushed,
        counters: Counters,
        wrote: Callable[[int, Buffer, Stack], None],
        again: Callable[[Begun, BackendError, int, Buffer], Awaitable[None]],
        end: Callable[[], Awaitable[None]],
    ) -> None:
        self._queue, self._unflushed, self._counters = queue, unflushed, counters
        self._wrote, self._again, self._end = wrote, again, end
        self._kept_bytes = 0

    def has_room(self, length: int) -> bool:
        """Whether one of so many bytes may be acknowledged without a flush before."""
        return length + CHANGE_BYTES < self.room_bytes

    @property
    def room_bytes(self) -> int:
        """So much memory more for what is kept is too much without a flush before."""
        return self._unflushed.room_bytes - self._kept_bytes

    def begin(
        self, start: int, offset: int, data: Buffer, pieces: Pieces, written: Written, reply: Reply | None
    ) -> bool:
        """At byte `offset` of the device, `start` of its stack. As `Device.write_soon`."""
        kept_bytes, since_ns = len(data) + CHANGE_BYTES, None
        if reply is not None and reply.maker is not None:
            since_ns = reply.maker.since_ns  # and there was room when it was sent
        elif reply is not None and not self.has_room(len(data)):
            reply = None

        def heard(error: BackendError | None) -> None:
            self._kept_bytes -= kept_bytes
            if error is not None:
                written(partial(self._again, begun, error, offset, data))
                return
            try:
                self._wrote(start, data, begun.stack)
            except Exception as bug:
                self._queue.end(begun)
                written(partial(_meet, bug))
                return
            self._queue.end(begun)
            if self._unflushed.is_full and not (reply is not None and reply.is_left):
                written(self._end)
            else:
                self._counters.bio_out += 1
                written(None)

        if not self._queue.stack.write_soon(start, data, heard, reply, pieces):
            return False
        begun = self._queue.begin(Op.WRITE, len(data), since_ns=since_ns)
        self._kept_bytes += kept_bytes
        self._counters.bio_in += 1
        return True


async def _meet(bug: Exception) -> None:
    raise bug
