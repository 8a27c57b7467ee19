"""Plans, step by step; and what is left of one that a crash cuts off, played out on files in memory."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.errors import ImageFull
from ploopfs.image.allocator import MAX_ENTRY, Allocator
from ploopfs.image.bat import Bat
from ploopfs.image.check import Report, Verdict, check_image
from ploopfs.image.header import HEADER_BYTES, MIN_CLUSTER_SECTORS, V1, V2, Header
from ploopfs.image.map import Map, RawLevel
from ploopfs.image.plan import (
    Barrier,
    CopyUp,
    DiscardPlan,
    EndBarrier,
    Grow,
    Hole,
    Punch,
    Run,
    Scrub,
    Segment,
    Step,
    Write,
    WriteMap,
    WritePlan,
    place,
    plan_discard,
    plan_read,
    plan_write,
    slots_to_allocate,
)
from tests.image.patches import CLUSTER_BYTES, Patch, contents, crashes, image_file, patches

C = 4
"""Bytes of a cluster where a plan is only looked at: maps do not mind, and every offset can be tried."""

Layer = Sequence[int] | RawLevel


def bat(clusters: Sequence[int]) -> Bat:
    size_sectors = len(clusters) * MIN_CLUSTER_SECTORS
    header = Header.new(size_sectors=size_sectors, cluster_sectors=MIN_CLUSTER_SECTORS, version=V2)
    return Bat(header, header.raw + array("I", clusters).tobytes())


def stack(disk_clusters: int, *layers: Layer) -> Map:
    result = Map.empty(cluster_bytes=C, disk_clusters=disk_clusters)
    for layer in layers:
        result = result.stacked(layer if isinstance(layer, RawLevel) else bat(layer))
    return result


def allocator(*used: int, file_clusters: int = 0, first_cluster: int = 1) -> Allocator:
    """For a file that ends with its last used cluster, unless it is said to be longer."""
    end = max([file_clusters, first_cluster, *(cluster + 1 for cluster in used)])
    return Allocator(np.array(used, dtype=np.uint32), first_cluster=first_cluster, file_clusters=end, entry_unit=1)


# --- reads --------------------------------------------------------------------------------------------------------

ByteOwner = tuple[int, int] | None


def byte_owner(layers: Sequence[Layer], position: int) -> ByteOwner:
    """(level, offset in that level's file) of one byte of the disk, by a walk from the top."""
    slot, within = divmod(position, C)
    for level in reversed(range(len(layers))):
        layer = layers[level]
        if isinstance(layer, RawLevel):
            return (level, position) if position < layer.size_bytes else None
        if slot < len(layer) and layer[slot]:
            return level, layer[slot] * C + within
    return None


def owners(segments: Iterable[Segment]) -> list[ByteOwner]:
    """The same of every byte that the segments stand for."""
    result: list[ByteOwner] = []
    for segment in segments:
        match segment:
            case Hole(length):
                result += [None] * length
            case Run(level, offset, length):
                result += [(level, offset + index) for index in range(length)]
    return result


def lie_together(first: Segment, second: Segment) -> bool:
    match first, second:
        case Hole(), Hole():
            return True
        case Run(level, offset, length), Run(next_level, next_offset, _):
            return level == next_level and offset + length == next_offset
    return False


raw_layers = st.integers(0, 6 * C).map(RawLevel)
small_deltas = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), max_size=3)



def drawn_range(data: st.DataObject) -> tuple[int, int, int]:
    """How many clusters a disk has, and some bytes in it."""
    disk_clusters = data.draw(st.integers(1, 6))
    start = data.draw(st.integers(0, disk_clusters * C - 1))
    return disk_clusters, start, data.draw(st.integers(1, disk_clusters * C - start))


@given(raw_layers | st.none(), small_deltas, st.data())
def test_a_read_finds_every_byte_where_a_walk_down_the_stack_finds_it(
    raw: RawLevel | None, deltas: list[list[int]], data: st.DataObject
) -> None:
    layers: list[Layer] = [*([raw] if raw else []), *deltas]
    disk_clusters, start, length = drawn_range(data)
    stack_map = stack(disk_clusters, *layers)
    segments = plan_read(stack_map, start, length)
    assert owners(segments) == [byte_owner(layers, position) for position in range(start, start + length)]
    assert all(segment.length > 0 for segment in segments)
    assert not any(map(lie_together, segments, segments[1:]))
    placed = place(stack_map, start, length)
    if placed is not None:
        assert segments == [Run(*placed, length)]
    first, is_one = segments[0], start // C == (start + length - 1) // C
    may_end = raw is not None and isinstance(first, Run) and first.level == 0
    assert (placed is not None) == (is_one and isinstance(first, Run) and not may_end)


def test_a_hole_is_not_joined_with_the_clusters_after_it() -> None:
    assert plan_read(stack(4, [0, 1, 2, 3]), 0, 4 * C) == [Hole(C), Run(0, C, 3 * C)]


def test_a_raw_base_begins_with_cluster_0_which_is_no_hole() -> None:
    assert plan_read(stack(3, RawLevel(3 * C), [0, 0, 1]), 0, 3 * C) == [Run(0, 0, 2 * C), Run(1, C, C)]


def test_runs_that_lie_together_in_one_file_are_one_read() -> None:
    assert plan_read(stack(4, [5, 6, 7, 9]), 1, 4 * C - 2) == [Run(0, 5 * C + 1, 3 * C - 1), Run(0, 9 * C, C - 1)]


def test_neighbours_in_different_files_are_two_reads() -> None:
    assert plan_read(stack(2, [1, 2], [0, 2]), 0, 2 * C) == [Run(0, C, C), Run(1, 2 * C, C)]


def test_a_later_cluster_earlier_in_the_file_is_another_read() -> None:
    assert plan_read(stack(2, [2, 1]), 0, 2 * C) == [Run(0, 2 * C, C), Run(0, C, C)]


@pytest.mark.parametrize(
    ("offset", "length", "segments"),
    [
        (C, C, [Run(0, C, 2), Hole(2)]),
        (C, 2, [Run(0, C, 2)]),
        (C + 2, 2, [Hole(2)]),
        (C + 3, 1, [Hole(1)]),
        (0, 3 * C, [Run(0, 0, C + 2), Hole(2 * C - 2)]),
    ],
)
def test_past_the_end_of_a_raw_base_there_are_zeroes(offset: int, length: int, segments: list[Segment]) -> None:
    assert plan_read(stack(3, RawLevel(C + 2), [0, 0, 0]), offset, length) == segments


def test_the_end_of_a_raw_base_does_not_cut_a_delta_above_it() -> None:
    assert plan_read(stack(2, RawLevel(C + 2), [0, 9]), C, C) == [Run(1, 9 * C, C)]


# --- writes, case by case -----------------------------------------------------------------------------------------

DATA = bytes(range(1, 100))


def steps_of(stack_map: Map, free: Allocator, offset: int, data: bytes) -> list[Step]:
    plan = plan_write(stack_map, free, offset, data)
    assert plan.zero_clusters == 0
    return list(plan.steps)


def test_a_cluster_of_the_top_is_written_in_place() -> None:
    steps = steps_of(stack(2, [1, 2], [0, 7]), allocator(7), C + 1, DATA[:2])
    assert steps == [Write(7 * C + 1, 0, 2)]


@pytest.mark.parametrize(
    ("top", "writes"),
    [
        ([5, 6, 7], [Write(5 * C + 3, 0, 2 * C)]),
        ([5, 7, 6], [Write(5 * C + 3, 0, 1), Write(7 * C, 1, C + 1), Write(6 * C, C + 1, 2 * C)]),
        ([6, 5, 9], [Write(6 * C + 3, 0, 1), Write(5 * C, 1, C + 1), Write(9 * C, C + 1, 2 * C)]),
    ],
)
def test_clusters_that_lie_together_in_the_file_are_one_write(top: list[int], writes: list[Step]) -> None:
    assert steps_of(stack(3, top), allocator(*top), 3, DATA[: 2 * C]) == writes


def test_what_lies_together_in_the_file_only_is_not_one_write() -> None:
    """Between the two clusters of the top the request has zeroes that stay a hole."""
    data = DATA[:C] + bytes(C) + DATA[:C]
    plan = plan_write(stack(3, [5, 0, 6]), allocator(5, 6), 0, data)
    assert plan == WritePlan((Write(5 * C, 0, C), Write(6 * C, 2 * C, 3 * C)), zero_clusters=1)


def test_a_cluster_of_a_lower_level_is_copied_up_whole() -> None:
    steps = steps_of(stack(2, [3, 4], [1, 0]), allocator(1), C + 1, DATA[:2])
    assert steps == [
        Grow(3 * C),
        CopyUp(2 * C, (Run(0, 4 * C, C),), within=1, start=0, stop=2),
        Barrier(),
        WriteMap({1: 2}),
    ]


def test_a_whole_cluster_over_a_lower_level_reads_nothing() -> None:
    steps = steps_of(stack(1, [3], [0]), allocator(), 0, DATA[:C])
    assert steps == [Grow(2 * C), Write(C, 0, C), Barrier(), WriteMap({0: 1})]


def test_copying_up_the_last_cluster_of_a_raw_base_goes_on_in_zeroes() -> None:
    steps = steps_of(stack(2, RawLevel(C + 3), [0, 0]), allocator(), C + 1, DATA[:1])
    assert steps == [
        Grow(2 * C),
        CopyUp(C, (Run(0, C, 3), Hole(1)), within=1, start=0, stop=1),
        Barrier(),
        WriteMap({1: 1}),
    ]


def test_a_part_of_a_cluster_that_nobody_has_goes_to_clean_space_alone() -> None:
    steps = steps_of(stack(2, [0, 0]), allocator(), C + 1, DATA[:2])
    assert steps == [Grow(2 * C), Write(C + 1, 0, 2), EndBarrier(2 * C), WriteMap({1: 1}, are_zeroes=True)]


def test_a_part_of_a_cluster_that_nobody_has_is_scrubbed_where_old_bytes_may_be() -> None:
    steps = steps_of(stack(2, [2, 0]), allocator(2), C + 1, DATA[:2])
    assert steps == [Grow(2 * C), Scrub(C, C), Write(C + 1, 0, 2), Barrier(), WriteMap({1: 1})]


@pytest.mark.parametrize("layers", [([2, 0],), ([2, 3], [2, 0])])
def test_a_whole_cluster_needs_no_scrub(layers: tuple[list[int], ...]) -> None:
    steps = steps_of(stack(2, *layers), allocator(2), C, DATA[:C])
    assert steps == [Grow(2 * C), Write(C, 0, C), Barrier(), WriteMap({1: 1})]


def test_a_copy_needs_no_scrub() -> None:
    steps = steps_of(stack(2, [0, 3], [2, 0]), allocator(2), C, DATA[:1])
    assert steps == [Grow(2 * C), CopyUp(C, (Run(0, 3 * C, C),), 0, 0, 1), Barrier(), WriteMap({1: 1})]


def test_of_new_clusters_that_were_and_are_zeroes_the_size_of_the_file_is_all_that_must_be_durable() -> None:
    fresh = steps_of(stack(3, [0, 0, 0]), allocator(), 0, DATA[: 2 * C])
    assert fresh[-2:] == [EndBarrier(3 * C), WriteMap({0: 1, 1: 2}, are_zeroes=True)]
    above = steps_of(stack(3, [0, 4, 0], [0, 0, 0]), allocator(), 0, DATA[: 2 * C])
    assert above[-2:] == [Barrier(), WriteMap({0: 1, 1: 2})]
    reused = steps_of(stack(3, [0, 0, 2]), allocator(2), 0, DATA[: 2 * C])
    assert reused[-2:] == [Barrier(), WriteMap({0: 1, 1: 3})]


def test_zeroes_where_nobody_has_anything_cost_nothing() -> None:
    free = allocator()
    assert plan_write(stack(3, [0, 0, 0]), free, 1, bytes(3 * C - 2)) == WritePlan((), zero_clusters=3)
    assert free.end_cluster == 1


def test_zeroes_are_written_where_the_check_for_them_is_off() -> None:
    plan = plan_write(stack(1, [0]), allocator(), 0, bytes(C), check_zeros=False)
    assert plan == WritePlan((Grow(2 * C), Write(C, 0, C), EndBarrier(2 * C), WriteMap({0: 1}, are_zeroes=True)))


@pytest.mark.parametrize("data", [b"\1\0\0\0", b"\0\0\0\1", b"\0\1\0\0"])
def test_one_byte_that_is_not_zero_takes_a_cluster(data: bytes) -> None:
    assert plan_write(stack(1, [0]), allocator(), 0, data).new_clusters == {0: 1}


def test_zeroes_hide_what_lies_below() -> None:
    assert steps_of(stack(1, [3], [0]), allocator(), 1, bytes(2))[1] == CopyUp(C, (Run(0, 3 * C, C),), 1, 0, 2)
    assert steps_of(stack(1, [3]), allocator(3), 0, bytes(C)) == [Write(3 * C, 0, C)]


def test_one_barrier_and_one_map_update_serve_the_whole_request() -> None:
    stack_map = stack(6, [0, 3, 0, 0, 0, 4], [5, 0, 0, 0, 1, 0])
    plan = plan_write(stack_map, allocator(1, 5, file_clusters=6), 2, DATA[: C + 2] + bytes(C) + DATA[: 3 * C - 1])
    assert plan == WritePlan(
        (
            Write(5 * C + 2, 0, 2),
            Grow(3 * C),
            Write(2 * C, 2, C + 2),
            Grow(4 * C),
            Write(3 * C, 2 * C + 2, 3 * C + 2),
            Write(C, 3 * C + 2, 4 * C + 2),
            Grow(5 * C),
            CopyUp(4 * C, (Run(0, 4 * C, C),), 0, 4 * C + 2, 5 * C + 1),
            Barrier(),
            WriteMap({1: 2, 3: 3, 5: 4}),
        ),
        zero_clusters=1,
    )
    assert plan.new_clusters == {1: 2, 3: 3, 5: 4}


def test_a_write_of_nothing_is_no_step() -> None:
    assert plan_write(stack(2, [0, 0]), allocator(), C, b"") == WritePlan(())


def test_a_request_that_cannot_be_served_whole_gives_its_clusters_back() -> None:
    free = allocator(file_clusters=MAX_ENTRY - 1, first_cluster=MAX_ENTRY - 1)
    with pytest.raises(ImageFull):
        plan_write(stack(3, [0, 0, 0]), free, 0, DATA[: 3 * C])
    plan = plan_write(stack(3, [0, 0, 0]), free, 0, DATA[: 2 * C])
    assert plan.new_clusters == {0: MAX_ENTRY - 1, 1: MAX_ENTRY}


@pytest.mark.parametrize(
    ("offset", "length", "slots"),
    [
        (0, 1, [0]),
        (C - 1, 1, [0]),
        (0, C, [0]),
        (0, C + 1, [0]),
        (C, C, []),
        (0, 4 * C, [0, 2, 3]),
        (2 * C, C + 1, [2, 3]),
    ],
)
def test_the_slots_to_allocate_are_those_the_top_does_not_own(offset: int, length: int, slots: list[int]) -> None:
    assert slots_to_allocate(stack(4, [1, 2, 0, 0], [0, 3, 0, 0]), offset, length) == slots


# --- discards -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length", "slots"),
    [
        (0, 5 * C, [0, 1, 4]),
        (0, C, [0]),
        (0, C - 1, []),
        (1, C, []),
        (1, 2 * C - 1, [1]),
        (1, 2 * C, [1]),
        (C, 4 * C - 1, [1]),
        (2 * C, 2 * C, []),
        (4 * C, 99 * C, [4]),
        (9 * C, C, []),
    ],
)
def test_only_whole_clusters_of_the_top_are_discarded(offset: int, length: int, slots: list[int]) -> None:
    top = [5, 4, 0, 0, 3]
    lone = plan_discard(stack(5, top), stack(5), offset, length, single=True)
    assert lone == DiscardPlan(tuple(slots), (), tuple(slots))
    below = stack(5, [0, 1, 2, 0, 0])
    stacked = plan_discard(stack(5, [0, 1, 2, 0, 0], top), below, offset, length, single=False)
    assert stacked == DiscardPlan(tuple(slots), tuple(Punch(top[slot] * C, C) for slot in slots), ())
    merged = plan_discard(stack(5, top), below, offset, length, single=True)
    assert merged.free_slots == tuple(slot for slot in slots if slot not in (1, 2))
    assert merged.punches == tuple(Punch(top[slot] * C, C) for slot in slots if slot in (1, 2))


# --- every plan, carried out --------------------------------------------------------------------------------------


END = 6
"""Clusters of a file; from there on nothing was ever written."""


@st.composite
def tiny_stacks(draw: st.DrawFn) -> tuple[Map, list[bytearray], Allocator]:
    """Up to three levels over 5 clusters; each cluster of a file holds bytes that say whose it is."""
    levels = [draw(st.permutations([0, 0, 0, 1, 2, 3, 5])) for _ in range(draw(st.integers(1, 3)))]
    layers: list[Layer] = [level[:5] for level in levels]
    if len(layers) > 1 and draw(st.booleans()):
        layers[0] = RawLevel(draw(st.integers(0, 5 * C)))
    files = [bytearray((level + 1) * 16 + index % 16 for index in range(END * C)) for level in range(len(layers))]
    if isinstance(layers[0], RawLevel):
        del files[0][layers[0].size_bytes :]
    used = np.array([cluster for cluster in levels[-1][:5] if cluster], dtype=np.uint32)
    return stack(5, *layers), files, Allocator(used, first_cluster=1, file_clusters=END, entry_unit=1)


def requests(size: int) -> st.SearchStrategy[tuple[int, bytes]]:
    """(offset, data), zeroes as likely as anything else."""
    data = st.lists(st.sampled_from((0, 0xEE)), min_size=1, max_size=size).map(bytes)
    runs = st.lists(st.tuples(st.sampled_from((0, 0xEE)), st.integers(1, 2 * C)), min_size=1, max_size=6)
    data |= runs.map(lambda parts: b"".join(bytes([value]) * length for value, length in parts)[:size])
    return data.flatmap(lambda content: st.tuples(st.integers(0, size - len(content)), st.just(content)))


@given(tiny_stacks(), requests(5 * C), st.booleans())
def test_a_write_that_is_done_has_changed_its_bytes_and_no_others(
    drawn: tuple[Map, list[bytearray], Allocator], request: tuple[int, bytes], check_zeros: bool
) -> None:
    stack_map, files, free = drawn
    offset, data = request
    before = contents(files, plan_read(stack_map, 0, 5 * C))
    lower = [bytes(file) for file in files[:-1]]
    plan = plan_write(stack_map, free, offset, data, check_zeros=check_zeros)
    for step in plan.steps:
        for patch in patches(step, data, files, C):
            patch.apply(files[-1])
    for slot, cluster in plan.new_clusters.items():
        stack_map.assign(slot, cluster)
    after = contents(files, plan_read(stack_map, 0, 5 * C))
    assert after == before[:offset] + data + before[offset + len(data) :]
    assert [bytes(file) for file in files[:-1]] == lower


@given(tiny_stacks(), requests(5 * C))
def test_the_map_names_a_cluster_after_a_barrier_after_its_bytes(
    drawn: tuple[Map, list[bytearray], Allocator], request: tuple[int, bytes]
) -> None:
    stack_map, files, free = drawn
    plan = plan_write(stack_map, free, *request)
    kinds = [type(step) for step in plan.steps]
    if not plan.new_clusters:
        assert not {Barrier, EndBarrier, WriteMap}.intersection(kinds)
        return
    assert {*kinds[:-2]} <= {Grow, Scrub, Write, CopyUp}
    assert kinds[-1] is WriteMap
    last = max(plan.new_clusters.values())
    was_zero = all(stack_map.is_hole(slot) for slot in plan.new_clusters) and min(plan.new_clusters.values()) >= END
    assert plan.steps[-2] == (EndBarrier((last + 1) * C) if was_zero else Barrier())
    touched: dict[int, list[Step]] = {}
    for step in plan.steps:
        for patch in patches(step, request[1], files, C):
            # A Grow ends where its cluster ends.
            touched.setdefault((patch.offset - isinstance(step, Grow)) // C, []).append(step)
    for slot, cluster in plan.new_clusters.items():
        assert not stack_map.owned_by_top(slot)
        assert touched[cluster][0] == Grow((cluster + 1) * C)
        assert {type(step) for step in touched[cluster][1:]} & {Write, CopyUp}
    assert len(set(plan.new_clusters.values())) == len(plan.new_clusters)


# --- every plan, cut off by a crash -------------------------------------------------------------------------------

WINDOW = 4
"""Clusters of the disk that are looked at; on the longer disk they lie on both sides of an edge of two map pages."""


class Disk:
    """What a daemon keeps of a stack, over the files that survive it. The last file is the top."""

    def __init__(self, files: list[bytearray], lower: Map, window: range) -> None:
        self.files, self.lower, self.window = files, lower, window
        self.reopen()

    def reopen(self) -> None:
        """All that is known comes from the files; they must be as sound as an image that was not closed can be."""
        top = self.files[-1]
        header = Header.parse(bytes(top[:HEADER_BYTES]), "top")
        area = bytes(top[: header.bat_area_bytes])
        assert check_image(header, area, len(top), "top") == Report(Verdict.NOT_CLOSED)
        self.bat = Bat(header, area)
        assert {slot for slot, cluster in enumerate(self.bat.clusters) if cluster} <= set(self.window)
        self.map = self.lower.stacked(self.bat)
        self.free = Allocator(
            self.bat.used(),
            first_cluster=header.first_cluster,
            file_clusters=-(-len(top) // CLUSTER_BYTES),
            entry_unit=header.entry_unit,
        )

    def read(self) -> bytes:
        segments = plan_read(self.map, self.window.start * CLUSTER_BYTES, WINDOW * CLUSTER_BYTES)
        return contents(self.files, segments)

    def plan(self, offset: int, data: bytes) -> WritePlan:
        return plan_write(self.map, self.free, self.window.start * CLUSTER_BYTES + offset, data)

    def patches(self, step: Step, data: bytes) -> list[Patch]:
        if isinstance(step, WriteMap):
            return [Patch(page.offset, page.data) for page in self.bat.pages(step.entries)]
        return patches(step, data, self.files, CLUSTER_BYTES)

    def write(self, offset: int, data: bytes) -> None:
        plan = self.plan(offset, data)
        for step in plan.steps:
            for patch in self.patches(step, data):
                patch.apply(self.files[-1])
        for slot, cluster in plan.new_clusters.items():
            self.map.assign(slot, cluster)
            self.bat.clusters[slot] = cluster

    def crashes(self, offset: int, data: bytes) -> Iterator[bytearray]:
        return crashes(self.files[-1], self.plan(offset, data).steps, lambda step: self.patches(step, data))

    def discard(self, index: int) -> bool:
        """True if the cluster reads as zeroes from here on. Storage that frees nothing: old bytes stay in place."""
        slot = self.window[index]
        plan = plan_discard(self.map, self.lower, slot * CLUSTER_BYTES, CLUSTER_BYTES, single=len(self.files) == 1)
        for punch in plan.punches:
            Patch(punch.offset, bytes(punch.length)).apply(self.files[-1])
        for freed in plan.free_slots:
            for patch in self.patches(WriteMap({freed: 0}), b""):
                patch.apply(self.files[-1])
            self.free.release(self.map.clusters[freed])
            self.map.clear(freed)
            self.bat.clusters[freed] = 0
        return bool(plan.punches or plan.free_slots)


@st.composite
def disks(draw: st.DrawFn) -> Disk:
    """One to three levels; gaps in the files hold bytes of nobody, which nobody may ever read."""
    version = draw(st.sampled_from((V1, V2)))
    window = draw(st.sampled_from((range(WINDOW), range(1006, 1006 + WINDOW))))
    levels = [draw(st.permutations([0, 0, 1, 2, 3, 5]))[:WINDOW] for _ in range(draw(st.integers(1, 3)))]
    files = []
    lower = Map.empty(cluster_bytes=CLUSTER_BYTES, disk_clusters=window.stop)
    raw_base = len(levels) > 1 and window.start == 0 and draw(st.booleans())
    for level, clusters in enumerate(levels):
        if level == 0 and raw_base:
            size_bytes = draw(st.sampled_from((512, CLUSTER_BYTES, 3 * CLUSTER_BYTES - 512)))
            files.append(bytearray(b"raw!" * (size_bytes // 4)))
            lower = lower.stacked(RawLevel(size_bytes))
            continue
        entries = dict(zip(window, clusters, strict=True))
        end = max(clusters) + 1 + draw(st.integers(0, 1))
        files.append(image_file(version, window.stop, entries, end=max(end, 2), tag=16 * (level + 1)))
        if level < len(levels) - 1:
            header = Header.parse(bytes(files[-1][:HEADER_BYTES]), "lower")
            lower = lower.stacked(Bat(header, bytes(files[-1][: header.bat_area_bytes])))
    return Disk(files, lower, window)


@dataclass(frozen=True)
class Request:
    """A write at `offset` of the window."""

    offset: int
    data: bytes

    def __repr__(self) -> str:
        return f"Request({self.offset}, {name(self.data)})"

    def over(self, content: bytes) -> bytes:
        return content[: self.offset] + self.data + content[self.offset + len(self.data) :]


@st.composite
def write_requests(draw: st.DrawFn) -> Request:
    edges = st.builds(
        lambda slot, within: slot * CLUSTER_BYTES + within,
        st.integers(0, WINDOW - 1),
        st.sampled_from((0, 1, CLUSTER_BYTES // 2, CLUSTER_BYTES - 1)),
    )
    first, last = sorted((draw(edges), draw(edges)))
    fill = draw(st.lists(st.sampled_from((0xA1, 0xB2, 0)), min_size=WINDOW, max_size=WINDOW))
    content = b"".join(bytes([value]) * CLUSTER_BYTES for value in fill)
    return Request(first, content[first : last + 1])


def by_cluster(content: bytes) -> list[bytes]:
    return [content[start : start + CLUSTER_BYTES] for start in range(0, len(content), CLUSTER_BYTES)]


def name(content: bytes) -> str:
    """Short enough for the report of a failure: the runs of equal bytes."""
    values = np.frombuffer(content, np.uint8)
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return " ".join(f"{values[start]:#x}*{stop - start}" for start, stop in pairwise(edges[:9]))


operations = write_requests() | st.integers(0, WINDOW - 1)
"""A number discards that cluster."""


def carried_out(disk: Disk, history: Sequence[Request | int]) -> bytes:
    """What the window reads as after these operations, each of which was checked at once."""
    expected = disk.read()
    for operation in history:
        if isinstance(operation, Request):
            disk.write(operation.offset, operation.data)
            expected = operation.over(expected)
        elif disk.discard(operation):
            clusters = by_cluster(expected)
            clusters[operation] = bytes(CLUSTER_BYTES)
            expected = b"".join(clusters)
        assert disk.read() == expected
    return expected


@given(disks(), st.lists(operations, max_size=5))
def test_requests_one_after_the_other_read_back_now_and_after_opening_again(
    disk: Disk, history: list[Request | int]
) -> None:
    expected = carried_out(disk, history)
    disk.reopen()
    assert disk.read() == expected


@given(disks(), st.lists(operations, max_size=2), write_requests(), write_requests())
def test_a_crash_anywhere_leaves_every_cluster_old_or_new(
    disk: Disk, history: list[Request | int], request: Request, following: Request
) -> None:
    """And what it leaves elsewhere, half of a cluster that nobody came to own, is never read through a later write."""
    old = carried_out(disk, history)
    new = request.over(old)
    for top in disk.crashes(request.offset, request.data):
        crashed = Disk([*disk.files[:-1], top], disk.lower, disk.window)
        found = crashed.read()
        for got, *allowed in zip(by_cluster(found), by_cluster(old), by_cluster(new), strict=True):
            assert got in allowed, f"{name(got)} is none of {[*map(name, allowed)]}"
        crashed.write(following.offset, following.data)
        assert crashed.read() == following.over(found)
