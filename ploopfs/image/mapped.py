"""Which images may form the ploop instance of a device-mapper table, in dm-ploop's order and with its errnos
(kernel-ploop.md 3.2).

Pure rules over headers, beside those that hold for every stack. Not mirrored: dm-ploop wants the in-use mark set by
who loads the table, and here the loader sets it. Every refusal names the file, the field, the value and what it has to
fit.
"""

import errno
from collections.abc import Sequence
from itertools import pairwise

from ploopfs.errors import BadImage, ImageRefused
from ploopfs.image.header import SECTOR_BYTES, V2, Header, first_block_sectors
from ploopfs.image.stacking import Layer

TOO_LONG = errno.EBADSLT


def refused(error: BadImage, *, is_top: bool) -> ImageRefused:
    """The same failure with the errno that dm-ploop has for it: an unknown signature is no image of its own at the top,
    and one that does not match below."""
    if error.field in ("m_Sig", "m_Type", "m_Sectors", "m_FirstBlockOffset") and not is_top:
        return ImageRefused(errno.EPROTO, str(error))
    if error.field == "m_Sig":
        return ImageRefused(errno.EOPNOTSUPP, str(error))
    return ImageRefused(error.mapped_errno, str(error))


def check_mapped(layers: Sequence[Layer], *, cluster_sectors: int, end_sectors: int) -> None:
    """`layers` is base first; the table reads the disk of the top up to `end_sectors`. Raises ImageRefused."""
    *lower, top = layers
    cluster_bytes = cluster_sectors * SECTOR_BYTES
    _check_top(top, cluster_sectors, end_sectors)
    _check_length(top, cluster_bytes)
    for layer in reversed(lower):
        if layer.header is not None and top.header is not None:
            _check_lower(layer.path, layer.header, top.header)
        _check_length(layer, cluster_bytes)
    for below, above in pairwise(layers):
        if below.header is not None and above.header is not None:
            _at_most(below.path, "m_Size", below.header.bat_entries, above.header.bat_entries, TOO_LONG)


def _check_top(top: Layer, cluster_sectors: int, end_sectors: int) -> None:
    if top.header is None:
        if top.file_size_bytes < end_sectors * SECTOR_BYTES:
            _refuse(top.path, "raw size", f"{top.file_size_bytes} bytes", f"{end_sectors} sectors at least", TOO_LONG)
        return
    header = top.header
    if header.version is not V2:
        _refuse(top.path, "m_Sig", f"version {header.version.number}", "version 2", errno.EOPNOTSUPP)
    if header.cluster_sectors != cluster_sectors:
        expected = f"{cluster_sectors}, as the table says"
        _refuse(top.path, "m_Sectors", header.cluster_sectors, expected, errno.EINVAL)
    _check_first_block(top.path, header, errno.EINVAL)
    if header.size_bytes < end_sectors * SECTOR_BYTES:
        expected = f"at least {end_sectors}, where the table ends"
        _refuse(top.path, "m_SizeInSectors", header.size_sectors, expected, TOO_LONG)


def _check_lower(path: str, header: Header, top: Header) -> None:
    if header.version is not top.version:
        expected = f"version {top.version.number}, as the top has"
        _refuse(path, "m_Sig", f"version {header.version.number}", expected, errno.EPROTO)
    if header.cluster_sectors != top.cluster_sectors:
        _refuse(path, "m_Sectors", header.cluster_sectors, f"{top.cluster_sectors}, as the top has", errno.EPROTO)
    _at_most(path, "m_Size", header.bat_entries, top.bat_entries, errno.EPROTO)
    _check_first_block(path, header, errno.EPROTO)


def _check_first_block(path: str, header: Header, number: int) -> None:
    """`custom FirstBlockOffset`, in the kernel's words."""
    computed = first_block_sectors(header.bat_entries, header.cluster_sectors)
    if header.first_block_sectors != computed:
        expected = f"{computed} for {header.bat_entries} entries"
        _refuse(path, "m_FirstBlockOffset", header.first_block_sectors, expected, number)


def _check_length(layer: Layer, cluster_bytes: int) -> None:
    if layer.file_size_bytes % cluster_bytes:
        expected = f"a multiple of the cluster, {cluster_bytes} bytes"
        _refuse(layer.path, "file size", f"{layer.file_size_bytes} bytes", expected, errno.EPROTO)


def _at_most(path: str, field: str, value: int, limit: int, number: int) -> None:
    if value > limit:
        _refuse(path, field, value, f"at most {limit}, as the delta above it has", number)


def _refuse(path: str, field: str, value: object, expected: str, number: int) -> None:
    raise ImageRefused(number, f"{path}: {field} is {value}, expected {expected}")
