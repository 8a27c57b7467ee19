"""One ploop block device: a queue in front of a stack, with the numbers and names that the tree shows.

Knows nothing of FUSE or of paths in the tree. The device, its open handles, its counters and its statistics outlive
every replaced top. Sizes and offsets are bytes.
"""

import itertools
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import trio

from ploopfs.bounds import ZEROES_MAX_BYTES
from ploopfs.device.agent import Agent
from ploopfs.device.agent_state import AgentState
from ploopfs.device.bounds import DEFAULT_BOUNDS, Bounds
from ploopfs.device.events import DeviceEvents, Events
from ploopfs.device.flavour import Flavour
from ploopfs.device.flusher import Flusher
from ploopfs.device.handover import marked_again, stand_by_without_lock
from ploopfs.device.last_error import LastError
from ploopfs.device.limits import QueueSettings, Tune
from ploopfs.device.mapper import Mapper
from ploopfs.device.queue import Begun, RequestQueue
from ploopfs.device.replace import Replacement
from ploopfs.device.soon import SoonWrites, Written
from ploopfs.device.standby import StandbyKey, State
from ploopfs.device.stats import DiskStats, Op
from ploopfs.device.turn import Turn
from ploopfs.device.unflushed import Unflushed, Writes
from ploopfs.device.verify import Verify
from ploopfs.engine.counters import Counters
from ploopfs.engine.file import Buffer, Files
from ploopfs.engine.inject.injector import Injector
from ploopfs.engine.left_to_loop import leave_to_loop
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError, BadValue, BeyondEnd, Busy, ReadOnly

_diskseq = itertools.count(1)


class Device:
    """A replaced top may be larger, the disk stays as it is: a stack that takes another's place keeps its size.
    `injector` stands around `files`. `mapper` is the device-mapper shell of a mapped device, which gives it its size,
    and None for others."""

    def __init__(
        self,
        name: str,
        *,
        flavour: Flavour,
        key: StandbyKey,
        stack: Stack,
        files: Files,
        injector: Injector,
        counters: Counters,
        bounds: Bounds = DEFAULT_BOUNDS,
        events: Events | None = None,
        dm_name: str = "",
        dm_uuid: str = "",
    ) -> None:
        self.name = name
        self.flavour = flavour
        self.major = flavour.major
        self.minor = flavour.minor(name)
        self.diskseq = next(_diskseq)
        self.read_only = stack.read_only
        self.events = DeviceEvents(events or Events(), name)
        self.queue = RequestQueue(name, flavour, key, stack, bounds, self.events)
        self.unflushed = Unflushed(bounds.unflushed_bytes)
        self._soon = SoonWrites(
            self.queue, self.unflushed, counters, wrote=self._wrote, again=self._write_again, end=self._end_write
        )
        self.flusher = Flusher(name, self.queue, self.unflushed, self._flush_stack)
        self.queue.standby.changed.subscribe(self._standby_changed)
        self.injector = injector
        injector.follow(lambda: self.queue.stack)
        self.counters = counters
        self.settings = QueueSettings()
        self.tune = Tune()
        self.open_count = 0
        self.why = LastError()
        self.mapper = Mapper(self, files, counters, name=dm_name, uuid=dm_uuid) if flavour.mapped else None
        self._replacement = Replacement(
            name, self.queue, files, counters=counters, unflushed=self.unflushed, why=self.why
        )
        self.agent = Agent(self, files)

    @property
    def stack(self) -> Stack:
        return self.queue.stack

    @property
    def size_bytes(self) -> int:
        return self.mapper.active.size_bytes if self.mapper else self.queue.stack.size_bytes

    @property
    def stats(self) -> DiskStats:
        return self.queue.stats

    @property
    def last_error(self) -> str:
        """Why the last control operation failed; empty if it did not."""
        return self.why.text

    def opened(self) -> None:
        self.open_count += 1

    def released(self) -> None:
        self.open_count -= 1

    def begin_turn(self) -> Turn | None:
        """For what waits for nothing, as long as nothing else happens; None if the gate is not open."""
        if not self.queue.is_free:
            return None
        start, end = self._in_stack(0), self._in_stack(self.size_bytes)
        return Turn(self.queue.stack, start, end, self.stats, self.counters, self._writing, self._recorded)

    def _writing(self) -> tuple[int | None, int | None]:
        """As `Turn` has it."""
        fd = None if self.read_only else self.queue.stack.thread_fd()
        return fd, self._soon.room_bytes if self._keeps_unflushed else None

    def write_soon(
        self, offset: int, data: Buffer, written: Written, reply: Reply | None = None, pieces: Pieces | None = None
    ) -> bool:
        """As `write`, without a task that waits; False if that cannot be: then nothing was begun. `pieces` is what
        `aim` has said of it, if it was asked. `written` hears once that it is acknowledged, or what it is to wait for
        in a task. `reply` acknowledges it, and may be sent before `written` hears: not where that has to wait for a
        flush."""
        pieces = pieces or self._aim(offset, data)
        return pieces is not None and self._soon.begin(self._in_stack(offset), offset, data, pieces, written, reply)

    async def read(self, offset: int, length: int) -> Buffer:
        """The bytes of the range that exist: short or empty at the end of the device."""
        length = self._clipped(offset, length)
        self.counters.bio_in += 1
        data = await self.queue.run(Op.READ, length, partial(self._read, offset, length))
        self.counters.bio_out += 1
        return data

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> int:
        """The number of bytes written: short where the device ends. Raises BeyondEnd at or past the end. What
        `data` holds stays as it is for ever, as it may be kept."""
        if self.read_only:
            raise ReadOnly(f"{self.name} is read-only")
        if offset >= self.size_bytes and data:
            raise BeyondEnd(f"{self.name}: a write at {offset}, past the end at {self.size_bytes}")
        data = data[: self.size_bytes - offset]
        self.counters.bio_in += 1
        self.counters.bio_fua_in += fua
        await self.queue.run(Op.WRITE, len(data), partial(self._write, offset, data, fua and bool(self.tune.pass_fuas)))
        await self._end_write()
        return len(data)

    async def _write_again(self, begun: Begun, error: BackendError, offset: int, data: Buffer) -> None:
        await self.queue.run_again(begun, error, partial(self._write, offset, data, False))
        await self._end_write()

    async def _end_write(self) -> None:
        await self.flusher.wait_room()
        self.counters.bio_out += 1

    async def discard(self, offset: int, length: int) -> None:
        """Whole clusters of the range read as zeroes afterwards; the rest of the range is left alone."""
        if self.read_only:
            raise ReadOnly(f"{self.name} is read-only")
        length = self._clipped(offset, length)
        await self.queue.run(Op.DISCARD, length, partial(self._discard, offset, length))
        await self.flusher.wait_room()

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """The range, as far as it exists, reads as zeroes afterwards; `unmap`: its space is given back where it can be.
        Raises BadValue at or past the end, as a block device does. One request, counted as a discard; a long range is
        several."""
        if self.read_only:
            raise ReadOnly(f"{self.name} is read-only")
        if offset >= self.size_bytes:
            raise BadValue(f"{self.name}: zeroes at {offset}, past the end at {self.size_bytes}")
        end = offset + self._clipped(offset, length)
        while True:
            start = self._in_stack(offset)
            length = min(end - offset, ZEROES_MAX_BYTES - start % ZEROES_MAX_BYTES)
            await self.queue.run(Op.DISCARD, length, partial(self._write_zeroes, offset, length, unmap))
            await self.flusher.wait_room()
            offset += length
            if offset >= end:
                return

    def seek_data(self, offset: int) -> int | None:
        """lseek(2)'s SEEK_DATA, from the map in memory whatever the state of the storage; None for its ENXIO."""
        found = self.stack.seek_data(self._in_stack(offset))
        found = None if found is None else found - self._in_stack(0)
        return found if found is not None and found < self.size_bytes else None

    def seek_hole(self, offset: int) -> int:
        """lseek(2)'s SEEK_HOLE, likewise; the end counts as a hole. ENXIO past it is the caller's to answer."""
        return min(self.stack.seek_hole(self._in_stack(offset)) - self._in_stack(0), self.size_bytes)

    @property
    def allocated_bytes(self) -> int:
        """Of the disk: what some level has. For a table that shows a part of its images, at most its size."""
        return min(self.stack.allocated_bytes, self.size_bytes)

    async def flush(self) -> None:
        """Every write acknowledged before is on stable storage."""
        self.counters.bio_flush_in += 1
        await self.queue.run(Op.FLUSH, 0, self._flush)

    def interrupt(self, task: trio.lowlevel.Task, op: Op) -> bool:
        """Fail the request with which this task waits at the gate; False if it does not: then the storage has it."""
        return self.queue.room.interrupt(task, op)

    def _clipped(self, offset: int, length: int) -> int:
        return max(0, min(length, self.size_bytes - offset))

    def _in_stack(self, offset: int) -> int:
        return offset + self.mapper.active.start_bytes if self.mapper else offset

    # What the queue runs, on the stack that is then in force, which may be smaller than when the request came. What was
    # done is recorded before anybody is told of it. What is done with a fuse out is not recorded, so that nothing older
    # may be written again either; but where older writes wait for whoever recovers a lost storage, it joins them.

    async def _read(self, offset: int, length: int, stack: Stack) -> Buffer:
        length = self._clipped(offset, length)
        return await stack.read(self._in_stack(offset), length) if length else b""

    async def _write(self, offset: int, data: Buffer, fua: bool, stack: Stack) -> None:
        if self._clipped(offset, len(data)) < len(data):
            raise BeyondEnd(f"{self.name}: a write at {offset} waited, and the device now ends at {self.size_bytes}")
        if not data:
            return
        start = self._in_stack(offset)
        await stack.write(start, data, check_zeros=bool(self.tune.check_zeros))
        self._wrote(start, data, stack)
        if fua:
            # Recorded before it is flushed: if that fails, the map in memory has the cluster and a copy may have not.
            self.counters.bio_fua_out += 1
            await self._flush_stack(stack)

    def _aim(self, offset: int, data: Buffer) -> Pieces | None:
        """Where it belongs, if the gate is open and it is all in one cluster of the top, or in one that nobody has."""
        if self.read_only or not 0 < len(data) <= self.size_bytes - offset or not self.queue.is_free:
            return None
        return self.stack.aim(self._in_stack(offset), data)

    def _wrote(self, start: int, data: Buffer, stack: Stack) -> None:
        self._recorded(((start, len(data), data),), len(data), stack)

    def _recorded(self, writes: Writes, length_bytes: int, stack: Stack) -> None:
        """So many bytes; `writes` are needed where they are kept."""
        if self._keeps_unflushed:
            self.unflushed.wrote_together(writes, length_bytes)
            if self.unflushed.take_writeback_turn():
                leave_to_loop(stack.start_writeback)
        elif self.unflushed:
            self.unflushed.forget()
        if stack.room is not None and stack.room.is_wanted:
            leave_to_loop(self.flusher.look)

    async def _discard(self, offset: int, length: int, stack: Stack) -> None:
        slots = await stack.discard(self._in_stack(offset), self._clipped(offset, length))
        if self._keeps_unflushed:
            self.unflushed.discarded(slots, stack.cluster_bytes)
        else:
            self.unflushed.forget()

    async def _write_zeroes(self, offset: int, length: int, unmap: bool, stack: Stack) -> None:
        if self._clipped(offset, length) < length:
            raise BeyondEnd(f"{self.name}: zeroes at {offset} waited, and the device now ends at {self.size_bytes}")
        if not length:
            return
        start = self._in_stack(offset)
        await stack.write_zeroes(start, length, unmap=unmap, check_zeros=bool(self.tune.check_zeros))
        if self._keeps_unflushed:
            self.unflushed.zeroed(start, length, stack.cluster_bytes)
        else:
            self.unflushed.forget()

    @property
    def _keeps_unflushed(self) -> bool:
        return self.queue.standby.armed or (bool(self.unflushed) and self.queue.loss is not None)

    async def _flush(self, stack: Stack) -> None:
        if self.tune.pass_flushes:
            await self._flush_stack(stack)
        else:
            self.counters.bio_flush_skip += 1

    async def _flush_stack(self, stack: Stack) -> None:
        """A storage that was lost meanwhile is not believed: it may have forgotten what it answers for."""
        mark = self.unflushed.mark()
        await stack.flush()
        if self.queue.loss is not None:
            raise BackendError(self.queue.loss.errno, "fsync", stack.top.path)
        self.unflushed.flushed(mark)

    def _standby_changed(self) -> None:
        """Without STANDBY_EN nobody has promised to recover the device, and nothing is kept for that; what a storage
        may have lost already is kept all the same, for whoever recovers it."""
        state = self.queue.standby.state
        if state is State.NOT_SUPPORTED and not self.queue.is_lost:
            self.unflushed.forget()
        elif state is State.OFF:
            stand_by_without_lock(self.queue)

    def check_idle(self) -> None:
        """Raises Busy with what speaks against removing it: somebody uses it, an operation or its outcome is pending,
        or what was acknowledged is nowhere but in our memory."""
        if self.open_count:
            raise Busy(f"it is open ({self.open_count} times)")
        if self.stats.in_flight > self.flusher.in_flight or self.queue.room:
            raise Busy("requests are in flight")
        if self.queue.is_stopped or self.agent.state is AgentState.RECOVERING:
            raise Busy("an operation on it is under way, or it is suspended")
        if self.mapper is not None and self.mapper.is_busy:
            raise Busy("an operation on it is under way, or an inactive table is loaded")
        if self.queue.is_lost and self.unflushed:
            raise Busy(f"its storage is lost, and {self.unflushed.data_bytes} bytes wait to be written again")

    def tell_gone(self) -> None:
        """Whoever waits for a change of one of its attributes is woken, and finds that it is not there any more."""
        changed = [self.queue.standby.changed, self.queue.changed, self.queue.room.changed, self.agent.changed]
        for signal in (*changed, *([self.mapper.changed] if self.mapper else [])):
            signal.fire()

    @property
    def replace_results(self) -> dict[tuple[str, str], int]:
        """How often each operation ended with each result (`ok`, or an errno's name)."""
        return self._replacement.results | (self.mapper.results if self.mapper else {})

    async def set_aborted(self, aborted: bool) -> None:
        """By hand. Raises as `marked_again`, still aborted."""
        if not aborted and self.queue.aborted:
            await marked_again(self.queue)
        self.queue.set_aborted(aborted)

    async def replace(self, path: str, *, level: int | None = None, verify: Verify = Verify.NONE) -> None:
        """Put the image at `path` in the place of a delta (of the top, if no level is given), and leave standby."""
        await self._unload_what_cannot_resume()
        with self._alone("replace_delta"):
            await self._replacement.replace(path, level=level, verify=verify)

    async def replace_top(self, path: str) -> None:
        await self.replace(path)

    async def reopen(self) -> None:
        """Open the top's own path again: the same image on storage that has come back."""
        await self._unload_what_cannot_resume()
        with self._alone("reopen"):
            await self._replacement.reopen()

    async def _unload_what_cannot_resume(self) -> None:
        if self.mapper is not None and self.mapper.waiting_is_outdated:
            await self.mapper.clear()

    def _alone(self, operation: str) -> AbstractContextManager[None]:
        return self.mapper.alone(operation, beside_waiting=False) if self.mapper else nullcontext()

    async def aclose(self) -> bool:
        """Flush and close; raises if that fails. A store that is lost is not written to: then the answer is False, and
        the image keeps its in-use mark."""
        self.queue.close_gate()
        try:
            await self.agent.aclose()
            if self.mapper:
                await self.mapper.aclose()
            is_still = False
            try:
                await self.flusher.aclose()
                is_still = True
            finally:
                lost = not self.read_only and self.queue.is_lost
                await self.stack.aclose(clean=is_still and not lost)
            return not lost
        finally:
            self.queue.forget_key()
