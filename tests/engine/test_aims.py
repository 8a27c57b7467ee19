"""Where writes belong that nothing has to be done before: the same place as by a plan, and no other."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.engine.aims import Aims
from ploopfs.engine.ring_write import Pieces
from ploopfs.engine.stack import Stack
from ploopfs.image.map import RawLevel
from ploopfs.image.plan import Write, plan_write, slots_to_allocate
from tests.engine.rig import BASE, CLUSTER, NEW, OLD, TOP, Rig
from tests.image.test_plan import C, Layer, allocator, drawn_range, raw_layers, small_deltas, steps_of
from tests.image.test_plan import stack as stack_of

DISK_BYTES = 8 * CLUSTER
IN_TOP, IN_LOWER, HOLES = 0, 1, range(2, 8)


@pytest.fixture
def rig() -> Rig:
    rig = Rig(paths=(BASE, TOP))
    rig.put(BASE, {IN_TOP: OLD, IN_LOWER: OLD})
    rig.put(TOP, {IN_TOP: OLD})
    return rig


async def opened(rig: Rig) -> Stack:
    stack = await rig.open()
    assert stack.room is not None
    await stack.room.make()
    return stack


def planned(stack: Stack, offset: int, data: bytes) -> Pieces | None:
    """By the plan, which asks for a file that is longer than it, and for syncs, where these are needed."""
    slot, end_slot = offset // CLUSTER, (offset + len(data) - 1) // CLUSTER
    if slot != end_slot or not (stack.map.is_hole(slot) or stack.map.owned_by_top(slot)):
        return None
    plan = plan_write(deepcopy(stack.map), deepcopy(stack.top.allocator), offset, data)
    if plan.zero_clusters:
        return None
    (write,) = [step for step in plan.steps if isinstance(step, Write)]
    assert (write.start, write.stop) == (0, len(data))
    assert stack.top.bat is not None
    entries = [stack.top.bat.entry(slot, cluster) for slot, cluster in plan.new_clusters.items()]
    return (write.offset, data), *entries


@pytest.mark.parametrize("length", [1, 512, CLUSTER - 512, CLUSTER, CLUSTER + 1])
@pytest.mark.parametrize("byte", [b"\0", b"n"])
async def test_what_is_aimed_is_what_a_write_does_and_nothing_else_is(rig: Rig, length: int, byte: bytes) -> None:
    stack = await opened(rig)
    found = set()
    for offset in range(0, DISK_BYTES - length + 1, 256):
        pieces = stack.aim(offset, byte * length)
        assert pieces == planned(stack, offset, byte * length)
        found.add(len(pieces or ()))
    assert found == ({0, 1, 2} if byte == b"n" else {0, 1}) - ({1, 2} if length > CLUSTER else set())


@given(raw_layers | st.none(), small_deltas, st.data())
def test_of_any_stack_it_aims_at_the_tops_clusters_as_a_plan_does_and_at_holes_alone_beside(
    raw: RawLevel | None, deltas: list[list[int]], data: st.DataObject
) -> None:
    layers: list[Layer] = [*([raw] if raw else []), *deltas]
    disk_clusters, start, length = drawn_range(data)
    stack_map = stack_of(disk_clusters, *layers)
    bat = SimpleNamespace(entry=lambda slot, cluster: (slot, bytes([cluster])))
    top: Any = SimpleNamespace(uncertain_slots=set(), tracker=None, bat=bat)
    written = b"n" * length
    pieces = Aims(top, stack_map, range(9, 10), {}, lambda *_made: None).at(start, written)
    slot, is_one = start // C, start // C == (start + length - 1) // C
    if is_one and stack_map.is_hole(slot):
        assert pieces == ((9 * C + start % C, written), (slot, bytes([9])))
    elif is_one and not slots_to_allocate(stack_map, start, length):
        assert pieces is not None
        ((placed, aimed),) = pieces
        assert aimed == written
        assert steps_of(stack_map, allocator(), start, written) == [Write(placed, 0, length)]
    else:
        assert pieces is None


def aims_of(stack: Stack, clean: range) -> tuple[Aims, list[tuple[int, dict[int, int], int]]]:
    """And what it records."""
    recorded: list[tuple[int, dict[int, int], int]] = []

    def record(count: int, taken: dict[int, int], whole: int) -> None:
        recorded.append((count, dict(taken), whole))

    return Aims(stack.top, stack.map, clean, stack._writer.claims.clusters, record), recorded


async def test_one_hole_after_the_other_has_the_next_clean_cluster_as_long_as_there_are_some(rig: Rig) -> None:
    stack = await opened(rig)
    aims, recorded = aims_of(stack, range(20, 22))
    for slot, cluster in ((HOLES[1], 20), (HOLES[0], 21)):
        pieces = aims.at(slot * CLUSTER + 512, NEW)
        assert pieces is not None
        assert pieces == aims.at(slot * CLUSTER + 512, NEW), "nothing was taken yet"
        assert pieces[0] == (cluster * CLUSTER + 512, NEW)
        aims.wrote(slot * CLUSTER + 512, pieces)
        assert aims.at(slot * CLUSTER, NEW) == ((cluster * CLUSTER, NEW),)
    assert aims.at(HOLES[2] * CLUSTER, NEW) is None
    assert aims.at(IN_TOP * CLUSTER, NEW) is not None
    assert recorded == []
    aims.settle(2)
    aims.settle(1)
    assert recorded == [(2, {HOLES[1]: 20, HOLES[0]: 21}, 0), (1, {}, 0)]


async def test_clusters_that_are_written_whole_are_counted(rig: Rig) -> None:
    stack = await opened(rig)
    aims, recorded = aims_of(stack, range(20, 30))
    for slot, data in ((HOLES[0], b"w" * CLUSTER), (HOLES[1], NEW), (HOLES[0], b"w" * CLUSTER)):
        pieces = aims.at(slot * CLUSTER, data)
        assert pieces is not None
        aims.wrote(slot * CLUSTER, pieces)
    aims.settle(3)
    assert recorded == [(3, {HOLES[0]: 20, HOLES[1]: 21}, 1)]


async def test_who_fills_or_frees_a_cluster_has_it_to_himself(rig: Rig) -> None:
    stack = await opened(rig)
    with stack._writer.claims.held({HOLES[0]: 20}):
        aims, _recorded = aims_of(stack, range(21, 30))
        assert aims.at(HOLES[0] * CLUSTER, NEW) is None
        assert aims.at(HOLES[1] * CLUSTER, NEW) is not None


async def test_without_clusters_that_the_file_durably_has_no_hole_is_aimed_at(rig: Rig) -> None:
    stack = await rig.open()
    assert stack.aim(HOLES[0] * CLUSTER, NEW) is None
    assert stack.aim(IN_TOP * CLUSTER, NEW) is not None
