"""One open image file of this machine, and the only place where the operating system's errors become ours.

Knows nothing of image formats. On a local file system the page cache answers at once where it can (RWF_NOWAIT), and the
kernel makes writes by itself (ring.py); a remote store is always asked, so that the next read sees that it is lost.
A size, or a lock that is free, is asked for at once where the file system has it in memory: with the map, which is read
where the page cache has it, a thousand devices take 15 to 20 % less time to start. Everything else is one hop to one of
this device's own worker threads, so a hung mount holds up nobody else. Invariants: a hop is abandoned only when the
process gives up on its storage, and a file is not closed before its last hop, or write of the kernel's, has ended: its
number could be reused under it.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar, cast

import trio

from ploopfs.bounds import CLOSE_GRACE_MS, CLOSE_TIMEOUT_S, THREADS
from ploopfs.engine import lock, probe
from ploopfs.engine.blocking import punch, read_from_storage, read_fully, start_writeback, write_fully, write_through
from ploopfs.engine.confined import ANYWHERE, AllowedDirs, close_image, open_image
from ploopfs.engine.file import CHANGES, VOUCHING, Answered, Buffer
from ploopfs.engine.given_up import Change, GivenUp
from ploopfs.engine.late import Hop, Opening
from ploopfs.engine.probe import ProbedImage
from ploopfs.engine.ring import Ring, ring_of_loop
from ploopfs.engine.ring_write import Pieces, Reply, Write
from ploopfs.engine.storage import Identity, storage_of
from ploopfs.engine.workers import Lane, Workers
from ploopfs.errors import BackendError

T = TypeVar("T")

_WOULD_BLOCK = frozenset({errno.EAGAIN, errno.EWOULDBLOCK})
_NO_NOWAIT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

_GIVEN_UP = GivenUp()
"""By whomever in this process: a device that comes anew has other Files than the one that had the image before."""


class OsFiles:
    """Files of this machine. `threads` bounds the worker threads that may wait for the storage at the same time. A file
    that something given up may yet change is not opened for writing: who writes it then could be overwritten by it.
    One that lies outside of the `allowed` directories is not opened at all, nor probed."""

    def __init__(self, threads: int = THREADS, allowed: AllowedDirs = ANYWHERE) -> None:
        self._allowed = allowed
        self._workers = Workers(threads)
        # A probe that was given up keeps its thread until the storage lets go of it, and the next one waits for that.
        self._probes = trio.CapacityLimiter(1)
        self._scratch = ""

    async def open(self, path: str, *, writable: bool) -> "OsFile":
        opening = Opening(partial(OsFile, path, writable, self._workers, self._allowed))
        try:
            file = await _hop(opening, self._workers, "open", path)
        except trio.Cancelled:
            late = opening.give_up()
            if late is not None:
                await late.aclose()
            raise
        if writable:
            file.ring = None if file.is_remote else ring_of_loop()
            try:
                await _GIVEN_UP.wait_ended(file.real_path, file.identity)
            except BaseException:
                await file.aclose()
                raise
        return file

    async def is_directory(self, path: str) -> bool:
        return stat.S_ISDIR((await _hop(partial(os.stat, path), self._workers, "stat", path)).st_mode)

    async def real_path(self, path: str) -> str:
        return await _hop(partial(os.path.realpath, path), self._workers, "stat", path)

    async def probe(self, images: Sequence[ProbedImage]) -> None:
        self._scratch = self._scratch or probe.scratch_name()
        work = partial(probe.probe, images, self._scratch, self._allowed)
        await trio.to_thread.run_sync(work, limiter=self._probes, abandon_on_cancel=True)


class OsFile:
    """A regular file through a descriptor. The constructor blocks: it runs in a worker thread."""

    def __init__(self, path: str, writable: bool, workers: Workers, allowed: AllowedDirs = ANYWHERE) -> None:
        self.path = path
        self.writable = writable
        self._workers = workers
        self.abandoned = False
        self._hops = 0
        self._is_done_with = False
        self._closing = threading.Lock()
        self._locking = threading.Lock()
        # O_NONBLOCK: nobody is waited for who has a lease on the file.
        self._fd = open_image(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK, allowed)
        try:
            self.real_path = os.readlink(f"/proc/self/fd/{self._fd}")  # of what was opened, whatever the path is now
            status = os.fstat(self._fd)
            storage = storage_of(status.st_dev)
            has_locks = storage.shares_locks and lock.can_lock(self._fd, is_behind_client=storage.is_behind_client)
            self.identity = Identity(status.st_dev, status.st_ino, storage.filesystem, has_locks)
            if writable:
                # What a failed fsync has left in the page cache is read as if it were on the storage, and never gets
                # there: a map entry that only seems to be there would not be written again.
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if storage.is_remote:
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        except BaseException:
            close_image(self._fd)
            raise
        self.is_remote = storage.is_remote
        self._answers_from_memory = storage.answers_from_memory
        self._read = read_from_storage if storage.is_remote else read_fully
        self._read_nowait = self._read is read_fully
        self.ring: Ring | None = None
        self._soon: set[Write] = set()
        # The kernel lets one write at a time into a local file, so a thread for each would only wait for its lock.
        self._write_lane = None if storage.is_remote else Lane()
        # When a sync is done, so is what was started before it: a file that was settled is closed at once.
        self._sync_lane = None if storage.is_remote else Lane()

    def read_nowait(self, offset: int, length: int, room: memoryview | None = None) -> Buffer | None:
        if not self._read_nowait:
            return None
        data = bytearray(length) if room is None else room
        try:
            count = os.preadv(self._fd, [data], offset, os.RWF_NOWAIT)
        except OSError as error:
            self._read_nowait = self._may_retry_nowait(error, "read", offset, length)
            return None
        return data if count == length else None

    async def read(self, offset: int, length: int) -> bytearray:
        # Made here: what a thread makes stays with that thread's part of the allocator, which was half of the memory of
        # each of a thousand devices.
        data = bytearray(length)
        return await self._hop(partial(self._read, self._fd, offset, data), "read", offset, length)

    def thread_fd(self) -> int | None:
        return None if self.ring is None or self._is_done_with or not self.ring.can_link else self._fd

    def write_soon(self, pieces: Pieces, answered: Answered, reply: Reply | None = None) -> bool:
        if (ring := self.ring) is None or self._is_done_with or (len(pieces) > 1 and not ring.can_link):
            return False

        def ended(full: int, result: int) -> None:
            self._soon.discard(write)
            if self._is_done_with and not self._soon:
                self._left_ring()
            answered(None if full == len(pieces) else self._failure_of(result, *pieces[full]))

        try:
            reply = reply if ring.can_link else None
            if reply is not None and reply.maker is not None:
                write = reply.maker.begin(self._fd, pieces, ended, reply)
            else:
                write = ring.begin(self._fd, pieces, ended, reply)
        except BlockingIOError:
            return False
        self._soon.add(write)
        return True

    async def write(self, offset: int, data: Buffer) -> None:
        done = await self._write_by_ring(offset, data) if self.ring is not None else 0
        if done < len(data):
            work = partial(write_fully, self._fd, offset + done, memoryview(data)[done:] if done else data)
            await self._hop(work, "write", offset, len(data), self._write_lane)

    async def _write_by_ring(self, offset: int, data: Buffer) -> int:
        """How many bytes were written; fewer than all leave the rest to a thread."""
        assert self.ring is not None
        self._hop_begins("write", offset, len(data))
        try:
            write = self.ring.begin(self._fd, ((offset, data),), self._left_ring)
        except BlockingIOError:
            self._left_ring()
            return 0
        try:
            _full, result = await write.wait()
        except trio.Cancelled:
            self._given_up("write", write.is_under_way)
            raise
        if result < 0:
            raise self._failure_of(result, offset, data)
        return result

    def _failure_of(self, result: int, offset: int, data: Buffer) -> BackendError:
        """A write that ends early is one to a file system without room, which says so to the rest."""
        number, length = -result if result < 0 else errno.ENOSPC, len(data)
        return BackendError(number, "write", self.path, offset=offset, length=length)

    def start_writeback(self) -> None:
        if self._sync_lane is None or self._sync_lane.jobs or self._is_done_with:
            return  # a sync that has yet to begin writes as much
        with self._closing:
            self._hops += 1
        begin = Hop(lambda: None if self._is_done_with else start_writeback(self._fd), self._hop_ended)
        self._workers.start(begin, self._sync_lane)

    async def sync(self) -> None:
        await self._hop(partial(os.fdatasync, self._fd), "fsync", lane=self._sync_lane)

    async def sync_size(self, size: int) -> None:
        # What there is no room for is known before anything counts as synced.
        await self._hop(partial(os.pwrite, self._fd, b"\0", size - 1), "write", size - 1, 1, self._write_lane)
        await self._hop(partial(write_through, self._fd, size - 1, b"\0"), "fsync", lane=self._sync_lane)

    async def size(self) -> int:
        if self._is_at_hand:
            with suppress(OSError):  # which a thread meets again
                return os.fstat(self._fd).st_size
        return (await self._hop(partial(os.fstat, self._fd), "stat")).st_size

    async def truncate(self, size: int) -> None:
        await self._hop(partial(os.ftruncate, self._fd, size), "truncate", size)

    async def allocate(self, offset: int, length: int) -> None:
        await self._hop(partial(os.posix_fallocate, self._fd, offset, length), "fallocate", offset, length)

    async def punch(self, offset: int, length: int) -> None:
        await self._hop(partial(punch, self._fd, offset, length), "punch hole", offset, length)

    async def lock(self, *, as_writer: bool | None = None) -> None:
        writable = self.writable if as_writer is None else as_writer
        if self._is_at_hand and self._has_locked_at_once(writable):
            return
        await self._hop(self._in_order(partial(lock.claim, self._fd, self.path, writable=writable)), "lock")

    async def unlock(self) -> None:
        await self._hop(self._in_order(partial(lock.release, self._fd)), "unlock")

    @property
    def _is_at_hand(self) -> bool:
        return self._answers_from_memory and not self._is_done_with

    def _has_locked_at_once(self, writable: bool) -> bool:
        """False where somebody has a lock, who may have to be waited for, or is about it in a thread."""
        if not self._locking.acquire(blocking=False):
            return False
        try:
            return lock.claim_free(self._fd, writable=writable)
        finally:
            self._locking.release()

    def close(self) -> None:
        """Blocking."""
        with self._closing:
            fd, self._fd = self._fd, -1
        close_image(fd)

    async def aclose(self) -> None:
        with self._closing:
            was_done_with, self._is_done_with = self._is_done_with, True
            for write in self._soon:
                self._given_up("write", write.is_under_way)
            if not was_done_with and self._soon:
                self._hops += 1  # of all these: it ends with the last one
            if was_done_with or self._hops:
                return
            fd, self._fd = self._fd, -1
        # Bounded: close on a hung mount waits, and nobody is to wait for a file that is done with. What it could report
        # the last fsync has. Also for who was cancelled: the descriptor, and its lock, would stay for ever.
        is_given_up = trio.current_effective_deadline() <= trio.current_time()
        limit_s = CLOSE_GRACE_MS / 1000 if is_given_up else CLOSE_TIMEOUT_S
        with trio.CancelScope(shield=True, deadline=trio.current_time() + limit_s), suppress(OSError):
            await self._workers.run(partial(os.close, fd), stays=True)

    def _in_order(self, work: Callable[[], None]) -> Callable[[], None]:
        """An unlock that was given up must not take away the lock that was taken back since."""

        def locked() -> None:
            with self._locking:
                work()

        return locked

    async def _hop(
        self, work: Callable[[], T], operation: str, offset: int = 0, length: int = 0, lane: Lane | None = None
    ) -> T:
        self._hop_begins(operation, offset, length)
        hop = Hop(work, self._hop_ended)
        try:
            return cast("T", await _hop(hop, self._workers, operation, self.path, offset, length, lane))
        except BaseException as error:
            hop.give_up()
            if isinstance(error, trio.Cancelled):
                self._given_up(operation, hop.is_under_way)
            raise

    def _hop_begins(self, operation: str, offset: int, length: int) -> None:
        if self._is_done_with:
            raise BackendError(errno.EBADF, operation, self.path, offset=offset, length=length)
        with self._closing:
            self._hops += 1

    def _hop_ended(self) -> None:
        """In its thread, as a rule. A file that was to be closed meanwhile is closed now, and lets go of its lock."""
        if self._is_last_to_end():
            self.close()

    def _left_ring(self, _full: int = 0, _result: int = 0) -> None:
        """In the event loop, which waits for no close."""
        if self._is_last_to_end():
            self._workers.start(self.close, Lane())

    def _is_last_to_end(self) -> bool:
        with self._closing:
            self._hops -= 1
            return self._is_done_with and not self._hops

    def _given_up(self, operation: str, is_under_way: Callable[[], bool]) -> None:
        self.abandoned |= operation in VOUCHING
        if operation in CHANGES:
            _GIVEN_UP.add(Change(self.real_path, self.identity, is_under_way))

    def _may_retry_nowait(self, error: OSError, operation: str, offset: int, length: int) -> bool:
        """False: this file system never answers without waiting. Raises if the storage has answered with an error."""
        if error.errno in _WOULD_BLOCK:
            return True
        if error.errno in _NO_NOWAIT:
            return False
        raise BackendError.of(error, operation, self.path, offset=offset, length=length) from error


async def _hop(
    work: Callable[[], T],
    workers: Workers,
    operation: str,
    path: str,
    offset: int = 0,
    length: int = 0,
    lane: Lane | None = None,
) -> T:
    try:
        return await workers.run(work, lane)
    except OSError as error:
        raise BackendError.of(error, operation, path, offset=offset, length=length) from error
