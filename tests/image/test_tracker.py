"""Every cluster that was written is told of once, in turn, and again when it was written again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.image.tracker import Tracker

C = 16


def tracker(*used: int, first_cluster: int = 1) -> Tracker:
    return Tracker(np.array(used, dtype=np.uint32), first_cluster=first_cluster, cluster_bytes=C)


def drained(source: Tracker) -> list[int]:
    return list(iter(source.next, None))


def test_all_that_is_used_counts_as_written_at_the_start_header_and_map_included() -> None:
    assert drained(tracker(5, 3, first_cluster=2)) == [0, 1, 3, 5]
    assert drained(tracker(first_cluster=0)) == []


def test_a_write_marks_each_cluster_that_it_touches() -> None:
    source = tracker(first_cluster=0)
    source.mark(C - 1, 2)
    source.mark(3 * C, C)
    source.mark(6 * C, 0)
    assert drained(source) == [0, 1, 3]


def test_the_answers_go_round_so_that_a_busy_cluster_does_not_hide_the_others() -> None:
    source = tracker(1, 2, 3, first_cluster=0)
    answers = []
    for _ in range(3):
        answers.append(source.next())
        source.mark(C, 1)
    assert answers == [1, 2, 3]
    assert drained(source) == [1]


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 9 * C), st.integers(1, 3 * C)))))
def test_nothing_that_was_written_is_left_out_and_nothing_else_is_told(history: list[tuple[int, int] | None]) -> None:
    """None asks for the next one."""
    source = tracker(2, 7)
    expected = {0, 2, 7}
    for written in history:
        if written is None:
            answer = source.next()
            assert (answer is None) == (not expected)
            expected.discard(-1 if answer is None else answer)
            continue
        offset, length = written
        source.mark(offset, length)
        expected |= {position // C for position in range(offset, offset + length)}
    assert sorted(drained(source)) == sorted(expected)
