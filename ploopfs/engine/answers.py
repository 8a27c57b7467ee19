"""Changes of one file that are in flight beside a sync, and what they were answered.

A storage that was lost tells so once, to whoever comes first, and answers the sync behind him with success
(real-parts.md 2.1); the two answers may be heard in the other order. Knows nothing of images. Invariant: beside a
sync that `heard` lets pass no change has failed.
"""

import errno
from collections.abc import Awaitable

import trio

from ploopfs.engine.epochs import Epochs
from ploopfs.errors import BackendError

SURELY_NOT_WRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EOPNOTSUPP, errno.ENOSYS})
"""Answers of a sound storage, which exclude that the bytes arrive late."""


class Answers:
    """Of the changes that were made through `change`, or between `enter` and `leave`."""

    __slots__ = ("_failure", "_in_flight")

    def __init__(self) -> None:
        self._in_flight = Epochs()
        self._failure: BackendError | None = None

    async def change(self, work: Awaitable[None]) -> None:
        epoch, failure = self.enter(), None
        try:
            await work
        except BackendError as error:
            failure = error
            raise
        finally:
            self.leave(epoch, failure)

    def enter(self) -> int:
        """A change begins; the result is for `leave`."""
        return self._in_flight.enter()

    def leave(self, epoch: int, failure: BackendError | None) -> None:
        if failure is not None and failure.errno not in SURELY_NOT_WRITTEN:
            self._failure = failure
        self._in_flight.leave(epoch)

    def mark(self) -> BackendError | None:
        """To be taken before a sync starts, and given to `heard` when it has succeeded."""
        return self._failure

    async def heard(self, mark: BackendError | None, path: str) -> None:
        """Wait for the answers to all changes that are in flight; what a read has been answered by now is heard, too.
        Raises if a change has failed since `mark`: then the sync says nothing."""
        answered = trio.Event()
        self._in_flight.retire(answered.set)
        await answered.wait()
        if self._failure is not None and self._failure is not mark:
            raise BackendError(self._failure.errno, "fsync", path) from self._failure
