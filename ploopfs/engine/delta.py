"""One open delta: its file, its header, and the in-use mark around everything that is written.

Invariants. The mark is on stable storage before the first write and is cleared only by a close that has flushed. A
sync that failed once fails for ever: the kernel may have dropped the pages, so a later success would be a lie. Only a
delta that was opened for writing ever writes, and whatever is written passes `write`, `write_soon`, `punch` or `wrote`.
Several stacks may share a delta, one after the other: what is known of its file stays with it."""

import errno
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import trio

from ploopfs.engine.answers import SURELY_NOT_WRITTEN, Answers
from ploopfs.engine.file import Answered, Buffer, File
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.errors import BackendError, StorageTimeout
from ploopfs.image.allocator import Allocator
from ploopfs.image.bat import Bat
from ploopfs.image.extension import extension_offset_bytes
from ploopfs.image.header import CLOSED, MUTABLE_START, Header
from ploopfs.image.map import RawLevel
from ploopfs.image.stacking import Layer
from ploopfs.image.tracker import Tracker

log = logging.getLogger(__name__)

_KERNEL_IO_ENGINES = {"nfs": "nfs", "nfs4": "nfs"}


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One file of a stack, as a user or a descriptor names it."""

    path: str
    raw: bool = False


class Delta:
    """Made by `open_delta`. `header` is None and `bat` is None for a raw base. `file_size` is the size as we know
    it."""

    def __init__(
        self, file: File, *, header: Header | None, bat: Bat | None, file_size: int, trusted_size: int
    ) -> None:
        self.file = file
        self.header = header
        self.bat = bat
        self.file_size = file_size
        self.trusted_size = trusted_size
        self.durable_size = 0
        """So many bytes the file has after a power failure, too, as far as we have seen to it."""
        self.marked = False
        self.uncertain_slots: set[int] = set()
        self.map_writes = 0
        self.unconfirmed_slots: dict[int, int] = {}
        """Their entries have been written, the last time by this write of the map, and no flush has succeeded since."""
        self.doubtful_clusters: set[int] = set()
        """Of the file: a write or a hole that failed may yet reach them."""
        self.doubtful_header: Header | None = None
        """The file may have this one instead of `header`."""
        self._closing_header, self._closing_size = header, file_size
        self._modified = False
        self.preallocates = False
        """Space for a new cluster is taken when it is allocated, not when it is written (`set_falloc_new_clu`)."""
        self.tracker: Tracker | None = None
        self.lock_lost = False
        """Somebody else may have the image by now."""
        self.locks_as_writer = file.writable
        """Its lock keeps readers out, too: it is written, if not through this open file."""
        self._size_uncertain = False
        self._sync_error: BackendError | None = None
        self._answers = Answers()

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def writable(self) -> bool:
        return self.file.writable

    @property
    def may_be_marked(self) -> bool:
        """The mark was set, or setting it has failed and may have reached the file all the same."""
        return self.marked or (self.header is not None and self.header.is_marked_in_use)

    @property
    def format(self) -> str:
        return "ploop1" if self.header else "raw"

    @property
    def inode(self) -> int:
        return self.file.identity.inode

    @property
    def device_number(self) -> int:
        return self.file.identity.device_number

    @property
    def io_engine(self) -> str:
        """The kernel's name for the way it would reach this image: kaio for FUSE, nfs, else direct."""
        filesystem = self.file.identity.filesystem
        return "kaio" if filesystem.startswith("fuse") else _KERNEL_IO_ENGINES.get(filesystem, "direct")

    @property
    def layer(self) -> Layer:
        return Layer(self.path, self.header, self.file_size)

    @property
    def map_level(self) -> Bat | RawLevel:
        if self.header is None:
            return RawLevel(self.file_size)
        assert self.bat is not None
        return self.bat

    @cached_property
    def allocator(self) -> Allocator:
        """The free clusters of the file. It belongs to the open file and outlives a stack: a cluster that a failed
        write may yet reach, or an uncertain map entry name, stays taken whatever stack is made over this delta."""
        if self.header is None or self.bat is None:
            return Allocator(np.zeros(0, np.uint32), first_cluster=0, file_clusters=0, entry_unit=1)
        return Allocator(
            self.bat.used(),
            first_cluster=self.header.first_cluster,
            file_clusters=-(-self.file_size // self.header.cluster_bytes),
            entry_unit=self.header.entry_unit,
        )

    def through(self, file: File) -> "Delta":
        """The same lower delta, read through another open file."""
        return Delta(file, header=self.header, bat=None, file_size=self.file_size, trusted_size=self.trusted_size)

    async def mark_in_use(self) -> None:
        """Put the mark on stable storage; everything else of the image is as it was.

        A format extension (dirty bitmap) stays in the file but is no longer named: beside the mark it would make the
        image a broken one if we die (image-format.md 7.1, step 9). A clean close without a change names it again.
        """
        if self.header is None:
            return
        header = self.header.marked_in_use()
        self.header = header.changed(in_use=header.in_use, flags=header.flags, extension_sectors=0)
        size = self.file_size
        await self._write_header()
        self.marked, self.durable_size = True, size

    def note_modified(self) -> None:
        """Before the first change: a format extension no longer describes the image and goes."""
        if self._modified:
            return
        self._modified = True
        if self._closing_header is not None and extension_offset_bytes(self._closing_header):
            log.info("%s: the format extension (dirty bitmap) is dropped, as the image is about to change", self.path)

    async def sync(self) -> None:
        await self._synced(self.file.sync)

    async def _synced(self, sync: Callable[[], Awaitable[None]]) -> None:
        failed = self._sync_error
        if failed is not None:
            raise BackendError(failed.errno, failed.operation, failed.path) from failed
        mark = self._answers.mark()
        try:
            await sync()
        except BackendError as error:
            if error.operation == "fsync":
                self._sync_error = error
            raise
        except trio.Cancelled:
            # Nobody hears its answer, and if it fails the next one says nothing of that.
            self._sync_error = BackendError(errno.ETIMEDOUT, "fsync", self.path)
            raise
        await self._answers.heard(mark, self.path)

    def write_soon(self, pieces: Pieces, answered: Answered, reply: Reply | None = None) -> bool:
        """As `File.write_soon`."""

        def heard(error: BackendError | None) -> None:
            self._answers.leave(epoch, error)
            if error is not None or self.tracker is not None:
                for offset, data in pieces:
                    self._note_change(error, offset, len(data))
            answered(error)

        if not self.file.write_soon(pieces, heard, reply):
            return False
        epoch = self._answers.enter()
        return True

    async def write(self, offset: int, data: Buffer) -> None:
        """Everything that is written to the file passes here, `write_soon`, `punch` or `wrote`."""
        with self._noted(offset, len(data)):
            await self._answers.change(self.file.write(offset, data))

    def wrote(self, pieces: Pieces) -> None:
        """These have been written since nobody else could look, so that no sync can have been beside them."""
        if self.tracker is not None:
            for offset, data in pieces:
                self._note_change(None, offset, len(data))

    async def punch(self, offset: int, length: int) -> None:
        with self._noted(offset, length):
            await self._answers.change(self.file.punch(offset, length))

    @contextmanager
    def _noted(self, offset: int, length: int) -> Iterator[None]:
        failure: BackendError | None = None
        try:
            yield
        except BackendError as error:
            failure = error
            raise
        finally:
            self._note_change(failure, offset, length)

    async def grow(self, size: int) -> None:
        """The caller serializes calls, so that a smaller size can never follow a larger one."""
        if size > self.file_size:
            self._size_uncertain = True
            if self.preallocates:
                await self._answers.change(self.file.allocate(self.file_size, size - self.file_size))
            else:
                await self._answers.change(self.file.truncate(size))
            self.file_size = size
            self._size_uncertain = False

    async def extend(self, size: int) -> None:
        """Make it longer, and that on stable storage, without a flush of what was written. As `grow`, and nobody may
        write past the present end meanwhile."""
        self._size_uncertain = True
        await self._answers.change(self.file.truncate(size))
        await self._synced(partial(self.file.sync_size, size))
        self.file_size = size
        self._size_uncertain = False

    async def resize(self, header: Header) -> None:
        """Put the header of a larger disk in force; the room for the map's new entries is zeroes already.

        One write within a sector, so the image has the old size or the new one. After a failure memory has the old
        one, and which of them the file has is in doubt until the mark is set or cleared, which then writes all of
        ours."""
        assert self.bat is not None
        self.doubtful_header = header
        await self.write(0, header.raw)
        await self.sync()
        self.header = header
        self.bat.extend(header.disk_clusters)
        self.doubtful_header = None

    async def write_map(self, changes: dict[int, int]) -> None:
        """Write the map pages that carry `changes` (slot -> cluster), then take them into memory.

        After a failure memory is as it was, and what the file says of these slots is uncertain until they are written
        again, which the next call does whatever its own changes are.
        """
        assert self.bat is not None
        changes = {slot: self.bat.clusters[slot] for slot in self.uncertain_slots} | changes
        self.uncertain_slots.update(changes)
        for page in self.bat.pages(changes):
            await self.write(page.offset, page.data)
        self.uncertain_slots.difference_update(changes)
        self.take_entries(changes)

    def take_entries(self, entries: dict[int, int]) -> None:
        """Into memory: the file has them."""
        assert self.bat is not None
        self.map_writes += 1
        for slot, cluster in entries.items():
            self.unconfirmed_slots[slot] = self.map_writes
            self.bat.clusters[slot] = cluster

    def confirmed(self, map_writes: int, size: int) -> None:
        """So many writes of the map are on stable storage, and that the file has so many bytes."""
        self.confirmed_size(size)
        self.unconfirmed_slots = {slot: write for slot, write in self.unconfirmed_slots.items() if write > map_writes}

    def confirmed_size(self, size: int) -> None:
        """That the file has so many bytes is on stable storage."""
        self.durable_size = max(self.durable_size, size)

    async def aclose(self, *, clean: bool) -> None:
        """Close; `clean` settles first and raises what that raises. Not clean: the storage is not written to at all."""
        try:
            if clean and self.writable:
                await self.settle()
        finally:
            await self.file.aclose()

    async def settle(self) -> None:
        """Flush, give back what lies past the last cluster, clear the mark. Raises PloopError, the mark still set."""
        if self.file.abandoned:
            raise StorageTimeout(f"{self.path}: an operation on it was given up and may yet happen")
        await self.sync()
        if self.header is None or not self.marked:
            return
        assert self.bat is not None
        assert self._closing_header is not None
        if self._modified:
            if self.uncertain_slots:
                await self.write_map({})
                await self.sync()  # before the file is cut: the entry that may stand there names a cluster past the cut
            end = max(self.header.first_cluster, int(self.bat.used().max(initial=0)) + 1) * self.header.cluster_bytes
            await self._cut(end)
            closed = self.header.changed(in_use=CLOSED, flags=self.header.flags, extension_sectors=0)
        else:
            if self._size_uncertain or self.file_size != self._closing_size:
                await self._cut(self._closing_size)
            closed = self._closing_header
        # The order is the promise: nothing that the cleared mark vouches for may still be on its way.
        await self.sync()
        self.header = closed
        await self._write_header()
        self.marked = False

    async def _cut(self, end: int) -> None:
        # A storage that forgot a growth, and said so once to a write that failed, has made the file shorter since.
        if self._size_uncertain or await self.file.size() != end:
            await self.file.truncate(end)
        self.file_size, self._size_uncertain = end, False
        self.durable_size, self._closing_size = min(self.durable_size, end), end

    async def _write_header(self) -> None:
        assert self.header is not None
        start = 0 if self.doubtful_header else MUTABLE_START
        await self.write(start, self.header.raw[start:])
        await self.sync()
        self.doubtful_header = None

    def _note_change(self, failure: BackendError | None, offset: int, length: int) -> None:
        """What one that failed leaves in doubt, and what a copy of the file must have again."""
        if failure is not None and self.header is not None and failure.errno not in SURELY_NOT_WRITTEN:
            size = self.header.cluster_bytes
            self.doubtful_clusters.update(range(offset // size, -(-(offset + length) // size)))
        if self.tracker is not None:
            self.tracker.mark(offset, length)
