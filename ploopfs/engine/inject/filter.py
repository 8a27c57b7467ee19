"""A filter around any Files: each operation asks what becomes of it before the storage sees it.

The injector of a device and the faults of the tests stand behind it; it knows neither. Fault model: an operation waits
(for a time, or until it is released), and is then answered with an errno without the storage having seen it, or done,
or done and answered with an errno all the same (the reply was lost). One that is given up while it waits never happens,
which is kinder than a storage that hangs, or with `late` happens when it is released. Invariants: what it raises is
what the real file raises, a BackendError with the operation's own name; an image that something late may yet change is
not opened for writing.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import trio

from ploopfs.engine.file import CHANGES, VOUCHING, Answered, Buffer, File, Files
from ploopfs.engine.given_up import Change, GivenUp
from ploopfs.engine.probe import READ_BYTES, ProbedImage
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.errors import BackendError, PloopError

log = logging.getLogger(__name__)

T = TypeVar("T")

_METHODS = {
    "read_nowait": "read",
    "read": "read",
    "thread_fd": "write",
    "write_soon": "write",
    "write": "write",
    "sync": "fsync",
    "sync_size": "fsync",
    "size": "stat",
    "truncate": "truncate",
    "allocate": "fallocate",
    "punch": "punch hole",
    "lock": "lock",
    "unlock": "unlock",
}
"""Methods of a file, and the operation of each."""

OPERATIONS = frozenset({"open", *_METHODS.values()})
"""The names that BackendError has for them."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on its way to the storage; `file` is None for one on a path."""

    name: str
    path: str
    writable: bool = False
    offset: int = 0
    length: int = 0
    file: "FilteredFile | None" = None


class Fate(Protocol):
    """What becomes of an operation: the waits first, then the errno, or the storage's own answer if there is none."""

    @property
    def errno(self) -> int | None: ...

    @property
    def delay_s(self) -> float: ...

    @property
    def released(self) -> trio.Event | None: ...

    @property
    def after(self) -> bool:
        """The storage does it before it is answered with the errno."""

    @property
    def late(self) -> bool:
        """A change that is given up while it waits to be released is done then, though nobody waits for it."""


class Judge(Protocol):
    def match(self, operation: Operation) -> Fate | None: ...


class FilteredFiles:
    """Files whose operations the judge decides. `given_up` is what others have in common who may open the images."""

    def __init__(self, inner: Files, judge: Judge, given_up: GivenUp | None = None) -> None:
        self._inner = inner
        self._judge = judge
        self._given_up = given_up or GivenUp()

    async def open(self, path: str, *, writable: bool) -> "FilteredFile":
        work = partial(self._inner.open, path, writable=writable)
        file = self.wrap(await _decided(self._judge, Operation("open", path, writable), work))
        file.given_up = self._given_up
        if writable:
            try:
                self._given_up.check(path, file.identity)
            except PloopError:
                await file.aclose()
                raise
        return file

    def wrap(self, file: File) -> "FilteredFile":
        return FilteredFile(file, self._judge)

    async def is_directory(self, path: str) -> bool:
        return await _decided(self._judge, Operation("stat", path), partial(self._inner.is_directory, path))

    async def real_path(self, path: str) -> str:
        return await _decided(self._judge, Operation("stat", path), partial(self._inner.real_path, path))

    async def probe(self, images: Sequence[ProbedImage]) -> None:
        """What would become of the operations on an image becomes of the probe."""
        for operation in (operation for image in images for operation in _probing(image)):
            await _decided(self._judge, operation, trio.lowlevel.checkpoint)
        await self._inner.probe(images)


class FilteredFile:
    """One open file; what is filtered does not answer at once, so that every operation can be held."""

    def __init__(self, inner: File, judge: Judge) -> None:
        self.path = inner.path
        self.writable = inner.writable
        self.identity = inner.identity
        self._inner = inner
        self._judge = judge
        self.given_up = GivenUp()
        self._late = 0
        self._is_closed = False
        self._abandoned = False

    @property
    def abandoned(self) -> bool:
        return self._abandoned or self._inner.abandoned

    @abandoned.setter
    def abandoned(self, value: bool) -> None:
        self._abandoned = value

    def filter_only(self, operations: Set[str]) -> None:
        """For all other operations callers reach the methods of the file below as if nobody stood between: an attribute
        of the object hides the method of its class."""
        for method, operation in _METHODS.items():
            if operation in operations:
                self.__dict__.pop(method, None)
            else:
                self.__dict__[method] = getattr(self._inner, method)

    def read_nowait(self, offset: int, length: int, room: object = None) -> None:  # noqa: ARG002 -- as File has it
        return None

    def thread_fd(self) -> int | None:
        return None

    def write_soon(self, pieces: Pieces, answered: Answered, reply: Reply | None = None) -> bool:  # noqa: ARG002
        return False

    async def read(self, offset: int, length: int) -> bytearray:
        return await self._decided("read", partial(self._inner.read, offset, length), offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        await self._decided("write", partial(self._inner.write, offset, data), offset, len(data))

    def start_writeback(self) -> None:
        """A hint, and no operation: nobody could see what becomes of it."""
        self._inner.start_writeback()

    async def sync(self) -> None:
        await self._decided("fsync", self._inner.sync)

    async def sync_size(self, size: int) -> None:
        await self._decided("fsync", partial(self._inner.sync_size, size))

    async def size(self) -> int:
        return await self._decided("stat", self._inner.size)

    async def truncate(self, size: int) -> None:
        await self._decided("truncate", partial(self._inner.truncate, size), size)

    async def allocate(self, offset: int, length: int) -> None:
        await self._decided("fallocate", partial(self._inner.allocate, offset, length), offset, length)

    async def punch(self, offset: int, length: int) -> None:
        await self._decided("punch hole", partial(self._inner.punch, offset, length), offset, length)

    async def lock(self, *, as_writer: bool | None = None) -> None:
        await self._decided("lock", partial(self._inner.lock, as_writer=as_writer))

    async def unlock(self) -> None:
        await self._decided("unlock", self._inner.unlock)

    async def aclose(self) -> None:
        """What is yet to happen needs the file."""
        self._is_closed = True
        if not self._late:
            await self._inner.aclose()

    async def _decided(self, name: str, work: Callable[[], Awaitable[T]], offset: int = 0, length: int = 0) -> T:
        operation = Operation(name, self.path, self.writable, offset, length, self)
        fate = self._judge.match(operation)
        try:
            return await _met(fate, operation, work)
        except trio.Cancelled:
            # As in a real file: who asked has given up, and nobody can say what the storage would still have done.
            self._abandoned |= name in VOUCHING
            if fate is not None and fate.late and fate.released is not None and not fate.released.is_set():
                self._let_happen(operation, fate, fate.released, work)
            raise

    def _let_happen(
        self, operation: Operation, fate: Fate, released: trio.Event, work: Callable[[], Awaitable[object]]
    ) -> None:
        """Not before it is released, though whoever asked for it is gone; nobody sees how it ends."""
        if operation.name not in CHANGES or (fate.errno is not None and not fate.after):
            return
        ended = trio.Event()
        self._late += 1
        self.given_up.add(Change(self.path, self.identity, lambda: not ended.is_set()))

        async def happen() -> None:
            await released.wait()
            try:
                await work()
            except PloopError as error:
                log.info("late, and failed: %s", error)
            finally:
                ended.set()
                self._late -= 1
            if self._is_closed and not self._late:
                await self._inner.aclose()

        trio.lowlevel.spawn_system_task(happen)


def _probing(image: ProbedImage) -> Iterator[Operation]:
    yield Operation("open", image.path, image.write_beside)
    for offset, length in filter(None, ((0, READ_BYTES), image.failed)):
        yield Operation("read", image.path, image.write_beside, offset, length)
    if image.write_beside:
        yield Operation("write", image.path, True, 0, READ_BYTES)
        yield Operation("fsync", image.path, True)


async def _decided(judge: Judge, operation: Operation, work: Callable[[], Awaitable[T]]) -> T:
    return await _met(judge.match(operation), operation, work)


async def _met(fate: Fate | None, operation: Operation, work: Callable[[], Awaitable[T]]) -> T:
    if fate is None:
        return await work()
    if fate.delay_s:
        await trio.sleep(fate.delay_s)
    if fate.released is not None:
        await fate.released.wait()
    if fate.errno is None:
        return await work()
    if fate.after and operation.name != "open":  # an open whose reply is lost leaves nothing open
        await work()
    await trio.lowlevel.checkpoint()
    raise BackendError(
        fate.errno, operation.name, operation.path, offset=operation.offset, length=operation.length
    )
