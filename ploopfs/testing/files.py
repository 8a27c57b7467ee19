"""Files in memory, for tests without a disk.

Fault model: none. Every operation succeeds at once, writes are visible at once, and nothing is ever lost; put
`FaultyFiles` around it for the rest. Locks follow engine/lock.py: one writer, or any number of readers."""

import errno
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from ploopfs.engine.file import Answered, Buffer
from ploopfs.engine.probe import ProbedImage
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.engine.storage import Identity
from ploopfs.errors import BackendError, ImageLocked, ImageMismatch
from ploopfs.testing.soon import write_soon

_DEVICE_NUMBER = 0x700
_numbers = itertools.count(1)


@dataclass(slots=True)
class MemoryImage:
    """The bytes of one file; `writers` and `readers` are the numbers of the open files that hold its lock."""

    data: bytearray
    inode: int
    writers: set[int] = field(default_factory=set)
    readers: set[int] = field(default_factory=set)


class MemoryFiles:
    """`images` maps paths to images; a test may put bytes in with `put` and look at them with `bytes_of`."""

    def __init__(self, *, answers_at_once: bool = True) -> None:
        self.images: dict[str, MemoryImage] = {}
        self.answers_at_once = answers_at_once
        self._inodes = itertools.count(1)

    def put(self, path: str, data: bytes) -> None:
        self.images[path] = MemoryImage(bytearray(data), next(self._inodes))

    def bytes_of(self, path: str) -> bytes:
        return bytes(self.images[path].data)

    async def open(self, path: str, *, writable: bool) -> "MemoryFile":
        await trio.lowlevel.checkpoint()
        if path not in self.images:
            raise BackendError(errno.ENOENT, "open", path)
        return MemoryFile(path, self.images[path], writable=writable, answers_at_once=self.answers_at_once)

    async def is_directory(self, path: str) -> bool:
        await trio.lowlevel.checkpoint()
        if path in self.images:
            return False
        if any(name.startswith(f"{path.rstrip('/')}/") for name in self.images):
            return True
        raise BackendError(errno.ENOENT, "stat", path)

    async def real_path(self, path: str) -> str:
        await trio.lowlevel.checkpoint()
        return path

    async def probe(self, images: Sequence[ProbedImage]) -> None:
        await trio.lowlevel.checkpoint()
        for image in images:
            if image.path not in self.images:
                raise BackendError(errno.ENOENT, "open", image.path)
            if not self.images[image.path].data.startswith(image.start):
                raise ImageMismatch(f"{image.path}: the header is not the one that was opened")


class MemoryFile:
    """One open descriptor of a MemoryImage."""

    def __init__(self, path: str, image: MemoryImage, *, writable: bool, answers_at_once: bool) -> None:
        self.path = path
        self.writable = writable
        self.identity = Identity(_DEVICE_NUMBER, image.inode, "memory")
        self.closed = False
        self.abandoned = False
        self._number = next(_numbers)  # an address may be that of an earlier one that holds its lock for ever
        self._image = image
        self._answers_at_once = answers_at_once

    @property
    def has_lock(self) -> bool:
        return self._number in self._image.writers | self._image.readers

    def read_nowait(self, offset: int, length: int, room: memoryview | None = None) -> Buffer | None:
        self._check_open("read")
        data = self._image.data[offset : offset + length]
        return in_room(data, room) if self._answers_at_once and len(data) == length else None

    async def read(self, offset: int, length: int) -> bytearray:
        await trio.lowlevel.checkpoint()
        self._check_open("read")
        return self._image.data[offset : offset + length]

    def thread_fd(self) -> int | None:
        return None

    def write_soon(self, pieces: Pieces, answered: Answered, reply: Reply | None = None) -> bool:  # noqa: ARG002
        return write_soon(self, pieces, answered)

    async def write(self, offset: int, data: Buffer) -> None:
        await trio.lowlevel.checkpoint()
        self._check_writable("write")
        self._put(offset, data)

    def start_writeback(self) -> None:
        """Whatever was written may be durable at any time."""

    async def sync(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open("fsync")

    async def sync_size(self, size: int) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open("fsync")
        assert self._image.data[size - 1 :] == b"\0"

    async def size(self) -> int:
        await trio.lowlevel.checkpoint()
        self._check_open("stat")
        return len(self._image.data)

    async def truncate(self, size: int) -> None:
        await trio.lowlevel.checkpoint()
        self._check_writable("truncate")
        del self._image.data[size:]
        self._image.data.extend(bytes(size - len(self._image.data)))

    async def allocate(self, offset: int, length: int) -> None:
        await trio.lowlevel.checkpoint()
        self._check_writable("fallocate")
        self._image.data.extend(bytes(max(0, offset + length - len(self._image.data))))

    async def punch(self, offset: int, length: int) -> None:
        await trio.lowlevel.checkpoint()
        self._check_writable("punch hole")
        length = max(0, min(length, len(self._image.data) - offset))
        self._image.data[offset : offset + length] = bytes(length)

    async def lock(self, *, as_writer: bool | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open("lock")
        image, me = self._image, self._number
        writes = self.writable if as_writer is None else as_writer
        others = image.writers - {me} | (image.readers - {me} if writes else set())
        image.writers.discard(me)
        image.readers.discard(me)
        if others:
            raise ImageLocked(f"{self.path}: another open file holds its lock")
        (image.writers if writes else image.readers).add(me)

    async def unlock(self) -> None:
        await trio.lowlevel.checkpoint()
        self._image.writers.discard(self._number)
        self._image.readers.discard(self._number)

    def close(self) -> None:
        self._image.writers.discard(self._number)
        self._image.readers.discard(self._number)
        self.closed = True

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _put(self, offset: int, data: Buffer) -> None:
        self._image.data.extend(bytes(max(0, offset - len(self._image.data))))
        self._image.data[offset : offset + len(data)] = data

    def _check_open(self, operation: str) -> None:
        if self.closed:
            raise BackendError(errno.EBADF, operation, self.path)

    def _check_writable(self, operation: str) -> None:
        self._check_open(operation)
        if not self.writable:
            raise BackendError(errno.EBADF, operation, self.path)


def in_room(data: bytearray, room: memoryview | None) -> Buffer:
    """As `File.read_nowait` gives what is at hand."""
    if room is None:
        return data
    room[:] = data
    return room
