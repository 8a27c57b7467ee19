"""A set of clusters of one file, one bit each: which are taken, and which lie free between them.

Memory is bounded by the clusters that a map can name (half a GiB), and what is never touched costs none. Knows nothing
of maps.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ploopfs.image.bat import Entries

_PIECE_BITS = 1 << 17


class ClusterSet:
    """Of clusters 0 to `limit` - 1. `end` is one more than the highest member, 0 if there is none."""

    __slots__ = ("_bits", "count", "end")

    def __init__(self, limit: int) -> None:
        self._bits = np.zeros(-(-limit // 8), np.uint8)
        self.count = 0
        self.end = 0

    def add(self, clusters: Entries) -> npt.NDArray[np.bool_]:
        """All are members now; marks those that were already, and all but the first of those that stand here twice."""
        ordered = np.sort(clusters)
        if not (ordered[1:] == ordered[:-1]).any() and not self.has(ordered).any():
            self._set(ordered)
            return np.zeros(len(clusters), dtype=bool)
        unique, first = np.unique(clusters, return_index=True)
        fresh = ~self.has(unique)
        twice = np.ones(len(clusters), dtype=bool)
        twice[first[fresh]] = False
        self._set(unique[fresh])
        return twice

    def discard(self, clusters: Entries) -> None:
        ordered = np.sort(clusters)
        once = ordered[np.diff(ordered, prepend=~ordered[:1]) != 0]  # np.unique hashes, and takes 300 times as long
        members = once[self.has(once)]
        if not len(members):
            return
        self.count -= len(members)
        places, bits = _by_byte(members)
        self._bits[places] &= ~bits
        self.end = self._end()

    def has(self, clusters: Entries) -> npt.NDArray[np.bool_]:
        marks = self._bits[clusters >> np.uint32(3)] >> (clusters & np.uint32(7)).astype(np.uint8)
        members: npt.NDArray[np.bool_] = (marks & np.uint8(1)).astype(bool)
        return members

    def gaps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The runs (first, end) of clusters from `start` to before `stop` that are no members, ascending."""
        known = max(start, min(stop, self.end))
        opened, before = start, 1
        for low in range(start, known, _PIECE_BITS):
            high = min(known, low + _PIECE_BITS)
            block = self._bits[low // 8 : -(-high // 8)]
            # Most of a sparse file, and of a full one.
            if block.min() == block.max() == 0xFF * before:
                continue
            bits = np.unpackbits(block, bitorder="little")[low % 8 :][: high - low]
            for edge in (np.flatnonzero(np.diff(bits, prepend=np.uint8(before))) + low).tolist():
                before ^= 1
                if before:
                    yield opened, edge
                opened = edge
        if before and known < stop:
            yield known, stop
        elif not before and opened < stop:
            yield opened, stop

    def _set(self, ordered: Entries) -> None:
        """`ordered` are no members yet, each stands once."""
        if len(ordered):
            places, bits = _by_byte(ordered)
            self._bits[places] |= bits
            self.count += len(ordered)
            self.end = max(self.end, int(ordered[-1]) + 1)

    def _end(self) -> int:
        for stop in range(-(-self.end // 8), 0, -_PIECE_BITS):
            start = max(0, stop - _PIECE_BITS)
            used = np.flatnonzero(self._bits[start:stop])
            if len(used):
                last = start + int(used[-1])
                return last * 8 + int(self._bits[last]).bit_length()
        return 0


def _by_byte(ordered: Entries) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    """The bytes that hold these bits, each once, with the bits in it."""
    places = ordered >> np.uint32(3)
    starts = np.flatnonzero(np.concatenate(([True], places[1:] != places[:-1])))
    bits = np.left_shift(np.uint8(1), (ordered & np.uint32(7)).astype(np.uint8))
    return places[starts], np.bitwise_or.reduceat(bits, starts)
