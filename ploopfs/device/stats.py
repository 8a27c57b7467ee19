"""The statistics of one device: the block layer's own columns of `stat` and `inflight`, and what metrics add to them.

Knows nothing of requests but their kind, length and duration, and of answers of the storage but their errno and
operation. Times are nanoseconds inside, milliseconds when shown.
"""

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

SECTOR_BYTES = 512
NS_PER_MS = 1_000_000
BUCKET_BOUNDS_NS = tuple(
    int(seconds * 1e9) for seconds in (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.1, 0.5, 1, 5, 30)
)
"""From an answer out of the page cache to a storage that hangs; the last bucket has no bound."""


class Op(Enum):
    """The four kinds of request; `is_write` is what vz7's aborted state refuses."""

    READ = "read"
    WRITE = "write"
    DISCARD = "discard"
    FLUSH = "flush"

    # A member is one object; enum's own hash is a call of Python, several times per request.
    __hash__ = object.__hash__

    @property
    def is_write(self) -> bool:
        return self is not Op.READ


@dataclass(slots=True)
class OpStats:
    """Ended requests of one kind."""

    ios: int = 0
    length_bytes: int = 0
    duration_ns: int = 0
    in_flight: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKET_BOUNDS_NS) + 1))
    """How many took at most so long, each counted once."""


@dataclass(slots=True)
class DiskStats:
    """`stat` and `inflight` of one device (kernel-ploop.md 4.4). `errors` counts the storage's answers to requests by
    errno and operation."""

    by_op: dict[Op, OpStats] = field(default_factory=lambda: {op: OpStats() for op in Op})
    errors: dict[tuple[int, str], int] = field(default_factory=dict)
    in_flight: int = 0
    _busy_ns: int = 0
    _busy_since_ns: int = 0

    def start(self, op: Op, since_ns: int | None = None) -> int:
        """Count a request in that began now, if not then; the result is its start for `finish`."""
        start_ns = time.monotonic_ns() if since_ns is None else since_ns
        if not self.in_flight:
            self._busy_since_ns = start_ns
        self.by_op[op].in_flight += 1
        self.in_flight += 1
        return start_ns

    def finish(self, op: Op, length_bytes: int, started_ns: int) -> None:
        now_ns = time.monotonic_ns()
        self._leave(op, now_ns)
        self._count(op, length_bytes, now_ns - started_ns)

    def passed(self, op: Op, length_bytes: int, durations_ns: Sequence[int]) -> None:
        """Requests have ended, one after the other and with so many bytes in all, during each of which nothing else has
        happened: nobody has seen them in flight."""
        stats, duration_ns = self.by_op[op], sum(durations_ns)
        if not self.in_flight:
            self._busy_ns += duration_ns
        stats.ios += len(durations_ns)
        stats.length_bytes += length_bytes
        stats.duration_ns += duration_ns
        if max(durations_ns) <= BUCKET_BOUNDS_NS[0]:
            stats.buckets[0] += len(durations_ns)
        else:
            for each_ns in durations_ns:
                stats.buckets[bisect_left(BUCKET_BOUNDS_NS, each_ns)] += 1

    def count(self, op: Op, length_bytes: int, started_ns: int) -> None:
        """A request has ended that is no longer in flight."""
        self._count(op, length_bytes, time.monotonic_ns() - started_ns)

    def _count(self, op: Op, length_bytes: int, duration_ns: int) -> None:
        stats = self.by_op[op]
        stats.ios += 1
        stats.length_bytes += length_bytes
        stats.duration_ns += duration_ns
        stats.buckets[bisect_left(BUCKET_BOUNDS_NS, duration_ns)] += 1

    def failed(self, errno: int, operation: str) -> None:
        """Count an answer of the storage that is an error."""
        self.errors[errno, operation] = self.errors.get((errno, operation), 0) + 1

    def abandon(self, op: Op) -> None:
        """Count a request out that has not ended: it will be started again."""
        self._leave(op, time.monotonic_ns())

    def _leave(self, op: Op, now_ns: int) -> None:
        self.by_op[op].in_flight -= 1
        self.in_flight -= 1
        if not self.in_flight:
            self._busy_ns += now_ns - self._busy_since_ns

    def stat_columns(self) -> tuple[int, ...]:
        """The 17 columns of `stat`; nothing is ever merged here, so those columns are 0."""
        reads, writes, discards, flushes = (self.by_op[op] for op in (Op.READ, Op.WRITE, Op.DISCARD, Op.FLUSH))
        busy_ns = self._busy_ns + (time.monotonic_ns() - self._busy_since_ns if self.in_flight else 0)
        queue_ns = sum(stats.duration_ns for stats in self.by_op.values())
        return (
            *_four(reads),
            *_four(writes),
            self.in_flight,
            busy_ns // NS_PER_MS,
            queue_ns // NS_PER_MS,
            *_four(discards),
            flushes.ios,
            flushes.duration_ns // NS_PER_MS,
        )

    def inflight_columns(self) -> tuple[int, int]:
        reads = self.by_op[Op.READ].in_flight
        return reads, self.in_flight - reads


def _four(stats: OpStats) -> tuple[int, int, int, int]:
    return stats.ios, 0, stats.length_bytes // SECTOR_BYTES, stats.duration_ns // NS_PER_MS
