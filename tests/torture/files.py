"""A file system on the disk, and users who keep a journal of what it has acknowledged: every fsync that returned.

Each user has a directory to itself. What an operation that has failed has done is unknown within bounds that are known:
an old content or a new one, some of the bytes of either; after the outage its owner looks, and what is found counts
once it is synced. Knows nothing of ploop.
"""

import mmap
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.mounted.daemon import opened
from tests.torture.board import Board

NAMES = 12
SIZES = (1, 700, 4096, 30_000, 150_000)

BLOCK_BYTES = 4096
"""What O_DIRECT is aligned to."""

SMALLEST_BLOCK_BYTES = 1024
"""Of a file system: to a multiple of its own e2fsck sets a size that was ahead of a truncation's end."""

Content = bytes | None
"""None is a file that is not there."""


@dataclass(frozen=True, slots=True)
class Operation:
    """`call` does it, durably. `after` is what there is then; where it has failed, it is what it
    `may_be`."""

    name: str
    call: Callable[[], None]
    after: Content
    may_be: Callable[[Content], bool]


class User:
    """`journal` is what the file system has acknowledged, by name. `operations` counts them."""

    def __init__(self, number: int, place: Path, board: Board, random: Random) -> None:
        self.journal: dict[str, bytes] = {}
        self.operations: Counter[str] = Counter()
        self._number, self._place, self._board, self._random = number, place / f"user{number}", board, random
        self._place.mkdir()
        _sync_directory(place)

    def work(self) -> None:
        kinds = (
            *(self._create, self._create, self._overwrite, self._overwrite_directly),
            *(self._append, self._truncate, self._remove, self._read),
        )
        while True:
            name = f"file{self._random.randrange(NAMES)}"
            old = self.journal.get(name)
            self._perform(name, (self._create if old is None else self._random.choice(kinds))(name, old))
            self._board.stepped(self._number)

    def compare(self) -> None:
        """While it rests: everything in the journal is there, and nothing else."""
        for name, content in self.journal.items():
            assert _content(self._place / name) == content, f"{self._place / name} is not what fsync has acknowledged"
        assert {path.name for path in self._place.iterdir() if path.suffix != ".new"} == set(self.journal)

    def _perform(self, name: str, operation: Operation) -> None:
        def call() -> bool:
            operation.call()
            return True

        if self._board.tried(call):
            self._note(name, operation.after)
            self.operations[operation.name] += 1
        else:
            self._look(name, operation)

    def _note(self, name: str, content: Content) -> None:
        if content is None:
            self.journal.pop(name, None)
        else:
            self.journal[name] = content

    def _look(self, name: str, operation: Operation) -> None:
        while (found := self._board.tried(lambda: self._found(name))) is None:
            pass
        [content] = found
        assert operation.may_be(content), f"{name} is nothing that {operation.name} can have left"
        self._note(name, content)

    def _found(self, name: str) -> list[Content]:
        content = _content(self._place / name)
        if content is not None:
            with opened(self._place / name) as fd:
                sync(fd)
        _sync_directory(self._place)
        return [content]

    # Operations.

    def _create(self, name: str, old: Content) -> Operation:
        """Under another name first, as careful programs do."""
        new, unfinished = self._data(), self._place / f"{name}.new"

        def call() -> None:
            with opened(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd:
                _write(fd, new, 0)
                sync(fd)
            unfinished.rename(self._place / name)
            _sync_directory(self._place)

        return Operation("create", call, new, lambda found: found in (old, new))

    def _overwrite(self, name: str, old: Content) -> Operation:
        """In place."""
        assert old is not None
        start = self._random.randrange(len(old) + 1)
        data = self._data()[: len(old) - start]
        return _overwriting("overwrite", old, start, data, lambda: self._written(name, data, start))

    def _overwrite_directly(self, name: str, old: Content) -> Operation:
        """Past the page cache, which has the file from all that is not."""
        assert old is not None
        blocks = len(old) // BLOCK_BYTES
        if not blocks:
            return self._overwrite(name, old)
        first = self._random.randrange(blocks)
        data = self._random.randbytes(self._random.randrange(1, blocks - first + 1) * BLOCK_BYTES)

        def call() -> None:
            with opened(self._place / name, os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(-1, len(data)) as buffer:
                buffer[:] = data
                assert os.pwritev(fd, [buffer], first * BLOCK_BYTES) == len(data)
                sync(fd)

        return _overwriting("overwrite directly", old, first * BLOCK_BYTES, data, call)

    def _append(self, name: str, old: Content) -> Operation:
        assert old is not None
        data = self._data()
        new = old + data

        def may_be(found: Content) -> bool:
            """The size may be ahead of the data."""
            return found is not None and found.startswith(old) and len(found) <= len(new)

        return Operation("append", lambda: self._written(name, data, len(old)), new, may_be)

    def _truncate(self, name: str, old: Content) -> Operation:
        assert old is not None
        new = old[: self._random.randrange(len(old) + 1)]

        def call() -> None:
            with opened(self._place / name) as fd:
                os.ftruncate(fd, len(new))
                sync(fd)

        def may_be(found: Content) -> bool:
            """The rest of the last block is made zero before the size is changed. Of blocks that were not yet given
            up when it was cut short e2fsck makes the file's again."""
            if found is None or not found.startswith(new):
                return False
            ends_old = -len(old) % SMALLEST_BLOCK_BYTES
            is_mended = len(found) % SMALLEST_BLOCK_BYTES == 0 and len(found) <= len(old) + ends_old
            if len(found) not in (len(old), len(new)) and not is_mended:
                return False
            before = old[len(new) :] + bytes(ends_old)
            return all(byte in (0, kept) for byte, kept in zip(found[len(new) :], before, strict=False))

        return Operation("truncate", call, new, may_be)

    def _remove(self, name: str, old: Content) -> Operation:
        def call() -> None:
            (self._place / name).unlink()
            _sync_directory(self._place)

        return Operation("remove", call, None, lambda found: found in (old, None))

    def _read(self, name: str, old: Content) -> Operation:
        def call() -> None:
            assert _content(self._place / name) == old, f"{self._place / name} reads otherwise than it was written"

        return Operation("read", call, old, lambda found: found == old)

    def _data(self) -> bytes:
        return self._random.randbytes(self._random.choice(SIZES))

    def _written(self, name: str, data: bytes, offset: int) -> None:
        with opened(self._place / name) as fd:
            _write(fd, data, offset)
            sync(fd)


def _overwriting(name: str, old: bytes, start: int, data: bytes, call: Callable[[], None]) -> Operation:
    new = old[:start] + data + old[start + len(data) :]

    def may_be(found: Content) -> bool:
        if found is None or len(found) != len(new):
            return False
        return all(byte in both for byte, *both in zip(found, old, new, strict=True))

    return Operation(name, call, new, may_be)


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _content(path: Path) -> Content:
    """Past the page cache, as far as it lets go."""
    with suppress(FileNotFoundError), opened(path, os.O_RDONLY) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    return None


def sync(fd: int) -> None:
    """An ext4 whose journal was aborted for somebody else has nothing left to commit, and the fsync of a directory says
    that all is well. A change finds out, and the next one is told. Neither is a flush: what the first fsync has not
    seen to must not be there by another one."""
    os.fsync(fd)
    os.utime(fd)
    os.utime(fd)


def _sync_directory(path: Path) -> None:
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        sync(fd)

