"""Writes that were acknowledged and that no flush has confirmed yet: what a recovered image may have lost.

A storage that failed an fsync, or died, may have dropped what it took before, and answers a later fsync with success
(real-parts.md 2.1). So the data of such writes are kept, by reference, until a flush has succeeded, and are written
again to the stack that takes the place of a lost one. Knows nothing of the gate. Invariant: an entry goes only when a
flush that started after it has succeeded.
"""

from collections import deque
from dataclasses import dataclass

from ploopfs.engine.stack import Stack


@dataclass(frozen=True, slots=True)
class Change:
    """One acknowledged write, or a discard (`data` None) of `length` bytes at `offset`."""

    offset: int
    length: int
    data: bytes | None


class Unflushed:
    """The changes since the last successful flush, in the order of their acknowledgement. `data_bytes` is what they
    keep in memory; at `limit_bytes` a flush is due."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.data_bytes = 0
        self._changes: deque[Change] = deque()
        self._first_number = 0

    def __len__(self) -> int:
        return len(self._changes)

    @property
    def is_full(self) -> bool:
        return self.data_bytes >= self.limit_bytes

    def wrote(self, offset: int, data: bytes) -> None:
        self._changes.append(Change(offset, len(data), data))
        self.data_bytes += len(data)

    def discarded(self, offset: int, length: int) -> None:
        """Kept too, in its place among the writes: a write before it must not come back."""
        self._changes.append(Change(offset, length, None))

    def mark(self) -> int:
        """To be taken before a flush starts, and given to `flushed` when it has succeeded."""
        return self._first_number + len(self._changes)

    def flushed(self, mark: int) -> None:
        """Everything acknowledged before `mark` is on stable storage."""
        while self._first_number < mark:
            change = self._changes.popleft()
            self._first_number += 1
            if change.data is not None:
                self.data_bytes -= len(change.data)

    def slots(self, cluster_bytes: int) -> set[int]:
        """The clusters of the disk that a replay writes to."""
        return {
            slot
            for change in self._changes
            if change.data is not None
            for slot in range(change.offset // cluster_bytes, -(-(change.offset + change.length) // cluster_bytes))
        }

    async def replay(self, stack: Stack) -> None:
        """Write all of it to `stack` and flush. Raises what that raises, with nothing forgotten."""
        for change in tuple(self._changes):
            if change.data is None:
                await stack.discard(change.offset, change.length)
            else:
                await stack.write(change.offset, change.data)
        if self._changes:
            await stack.flush()
