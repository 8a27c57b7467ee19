"""Plans played out on files in memory, whole or cut off: what a step does to the file, and what a crash may leave."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from ploopfs.image.header import HEADER_BYTES, IN_USE, MIN_CLUSTER_SECTORS, SECTOR_BYTES, Header, Version
from ploopfs.image.plan import Barrier, CopyUp, EndBarrier, Grow, Hole, Run, Scrub, Segment, Step, Write

CLUSTER_BYTES = MIN_CLUSTER_SECTORS * SECTOR_BYTES


@dataclass(frozen=True)
class Patch:
    """One write that reaches the disk whole or not at all; a Grow is a patch of nothing at the new end."""

    offset: int
    content: bytes

    def apply(self, file: bytearray) -> None:
        file.extend(bytes(max(0, self.offset + len(self.content) - len(file))))
        file[self.offset : self.offset + len(self.content)] = self.content


def contents(files: Sequence[bytearray], segments: Iterable[Segment]) -> bytes:
    parts = []
    for segment in segments:
        match segment:
            case Hole(length):
                parts.append(bytes(length))
            case Run(level, offset, length):
                parts.append(bytes(files[level][offset : offset + length]))
                assert len(parts[-1]) == length, "a read past the end of a file"
    return b"".join(parts)


def patches(step: Step, data: bytes, files: Sequence[bytearray], cluster_bytes: int) -> list[Patch]:
    """What a data step does to the top file, cut where clusters meet."""
    match step:
        case Grow(size):
            return [Patch(size, b"")]
        case Scrub(offset, length):
            return [Patch(offset, bytes(length))]
        case CopyUp(offset, source, within, start, stop):
            cluster = contents(files, source)
            assert len(cluster) == cluster_bytes
            return [Patch(offset, cluster[:within] + data[start:stop] + cluster[within + stop - start :])]
        case Write(offset, start, stop):
            return [
                Patch(offset + max(edge, start) - start, data[max(edge, start) : min(stop, edge + cluster_bytes)])
                for edge in range(start - offset % cluster_bytes, stop, cluster_bytes)
            ]
    return []


def image_file(version: Version, disk_clusters: int, entries: dict[int, int], *, end: int, tag: int) -> bytearray:
    """An image marked in use whose file ends at cluster `end`; each cluster holds bytes that say whose it is."""
    size_sectors = disk_clusters * MIN_CLUSTER_SECTORS
    header = Header.new(size_sectors=size_sectors, cluster_sectors=MIN_CLUSTER_SECTORS, version=version)
    header = header.changed(in_use=IN_USE, flags=0, extension_sectors=0)
    file = bytearray(header.raw.ljust(header.bat_area_bytes, b"\0"))
    for slot, cluster in entries.items():
        position = HEADER_BYTES + 4 * slot
        file[position : position + 4] = (cluster * header.entry_unit).to_bytes(4, "little")
    for cluster in range(header.first_cluster, end):
        file += bytes([tag + cluster]) * CLUSTER_BYTES
    return file


AnyStep = TypeVar("AnyStep")


def crashes(
    file: bytes | bytearray, steps: Iterable[AnyStep], patches_of: Callable[[AnyStep], list[Patch]]
) -> Iterator[bytearray]:
    """What a crash may leave of a file: all that came before a barrier that was passed, any part of what was begun
    after it. A barrier for the end of the file is passed with nothing but the file's size."""
    certain = bytearray(file)
    begun: list[Patch] = []
    for step in (*steps, None):
        if isinstance(step, EndBarrier):
            certain.extend(bytes(max(0, step.size - len(certain))))
        if step is not None and not isinstance(step, Barrier):
            begun += patches_of(step)
            continue
        for survivors in parts(begun):
            left = bytearray(certain)
            for patch in survivors:
                patch.apply(left)
            yield left
        for patch in begun:
            patch.apply(certain)
        begun = []


def parts(patches: Sequence[Patch]) -> Iterator[Sequence[Patch]]:
    """Each part of a few patches; of many the prefixes, each alone, and all but each."""
    if len(patches) <= 4:
        for count in range(len(patches) + 1):
            yield from combinations(patches, count)
        return
    for index in range(len(patches)):
        yield patches[:index]
        yield patches[index : index + 1]
        yield (*patches[:index], *patches[index + 1 :])
    yield patches
