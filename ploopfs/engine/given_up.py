"""Operations that were given up while the storage had them: an image that one may yet change is not opened for writing.

Knows nothing of threads or of faults. Invariant: whoever opens an image for writing cannot be overwritten by what an
earlier open file of ours has left behind, as far as the two can be known to be one image. A file is known again by its
device and inode; behind a mount that was made anew it has another device number, and on FUSE perhaps another inode, so
there the path stands for it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from ploopfs.bounds import GIVEN_UP_MS
from ploopfs.errors import StorageTimeout

_LOOK_S = 0.01


class Identified(Protocol):
    """What tells one file from another."""

    @property
    def device_number(self) -> int: ...

    @property
    def inode(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Change:
    """`path` is real: without symbolic links."""

    path: str
    identity: Identified
    is_under_way: Callable[[], bool]

    def may_reach(self, path: str, identity: Identified) -> bool:
        """Either it is the same file, or a mount lies at the path that was not there before: it may show the very
        store that still has the change."""
        if self.identity.device_number == identity.device_number:
            return self.identity.inode == identity.inode
        return self.path == path


class GivenUp:
    """Those of one kind of files."""

    def __init__(self) -> None:
        self._changes: list[Change] = []

    def add(self, change: Change) -> None:
        self._changes.append(change)

    async def wait_ended(self, path: str, identity: Identified) -> None:
        """As `check`, but what only needs a moment has it: most that is given up is all but done."""
        deadline = trio.current_time() + GIVEN_UP_MS / 1000
        while True:
            try:
                self.check(path, identity)
            except StorageTimeout:
                if trio.current_time() >= deadline:
                    raise
            else:
                return
            await trio.sleep(_LOOK_S)

    def check(self, path: str, identity: Identified) -> None:
        """`path` is real. Raises StorageTimeout for an image that is not to be written yet."""
        self._changes[:] = [change for change in self._changes if change.is_under_way()]
        change = next((change for change in self._changes if change.may_reach(path, identity)), None)
        if change is None:
            return
        why = "an operation on it was given up and may yet happen"
        if change.identity.device_number != identity.device_number:
            device = change.identity.device_number
            why += (
                f", through the mount {os.major(device)}:{os.minor(device)} that was here before and still hangs: end "
                "its server, or abort its connection"
            )
        raise StorageTimeout(f"{path}: {why}")
