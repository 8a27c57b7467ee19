"""One FUSE connection: the requests for one disk, each answered once.

Knows neither how the disk is mounted nor what it consists of. What needs to wait for nothing is answered at once, in
the order in which it comes; all else is a task of its own. Who waits is told of by INTERRUPT, and gets EINTR only for
what was certainly not done, or can do no harm when it is done late: a read, a flush. A write that the storage has is
waited for, as by a block device, since it could land on what is written after it. How many there are at a time, the
request queue of the device bounds. Invariants: the descriptor is ours alone, and nothing is written to it when it is
closed; a bug costs one request an EIO.
"""

import errno
import itertools
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio

from ploopfs.blockfuse import protocol, replies
from ploopfs.blockfuse.ending import is_told_to_end
from ploopfs.blockfuse.front import Front
from ploopfs.blockfuse.protocol import (
    READ,
    TRANSFER,
    TRANSFER_BYTES,
    WRITE,
    Fallocate,
    Fsync,
    GetAttr,
    Init,
    Interrupt,
    Ioctl,
    Lseek,
    Open,
    Read,
    Release,
    Request,
    SetAttr,
    StatFs,
    Write,
)
from ploopfs.bounds import BURST_REQUESTS, MAX_TRANSFER_BYTES
from ploopfs.device.stats import Op
from ploopfs.engine.file import Buffer
from ploopfs.errors import BadRequest, MountError, NoSuchFile, NotForDisks, PloopError
from ploopfs.sysfs.opendisk import OpenDisk, check_room

log = logging.getLogger(__name__)

_BUFFER_BYTES = TRANSFER_BYTES + MAX_TRANSFER_BYTES
"""The kernel insists on room for the largest request before it gives any."""

_AGAIN = frozenset({errno.ENOENT, errno.EINTR})
"""A request was taken back while it was read; a signal of ours."""

_LOOK_AGAIN_S = 0.1
"""The kernel tells of the first signal alone: whether the one to end has come since, we must see for ourselves."""

_MAY_BE_LATE = frozenset({Op.READ, Op.FLUSH})


class _Pending:
    """A request that is served by a task, which is None until it runs."""

    __slots__ = ("is_answered", "op", "pid", "task", "unique")

    def __init__(self, unique: int, pid: int, op: Op) -> None:
        self.unique, self.pid, self.op = unique, pid, op
        self.task: trio.lowlevel.Task | None = None
        self.is_answered = False


class Connection:
    """`fd` is /dev/fuse, non-blocking and mounted; it is closed in the end."""

    def __init__(self, fd: int, front: Front) -> None:
        self._fd, self._front, self._device = fd, front, front.device
        self._buffer = bytearray(_BUFFER_BYTES)
        self._spare: list[bytearray] = []
        self._files: dict[int, OpenDisk] = {}
        self._handles = itertools.count(1)
        self._owner = os.geteuid()
        self._pending: dict[int, _Pending] = {}
        self._interrupted: dict[int, _Pending] = {}
        self._nursery: trio.Nursery
        self._is_ending = False
        self._refusal: MountError | None = None
        self._agreed: Callable[[], None] = _nothing

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the disk is unmounted or `close` is called, and then until the storage has answered what it has
        been asked. `task_status` is told when the kernel has agreed. Raises MountError if it cannot."""
        self._agreed = task_status.started
        try:
            async with trio.open_nursery() as self._nursery:
                await self._serve()
                if not self._is_ending:
                    self.close()
                while not self._is_ending and self._pending:
                    for pending in tuple(self._pending.values()):
                        self._give_up(pending)
                    await trio.sleep(_LOOK_AGAIN_S)
        finally:
            self.close()
            while self._files:
                self._files.popitem()[1].release()
        if self._refusal is not None:
            raise self._refusal

    def end(self) -> None:
        """Take no more requests; `run` ends when those under way are answered."""
        if self._fd >= 0:
            self._is_ending = True
            trio.lowlevel.notify_closing(self._fd)

    def close(self) -> None:
        """The kernel fails all requests when the last descriptor goes; the mount, if it still is one, is a dead one."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            trio.lowlevel.notify_closing(fd)
            os.close(fd)

    # --- requests -------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        with suppress(trio.ClosedResourceError):
            while self._fd >= 0 and not self._is_ending:
                if self._drain():
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self._fd)

    def _drain(self) -> bool:
        """Take requests until there is none; True if others are to have their turn before."""
        for _ in range(BURST_REQUESTS):
            try:
                count = os.readv(self._fd, (self._buffer,))
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _AGAIN:
                    continue
                if error.errno != errno.ENODEV:
                    log.error("a disk's connection ends: %s", error)
                count = 0
            if not count:
                self.close()
                return True
            length, opcode, unique, _node, _pid, fh, offset, size = TRANSFER.unpack_from(self._buffer)
            if opcode == READ and length == count == TRANSFER_BYTES:
                data = self._read_nowait(offset, size)
                if data is not None:
                    self._send(unique, data)
                    continue
            elif opcode == WRITE and length == count == TRANSFER_BYTES + size and fh in self._files:
                data = memoryview(self._buffer)[TRANSFER_BYTES:count]
                written = self._write_nowait(offset, data, self._files[fh].fua)
                if written is not None:
                    self._send(unique, replies.written(written))
                    continue
            self._take(memoryview(self._buffer)[:count])
        return True

    def _read_nowait(self, offset: int, size: int) -> Buffer | None:
        """None for a bug, too, which the slow path meets again, and reports."""
        try:
            return self._device.read_nowait(offset, size)
        except Exception:
            return None

    def _write_nowait(self, offset: int, data: Buffer, fua: bool) -> int | None:
        try:
            return self._device.write_nowait(offset, data, fua=fua)
        except Exception:
            return None

    def _take(self, data: memoryview) -> None:
        unique = 0
        try:
            request = protocol.parse(data)
            unique = request.unique
            answer = self._answer(request)
        except MountError as error:
            self._fail(unique, error.answer)
            self._refusal = error
            self.close()
        except BadRequest as error:
            log.error("a disk's connection: %s", error)
            self._fail(error.unique, error.answer)
        except PloopError as error:
            self._fail(unique, error.answer)
        except Exception:
            log.exception("a request failed")
            self._fail(unique, errno.EIO)
        else:
            if answer is not None:
                self._send(unique, answer)
                if isinstance(request.body, Init):
                    self._agreed()
                    self._agreed = _nothing

    def _answer(self, request: Request) -> Buffer | None:
        """The body of its answer; None if it has none, or not yet."""
        match request.body:
            case Read(fh, offset, size):
                device = self._file(fh).device
                self._start(request, Op.READ, partial(device.read, offset, size))
            case Write(fh, offset, data):
                self._start(request, Op.WRITE, partial(self._write, self._file(fh), offset, *self._kept(data)))
            case Fsync(fh):
                self._start(request, Op.FLUSH, partial(_without_answer, self._file(fh).device.flush))
            case Fallocate(fh) as wanted:
                self._file(fh)
                work = partial(_without_answer, partial(self._front.allocate, wanted))
                self._start(request, Op.DISCARD, work)
            case Ioctl(fh) as wanted:
                self._file(fh)
                self._start(request, Op.FLUSH, partial(self._control, wanted))
            case GetAttr():
                return replies.attributes(self._front.attributes())
            case SetAttr() as wanted:
                self._front.change(wanted)
                return replies.attributes(self._front.attributes())
            case Open(flags):
                check_room(len(self._files), uid=request.uid, owner=self._owner)
                file, fh = self._front.open(flags), next(self._handles)
                self._files[fh] = file
                return replies.opened(fh)
            case Release(fh):
                self._file(fh).release()
                del self._files[fh]
                return b""
            case Lseek(fh) as wanted:
                self._file(fh)
                return replies.number(self._front.seek(wanted))
            case StatFs():
                return replies.statistics()
            case Interrupt(target):
                self._interrupt(target)
            case Init() as init:
                return replies.agreed(init)
            case protocol.Destroy():
                return b""
            case protocol.Forget():
                pass
            case protocol.Unknown(opcode):
                raise NotForDisks(errno.ENOSYS, f"request {opcode} is none of a disk")
        return None

    def _file(self, fh: int) -> OpenDisk:
        try:
            return self._files[fh]
        except KeyError:
            raise NoSuchFile(f"no file is open as {fh}") from None

    # --- what waits -----------------------------------------------------------------------------------------------

    def _start(self, request: Request, op: Op, work: Callable[[], Awaitable[Buffer]]) -> None:
        pending = self._pending[request.unique] = _Pending(request.unique, request.pid, op)
        self._nursery.start_soon(self._finish, pending, work)

    async def _finish(self, pending: _Pending, work: Callable[[], Awaitable[Buffer]]) -> None:
        pending.task = trio.lowlevel.current_task()
        answer, number = None, errno.EIO
        try:
            answer = await work()
        except PloopError as error:
            number = error.answer
        except Exception:
            log.exception("a request failed")
        finally:
            del self._pending[pending.unique]
            self._interrupted.pop(pending.unique, None)
        if pending.is_answered:
            return
        if answer is None:
            self._fail(pending.unique, number)
        else:
            self._send(pending.unique, answer)

    def _kept(self, data: memoryview) -> tuple[Buffer, bytearray | None]:
        """The data of a write for as long as it takes, and the buffer that they lie in: a large one is not copied, and
        another buffer takes the place of what holds it."""
        if 2 * len(data) <= MAX_TRANSFER_BYTES:
            return bytes(data), None
        buffer, self._buffer = self._buffer, self._spare.pop() if self._spare else bytearray(_BUFFER_BYTES)
        return data, buffer

    async def _write(self, file: OpenDisk, offset: int, data: Buffer, buffer: bytearray | None) -> bytes:
        try:
            return replies.written(await file.device.write(offset, data, fua=file.fua))
        finally:
            if buffer is not None and not self._spare:
                self._spare.append(buffer)

    async def _control(self, wanted: Ioctl) -> bytes:
        return replies.ioctl_result(await self._front.control(wanted))

    # --- who does not want to wait any more -----------------------------------------------------------------------

    def _interrupt(self, target: int) -> None:
        """It came after the request that it is for, which either waits or was answered."""
        pending = self._pending.get(target)
        if pending is None:
            return
        if not self._interrupted:
            self._nursery.start_soon(self._watch_interrupted)
        self._interrupted[target] = pending
        self._look_at(pending)

    async def _watch_interrupted(self) -> None:
        while self._interrupted:
            await trio.sleep(_LOOK_AGAIN_S)
            for pending in tuple(self._interrupted.values()):
                self._look_at(pending)

    def _look_at(self, pending: _Pending) -> None:
        if pending.is_answered or is_told_to_end(pending.pid):
            self._give_up(pending)

    def _give_up(self, pending: _Pending) -> None:
        """Whoever waits at the gate is failed there, and so he is if he comes there later."""
        if pending.task is None or self._front.interrupt(pending.task, pending.op):
            return
        if pending.op in _MAY_BE_LATE and not pending.is_answered:
            pending.is_answered = True
            self._fail(pending.unique, errno.EINTR)

    # --- answers --------------------------------------------------------------------------------------------------

    def _send(self, unique: int, body: Buffer) -> None:
        self._write_out(unique, replies.header(unique, len(body)), body)

    def _fail(self, unique: int, number: int) -> None:
        self._write_out(unique, replies.failure(unique, number))

    def _write_out(self, unique: int, *parts: Buffer) -> None:
        if self._fd < 0:
            return
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            # ENOENT: the kernel has given up on this request. ENODEV: on all, as the next read says.
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return
            log.exception("an answer was refused")
            with suppress(OSError):
                os.write(self._fd, replies.failure(unique, errno.EIO))


def _nothing() -> None:
    """The kernel agrees but once."""


async def _without_answer(work: Callable[[], Awaitable[None]]) -> bytes:
    await work()
    return b""
