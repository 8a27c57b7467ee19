"""The kinds of node in the tree: directory, attribute, link, disk, report.

A node object is the identity of a file: whoever serves the tree gives one inode number to one node object, so a
directory returns the same child object as long as that child exists, and a new one after it was removed and added
again.
Knows nothing of FUSE or of what the values mean.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import trio

from ploopfs.device.events import Events
from ploopfs.device.signal import Signal
from ploopfs.device.soon import Written
from ploopfs.device.stats import Op
from ploopfs.device.turn import Turn
from ploopfs.engine.file import Buffer
from ploopfs.engine.ring_write import Pieces, Reply

Show = Callable[[], str | None]
Store = Callable[[str], Awaitable[str | None]]


def _never() -> bool:
    return False


class Names(dict[str, "Node"]):
    """What a directory of many names answers: it is counted once, and never changed but by another in its place."""

    __slots__ = ("subdirectories",)

    def __init__(self, names: Mapping[str, "Node"]) -> None:
        super().__init__(names)
        self.subdirectories = sum(isinstance(node, Directory) for node in names.values())


@dataclass(eq=False, slots=True)
class Directory:
    """`children()` maps names to nodes, in listing order; it never waits. `is_fixed`: its answer is the same for as
    long as this directory exists, so that whoever has it need not ask for it again. Of others, `changed` fires in the
    very moment in which the answer is another, and `lend` says for how many seconds whoever is told a name may go by
    it; without them it is to be asked for each time."""

    children: Callable[[], Mapping[str, "Node"]]
    is_fixed: bool = False
    changed: Signal | None = None
    lend: Callable[[str], float] | None = None

    mode = 0o755


@dataclass(eq=False, slots=True)
class Link:
    """A symbolic link; `target` is relative to the link's own directory, as in sysfs."""

    target: str

    mode = 0o777


@dataclass(eq=False, slots=True)
class Attribute:
    """One value.

    `show` is sync and never waits; its text is without the final newline, which the open file adds; None shows as an
    empty file. It raises `PloopError` for the reader's errno. `store` gets the text of one write(2); its `PloopError`
    is the writer's errno, and a text that it returns is what the same open file reads from then on in the place of
    `show` (nothing, if it is empty). `signal` is set on attributes that notify pollers. `removed` tells an open file
    that its object is gone. `bounded` is false where the text may be longer than a page, as in proc and debugfs.
    `private`: it is the owner's alone.
    """

    show: Show | None
    store: Store | None = None
    signal: Signal | None = None
    removed: Callable[[], bool] = _never
    bounded: bool = True
    private: bool = False

    @property
    def mode(self) -> int:
        return ((0o444 if self.show else 0) | (0o200 if self.store else 0)) & (0o700 if self.private else 0o777)


@dataclass(eq=False, slots=True)
class Stream:
    """The records of what happens, which each open file reads from where it is."""

    events: Events

    mode = 0o444


@dataclass(eq=False, slots=True)
class Report:
    """A text so long that nobody else is to wait while all of it is made: each open file makes it piece by piece, as it
    is read. A piece takes no more than some ms."""

    pieces: Callable[[], Iterator[str]]

    mode = 0o444


class BlockDevice(Protocol):
    """What a disk file needs of a device. Offsets and lengths are bytes; any alignment is served."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    def begin_turn(self) -> Turn | None:
        """For what waits for nothing, as long as nothing else happens; None if all are to wait."""

    def write_soon(
        self, offset: int, data: Buffer, written: Written, reply: Reply | None = None, pieces: Pieces | None = None
    ) -> bool:
        """As `write`, if that needs no task; `written` hears once that it is acknowledged, or what it has to await
        first. `pieces`: what `Turn.aim` has said of it. What `data` holds stays as it is for ever."""

    async def read(self, offset: int, length: int) -> Buffer:
        """Exactly the bytes that exist in the range: short or empty at the end of the device."""

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> int:
        """The number of bytes written: short where the device ends, `BeyondEnd` at or past the end. What `data` holds
        stays as it is until then."""

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """The range, as far as it exists, reads as zeroes afterwards, `BadValue` at or past the end; `unmap`: its space
        is given back where it can be."""

    def seek_data(self, offset: int) -> int | None:
        """lseek(2)'s SEEK_DATA; None: nothing but a hole follows."""

    def seek_hole(self, offset: int) -> int:
        """lseek(2)'s SEEK_HOLE; the end of the device counts as a hole."""

    @property
    def allocated_bytes(self) -> int:
        """What is no hole."""

    async def flush(self) -> None: ...

    def interrupt(self, task: trio.lowlevel.Task, op: Op) -> bool:
        """Fail the request of this kind with which this task waits and which is not in the storage's hands; False if
        there is none."""

    def opened(self) -> None:
        """An open file of the disk came into being (counts into pstate/open_count)."""

    def released(self) -> None: ...


@dataclass(eq=False, slots=True)
class Changes:
    """What chmod, chown and utimes have changed of a file, or None."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None

    def shown(self, mode: int, owner: tuple[int, int], since_ns: int) -> "Shown":
        """What stat(2) says of a file of that mode which is there since then. `owner`, user and group, is who serves
        the tree, as in sysfs: root, or the one user who could mount it without being root."""
        uid, gid = owner
        return Shown(
            mode=mode if self.mode is None else self.mode,
            uid=uid if self.uid is None else self.uid,
            gid=gid if self.gid is None else self.gid,
            atime_ns=since_ns if self.atime_ns is None else self.atime_ns,
            mtime_ns=since_ns if self.mtime_ns is None else self.mtime_ns,
            ctime_ns=since_ns if self.ctime_ns is None else self.ctime_ns,
        )


@dataclass(frozen=True, slots=True)
class Shown:
    """Of a file, as it is now."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass(eq=False, slots=True)
class Disk:
    """The disk itself, as a regular file of the device's size. `removed`: the device is gone. `changes` are not with
    who serves the file, as more than one may. `is_settling`: one of those was cut off, and the storage has not done yet
    what it was asked for; a write of that kind must not come after what somebody writes now."""

    device: BlockDevice
    removed: Callable[[], bool] = _never
    changes: Changes = field(default_factory=Changes)
    is_settling: bool = False

    @property
    def mode(self) -> int:
        return 0o440 if self.device.read_only else 0o660


Node = Directory | Link | Attribute | Stream | Report | Disk
