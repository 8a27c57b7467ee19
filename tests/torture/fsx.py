"""Calls of any size at any place, over each other, by several users at once, in the manner of fsx(8).

The disk is cut into pieces, which have owners: nobody else writes to a piece, so what it holds is known whenever its
owner reads it. Pieces end anywhere, so that two owners meet within a block and within a cluster. What a call that has
failed has done is unknown: its owner repeats it, or looks at each byte, which is then the old one or the new one.
"""

import mmap
import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeVar

from tests.mounted.daemon import errno_of, opened
from tests.mounted.disks import Disk
from tests.mounted.planes import OWN
from tests.mounted.space import KEEP_SIZE, PUNCH, ZERO_RANGE, fallocate
from tests.torture.board import Board, users
from tests.torture.faults import Fault, faults_on
from tests.torture.outages import Troubles
from tests.torture.report import Report
from tests.torture.scene import Scene, scene
from tests.torture.setting import Setting

T = TypeVar("T")

USERS = 3
STEPS = 50
"""How many calls each user makes between two troubles, at least."""

BLOCKS_BYTES = (512, 4096)
"""What O_DIRECT may be aligned to."""

GONE = ("ENOTCONN", "ECONNABORTED")
DEAD_MOUNT = (*GONE, "EIO", "ENOENT")
"""The last for who opens the disk where nothing is mounted."""

PIECE_BYTES = (300, 5000, 40_000, 200_000, 700_000)
HOT_PIECES = 6
"""Most calls go to a few pieces, so that they meet."""


@dataclass(frozen=True, slots=True)
class Piece:
    start: int
    length: int

    def part(self, random: Random) -> "Piece":
        """Any length, short ones as often as long ones; both ends of the piece are met more often than by chance."""
        length = min(int(self.length ** random.random()) + random.randrange(2), self.length)
        places = (0, self.length - length, random.randrange(self.length - length + 1))
        return Piece(self.start + random.choice(places), length)


def cut(size_bytes: int, owners: int, random: Random) -> list[list[Piece]]:
    """The whole disk, between that many."""
    pieces: list[list[Piece]] = [[] for _ in range(owners)]
    start = 0
    while start < size_bytes:
        length = min(random.choice(PIECE_BYTES) + random.randrange(100), size_bytes - start)
        random.choice(pieces).append(Piece(start, length))
        start += length
    return pieces


class User:
    """`calls` counts what has succeeded, by its name; `bytes` what was written and read. `zeroes` can be asked for
    without being written, or are refused."""

    def __init__(
        self,
        number: int,
        path: Path,
        disk: Disk,
        pieces: list[Piece],
        board: Board,
        random: Random,
        *,
        zeroes: bool,
    ) -> None:
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._number, self._path, self._disk, self._board, self._random = number, path, disk, board, random
        self._pieces, self._hot = pieces, random.sample(pieces, min(HOT_PIECES, len(pieces)))
        self._fds: dict[int, int] = {}
        self._mount, self._zeroes = board.mounts, zeroes

    def work(self) -> None:
        kinds: dict[Callable[[], None], int] = {
            self._write: 40,
            self._punch if self._zeroes else self._ask_for_zeroes: 3,
            self._zero if self._zeroes else self._ask_for_zeroes: 3,
            self._read: 30,
            self._fsync: 8,
            self._write_synchronously: 4,
            self._write_directly: 8,
            self._read_directly: 6,
            self._read_across_the_end: 2,
            self._write_across_the_end: 2,
            self._truncate: 2,
            self._open_truncating: 2,
            self._read_vectored: 4,
            self._map: 1,
        }
        try:
            while True:
                [kind] = self._random.choices(list(kinds), list(kinds.values()))
                kind()
                self.calls[kind.__name__.strip("_").replace("_", " ")] += 1
                self._board.stepped(self._number)
        finally:
            self._close()

    # Calls.

    def _write(self) -> None:
        self._write_part(self._part(), os.O_RDWR)

    def _write_synchronously(self) -> None:
        self._write_part(self._part(), os.O_RDWR | self._random.choice((os.O_SYNC, os.O_DSYNC)))

    def _punch(self) -> None:
        self._zero_part(PUNCH)

    def _zero(self) -> None:
        self._zero_part(self._random.choice((ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)))

    def _ask_for_zeroes(self) -> None:
        part = self._part()
        refused = self._done(lambda: errno_of(fallocate, self._fd(), PUNCH, part.start, part.length))
        assert refused in ("ENOTSUP", *GONE), refused

    def _read(self) -> None:
        part = self._part()
        found = self._done(lambda: os.pread(self._fd(), part.length, part.start))
        self._compare(part, found)

    def _read_directly(self) -> None:
        part = self._aligned_part()
        if part.length:
            with mmap.mmap(-1, part.length) as buffer:
                done = self._done(lambda: os.preadv(self._fd(os.O_RDWR | os.O_DIRECT), [buffer], part.start))
                self._compare(part, buffer[:done])

    def _write_directly(self) -> None:
        """From memory that is aligned as well, among all that is written otherwise to the same bytes."""
        part = self._aligned_part()
        if part.length:
            with mmap.mmap(-1, part.length) as buffer:
                buffer[:] = self._data(part.length)

                def write() -> int:
                    return os.pwritev(self._fd(os.O_RDWR | os.O_DIRECT), [buffer], part.start)

                self._note_written(part, self._changed(part, buffer[:], write))

    def _fsync(self) -> None:
        call = self._random.choice((os.fsync, os.fdatasync))
        self._done(lambda: call(self._fd()))

    def _read_across_the_end(self) -> None:
        """Of the disk, by who has its last piece, with an open file of its own: it gets what there is."""
        if not self._has_the_end:
            return
        part = self._last_part()

        def read() -> bytes:
            with opened(self._path, os.O_RDONLY) as fd:
                return os.pread(fd, part.length + self._random.randrange(1, 5000), part.start)

        self._compare(part, self._done(read))

    def _write_across_the_end(self) -> None:
        """What does not fit is not written."""
        if self._has_the_end:
            self._write_part(self._last_part(), os.O_RDWR, beyond=self._random.randrange(1, 5000))

    def _truncate(self) -> None:
        """To its own size is nothing, to another is refused; of what lies there nothing is lost."""
        size = self._disk.size_bytes
        other = self._random.choice((1, size // 2, size - 512, size + 512))
        self._done(lambda: os.ftruncate(self._fd(), size))
        refused = self._done(lambda: errno_of(os.ftruncate, self._fd(), other))
        assert refused in ("EINVAL", *GONE), refused

    def _open_truncating(self) -> None:
        """As `dd of=` does."""
        self._done(lambda: os.close(os.open(self._path, os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC)))

    def _read_vectored(self) -> None:
        part = self._part()
        buffers = [bytearray(part.length // 3), bytearray(part.length - part.length // 3)]
        assert self._done(lambda: os.preadv(self._fd(), buffers, part.start)) == part.length
        self._compare(part, b"".join(buffers))

    def _map(self) -> None:
        """A shared mapping would answer for a disk that is gone."""
        refused = self._done(lambda: errno_of(mmap.mmap, self._fd(), mmap.PAGESIZE))
        assert refused in ("ENODEV", *GONE), refused

    # What they are made of.

    def _part(self) -> Piece:
        return self._random.choice(self._hot if self._random.random() < 0.7 else self._pieces).part(self._random)

    def _aligned_part(self) -> Piece:
        """Empty where there is none."""
        part, block = self._part(), self._random.choice(BLOCKS_BYTES)
        start = -(-part.start // block) * block
        return Piece(start, max(0, part.start + part.length - start) // block * block)

    @property
    def _has_the_end(self) -> bool:
        return self._pieces[-1].start + self._pieces[-1].length == self._disk.size_bytes

    def _last_part(self) -> Piece:
        last = self._pieces[-1]
        length = self._random.randrange(1, last.length + 1)
        return Piece(last.start + last.length - length, length)

    def _data(self, length: int) -> bytes:
        """Zeroes have a way of their own."""
        return bytes(length) if self._random.random() < 0.1 else self._random.randbytes(length)

    def _write_part(self, part: Piece, flags: int, *, beyond: int = 0) -> None:
        data = self._data(part.length)
        done = self._changed(part, data, lambda: os.pwrite(self._fd(flags), data + bytes(beyond), part.start))
        self._note_written(part, done)

    def _note_written(self, part: Piece, done: int | None) -> None:
        if done is not None:
            assert done == part.length, f"{done} bytes of {part}"
            self.bytes["written"] += part.length

    def _zero_part(self, mode: int) -> None:
        part = self._part()

        def zero() -> int:
            fallocate(self._fd(), mode, part.start, part.length)
            return part.length

        self.bytes["zeroed"] += self._changed(part, bytes(part.length), zero) or 0

    def _changed(self, part: Piece, data: bytes, call: Callable[[], T]) -> T | None:
        """What it returned, when it has succeeded; None if it failed, and was found to have been done or not."""
        old = self._disk.content[part.start : part.start + part.length]
        while (result := self._tried(call)) is None:
            if self._random.random() < 0.5:
                found = self._done(lambda: os.pread(self._fd(), part.length, part.start))
                both = zip(found, old, data, strict=True)
                assert all(byte in (before, after) for byte, before, after in both), f"{part} is neither old nor new"
                self._disk.content[part.start : part.start + part.length] = found
                return None
        self._disk.content[part.start : part.start + part.length] = data
        return result

    def _compare(self, part: Piece, found: bytes) -> None:
        expected = self._disk.content[part.start : part.start + part.length]
        if found != expected:
            first = next((at for at, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
            raise AssertionError(f"{part}: {len(found)} bytes were read, and byte {first} differs")
        self.bytes["read"] += part.length

    def _done(self, call: Callable[[], T]) -> T:
        """However often it takes."""
        while (result := self._tried(lambda: (call(),))) is None:
            pass
        return result[0]

    def _tried(self, call: Callable[[], T]) -> T | None:
        return self._board.tried(call)

    def _fd(self, flags: int = os.O_RDWR) -> int:
        if self._mount != self._board.mounts:
            self._close()
        if flags not in self._fds:
            self._fds[flags] = os.open(self._path, flags | os.O_CLOEXEC)
        return self._fds[flags]

    def _close(self) -> None:
        self._mount = self._board.mounts
        while self._fds:
            _, fd = self._fds.popitem()
            errno_of(os.close, fd)


# The torture.


class Remounts:
    """The daemon ends and another takes its place, while the users are at rest or are not."""

    def __init__(self, scene: Scene, board: Board, random: Random) -> None:
        self._scene, self._board, self._random = scene, board, random

    def at_rest(self) -> str:
        """What the users have noted is what there is: the disk itself is compared, and the closed stack by QEMU."""
        with self._board.outage(*DEAD_MOUNT), self._board.paused():
            self._scene.assert_disk()
            self._scene.end(compare=True)
            if snapshot := self._random.random() < 0.5:
                self._scene.snapshot()
            self._served_again()
        return "remounted with a snapshot" if snapshot else "remounted"

    def under_load(self) -> str:
        with self._board.outage(*DEAD_MOUNT):
            self._scene.end(compare=False)
            self._served_again()
        return "remounted under load"

    def killed(self) -> str:
        with self._board.outage(*DEAD_MOUNT):
            self._scene.kill()
            self._served_again()
        return "daemon killed under load"

    def _served_again(self) -> None:
        self._scene.serve()
        self._board.remounted()


def told(setting: Setting, fault: Fault) -> Collection[str]:
    """A request that has met the fault gets its errno, all others of the outage are refused with EIO."""
    if fault.errno is None or (fault.is_loss and setting.policy == "hold"):
        return ()
    return {fault.errno} if not fault.is_loss else {"EIO", setting.kind.answer(fault.errno)}


def torture(place: Path, setting: Setting, random: Random, *, troubles: int) -> Report:
    """One disk, from its making to its end."""
    board = Board(USERS)
    with scene(place, setting) as running:
        pieces = cut(setting.size_bytes, USERS, random)
        of = [
            User(
                *(number, running.served.disk, running.disk, pieces[number], board, Random(random.getrandbits(32))),
                zeroes=setting.plane == OWN,
            )
            for number in range(USERS)
        ]
        met, remounts = Troubles(running, board, random, told=partial(told, setting)), Remounts(running, board, random)
        everything = [met.of(fault) for fault in faults_on(setting)]
        everything += [met.lose_again_in_recovery, remounts.at_rest, remounts.under_load, remounts.killed]
        with users(board, [user.work for user in of]):
            met.befall(everything, troubles, STEPS)
        running.assert_disk()
    calls = sum((user.calls for user in of), Counter[str]())
    return Report(str(setting), calls, sum((user.bytes for user in of), Counter[str]()), board.errors, met.met)
