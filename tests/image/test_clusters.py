"""The set of clusters against Python's own sets."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.image import clusters as module
from ploopfs.image.bat import Entries
from ploopfs.image.clusters import ClusterSet

LIMIT = 40


def array(values: list[int]) -> Entries:
    return np.array(values, np.uint32)


def gaps_of(members: set[int], start: int, stop: int) -> list[int]:
    return [cluster for cluster in range(start, stop) if cluster not in members]


steps = st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, LIMIT - 1), max_size=8)), max_size=6)


@given(steps, st.integers(0, LIMIT), st.integers(0, LIMIT + 20), st.sampled_from([8, 16, 1 << 20]))
def test_it_is_a_set_and_tells_what_stood_before_and_what_lies_between(
    changes: list[tuple[bool, list[int]]], start: int, stop: int, piece_bits: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE_BITS", piece_bits)
        found, members = ClusterSet(LIMIT), set[int]()
        for adding, values in changes:
            if adding:
                twice = [value in members or value in values[:at] for at, value in enumerate(values)]
                assert found.add(array(values)).tolist() == twice
                members.update(values)
            else:
                found.discard(array(values))
                members.difference_update(values)
            assert (found.count, found.end) == (len(members), max(members, default=-1) + 1)
            assert found.has(np.arange(LIMIT, dtype=np.uint32)).tolist() == [one in members for one in range(LIMIT)]
        runs = list(found.gaps(start, stop))
        assert [cluster for first, end in runs for cluster in range(first, end)] == gaps_of(members, start, stop)
        assert all(first < end for first, end in runs)
        assert all(before[1] < after[0] for before, after in pairwise(runs)), "runs touch"


def test_a_set_of_all_clusters_that_can_be_named_costs_what_is_touched() -> None:
    found = ClusterSet(0xFFFFFFFF)
    assert not found.add(array([0xFFFFFFFE, 0, 5])).any()
    assert found.add(array([5, 0xFFFFFFFE])).all()
    found.discard(array([0xFFFFFFFE]))
    assert (found.count, found.end) == (2, 6)
