"""Which clusters of one file were written since they were last asked about: vz9's tracking (kernel-ploop.md 2.5).

Pure. A cluster is a number of the file, not of the disk; those of header and map are among them, so that a copy which
follows the answers is the file."""

import numpy as np

from ploopfs.image.bat import Entries


class Tracker:
    """One byte per cluster: finding the next marked one is a search for a byte."""

    __slots__ = ("_cluster_bytes", "_marks", "_next")

    def __init__(self, used: Entries, *, first_cluster: int, cluster_bytes: int) -> None:
        """What is used counts as written: header and map, before `first_cluster`, and the `used` clusters."""
        marks = np.zeros(max(first_cluster, int(used.max(initial=0)) + 1), np.uint8)
        marks[:first_cluster] = 1
        marks[used] = 1
        self._marks = bytearray(marks.tobytes())
        self._cluster_bytes = cluster_bytes
        self._next = 0

    def mark(self, offset: int, length: int) -> None:
        """These bytes of the file have been written, or may have been."""
        first, end = offset // self._cluster_bytes, -(-(offset + length) // self._cluster_bytes)
        self._marks.extend(bytes(max(0, end - len(self._marks))))
        self._marks[first:end] = b"\1" * (end - first)

    def next(self) -> int | None:
        """A marked cluster, whose mark goes: the next one after the last answer, and at the end from the start."""
        found = self._marks.find(1, self._next)
        if found < 0:
            found = self._marks.find(1, 0, self._next)
        if found < 0:
            return None
        self._marks[found] = 0
        self._next = found + 1
        return found
