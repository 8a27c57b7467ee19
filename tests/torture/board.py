"""What the users of a disk, each in a thread, and whoever lets its store fail tell each other.

Knows nothing of disks. Invariant: an error that no outage explains fails the torture, and so does a user that fails in
any other way: it stops all others, and everybody who waits for them.
"""

import errno
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from tests.mounted.daemon import HANG_S

T = TypeVar("T")


class Stopped(Exception):
    """The torture ends; whoever uses the disk ends too."""


class Board:
    """`errors` counts the errnos of failed calls, `steps` the calls of each user that have succeeded. `mounts` is how
    often the disk was mounted so far: an open file of an earlier mount is dead. Made by `users`."""

    def __init__(self, users: int) -> None:
        self.errors: Counter[str] = Counter()
        self.steps = [0] * users
        self.mounts = 1
        self._outages: list[frozenset[str]] = []
        self._in_outage = self._stopping = False
        self._pausing, self._resting = False, 0
        self._changed = threading.Condition()

    # For the conductor.

    @contextmanager
    def outage(self, *errnos: str) -> Iterator[None]:
        """Inside, calls may fail with one of these, and who has met one waits until it is over."""
        with self._changed:
            self._outages.append(frozenset(errnos))
            self._in_outage = True
        try:
            yield
        finally:
            with self._changed:
                self._in_outage = False
                self._changed.notify_all()

    def remounted(self) -> None:
        with self._changed:
            self.mounts += 1

    def wait_steps(self, count: int) -> None:
        """Until each user has that many more behind it."""
        with self._changed:
            aims = [steps + count for steps in self.steps]
            self._wait(lambda: all(map(int.__ge__, self.steps, aims)), f"{count} more steps of each: {self.steps}")

    def wait_error(self, name: str, steps: int) -> bool:
        """Until one more call has failed with that errno; or until the users have so many more behind them together,
        and none of them has."""
        with self._changed:
            before, aim = self.errors[name], sum(self.steps) + steps
            self._wait(lambda: self.errors[name] > before or sum(self.steps) >= aim, f"{name}: {self.errors}")
            return self.errors[name] > before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, no call is under way: each user rests between two of them, or waits for the end of the outage."""
        with self._changed:
            self._pausing = True
            self._wait(lambda: self._resting == len(self.steps), "all users at rest")
        yield
        with self._changed:
            self._pausing = False
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    # For the users.

    def stepped(self, user: int) -> None:
        """Between two calls: the place to rest at, and to end. Raises Stopped."""
        with self._changed:
            self.steps[user] += 1
            self._changed.notify_all()
            if self._pausing:
                self._rest(lambda: not self._pausing, "the end of the pause")
            if self._stopping:
                raise Stopped

    def tried(self, call: Callable[[], T]) -> T | None:
        """None where it has failed and the outage that explains it is over: to be called again, by somebody with an
        open file. Raises Stopped."""
        with self._changed:
            before = len(self._outages) - self._in_outage
        try:
            return call()
        except OSError as error:
            self._met(error, before)
            return None

    def _met(self, error: OSError, before: int) -> None:
        """Whoever tells a user anything else than that the store was gone has told him something wrong."""
        name = errno.errorcode[error.errno or 0]
        with self._changed:
            explained: frozenset[str] = frozenset().union(*self._outages[before:])
            assert name in explained, f"{name} is none of {sorted(explained)}: {error}"
            self.errors[name] += 1
            self._changed.notify_all()
            self._rest(lambda: not self._in_outage and not self._pausing, "the end of the outage")

    def _rest(self, condition: Callable[[], bool], what: str) -> None:
        self._resting += 1
        self._changed.notify_all()
        try:
            self._wait(condition, what)
        finally:
            self._resting -= 1

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        assert self._changed.wait_for(lambda: self._stopping or condition(), HANG_S), f"not in {HANG_S} s: {what}"
        if self._stopping:
            raise Stopped


@contextmanager
def users(board: Board, works: "list[Callable[[], None]]") -> Iterator[None]:
    """Inside, each of them works, until it is stopped; the first that fails is what fails the torture."""

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except Stopped:
            pass
        finally:
            board.stop()

    with ThreadPoolExecutor(len(works)) as threads:
        running: list[Future[None]] = [threads.submit(run, work) for work in works]
        try:
            yield
        except Stopped:
            pass
        finally:
            board.stop()
        for each in running:
            each.result()
