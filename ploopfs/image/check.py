"""Is this image sound? The rules and verdicts of `ploop check` as vz7 has them (image-format.md 7).

Pure: it judges a header, a survey of the map, and the file's size. Invariant: it reports, and never repairs.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from ploopfs.errors import BadImage, ImageConverting, PloopError
from ploopfs.image.bat import Area
from ploopfs.image.extension import extension_problems
from ploopfs.image.header import BAT_ENTRY_BYTES, HEADER_BYTES, SECTOR_BYTES, Header
from ploopfs.image.survey import Fault, Survey, entries_of, pieces


class Verdict(Enum):
    """The value is the original tool's exit code."""

    CLEAN = 0
    BROKEN = 11
    CONVERTING = 17
    NOT_CLOSED = 37


@dataclass(frozen=True, slots=True)
class Mode:
    """The original's options: -f looks at closed images too, -c at who shares a cluster, -r changes nothing, -F (which
    means -f) mends what is found, so that it no longer counts."""

    force: bool = False
    clusters: bool = False
    read_only: bool = False
    mend: bool = False


FULL = Mode(force=True, clusters=True, read_only=True)
MODES = {
    "check": Mode(),
    "check -f": Mode(force=True),
    "check -f -c -r": FULL,
    "check -F -c": Mode(force=True, clusters=True, mend=True),
}


@dataclass(frozen=True, slots=True)
class Report:
    """`problems` are in the order of the rules; the first is the one to show."""

    verdict: Verdict
    problems: tuple[PloopError, ...] = ()


def check_image(
    header: Header, area: Area, file_size_bytes: int, path: str, extension: bytes = b"", *, mode: Mode = FULL
) -> Report:
    """Judge one image.

    `area` is the file's start up to the first data cluster; `extension` the bytes of the format-extension cluster where
    `extension_offset_bytes` names one.
    """
    return judge(surveyed(header, area, file_size_bytes), path, extension, mode=mode)


def surveyed(header: Header, area: Area, file_size_bytes: int) -> Survey:
    """A map that is not all there is not taken in, and the file is as short as that map."""
    if len(area) < header.bat_area_bytes:
        return Survey(header, min(len(area), file_size_bytes))
    survey, view = Survey(header, file_size_bytes), memoryview(area)
    for offset, length in pieces(header.bat_area_bytes):
        survey.feed(entries_of(view[offset : offset + length]))
    return survey


def judge(survey: Survey, path: str, extension: bytes, *, mode: Mode = FULL) -> Report:
    """`survey` has been fed the whole map, unless `area_problems` has something to say."""
    header, marked = survey.header, survey.header.is_marked_in_use
    fatal = list(area_problems(header, survey.file_size_bytes, path))
    # vz7 lets the file be extended only where it may write.
    if survey.file_size_bytes % header.cluster_bytes and not marked and not (mode.force and not mode.read_only):
        expected = f"a multiple of the cluster, {header.cluster_bytes} bytes"
        fatal.append(BadImage(path, "file size", f"{survey.file_size_bytes} bytes", expected))
    if fatal:
        return Report(Verdict.BROKEN, tuple(fatal))
    if not marked and not mode.force:
        return Report(Verdict.CLEAN)
    if header.is_converting:
        return Report(Verdict.CONVERTING, (ImageConverting(f"{path}: a format conversion was interrupted"),))
    if not mode.mend:
        fatal += _entry_problems(survey, path, clusters=mode.clusters)
        last = max(survey.used.end, header.first_cluster) - 1
        fatal += extension_problems(header, survey.file_size_bytes, path, extension, last_data_cluster=last)
    if fatal:
        return Report(Verdict.BROKEN, tuple(fatal))
    if marked:
        return Report(Verdict.NOT_CLOSED)
    if mode.read_only and Fault.PAST_DISK in survey.first:
        slot, _value = survey.first[Fault.PAST_DISK]
        expected = f"0, past the end of a disk of {header.disk_clusters} clusters"
        return Report(Verdict.BROKEN, (BadImage(path, f"BAT entry {slot}", "set", expected),))
    return Report(Verdict.CLEAN)


def area_problems(header: Header, file_size_bytes: int, path: str) -> Iterator[BadImage]:
    """What makes a map unreadable."""
    needed = HEADER_BYTES + BAT_ENTRY_BYTES * header.disk_clusters
    if header.disk_clusters == 0:
        yield BadImage(
            path, "m_SizeInSectors", header.size_sectors, f"at least one cluster of {header.cluster_sectors}"
        )
    if needed > header.bat_area_bytes:
        expected = f"at least {-(-needed // SECTOR_BYTES)} sectors, for the map of {header.disk_clusters} clusters"
        yield BadImage(path, "m_FirstBlockOffset", header.first_block_sectors, expected)
    elif file_size_bytes < header.bat_area_bytes:
        expected = f"at least the header and map, {header.bat_area_bytes} bytes"
        yield BadImage(path, "file size", f"{file_size_bytes} bytes", expected, mapped_errno=errno.ENODATA)


def _entry_problems(survey: Survey, path: str, *, clusters: bool) -> Iterator[BadImage]:
    """The rules that vz7 calls hard: misaligned, beyond the end of the file, used twice or inside header and map."""
    header = survey.header
    for fault, expected, mapped_errno in (
        (Fault.MISALIGNED, f"a multiple of the cluster, {header.entry_unit} sectors", errno.EINVAL),
        (Fault.BEYOND_FILE, f"a cluster below the end of the file, cluster {survey.file_clusters}", errno.EPROTO),
        (Fault.IN_MAP, f"a data cluster, from {header.first_cluster} on", errno.EXDEV),
        (Fault.TWICE, "a cluster that no other entry uses", errno.EINVAL),
    ):
        if fault not in survey.first or (fault in (Fault.IN_MAP, Fault.TWICE) and not clusters):
            continue
        slot, value = survey.first[fault]
        yield BadImage(path, f"BAT entry {slot}", value, expected, mapped_errno=mapped_errno)
