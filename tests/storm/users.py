"""The users of the disks: one request each, and whether its end was one that it may have.

Knows nothing of operators or stores. Invariant: what a request has promised is in the model of its disk before anybody
else can run.
"""

import errno
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import trio

from ploopfs.device.stats import Op
from ploopfs.engine.made_write import Made
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.errors import BackendError, InStandby, PloopError, RequestFailed, TargetFailed
from tests.storm.counting import GIVES_UP
from tests.storm.store import Origin, StormFile, asked_by
from tests.storm.world import BOUNDS, HOLD_TIMEOUT_MS, Disk, World

MAX_REQUESTS = 20
"""Of one disk at a time; the bound of its queue is beyond that."""
LONGEST_S = HOLD_TIMEOUT_MS / 1000 + 3 * BOUNDS.park_timeout_s + 10
"""Held once, parked before, between and after; the rest is for a store that answers slowly."""
_BLOCK_STATUSES = frozenset({errno.EBUSY, errno.ENOSPC, errno.ETIMEDOUT, errno.EOPNOTSUPP, errno.ENODEV})


@dataclass(frozen=True, slots=True)
class Request:
    """`kind` is read, write, fua, zero, unmap (zeroes that give space back), discard or flush; after `patience_s` the
    user gives up."""

    kind: str
    offset: int = 0
    data: bytes = b""
    length: int = 0
    patience_s: float = math.inf

    def __str__(self) -> str:
        letter = f" {self.data[:1].hex()}" if self.data else ""
        return f"{self.kind} {self.offset}+{self.length}{letter}"


def draw(random: Random, disk: Disk, cluster_bytes: int) -> Request:
    """Edges of clusters, and ranges that meet, come up often."""
    request = _draw(random, disk, cluster_bytes)
    return replace(request, patience_s=random.choice((0.01, 0.3, 3))) if random.random() < 0.05 else request


def _draw(random: Random, disk: Disk, cluster_bytes: int) -> Request:
    kind = random.choices(("read", "write", "fua", "discard", "flush", "zero", "unmap"), (8, 16, 2, 2, 4, 1, 2))[0]
    if kind == "flush":
        return Request(kind)
    clusters = disk.model.size // cluster_bytes
    offset = random.randrange(clusters) * cluster_bytes
    if kind == "discard":
        return Request(kind, offset, length=min(random.choice((1, 1, 2)) * cluster_bytes, disk.model.size - offset))
    offset += random.choice((0, 0, 0, 1, 511, 512, 4096, cluster_bytes // 2, cluster_bytes - 100))
    length = random.choice((1, 100, 512, 4096, 5000, cluster_bytes, cluster_bytes + 200, 2 * cluster_bytes))
    if kind == "read" and random.random() < 0.2:
        offset, length = 0, disk.model.size
    length = min(length, disk.model.size - offset)
    if kind in ("read", "zero", "unmap"):
        return Request(kind, offset, length=length)
    return Request(kind, offset, _data(random, length), length)


def _data(random: Random, length: int) -> bytes:
    """Zeroes too, which may allocate nothing."""
    letter = random.randrange(256)
    return bytes(length) if random.random() < 0.1 else bytes((letter + index) & 0xFF for index in range(97)) * (
        length // 97
    ) + bytes([letter]) * (length % 97)


async def ask(world: World, disk: Disk, request: Request) -> PloopError | None:
    """One request from its beginning to its end; why it failed."""
    disk.requests += 1
    started_s, stalled_s = trio.current_time(), world.stalled_s()
    entered = disk.device.queue.standby.entered
    was_on, fsync_answer = disk.rules.is_on, disk.rules.fsync_answer
    error: PloopError | None = None
    with asked_by(Origin(disk.name, is_request=True)), trio.move_on_after(request.patience_s) as patience:
        GIVES_UP.set(request.patience_s < math.inf)
        try:
            await _run(world, disk, request)
        except PloopError as failure:
            error = failure
    has_ended = not patience.cancelled_caught
    disk.requests -= 1
    if has_ended and (error is None or isinstance(error, RequestFailed | TargetFailed)):
        world.answers[disk.name, request.kind] += 1
    world.trace.note(f"request {request.kind}", f"{disk.name} {request} -> {_told(error) if has_ended else 'given up'}")
    if not has_ended:
        return None
    took_s = trio.current_time() - started_s - (world.stalled_s() - stalled_s)
    if took_s > LONGEST_S:
        world.fail(f"{disk.name}: {request} took {took_s:.1f} s")
    if error is None and was_on and disk.rules.is_on and disk.device.queue.standby.entered == entered:
        world.fail(f"{disk.name}: {request} was served in standby")
    is_flush = request.kind in ("flush", "fua")
    if error is None and is_flush and fsync_answer and disk.rules.fsync_answer:
        world.fail(f"{disk.name}: {request} was confirmed after an fsync of the same file had failed")
    if isinstance(error, InStandby) and not was_on and disk.device.queue.standby.entered == entered:
        world.fail(f"{disk.name}: {request} was refused in standby, and standby was off all the time")
    if isinstance(error, RequestFailed):
        _check_failure(world, disk, request, error)
    return error


def _told(error: PloopError | None) -> str:
    return "done" if error is None else f"{type(error).__name__} {errno.errorcode.get(error.errno, error.errno)}"


def _check_failure(world: World, disk: Disk, request: Request, error: RequestFailed) -> None:
    """Each flavour has its own errno for what the storage answered."""
    cause = error.__cause__
    if not isinstance(cause, BackendError):
        return
    if disk.flavour.mapped:
        expected = cause.errno if cause.errno in _BLOCK_STATUSES else errno.EIO
    else:
        expected = errno.EIO if cause.operation == "fsync" or request.kind == "flush" else cause.errno
    if error.errno != expected:
        world.fail(f"{disk.name}: {request} failed with {_told(error)}, the storage answered {cause}")


async def _run(world: World, disk: Disk, request: Request) -> None:
    device, model = disk.device, disk.model
    if request.kind == "read":
        with model.reading() as mark:
            turn = device.begin_turn()
            found = None if turn is None else turn.read(request.offset, request.length)
            if turn is None or found is None:
                found = await device.read(request.offset, request.length)
            else:
                turn.settle()
                disk.counted.passed(Op.READ, request.length)
            found = bytes(found)
            difference = model.differs(mark, request.offset, found)
            if difference or len(found) != request.length:
                world.fail(f"{disk.name}: {request}: {difference or f'{len(found)} bytes'}")
        return
    if request.kind == "flush":
        mark = model.mark()
        await device.flush()
        model.flushed(mark)
        return
    is_discard = request.kind == "discard"
    write = model.begin(request.offset, request.data or bytes(request.length), is_discard=is_discard)
    is_given_up = is_acknowledged = False

    def acknowledge() -> None:
        if not is_given_up:
            model.acknowledge(write, is_kept=disk.rules.is_armed)

    try:
        match request.kind:
            case "discard":
                await device.discard(request.offset, request.length)
            case "zero" | "unmap":
                await device.write_zeroes(request.offset, request.length, unmap=request.kind == "unmap")
            case "write":
                is_acknowledged = await _write_soon(world, disk, request, acknowledge)
            case _:
                await device.write(request.offset, request.data, fua=True)
    except BaseException:
        is_given_up = True
        model.fail(write)
        raise
    if not is_acknowledged:
        acknowledge()
    if request.kind == "fua":
        model.flushed_alone(write)


class _MadeAtOnce(Made):
    """By a thread that stands in for the event loop, on a file of the storm."""

    def __init__(
        self, file: StormFile, pieces: Pieces, notes: Callable[[Made], None], enters: Callable[[Made, bool], None]
    ) -> None:
        super().__init__(file.number, pieces, -1, b"", notes, enters)
        self._file = file

    def make(self, *, answers: bool = True) -> None:
        assert answers
        self._results = self._file.made(self.pieces)
        self._replied = -errno.ECANCELED if min(self._results) < 0 else 0


async def _write_soon(world: World, disk: Disk, request: Request, acknowledge: Callable[[], None]) -> bool:
    """As a disk's own connection does it; whether it was acknowledged already."""
    heard, rests = trio.Event(), list[Callable[[], Awaitable[None]]]()
    device, offset, data = disk.device, request.offset, request.data

    def written(rest: Callable[[], Awaitable[None]] | None) -> None:
        if not isinstance(rest, partial):  # one that failed goes on as a `run`, which is counted
            disk.counted.passed(Op.WRITE, len(data))
        if rest is not None:
            rests.append(rest)
        else:
            acknowledge()
        heard.set()

    def note(made: Made) -> None:
        assert turn is not None
        turn.wrote(offset, data, made.pieces, made.since_ns)
        turn.settle()
        disk.counted.passed(Op.WRITE, len(data))
        heard.set()

    def enter(made: Made, _hangs: bool) -> None:
        reply = Reply(-1, b"", lambda _result: None, made)
        if not device.write_soon(offset, data, written, reply, made.pieces):
            world.fail(f"{disk.name}: {request} was made, and does not begin")

    turn = device.begin_turn()
    pieces = None if turn is None else turn.aim(offset, data)
    if turn is not None and turn.fd is not None and pieces is not None:
        made = _MadeAtOnce(world.stores.file(turn.fd), pieces, note, enter)
        made.make()
        if made.has_failed:
            made.enter(hangs=False)
            made.tell()
        else:
            acknowledge()
            made.note()
    elif not device.write_soon(offset, data, written):
        await device.write(offset, data)
        return False
    with trio.CancelScope(shield=GIVES_UP.get()):
        await heard.wait()
    for rest in rests:
        await rest()
    return not rests
