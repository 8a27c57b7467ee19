"""Work in a thread that its caller may give up: it never begins, or ends when nobody waits for it any more.

Knows nothing of what the work is. Invariant: what was opened by it, or is to be closed after it, is closed once, by
whoever is last.
"""

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Hop(Generic[T]):
    """`ended` is called once, in whatever thread, when the work has ended or never will begin."""

    def __init__(self, work: Callable[[], T], ended: Callable[[], None]) -> None:
        self._work = work
        self._when_ended = ended
        self._began = self._ended = self._revoked = False
        self._lock = threading.Lock()

    def __call__(self) -> T | None:
        with self._lock:
            if self._revoked:
                return None
            self._began = True
        try:
            return self._work()
        finally:
            self._ended = True
            self._when_ended()

    def give_up(self) -> None:
        """Nothing happens if it has ended."""
        with self._lock:
            self._revoked = not self._began
        if self._revoked:
            self._when_ended()

    def is_under_way(self) -> bool:
        return self._began and not self._ended


class Closable(Protocol):
    def close(self) -> None:
        """Blocking."""


C = TypeVar("C", bound=Closable)


class Opening(Generic[C]):
    """Opening a file in a thread. When it is given up, whoever is last closes the file, of which nobody would know."""

    def __init__(self, work: Callable[[], C]) -> None:
        self._work = work
        self._file: C | None = None
        self._is_given_up = False
        self._lock = threading.Lock()

    def __call__(self) -> C:
        file = self._work()
        with self._lock:
            self._file = file
            is_given_up = self._is_given_up
        if is_given_up:
            file.close()
        return file

    def give_up(self) -> C | None:
        """What was opened already."""
        with self._lock:
            self._is_given_up = True
            return self._file
