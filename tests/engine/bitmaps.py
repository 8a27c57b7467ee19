"""Images with a dirty bitmap in a format extension, laid out as image-format.md 4 has it and as QEMU reads it."""

import hashlib
import struct
from collections.abc import Sequence

from ploopfs.image.extension import DIRTY_BITMAP_MAGIC, EXTENSION_MAGIC
from ploopfs.image.header import CLOSED_V21, HEADER_BYTES, SECTOR_BYTES, Header

UUID = "262178fe-49d7-11e2-8e9a-525400123456"
_GRANULARITY_SECTORS = 128


def with_bitmap(data: bytes, bits: Sequence[bytes] = ()) -> bytes:
    """The image closed by v2.1 software: behind it the clusters of bits, then the extension. Without bits all is 0."""
    header = Header.parse(data, "image")
    cluster = header.cluster_bytes
    assert len(data) % cluster == 0
    first = len(data) // SECTOR_BYTES
    table = [first + at * header.cluster_sectors for at in range(len(bits))] or [0]
    bitmap = struct.pack(
        f"<Q16sII{len(table)}Q",
        header.size_sectors,
        bytes.fromhex(UUID.replace("-", "")),
        _GRANULARITY_SECTORS,
        len(table),
        *table,
    )
    body = (struct.pack("<QQII", DIRTY_BITMAP_MAGIC, 0, len(bitmap), 0) + bitmap).ljust(cluster - 24, b"\0")
    extension = struct.pack("<Q16s", EXTENSION_MAGIC, hashlib.md5(body, usedforsecurity=False).digest()) + body
    sectors = first + len(bits) * header.cluster_sectors
    closed = header.changed(in_use=CLOSED_V21, flags=header.flags, extension_sectors=sectors)
    return closed.raw + data[HEADER_BYTES:] + b"".join(one.ljust(cluster, b"\0") for one in bits) + extension
