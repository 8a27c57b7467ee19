"""The plan of a larger disk: what has to happen to a top image, in order, before its header may say so.

Pure, as image/plan.py, with the same invariant: a plan that is cut off anywhere leaves an image of the old size or of
the new one, with every cluster as it was. The map needs room: data clusters that lie where it grows to are copied away,
then named at their new places, and only when that is on stable storage the room is made zeroes; the header, one write
within a sector, is last."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ploopfs.errors import BadImage, BadValue
from ploopfs.image.allocator import Allocator
from ploopfs.image.bat import Bat
from ploopfs.image.header import Header
from ploopfs.image.plan import Barrier, CopyUp, Grow, Run, Scrub, Step, WriteMap

_CLUSTERS_LIMIT = 0xFFFFFFFF - 2
"""vz9's bound on the clusters of a grown disk; the last entry numbers mean something else inside the kernel."""


@dataclass(frozen=True, slots=True)
class WriteHeader:
    """The image has this header, on stable storage."""

    header: Header


GrowthStep = Step | WriteHeader


def grown_header(header: Header, size_sectors: int, path: str) -> Header:
    """The header for a disk of that size; the same one for the same size.

    Raises BadValue for what vz9's resize refuses, in its order (kernel-ploop.md 2.5), and for what the version cannot
    say; BadImage for a disk whose last cluster is not whole: what lies past its last whole cluster would be lost.
    """
    cluster_sectors = header.cluster_sectors
    now_sectors = header.disk_clusters * cluster_sectors
    check_growth(size_sectors, now_sectors=now_sectors, cluster_sectors=cluster_sectors)
    if size_sectors == now_sectors:
        return header
    if size_sectors > header.version.max_size_sectors:
        raise BadValue(
            f"size {size_sectors} sectors, expected at most {header.version.max_size_sectors} in a version "
            f"{header.version.number} image"
        )
    if header.size_sectors != now_sectors:
        raise BadImage(path, "m_SizeInSectors", header.size_sectors, f"a multiple of the cluster, {cluster_sectors}")
    return header.resized(size_sectors)


def check_growth(size_sectors: int, *, now_sectors: int, cluster_sectors: int) -> None:
    """Raises BadValue."""
    if size_sectors < now_sectors:
        raise BadValue(f"size {size_sectors} sectors, expected at least {now_sectors}: online shrink is not supported")
    if size_sectors // cluster_sectors >= _CLUSTERS_LIMIT:
        raise BadValue(f"size {size_sectors} sectors, expected fewer than {_CLUSTERS_LIMIT} clusters")
    if size_sectors != now_sectors and size_sectors % cluster_sectors:
        raise BadValue(f"size {size_sectors} sectors, expected a multiple of the cluster, {cluster_sectors} sectors")


def plan_growth(
    bat: Bat, allocator: Allocator, *, old: Header, new: Header, top_level: int, file_size: int
) -> tuple[GrowthStep, ...]:
    """The ordered steps; allocates the clusters that it names, and reserves the map's new room for good."""
    cluster_bytes = old.cluster_bytes
    entries = bat.view()
    in_the_way = np.flatnonzero((entries >= old.first_cluster) & (entries < new.first_cluster))
    allocator.reserve_below(new.first_cluster)
    steps: list[GrowthStep] = [Grow(new.bat_area_bytes)]
    moved: dict[int, int] = {}
    try:
        for slot in map(int, in_the_way):
            moved[slot], _may_hold_old_bytes = allocator.allocate()
    except BaseException:
        for cluster in moved.values():
            allocator.release(cluster)
        raise
    for slot, cluster in moved.items():
        source = Run(top_level, int(entries[slot]) * cluster_bytes, cluster_bytes)
        steps += [Grow((cluster + 1) * cluster_bytes), CopyUp(cluster * cluster_bytes, (source,), 0, 0, 0)]
    if moved:
        steps += [Barrier(), WriteMap(moved), Barrier()]
    steps += [Scrub(start, stop - start) for start, stop in _old_bytes(bat, old, new, file_size)]
    # Always: the header must not say that the file is longer than a power failure may leave it.
    return (*steps, Barrier(), WriteHeader(new))


def _old_bytes(bat: Bat, old: Header, new: Header, file_size: int) -> Iterator[tuple[int, int]]:
    """What must be zeroes because it becomes entries of the disk, cluster by cluster: what stands in today's map past
    the disk's end, and what lies where the map grows to."""
    start = bat.end_bytes if bat.has_leftovers else old.bat_area_bytes
    end = min(new.bat_area_bytes, file_size)
    while start < end:
        stop = min(end, start - start % old.cluster_bytes + old.cluster_bytes)
        yield start, stop
        start = stop
