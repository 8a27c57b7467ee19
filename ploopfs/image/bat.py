"""The block map (BAT) of one image: bytes to file-cluster numbers and back.

Entry n is a u32 at byte 64 + 4n of the file; 0 is "not in this delta". In memory a map counts clusters whatever the
version counts on disk, so v1 and v2 differ only here. Knows nothing of stacks."""

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

import numpy as np
import numpy.typing as npt

from ploopfs.bounds import MAX_MAP_BYTES
from ploopfs.errors import BadImage
from ploopfs.image.header import BAT_ENTRY_BYTES, HEADER_BYTES, SECTOR_BYTES, Header

Entries = npt.NDArray[np.uint32]
Area = bytes | bytearray | memoryview
"""A file's start, up to its first data cluster: header and map."""

PAGE_BYTES = 4096
"""The BAT is written in pages of this size, as the kernel does; the first one shares its page with the header."""
_SLOT_OF_FIRST_ENTRY = HEADER_BYTES // BAT_ENTRY_BYTES
_ENTRIES_PER_PAGE = PAGE_BYTES // BAT_ENTRY_BYTES
_ENTRY = Struct("<I")


@dataclass(frozen=True, slots=True)
class PageWrite:
    """`data` belongs at byte `offset` of the file."""

    offset: int
    data: bytes


def decode_area(area: Area) -> Entries:
    """All entries of the BAT area (bytes 0 up to the first data cluster), in the units of the disk format."""
    return np.frombuffer(area, dtype="<u4", offset=HEADER_BYTES)


class Bat:
    """The map of one delta: `clusters[slot]` is a file cluster number, 0 where this delta has nothing.

    Entries past the end of the disk are legal leftovers (of a shrunk disk, say): nobody reads through them, but the
    clusters that they name stay taken."""

    __slots__ = ("_past_end", "_unit", "clusters")

    def __init__(self, header: Header, area: Area) -> None:
        """`area` has passed the check, so every entry is a whole number of units."""
        self._unit = header.entry_unit
        numbers = decode_area(area).astype(np.uint32, copy=False)
        if self._unit > 1:
            numbers = numbers // np.uint32(self._unit)
        self.clusters = array("I", numbers[: header.disk_clusters].tobytes())
        past_end = numbers[header.disk_clusters :]
        self._past_end: Entries = past_end[past_end != 0]

    def view(self) -> Entries:
        """The same memory as a numpy array."""
        return np.frombuffer(self.clusters, dtype=np.uint32)

    def used(self) -> Entries:
        """Every file cluster that an entry names, in no order."""
        entries = self.view()
        return np.concatenate((entries[entries != 0], self._past_end))

    @property
    def end_bytes(self) -> int:
        """Where in the file the entries of the disk end."""
        return HEADER_BYTES + len(self.clusters) * BAT_ENTRY_BYTES

    @property
    def has_leftovers(self) -> bool:
        """Whether entries stand past the end of the disk."""
        return bool(len(self._past_end))

    def extend(self, disk_clusters: int) -> None:
        """The disk has grown, and what stood past its end is gone from the file."""
        self.clusters = self.clusters + array("I", bytes(BAT_ENTRY_BYTES * (disk_clusters - len(self.clusters))))
        self._past_end = self._past_end[:0]

    def entry(self, slot: int, cluster: int) -> tuple[int, bytes]:
        """Where in the file it stands, and its bytes."""
        return HEADER_BYTES + slot * BAT_ENTRY_BYTES, _ENTRY.pack(cluster * self._unit)

    def pages(self, changes: dict[int, int]) -> Iterable[PageWrite]:
        """The pages that carry `changes` (slot -> cluster), with every other entry as it is now."""
        by_page: dict[int, list[int]] = {}
        for slot in changes:
            by_page.setdefault((slot + _SLOT_OF_FIRST_ENTRY) // _ENTRIES_PER_PAGE, []).append(slot)
        for page, slots in sorted(by_page.items()):
            first = max(0, page * _ENTRIES_PER_PAGE - _SLOT_OF_FIRST_ENTRY)
            end = min(len(self.clusters), (page + 1) * _ENTRIES_PER_PAGE - _SLOT_OF_FIRST_ENTRY)
            entries = self.clusters[first:end]
            for slot in slots:
                entries[slot - first] = changes[slot]
            yield PageWrite(HEADER_BYTES + first * BAT_ENTRY_BYTES, self._encode(entries))

    def _encode(self, clusters: "array[int]") -> bytes:
        entries = np.frombuffer(clusters, dtype=np.uint32) * np.uint32(self._unit)
        return entries.astype("<u4").tobytes()


assert array("I").itemsize == BAT_ENTRY_BYTES, f"an unsigned int has {array('I').itemsize} bytes on {sys.platform}"


def check_map_size(header: Header, path: str) -> None:
    """Raise BadImage for a map that is too large to be read into memory."""
    if header.bat_area_bytes > MAX_MAP_BYTES:
        sectors = MAX_MAP_BYTES // SECTOR_BYTES
        raise BadImage(path, "m_FirstBlockOffset", header.first_block_sectors, f"a map of at most {sectors} sectors")
