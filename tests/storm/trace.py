"""What happened in one run, in its order: the last lines in words, a hash of all of them, and what it was that broke.

Knows nothing of what the lines mean. Invariant: a line depends on nothing but the seed.
"""

import hashlib
from collections import Counter, deque

import trio

LAST = 60


class Violation(Exception):
    """Something that must be true was not."""


class Trace:
    """`counts` is how often each kind of thing happened."""

    def __init__(self, *, keep: int = LAST) -> None:
        self.lines: deque[str] = deque(maxlen=keep)
        self.counts: Counter[str] = Counter()
        self._hash = hashlib.sha256()

    def note(self, kind: str, text: str = "") -> None:
        line = f"{trio.current_time() - self._started_s:10.4f} {kind} {text}".rstrip()
        self.counts[kind] += 1
        self.lines.append(line)
        self._hash.update(line.encode() + b"\n")

    def begin(self) -> None:
        self._started_s = trio.current_time()

    @property
    def now_s(self) -> float:
        return trio.current_time() - self._started_s

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()[:16]
