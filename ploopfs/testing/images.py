"""Images built in memory, cluster by cluster, for tests.

Knows the format through ploopfs.image only. `ImageBuilder(...).build()` gives the bytes of one image file.
"""

import struct
from dataclasses import dataclass, field

from ploopfs.image.header import CLOSED, HEADER_BYTES, MIN_CLUSTER_SECTORS, SECTOR_BYTES, V2, Header, Version


@dataclass(slots=True)
class ImageBuilder:
    """`clusters` maps a cluster of the disk to its content (padded with zeroes); they go into the file in that
    order."""

    disk_clusters: int = 4
    cluster_sectors: int = MIN_CLUSTER_SECTORS
    version: Version = V2
    clusters: dict[int, bytes] = field(default_factory=dict)
    in_use: int = CLOSED

    @property
    def cluster_bytes(self) -> int:
        return self.cluster_sectors * SECTOR_BYTES

    def build(self) -> bytes:
        header = Header.new(
            size_sectors=self.disk_clusters * self.cluster_sectors,
            cluster_sectors=self.cluster_sectors,
            version=self.version,
        )
        header = header.changed(in_use=self.in_use, flags=0 if self.clusters else header.flags, extension_sectors=0)
        image = bytearray(header.first_block_sectors * SECTOR_BYTES)
        image[:HEADER_BYTES] = header.raw
        for slot, content in self.clusters.items():
            entry = len(image) // self.cluster_bytes * header.entry_unit
            struct.pack_into("<I", image, HEADER_BYTES + 4 * slot, entry)
            image += content.ljust(self.cluster_bytes, b"\0")
        return bytes(image)
