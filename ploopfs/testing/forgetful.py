"""Files in memory that acknowledge at once and forget what nobody has synced.

Fault model: what is written, cut or punched is seen at once by whoever reads it, and is durable when a later sync of
the same file has succeeded. A crash takes away what was not synced: all of it, or each sector, and each change of the
size, by itself as `survives` decides (pending.py). Every file that was open then is told by the error of its next
operation, and only by that one: afterwards it works, and its fsync answers success for what is gone, as GlusterFS's
write-behind does (real-parts.md 2.1). With `stays_dead` it answers every operation with the error, as a dead mount
does. Locks are gone. What is opened after the crash works."""

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from ploopfs.engine.file import Answered, Buffer
from ploopfs.engine.probe import ProbedImage
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.errors import BackendError
from ploopfs.testing.files import MemoryFile, MemoryFiles
from ploopfs.testing.pending import Pending, everything
from ploopfs.testing.soon import write_soon

T = TypeVar("T")
Change = Callable[[Pending], None]


def _never() -> bool:
    return False


class ForgetfulFiles:
    """`crash_at` are the numbers of the operations (counted in `operations`) before which the store crashes by itself;
    `survives` is asked then for each piece of what was not synced."""

    def __init__(self, *, stays_dead: bool = False, number: int = errno.ENOTCONN) -> None:
        self.memory = MemoryFiles(answers_at_once=False)
        self.operations = 0
        self.crash_at: set[int] = set()
        self.crashes = 0
        self.survives: Callable[[], bool] = _never
        self.stays_dead = stays_dead
        self.number = number
        self._durable: dict[str, Pending] = {}

    def put(self, path: str, data: bytes) -> None:
        """A durable image."""
        self.memory.put(path, data)
        self._durable[path] = Pending(data)

    def bytes_of(self, path: str) -> bytes:
        return self.memory.bytes_of(path)

    def durable_bytes_of(self, path: str) -> bytes:
        return bytes(self._durable[path].data)

    def crash(self) -> None:
        self.crashes += 1
        for path, durable in self._durable.items():
            durable.crash(lambda _piece: self.survives())
            image = self.memory.images[path]
            image.data[:] = durable.data
            image.writers.clear()
            image.readers.clear()

    async def open(self, path: str, *, writable: bool) -> "ForgetfulFile":
        return ForgetfulFile(self, await self.memory.open(path, writable=writable), self._durable[path])

    async def is_directory(self, path: str) -> bool:
        return await self.memory.is_directory(path)

    async def real_path(self, path: str) -> str:
        return await self.memory.real_path(path)

    async def probe(self, images: Sequence[ProbedImage]) -> None:
        await self.memory.probe(images)


class ForgetfulFile:
    """One open file; nothing answers at once, so that every operation can be the one before which the store crashes."""

    def __init__(self, files: ForgetfulFiles, inner: MemoryFile, durable: Pending) -> None:
        self.path, self.writable, self.identity = inner.path, inner.writable, inner.identity
        self.abandoned = False
        self._files, self._inner, self._durable = files, inner, durable
        self._knows_of = files.crashes

    def read_nowait(self, offset: int, length: int, room: object = None) -> None:  # noqa: ARG002 -- as File has it
        return None

    async def read(self, offset: int, length: int) -> bytearray:
        return await self._run("read", lambda: self._inner.read(offset, length), offset, length)

    def thread_fd(self) -> int | None:
        return None

    def write_soon(self, pieces: Pieces, answered: Answered, reply: Reply | None = None) -> bool:  # noqa: ARG002
        return write_soon(self, pieces, answered)

    async def write(self, offset: int, data: Buffer) -> None:
        written = bytes(data)

        def change(pending: Pending) -> None:
            pending.write(offset, written)

        await self._run("write", lambda: self._inner.write(offset, written), offset, len(written), change)

    def start_writeback(self) -> None:
        """Whatever was written may be durable at any time."""

    async def sync(self) -> None:
        await self._run("fsync", self._sync)

    async def sync_size(self, size: int) -> None:
        async def sync() -> None:
            before, crashes = self._durable.changes, self._files.crashes
            await self._inner.sync_size(size)
            if crashes == self._files.crashes:
                self._durable.settle_size(before)

        await self._run("fsync", sync)

    async def size(self) -> int:
        return await self._run("stat", self._inner.size)

    async def truncate(self, size: int) -> None:
        def change(pending: Pending) -> None:
            pending.truncate(size)

        await self._run("truncate", lambda: self._inner.truncate(size), size, change=change)

    async def allocate(self, offset: int, length: int) -> None:
        def change(pending: Pending) -> None:
            pending.allocate(offset, length)

        await self._run("fallocate", lambda: self._inner.allocate(offset, length), offset, length, change)

    async def punch(self, offset: int, length: int) -> None:
        def change(pending: Pending) -> None:
            pending.punch(offset, length)

        await self._run("punch hole", lambda: self._inner.punch(offset, length), offset, length, change)

    async def lock(self, *, as_writer: bool | None = None) -> None:
        await self._run("lock", lambda: self._inner.lock(as_writer=as_writer))

    async def unlock(self) -> None:
        await self._run("unlock", self._inner.unlock)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _sync(self) -> None:
        before, crashes = self._durable.changes, self._files.crashes
        await self._inner.sync()
        if crashes == self._files.crashes:
            self._durable.settle(before)

    async def _run(
        self,
        operation: str,
        work: Callable[[], Awaitable[T]],
        offset: int = 0,
        length: int = 0,
        change: Change | None = None,
    ) -> T:
        files = self._files
        files.operations += 1
        if files.operations in files.crash_at:
            files.crash()
        if not self._is_to_be_told():
            result = await work()
            if not self._is_to_be_told():
                if change is not None:
                    change(self._durable)
                return result
            # It was on its way when the store crashed: whatever it did is gone.
            files.memory.images[self.path].data[:] = self._durable.left(everything)
        await trio.lowlevel.checkpoint()
        raise BackendError(files.number, operation, self.path, offset=offset, length=length)

    def _is_to_be_told(self) -> bool:
        if self._knows_of == self._files.crashes:
            return False
        if not self._files.stays_dead:
            self._knows_of = self._files.crashes
        return True
