"""One FUSE connection: the requests for one disk, each answered once.

Knows neither how the disk is mounted nor what it consists of. What needs to wait for nothing is answered at once, in
the order in which it comes; all else is a task of its own, and waits. Invariants: the descriptor is ours alone, and
nothing is written to it when it is closed; a bug costs one request an EIO.
"""

import errno
import itertools
import logging
import os
import select
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio

from ploopfs.blockfuse import protocol, replies
from ploopfs.blockfuse.buffers import BUFFERS
from ploopfs.blockfuse.busy import Busy
from ploopfs.blockfuse.front import Front
from ploopfs.blockfuse.looking import is_soon, look_ns
from ploopfs.blockfuse.protocol import (
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
from ploopfs.blockfuse.sender import Sender
from ploopfs.blockfuse.transfers import Transfers
from ploopfs.blockfuse.waiting import Pending, WaitingRequests
from ploopfs.blockfuse.writes import Rest, Writes
from ploopfs.bounds import BURST_BYTES, BURST_REQUESTS, POLL_TURN_US
from ploopfs.device.stats import Op
from ploopfs.engine.file import Buffer
from ploopfs.engine.left_to_loop import leave_to_loop
from ploopfs.engine.ring import Ring, ring_of_loop
from ploopfs.engine.stand_in import StandIn
from ploopfs.errors import BadRequest, MountError, NoSuchFile, NotForDisks, PloopError
from ploopfs.sysfs.opendisk import OpenDisk, check_room

log = logging.getLogger(__name__)

_AGAIN = frozenset({errno.ENOENT, errno.EINTR})
"""A request was taken back while it was read; a signal of ours."""

_NOTHING = _AGAIN | {errno.EAGAIN}

_TURN_NS = POLL_TURN_US * 1000


class Connection:
    """`fd` is /dev/fuse, non-blocking and mounted; it is closed in the end."""

    def __init__(self, fd: int, front: Front) -> None:
        self._fd, self._front, self._device = fd, front, front.device
        self._sender = Sender(fd)
        BUFFERS.prepare()
        self._files: dict[int, OpenDisk] = {}
        self._handles = itertools.count(1)
        self._owner = os.geteuid()
        self._waiting = WaitingRequests(front.interrupt, self._sender.fail)
        self._nursery: trio.Nursery
        self._is_ending = self._is_over = self._is_drained = False
        self._writes = Writes(self._device, fd, self._sender.send_whole, self._go_on, self._met_bug)
        self._ring: Ring | None = None
        self._is_alone, self._moved_bytes = True, 0
        self._asked = select.poll()
        self._asked.register(fd, select.POLLIN)
        self._busy = Busy(self._asked, self._take_in_thread, self._sender.send_whole, self._end_turn)
        served = self._device, self._files, self._sender, self._writes
        self._transfers = Transfers(*served, self._busy.wrote, self._start_write, self._met_bug)
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
                    await self._waiting.wait_given_up(self._writes)
                await self._writes.wait_ended()
        finally:
            self._is_over = True
            self._busy.end()
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
            self._busy.recall()
            trio.lowlevel.notify_closing(self._fd)

    def close(self) -> None:
        """The kernel fails all requests when the last descriptor goes; the mount, if it still is one, is a dead one."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._sender.closed()
            self._busy.recall()
            trio.lowlevel.notify_closing(fd)
            self._writes.close()

    # --- requests -------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        self._ring = ring_of_loop()
        self._busy.begin(self._ring)
        is_quick = False
        with suppress(trio.ClosedResourceError):
            while self._fd >= 0 and not self._is_ending:
                if is_quick and self._is_for_stand_in:
                    self._end_turn()
                    # Who asks while the thread ends goes on with it: what the ring has first takes twice as long.
                    is_quick = await self._busy.serve() or bool(self._asked.poll(0))
                    continue
                self._drain()
                if is_quick:
                    is_quick = self._poll()
                self._end_turn()
                if is_quick or not self._is_drained:
                    await trio.lowlevel.checkpoint()
                else:
                    self._busy.end()
                    since_ns, had_writes = time.monotonic_ns(), bool(self._writes)
                    await trio.lowlevel.wait_readable(self._fd)
                    is_quick = is_soon(time.monotonic_ns() - since_ns, self._moved_bytes, had_writes=had_writes)

    @property
    def _is_for_stand_in(self) -> bool:
        return self._busy.is_due and not self._waiting and self._has_ring_ended()

    def _has_ring_ended(self) -> bool:
        """Whether nothing of this connection is under way there, or will not be soon: a thread is better at what comes
        next, if it is none that takes longer than a turn."""
        until_ns = time.monotonic_ns() + _TURN_NS
        while self._writes:
            if time.monotonic_ns() >= until_ns:
                self._busy.met_other()
                return False
            self._hear()
        return not self._waiting

    def _poll(self) -> bool:
        """Serve who asks for one thing after the other, without the event loop in between: of reads of 4 KiB at depth 1
        it makes twice as many, of writes half as many more. False when he takes longer, or others need the loop."""
        now_ns = time.monotonic_ns()
        turn_ns, quick_ns = now_ns + _TURN_NS, now_ns + look_ns(self._moved_bytes)
        while now_ns < turn_ns:
            if self._waiting or self._fd < 0:
                return False  # who waits in a task needs the event loop
            if self._is_for_stand_in:
                return True
            has_answered = self._hear()
            if self._drain() or has_answered:
                quick_ns = time.monotonic_ns() + look_ns(self._moved_bytes)
            elif now_ns >= quick_ns:
                return False
            now_ns = time.monotonic_ns()
        return True

    def _drain(self) -> int:
        """Take requests until there is none, or others are to have their turn before; how many."""
        try:
            return self._take_some()
        finally:
            if self._ring is not None and self._ring.is_gathering:
                self._ring.submit()

    def _take_some(self) -> int:
        self._is_drained = False
        left_bytes: int = BURST_BYTES
        for taken in range(BURST_REQUESTS):
            if self._fd < 0 or left_bytes <= 0:
                return taken
            if self._is_alone and not self._asked.poll(0):
                return self._found_none(taken)
            try:
                count = os.readv(self._fd, (BUFFERS.current,))
                self._hear()  # what was acknowledged by the kernel itself is so before what was asked after it
            except BlockingIOError:
                return self._found_none(taken)
            except OSError as error:
                if error.errno in _AGAIN:
                    continue
                if error.errno != errno.ENODEV:
                    log.error("a disk's connection ends: %s", error)
                count = 0
            if not count:
                self.close()
                return taken
            done_bytes = self._transfers.answered(count, self._ring)
            if done_bytes is None:
                self._busy.met_other()
                self._end_turn()
                self._take(BUFFERS.current[:count])
            else:
                left_bytes -= done_bytes
                self._moved_bytes = BURST_BYTES - left_bytes
        return BURST_REQUESTS

    def _hear(self) -> bool:
        """Of what has ended on the ring, with which a turn is over; whether anything has."""
        if self._ring is None or not self._ring.has_ended:
            return False
        self._end_turn()
        return self._ring.deliver()

    def _end_turn(self) -> None:
        self._transfers.end_turn()

    def _found_none(self, taken: int) -> int:
        """Who asks for one thing at a time is looked for with poll(2) next time, which costs less than the exception of
        a read that finds nothing: 7 % more writes of 4 KiB at depth 1."""
        self._is_drained = True
        self._is_alone = taken <= 1
        return taken

    def _take_in_thread(self, stand_in: StandIn) -> bool | None:
        """As `Busy` has it."""
        try:
            count = os.readv(self._fd, (BUFFERS.current,))
        except OSError as error:
            return None if error.errno in _NOTHING else False  # the event loop meets it again
        if not count:
            return False
        made = self._transfers.made(count)
        if made is not None:
            stand_in.begin(made)
            return True
        if self._transfers.answered(count, None) is not None:
            return not self._writes  # else the ring has it
        leave_to_loop(partial(self._take, memoryview(bytes(BUFFERS.current[:count]))))
        return False

    def _go_on(self, unique: int, pid: int, rest: Rest, length: int, is_interrupted: bool) -> None:
        if not self._is_over:  # else it was cancelled, and so are all that wait in tasks
            work = partial(self._end_write, rest, length)
            self._start(unique, pid, Op.WRITE, work, is_interrupted=is_interrupted)

    def _start_write(self, unique: int, pid: int, file: OpenDisk, offset: int, data: Buffer) -> None:
        work = partial(self._write_in_task, file, offset, data)
        leave_to_loop(partial(self._start, unique, pid, Op.WRITE, work))

    def _met_bug(self, unique: int) -> None:
        log.exception("a request failed")
        self._sender.fail(unique, errno.EIO)

    def _take(self, data: memoryview) -> None:
        unique = 0
        try:
            request = protocol.parse(data)
            unique = request.unique
            answer = self._answer(request)
        except MountError as error:
            self._sender.fail(unique, error.answer)
            self._refusal = error
            self.close()
        except BadRequest as error:
            log.error("a disk's connection: %s", error)
            self._sender.fail(error.unique, error.answer)
        except PloopError as error:
            self._sender.fail(unique, error.answer)
        except Exception:
            log.exception("a request failed")
            self._sender.fail(unique, errno.EIO)
        else:
            if answer is not None:
                self._sender.send(unique, answer)
                if isinstance(request.body, Init):
                    self._agreed()
                    self._agreed = _nothing

    def _answer(self, request: Request) -> Buffer | None:
        """The body of its answer; None if it has none, or not yet."""
        start = partial(self._start, request.unique, request.pid)
        match request.body:
            case Read(fh, offset, size):
                device = self._file(fh).device
                start(Op.READ, partial(device.read, offset, size))
            case Write(fh, offset, data):
                start(Op.WRITE, partial(self._write_in_task, self._file(fh), offset, bytes(data)))
            case Fsync(fh):
                start(Op.FLUSH, partial(_without_answer, self._file(fh).device.flush))
            case Fallocate(fh) as wanted:
                self._file(fh)
                work = partial(_without_answer, partial(self._front.allocate, wanted))
                start(Op.DISCARD, work)
            case Ioctl(fh) as wanted:
                self._file(fh)
                start(Op.FLUSH, partial(self._control, wanted))
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
                if not self._writes.interrupt(target):
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

    def _start(
        self, unique: int, pid: int, op: Op, work: Callable[[], Awaitable[Buffer]], *, is_interrupted: bool = False
    ) -> None:
        pending = self._waiting.add(self._nursery, unique, pid, op)
        pending.is_interrupted = is_interrupted
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
            self._sender.fail(pending.unique, number)
        else:
            self._sender.send(pending.unique, answer)

    async def _write_in_task(self, file: OpenDisk, offset: int, data: Buffer) -> bytes:
        return replies.count(await file.device.write(offset, data, fua=file.fua))

    async def _end_write(self, rest: Rest, length: int) -> bytes:
        await rest()
        return replies.count(length)

    async def _control(self, wanted: Ioctl) -> bytes:
        return replies.ioctl_result(await self._front.control(wanted))


def _nothing() -> None:
    """The kernel agrees but once."""


async def _without_answer(work: Callable[[], Awaitable[None]]) -> bytes:
    await work()
    return b""
