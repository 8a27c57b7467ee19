"""What a file system may have of changes that nobody synced: the fault model of every fake that loses something.

Fault model. A change is pending from its begin until a sync of the same file (of the same directory, for a name) that
began after the change had ended has succeeded. A failure keeps any subset of what is pending, in its order, cut into
pieces that are each there whole or not at all:

- The sectors of 512 bytes that a write touches, each by itself: what a disk writes in one go. A file system writes
  pages, so a change of one page cannot be there in part and the next one in full; a store behind a network can do that,
  and more outcomes ask more of the engine.
- The size of the file, apart from the data that made it so. Bytes past the size that is left vanish. A size without its
  data shows zeroes: ext4 (ordered, and unwritten extents), xfs and btrfs enter new blocks, or the size, only when the
  data are there. Blocks of another file would show only on ext4 with data=writeback and no extents; no program that
  writes in place can be safe there, so that is not modelled.
- A hole, sector by sector: the old bytes or zeroes; and where it was written again before a sync, the new ones.
- A cut: kept, what lay behind it is zeroes if the file is long again later; not kept, it is the old bytes.
- Space that was allocated: the size alone.
- A name: making, renaming and removing a file are a change of its directory each; a rename is there as a whole. Whether
  the file has its bytes is another matter: a durable name may lead to an empty file.

A sync that failed makes nothing durable. A sync answered with success is believed: a store that lies is another fake.
Knows nothing of files that are open, of time or of errors.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from posixpath import dirname

SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Sector:
    """`data` at `offset`, all of it in one sector."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The file is that long or longer."""

    size: int


@dataclass(frozen=True, slots=True)
class Exactly:
    """The file ends there."""

    size: int


Piece = Sector | AtLeast | Exactly
Survives = Callable[[Piece], bool]


def everything(_piece: Piece) -> bool:
    return True


def nothing(_piece: Piece) -> bool:
    return False


class Pending:
    """The bytes of one file that are durable (`data`), and the changes since; `changes` counts all that there ever
    were, and `settle` makes the first so many of them durable."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.changes = 0
        self._size = len(data)
        self._pieces: deque[tuple[int, Piece]] = deque()

    @property
    def pieces(self) -> list[Piece]:
        """What a failure may keep or take, in order."""
        return [piece for _change, piece in self._pieces]

    @property
    def atoms(self) -> list[list[Piece]]:
        """The same, in parts that most file systems keep or take together: of each change its size, and its data."""
        by_kind = groupby(self._pieces, lambda each: (each[0], isinstance(each[1], Sector)))
        return [[piece for _change, piece in atom] for _key, atom in by_kind]

    def write(self, offset: int, data: bytes) -> None:
        grown = [AtLeast(offset + len(data))] if offset + len(data) > self._size else []
        self._add([*grown, *_sectors(offset, data)])
        self._size = max(self._size, offset + len(data))

    def truncate(self, size: int) -> None:
        self._add([Exactly(size)])
        self._size = size

    def allocate(self, offset: int, length: int) -> None:
        self._add([AtLeast(offset + length)] if offset + length > self._size else [])
        self._size = max(self._size, offset + length)

    def punch(self, offset: int, length: int) -> None:
        self._add(_sectors(offset, bytes(max(0, min(length, self._size - offset)))))

    def settle(self, first: int) -> None:
        """The first so many changes are durable."""
        settled = []
        while self._pieces and self._pieces[0][0] <= first:
            settled.append(self._pieces.popleft()[1])
        if settled:
            self.data = _applied(self.data, settled)

    def settle_size(self, first: int) -> None:
        """The size that the first so many changes have made is durable, without what else they have changed."""
        kept: deque[tuple[int, Piece]] = deque()
        sizes: list[Piece] = []
        for change, piece in self._pieces:
            if isinstance(piece, Sector) or change > first:
                kept.append((change, piece))
                continue
            sizes.append(piece)
            if isinstance(piece, Exactly):
                # What a cut has taken does not come back with what makes the file longer again.
                kept = deque(each for each in kept if not _is_cut(each[1], piece.size))
        if sizes:
            self.data = _applied(self.data, sizes)
        self._pieces = kept

    def left(self, survives: Survives) -> bytearray:
        """What a failure leaves if it keeps the pieces that `survives` says; each is asked once, in order."""
        return _applied(self.data, [piece for _change, piece in self._pieces if survives(piece)])

    def crash(self, survives: Survives) -> None:
        self.data = self.left(survives)
        self._size = len(self.data)
        self._pieces.clear()

    def _add(self, pieces: Sequence[Piece]) -> None:
        self.changes += 1
        self._pieces.extend((self.changes, piece) for piece in pieces)


def _is_cut(piece: Piece, size: int) -> bool:
    return isinstance(piece, Sector) and piece.offset >= size


def _sectors(offset: int, data: bytes) -> list[Sector]:
    edges = [0, *range(SECTOR_BYTES - offset % SECTOR_BYTES, len(data), SECTOR_BYTES), len(data)]
    return [Sector(offset + start, data[start:stop]) for start, stop in pairwise(edges) if start < stop]


def _applied(before: bytearray, pieces: Sequence[Piece]) -> bytearray:
    """Data past the end wait for a size that reaches them."""
    image, size = bytearray(before), len(before)
    for piece in pieces:
        match piece:
            case Sector(offset, data):
                image.extend(bytes(max(0, offset - len(image))))
                image[offset : offset + len(data)] = data
            case AtLeast(least):
                size = max(size, least)
            case Exactly(size):
                image[size:] = bytes(max(0, len(image) - size))
    image.extend(bytes(max(0, size - len(image))))
    del image[size:]
    return image


Names = Mapping[str, int | None]
"""Absolute paths of one directory, and the file that each leads to from now on; None: to none."""


class PendingNames:
    """Which path leads to which file, durably (`names`), and the changes since. A directory is a file without bytes;
    what lies below one that was lost is lost with it."""

    def __init__(self, names: Mapping[str, int] | None = None) -> None:
        self.names: dict[str, int] = dict(names or {})
        self._changes: list[Names] = []

    @property
    def changes(self) -> list[Names]:
        return list(self._changes)

    def change(self, names: Names) -> None:
        """One operation; all its names lie in one directory."""
        (_directory,) = {dirname(path) for path in names}
        self._changes.append(names)

    def settle(self, directory: str) -> None:
        """What was changed in it is durable."""
        settled = [names for names in self._changes if dirname(next(iter(names))) == directory]
        self._changes = [names for names in self._changes if names not in settled]
        self.names = _renamed(self.names, settled)

    def left(self, survives: Callable[[Names], bool]) -> dict[str, int]:
        return _renamed(self.names, [names for names in self._changes if survives(names)])


def _renamed(before: Mapping[str, int], changes: list[Names]) -> dict[str, int]:
    names: dict[str, int | None] = dict(before)
    for change in changes:
        names.update(change)
    return {path: file for path, file in names.items() if file is not None}
