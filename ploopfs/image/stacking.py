"""Which images may form one stack, and which may take the place of a top (image-format.md 5, kernel-ploop.md 2.1 and
3.2).

Pure rules over headers. Every refusal names the file, the field, the value and what it has to fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ploopfs.bounds import MAX_DELTAS
from ploopfs.errors import BadImage, ImageMismatch
from ploopfs.image.header import SECTOR_BYTES, Header


@dataclass(frozen=True, slots=True)
class Layer:
    """One image as the stack sees it; `header` is None for a raw base."""

    path: str
    header: Header | None
    file_size_bytes: int


def check_depth(paths: Sequence[str]) -> None:
    """`paths` is base first; asked before the first of them is opened. Raises ImageMismatch."""
    if not 1 <= len(paths) <= MAX_DELTAS:
        top = f"{paths[-1]}: " if paths else ""
        raise ImageMismatch(f"{top}a stack has {len(paths)} deltas, expected 1 to {MAX_DELTAS}")


def check_stack(layers: Sequence[Layer]) -> None:
    """`layers` is base first. Raises ImageMismatch or BadImage."""
    check_depth([layer.path for layer in layers])
    for layer in layers[1:]:
        if layer.header is None:
            raise ImageMismatch(f"{layer.path}: a raw image can only be the base of a stack")
    top = layers[-1]
    if top.header is None:
        if top.file_size_bytes < SECTOR_BYTES or top.file_size_bytes % SECTOR_BYTES:
            raise BadImage(top.path, "raw size", f"{top.file_size_bytes} bytes", f"a multiple of {SECTOR_BYTES}")
        return
    for lower in layers[:-1]:
        if lower.header is not None:
            _check_pair(lower.path, lower.header, top.path, top.header)
    for lower, upper in pairwise(layers):
        if (
            lower.header is not None
            and upper.header is not None
            and lower.header.size_sectors > upper.header.size_sectors
        ):
            expected = f"at most {upper.header.size_sectors}, as the delta above it ({upper.path}) has"
            raise BadImage(lower.path, "m_SizeInSectors", lower.header.size_sectors, expected)


def check_replacement(new: Layer, *, cluster_bytes: int, format_version: int, size_bytes: int, is_base: bool) -> None:
    """The checks of a replaced delta, in the kernel's order; the image itself has already been checked as an image."""
    if new.header is None:
        if not is_base:
            raise ImageMismatch(f"{new.path}: a raw image cannot be a delta above a base")
        if new.file_size_bytes < size_bytes:
            raise BadImage(
                new.path, "raw size", f"{new.file_size_bytes} bytes", f"at least the device, {size_bytes} bytes"
            )
        return
    if new.header.cluster_bytes != cluster_bytes:
        expected = f"{cluster_bytes // SECTOR_BYTES}, as the device has"
        raise BadImage(new.path, "m_Sectors", new.header.cluster_sectors, expected)
    if format_version and new.header.version.number != format_version:
        expected = f"version {format_version}, as the device has"
        raise BadImage(new.path, "m_Sig", f"version {new.header.version.number}", expected)
    if new.header.size_sectors % new.header.cluster_sectors or new.header.size_bytes < size_bytes:
        expected = f"at least {size_bytes // SECTOR_BYTES} (the device) and a multiple of {new.header.cluster_sectors}"
        raise BadImage(new.path, "m_SizeInSectors", new.header.size_sectors, expected)


def _check_pair(lower_path: str, lower: Header, top_path: str, top: Header) -> None:
    if lower.cluster_sectors != top.cluster_sectors:
        expected = f"{top.cluster_sectors}, as the top ({top_path}) has"
        raise BadImage(lower_path, "m_Sectors", lower.cluster_sectors, expected)
    if lower.version is not top.version:
        expected = f"version {top.version.number}, as the top ({top_path}) has"
        raise BadImage(lower_path, "m_Sig", f"version {lower.version.number}", expected)
