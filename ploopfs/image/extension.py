"""The format extension and the dirty bitmap in it (image-format.md 4): where they lie, and vz7's check of them.

Pure. Invariant: an extension exists only in an image that was closed by v2.1 software; in any other it is absent,
whatever the header still says.
"""

import hashlib
import struct
from collections.abc import Iterator
from typing import Final

from ploopfs.errors import BadImage
from ploopfs.image.header import CLOSED, CLOSED_V21, SECTOR_BYTES, Header

EXTENSION_MAGIC: Final = 0xAB234CEF23DCEA87
DIRTY_BITMAP_MAGIC: Final = 0x20385FAE252CB34A
_EXTENSION_HEAD = struct.Struct("<Q16s")
_SECTION_HEAD = struct.Struct("<QQII")
_BITMAP_HEAD = struct.Struct("<Q16sII")


def extension_offset_bytes(header: Header) -> int:
    """Where a valid format extension lies; 0 where there is none to look at."""
    return header.extension_sectors * SECTOR_BYTES if header.in_use == CLOSED_V21 else 0


def extension_clusters(header: Header, extension: bytes) -> Iterator[int]:
    """The clusters of the file that a sound extension takes: those of its bitmaps, and its own."""
    if not extension:
        return
    yield header.extension_sectors // header.cluster_sectors
    for magic, _position, section in _sections(extension):
        if magic == DIRTY_BITMAP_MAGIC:
            yield from (sector // header.cluster_sectors for sector in _table(section) if sector not in (0, 1))


def extension_problems(
    header: Header, file_size_bytes: int, path: str, extension: bytes, *, last_data_cluster: int
) -> Iterator[BadImage]:
    """vz7's check of the format extension; it is looked at unless it is absent or the image was closed by v2.0
    software."""
    if header.extension_sectors == 0 or header.in_use == CLOSED:
        return
    if header.in_use != CLOSED_V21:
        expected = f"{CLOSED_V21:#x}, as m_FormatExtensionOffset is {header.extension_sectors}"
        yield BadImage(path, "m_DiskInUse", f"{header.in_use:#x}", expected)
        return
    offset = header.extension_sectors * SECTOR_BYTES
    if header.extension_sectors % header.cluster_sectors or offset + header.cluster_bytes > file_size_bytes:
        expected = f"a whole cluster within the file of {file_size_bytes} bytes"
        yield BadImage(path, "m_FormatExtensionOffset", header.extension_sectors, expected)
        return
    yield from _section_problems(header, path, extension, last_data_cluster=last_data_cluster)


def _section_problems(header: Header, path: str, extension: bytes, *, last_data_cluster: int) -> Iterator[BadImage]:
    magic, digest = _EXTENSION_HEAD.unpack_from(extension)
    if magic != EXTENSION_MAGIC:
        yield BadImage(path, "format extension magic", f"{magic:#x}", f"{EXTENSION_MAGIC:#x}")
        return
    actual = hashlib.md5(extension[_EXTENSION_HEAD.size :], usedforsecurity=False).digest()
    if digest != actual:
        yield BadImage(path, "format extension MD5", digest.hex(), actual.hex())
        return
    position = _EXTENSION_HEAD.size
    for magic, start, section in _sections(extension):
        position = start
        if magic == 0:
            break
        (size,) = struct.unpack_from("<I", extension, start - _SECTION_HEAD.size + 16)
        if start + size > len(extension):
            yield BadImage(path, f"extension section {magic:#x} size", size, "a section within its cluster")
            return
        if magic == DIRTY_BITMAP_MAGIC:
            yield from _bitmap_problems(header, path, section, last_data_cluster=last_data_cluster)
        position = start + size
    if any(extension[position:]):
        yield BadImage(path, "format extension", "followed by data", "zeroes up to the end of its cluster")


def _sections(extension: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(magic, where its data starts, its data) of each section, up to and with the terminator, whose magic is 0."""
    position, magic = _EXTENSION_HEAD.size, -1
    while magic and position + _SECTION_HEAD.size <= len(extension):
        magic, _flags, size, _unused = _SECTION_HEAD.unpack_from(extension, position)
        position += _SECTION_HEAD.size
        yield magic, position, extension[position : position + size]
        position += size


def _table(section: bytes) -> tuple[int, ...]:
    """A dirty bitmap's L1 table, in sectors."""
    *_, count = _BITMAP_HEAD.unpack_from(section)
    return struct.unpack_from(f"<{count}Q", section, _BITMAP_HEAD.size)


def _bitmap_problems(header: Header, path: str, section: bytes, *, last_data_cluster: int) -> Iterator[BadImage]:
    if len(section) < _BITMAP_HEAD.size:
        yield BadImage(path, "dirty bitmap size", len(section), f"at least {_BITMAP_HEAD.size} bytes")
        return
    size_sectors, _uuid, _granularity, count = _BITMAP_HEAD.unpack_from(section)
    if size_sectors != header.size_sectors:
        yield BadImage(path, "dirty bitmap m_Size", size_sectors, f"{header.size_sectors} sectors, as the disk")
    if _BITMAP_HEAD.size + 8 * count > len(section):
        yield BadImage(path, "dirty bitmap m_L1Size", count, f"a table within the section of {len(section)} bytes")
        return
    for index, sector in enumerate(_table(section)):
        if sector in (0, 1):
            continue
        above_data = sector // header.cluster_sectors > last_data_cluster
        if sector % header.cluster_sectors or not above_data or sector >= header.extension_sectors:
            expected = "a cluster between the data and the extension"
            yield BadImage(path, f"dirty bitmap L1 entry {index}", sector, expected)
            return
