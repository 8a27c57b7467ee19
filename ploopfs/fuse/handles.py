"""Open files: what a file handle of the kernel stands for, an attribute, a disk or a directory.

Knows nothing of inodes or replies. Invariant: what opening took (the device's open count, the place among a signal's
listeners), `release` gives back once.
"""

import logging
import os
from collections.abc import Callable

import pyfuse3

from ploopfs.errors import PermissionDenied
from ploopfs.sysfs.nodes import Attribute, BlockDevice, Directory, Disk, Node
from ploopfs.sysfs.openfile import READY, opening

log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview


class AttributeHandle:
    """An open attribute, and the poll handle that the kernel waits on: one, each poll request replaces it."""

    def __init__(self, attribute: Attribute, flags: int) -> None:
        self._file = opening(attribute, flags)
        self._signal = attribute.signal
        self._waiting: pyfuse3.PollHandle | None = None
        self._unsubscribe: Callable[[], None] | None = None

    async def read(self, offset: int, size_bytes: int) -> Buffer:
        return self._file.read(offset, size_bytes)

    async def write(self, offset: int, data: bytes) -> int:
        return await self._file.write(offset, data)

    async def fsync(self) -> None:
        """Nothing to do, and not ENOSYS: the kernel would never ask again, for the disks either."""

    def poll(self, waiting: pyfuse3.PollHandle | None) -> int:
        """The handle is taken before the mask is: a change in between is then in one of the two."""
        if waiting is not None and self._signal is not None:
            self._waiting = waiting
            if self._unsubscribe is None:
                self._unsubscribe = self._signal.subscribe(self._notify)
        events, _ = self._file.poll()
        return events

    def _notify(self) -> None:
        """Wake who waits. Called by whoever changed the value, who must not suffer from a mount that is gone."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        try:
            waiting.notify()
        except OSError as error:
            log.debug("a poller was not told: %s", error)

    def release(self) -> None:
        self._waiting = None
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None


class DiskHandle:
    """An open disk. Neither O_TRUNC nor close(2) does anything to it, as with a block device."""

    def __init__(self, disk: Disk, flags: int) -> None:
        if flags & os.O_ACCMODE != os.O_RDONLY and disk.device.read_only:
            raise PermissionDenied("the device is read-only")
        self._device: BlockDevice = disk.device
        # O_SYNC contains the bit of O_DSYNC; both promise that a write is durable when it returns.
        self._fua = bool(flags & os.O_DSYNC)
        self._device.opened()

    async def read(self, offset: int, size_bytes: int) -> Buffer:
        return await self._device.read(offset, size_bytes)

    async def write(self, offset: int, data: bytes) -> int:
        return await self._device.write(offset, data, fua=self._fua)

    async def fsync(self) -> None:
        await self._device.flush()

    def poll(self, _waiting: pyfuse3.PollHandle | None) -> int:
        return READY

    def release(self) -> None:
        self._device.released()


class DirectoryHandle:
    """A listing, taken when reading starts at its beginning, so that one pass neither skips a name nor repeats one."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._entries: list[tuple[str, Node]] = []

    def entries(self, start: int) -> list[tuple[str, Node]]:
        if start == 0:
            self._entries = list(self._directory.children().items())
        return self._entries[start:]


OpenFile = AttributeHandle | DiskHandle


def open_file(node: Node, flags: int) -> OpenFile:
    match node:
        case Attribute():
            return AttributeHandle(node, flags)
        case Disk():
            return DiskHandle(node, flags)
        case _:
            raise PermissionDenied("only attributes and disks can be opened")
