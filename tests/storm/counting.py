"""How many requests of each kind have ended, counted outside of the queue, and whether the device shows the same.

A request counts once, when it has ended in the storage: done, failed there, or refused by the stack; one that the gate
refused has not reached it. Knows nothing of how a queue counts.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

import trio

from ploopfs.device.queue import Begun, RequestQueue
from ploopfs.device.stats import SECTOR_BYTES, Op
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError, RequestFailed, TruncatedImage

T = TypeVar("T")

GIVES_UP: ContextVar[bool] = ContextVar("gives_up", default=False)
"""The user of this request does not wait for ever. What the storage has already cannot be called back."""

_COLUMNS = {"reads": 0, "read sectors": 2, "writes": 4, "written sectors": 6, "discards": 11, "discarded sectors": 13}
_FLUSHES = 15


class Counted:
    """Stands in the place of the `run` and the `run_again` of one queue."""

    def __init__(self, queue: RequestQueue) -> None:
        self.ios: Counter[Op] = Counter()
        self._bytes: Counter[Op] = Counter()
        self._run, self._run_again = queue.run, queue.run_again
        queue.run = self.run  # type: ignore[method-assign]
        queue.run_again = self.run_again  # type: ignore[method-assign]

    async def run(
        self, op: Op, length_bytes: int, work: Callable[[Stack], Awaitable[T]], *, may_be_held: bool = True
    ) -> T:
        watched = self._watched(op, length_bytes, work)
        return await self._ended(op, length_bytes, self._run(op, length_bytes, watched, may_be_held=may_be_held))

    async def run_again(self, begun: Begun, error: BackendError, work: Callable[[Stack], Awaitable[T]]) -> T:
        op, length_bytes = begun.op, begun.length_bytes
        again = self._run_again(begun, error, self._watched(op, length_bytes, work))
        return await self._ended(op, length_bytes, again)

    def _watched(
        self, op: Op, length_bytes: int, work: Callable[[Stack], Awaitable[T]]
    ) -> Callable[[Stack], Awaitable[T]]:
        async def watched(stack: Stack) -> T:
            try:
                with trio.CancelScope(shield=GIVES_UP.get()):
                    result = await work(stack)
            except (BackendError, TruncatedImage):
                raise  # it may be held, and tried again
            except BaseException:
                self._count(op, length_bytes)
                raise
            return result

        return watched

    async def _ended(self, op: Op, length_bytes: int, work: Awaitable[T]) -> T:
        try:
            result = await work
        except RequestFailed:
            self._count(op, length_bytes)
            raise
        self._count(op, length_bytes)
        return result

    def differs(self, stat: str) -> str:
        """Empty if the text of `stat` shows what was counted."""
        columns = [int(column) for column in stat.split()]
        counted: list[int] = []
        for op in (Op.READ, Op.WRITE, Op.DISCARD):
            counted += [self.ios[op], self._bytes[op] // SECTOR_BYTES]
        expected = {**dict(zip(_COLUMNS, counted, strict=True)), "flushes": self.ios[Op.FLUSH]}
        shown = {name: columns[column] for name, column in {**_COLUMNS, "flushes": _FLUSHES}.items()}
        return "" if shown == expected else f"stat shows {shown}, and {expected} have ended"

    def passed(self, op: Op, length_bytes: int) -> None:
        """One was answered without `run`."""
        self._count(op, length_bytes)

    def _count(self, op: Op, length_bytes: int) -> None:
        self.ios[op] += 1
        self._bytes[op] += length_bytes
