"""What one disk may read as: every write that it was asked for, and which of them it has promised.

A write that was acknowledged hides what had ended before it began; writes that were in flight together may be in either
order, and one that failed may have happened or not. What a flush has confirmed is durable. What is not durable is a
promise only while nothing was lost that nobody had promised to write again. Knows nothing of images, stores or devices.
Invariant: what no promise is hidden behind any more is folded into `_base`, so that the writes stay few.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


@dataclass(eq=False, slots=True)
class Write:
    """`begun` and `ended` count all beginnings and ends of the model; `data` of a discard are zeroes, which may stay
    undone. `is_kept`: it is written again after an outage. `is_broken`: what it promised may be gone, and `is_gone`
    that nobody can promise it again."""

    offset: int
    data: Bytes
    begun: int
    is_discard: bool = False
    ended: float = math.inf
    is_acknowledged: bool = False
    is_durable: bool = False
    is_kept: bool = False
    is_broken: bool = False
    is_gone: bool = False

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


@dataclass(eq=False, slots=True)
class Mark:
    """When a read or a flush began, and how often reads could not be trusted until then."""

    begun: int
    was_in_doubt: bool
    doubts: int


class Model:
    """`in_doubt`: the store has lost something, and the device has not been recovered since; what is kept is not
    promised to be read before that."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self.in_doubt = False
        self.doubts = 0
        self._base: Bytes = np.frombuffer(content, np.uint8).copy()
        self._base_ended = np.zeros(self.size, np.int64)
        self._hidden_durably = np.zeros(self.size, np.int64)
        """What ended before this can come back never more."""
        self._writes: list[Write] = []
        self._clock = itertools.count(1)
        self._reads: dict[Mark, None] = {}

    def __len__(self) -> int:
        return len(self._writes)

    # --- what happens ---------------------------------------------------------------------------------------------

    def begin(self, offset: int, data: bytes, *, is_discard: bool = False) -> Write:
        write = Write(offset, np.frombuffer(data, np.uint8), next(self._clock), is_discard)
        self._writes.append(write)
        return write

    def acknowledge(self, write: Write, *, is_kept: bool) -> None:
        write.ended = next(self._clock)
        write.is_acknowledged, write.is_kept = True, is_kept
        if not is_kept:
            self.forget_kept()
            write.is_broken = self.in_doubt

    def fail(self, write: Write) -> None:
        write.ended = next(self._clock)

    def mark(self) -> Mark:
        return Mark(next(self._clock), self.in_doubt, self.doubts)

    @contextmanager
    def reading(self) -> Iterator[Mark]:
        """Inside, what could be read when it began is remembered."""
        mark = self.mark()
        self._reads[mark] = None
        try:
            yield mark
        finally:
            del self._reads[mark]

    def flushed(self, mark: Mark) -> None:
        """All that was acknowledged before `mark` is durable, though the store has lost something meanwhile."""
        for write in self._writes:
            if write.is_acknowledged and write.ended < mark.begun and not write.is_gone:
                write.is_durable, write.is_broken = True, False
        self._fold()

    def flushed_alone(self, write: Write) -> None:
        """A write that was acknowledged with FUA."""
        write.is_durable, write.is_broken = True, False

    def grow(self, size: int) -> None:
        """What is new reads as zeroes."""
        more = size - self.size
        self.size = size
        self._base = np.concatenate((self._base, np.zeros(more, np.uint8)))
        self._base_ended = np.concatenate((self._base_ended, np.zeros(more, np.int64)))
        self._hidden_durably = np.concatenate((self._hidden_durably, np.zeros(more, np.int64)))

    def forget_kept(self) -> None:
        """Nothing is written again any more. In doubt, that breaks what was promised."""
        for write in self._writes:
            write.is_kept = False
            if write.is_acknowledged and not write.is_durable and self.in_doubt:
                write.is_broken = True

    def lost(self) -> None:
        """The store may have forgotten what is not durable."""
        self.in_doubt = True
        self.doubts += 1
        for write in self._writes:
            if write.is_acknowledged and not write.is_durable and not write.is_kept:
                write.is_broken = True

    def recovered(self, *, is_sure: bool) -> None:
        """What is kept was written again, or flushed before the old stack went; `is_sure`: nothing was lost since."""
        for write in self._writes:
            if write.is_acknowledged and write.is_kept and not write.is_broken:
                write.is_durable = True
            write.is_gone |= write.is_broken
        if is_sure:
            self.in_doubt = False

    def restarted(self, *, lost_all: bool) -> None:
        """The daemon has ended, and what it kept with it; `lost_all`: the store has lost what was not durable, too."""
        for write in self._writes:
            if write.is_acknowledged and not write.is_durable and (lost_all or self.in_doubt):
                write.is_broken = write.is_gone = True
            write.is_kept = False
            write.ended = min(write.ended, next(self._clock))
        self.in_doubt = False

    # --- what may be read -----------------------------------------------------------------------------------------

    def differs(self, mark: Mark, offset: int, found: bytes) -> str:
        """Empty if `found`, read from `mark` on, is what the disk may have read as."""
        data = np.frombuffer(found, np.uint8)
        at = slice(offset, offset + len(data))
        hidden = self._hidden(mark, at)
        is_right = (data == self._base[at]) & (self._base_ended[at] >= hidden)
        for write in self._writes:
            start, stop = max(offset, write.offset), min(at.stop, write.end)
            if start < stop:
                here = slice(start - offset, stop - offset)
                same = data[here] == write.data[start - write.offset : stop - write.offset]
                is_right[here] |= same & (write.ended >= hidden[here])
        wrong = np.flatnonzero(~is_right)
        if not len(wrong):
            return ""
        first = int(wrong[0])
        return (
            f"{len(wrong)} bytes, first {offset + first}, last {offset + int(wrong[-1])}: found {found[first]:#x}; "
            + self._explained(offset + first)
        )

    def _hidden(self, mark: Mark, at: slice) -> npt.NDArray[np.int64]:
        """For each byte: what had ended before this may not be read. What is kept for a recovery counts once that has
        been."""
        hidden = self._hidden_durably[at].copy()
        doubted = mark.was_in_doubt or mark.doubts != self.doubts
        for write in self._writes:
            is_promised = write.is_acknowledged and not write.is_discard and not write.is_broken
            if is_promised and write.ended < mark.begun and (write.is_durable or not doubted):
                start, stop = max(at.start, write.offset), min(at.stop, write.end)
                if start < stop:
                    here = slice(start - at.start, stop - at.start)
                    np.maximum(hidden[here], write.begun, out=hidden[here])
        return hidden

    def _explained(self, byte: int) -> str:
        covering = [write for write in self._writes if write.offset <= byte < write.end]
        told = [
            f"[{write.begun}-{write.ended} {write.data[byte - write.offset]:#x}"
            f"{' acknowledged' * write.is_acknowledged}{' durable' * write.is_durable}{' kept' * write.is_kept}"
            f"{' broken' * write.is_broken}{' discard' * write.is_discard}]"
            for write in covering
        ]
        base = f"base {self._base[byte]:#x} of {self._base_ended[byte]}, durable from {self._hidden_durably[byte]}"
        return "; ".join([base, *told])

    def _fold(self) -> None:
        """A durable write that is alone becomes the base; what is hidden for good goes. Not yet what ended after a read
        began that is still under way."""
        oldest = min((mark.begun for mark in self._reads), default=math.inf)
        settled = {
            write for write in self._writes if write.is_durable and not write.is_discard and write.ended < oldest
        }
        for write in settled:
            at = slice(write.offset, write.end)
            np.maximum(self._hidden_durably[at], write.begun, out=self._hidden_durably[at])
        remaining = []
        for write in self._writes:
            at = slice(write.offset, write.end)
            lives = self._hidden_durably[at] <= write.ended
            if write in settled:
                alone = lives & (self._base_ended[at] < self._hidden_durably[at])
                self._base[at][alone] = write.data[alone]
                self._base_ended[at][alone] = int(write.ended)
                lives &= ~alone
            if lives.any():
                remaining.append(write)
        self._writes = remaining
