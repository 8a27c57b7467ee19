"""Stores over the platter that fail, hang, delay, lie, lose a lease and come back; paths begin with a store's name.

Fault model. An operation waits, and then happens in one step: it is done, or answered with an errno and not done, or
done in part (a write), or done all the same (a lost reply); it may wait for its reply, too. A store that crashes loses
what was not synced. Who had a file open then learns it by every later operation (a dead mount), or by the next change
or fsync and never again: the fsyncs after that answer lie. An fsync that failed may have dropped what was pending,
which is seen until the file is opened for writing again, past the page cache; so may one that nobody waits for any
more, whose answer nobody hears. An operation that is given up was under
way: it happens later, or never; until then its file does not open for writing, as in `OsFiles`. A daemon that is killed
takes its open files and locks with it, and what it had under way happens or not.
"""

import errno
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Protocol, TypeVar

import trio

from ploopfs.engine.file import VOUCHING, Answered, Buffer
from ploopfs.engine.probe import ProbedImage
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.errors import BackendError, ImageMismatch, StorageTimeout
from ploopfs.testing.files import MemoryFile, in_room
from tests.device.outage import passes
from tests.storm.platter import Change, Platter

T = TypeVar("T")

CHANGES = frozenset({"write", "truncate", "fallocate", "punch hole"})
NEVER_DONE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EOPNOTSUPP})
"""Answers that exclude that it was done."""
MAX_WAIT_S = 0.02
LATEST_S = 5.0
"""What was given up happens within this time after the store has stopped to hang."""


class Happens(Enum):
    """What becomes of an operation that may be answered with an error."""

    NO = "no"
    IN_PART = "in part"
    YES = "yes"


@dataclass(frozen=True, slots=True)
class Origin:
    """On whose behalf the storage is asked: `is_request` is a request of a user, else a control operation."""

    device: str
    is_request: bool


ORIGIN: ContextVar[Origin | None] = ContextVar("origin", default=None)


@contextmanager
def asked_by(origin: Origin) -> Iterator[None]:
    token = ORIGIN.set(origin)
    try:
        yield
    finally:
        ORIGIN.reset(token)


class Watch(Protocol):
    """Who is told of what the stores do, in the step in which they do it."""

    def answered(self, file: "StormFile", number: int, operation: str) -> None:
        """With an error."""

    def forgot(self, path: str) -> None:
        """Changes of this image that were not synced may be gone."""

    def used_after_close(self, file: "StormFile", operation: str) -> None: ...

    def changing(self, file: "StormFile", operation: str) -> None: ...


@dataclass(slots=True)
class Weather:
    """What one store is like at present. `rate` is how many operations fail with one of `errnos`."""

    outage: int | None = None
    rate: float = 0
    errnos: tuple[int, ...] = ()
    operations: frozenset[str] = frozenset()
    is_full: bool = False
    slowness: float = 1
    hang: trio.Event | None = None

    async def wait(self, random: Random) -> None:
        if self.hang is not None:
            await self.hang.wait()
        await passes(random.random() * MAX_WAIT_S * self.slowness if random.random() < 0.7 else 0)


@dataclass(eq=False, slots=True)
class GivenUp:
    file: "StormFile"
    happen: Callable[[], object]


class Stores:
    """All files of the world. `open_files` are those whose descriptor is not closed."""

    def __init__(self, platter: Platter, random: Random, watch: Watch, nursery: trio.Nursery) -> None:
        self.platter, self.random, self.watch, self.nursery = platter, random, watch, nursery
        self.weather: dict[str, Weather] = {}
        self.open_files: dict[StormFile, None] = {}
        self.given_up: dict[GivenUp, None] = {}
        self.mirrors: dict[str, Callable[[], str]] = {}
        self.numbers = itertools.count()
        self.operations = self.errors = self.late = self.made = 0

    def weather_at(self, path: str) -> Weather:
        return self.weather.setdefault(path.split("/")[1], Weather())

    # --- Files ----------------------------------------------------------------------------------------------------

    def file(self, number: int) -> "StormFile":
        """An open one, by what its `thread_fd` is."""
        return next(file for file in self.open_files if file.number == number)

    async def open(self, path: str, *, writable: bool) -> "StormFile":
        await self._asked("open", path)
        self._refresh(path)
        inner = await self.platter.files.open(path, writable=writable)
        file = StormFile(self, inner)
        if writable and any(each.file.identity == file.identity for each in self.given_up):
            await inner.aclose()
            raise StorageTimeout(f"{path}: an operation on it was given up and may yet happen")
        if writable:
            self.platter.drop_cache(path)
        self.open_files[file] = None
        return file

    def mirror(self, path: str, source: Callable[[], str]) -> None:
        """At `path` lies whatever the image at the path that `source` says has when somebody opens it."""
        if path not in self.platter.images:
            self.platter.put(path, self.platter.seen(source()))
        self.mirrors[path] = source

    def _refresh(self, path: str) -> None:
        if path in self.mirrors and not any(each.file.path == path for each in self.given_up):
            source = self.mirrors[path]()
            if source != path:
                self.platter.put(path, self.platter.seen(source))

    async def is_directory(self, path: str) -> bool:
        await self._asked("stat", path)
        return await self.platter.files.is_directory(path)

    async def real_path(self, path: str) -> str:
        return await self.platter.files.real_path(path)

    async def probe(self, images: Sequence[ProbedImage]) -> None:
        for image in images:
            await self._asked("open", image.path)
            if image.path not in self.platter.images:
                raise BackendError(errno.ENOENT, "open", image.path)
            if not self.platter.seen(image.path).startswith(image.start):
                raise ImageMismatch(f"{image.path}: the header is not the one that was opened")

    async def _asked(self, operation: str, path: str) -> None:
        self.operations += 1
        weather = self.weather_at(path)
        await weather.wait(self.random)
        number = weather.outage or self.flaw(weather, operation)
        if number:
            self.errors += 1
            raise BackendError(number, operation, path)

    def flaw(self, weather: Weather, operation: str) -> int | None:
        if weather.rate and operation in weather.operations and self.random.random() < weather.rate:
            return self.random.choice(weather.errnos)
        return None

    # --- what befalls them ----------------------------------------------------------------------------------------

    def crash(self, name: str, number: int, *, stays_dead: bool) -> None:
        """Everything on one store that was not synced may be gone, and so are the locks."""
        for path in [path for path in self.platter.images if path.split("/")[1] == name]:
            self.crash_image(path, number, stays_dead=stays_dead)

    def crash_image(self, path: str, number: int, *, stays_dead: bool) -> None:
        lost = self.platter.crash(path, self.random)
        self.platter.release_locks(path)
        for file in self.open_files:
            if file.path == path:
                file.dead, file.untold = (number, None) if stays_dead else (file.dead, number)
        if lost:
            self.watch.forgot(path)

    def kill(self) -> None:
        """The daemon is gone: nothing more comes from its files, and what is under way happens now or never."""
        for file in self.open_files:
            file.severed = True
        for each in tuple(self.given_up):
            self._end(each, happens=self.random.random() < 0.5)

    def let_go(self) -> None:
        """The story ends in the middle: nobody is left who would end a hang, and some requests cannot be given up."""
        self.kill()
        for weather in self.weather.values():
            if weather.hang is not None:
                weather.hang.set()

    def bury(self) -> None:
        """Its tasks have ended, too: the kernel closes what it had open."""
        for file in self.open_files:
            self.platter.release_locks(file.path)
        self.open_files.clear()

    def give_up(self, file: "StormFile", happen: Callable[[], object]) -> None:
        each = GivenUp(file, happen)
        self.given_up[each] = None
        if file.severed:
            self._end(each, happens=self.random.random() < 0.5)
        else:
            self.nursery.start_soon(self._happen_later, each)

    async def _happen_later(self, each: GivenUp) -> None:
        weather = self.weather_at(each.file.path)
        if weather.hang is not None:
            await weather.hang.wait()
        await passes(self.random.random() * LATEST_S)
        self._end(each, happens=each.file.dead is None and self.random.random() < 0.7)

    def _end(self, each: GivenUp, *, happens: bool) -> None:
        if each in self.given_up:
            del self.given_up[each]
            if happens and each.file.path in self.platter.images:
                self.late += 1
                each.happen()
            each.file.close_if_over()


class StormFile:
    """One open file. `dead` answers everything from now on, `untold` the next change or fsync."""

    def __init__(self, stores: Stores, inner: MemoryFile) -> None:
        self.path, self.writable, self.identity = inner.path, inner.writable, inner.identity
        self.abandoned = False
        self.dead: int | None = None
        self.untold: int | None = None
        self.severed = self.is_closed = self._knows_its_lock = False
        self._stores, self._inner = stores, inner
        self.number = next(stores.numbers)
        self._soon: set[trio.CancelScope] = set()

    def read_nowait(self, offset: int, length: int, room: memoryview | None = None) -> Buffer | None:
        data = self._stores.platter.seen(self.path)[offset : offset + length] if self._is_ready("read") else b""
        return in_room(bytearray(data), room) if len(data) == length else None

    def _is_ready(self, operation: str) -> bool:
        """Whether it can answer at once. Its errors are heard by who waits."""
        stores, weather = self._stores, self._stores.weather_at(self.path)
        self._raise_if_severed(operation)
        is_sound = not weather.rate and weather.hang is None and self._fate(operation, 0, 0)[1] is Happens.YES
        if not is_sound or weather.is_full or stores.random.random() < 0.5:
            return False
        stores.operations += 1
        return True

    async def read(self, offset: int, length: int) -> bytearray:
        def happen() -> bytearray:
            return bytearray(self._stores.platter.seen(self.path)[offset : offset + length])

        return await self._do("read", happen, offset, length)

    def thread_fd(self) -> int | None:
        """Half of the time a thread has it before its storage may hang. The answer is a name for `Stores.file`."""
        is_free = not (self.severed or self.is_closed) and self._stores.weather_at(self.path).hang is None
        return self.number if is_free and self._stores.random.random() < 0.5 else None

    def made(self, pieces: Pieces) -> list[int]:
        """By that thread, in no time; the results are those of pwrite(2), or an errno as a negative number."""
        stores, results, is_whole = self._stores, list[int](), True
        stores.made += 1
        for offset, data in pieces:
            if not is_whole:
                results.append(-errno.ECANCELED)
                continue
            stores.operations += 1
            stores.watch.changing(self, "write")
            number, happens = self._fate("write", offset, len(data))
            change = Change(offset, bytes(data))
            if happens is Happens.YES:
                stores.platter.change(self.path, change)
            elif happens is Happens.IN_PART:
                self._partly(change)()
            if number is not None:
                self._forget_untold("write", number)
                self._told("write", number)
            is_whole = number is None
            results.append(len(data) if number is None else -number)
        return results

    def write_soon(self, pieces: Pieces, answered: Answered, reply: Reply | None = None) -> bool:
        """Who closes the file gives it up."""
        if reply is not None and reply.maker is not None:

            def ended(full: int, result: int) -> None:
                error = BackendError(-result, "write", self.path) if full < len(pieces) else None
                answered(error)

            reply.maker.begin(self.number, pieces, ended, reply)
            return True
        if self._stores.random.random() < 0.3:
            return False
        scope = trio.CancelScope()
        self._soon.add(scope)

        async def write() -> None:
            error = None
            with scope:
                try:
                    for offset, data in pieces:
                        await self.write(offset, data)
                except BackendError as failure:
                    error = failure
            self._soon.discard(scope)
            if not scope.cancelled_caught:
                answered(error)

        trio.lowlevel.spawn_system_task(write, context=copy_context())
        return True

    async def write(self, offset: int, data: Buffer) -> None:
        await self._change("write", Change(offset, bytes(data)), offset, len(data))

    async def truncate(self, size: int) -> None:
        await self._change("truncate", Change(size, None), size, 0)

    async def allocate(self, offset: int, length: int) -> None:
        await self._change("fallocate", Change(offset + length, b""), offset, length)

    async def punch(self, offset: int, length: int) -> None:
        length = max(0, min(length, self._stores.platter.size(self.path) - offset))
        await self._change("punch hole", Change(offset, bytes(length)), offset, length)

    def start_writeback(self) -> None:
        """Whatever was written may be durable at any time."""

    async def sync(self) -> None:
        """What comes while it is under way may or may not be durable with it."""
        platter, path = self._stores.platter, self.path
        before, takes_later = platter.images[path].changes, self._stores.random.random() < 0.5
        await self._do("fsync", lambda: platter.sync(path, platter.images[path].changes if takes_later else before))

    async def sync_size(self, size: int) -> None:  # noqa: ARG002
        platter, path = self._stores.platter, self.path
        before = platter.images[path].changes
        await self._do("fsync", lambda: platter.sync_size(path, before))

    async def size(self) -> int:
        return await self._do("stat", lambda: self._stores.platter.size(self.path))

    async def lock(self, *, as_writer: bool | None = None) -> None:
        """Who was told of an error, or gave it up, cannot know that an unlock before it has failed, too."""
        self._knows_its_lock = False
        await self._do("lock", lambda: None)
        await self._inner.lock(as_writer=as_writer)
        self._knows_its_lock = True

    @property
    def has_lock(self) -> bool:
        return self._inner.has_lock and self._knows_its_lock

    async def unlock(self) -> None:
        await self._do("unlock", lambda: None)
        await self._inner.unlock()

    async def aclose(self) -> None:
        """As in `OsFile`: not before what was given up on it has ended, and its lock stays as long."""
        for scope in self._soon:
            scope.cancel()
        while self._soon:
            await trio.lowlevel.cancel_shielded_checkpoint()
        self.is_closed = self.is_closed or not self.severed
        self.close_if_over()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def close_if_over(self) -> None:
        under_way = any(each.file is self for each in self._stores.given_up)
        if self.is_closed and not under_way and not self.severed:
            self._inner.close()
            self._stores.open_files.pop(self, None)

    async def _change(self, operation: str, change: Change, offset: int, length: int) -> None:
        if not self.writable:
            raise BackendError(errno.EBADF, operation, self.path)
        self._stores.watch.changing(self, operation)
        platter = self._stores.platter
        await self._do(operation, lambda: platter.change(self.path, change), offset, length, self._partly(change))

    def _partly(self, change: Change) -> Callable[[], None]:
        def happen() -> None:
            for part in change.survivors(self._stores.random):
                self._stores.platter.change(self.path, part)

        return happen

    async def _do(
        self,
        operation: str,
        happen: Callable[[], T],
        offset: int = 0,
        length: int = 0,
        happen_partly: Callable[[], None] = lambda: None,
    ) -> T:
        stores, weather = self._stores, self._stores.weather_at(self.path)
        stores.operations += 1
        self._raise_if_severed(operation)
        happened = False
        try:
            await weather.wait(stores.random)
            self._raise_if_severed(operation)
            number, happens = self._fate(operation, offset, length)
            result: T | None = None
            if happens is Happens.YES:
                happened, result = True, happen()
            elif happens is Happens.IN_PART:
                happened = True
                happen_partly()
            if stores.random.random() < 0.3:
                await weather.wait(stores.random)
                if number is None:  # on its way when the store crashed
                    number = self._died(operation)
        except trio.Cancelled:
            self.abandoned |= operation in VOUCHING
            if operation in CHANGES and not happened:
                stores.give_up(self, happen)
            if operation == "fsync" and not happened and not self.severed:
                self._fail_unheard()
            raise
        self._raise_if_severed(operation)
        if number is not None:
            await self._answer(operation, number, offset, length)
        return result  # type: ignore[return-value]  # None is an answer only where T is None

    def _fail_unheard(self) -> None:
        """Nobody waits for this fsync any more: it may fail, and the next one knows nothing of that."""
        if self._stores.random.random() < 0.5 and self._stores.platter.fail_sync(self.path):
            self._stores.watch.forgot(self.path)

    async def _answer(self, operation: str, number: int, offset: int, length: int) -> None:
        drops = operation == "fsync" and self.dead is None and self._stores.random.random() < 0.5
        if drops and self._stores.platter.fail_sync(self.path):
            self._stores.watch.forgot(self.path)
        self._forget_untold(operation, number)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._told(operation, number)
        raise BackendError(number, operation, self.path, offset=offset, length=length)

    def _forget_untold(self, operation: str, number: int) -> None:
        if operation in CHANGES | {"fsync"} and number == self.untold:
            self.untold = None

    def _told(self, operation: str, number: int) -> None:
        self._stores.errors += 1
        self._stores.watch.answered(self, number, operation)

    def _fate(self, operation: str, offset: int, length: int) -> tuple[int | None, Happens]:
        stores, weather = self._stores, self._stores.weather_at(self.path)
        number = self._died(operation) or weather.outage
        if number:
            return number, Happens.NO
        if weather.is_full and operation in CHANGES and offset + length > stores.platter.size(self.path):
            return errno.ENOSPC, Happens.NO
        number = stores.flaw(weather, operation)
        if number is None:
            return None, Happens.YES
        return number, Happens.NO if number in NEVER_DONE else stores.random.choice(tuple(Happens))

    def _died(self, operation: str) -> int | None:
        return self.untold if self.dead is None and operation in CHANGES | {"fsync"} else self.dead

    def _raise_if_severed(self, operation: str) -> None:
        if self.is_closed:
            self._stores.watch.used_after_close(self, operation)
        if self.severed or self.is_closed:
            raise BackendError(errno.EBADF, operation, self.path)
