"""One rule of fault injection: which operations it takes, and what becomes of them.

Knows nothing of stacks: where an operation lies in one is asked of a `Place`. Invariant: an operation is counted by the
one rule that takes it, and by no other.
"""

import time
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import trio

from ploopfs.engine.inject.filter import OPERATIONS, Operation


@dataclass(frozen=True, slots=True)
class Sectors:
    """Sectors of the disk, of 512 bytes; both ends belong to it."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Hit:
    """The last operation that a rule took; `level` is None where the file belongs to no level."""

    time_s: float
    operation: str
    offset: int
    length: int
    level: int | None


class Place(Protocol):
    """Where operations lie."""

    def level(self, operation: Operation) -> int | None: ...

    def holds(self, operation: Operation, sectors: Sectors) -> bool:
        """Whether any byte of the operation is a byte of these sectors of the disk."""


@dataclass(eq=False, slots=True)
class Rule:
    """Takes `operations` on `path` (None: any file) of `level` (None: any) that touch `sectors` of the disk.

    Without `sectors` it takes what belongs to no sector too: the header, the map, an fsync, an open. Of the operations
    that fit it takes one in `chance`, none of the first `skip`, and `count` at most (None: without a bound). `errno`,
    `delay_s`, `released`, `after` and `late` are what becomes of them (see `filter.Fate`).
    """

    operations: frozenset[str] = OPERATIONS
    errno: int | None = None
    delay_s: float = 0
    released: trio.Event | None = None
    after: bool = False
    late: bool = False
    level: int | None = None
    sectors: Sectors | None = None
    path: str | None = None
    chance: int = 1
    seed: int | None = None
    skip: int = 0
    count: int | None = None
    number: int = 0
    hits: int = 0
    last: Hit | None = None
    _skipped: int = 0
    _random: Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = Random(self.seed)

    @property
    def spent(self) -> bool:
        return self.count is not None and self.hits >= self.count

    def takes(self, operation: Operation, place: Place) -> bool:
        """Whether the operation is this rule's; it is then counted."""
        if self.spent or operation.name not in self.operations or not self._fits(operation, place):
            return False
        if self.chance > 1 and self._random.randrange(self.chance):
            return False
        if self._skipped < self.skip:
            self._skipped += 1
            return False
        self.hits += 1
        self.last = Hit(time.time(), operation.name, operation.offset, operation.length, place.level(operation))
        return True

    def _fits(self, operation: Operation, place: Place) -> bool:
        return (
            (self.path is None or operation.path == self.path)
            and (self.level is None or place.level(operation) == self.level)
            and (self.sectors is None or place.holds(operation, self.sectors))
        )
