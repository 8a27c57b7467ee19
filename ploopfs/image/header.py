"""The 64-byte image header, both versions (image-format.md 2).

Knows nothing of files. A header keeps the bytes it was read from, so that changing a field never disturbs the others.
"""

import errno
import struct
from dataclasses import dataclass
from typing import Self

from ploopfs.errors import BadImage

SECTOR_BYTES = 512
HEADER_BYTES = 64
BAT_ENTRY_BYTES = 4
IMAGE_TYPE_EXPANDING = 2
MIN_CLUSTER_SECTORS = 64
MAX_CLUSTER_SECTORS = 131072
DEFAULT_CLUSTER_SECTORS = 2048

IN_USE = 0x746F6E59
"""m_DiskInUse of an image that is open for writing, or was not closed. No other value counts as dirty."""
CLOSED = 0
CLOSED_V21 = 0x312E3276
"""Closed by software that knows the format extension, which is valid then and only then."""

FLAG_EMPTY = 1
FLAG_CONVERTING = 2

_LAYOUT = struct.Struct("<16sIIIIIQIIIQ")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ENTRIES_OFFSET = 32
_SIZE_OFFSET = 36
_IN_USE_OFFSET = 44
_FIRST_BLOCK_OFFSET = 48
_FLAGS_OFFSET = 52
_EXTENSION_OFFSET = 56
assert _LAYOUT.size == HEADER_BYTES

MUTABLE_START = _IN_USE_OFFSET
"""Bytes from here to the end of the header are all that opening and closing ever changes."""


@dataclass(frozen=True, slots=True)
class Version:
    """v1 and v2 differ in the signature, the unit of a BAT entry and the width of the size."""

    number: int
    signature: bytes
    max_size_sectors: int
    entry_counts_sectors: bool

    def entry_unit(self, cluster_sectors: int) -> int:
        """What a BAT entry grows by from one file cluster to the next."""
        return cluster_sectors if self.entry_counts_sectors else 1


V1 = Version(1, b"WithoutFreeSpace", 0xFFFFFFFF, entry_counts_sectors=True)
V2 = Version(2, b"WithouFreSpacExt", 0xFFFFFFFF * MAX_CLUSTER_SECTORS, entry_counts_sectors=False)
VERSIONS = {version.number: version for version in (V1, V2)}
_BY_SIGNATURE = {version.signature: version for version in (V1, V2)}


@dataclass(frozen=True, slots=True)
class Header:
    """Sizes are in sectors where the name says so; `raw` is the 64 bytes that this header stands for."""

    version: Version
    heads: int
    cylinders: int
    cluster_sectors: int
    bat_entries: int
    size_sectors: int
    in_use: int
    first_block_sectors: int
    flags: int
    extension_sectors: int
    raw: bytes

    @classmethod
    def parse(cls, data: bytes, path: str) -> Self:
        """Read a header; raises BadImage for what no reader accepts (image-format.md 7.1, step 3)."""
        if len(data) < HEADER_BYTES:
            expected = f"at least a header of {HEADER_BYTES} bytes"
            raise BadImage(path, "file size", f"{len(data)} bytes", expected, mapped_errno=errno.ENODATA)
        raw = bytes(data[:HEADER_BYTES])
        signature, kind, heads, cylinders, cluster, entries, size, in_use, first, flags, extension = _LAYOUT.unpack(raw)
        version = _BY_SIGNATURE.get(signature)
        if version is None:
            expected = " or ".join(repr(known.signature.decode()) for known in (V1, V2))
            raise BadImage(path, "m_Sig", repr(signature), expected)
        if kind != IMAGE_TYPE_EXPANDING:
            raise BadImage(path, "m_Type", kind, str(IMAGE_TYPE_EXPANDING))
        if not is_valid_cluster_size(cluster):
            raise BadImage(
                path,
                "m_Sectors",
                cluster,
                f"a power of two from {MIN_CLUSTER_SECTORS} to {MAX_CLUSTER_SECTORS} sectors per cluster",
            )
        if first == 0 or first % cluster:
            raise BadImage(path, "m_FirstBlockOffset", first, f"a non-zero multiple of the cluster, {cluster} sectors")
        if version is V1:
            (size,) = _U32.unpack_from(raw, _SIZE_OFFSET)
        return cls(version, heads, cylinders, cluster, entries, size, in_use, first, flags, extension, raw)

    @classmethod
    def new(cls, *, size_sectors: int, cluster_sectors: int, version: Version, path: str = "new image") -> Self:
        """The header that the original tools write for a fresh image (image-format.md 2.5); the size is rounded up."""
        if not is_valid_cluster_size(cluster_sectors):
            raise BadImage(
                path,
                "cluster size",
                f"{cluster_sectors} sectors",
                f"a power of two from {MIN_CLUSTER_SECTORS} to {MAX_CLUSTER_SECTORS}",
            )
        size_sectors = -(-size_sectors // cluster_sectors) * cluster_sectors
        limit = min(version.max_size_sectors, 0xFFFFFFFF * cluster_sectors)
        if not 0 < size_sectors <= limit:
            raise BadImage(path, "size", f"{size_sectors} sectors", f"1 to {limit} in a version {version.number} image")
        entries = size_sectors // cluster_sectors
        first = first_block_sectors(entries, cluster_sectors)
        heads, cylinders = geometry(size_sectors)
        # Informational, so a disk too large for the field is no error: the field has the low half.
        cylinders &= 0xFFFFFFFF
        raw = _LAYOUT.pack(
            version.signature,
            IMAGE_TYPE_EXPANDING,
            heads,
            cylinders,
            cluster_sectors,
            entries,
            size_sectors,
            CLOSED,
            first,
            FLAG_EMPTY,
            0,
        )
        return cls.parse(raw, path)

    @property
    def cluster_bytes(self) -> int:
        return self.cluster_sectors * SECTOR_BYTES

    @property
    def disk_clusters(self) -> int:
        """Clusters of the disk: the size rounded down, whatever m_Size says (image-format.md 10)."""
        return self.size_sectors // self.cluster_sectors

    @property
    def disk_slots(self) -> int:
        """Entries that are somebody's data: one more than the clusters of the disk where QEMU has made a disk that ends
        inside a cluster (2.6). It reads that end, and the original's tools and we do not."""
        return -(-self.size_sectors // self.cluster_sectors)

    @property
    def size_bytes(self) -> int:
        return self.disk_clusters * self.cluster_bytes

    @property
    def first_cluster(self) -> int:
        """Number of the first data cluster in the file; the header and the BAT fill those before it."""
        return self.first_block_sectors // self.cluster_sectors

    @property
    def bat_area_bytes(self) -> int:
        return self.first_block_sectors * SECTOR_BYTES

    @property
    def entry_unit(self) -> int:
        return self.version.entry_unit(self.cluster_sectors)

    @property
    def is_marked_in_use(self) -> bool:
        return self.in_use == IN_USE

    @property
    def is_converting(self) -> bool:
        return self.is_marked_in_use and bool(self.flags & FLAG_CONVERTING)

    def changed(self, *, in_use: int, flags: int, extension_sectors: int) -> "Header":
        """The same image with other open/close fields; every other byte as it was read."""
        raw = bytearray(self.raw)
        _U32.pack_into(raw, _IN_USE_OFFSET, in_use)
        _U32.pack_into(raw, _FLAGS_OFFSET, flags)
        _U64.pack_into(raw, _EXTENSION_OFFSET, extension_sectors)
        return type(self).parse(bytes(raw), "header")

    def resized(self, size_sectors: int) -> "Header":
        """The same image for a larger disk of whole clusters: the three fields that vz9's resize writes
        (kernel-ploop.md 2.5), every other byte as it was read. Data never move down: too large an area stays."""
        raw = bytearray(self.raw)
        entries = size_sectors // self.cluster_sectors
        _U32.pack_into(raw, _ENTRIES_OFFSET, entries)
        (_U32 if self.version is V1 else _U64).pack_into(raw, _SIZE_OFFSET, size_sectors)
        first = max(self.first_block_sectors, first_block_sectors(entries, self.cluster_sectors))
        _U32.pack_into(raw, _FIRST_BLOCK_OFFSET, first)
        return type(self).parse(bytes(raw), "header")

    def marked_in_use(self) -> "Header":
        """As written before the first change; CIF_Empty goes, because nobody may trust it from here on (2.4)."""
        return self.changed(in_use=IN_USE, flags=self.flags & ~FLAG_EMPTY, extension_sectors=self.extension_sectors)


def is_valid_cluster_size(cluster_sectors: int) -> bool:
    in_range = MIN_CLUSTER_SECTORS <= cluster_sectors <= MAX_CLUSTER_SECTORS
    return in_range and cluster_sectors & (cluster_sectors - 1) == 0


def first_block_sectors(bat_entries: int, cluster_sectors: int) -> int:
    """Where data starts: header and BAT, rounded up to a whole cluster."""
    cluster_bytes = cluster_sectors * SECTOR_BYTES
    area_bytes = HEADER_BYTES + BAT_ENTRY_BYTES * bat_entries
    return -(-area_bytes // cluster_bytes) * cluster_sectors


def geometry(size_sectors: int) -> tuple[int, int]:
    """(heads, cylinders) as the original tools compute them; informational (image-format.md 2.5)."""
    if 1032192 < size_sectors < 16777216:
        return 16, size_sectors // (63 * 16)
    for sectors in (63, 32, 16, 8):
        if size_sectors % sectors == 0:
            tracks = size_sectors // sectors
            for heads in (16, 8, 4, 2):
                if tracks % heads == 0:
                    return heads, tracks // heads
            break
    return 1, size_sectors
