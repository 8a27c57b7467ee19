"""A filter around any Files that writes down each operation: its range, when it began, when it ended.

A test adds its own entries (`note`), so that "synced before acknowledged" is a comparison of two numbers. With a
`shuffle` every operation also lets other tasks run before and after it, a drawn number of times. An image after a power
failure is computed from the journal alone: `images_after_crash`.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import trio

from ploopfs.engine.file import Buffer, File, Files
from ploopfs.engine.probe import ProbedImage

T = TypeVar("T")
SECTOR_BYTES = 512


@dataclass(slots=True)
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

    def read_nowait(self, offset: int, length: int) -> None:  # noqa: ARG002 -- as File has it
        return None

    def write_nowait(self, offset: int, data: Buffer) -> int:  # noqa: ARG002 -- as File has it
        return 0

    async def read(self, offset: int, length: int) -> bytearray:
        return await self._run("read", lambda: self._inner.read(offset, length), offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        written = bytes(data)
        await self._run("write", lambda: self._inner.write(offset, written), offset, len(written), written)

    async def sync(self) -> None:
        await self._run("fsync", self._inner.sync)

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


def images_after_crash(
    before: Mapping[str, bytes], journal: Journal, at: int, random: Random
) -> Iterator[tuple[str, bytes]]:
    """Each image of `before` as a power failure at tick `at` may leave it.

    What ended before a successful fsync began is there. Of anything else each operation may be there, or not, or, if it
    is a write or a hole, in a part of its sectors.
    """
    for path, content in before.items():
        image = bytearray(content)
        syncs = [sync.begun for sync in journal.of("fsync", path=path) if sync.ended is not None and sync.ended <= at]
        synced = max(syncs, default=0)
        for entry in journal.of("write", "truncate", "fallocate", "punch hole", path=path):
            if entry.begun <= at:
                durable = entry.ended is not None and entry.ended < synced
                _happen(image, entry, whole=durable or random.random() < 0.4, random=random)
        yield path, bytes(image)


def _happen(image: bytearray, entry: Entry, *, whole: bool, random: Random) -> None:
    if entry.operation == "fallocate":
        if whole:
            image.extend(bytes(max(0, entry.offset + entry.length - len(image))))
        return
    if entry.operation == "truncate":
        if whole:
            del image[entry.offset :]
            image.extend(bytes(entry.offset - len(image)))
        return
    data = entry.data or bytes(min(entry.length, len(image) - entry.offset))
    for start in range(0, len(data), SECTOR_BYTES):
        if whole or random.random() < 0.3:
            _put(image, entry.offset + start, data[start : start + SECTOR_BYTES])


def _put(image: bytearray, offset: int, data: bytes) -> None:
    image.extend(bytes(max(0, offset + len(data) - len(image))))
    image[offset : offset + len(data)] = data
