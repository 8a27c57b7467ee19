"""Plans of zeroes: what becomes a hole, what stays as zeroes, and in which order a map comes to name them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.errors import ImageFull
from ploopfs.image.allocator import MAX_ENTRY
from ploopfs.image.map import RawLevel
from ploopfs.image.plan import (
    Barrier,
    Grow,
    Punch,
    Scrub,
    WriteMap,
    WritePlan,
    ZeroPlan,
    plan_zero,
    plan_zero_clusters,
    punches_of,
)
from tests.image.test_plan import C, allocator, bat, stack


def test_a_cluster_is_freed_punched_or_hidden_by_who_has_it() -> None:
    lower = stack(5, [1, 2, 0, 0, 0])
    merged = lower.stacked(bat([0, 7, 8, 9, 0]))
    assert plan_zero(merged, lower, range(5)) == ZeroPlan(freed=(2, 3), punches=(Punch(7 * C, C),), hidden=(0,))
    assert plan_zero(merged, lower, range(3, 5)) == ZeroPlan(freed=(3,), punches=(), hidden=())
    assert plan_zero(merged, lower, range(5)).changed_slots == (2, 3, 0)


def test_what_a_raw_base_ends_in_is_hidden_and_what_lies_past_its_end_is_freed() -> None:
    lower = stack(3, RawLevel(C + 1))
    merged = lower.stacked(bat([0, 5, 6]))
    assert plan_zero(merged, lower, range(3)) == ZeroPlan(freed=(2,), punches=(Punch(5 * C, C),), hidden=(0,))


def test_an_image_alone_hides_nothing() -> None:
    lower = stack(3)
    assert plan_zero(lower.stacked(bat([3, 0, 1])), lower, range(3)) == ZeroPlan((0, 2), (), ())


def test_clusters_of_zeroes_are_the_end_of_a_longer_file_or_scrubbed_and_durable_before_the_map_names_them() -> None:
    merged = stack(4, [1, 2, 3, 0])
    plan = plan_zero_clusters(merged, allocator(1, 3, file_clusters=4), [0, 2])
    assert plan == WritePlan((Grow(5 * C), Scrub(2 * C, C), Barrier(), WriteMap({0: 2, 2: 4})))


def test_nothing_to_hide_is_nothing_to_do() -> None:
    assert plan_zero_clusters(stack(1), allocator(), []) == WritePlan(())


def test_a_map_that_is_full_gives_back_what_was_allocated_for_nothing() -> None:
    free = allocator(file_clusters=MAX_ENTRY, first_cluster=MAX_ENTRY - 1)
    with pytest.raises(ImageFull):
        plan_zero_clusters(stack(4, [1, 2, 3, 4]), free, range(4))
    assert free.allocate()[0] == MAX_ENTRY - 1


@given(st.sets(st.integers(0, 12)))
def test_punches_are_exactly_their_clusters_and_no_two_of_them_touch(clusters: set[int]) -> None:
    punches = punches_of(clusters, C)
    covered = [byte for punch in punches for byte in range(punch.offset, punch.offset + punch.length)]
    assert covered == [cluster * C + within for cluster in sorted(clusters) for within in range(C)]
    assert all(first.offset + first.length < second.offset for first, second in pairwise(punches))
