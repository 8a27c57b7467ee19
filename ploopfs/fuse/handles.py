"""Open files: what a file handle of the kernel stands for, an attribute, a disk or a directory.

Knows nothing of inodes or replies. Invariant: what opening took (the device's open count, the place among a signal's
listeners), `release` gives back once.
"""

import logging
import os
from collections.abc import Callable

import pyfuse3

from ploopfs.device.signal import Signal
from ploopfs.errors import PermissionDenied
from ploopfs.sysfs.nodes import Attribute, Directory, Disk, Node, Report, Stream
from ploopfs.sysfs.opendisk import OpenDisk
from ploopfs.sysfs.openfile import READY, opening
from ploopfs.sysfs.report import OpenReport
from ploopfs.sysfs.stream import OpenStream

log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview


class _Waiting:
    """The poll handle that the kernel waits on: one, each poll request replaces it. Told when the signal fires."""

    def __init__(self, signal: Signal | None) -> None:
        self._signal = signal
        self._handle: pyfuse3.PollHandle | None = None
        self._unsubscribe: Callable[[], None] | None = None

    def take(self, handle: pyfuse3.PollHandle | None) -> None:
        if handle is not None and self._signal is not None:
            self._handle = handle
            if self._unsubscribe is None:
                self._unsubscribe = self._signal.subscribe(self._notify)

    def _notify(self) -> None:
        """Wake who waits. Called by whoever changed the value, who must not suffer from a mount that is gone."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            handle.notify()
        except OSError as error:
            log.debug("a poller was not told: %s", error)

    def release(self) -> None:
        self._handle = None
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None


class AttributeHandle:
    """An open attribute."""

    is_seekable = True
    reads_at_once = True

    def __init__(self, attribute: Attribute, flags: int) -> None:
        self._file = opening(attribute, flags)
        self._waiting = _Waiting(attribute.signal)

    async def read(self, offset: int, size_bytes: int) -> Buffer:
        return self._file.read(offset, size_bytes)

    async def write(self, offset: int, data: bytes) -> int:
        return await self._file.write(offset, data)

    async def fsync(self) -> None:
        """Nothing to do, and not ENOSYS: the kernel would never ask again, for the disks either."""

    def poll(self, waiting: pyfuse3.PollHandle | None) -> int:
        """The handle is taken before the mask is: a change in between is then in one of the two."""
        self._waiting.take(waiting)
        events, _ = self._file.poll()
        return events

    def release(self) -> None:
        self._waiting.release()


class StreamHandle:
    """An open stream of records: read from where this descriptor is, whatever offset the kernel counts."""

    is_seekable = False
    reads_at_once = True

    def __init__(self, stream: Stream, flags: int) -> None:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionDenied("events can only be read")
        self._file = OpenStream(stream.events)
        self._waiting = _Waiting(stream.events.changed)

    async def read(self, _offset: int, size_bytes: int) -> Buffer:
        return self._file.read(size_bytes)

    async def write(self, _offset: int, _data: bytes) -> int:
        raise PermissionDenied("events can only be read")

    async def fsync(self) -> None:
        """As for an attribute."""

    def poll(self, waiting: pyfuse3.PollHandle | None) -> int:
        self._waiting.take(waiting)
        return self._file.poll()

    def release(self) -> None:
        self._waiting.release()


class ReportHandle:
    """An open report."""

    is_seekable = True
    reads_at_once = False

    def __init__(self, report: Report, flags: int) -> None:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionDenied("a report can only be read")
        self._file = OpenReport(report)

    async def read(self, offset: int, size_bytes: int) -> Buffer:
        return await self._file.read(offset, size_bytes)

    async def write(self, _offset: int, _data: bytes) -> int:
        raise PermissionDenied("a report can only be read")

    async def fsync(self) -> None:
        """As for an attribute."""

    def poll(self, _waiting: pyfuse3.PollHandle | None) -> int:
        return READY

    def release(self) -> None:
        """Nothing was taken."""


class DiskHandle:
    """An open disk."""

    is_seekable = True
    reads_at_once = False

    def __init__(self, disk: Disk, flags: int) -> None:
        self._file = OpenDisk(disk, flags)

    async def read(self, offset: int, size_bytes: int) -> Buffer:
        return await self._file.device.read(offset, size_bytes)

    async def write(self, offset: int, data: bytes) -> int:
        return await self._file.device.write(offset, data, fua=self._file.fua)

    async def fsync(self) -> None:
        await self._file.device.flush()

    def poll(self, _waiting: pyfuse3.PollHandle | None) -> int:
        return READY

    def release(self) -> None:
        self._file.release()


class DirectoryHandle:
    """A listing, taken when reading starts at its beginning, so that one pass neither skips a name nor repeats one."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._entries: list[tuple[str, Node]] = []

    def entries(self, start: int) -> list[tuple[str, Node]]:
        if start == 0:
            self._entries = list(self.directory.children().items())
        return self._entries[start:]


OpenFile = AttributeHandle | StreamHandle | ReportHandle | DiskHandle


def open_file(node: Node, flags: int) -> OpenFile:
    match node:
        case Attribute():
            return AttributeHandle(node, flags)
        case Stream():
            return StreamHandle(node, flags)
        case Report():
            return ReportHandle(node, flags)
        case Disk():
            return DiskHandle(node, flags)
        case _:
            raise PermissionDenied("a directory or a link cannot be opened as a file")
