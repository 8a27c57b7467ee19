"""Which clusters of the top file are free: first fit from the lowest number, then the end of the file.

Pure. Two rules keep other people's data out of a new cluster. A cluster below the file's end may hold old bytes, so
the plan scrubs it before use. A freed cluster is handed out again only after `release`, which its caller calls when
the map entry that named it is gone from stable storage and no request that might still use it is in flight."""

import heapq
from collections import deque
from collections.abc import Iterator

import numpy as np

from ploopfs.errors import ImageFull
from ploopfs.image.bat import Entries

MAX_ENTRY = 0xFFFFFFFE
"""0xFFFFFFFF means "known empty" inside the kernel and never stands on disk."""


class Allocator:
    """Clusters of one file. Gaps are kept as ranges: a hostile sparse file costs no more memory than its map."""

    __slots__ = ("_gaps", "_limit", "_next", "_released")

    def __init__(self, used: Entries, *, first_cluster: int, file_clusters: int, entry_unit: int) -> None:
        """`used` holds the file clusters that the map names. Others inside the file are free."""
        self._limit = MAX_ENTRY // entry_unit
        # Not made unique: what stands twice opens no gap, and np.unique, which hashes, took 1 s of a million, not 4 ms.
        taken = np.sort(used)
        # A file may be longer than its map can name; what lies beyond is no gap.
        end = min(max(file_clusters, first_cluster), self._limit + 1)
        self._gaps = deque(_gaps(taken, first_cluster, end))
        self._released: list[int] = []
        self._next = end

    @property
    def end_cluster(self) -> int:
        """The first cluster that was never part of the file or handed out, as far as the map can name one."""
        return self._next

    def allocate(self) -> tuple[int, bool]:
        """(cluster, may hold old bytes). Raises ImageFull when the map cannot name another cluster."""
        if self._released and (not self._gaps or self._released[0] < self._gaps[0][0]):
            return heapq.heappop(self._released), True
        if self._gaps:
            start, stop = self._gaps.popleft()
            if start + 1 < stop:
                self._gaps.appendleft((start + 1, stop))
            return start, True
        if self._next > self._limit:
            raise ImageFull(f"the map cannot name a cluster above {self._limit}")
        self._next += 1
        return self._next - 1, False

    def clean(self, end_cluster: int) -> range:
        """What `allocate` would answer, one time after the other, as far as that lies before `end_cluster` and never
        held anything."""
        if self._released or self._gaps:
            return range(0)
        return range(self._next, max(self._next, min(end_cluster, self._limit + 1)))

    def take_clean(self, count: int) -> None:
        """The first ones that were `clean`."""
        self._next += count

    def reserve_below(self, cluster: int) -> None:
        """Nothing below is handed out any more: the map of the file grows to there."""
        self._gaps = deque((max(start, cluster), stop) for start, stop in self._gaps if stop > cluster)
        self._released = sorted(released for released in self._released if released >= cluster)
        self._next = max(self._next, min(cluster, self._limit + 1))

    def release(self, cluster: int) -> None:
        heapq.heappush(self._released, cluster)


def _gaps(taken: Entries, first: int, end: int) -> Iterator[tuple[int, int]]:
    """What lies before, between and behind the numbers, which ascend; each with its end."""
    if not len(taken):
        yield from ((first, end),) if first < end else ()
        return
    if first < taken[0]:
        yield first, int(taken[0])
    for at in np.flatnonzero(np.diff(taken) > 1):
        yield int(taken[at]) + 1, int(taken[at + 1])
    if int(taken[-1]) + 1 < end:
        yield int(taken[-1]) + 1, end
