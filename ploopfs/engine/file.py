"""What the engine needs of an open image file.

`OsFile` (os_file.py) is the real one, and ploopfs.testing ships the fakes. Knows nothing of image formats. Invariant:
nothing above these methods sees OSError: each raises BackendError.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from ploopfs.engine.probe import ProbedImage
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.engine.storage import Identity
from ploopfs.errors import BackendError

CHANGES = frozenset({"write", "truncate", "fallocate", "punch hole"})
"""Operations that change what a file holds."""

VOUCHING = CHANGES | {"fsync"}
"""Those that must have ended for anybody to say what a file holds."""

Buffer = bytes | bytearray | memoryview

Answered = Callable[[BackendError | None], None]
"""Hears once how an operation has ended, None for success, in the event loop; it raises and waits for nothing. Of
success a thread may tell it that stands in for the loop: what only that can do is left to it (left_to_loop.py)."""


class File(Protocol):
    """Offsets and lengths are bytes. Every method that touches the storage raises BackendError with its errno."""

    path: str
    writable: bool
    identity: Identity
    abandoned: bool
    """A change or an fsync was given up while the storage still had it: it may yet happen, so nothing here can be
    vouched for."""

    def read_nowait(self, offset: int, length: int, room: memoryview | None = None) -> Buffer | None:
        """All `length` bytes if they are at hand without waiting, else None. They lie in `room`, if there is one, which
        has as many, until its owner uses it for something else. After None anything may lie there."""

    async def read(self, offset: int, length: int) -> bytearray:
        """Short only at the end of the file."""

    def write_soon(self, pieces: Pieces, answered: Answered, reply: Reply | None = None) -> bool:
        """As `write` of one piece after the other, without a task that waits, `answered` after this has returned, and
        after `reply` was sent, perhaps. False if that cannot be, and then nothing was begun. Nobody can give it up;
        whoever closes the file meanwhile has."""

    def thread_fd(self) -> int | None:
        """The descriptor for a thread that makes a write and tells of it before anything else has happened; None if no
        thread is to. What fails or hangs `write_soon` begins, with that thread for the maker of its reply."""

    async def write(self, offset: int, data: Buffer) -> None: ...

    def start_writeback(self) -> None:
        """What was written is on its way to the storage, so that the next sync takes less time. It promises nothing;
        what it meets is for that sync to say."""

    async def sync(self) -> None:
        """Data, and the metadata needed to find them, are on stable storage (fdatasync)."""

    async def sync_size(self, size: int) -> None:
        """That the file has so many bytes is on stable storage; nothing else is flushed for it. It has them, and where
        it ends are zeroes that nobody writes to meanwhile. It fails as an fsync does, and means as much, but for what
        is said of the operation `write`."""

    async def size(self) -> int: ...

    async def truncate(self, size: int) -> None: ...

    async def allocate(self, offset: int, length: int) -> None:
        """Space for these bytes is taken, and the file is at least as long; what was there stays, the rest are zeroes.
        Where the storage cannot, the C library writes."""

    async def punch(self, offset: int, length: int) -> None:
        """Make a hole, file size unchanged; EOPNOTSUPP where the storage cannot."""

    async def lock(self, *, as_writer: bool | None = None) -> None:
        """Claim the image against other processes, for writing if the file is open for writing, unless `as_writer` says
        what for; a weaker claim than before leaves no gap between the two. Raises ImageLocked."""

    async def unlock(self) -> None:
        """What is asked of the lock afterwards is done afterwards, also when this was given up."""

    async def aclose(self) -> None:
        """Close without flushing; never fails, and is done though the caller was given up: the lock goes with it."""


class Files(Protocol):
    """Where images are opened."""

    async def open(self, path: str, *, writable: bool) -> File: ...

    async def is_directory(self, path: str) -> bool: ...

    async def real_path(self, path: str) -> str:
        """The same file without symbolic links in its path, as far as it exists."""

    async def probe(self, images: Sequence[ProbedImage]) -> None:
        """Whether their storage works, asked without a thread of those that serve requests; one probe at a time. Raises
        BackendError with the storage's answer, ImageMismatch if another file lies there."""
