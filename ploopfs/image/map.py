"""The merged map of a whole stack: which level owns a cluster of the disk, and where it lies in that level's file.

Two flat arrays, so a lookup costs the same at depth 1 and at depth 100. Invariant: the highest level that has a cluster
owns it. Knows nothing of files.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ploopfs.bounds import MAX_DISK_CLUSTERS
from ploopfs.errors import BadValue
from ploopfs.image.bat import Bat

HOLE_LEVEL = 255
"""In the level array only: no level has this cluster. Plans say `Hole`."""
_HOLE = bytes([HOLE_LEVEL])
_WINDOW = 1 << 16


@dataclass(frozen=True, slots=True)
class RawLevel:
    """A raw base: cluster n of the disk is cluster n of the file, up to the file's end."""

    size_bytes: int


@dataclass(slots=True)
class Map:
    """`levels[slot]` and `clusters[slot]` describe cluster `slot` of the disk. `raw_size_bytes` bounds a raw level
    0. `present` counts the clusters that are no holes."""

    cluster_bytes: int
    top_level: int
    levels: bytearray
    clusters: "array[int]"
    raw_size_bytes: int | None
    present: int = field(init=False)

    def __post_init__(self) -> None:
        self.present = int(np.count_nonzero(np.frombuffer(self.levels, np.uint8) != HOLE_LEVEL))

    @classmethod
    def empty(cls, *, cluster_bytes: int, disk_clusters: int) -> "Map":
        """A disk without any delta: all holes. Raises BadValue for more clusters than a map in memory may have."""
        if disk_clusters > MAX_DISK_CLUSTERS:
            raise BadValue(
                f"a disk has {disk_clusters} clusters of {cluster_bytes} bytes, expected at most {MAX_DISK_CLUSTERS}"
            )
        levels = bytearray(_HOLE) * disk_clusters
        return cls(cluster_bytes, -1, levels, array("I", bytes(4 * disk_clusters)), None)

    def stacked(self, layer: Bat | RawLevel) -> "Map":
        """A new map with one more delta on top; this one is left alone, so a top can be exchanged over the same lower
        map.

        `layer` may be shorter than the disk (its delta is older than a grow) or longer (the disk keeps its size).
        """
        level = self.top_level + 1
        levels, clusters = bytearray(self.levels), array("I", self.clusters)
        level_view, cluster_view = np.frombuffer(levels, np.uint8), np.frombuffer(clusters, np.uint32)
        if isinstance(layer, RawLevel):
            count = min(len(levels), -(-layer.size_bytes // self.cluster_bytes))
            level_view[:count] = level
            cluster_view[:count] = np.arange(count, dtype=np.uint32)
            return Map(self.cluster_bytes, level, levels, clusters, layer.size_bytes)
        entries = layer.view()[: len(levels)]
        owned = entries != 0
        level_view[: len(entries)][owned] = level
        np.copyto(cluster_view[: len(entries)], entries, where=owned)
        return Map(self.cluster_bytes, level, levels, clusters, self.raw_size_bytes)

    def repointed(self, level: int, entries: Mapping[int, int]) -> "Map":
        """A copy in which clusters of the disk that this level owns lie elsewhere in its file (slot -> cluster); other
        slots of `entries` are as they were."""
        clusters = array("I", self.clusters)
        for slot, cluster in entries.items():
            if self.levels[slot] == level:
                clusters[slot] = cluster
        return Map(self.cluster_bytes, self.top_level, bytearray(self.levels), clusters, self.raw_size_bytes)

    def joined(self, other: "Map") -> "Map":
        """Who has a cluster in neither has a hole; `other` is as long, or longer."""
        mine, theirs = np.frombuffer(self.levels, np.uint8), np.frombuffer(other.levels, np.uint8)
        more = np.flatnonzero((mine != HOLE_LEVEL) & (theirs[: len(mine)] == HOLE_LEVEL))
        if not len(more):
            return other
        levels, clusters = bytearray(other.levels), array("I", other.clusters)
        np.frombuffer(levels, np.uint8)[more] = mine[more]
        np.frombuffer(clusters, np.uint32)[more] = np.frombuffer(self.clusters, np.uint32)[more]
        return Map(other.cluster_bytes, other.top_level, levels, clusters, other.raw_size_bytes)

    def owned_by(self, *levels: int) -> npt.NDArray[np.intp]:
        """The slots that one of these levels owns, ascending."""
        return np.flatnonzero(np.isin(np.frombuffer(self.levels, np.uint8), levels))

    def __len__(self) -> int:
        return len(self.levels)

    def owned_by_top(self, slot: int) -> bool:
        return self.levels[slot] == self.top_level

    def is_hole(self, slot: int) -> bool:
        return self.levels[slot] == HOLE_LEVEL

    def slots_of(self, level: int, clusters: range, among: range) -> list[int]:
        """Which of the slots `among` the level owns with one of these clusters of its file."""
        part = slice(among.start, among.stop)
        levels, numbers = np.frombuffer(self.levels, np.uint8)[part], np.frombuffer(self.clusters, np.uint32)[part]
        found = (levels == level) & (numbers >= clusters.start) & (numbers < clusters.stop)
        return [among.start + int(index) for index in np.flatnonzero(found)]

    def next_present(self, slot: int, end: int) -> int:
        """The first cluster from `slot` on, and before `end`, that is no hole; else `end`."""
        levels = np.frombuffer(self.levels, np.uint8)
        for start in range(slot, end, _WINDOW):
            present = levels[start : min(start + _WINDOW, end)] != HOLE_LEVEL
            first = int(present.argmax())
            if present[first]:
                return start + first
        return end

    def next_hole(self, slot: int, end: int) -> int:
        """The first hole from cluster `slot` on, and before `end`; else `end`."""
        found = self.levels.find(_HOLE, slot, end)
        return found if found >= 0 else end

    def assign(self, slot: int, cluster: int) -> None:
        """The top has written its own copy of a cluster."""
        self.present += self.levels[slot] == HOLE_LEVEL
        self.levels[slot] = self.top_level
        self.clusters[slot] = cluster

    def clear(self, slot: int) -> None:
        """The top has given a cluster back that no level below it has."""
        self.present -= self.levels[slot] != HOLE_LEVEL
        self.levels[slot] = HOLE_LEVEL
        self.clusters[slot] = 0
