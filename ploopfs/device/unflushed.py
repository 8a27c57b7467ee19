"""Writes that were acknowledged and that no flush has confirmed yet: what a recovered image may have lost.

A storage that failed an fsync, or died, may have dropped what it took before, and answers a later fsync with success
(real-parts.md 2.1). So the data of such writes are kept, by reference, until a flush has succeeded, and are written
again to the stack that takes the place of a lost one. Knows nothing of the gate. Invariant: an entry goes only when a
flush that started after it has succeeded, or all go. Writes that overlap and were in flight together are kept in the
order of their acknowledgement, as nobody has promised another.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from ploopfs.device.signal import Signal
from ploopfs.engine.file import Buffer
from ploopfs.engine.left_to_loop import leave_to_loop
from ploopfs.engine.memory import expect
from ploopfs.engine.stack import Stack

_SLOTS_AT_ONCE = 1024
CHANGE_BYTES = 200
"""What an entry takes beside its data: a million discards without a flush must not fill the memory."""
WORTH_WRITEBACK_BYTES = 64 << 10
"""Of smaller writes, which lie anywhere, the storage makes the fewer requests the more of them come together: begun
early they cost 10 % of the CPU time of 4 KiB writes."""
_EXPECTED_PARTS = 64
"""Of the limit: who keeps one of them is expected to fill the others, too."""


class Change(NamedTuple):
    """One acknowledged write, or whole clusters that were made zero (`data` None): `length` bytes at `offset`."""

    offset: int
    length: int
    data: Buffer | None


Writes = Sequence[tuple[int, int, Buffer]]
"""As `Change` has them."""

_Changes = deque[tuple[int, int, Buffer | None]]
"""As `Change` has them. Not a list, which moves while it grows: 7 % of the time of a 4 KiB write at depth 16."""


class _Sealed(NamedTuple):
    """What came between two marks: it goes at once, not change by change."""

    changes: _Changes
    data_bytes: int
    memory_bytes: int


class Unflushed:
    """The changes since the last successful flush, in the order of their acknowledgement. `data_bytes` is the data of
    writes among them, `memory_bytes` what all of them take; at `limit_bytes` of that whoever writes waits for a flush.

    `due` fires when half of the limit is reached, where a flush ought to begin so that nobody has to wait: once, until
    less is kept or `tell_again` is called."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.due_bytes = limit_bytes // 2
        self.due = Signal()
        self.data_bytes = 0
        self.memory_bytes = 0
        self.times_given_up = 0
        self._is_expected = False
        self._look_at_bytes: float = limit_bytes // _EXPECTED_PARTS
        self._changes: _Changes = deque()
        self._sealed: deque[_Sealed] = deque()
        self._first_number = 0
        self._since_writeback = 0

    def __bool__(self) -> bool:
        return self.memory_bytes > 0

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Change]:
        for changes in (*(sealed.changes for sealed in self._sealed), self._changes):
            for each in changes:
                yield Change(*each)

    @property
    def is_full(self) -> bool:
        return self.memory_bytes >= self.limit_bytes

    @property
    def is_due(self) -> bool:
        return self.memory_bytes >= self.due_bytes

    @property
    def end(self) -> int:
        """The first byte of the disk that lies past all of them."""
        return max((change.offset + change.length for change in self), default=0)

    @property
    def room_bytes(self) -> int:
        """So much memory more makes it full."""
        return self.limit_bytes - self.memory_bytes

    def wrote(self, offset: int, data: Buffer) -> None:
        """Its owner leaves it as it is: no copy is made."""
        length = len(data)
        self.wrote_together(((offset, length, data),), length)

    def wrote_together(self, writes: Writes, data_bytes: int) -> None:
        """One after the other, so many bytes in all: they are large or small by what each has on average."""
        self._changes.extend(writes)
        self.data_bytes += data_bytes
        if data_bytes >= len(writes) * WORTH_WRITEBACK_BYTES:
            self._since_writeback += data_bytes
        self._took(data_bytes + len(writes) * CHANGE_BYTES)

    def take_writeback_turn(self) -> bool:
        """Once for each eighth of the limit in large writes: the flush that comes soon finds most of it written. 1 MiB
        writes, one after the other, wait half as long at worst (p99) for it."""
        is_due = self._since_writeback * 8 >= self.limit_bytes
        if is_due:
            self._since_writeback = 0
        return is_due

    def discarded(self, slots: Iterable[int], cluster_bytes: int) -> None:
        """Kept too, in its place among the writes: a write before it must not come back. Only what it has made zero: of
        a cluster that it left alone a later write may have made one that a replay would destroy."""
        for _, run in groupby(enumerate(slots), lambda each: each[1] - each[0]):
            first, *others = (slot for _, slot in run)
            self._made_zero(first * cluster_bytes, (1 + len(others)) * cluster_bytes)

    def zeroed(self, offset: int, length: int, cluster_bytes: int) -> None:
        """All of it, whatever it was: the whole clusters as if they were discarded, the edges as if they were
        written."""
        end = offset + length
        first, last = -(-offset // cluster_bytes) * cluster_bytes, end // cluster_bytes * cluster_bytes
        if first >= last:
            self.wrote(offset, bytes(length))
            return
        if offset < first:
            self.wrote(offset, bytes(first - offset))
        self._made_zero(first, last - first)
        if last < end:
            self.wrote(last, bytes(end - last))

    def _made_zero(self, offset: int, length: int) -> None:
        self._changes.append((offset, length, None))
        self._took(CHANGE_BYTES)

    def _took(self, memory_bytes: int) -> None:
        self.memory_bytes += memory_bytes
        if self.memory_bytes >= self._look_at_bytes:
            self._look()

    def _look(self) -> None:
        """Whether there is so much that somebody has to do something."""
        if not self._is_expected:
            self._is_expected = True
            expect(self.limit_bytes)
            self._look_at_bytes = self.due_bytes
        if self.is_due:
            self._look_at_bytes = math.inf
            leave_to_loop(self.due.fire)

    def tell_again(self) -> None:
        """Who was told can do nothing about it at present: the next change tells him again."""
        if self._is_expected:
            self._look_at_bytes = self.due_bytes

    def mark(self) -> int:
        """To be taken before a flush starts, and given to `flushed` when it has succeeded."""
        if self._changes:
            data_bytes = self.data_bytes - sum(sealed.data_bytes for sealed in self._sealed)
            memory_bytes = self.memory_bytes - sum(sealed.memory_bytes for sealed in self._sealed)
            self._sealed.append(_Sealed(self._changes, data_bytes, memory_bytes))
            self._changes = deque()
        return self._first_number + len(self._sealed)

    def flushed(self, mark: int) -> None:
        """Everything acknowledged before `mark` is on stable storage."""
        while self._first_number < mark:
            sealed = self._sealed.popleft()
            self._first_number += 1
            self.data_bytes -= sealed.data_bytes
            self.memory_bytes -= sealed.memory_bytes
        if not self.is_due:
            self.tell_again()

    def forget(self) -> None:
        self.flushed(self.mark())

    def give_up(self) -> None:
        """Somebody has decided that what a lost storage has not kept is lost."""
        self.forget()
        self.times_given_up += 1

    def slots(self, cluster_bytes: int) -> set[int]:
        """The clusters of the disk that a replay writes to."""
        return {
            slot
            for change in self
            if change.data is not None
            for slot in range(change.offset // cluster_bytes, -(-(change.offset + change.length) // cluster_bytes))
        }

    async def replay(self, stack: Stack, progressed: Callable[[], None] = lambda: None) -> None:
        """Write all of it to `stack` and flush; `progressed` is called after each change. Raises what that raises, with
        nothing forgotten."""
        # Somebody may forget them all meanwhile.
        changes, slots = tuple(self), self.slots(stack.cluster_bytes)
        for change in _last_changes(changes, sorted(slots), stack.cluster_bytes):
            if change.data is None:
                # May be a whole disk. What the top does not have may show through from a lower delta.
                piece = _SLOTS_AT_ONCE * stack.cluster_bytes
                for start in range(0, change.length, piece):
                    length = min(piece, change.length - start)
                    await stack.write_zeroes(change.offset + start, length, unmap=True)
                    progressed()
            else:
                await stack.write(change.offset, change.data)
                progressed()
        if changes:
            await stack.flush()


def _last_changes(changes: Sequence[Change], written: Sequence[int], cluster_bytes: int) -> Iterator[Change]:
    """Each byte once, as the last change left it; `written` are the clusters that writes touch. The storage may have
    lost nothing, and we may die or be stopped half-way: then no byte may have an older value than the storage had."""
    by_slot: dict[int, list[Change]] = {slot: [] for slot in written}
    for change in changes:
        start, stop = change.offset // cluster_bytes, -(-(change.offset + change.length) // cluster_bytes)
        touched = written[bisect_left(written, start) : bisect_left(written, stop)]
        for slot in touched:
            by_slot[slot].append(change)
        if change.data is None:
            edges = [start - 1, *touched, stop]
            for before, after in pairwise(edges):
                if after - before > 1:
                    yield Change((before + 1) * cluster_bytes, (after - before - 1) * cluster_bytes, None)
    for slot, touching in by_slot.items():
        yield from _last_of_slot(slot * cluster_bytes, touching, cluster_bytes)


def _last_of_slot(start: int, changes: Sequence[Change], cluster_bytes: int) -> Iterator[Change]:
    """`changes` touch the cluster of the disk that begins at `start`; a discard covers all of it."""
    if changes[-1].data is None:
        yield Change(start, cluster_bytes, None)
        return
    first = max(start, min(change.offset for change in changes))
    end = min(start + cluster_bytes, max(change.offset + change.length for change in changes))
    if len(changes) == 1:
        data, at = changes[0].data, changes[0].offset
        assert data is not None
        yield Change(first, end - first, data if end - first == len(data) else data[first - at : end - at])
        return
    content, is_changed = bytearray(end - first), bytearray(end - first)
    for change in changes:
        low, high = max(first, change.offset), min(end, change.offset + change.length)
        data = bytes(high - low) if change.data is None else change.data[low - change.offset : high - change.offset]
        content[low - first : high - first] = data
        is_changed[low - first : high - first] = b"\1" * (high - low)
    at = is_changed.find(1)
    while at >= 0:
        stop = is_changed.find(0, at)
        stop = stop if stop >= 0 else len(is_changed)
        yield Change(first + at, stop - at, bytes(content[at:stop]))
        at = is_changed.find(1, stop)
