"""A filter around any Files that writes down each operation: its range, when it began, when it ended.

A test adds its own entries (`note`), so that "synced before acknowledged" is a comparison of two numbers. With a
`shuffle` every operation also lets other tasks run before and after it, a drawn number of times. What a power
failure may leave is computed from the journal alone: `pending_at`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import not_
from random import Random
from typing import TypeVar

import trio

from ploopfs.engine.file import Answered, Buffer, File, Files
from ploopfs.engine.probe import ProbedImage
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.testing.pending import Pending
from ploopfs.testing.soon import write_soon

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Entry:
    """`data` is what a write wrote. `ended` is None while (or because) the operation did not succeed."""

    operation: str
    path: str = ""
    offset: int = 0
    length: int = 0
    data: bytes = b""
    begun: int = 0
    ended: int | None = None

    def ended_before(self, other: "Entry") -> bool:
        return self.ended is not None and self.ended < other.begun


@dataclass(slots=True)
class Journal:
    entries: list[Entry] = field(default_factory=list)
    shuffle: Random | None = None
    _clock: int = 0

    def of(self, *operations: str, path: str | None = None) -> list[Entry]:
        return [entry for entry in self.entries if entry.operation in operations and path in (None, entry.path)]

    def note(self, what: str) -> Entry:
        """An entry of the test itself: begun and ended at once."""
        entry = self.begin(Entry(what))
        self.end(entry)
        return entry

    def begin(self, entry: Entry) -> Entry:
        entry.begun = self.tick()
        self.entries.append(entry)
        return entry

    def end(self, entry: Entry) -> None:
        entry.ended = self.tick()

    def tick(self) -> int:
        self._clock += 1
        return self._clock

    async def run(self, entry: Entry, work: Callable[[], Awaitable[T]]) -> T:
        await self._let_others_run()
        self.begin(entry)
        result = await work()
        self.end(entry)
        await self._let_others_run()
        return result

    async def _let_others_run(self) -> None:
        if self.shuffle is not None:
            for _ in range(self.shuffle.randrange(4)):
                await trio.lowlevel.checkpoint()


class JournalFiles:
    """Files whose operations stand in `journal`."""

    def __init__(self, inner: Files, journal: Journal) -> None:
        self._inner = inner
        self._journal = journal

    async def open(self, path: str, *, writable: bool) -> "JournalFile":
        return JournalFile(await self._inner.open(path, writable=writable), self._journal)

    async def is_directory(self, path: str) -> bool:
        return await self._inner.is_directory(path)

    async def real_path(self, path: str) -> str:
        return await self._inner.real_path(path)

    async def probe(self, images: Sequence[ProbedImage]) -> None:
        await self._inner.probe(images)


class JournalFile:
    """One open file; nothing answers at once, so that every operation passes here."""

    def __init__(self, inner: File, journal: Journal) -> None:
        self.path, self.writable, self.identity = inner.path, inner.writable, inner.identity
        self.abandoned = False
        self._inner = inner
        self._journal = journal

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
        await self._run("write", lambda: self._inner.write(offset, written), offset, len(written), written)

    def start_writeback(self) -> None:
        """Whatever was written may be durable at any time."""

    async def sync(self) -> None:
        await self._run("fsync", self._inner.sync)

    async def sync_size(self, size: int) -> None:
        await self._run("sync size", lambda: self._inner.sync_size(size), size)

    async def size(self) -> int:
        return await self._run("stat", self._inner.size)

    async def truncate(self, size: int) -> None:
        await self._run("truncate", lambda: self._inner.truncate(size), size)

    async def allocate(self, offset: int, length: int) -> None:
        await self._run("fallocate", lambda: self._inner.allocate(offset, length), offset, length)

    async def punch(self, offset: int, length: int) -> None:
        await self._run("punch hole", lambda: self._inner.punch(offset, length), offset, length)

    async def lock(self, *, as_writer: bool | None = None) -> None:
        await self._inner.lock(as_writer=as_writer)

    async def unlock(self) -> None:
        await self._inner.unlock()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _run(
        self, operation: str, work: Callable[[], Awaitable[T]], offset: int = 0, length: int = 0, data: bytes = b""
    ) -> T:
        return await self._journal.run(Entry(operation, self.path, offset, length, data), work)


def pending_at(before: Mapping[str, bytes], journal: Journal, at: int) -> dict[str, Pending]:
    """What a power failure at tick `at` finds of each image: durable is what ended before a sync began that has ended
    with success by then."""
    found = {}
    for path, content in before.items():
        syncs = [sync.begun for sync in journal.of("fsync", path=path) if sync.ended is not None and sync.ended <= at]
        synced = max(syncs, default=0)
        durable: list[Entry] = []
        others: list[Entry] = []
        for entry in journal.of(*_CHANGES, path=path):
            if entry.begun <= at:
                (durable if entry.ended is not None and entry.ended < synced else others).append(entry)
        pending = found[path] = Pending(content)
        # Only changes in flight together change places by that, and those have disjoint ranges.
        for entry in durable:
            _CHANGES[entry.operation](pending, entry)
        pending.settle(pending.changes)
        sizes = journal.of("sync size", path=path)
        sized = max((sync.begun for sync in sizes if sync.ended is not None and sync.ended <= at), default=0)
        has_size = [entry.ended is not None and entry.ended < sized for entry in others]
        for entry in compress(others, has_size):
            _CHANGES[entry.operation](pending, entry)
        pending.settle_size(pending.changes)
        for entry in compress(others, map(not_, has_size)):
            _CHANGES[entry.operation](pending, entry)
    return found


_CHANGES: dict[str, Callable[[Pending, Entry], None]] = {
    "write": lambda pending, entry: pending.write(entry.offset, entry.data),
    "truncate": lambda pending, entry: pending.truncate(entry.offset),
    "fallocate": lambda pending, entry: pending.allocate(entry.offset, entry.length),
    "punch hole": lambda pending, entry: pending.punch(entry.offset, entry.length),
}
