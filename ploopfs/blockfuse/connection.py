"""One FUSE connection: the requests for one disk, each answered once.

Knows neither how the disk is mounted nor what it consists of. What needs to wait for nothing is answered at once, in
the order in which it comes; all else is a task of its own, and waits. Invariants: the descriptor is ours alone, and
nothing is written to it when it is closed; a bug costs one request an EIO.
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
from ploopfs.blockfuse.waiting import Pending, WaitingRequests
from ploopfs.bounds import BURST_BYTES, BURST_REQUESTS, MAX_TRANSFER_BYTES, SPARE_BUFFERS
from ploopfs.device.stats import Op
from ploopfs.engine.file import Buffer
from ploopfs.errors import BadRequest, MountError, NoSuchFile, NotForDisks, PloopError
from ploopfs.sysfs.opendisk import OpenDisk, check_room

log = logging.getLogger(__name__)

_BUFFER_BYTES = TRANSFER_BYTES + MAX_TRANSFER_BYTES
"""The kernel insists on room for the largest request before it gives any."""

_AGAIN = frozenset({errno.ENOENT, errno.EINTR})
"""A request was taken back while it was read; a signal of ours."""


class _Buffers:
    """Where requests are read, of all connections: each has dealt with what it has read before another one reads. A
    buffer of its own would cost each disk a MiB, whether anybody uses it or not."""

    def __init__(self) -> None:
        self.current = bytearray()
        self._spare: list[bytearray] = []

    def prepare(self) -> None:
        self.current = self.current or bytearray(_BUFFER_BYTES)

    def kept(self, data: memoryview) -> tuple[Buffer, bytearray | None]:
        """The data of a write for as long as it takes, and the buffer that they lie in, which is to be given back: a
        large one is not copied, and another buffer takes the place of what holds it."""
        if 2 * len(data) <= MAX_TRANSFER_BYTES:
            return bytes(data), None
        buffer, self.current = self.current, self._spare.pop() if self._spare else bytearray(_BUFFER_BYTES)
        return data, buffer

    def give_back(self, buffer: bytearray | None) -> None:
        if buffer is not None and len(self._spare) < SPARE_BUFFERS:
            self._spare.append(buffer)


_BUFFERS = _Buffers()


class Connection:
    """`fd` is /dev/fuse, non-blocking and mounted; it is closed in the end."""

    def __init__(self, fd: int, front: Front) -> None:
        self._fd, self._front, self._device = fd, front, front.device
        _BUFFERS.prepare()
        self._files: dict[int, OpenDisk] = {}
        self._handles = itertools.count(1)
        self._owner = os.geteuid()
        self._waiting = WaitingRequests(front.interrupt, self._fail)
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
                    await self._waiting.wait_given_up()
        finally:
            self.close()
            while self._files:
                self._files.popitem()[1].release()
        if self._refusal is not None:
            raise self._refusal

    @property
    def is_closed(self) -> bool:
        return self._fd < 0

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
        left_bytes: int = BURST_BYTES
        for _ in range(BURST_REQUESTS):
            if self._fd < 0 or left_bytes <= 0:
                break
            try:
                count = os.readv(self._fd, (_BUFFERS.current,))
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
                break
            done_bytes = self._answered_at_once(count)
            if done_bytes is None:
                self._take(memoryview(_BUFFERS.current)[:count])
            else:
                left_bytes -= done_bytes
        return True

    def _answered_at_once(self, count: int) -> int | None:
        """How many bytes were read or written for a request that needs to wait for nothing, None for any other."""
        size: int
        length, opcode, unique, _node, _pid, fh, offset, size = TRANSFER.unpack_from(_BUFFERS.current)
        try:
            if opcode == READ and length == count == TRANSFER_BYTES:
                body = self._device.read_nowait(offset, size)
            elif opcode == WRITE and length == count == TRANSFER_BYTES + size and fh in self._files:
                data = memoryview(_BUFFERS.current)[TRANSFER_BYTES:count]
                written = self._device.write_nowait(offset, data, fua=self._files[fh].fua)
                body = None if written is None else replies.written(written)
            else:
                return None
        except Exception:
            return None  # a bug, which who waits meets again, and which is told then
        if body is None:
            return None
        self._send(unique, body)
        return size

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
                self._start(request, Op.WRITE, partial(self._write, self._file(fh), offset, *_BUFFERS.kept(data)))
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
                self._waiting.interrupt(target)
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
        pending = self._waiting.add(self._nursery, request.unique, request.pid, op)
        self._nursery.start_soon(self._finish, pending, work)

    async def _finish(self, pending: Pending, work: Callable[[], Awaitable[Buffer]]) -> None:
        pending.task = trio.lowlevel.current_task()
        answer, number = None, errno.EIO
        try:
            answer = await work()
        except PloopError as error:
            number = error.answer
        except Exception:
            log.exception("a request failed")
        finally:
            self._waiting.remove(pending)
        if pending.is_answered:
            return
        if answer is None:
            self._fail(pending.unique, number)
        else:
            self._send(pending.unique, answer)

    async def _write(self, file: OpenDisk, offset: int, data: Buffer, buffer: bytearray | None) -> bytes:
        try:
            return replies.written(await file.device.write(offset, data, fua=file.fua))
        finally:
            _BUFFERS.give_back(buffer)

    async def _control(self, wanted: Ioctl) -> bytes:
        return replies.ioctl_result(await self._front.control(wanted))

    # --- answers --------------------------------------------------------------------------------------------------

    def _send(self, unique: int, body: Buffer) -> None:
        self._write_out(unique, (replies.header(unique, len(body)), body))

    def _fail(self, unique: int, number: int) -> None:
        self._write_out(unique, (replies.failure(unique, number),))

    def _write_out(self, unique: int, parts: tuple[Buffer, ...]) -> None:
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
