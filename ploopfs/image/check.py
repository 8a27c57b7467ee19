"""Is this image sound? The rules and verdicts of `ploop check -f -c -r` as vz7 has them (image-format.md 7).

Pure: it judges a header, the bytes of the BAT area and the file's size. Invariant: it reports, and never repairs.
"""

import errno
import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
import numpy.typing as npt

from ploopfs.errors import BadImage, ImageConverting, PloopError
from ploopfs.image.bat import decode_area
from ploopfs.image.header import BAT_ENTRY_BYTES, CLOSED, CLOSED_V21, HEADER_BYTES, SECTOR_BYTES, Header

EXTENSION_MAGIC: Final = 0xAB234CEF23DCEA87
DIRTY_BITMAP_MAGIC: Final = 0x20385FAE252CB34A
_EXTENSION_HEAD = struct.Struct("<Q16s")
_SECTION_HEAD = struct.Struct("<QQII")
_BITMAP_HEAD = struct.Struct("<Q16sII")


class Verdict(Enum):
    """The value is the original tool's exit code."""

    CLEAN = 0
    BROKEN = 11
    CONVERTING = 17
    NOT_CLOSED = 37


@dataclass(frozen=True, slots=True)
class Report:
    """`problems` are in the order of the rules; the first is the one to show."""

    verdict: Verdict
    problems: tuple[PloopError, ...] = ()


def check_image(header: Header, area: bytes, file_size_bytes: int, path: str, extension: bytes = b"") -> Report:
    """Judge one image.

    `area` is the file's start up to the first data cluster; `extension` the bytes of the format-extension cluster where
    `extension_offset_bytes` names one.
    """
    marked = header.is_marked_in_use
    fatal = list(_area_problems(header, area, path))
    if file_size_bytes % header.cluster_bytes and not marked:
        expected = f"a multiple of the cluster, {header.cluster_bytes} bytes"
        fatal.append(BadImage(path, "file size", f"{file_size_bytes} bytes", expected))
    if fatal:
        return Report(Verdict.BROKEN, tuple(fatal))
    if header.is_converting:
        return Report(Verdict.CONVERTING, (ImageConverting(f"{path}: a format conversion was interrupted"),))
    fatal += _entry_problems(header, area, file_size_bytes, path)
    fatal += _extension_problems(header, area, file_size_bytes, path, extension)
    if fatal:
        return Report(Verdict.BROKEN, tuple(fatal))
    if marked:
        return Report(Verdict.NOT_CLOSED)
    beyond = tuple(_beyond_disk(header, area, path))
    return Report(Verdict.BROKEN if beyond else Verdict.CLEAN, beyond)


def extension_offset_bytes(header: Header) -> int:
    """Where a valid format extension lies; 0 where there is none to look at."""
    return header.extension_sectors * SECTOR_BYTES if header.in_use == CLOSED_V21 else 0


def _area_problems(header: Header, area: bytes, path: str) -> Iterator[BadImage]:
    needed = HEADER_BYTES + BAT_ENTRY_BYTES * header.disk_clusters
    if header.disk_clusters == 0:
        yield BadImage(
            path, "m_SizeInSectors", header.size_sectors, f"at least one cluster of {header.cluster_sectors}"
        )
    if needed > header.bat_area_bytes:
        expected = f"at least {-(-needed // SECTOR_BYTES)} sectors, for the map of {header.disk_clusters} clusters"
        yield BadImage(path, "m_FirstBlockOffset", header.first_block_sectors, expected)
    elif len(area) < header.bat_area_bytes:
        expected = f"at least the header and map, {header.bat_area_bytes} bytes"
        yield BadImage(path, "file size", f"{len(area)} bytes", expected, mapped_errno=errno.ENODATA)


def _entry_problems(header: Header, area: bytes, file_size_bytes: int, path: str) -> Iterator[BadImage]:
    """The rules that vz7 calls hard: misaligned, beyond the end of the file, used twice or inside header and map."""
    entries = decode_area(area)
    slots = np.flatnonzero(entries)
    values = entries[slots].astype(np.int64)
    misaligned = values % header.entry_unit != 0
    clusters = values // header.entry_unit
    file_clusters = -(-file_size_bytes // header.cluster_bytes)
    beyond = clusters >= file_clusters
    in_header = clusters < header.first_cluster
    twice = _repeated(clusters)
    for rule, expected, mapped_errno in (
        (misaligned, f"a multiple of the cluster, {header.entry_unit} sectors", errno.EINVAL),
        (beyond, f"a cluster below the end of the file, cluster {file_clusters}", errno.EPROTO),
        (in_header, f"a data cluster, from {header.first_cluster} on", errno.EXDEV),
        (twice, "a cluster that no other entry uses", errno.EINVAL),
    ):
        for index in np.flatnonzero(rule)[:1]:
            entry, value = f"BAT entry {slots[index]}", int(values[index])
            yield BadImage(path, entry, value, expected, mapped_errno=mapped_errno)


def _repeated(clusters: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Marks each value that has stood before; one sort where, as nearly always, there is none."""
    twice = np.zeros(len(clusters), dtype=bool)
    order = np.argsort(clusters, kind="stable")
    twice[order[1:]] = np.diff(clusters[order]) == 0
    return twice


def _beyond_disk(header: Header, area: bytes, path: str) -> Iterator[BadImage]:
    """Entries past the disk's end. The original compares in 32 bits, so this never fires from 2 TiB on."""
    slots = np.flatnonzero(decode_area(area))
    starts = slots.astype(np.int64) * header.cluster_sectors & 0xFFFFFFFF
    for slot in slots[starts > header.size_sectors][:1]:
        yield BadImage(
            path, f"BAT entry {slot}", "set", f"0, past the end of a disk of {header.disk_clusters} clusters"
        )


def _extension_problems(
    header: Header, area: bytes, file_size_bytes: int, path: str, extension: bytes
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
    last = max(int(decode_area(area).max(initial=0)) // header.entry_unit, header.first_cluster - 1)
    yield from _section_problems(header, path, extension, last_data_cluster=last)


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
    while position + _SECTION_HEAD.size <= len(extension):
        magic, _flags, size, _unused = _SECTION_HEAD.unpack_from(extension, position)
        position += _SECTION_HEAD.size
        if magic == 0:
            break
        if position + size > len(extension):
            yield BadImage(path, f"extension section {magic:#x} size", size, "a section within its cluster")
            return
        if magic == DIRTY_BITMAP_MAGIC:
            section = extension[position : position + size]
            yield from _bitmap_problems(header, path, section, last_data_cluster=last_data_cluster)
        position += size
    if any(extension[position:]):
        yield BadImage(path, "format extension", "followed by data", "zeroes up to the end of its cluster")


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
    for index, sector in enumerate(struct.unpack_from(f"<{count}Q", section, _BITMAP_HEAD.size)):
        if sector in (0, 1):
            continue
        above_data = sector // header.cluster_sectors > last_data_cluster
        if sector % header.cluster_sectors or not above_data or sector >= header.extension_sectors:
            expected = "a cluster between the data and the extension"
            yield BadImage(path, f"dirty bitmap L1 entry {index}", sector, expected)
            return
