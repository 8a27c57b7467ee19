"""Stacks that serve nothing: the disk of device-mapper's error target, and a lost stack that must not be used again.

Every request fails with an error of the stack's own; nothing is read or written. Knows nothing of tables. Invariant:
no file of such a stack is touched but to close it.
"""

from collections.abc import Callable, Sequence
from typing import NoReturn

from ploopfs.engine.delta import Delta
from ploopfs.engine.file import Buffer
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError, NoSuchEntry, PloopError, TargetFailed
from ploopfs.image.map import Map


class Failing(Stack):
    """`failure` makes the error of one request. Without deltas there is no top to ask for."""

    def __init__(
        self,
        *,
        size_bytes: int,
        lower: Map,
        failure: Callable[[], PloopError],
        deltas: Sequence[Delta] = (),
        below: Map | None = None,
    ) -> None:
        self.deltas = tuple(deltas)
        self.lower = self.map = lower
        self.below = lower if below is None else below
        self.size_bytes = size_bytes
        self.cluster_bytes = lower.cluster_bytes
        self._failure = failure
        self.room = None

    @property
    def top(self) -> Delta:
        if not self.deltas:
            raise NoSuchEntry("the device has no delta: its table is an error target")
        return self.deltas[-1]

    @property
    def is_lost(self) -> bool:
        return bool(self.deltas)

    @property
    def is_unconfirmed(self) -> bool:
        return False

    def note_loss(self, error: BackendError) -> None:
        """It writes nothing."""

    @property
    def format_version(self) -> int:
        return super().format_version if self.deltas else 0

    @property
    def read_only(self) -> bool:
        return False

    def serves(self, wanted: range, level: int, offset: int, length: int) -> bool:  # noqa: ARG002 -- of a stack
        return False

    def read_nowait(self, offset: int, length: int) -> None:
        """Nothing is at hand."""

    def aim(self, offset: int, data: Buffer) -> None:
        """Nothing goes anywhere."""

    def thread_fd(self) -> None:
        """By nobody."""

    async def read(self, offset: int, length: int) -> NoReturn:  # noqa: ARG002 -- the signature of a stack
        raise self._failure()

    async def write(
        self, offset: int, data: Buffer, *, fua: bool = False, check_zeros: bool = True  # noqa: ARG002 -- as above
    ) -> NoReturn:
        raise self._failure()

    async def discard(self, offset: int, length: int) -> NoReturn:  # noqa: ARG002 -- as above
        raise self._failure()

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool, check_zeros: bool = True  # noqa: ARG002 -- as above
    ) -> NoReturn:
        raise self._failure()

    def seek_data(self, offset: int) -> int | None:
        """Who skips a hole would take for zeroes what cannot be read."""
        return offset if offset < self.size_bytes else None

    def seek_hole(self, offset: int) -> int:  # noqa: ARG002 -- as above
        return self.size_bytes

    @property
    def allocated_bytes(self) -> int:
        return self.size_bytes

    async def flush(self) -> NoReturn:
        raise self._failure()

    async def aclose(self, *, clean: bool) -> None:  # noqa: ARG002 -- there is nothing to settle
        for delta in self.deltas:
            await delta.file.aclose()


def error_disk(*, size_bytes: int, cluster_bytes: int) -> Failing:
    """Every request fails with EIO."""
    return Failing(
        size_bytes=size_bytes,
        lower=Map.empty(cluster_bytes=cluster_bytes, disk_clusters=0),
        failure=lambda: TargetFailed("the table of the device is an error target"),
    )


def condemned(stack: Stack, errno: int, operation: str, path: str) -> Failing:
    """The same stack, never to be used again: every request gets the storage's answer with which it was lost."""
    return Failing(
        size_bytes=stack.size_bytes,
        lower=stack.lower,
        failure=lambda: BackendError(errno, operation, path),
        deltas=stack.deltas,
        below=stack.below,
    )
