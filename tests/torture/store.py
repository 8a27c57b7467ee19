"""A store that lies, in a process of its own: `python -m tests.torture.store BRICKS MOUNTPOINT WINDOW` prints
`ready`.

Fault model, GlusterFS's client with write-behind: a write is acknowledged when this process has it, and is in `bricks`
when an fsync of that file has succeeded, or when more than `window` bytes wait behind it. Who reads sees all that was
acknowledged. When the brick is lost, writes are acknowledged as ever, and everything else answers ENOTCONN; the fsync
that fails so drops what was waiting, and when the brick is back the next one succeeds, though those bytes are gone.
SIGKILL takes whatever waits; `crash` keeps any part of it, torn at 512 bytes, and dies. Besides, operations can be told
to fail with an errno, each time or one in so many.

Told by lines on standard input, each answered by a line. Knows nothing of images, and of names only the bricks' own.
"""

import errno
import os
import stat
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import wraps
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

SECTOR_BYTES = 512
CHANGING = frozenset({"write", "grow", "create", "fsync"})
OPERATIONS = CHANGING | {"read", "open", "stat"}

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Write:
    offset: int
    data: bytes

    def apply(self, image: bytearray) -> None:
        image.extend(bytes(max(0, self.offset - len(image))))
        image[self.offset : self.offset + len(self.data)] = self.data

    def settle(self, fd: int) -> None:
        os.pwrite(fd, self.data, self.offset)

    def torn(self, random: Random) -> "list[Write]":
        """Any of its sectors."""
        cuts = [0, *range(-self.offset % SECTOR_BYTES or SECTOR_BYTES, len(self.data), SECTOR_BYTES), len(self.data)]
        pieces = [Write(self.offset + start, self.data[start:end]) for start, end in pairwise(cuts)]
        return [piece for piece in pieces if random.random() < 0.5]


@dataclass(frozen=True, slots=True)
class Cut:
    """The file has this size afterwards."""

    size: int

    def apply(self, image: bytearray) -> None:
        del image[self.size :]
        image.extend(bytes(self.size - len(image)))

    def settle(self, fd: int) -> None:
        os.ftruncate(fd, self.size)

    def torn(self, random: Random) -> "list[Cut]":
        return [self] if random.random() < 0.5 else []


Change = Write | Cut


class Kept:
    """One file: `pending` are the changes that the brick has not, `seen` what a reader is shown while there are some or
    the file is open."""

    def __init__(self, brick: Path) -> None:
        self.brick = brick
        self.handles = 0
        self.pending: list[Change] = []
        self.pending_bytes = 0
        self._seen: bytearray | None = None

    @property
    def seen(self) -> bytearray:
        if self._seen is None:
            self._seen = bytearray(self.brick.read_bytes())
        return self._seen

    @property
    def size(self) -> int:
        return self.brick.stat().st_size if self._seen is None else len(self._seen)

    def change(self, change: Change) -> None:
        change.apply(self.seen)
        self.pending.append(change)
        self.pending_bytes += len(change.data) if isinstance(change, Write) else 0

    def settle(self, leave_bytes: int = 0) -> None:
        """The oldest first, until so many bytes are left."""
        with self.brick.open("r+b") as file:
            while self.pending and (self.pending_bytes > leave_bytes or not leave_bytes):
                change = self.pending.pop(0)
                change.settle(file.fileno())
                self.pending_bytes -= len(change.data) if isinstance(change, Write) else 0

    def drop(self) -> None:
        self.pending.clear()
        self.pending_bytes, self._seen = 0, None

    def crash(self, random: Random) -> None:
        with self.brick.open("r+b") as file:
            for change in self.pending:
                for piece in change.torn(random):
                    piece.settle(file.fileno())

    def released(self) -> None:
        self.handles -= 1
        if not self.handles and not self.pending:
            self._seen = None


@dataclass(slots=True)
class Faults:
    """`failing`: operation -> errno, and in how many it happens once."""

    lost: bool = False
    failing: dict[str, tuple[int, int]] = field(default_factory=dict)
    random: Random = field(default_factory=lambda: Random(1))

    def meet(self, operation: str) -> None:
        if self.lost and operation not in ("write", "grow"):
            raise FUSEError(errno.ENOTCONN)
        number, chance = self.failing.get(operation, (0, 1))
        if number and not self.random.randrange(chance):
            raise FUSEError(number)


def answered(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """What the brick answers is the answer."""

    @wraps(handler)
    async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from error

    return wrapped


class Store(pyfuse3.Operations):  # type: ignore[misc, unused-ignore]
    """An inode is a name below `bricks`, for as long as the process lives."""

    def __init__(self, bricks: Path, window_bytes: int) -> None:
        super().__init__()
        self.faults = Faults()
        self._window_bytes = window_bytes
        self._paths: dict[int, Path] = {pyfuse3.ROOT_INODE: bricks}
        self._numbers: dict[Path, int] = {bricks: pyfuse3.ROOT_INODE}
        self._kept: dict[Path, Kept] = {}

    # What it is told.

    def obey(self, line: str) -> str:
        verb, *arguments = line.split()
        match verb, arguments:
            case "lose", []:
                self.faults.lost = True
            case "return", []:
                self.faults.lost = False
            case "fail", [name, operations, chance]:
                number = int(getattr(errno, name))
                assert set(operations.split(",")) <= OPERATIONS, operations
                self.faults.failing |= dict.fromkeys(operations.split(","), (number, int(chance)))
            case "heal", []:
                self.faults.failing.clear()
            case "pending", []:
                return str(sum(kept.pending_bytes for kept in self._kept.values()))
            case "crash", [seed]:
                random = Random(int(seed))
                for kept in self._kept.values():
                    kept.crash(random)
                os._exit(0)
            case _:
                raise ValueError(line)
        return "done"

    # Names.

    def _entry(self, path: Path) -> EntryAttributes:
        found = os.lstat(path)
        entry = EntryAttributes()
        entry.st_ino = self._number(path)
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = 0
        for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
            setattr(entry, name, getattr(found, name))
        kept = self._kept.get(path)
        entry.st_size = kept.size if kept is not None else found.st_size
        entry.st_blksize, entry.st_blocks = 4096, -(-entry.st_size // SECTOR_BYTES)
        return entry

    def _number(self, path: Path) -> int:
        if path not in self._numbers:
            number = len(self._numbers) + 2
            self._numbers[path], self._paths[number] = number, path
        return self._numbers[path]

    def _file(self, number: int) -> Kept:
        path = self._paths[number]
        return self._kept.setdefault(path, Kept(path))

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:  # noqa: ARG002
        self.faults.meet("stat")
        return self._entry(self._paths[parent_inode] / os.fsdecode(name))

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:  # noqa: ARG002
        self.faults.meet("stat")
        return self._entry(self._paths[inode])

    @answered
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,  # noqa: ARG002
        ctx: RequestContext,  # noqa: ARG002
    ) -> EntryAttributes:
        path = self._paths[inode]
        if fields.update_size:
            kept = self._file(inode)
            self.faults.meet("grow" if attr.st_size > kept.size else "write")
            kept.change(Cut(attr.st_size))
        if fields.update_mode:
            path.chmod(stat.S_IMODE(attr.st_mode))
        return self._entry(path)

    @answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:  # noqa: ARG002
        self.faults.meet("stat")
        statistics = StatvfsData()
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(statistics, name, getattr(os.statvfs(self._paths[pyfuse3.ROOT_INODE]), name))
        return statistics

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:  # noqa: ARG002
        self.faults.meet("create")
        path = self._paths[parent_inode] / os.fsdecode(name)
        path.unlink()
        self._kept.pop(path, None)

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,  # noqa: ARG002
        ctx: RequestContext,  # noqa: ARG002
    ) -> None:
        """Of a file that nobody has open, to a name that nobody has open."""
        self.faults.meet("create")
        old = self._paths[parent_inode_old] / os.fsdecode(name_old)
        new = self._paths[parent_inode_new] / os.fsdecode(name_new)
        if old in self._kept:
            self._kept.pop(old).settle()
        self._kept.pop(new, None)
        old.rename(new)

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:  # noqa: ARG002
        self.faults.meet("open")
        return inode

    @answered
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        place = self._paths[fh]
        for number, name in enumerate(sorted(os.listdir(place))[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, os.fsencode(name), self._entry(place / name), number):
                return

    # Files: a handle is the number of its inode.

    @answered
    async def create(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        flags: int,  # noqa: ARG002
        ctx: RequestContext,  # noqa: ARG002
    ) -> tuple[FileInfo, EntryAttributes]:
        self.faults.meet("create")
        path = self._paths[parent_inode] / os.fsdecode(name)
        path.touch(mode & 0o777)
        return self._opened(self._number(path)), self._entry(path)

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:  # noqa: ARG002
        self.faults.meet("open")
        return self._opened(inode)

    def _opened(self, number: int) -> FileInfo:
        self._file(number).handles += 1
        return FileInfo(fh=number, direct_io=True, keep_cache=False)

    @answered
    async def release(self, fh: int) -> None:
        """Maybe after the file was removed."""
        kept = self._kept.get(self._paths[fh])
        if kept is not None:
            kept.released()

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        self.faults.meet("read")
        return bytes(memoryview(self._file(fh).seen)[off : off + size])

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        kept = self._file(fh)
        self.faults.meet("grow" if off + len(buf) > kept.size else "write")
        kept.change(Write(off, bytes(buf)))
        if not self.faults.lost and kept.pending_bytes > self._window_bytes:
            kept.settle(leave_bytes=self._window_bytes // 2)
        return len(buf)

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:  # noqa: ARG002
        kept = self._file(fh)
        try:
            self.faults.meet("fsync")
        except FUSEError:
            kept.drop()
            raise
        kept.settle()


async def main(bricks: str, mountpoint: str, window_bytes: int) -> None:
    store = Store(Path(bricks), window_bytes)
    pyfuse3.init(store, mountpoint, {"fsname=lying", "subtype=lying", "default_permissions"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey, store)
        print("ready", flush=True)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _obey(store: Store) -> None:
    unended = b""
    async for some in trio.lowlevel.FdStream(os.dup(0)):
        *lines, unended = (unended + some).split(b"\n")
        for line in lines:
            print(store.obey(line.decode()), flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
