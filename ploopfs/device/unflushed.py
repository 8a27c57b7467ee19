"""Writes that were acknowledged and that no flush has confirmed yet: what a recovered image may have lost.

A storage that failed an fsync, or died, may have dropped what it took before, and answers a later fsync with success
(real-parts.md 2.1). So the data of such writes are kept, by reference, until a flush has succeeded, and are written
again to the stack that takes the place of a lost one. Knows nothing of the gate. Invariant: an entry goes only when a
flush that started after it has succeeded, or all go. Writes that overlap and were in flight together are kept in the
order of their acknowledgement, as nobody has promised another.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

from ploopfs.engine.stack import Stack

CHANGE_BYTES = 200
"""What an entry takes beside its data: a million discards without a flush must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Change:
    """One acknowledged write, or whole clusters that a discard made zero (`data` None): `length` bytes at `offset`."""

    offset: int
    length: int
    data: bytes | None


class Unflushed:
    """The changes since the last successful flush, in the order of their acknowledgement. `data_bytes` is the data of
    writes among them; at `limit_bytes` of memory a flush is due."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.data_bytes = 0
        self._changes: deque[Change] = deque()
        self._first_number = 0

    def __len__(self) -> int:
        return len(self._changes)

    @property
    def is_full(self) -> bool:
        return self.data_bytes + len(self._changes) * CHANGE_BYTES >= self.limit_bytes

    @property
    def end(self) -> int:
        """The first byte of the disk that lies past all of them."""
        return max((change.offset + change.length for change in self._changes), default=0)

    def wrote(self, offset: int, data: bytes) -> None:
        self._changes.append(Change(offset, len(data), data))
        self.data_bytes += len(data)

    def discarded(self, slots: Iterable[int], cluster_bytes: int) -> None:
        """Kept too, in its place among the writes: a write before it must not come back. Only what it has made zero: of
        a cluster that it left alone a later write may have made one that a replay would destroy."""
        for _, run in groupby(enumerate(slots), lambda each: each[1] - each[0]):
            first, *others = (slot for _, slot in run)
            self._changes.append(Change(first * cluster_bytes, (1 + len(others)) * cluster_bytes, None))

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

    def forget(self) -> None:
        self.flushed(self.mark())

    def slots(self, cluster_bytes: int) -> set[int]:
        """The clusters of the disk that a replay writes to."""
        return {
            slot
            for change in self._changes
            if change.data is not None
            for slot in range(change.offset // cluster_bytes, -(-(change.offset + change.length) // cluster_bytes))
        }

    async def replay(self, stack: Stack, progressed: Callable[[], None] = lambda: None) -> None:
        """Write all of it to `stack` and flush; `progressed` is called after each change. Raises what that raises, with
        nothing forgotten."""
        for change in tuple(self._changes):
            if change.data is None:
                await _make_zero(stack, change.offset, change.length)
            else:
                await stack.write(change.offset, change.data)
            progressed()
        if self._changes:
            await stack.flush()


async def _make_zero(stack: Stack, offset: int, length: int) -> None:
    """Whole clusters. What this top does not own cannot be discarded, and a lower delta may show through there."""
    discarded = set(await stack.discard(offset, length))
    size = stack.cluster_bytes
    for slot in range(offset // size, (offset + length) // size):
        if slot not in discarded:
            await stack.write(slot * size, bytes(size))
