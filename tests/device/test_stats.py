"""`stat` and `inflight`: what is counted, in which column, in which unit."""

import pytest

from ploopfs.device import stats as stats_module
from ploopfs.device.stats import BUCKET_BOUNDS_NS, DiskStats, Op

MS = 1_000_000


class Clock:
    """Stands in for `time` in the module."""

    def __init__(self) -> None:
        self.now_ns = 5 * MS

    def monotonic_ns(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stats_module, "time", clock)
    return clock


def ended(stats: DiskStats, clock: Clock, op: Op, length_bytes: int, duration_ms: int) -> None:
    started_ns = stats.start(op)
    clock.now_ns += duration_ms * MS
    stats.finish(op, length_bytes, started_ns)


def test_a_new_disk_shows_seventeen_zeroes() -> None:
    assert DiskStats().stat_columns() == (0,) * 17


def test_each_kind_of_request_has_its_own_columns(clock: Clock) -> None:
    stats = DiskStats()
    ended(stats, clock, Op.READ, 1024, 3)
    ended(stats, clock, Op.WRITE, 4096, 5)
    ended(stats, clock, Op.DISCARD, 32768, 7)
    ended(stats, clock, Op.FLUSH, 0, 11)
    assert stats.stat_columns() == (1, 0, 2, 3, 1, 0, 8, 5, 0, 26, 26, 1, 0, 64, 7, 1, 11)


def test_lengths_are_summed_before_they_become_sectors(clock: Clock) -> None:
    stats = DiskStats()
    for _ in range(4):
        ended(stats, clock, Op.READ, 256, 0)
    assert stats.stat_columns()[:3] == (4, 0, 2)


def test_requests_that_overlap_count_twice_in_the_queue_and_once_as_busy(clock: Clock) -> None:
    stats = DiskStats()
    first = stats.start(Op.READ)
    clock.now_ns += 10 * MS
    second = stats.start(Op.WRITE)
    clock.now_ns += 10 * MS
    stats.finish(Op.READ, 512, first)
    clock.now_ns += 10 * MS
    stats.finish(Op.WRITE, 512, second)
    in_flight, busy_ms, queue_ms = stats.stat_columns()[8:11]
    assert (in_flight, busy_ms, queue_ms) == (0, 30, 40)


def test_a_disk_is_busy_for_as_long_as_a_request_lasts_and_not_between(clock: Clock) -> None:
    stats = DiskStats()
    ended(stats, clock, Op.READ, 512, 2)
    clock.now_ns += 100 * MS
    stats.start(Op.READ)
    clock.now_ns += 4 * MS
    assert stats.stat_columns()[8:10] == (1, 6)


def test_inflight_shows_reads_and_everything_else() -> None:
    stats = DiskStats()
    for op in Op:
        stats.start(op)
    assert stats.inflight_columns() == (1, 3)
    assert stats.in_flight == 4
    assert [op for op in Op if not op.is_write] == [Op.READ]


@pytest.mark.parametrize(
    ("duration_ms", "bound_s"),
    [(0, 1e-4), (1, 1e-3), (2, 2.5e-3), (100, 0.1), (101, 0.5), (30_000, 30), (30_001, None)],
)
def test_a_request_is_counted_in_the_bucket_that_is_just_long_enough(
    clock: Clock, duration_ms: int, bound_s: float | None
) -> None:
    stats = DiskStats()
    ended(stats, clock, Op.WRITE, 512, duration_ms)
    expected = len(BUCKET_BOUNDS_NS) if bound_s is None else BUCKET_BOUNDS_NS.index(round(bound_s * 1e9))
    assert [place for place, count in enumerate(stats.by_op[Op.WRITE].buckets) if count] == [expected]
    assert not any(stats.by_op[Op.READ].buckets)


def test_a_request_that_is_started_again_is_in_no_bucket_yet(clock: Clock) -> None:
    stats = DiskStats()
    stats.start(Op.READ)
    clock.now_ns += 5 * MS
    stats.abandon(Op.READ)
    assert sum(stats.by_op[Op.READ].buckets) == stats.by_op[Op.READ].ios == 0


def test_errors_are_counted_by_errno_and_operation() -> None:
    stats = DiskStats()
    for number, operation in ((5, "read"), (107, "read"), (5, "read"), (5, "fsync")):
        stats.failed(number, operation)
    assert stats.errors == {(5, "read"): 2, (107, "read"): 1, (5, "fsync"): 1}
