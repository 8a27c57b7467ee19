"""The plan of a request: what a read or a write has to do, in order, before anything is done.

Pure: a map and a range in, steps out; an executor is then an interpreter of a few lines. Invariant of every write
plan: a map entry comes after a barrier that comes after all bytes of its cluster, or else names a cluster that reads as
zeroes whatever of them arrives, as that of the disk did before; so a plan cut off anywhere leaves each sector of the
disk as it was or as it should become. All offsets and lengths are bytes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ploopfs.image.allocator import Allocator
from ploopfs.image.map import HOLE_LEVEL, Map

# --- reads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hole:
    """No level has these bytes: zeroes."""

    length: int


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes that lie together in the file of one level."""

    level: int
    offset: int
    length: int


Segment = Hole | Run


def plan_read(stack_map: Map, offset: int, length: int) -> list[Segment]:
    """Segments that together are exactly `length` bytes; neighbours that lie together are one segment."""
    cluster_bytes = stack_map.cluster_bytes
    slot, within = divmod(offset, cluster_bytes)
    if within + length <= cluster_bytes:
        # One cluster: nearly every request. The general loop gives the same at three times the cost.
        return list(_cluster_segments(stack_map, slot, within, length))
    segments: list[Segment] = []
    while length:
        part = min(length, cluster_bytes - within)
        for segment in _cluster_segments(stack_map, slot, within, part):
            _append(segments, segment)
        slot, within, length = slot + 1, 0, length - part
    return segments


def place(stack_map: Map, offset: int, length: int) -> tuple[int, int] | None:
    """The level, and where in its file, of bytes that all lie in one cluster of one level: what `plan_read` says of
    them in a Run, at a third of its cost. None for all others, and where a raw base may end."""
    slot, within = divmod(offset, stack_map.cluster_bytes)
    if within + length > stack_map.cluster_bytes:
        return None
    level = stack_map.levels[slot]
    if level == HOLE_LEVEL or (level == 0 and stack_map.raw_size_bytes is not None):
        return None
    return level, stack_map.clusters[slot] * stack_map.cluster_bytes + within


def _cluster_segments(stack_map: Map, slot: int, within: int, length: int) -> tuple[Segment, ...]:
    level = stack_map.levels[slot]
    if level == HOLE_LEVEL:
        return (Hole(length),)
    offset = stack_map.clusters[slot] * stack_map.cluster_bytes + within
    if level == 0 and stack_map.raw_size_bytes is not None and offset + length > stack_map.raw_size_bytes:
        # A raw base may end inside its last cluster; what is past its end was never there.
        present = max(0, stack_map.raw_size_bytes - offset)
        return (Run(0, offset, present), Hole(length - present)) if present else (Hole(length),)
    return (Run(level, offset, length),)


def _append(segments: list[Segment], segment: Segment) -> None:
    match segments[-1] if segments else None, segment:
        case Hole(before), Hole(length):
            segments[-1] = Hole(before + length)
        case Run(level, offset, before), Run(same_level, next_offset, length) if (
            level == same_level and offset + before == next_offset
        ):
            segments[-1] = Run(level, offset, before + length)
        case _:
            segments.append(segment)


# --- writes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grow:
    """The top file has at least `size` bytes, so that it always ends with a whole cluster."""

    size: int


@dataclass(frozen=True, slots=True)
class Scrub:
    """These bytes of the top file, left over from somebody else, read as zeroes from here on."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes `start` to `stop` of the request go to `offset` of the top file."""

    offset: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class CopyUp:
    """A whole cluster of a lower level, with bytes `start` to `stop` of the request laid over it at `within`, goes to
    `offset`."""

    offset: int
    source: tuple[Segment, ...]
    within: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """Everything before is on stable storage before anything after is written."""


@dataclass(frozen=True, slots=True)
class EndBarrier:
    """That the file has at least `size` bytes is on stable storage before anything after is written, so that the map
    never names what lies past the end."""

    size: int


@dataclass(frozen=True, slots=True)
class WriteMap:
    """The top's map names these clusters (slot -> cluster of the top file), which read as zeroes whatever of them
    arrives, or else are all there."""

    entries: dict[int, int]
    are_zeroes: bool = False


Step = Grow | Scrub | Write | CopyUp | Barrier | EndBarrier | WriteMap


@dataclass(frozen=True, slots=True)
class WritePlan:
    """`zero_clusters` counts clusters that nobody has and that stay so, because only zeroes were written to them."""

    steps: tuple[Step, ...]
    zero_clusters: int = 0

    @property
    def new_clusters(self) -> dict[int, int]:
        """slot -> cluster of everything that this plan allocates."""
        return {
            slot: cluster for step in self.steps if isinstance(step, WriteMap) for slot, cluster in step.entries.items()
        }


def slots_to_allocate(stack_map: Map, offset: int, length: int) -> list[int]:
    """Clusters of the disk in the range that the top does not own yet."""
    first, last = offset // stack_map.cluster_bytes, (offset + length - 1) // stack_map.cluster_bytes
    top = stack_map.top_level
    return [slot for slot in range(first, last + 1) if stack_map.levels[slot] != top]


def plan_write(
    stack_map: Map, allocator: Allocator, offset: int, data: bytes | bytearray | memoryview, *, check_zeros: bool = True
) -> WritePlan:
    """The ordered steps of one write; allocates the clusters that it names.

    Clusters go through three cases: the top has it (write in place), a lower level has it (copy up, whole), nobody has
    it (zeroes cost nothing with `check_zeros`; else a new cluster). One barrier and one map update serve the whole
    request."""
    steps: list[Step] = []
    entries: dict[int, int] = {}
    zero_clusters = 0
    are_zeroes = True
    try:
        for slot, within, start, stop in _parts(stack_map.cluster_bytes, offset, len(data)):
            if stack_map.owned_by_top(slot):
                _append_write(steps, Write(stack_map.clusters[slot] * stack_map.cluster_bytes + within, start, stop))
            elif check_zeros and stack_map.is_hole(slot) and is_zero(memoryview(data)[start:stop]):
                zero_clusters += 1
            else:
                entries[slot], is_clean = _plan_new_cluster(steps, stack_map, allocator, slot, within, start, stop)
                are_zeroes &= is_clean and stack_map.is_hole(slot)
    except BaseException:
        for cluster in entries.values():
            allocator.release(cluster)
        raise
    if entries:
        end = (max(entries.values()) + 1) * stack_map.cluster_bytes
        steps += [EndBarrier(end) if are_zeroes else Barrier(), WriteMap(entries, are_zeroes)]
    return WritePlan(tuple(steps), zero_clusters)


def _plan_new_cluster(
    steps: list[Step], stack_map: Map, allocator: Allocator, slot: int, within: int, start: int, stop: int
) -> tuple[int, bool]:
    """The cluster, and whether the file never had it before."""
    cluster_bytes = stack_map.cluster_bytes
    cluster, may_hold_old_bytes = allocator.allocate()
    base = cluster * cluster_bytes
    whole = stop - start == cluster_bytes
    steps.append(Grow(base + cluster_bytes))
    if may_hold_old_bytes and stack_map.is_hole(slot) and not whole:
        steps.append(Scrub(base, cluster_bytes))
    if stack_map.is_hole(slot) or whole:
        steps.append(Write(base + within, start, stop))
    else:
        source = _cluster_segments(stack_map, slot, 0, cluster_bytes)
        steps.append(CopyUp(base, source, within, start, stop))
    return cluster, not may_hold_old_bytes


def plan_copy_up(stack_map: Map, allocator: Allocator, slot: int) -> WritePlan:
    """The top gets its own copy of a cluster that a lower level owns: a write of no bytes to it."""
    steps: list[Step] = []
    cluster, _is_clean = _plan_new_cluster(steps, stack_map, allocator, slot, 0, 0, 0)
    return WritePlan((*steps, Barrier(), WriteMap({slot: cluster})))


def is_zero(data: bytes | bytearray | memoryview) -> bool:
    # Two memoryviews, or one and bytes, are compared byte by byte.
    return not data[0] and bytes(data) == bytes(len(data))


def _append_write(steps: list[Step], write: Write) -> None:
    """In-place writes to neighbouring clusters are one write."""
    match steps[-1] if steps else None:
        case Write(offset, start, stop) if stop == write.start and offset + stop - start == write.offset:
            steps[-1] = Write(offset, start, write.stop)
        case _:
            steps.append(write)


def _parts(cluster_bytes: int, offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """(slot, offset within the cluster, start, stop of the request's bytes) per cluster touched."""
    start = 0
    while start < length:
        slot, within = divmod(offset + start, cluster_bytes)
        stop = min(length, start + cluster_bytes - within)
        yield slot, within, start, stop
        start = stop


# --- discards -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Punch:
    """These bytes of the top file become a hole; its map entry stays, so the zeroes hide what lies below."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DiscardPlan:
    """`slots` is all that is discarded: by `punches` for a stack with lower deltas, else by clearing the entries of
    `free_slots`."""

    slots: tuple[int, ...]
    punches: tuple[Punch, ...]
    free_slots: tuple[int, ...]


def plan_discard(stack_map: Map, below: Map, offset: int, length: int, *, single: bool) -> DiscardPlan:
    """Only whole clusters that the top owns; everything else succeeds without effect (kernel-ploop.md 3.9). A cluster
    that is in `below` keeps its entry in a `single` image too."""
    cluster_bytes = stack_map.cluster_bytes
    first = -(-offset // cluster_bytes)
    end = min((offset + length) // cluster_bytes, len(stack_map))
    owned = [slot for slot in range(first, end) if stack_map.owned_by_top(slot)]
    freed = tuple(slot for slot in owned if single and below.is_hole(slot))
    kept = owned if not freed else sorted({*owned}.difference(freed))
    punches = tuple(Punch(stack_map.clusters[slot] * cluster_bytes, cluster_bytes) for slot in kept)
    return DiscardPlan(tuple(owned), punches, freed)


# --- zeroes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ZeroPlan:
    """`freed`: the top has them and nobody below, so clearing their entries makes them holes. `punches`: the top has
    them and hides a lower level. `hidden`: only a lower level has them, so that the top must, as zeroes. A level that
    was merged meanwhile counts as below: whoever opens the images again may find it named."""

    freed: tuple[int, ...]
    punches: tuple[Punch, ...]
    hidden: tuple[int, ...]

    @property
    def changed_slots(self) -> tuple[int, ...]:
        """Whose map entry changes."""
        return (*self.freed, *self.hidden)


def plan_zero(stack_map: Map, below: Map, slots: range) -> ZeroPlan:
    """Whole clusters that are to read as zeroes and to take as little space as the format allows; it has no mark for a
    cluster of zeroes above a lower delta (image-format.md 3)."""
    freed: list[int] = []
    hiding: list[int] = []
    hidden: list[int] = []
    for slot in slots:
        if stack_map.is_hole(slot):
            continue
        if not stack_map.owned_by_top(slot):
            hidden.append(slot)
        elif below.is_hole(slot):
            freed.append(slot)
        else:
            hiding.append(stack_map.clusters[slot])
    return ZeroPlan(tuple(freed), punches_of(hiding, stack_map.cluster_bytes), tuple(hidden))


def punches_of(clusters: Iterable[int], cluster_bytes: int) -> tuple[Punch, ...]:
    """Clusters of the top file as holes; neighbours are one."""
    runs: list[list[int]] = []
    for cluster in sorted(clusters):
        if runs and runs[-1][1] == cluster:
            runs[-1][1] += 1
        else:
            runs.append([cluster, cluster + 1])
    return tuple(Punch(start * cluster_bytes, (stop - start) * cluster_bytes) for start, stop in runs)


def plan_zero_clusters(stack_map: Map, allocator: Allocator, slots: Sequence[int]) -> WritePlan:
    """The top gets a cluster of zeroes for each of these, which are a lower level's. The end of a file that has grown
    is zeroes already."""
    entries: dict[int, int] = {}
    scrubs: list[Scrub] = []
    cluster_bytes = stack_map.cluster_bytes
    try:
        for slot in slots:
            entries[slot], may_hold_old_bytes = allocator.allocate()
            if may_hold_old_bytes:
                scrubs.append(Scrub(entries[slot] * cluster_bytes, cluster_bytes))
    except BaseException:
        for cluster in entries.values():
            allocator.release(cluster)
        raise
    if not entries:
        return WritePlan(())
    return WritePlan((Grow((max(entries.values()) + 1) * cluster_bytes), *scrubs, Barrier(), WriteMap(entries)))
