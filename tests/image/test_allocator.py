"""Which cluster comes next, and may it hold somebody's bytes."""

import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.errors import ImageFull
from ploopfs.image.allocator import MAX_ENTRY, Allocator
from ploopfs.image.bat import Bat
from ploopfs.image.header import V2, Header


def allocator(
    used: Iterable[int] = (), *, first_cluster: int = 1, file_clusters: int = 1, entry_unit: int = 1
) -> Allocator:
    entries = np.array(list(used), dtype=np.uint32)
    return Allocator(entries, first_cluster=first_cluster, file_clusters=file_clusters, entry_unit=entry_unit)


def take(source: Allocator, count: int) -> list[tuple[int, bool]]:
    return [source.allocate() for _ in range(count)]


def test_a_fresh_image_is_filled_from_its_first_data_cluster_with_clean_space() -> None:
    assert take(allocator(first_cluster=5, file_clusters=5), 3) == [(5, False), (6, False), (7, False)]


def test_a_map_of_a_million_costs_no_more_than_some_sorts_of_it() -> None:
    """Requests wait for it while a top is replaced. Both are measured at once, so that a busy machine is slow for both;
    a table of hashes is 300 times as slow."""
    used = np.random.default_rng(1).permutation(1 << 20).astype(np.uint32)

    def taken_s(work: Callable[[], object]) -> float:
        started_s = time.perf_counter()
        work()
        return time.perf_counter() - started_s

    sorting_s = min(taken_s(lambda: np.sort(used)) for _ in range(5))
    end = len(used) + 1
    making_s = min(
        taken_s(lambda: Allocator(used + 1, first_cluster=1, file_clusters=end, entry_unit=1)) for _ in range(5)
    )
    assert making_s < 60 * sorting_s


def test_a_file_that_ends_before_its_first_data_cluster_is_filled_from_there() -> None:
    assert take(allocator(first_cluster=5, file_clusters=2), 2) == [(5, False), (6, False)]


def test_gaps_come_first_from_the_lowest_and_may_hold_old_bytes() -> None:
    source = allocator([8, 4, 2], first_cluster=2, file_clusters=10)
    assert take(source, 6) == [(3, True), (5, True), (6, True), (7, True), (9, True), (10, False)]


def test_header_and_map_are_never_handed_out() -> None:
    assert take(allocator([3], first_cluster=3, file_clusters=4), 1) == [(4, False)]


def test_an_entry_twice_in_the_map_is_one_taken_cluster() -> None:
    assert take(allocator([2, 2], first_cluster=1, file_clusters=3), 2) == [(1, True), (3, False)]


def test_clusters_that_entries_past_the_disks_end_name_are_not_handed_out() -> None:
    header = Header.new(size_sectors=2 * 64, cluster_sectors=64, version=V2)
    bat = Bat(header, header.raw + array("I", [1, 0, 3]).tobytes())
    source = Allocator(bat.used(), first_cluster=1, file_clusters=5, entry_unit=1)
    assert take(source, 3) == [(2, True), (4, True), (5, False)]


def test_a_released_cluster_comes_back_in_its_place_and_may_hold_old_bytes() -> None:
    source = allocator([1, 2, 3, 5], file_clusters=7)
    source.release(5)
    source.release(2)
    assert take(source, 5) == [(2, True), (4, True), (5, True), (6, True), (7, False)]


def test_a_cluster_given_back_at_once_is_no_longer_clean() -> None:
    source = allocator()
    cluster, may_hold_old_bytes = source.allocate()
    assert not may_hold_old_bytes
    source.release(cluster)
    assert take(source, 2) == [(cluster, True), (cluster + 1, False)]


def test_the_end_is_the_first_cluster_nobody_ever_had() -> None:
    source = allocator([1], file_clusters=3)
    assert source.end_cluster == 3
    take(source, 2)
    assert source.end_cluster == 4
    source.release(3)
    assert source.end_cluster == 4


# With units of 64 and 2048 sectors the largest cluster number is the last whose first sector fits in 32 bits.
limits = pytest.mark.parametrize(
    ("entry_unit", "last"), [(1, 0xFFFFFFFE), (64, 2**26 - 1), (2048, 2**21 - 1), (131072, 2**15 - 1)]
)


@limits
def test_the_map_cannot_name_more_than_its_entries_can_say(entry_unit: int, last: int) -> None:
    source = allocator(file_clusters=last, first_cluster=last, entry_unit=entry_unit)
    assert take(source, 1) == [(last, False)]
    assert last * entry_unit <= 0xFFFFFFFE < (last + 1) * entry_unit
    for _ in range(2):
        with pytest.raises(ImageFull, match=f"above {last}$"):
            source.allocate()
    source.release(last)
    assert take(source, 1) == [(last, True)]


@limits
def test_a_file_longer_than_its_map_can_name_is_full_at_the_same_cluster(entry_unit: int, last: int) -> None:
    source = allocator([last - 1], first_cluster=last - 1, file_clusters=last + 5, entry_unit=entry_unit)
    assert take(source, 1) == [(last, True)]
    with pytest.raises(ImageFull):
        source.allocate()


def test_a_hostile_sparse_file_costs_no_memory() -> None:
    tracemalloc.start()
    try:
        source = allocator([1, 2**31], file_clusters=2**50)
        take(source, 1000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


@given(
    st.sets(st.integers(2, 9)),
    st.integers(0, 12),
    st.lists(st.none() | st.integers(0, 20), max_size=30),
)
def test_it_agrees_with_a_plain_set_of_free_clusters(
    used: set[int], file_clusters: int, operations: list[int | None]
) -> None:
    """None allocates; a number gives back one of the clusters in use."""
    end = max([file_clusters, 2, *(cluster + 1 for cluster in used)])
    source = allocator(used, first_cluster=2, file_clusters=end)
    taken, free, following = sorted(used), set(range(2, end)) - used, end
    for operation in operations:
        if operation is None:
            expected = (min(free), True) if free else (following, False)
            assert source.allocate() == expected
            free.discard(expected[0])
            following = max(following, expected[0] + 1)
            taken.append(expected[0])
        elif taken:
            cluster = taken.pop(operation % len(taken))
            source.release(cluster)
            free.add(cluster)
    assert source.end_cluster == following


def test_clean_is_what_will_be_allocated_next_and_never_held_anything() -> None:
    source = allocator([1, 2], file_clusters=3)
    assert (source.clean(3), source.clean(7)) == (range(3, 3), range(3, 7))
    assert [source.allocate() for _ in range(2)] == [(3, False), (4, False)]
    assert source.clean(7) == range(5, 7)
    source.take_clean(2)
    assert source.end_cluster == 7
    assert source.allocate() == (7, False)
    source.release(5)
    assert not source.clean(20), "the next one held something"
    assert source.allocate() == (5, True)
    assert source.clean(20) == range(8, 20)
    assert not allocator([1, 3], file_clusters=4).clean(20), "there is a gap, with old bytes perhaps"


def test_nothing_that_the_map_cannot_name_is_clean() -> None:
    source = allocator(file_clusters=MAX_ENTRY - 2)
    source.reserve_below(MAX_ENTRY - 2)
    assert source.clean(MAX_ENTRY + 9) == range(MAX_ENTRY - 2, MAX_ENTRY + 1)
