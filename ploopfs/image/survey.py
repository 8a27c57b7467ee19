"""What the entries of one map say, taken in piece by piece: the clusters that they name, and those that break a rule.

Pure, and bounded: a bit for each cluster of the file, a few bytes for each bad entry, however large the map. Judges
nothing: image/check.py says what a fault means, image/repair.py what is done about it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from ploopfs.image.bat import Entries
from ploopfs.image.clusters import ClusterSet
from ploopfs.image.header import BAT_ENTRY_BYTES, HEADER_BYTES, Header

PIECE_BYTES = 1 << 20
NEVER_ON_DISK = 0xFFFFFFFF
"""Of an entry: it breaks a rule in whatever large a file, in either version of the format."""


class Fault(Enum):
    """In the order of the rules. The value is what `check` says of it. An entry has at most one of the first four,
    which the original calls hard, and may have the last one besides."""

    MISALIGNED = "is not at a cluster"
    BEYOND_FILE = "lies past the end of the file"
    IN_MAP = "lies in header and map"
    TWICE = "is another entry's"
    PAST_DISK = "is past the end of the disk"

    @property
    def bit(self) -> int:
        return 1 << list(Fault).index(self)


@dataclass(frozen=True, slots=True)
class BadEntries:
    """In the order of their slots; `faults` are the bits of each."""

    slots: Entries
    values: Entries
    faults: npt.NDArray[np.uint8]

    @classmethod
    def joined(cls, parts: "list[BadEntries]") -> "BadEntries":
        return cls(
            np.concatenate([np.zeros(0, np.uint32), *(part.slots for part in parts)]),
            np.concatenate([np.zeros(0, np.uint32), *(part.values for part in parts)]),
            np.concatenate([np.zeros(0, np.uint8), *(part.faults for part in parts)]),
        )


class Survey:
    """`first` has the first entry of each fault, `used` the clusters that the other entries name.

    An entry that is misaligned, beyond the file or in the map names no cluster, whatever else is wrong with it."""

    def __init__(self, header: Header, file_size_bytes: int) -> None:
        self.header = header
        self.file_size_bytes = file_size_bytes
        self.file_clusters = -(-file_size_bytes // header.cluster_bytes)
        # What the last number would name cannot be named, in whatever large a file.
        self._limit = min(self.file_clusters, NEVER_ON_DISK)
        self.used = ClusterSet(self._limit)
        self.first: dict[Fault, tuple[int, int]] = {}
        self._bad: list[BadEntries] = []
        self._slot = 0

    @property
    def leaked_clusters(self) -> int:
        """Of the file, behind the map: those that nobody names."""
        return max(0, self.file_clusters - self.header.first_cluster) - self.used.count

    def take_bad(self) -> BadEntries:
        """All entries that have a fault. Once: they may be many, and are not kept."""
        parts, self._bad = self._bad, []
        return BadEntries.joined(parts)

    def absolve(self, slots: Entries) -> None:
        """As if these entries, which name nothing, were 0, if they are all that have a fault."""
        bad = self.take_bad()
        if np.array_equal(bad.slots, slots):
            self.first.clear()

    def feed(self, entries: Entries) -> None:
        """The next entries of the map."""
        places = np.flatnonzero(entries != 0)  # of numbers it takes up to 16 times as long
        slots, values = (places + self._slot).astype(np.uint32), entries[places]
        self._slot += len(entries)
        if not len(slots):
            return
        unit = np.uint32(self.header.entry_unit)
        clusters = values // unit if unit > 1 else values
        misaligned = values % unit != 0 if unit > 1 else np.zeros(len(values), dtype=bool)
        # Compared as wider numbers: a header may say more than an entry can.
        beyond = ~misaligned & (clusters.astype(np.int64) >= self._limit)
        in_map = ~misaligned & ~beyond & (clusters.astype(np.int64) < self.header.first_cluster)
        names = ~(misaligned | beyond | in_map)
        twice = np.zeros(len(values), dtype=bool)
        twice[names] = self.used.add(clusters[names])
        faults = np.zeros(len(values), np.uint8)
        for fault, mask in (
            (Fault.MISALIGNED, misaligned),
            (Fault.BEYOND_FILE, beyond),
            (Fault.IN_MAP, in_map),
            (Fault.TWICE, twice),
            (Fault.PAST_DISK, self._past_disk(slots)),
        ):
            if mask.any():
                at = int(mask.argmax())
                self.first.setdefault(fault, (int(slots[at]), int(values[at])))
                faults[mask] |= np.uint8(fault.bit)
        bad = faults != 0
        if bad.any():
            self._bad.append(BadEntries(slots[bad], values[bad], faults[bad]))

    def _past_disk(self, slots: Entries) -> npt.NDArray[np.bool_]:
        """The original compares in 32 bits, so this never fires from 2 TiB on."""
        if slots[-1] < self.header.disk_clusters:
            return np.zeros(len(slots), dtype=bool)
        starts = slots.astype(np.int64) * self.header.cluster_sectors & 0xFFFFFFFF
        past: npt.NDArray[np.bool_] = starts > self.header.size_sectors
        return past


def pieces(area_bytes: int) -> Iterator[tuple[int, int]]:
    """Offsets and lengths in which the entries of a map of that many bytes, header included, are to be read."""
    yield from (
        (start, min(PIECE_BYTES, area_bytes - start)) for start in range(HEADER_BYTES, area_bytes, PIECE_BYTES)
    )


def entries_of(piece: bytes | bytearray | memoryview) -> Entries:
    return np.frombuffer(piece, dtype="<u4", count=len(piece) // BAT_ENTRY_BYTES).astype(np.uint32, copy=False)
