"""What the entries of one map say, taken in piece by piece: the clusters that they name, and those that break a rule.

Pure, and bounded: a bit for each cluster of the file, a few bytes for each bad entry, however large the map. Judges
nothing: image/check.py says what a fault means, image/repair.py what is done about it.
"""

from collections.abc import Iterator
from enum import Enum

import numpy as np
import numpy.typing as npt

from ploopfs.image.bat import Entries
from ploopfs.image.clusters import ClusterSet
from ploopfs.image.header import BAT_ENTRY_BYTES, HEADER_BYTES, Header

PIECE_BYTES = 1 << 20
_NEVER_ON_DISK = 0xFFFFFFFF
_Slots = npt.NDArray[np.int64]


class Fault(Enum):
    """In the order of the rules. The value is what `check` says of it."""

    MISALIGNED = "is not at a cluster"
    BEYOND_FILE = "lies past the end of the file"
    IN_MAP = "lies in header and map"
    TWICE = "is another entry's"
    PAST_DISK = "is past the end of the disk"


class Survey:
    """`first` has the first entry of each fault, `used` the clusters that the other entries name.

    An entry that is misaligned, beyond the file or in the map names no cluster, whatever else is wrong with it."""

    def __init__(self, header: Header, file_size_bytes: int) -> None:
        self.header = header
        self.file_size_bytes = file_size_bytes
        self.file_clusters = -(-file_size_bytes // header.cluster_bytes)
        # What the last number would name cannot be named, in whatever large a file.
        self._limit = min(self.file_clusters, _NEVER_ON_DISK)
        self.used = ClusterSet(self._limit)
        self.first: dict[Fault, tuple[int, int]] = {}
        self.faults: dict[Fault, list[tuple[_Slots, Entries]]] = {fault: [] for fault in Fault}
        self._slot = 0

    @property
    def leaked_clusters(self) -> int:
        """Of the file, behind the map: those that nobody names."""
        return max(0, self.file_clusters - self.header.first_cluster) - self.used.count

    def feed(self, entries: Entries) -> None:
        """The next entries of the map."""
        places = np.flatnonzero(entries)
        slots, values = places + self._slot, entries[places]
        self._slot += len(entries)
        if not len(slots):
            return
        unit = self.header.entry_unit
        clusters = values // np.uint32(unit) if unit > 1 else values
        misaligned = values % np.uint32(unit) != 0 if unit > 1 else np.zeros(len(values), dtype=bool)
        # Compared as wider numbers: a header may say more than an entry can.
        beyond = ~misaligned & (clusters.astype(np.int64) >= self._limit)
        in_map = ~misaligned & ~beyond & (clusters < self.header.first_cluster)
        names = ~(misaligned | beyond | in_map)
        twice = np.zeros(len(values), dtype=bool)
        twice[names] = self.used.add(clusters[names])
        for fault, mask in (
            (Fault.MISALIGNED, misaligned),
            (Fault.BEYOND_FILE, beyond),
            (Fault.IN_MAP, in_map),
            (Fault.TWICE, twice),
            (Fault.PAST_DISK, self._past_disk(slots)),
        ):
            self._note(fault, slots[mask], values[mask])

    def of(self, *faults: Fault) -> tuple[_Slots, Entries]:
        """The slots and values of all entries that have one of these faults, in the order of their slots; an entry that
        has two stands twice."""
        found = [pair for fault in faults for pair in self.faults[fault]]
        slots = np.concatenate([np.zeros(0, np.int64), *(slots for slots, _values in found)])
        values = np.concatenate([np.zeros(0, np.uint32), *(values for _slots, values in found)])
        order = np.argsort(slots, kind="stable")
        return slots[order], values[order]

    def _note(self, fault: Fault, slots: _Slots, values: Entries) -> None:
        if len(slots):
            self.first.setdefault(fault, (int(slots[0]), int(values[0])))
            self.faults[fault].append((slots, values))

    def _past_disk(self, slots: _Slots) -> npt.NDArray[np.bool_]:
        """The original compares in 32 bits, so this never fires from 2 TiB on."""
        if slots[-1] < self.header.disk_clusters:
            return np.zeros(len(slots), dtype=bool)
        starts: npt.NDArray[np.bool_] = (slots * self.header.cluster_sectors & 0xFFFFFFFF) > self.header.size_sectors
        return starts


def pieces(area_bytes: int) -> Iterator[tuple[int, int]]:
    """Offsets and lengths in which the entries of a map of that many bytes, header included, are to be read."""
    yield from (
        (start, min(PIECE_BYTES, area_bytes - start)) for start in range(HEADER_BYTES, area_bytes, PIECE_BYTES)
    )


def entries_of(piece: bytes | bytearray | memoryview) -> Entries:
    return np.frombuffer(piece, dtype="<u4", count=len(piece) // BAT_ENTRY_BYTES).astype(np.uint32, copy=False)
