"""What has to happen to an image so that it is sound: a plan of typed changes, in the order of their writing.

Pure. Invariants. No cluster that an entry of the disk names is ever written to, moved from under it, or given back. The
lowest slot that names a cluster keeps it; every other gets a copy of its own. What an entry names that cannot be read,
because it lies past the end of the file, inside header and map, or not at a cluster, is lost: that entry is cleared, as
`losses` counts. What no entry names is given back, but not together with a loss: it may be what a damaged entry meant,
and whoever does not want to look for it there repairs once more. Entries past the disk's end are nobody's data and go
where they break a rule.

The order, in which a repair that is cut off anywhere can be begun again: the mark is set; entries of the disk that are
to be cleared become such as no file makes right, since what lies past the end of the file today may be a copy tomorrow;
copies are written; then the entries that name them; then entries past the disk's end are cleared, which may be bytes of
a cluster that was copied; then leaks are given back; then the entries of the disk are cleared, so that whoever begins
again is told of the loss again; the mark is cleared last. Each waits until what came before is on stable storage.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from ploopfs.errors import ImageFull
from ploopfs.image.allocator import MAX_ENTRY
from ploopfs.image.bat import Entries
from ploopfs.image.header import BAT_ENTRY_BYTES, CLOSED, HEADER_BYTES, Header
from ploopfs.image.survey import Fault, Survey

HasData = Callable[[int, int], bool]
"""Whether a leak of these bytes of the file, from the first to before the second, is more than a hole already."""
_NO_ENTRIES = np.zeros(0, np.uint32)
_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class DropExtension:
    """The dirty bitmap is broken, or would not be true of the image any more."""

    why: str


@dataclass(frozen=True, slots=True)
class ExtendFile:
    """The last cluster is whole; what a growth did not write are zeroes."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class CopyCluster:
    """A slot gets a copy of its own of a cluster that it shares with another one, or that lies in front of the data."""

    slot: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class ClearEntry:
    """`value` is what the entry says, in units of the disk format; `lost`: it is of the disk, and its data are gone."""

    slot: int
    value: int
    fault: Fault
    lost: bool


@dataclass(frozen=True, slots=True)
class PunchLeak:
    """The clusters from `first` to before `end` become a hole: no entry names them."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class TrimFile:
    """No entry names anything behind."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class ClearMark:
    """When a second check has found nothing else."""


Change = DropExtension | ExtendFile | CopyCluster | ClearEntry | PunchLeak | TrimFile | ClearMark


def all_data(_start: int, _end: int) -> bool:
    """Where nobody knows of holes."""
    return True


@dataclass(slots=True)
class Plan:
    """`copied_slots[i]` gets `copies[i]` in the place of `originals[i]`, all in clusters. Slots ascend. `end_cluster`
    is where the file ends when all is done."""

    survey: Survey
    dropped_extension: str
    end_cluster: int
    copied_slots: Entries = field(default_factory=_NO_ENTRIES.copy)
    originals: Entries = field(default_factory=_NO_ENTRIES.copy)
    copies: Entries = field(default_factory=_NO_ENTRIES.copy)
    cleared_slots: Entries = field(default_factory=_NO_ENTRIES.copy)
    cleared_values: Entries = field(default_factory=_NO_ENTRIES.copy)
    punches: bool = True
    has_data: HasData = all_data

    @property
    def header(self) -> Header:
        return self.survey.header

    @property
    def closed_header(self) -> Header:
        """As the original writes it when it drops the mark."""
        return self.header.changed(in_use=CLOSED, flags=0, extension_sectors=0)

    @property
    def end_bytes(self) -> int:
        return self.end_cluster * self.header.cluster_bytes

    @property
    def is_marking(self) -> bool:
        """The mark is set meanwhile, and cleared last. What only gives leaks back, or makes the last cluster whole, can
        be cut off without it, and leaves a sound dirty bitmap alone."""
        return bool(
            self.header.is_marked_in_use or self.dropped_extension or len(self.copied_slots) or len(self.cleared_slots)
        )

    @property
    def losses(self) -> int:
        """Clusters of the disk whose data are gone: their entries are the first of those that are cleared."""
        return int(np.searchsorted(self.cleared_slots, self.header.disk_slots))

    @property
    def is_empty(self) -> bool:
        return next(self.changes(), None) is None

    @property
    def punched(self) -> Iterable[PunchLeak]:
        if not self.punches:
            return
        whole = self.survey.file_size_bytes // self.header.cluster_bytes
        for first, stop in self.survey.used.gaps(self.header.first_cluster, min(self.end_cluster, whole)):
            if self.has_data(first * self.header.cluster_bytes, stop * self.header.cluster_bytes):
                yield PunchLeak(first, stop)

    def changes(self) -> Iterator[Change]:
        """In their order. There may be as many as the file has clusters."""
        if self.dropped_extension:
            yield DropExtension(self.dropped_extension)
        yield from self._cleared(0, self.losses)
        if self.end_bytes > self.survey.file_size_bytes:
            yield ExtendFile(self.end_bytes)
        for slot, source, target in _rows(self.copied_slots, self.originals, self.copies):
            yield CopyCluster(slot, source, target)
        yield from self._cleared(self.losses, len(self.cleared_slots))
        yield from self.punched
        if self.end_bytes < self.survey.file_size_bytes:
            yield TrimFile(self.end_bytes)
        if self.is_marking:
            yield ClearMark()

    def count(self) -> int:
        """Of all changes, without making each."""
        others = (self.dropped_extension, self.end_bytes != self.survey.file_size_bytes, self.is_marking)
        entries = len(self.cleared_slots) + len(self.copied_slots)
        return entries + sum(map(bool, others)) + sum(1 for _hole in self.punched)

    def _cleared(self, start: int, end: int) -> Iterator[ClearEntry]:
        for slot, value in _rows(self.cleared_slots[start:end], self.cleared_values[start:end]):
            yield ClearEntry(slot, value, self._fault(slot, value), lost=slot < self.header.disk_slots)

    def _fault(self, slot: int, value: int) -> Fault:
        if slot >= self.header.disk_slots:
            return Fault.PAST_DISK
        if value % self.header.entry_unit:
            return Fault.MISALIGNED
        return Fault.IN_MAP if value // self.header.entry_unit < self.header.first_cluster else Fault.BEYOND_FILE


def plan_repair(
    survey: Survey,
    *,
    extension_problem: str = "",
    extension_clusters: Entries = _NO_ENTRIES,
    punches: bool = True,
    has_data: HasData = all_data,
) -> Plan:
    """The plan for an image whose whole map is in `survey`, which is given away: the plan changes it.

    `extension_clusters` belong to a sound format extension and are in `survey.used`; `extension_problem` says what is
    wrong with one that is not sound. Raises ImageFull if copies are needed that the map cannot name."""
    header, used, bad = survey.header, survey.used, survey.take_bad()
    clusters = bad.values // np.uint32(header.entry_unit)
    # What only an entry past the disk's end names is free.
    used.discard(clusters[bad.faults == Fault.PAST_DISK.bit])
    of_disk, is_copied = bad.slots < header.disk_slots, bad.faults & (Fault.IN_MAP.bit | Fault.TWICE.bit) != 0
    is_copied &= of_disk & (clusters >= _map_clusters(header))
    is_cleared = ~is_copied
    dropped = extension_problem
    if not dropped and len(extension_clusters) and len(bad.slots):
        dropped = "the map changes"
    if dropped:
        used.discard(extension_clusters)
    loses = bool((is_cleared & of_disk).any())
    copies = _free_clusters(survey, int(is_copied.sum()), reuse=not loses)
    used.add(copies[copies < survey.file_clusters])
    end = max(header.first_cluster, used.end, int(copies.max(initial=0)) + 1, survey.file_clusters if loses else 0)
    return Plan(
        survey,
        dropped,
        end,
        bad.slots[is_copied],
        clusters[is_copied],
        copies,
        bad.slots[is_cleared],
        bad.values[is_cleared],
        punches and not loses,
        has_data,
    )


def _rows(*columns: Entries) -> Iterator[tuple[int, ...]]:
    """As Python's numbers, a part at a time: all at once would be many."""
    for start in range(0, len(columns[0]), _ROWS):
        yield from zip(*(column[start : start + _ROWS].tolist() for column in columns), strict=True)


def _map_clusters(header: Header) -> int:
    """The clusters that header and the entries of the disk take. Between them and the first data cluster there may be
    more, where an entry of the disk can have data all the same."""
    return -(-(HEADER_BYTES + BAT_ENTRY_BYTES * header.disk_slots) // header.cluster_bytes)


def _free_clusters(survey: Survey, count: int, *, reuse: bool) -> Entries:
    """With `reuse` first those within the file that nobody names; then those behind its end."""
    header = survey.header
    found, filled = np.empty(count, np.uint32), 0
    limit = MAX_ENTRY // header.entry_unit + 1
    within = min(survey.file_clusters, limit) if reuse else header.first_cluster
    behind = max(survey.file_clusters, header.first_cluster)
    for first, stop in chain(survey.used.gaps(header.first_cluster, within), [(behind, limit)]):
        taken = max(0, min(stop - first, count - filled))
        found[filled : filled + taken] = np.arange(first, first + taken, dtype=np.uint32)
        filled += taken
        if filled == count:
            return found
    raise ImageFull(f"{count - filled} more clusters are needed for copies than the map can name")
