"""What a disk must read as: the acknowledged content of its blocks, and what a write that failed may have left there.

Knows no files. Invariant: a block is right if it holds what was acknowledged last, or what a later write of it that was
not acknowledged would have put there.
"""

from collections.abc import Iterator
from random import Random

BLOCK_BYTES = 4096
LANES = 17
"""Writers beside each other have blocks of their own, so that each knows what it may read."""
SPAN_BYTES = 256 << 20
"""Only that much of a large disk is used: all of it is kept in memory."""


class Ledger:
    """Of one disk; `size_bytes` is the disk's."""

    def __init__(self, size_bytes: int) -> None:
        self.blocks = min(size_bytes, SPAN_BYTES) // BLOCK_BYTES
        self._acknowledged: dict[int, bytes] = {}
        self._open: dict[int, list[bytes]] = {}

    def __len__(self) -> int:
        return len(self._acknowledged)

    def __iter__(self) -> Iterator[int]:
        """The blocks of which something is known, as they are now: others may write meanwhile."""
        return iter(sorted(self._acknowledged))

    def draw(self, random: Random, lane: int) -> int:
        """A block of one lane."""
        count = max(1, self.blocks // LANES)
        return min(self.blocks - 1, random.randrange(count) * LANES + lane)

    def issued(self, block: int, data: bytes) -> None:
        """Before a write: from now on it may be there."""
        self._open.setdefault(block, []).append(data)

    def acknowledged(self, block: int, data: bytes) -> None:
        """After it has succeeded: nothing else may be there."""
        self._acknowledged[block] = data
        self._open.pop(block, None)

    def fits(self, block: int, found: bytes) -> bool:
        """Whether the block may read like that; one of which nothing is known may read like anything."""
        if block not in self._acknowledged:
            return True
        return found == self._acknowledged[block] or found in self._open.get(block, ())
