"""One run of a slow operation serves everybody who asked for it before it started.

Used for fsync (all flushes and barriers that wait become one) and for map pages (all entries that wait become one
write). Knows nothing of either. Invariant: a caller returns only after a run that started after its call has ended.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from ploopfs.errors import PloopError

T = TypeVar("T")


class _Round(Generic[T]):
    __slots__ = ("ended", "error", "items")

    def __init__(self) -> None:
        self.items: list[T] = []
        self.ended = False
        self.error: PloopError | None = None


class Combiner(Generic[T]):
    """`run(items)` gets the items of all callers of one round; its PloopError is raised in each of them."""

    def __init__(self, run: Callable[[list[T]], Awaitable[None]]) -> None:
        self._run = run
        self._running = trio.Lock()
        self._next: _Round[T] = _Round()
        self._callers = 0

    @property
    def is_idle(self) -> bool:
        """Nothing runs, and nobody waits for it to."""
        return not self._callers

    async def submit(self, item: T) -> None:
        self._callers += 1
        try:
            await self._submit(item)
        finally:
            self._callers -= 1

    async def _submit(self, item: T) -> None:
        mine = self._next
        mine.items.append(item)
        async with self._running:
            # A leader that was cancelled leaves its round unended: the next in line runs it.
            if not mine.ended:
                if self._next is mine:
                    self._next = _Round()
                try:
                    await self._run(mine.items)
                except PloopError as error:
                    mine.error = error
                mine.ended = True
        if mine.error is not None:
            raise mine.error
