"""The merged map: who owns a cluster when layers of different lengths lie on each other (image-format.md 5)."""

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.bounds import MAX_DELTAS
from ploopfs.image.bat import Bat
from ploopfs.image.header import MIN_CLUSTER_SECTORS, V2, Header
from ploopfs.image.map import HOLE_LEVEL, Map, RawLevel

CLUSTER_BYTES = 4096
Layer = Sequence[int] | RawLevel
Owner = tuple[int, int] | None


def bat(clusters: Sequence[int]) -> Bat:
    size_sectors = len(clusters) * MIN_CLUSTER_SECTORS
    header = Header.new(size_sectors=size_sectors, cluster_sectors=MIN_CLUSTER_SECTORS, version=V2)
    return Bat(header, header.raw + array("I", clusters).tobytes())


def stack(disk_clusters: int, *layers: Layer) -> Map:
    result = Map.empty(cluster_bytes=CLUSTER_BYTES, disk_clusters=disk_clusters)
    for layer in layers:
        result = result.stacked(layer if isinstance(layer, RawLevel) else bat(layer))
    return result


def owners(stack_map: Map) -> list[Owner]:
    """(level, cluster) of each cluster of the disk, None for a hole."""
    return [
        None if stack_map.is_hole(slot) else (stack_map.levels[slot], stack_map.clusters[slot])
        for slot in range(len(stack_map))
    ]


def expected_owners(disk_clusters: int, layers: Sequence[Layer]) -> list[Owner]:
    result: list[Owner] = []
    for slot in range(disk_clusters):
        owner: Owner = None
        for level, layer in enumerate(layers):
            if isinstance(layer, RawLevel):
                if slot * CLUSTER_BYTES < layer.size_bytes:
                    owner = level, slot
            elif slot < len(layer) and layer[slot]:
                owner = level, layer[slot]
        result.append(owner)
    return result


def test_a_disk_without_deltas_is_all_holes() -> None:
    empty = stack(3)
    assert (len(empty), empty.top_level, owners(empty)) == (3, -1, [None, None, None])
    assert not any(empty.owned_by_top(slot) for slot in range(3))


def test_the_highest_level_that_has_a_cluster_owns_it() -> None:
    merged = stack(5, [1, 2, 3, 0, 0], [0, 9, 0, 8, 0], [0, 0, 7, 0, 0])
    assert owners(merged) == [(0, 1), (1, 9), (2, 7), (1, 8), None]
    assert [merged.owned_by_top(slot) for slot in range(5)] == [False, False, True, False, False]


def test_a_layer_older_than_a_grow_leaves_the_rest_alone() -> None:
    assert owners(stack(4, [1, 0], [0, 0, 5, 0])) == [(0, 1), None, (1, 5), None]
    assert owners(stack(4, [0, 0, 5, 0], [1, 0])) == [(1, 1), None, (0, 5), None]


def test_a_longer_layer_does_not_lengthen_the_disk() -> None:
    assert owners(stack(2, [1, 2, 3, 4], [0, 9, 8, 7])) == [(0, 1), (1, 9)]


def test_stacking_leaves_the_lower_map_alone() -> None:
    lower = stack(2, [1, 2])
    first, second = lower.stacked(bat([9, 0])), lower.stacked(bat([0, 8]))
    first.assign(1, 5)
    assert owners(lower) == [(0, 1), (0, 2)]
    assert owners(first) == [(1, 9), (1, 5)]
    assert owners(second) == [(0, 1), (1, 8)]
    assert (lower.top_level, first.top_level, second.top_level) == (0, 1, 1)


def test_stacking_copies_the_entries_of_the_layer() -> None:
    layer = bat([1, 2])
    merged = stack(2).stacked(layer)
    layer.clusters[0] = 7
    assert owners(merged) == [(0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("size_bytes", "present"),
    [(0, 0), (1, 1), (CLUSTER_BYTES, 1), (CLUSTER_BYTES + 1, 2), (3 * CLUSTER_BYTES, 3), (9 * CLUSTER_BYTES, 3)],
)
def test_a_raw_base_has_its_clusters_in_order_up_to_the_one_it_ends_in(size_bytes: int, present: int) -> None:
    merged = stack(3, RawLevel(size_bytes))
    assert owners(merged) == [(0, slot) if slot < present else None for slot in range(3)]
    assert merged.raw_size_bytes == size_bytes


def test_the_size_of_a_raw_base_is_kept_under_every_delta() -> None:
    merged = stack(3, RawLevel(CLUSTER_BYTES + 5), [0, 0, 1], [0, 0, 0])
    assert merged.raw_size_bytes == CLUSTER_BYTES + 5
    assert owners(merged) == [(0, 0), (0, 1), (1, 1)]
    assert stack(1, [1]).raw_size_bytes is None


def test_the_top_owns_what_it_wrote_and_a_freed_cluster_is_a_hole() -> None:
    merged = stack(3, [1, 0, 0], [0, 2, 0])
    merged.assign(0, 7)
    merged.assign(2, 8)
    assert owners(merged) == [(1, 7), (1, 2), (1, 8)]
    assert all(merged.owned_by_top(slot) for slot in range(3))
    merged.clear(1)
    assert owners(merged) == [(1, 7), None, (1, 8)]
    assert merged.clusters[1] == 0


def test_the_deepest_stack_has_no_level_that_looks_like_a_hole() -> None:
    merged = stack(2, *([1, 0] for _ in range(MAX_DELTAS)))
    assert owners(merged) == [(MAX_DELTAS - 1, 1), None]
    assert MAX_DELTAS - 1 < HOLE_LEVEL


small_layers = st.lists(st.integers(0, 3), min_size=1, max_size=6)
raw_layers = st.integers(0, 6 * CLUSTER_BYTES).map(RawLevel)


@given(st.integers(1, 5), st.none() | raw_layers, st.lists(small_layers, max_size=3))
def test_every_lookup_agrees_with_a_walk_down_the_stack(
    disk_clusters: int, raw: RawLevel | None, deltas: list[list[int]]
) -> None:
    layers: list[Layer] = [*([raw] if raw else []), *deltas]
    assert owners(stack(disk_clusters, *layers)) == expected_owners(disk_clusters, layers)


@given(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=3), st.data())
def test_the_slots_of_a_piece_of_a_file_are_those_that_the_map_leads_there(
    layers: list[list[int]], data: st.DataObject
) -> None:
    merged = stack(6, *layers)
    level = data.draw(st.integers(0, 3))
    clusters = range(data.draw(st.integers(0, 6)), data.draw(st.integers(0, 7)))
    among = range(data.draw(st.integers(0, 6)), data.draw(st.integers(0, 6)))
    expected = [
        slot
        for slot, owner in enumerate(owners(merged))
        if slot in among and owner is not None and owner[0] == level and owner[1] in clusters
    ]
    assert merged.slots_of(level, clusters, among) == expected


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=20), st.none() | raw_layers)
def test_what_is_present_is_counted_right_after_any_changes_and_found_from_any_cluster(
    changes: list[tuple[bool, int]], raw: RawLevel | None
) -> None:
    merged = stack(6, *([raw] if raw else []), [0, 1, 0, 0, 2, 0])
    for is_written, slot in changes:
        if is_written:
            merged.assign(slot, 9)
        else:
            merged.clear(slot)
    present = [owner is not None for owner in owners(merged)]
    assert merged.present == sum(present)
    for slot in range(7):
        for end in range(slot, 7):
            expected = next((later for later in range(slot, end) if present[later]), end)
            assert merged.next_present(slot, end) == expected
            expected = next((later for later in range(slot, end) if not present[later]), end)
            assert merged.next_hole(slot, end) == expected
    assert merged.stacked(bat([0])).present == merged.present


@pytest.mark.parametrize("slot", [0, 65535, 65536, 131071, 199999])
def test_a_single_cluster_of_a_large_disk_is_found_whatever_is_looked_at_in_one_piece(slot: int) -> None:
    merged = stack(200000, [0])
    assert merged.next_present(0, 200000) == 200000
    merged.assign(slot, 1)
    assert merged.next_present(0, 200000) == merged.next_present(slot, 200000) == slot
    assert (merged.next_present(0, slot), merged.next_present(slot + 1, 200000)) == (slot, 200000)


def test_joined_maps_have_what_either_has_and_the_length_of_the_longer() -> None:
    shorter, longer = stack(3, [0, 1, 2]), stack(5, [3, 0, 4, 0, 0])
    joined = shorter.joined(longer)
    assert [joined.is_hole(slot) for slot in range(5)] == [False, False, False, True, True]
    assert joined.present == 3
    assert owners(longer) == [(0, 3), None, (0, 4), None, None]
    assert stack(2).joined(longer) is longer
