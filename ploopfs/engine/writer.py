"""Everything that changes a top delta: in-place writes, allocation, copy-up, freeing, the map, and its sync.

Lock protocol: a cluster of the disk that is being allocated or freed is claimed (claims.py); between planning and
claiming nothing is awaited. In-place writes need no lock. Map pages are written by one round at a time
(`_map_writer`), single entries of the map (`_entries`) only while no round is there; and the memory of the map changes
only after the file has: it never names a cluster that the file does not."""

import errno
from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from ploopfs.engine.aims import Aims
from ploopfs.engine.answers import SURELY_NOT_WRITTEN
from ploopfs.engine.claims import Claims
from ploopfs.engine.combine import Combiner
from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import Delta
from ploopfs.engine.entries import Entries
from ploopfs.engine.epochs import Epochs
from ploopfs.engine.file import Answered, Buffer
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.engine.room import Room
from ploopfs.engine.unconfirmed import Unconfirmed
from ploopfs.engine.zeroing import make_zero, punch_hole, scrub, write_zeroes
from ploopfs.errors import BackendError
from ploopfs.image.map import Map
from ploopfs.image.plan import (
    Barrier,
    CopyUp,
    EndBarrier,
    Grow,
    Scrub,
    Segment,
    Step,
    Write,
    WriteMap,
    WritePlan,
    plan_copy_up,
    plan_discard,
    plan_write,
    plan_zero,
    plan_zero_clusters,
    punches_of,
    slots_to_allocate,
)

_SLOTS_AT_ONCE = 1024
"""Of a range that is made zero: one update of the map, and everybody else gets his turn in between."""

ReadSegments = Callable[[Sequence[Segment]], Awaitable[bytearray]]


class Writer:
    """The writer of one top delta; `read_segments` reads from the whole stack, for copy-up. What is in `below` would
    show through a cleared entry."""

    def __init__(
        self, top: Delta, below: Map, stack_map: Map, epochs: Epochs, read_segments: ReadSegments, counters: Counters
    ) -> None:
        self._top = top
        self._below = below
        self._map = stack_map
        self._epochs = epochs
        self._read_segments = read_segments
        self._counters = counters
        self._allocator = top.allocator  # asked for before anything changes
        self.claims = Claims()
        self.loss: BackendError | None = None
        """The last answer that meant the loss of the storage."""
        self.unconfirmed = Unconfirmed()
        self._syncer: Combiner[None] = Combiner(self._sync_once)
        self._map_writer: Combiner[dict[int, int]] = Combiner(self._write_map_once)
        self.room = Room(top, self._allocator, stack_map, self._sync, self._extend)
        self._entries = Entries(top, stack_map, counters)

    async def write(self, offset: int, data: Buffer, *, check_zeros: bool) -> None:
        self._top.note_modified()
        await self._name_again()
        while await self.claims.wait_none(slots_to_allocate(self._map, offset, len(data))):
            self._counters.bio_lockouts += 1
        plan = plan_write(self._map, self._allocator, offset, data, check_zeros=check_zeros)
        if plan.new_clusters:
            await self._allocate(plan, data)
            return
        self._counters.bio_wzero += plan.zero_clusters
        await self.run(plan.steps, data)

    def aims(self) -> Aims:
        """Of this moment."""
        top = self._top
        durable_end = min(top.file_size, top.durable_size) // self._map.cluster_bytes
        clean = self._allocator.clean(durable_end) if self._may_allocate_soon else range(0)
        return Aims(top, self._map, clean, self.claims.clusters, self._wrote)

    def _wrote(self, count: int, taken: dict[int, int], whole: int) -> None:
        """As `Aims` has it. Nobody else could look, so that no sync can have been beside them."""
        self._top.note_modified()
        self.unconfirmed.made(count)
        if taken:
            self._take_clean(len(taken), whole)
            self._entries.took(taken)
            self.room.look()

    def write_soon(self, offset: int, pieces: Pieces, answered: Answered, reply: Reply | None) -> bool:
        """As `Stack.write_soon`."""
        self._top.note_modified()
        if len(pieces) > 1:
            return self._allocate_soon(offset, pieces, answered, reply)
        return self._top.write_soon(pieces, answered, reply)

    def _allocate_soon(self, offset: int, pieces: Pieces, answered: Answered, reply: Reply | None) -> bool:
        top, size, (start, data) = self._top, self._map.cluster_bytes, pieces[0]
        slot, cluster = offset // size, start // size
        assert cluster == self._allocator.end_cluster, "it is not where it was aimed"

        def heard(error: BackendError | None) -> None:
            if error is None:
                self._entries.take(slot, cluster)
                self.room.look()
            elif error.errno in SURELY_NOT_WRITTEN:
                self._allocator.release(cluster)
            else:
                top.uncertain_slots.add(slot)
                top.doubtful_clusters.add(cluster)
            self.claims.drop(slot)
            self._entries.ended()
            answered(error)

        if not top.write_soon(pieces, heard, reply):
            return False
        self._take_clean(1, len(data) == size)
        self.claims.take(slot, cluster)
        self._entries.begun()
        return True

    def _take_clean(self, count: int, whole: int) -> None:
        """So many clusters at the end of the file, some of them to be written whole."""
        self._allocator.take_clean(count)
        self._counters.bio_alloc += count
        self._counters.bio_alloc_whole += whole

    @property
    def _may_allocate_soon(self) -> bool:
        return self.loss is None and not self._top.preallocates and self._writes_entries

    @property
    def _writes_entries(self) -> bool:
        """One by one: nobody writes whole pages of the map, and nothing is in doubt, which such a page settles."""
        return self._top.bat is not None and not self._top.uncertain_slots and self._map_writer.is_idle

    async def copy_up(self, slot: int, level: int) -> None:
        """Give the top its own copy of a cluster that this lower level owns. Whoever holds it may have done so when he
        has ended: then there is nothing to do."""
        self._top.note_modified()
        while await self.claims.wait_none((slot,)):
            self._counters.bio_lockouts += 1
        if self._map.levels[slot] == level:
            await self._allocate(plan_copy_up(self._map, self._allocator, slot))

    async def discard(self, offset: int, length: int) -> tuple[int, ...]:
        """The clusters of the disk that were discarded."""
        self._top.note_modified()
        single = self._map.top_level == 0 and self._top.bat is not None
        plan = plan_discard(self._map, self._below, offset, length, single=single)
        while await self.claims.wait_none(plan.free_slots):
            plan = plan_discard(self._map, self._below, offset, length, single=single)
        with self.claims.held({slot: self._map.clusters[slot] for slot in plan.free_slots}):
            for punch in plan.punches:
                await self._top.punch(punch.offset, punch.length)
            if plan.free_slots:
                await self._free(plan.free_slots)
        return plan.slots

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool, check_zeros: bool) -> None:
        """The whole range, part by part: after a failure any of them may be done. A raw image is its own map."""
        self._top.note_modified()
        if self._top.bat is None:
            await (make_zero(self._top, offset, length) if unmap else write_zeroes(self._top, offset, length))
            return
        size, end = self._map.cluster_bytes, offset + length
        first, last = -(-offset // size), end // size
        if first >= last:
            await self._write_parts(offset, end, check_zeros=check_zeros)
            return
        await self._write_parts(offset, first * size, check_zeros=check_zeros)
        if unmap:
            await self._zero_clusters(first, last)
        else:
            await self._write_parts(first * size, last * size, check_zeros=check_zeros)
        await self._write_parts(last * size, end, check_zeros=check_zeros)

    async def _write_parts(self, start: int, end: int, *, check_zeros: bool) -> None:
        """Zeroes, as a user would write them, of at most a cluster at a time."""
        size = self._map.cluster_bytes
        while start < end:
            slot = start // size
            if check_zeros and self._map.is_hole(slot):
                present = self._map.next_present(slot, -(-end // size))
                self._counters.bio_wzero += present - slot
                start = present * size
                continue
            stop = min(end, (slot + 1) * size)
            await self.write(start, bytes(stop - start), check_zeros=check_zeros)
            await trio.lowlevel.checkpoint()  # a storage that never makes us wait would have nobody else get his turn
            start = stop

    async def _zero_clusters(self, first: int, last: int) -> None:
        while (start := self._map.next_present(first, last)) < last:
            first = min(last, start + _SLOTS_AT_ONCE)
            await trio.lowlevel.checkpoint()
            await self._zero_some(range(start, first))

    async def _zero_some(self, slots: range) -> None:
        """Planned and claimed in one moment: a cluster that a copy-up gives the top afterwards would show old bytes."""
        plan = plan_zero(self._map, self._below, slots)
        while await self.claims.wait_none(plan.changed_slots):
            plan = plan_zero(self._map, self._below, slots)
        new = plan_zero_clusters(self._map, self._allocator, plan.hidden)
        freed = {slot: self._map.clusters[slot] for slot in plan.freed}
        with self.claims.held(freed | new.new_clusters):
            if plan.hidden:
                await self._run_allocating(new)
                self._track(new.new_clusters.values())
            for punch in plan.punches:
                await make_zero(self._top, punch.offset, punch.length)
            if freed:
                await self._free(plan.freed)

    def _track(self, clusters: Iterable[int]) -> None:
        """Of a cluster of zeroes nothing was written, and a copy that follows the tracking must be as long."""
        if self._top.tracker is not None:
            for cluster in clusters:
                self._top.tracker.mark(cluster * self._map.cluster_bytes, self._map.cluster_bytes)

    async def flush(self) -> None:
        """All that was acknowledged before the call is on stable storage, and the map that leads to it."""
        await self._name_again()
        await self._sync()

    async def _name_again(self) -> None:
        """A cluster whose discard failed, and may have reached the file, before anybody is told of a write to it."""
        if self._top.uncertain_slots:
            await self._map_writer.submit({})

    async def _sync(self) -> None:
        """All that was written before the call is on stable storage; concurrent callers share one fsync."""
        await self._syncer.submit(None)

    # --- the interpreter of write plans ---------------------------------------------------------------------------

    async def run(self, steps: Iterable[Step], data: Buffer = b"") -> None:
        loss = self.loss
        for step in steps:
            await self._step(step, data)
            if isinstance(step, Barrier | EndBarrier):
                self._check_kept(loss)

    def _check_kept(self, loss: BackendError | None) -> None:
        """`loss` was the last one when something was written that has been flushed by now. After another one the flush
        may have lied (real-parts.md 2.1), and a map entry would name a cluster that is gone."""
        if self.loss is not loss and self.loss is not None:
            raise BackendError(self.loss.errno, "fsync", self._top.path) from self.loss

    async def _allocate(self, plan: WritePlan, data: Buffer = b"") -> None:
        """Run a plan that gives the top new clusters, with their slots claimed."""
        with self.claims.held(plan.new_clusters):
            await self._run_allocating(plan, data)

    async def _run_allocating(self, plan: WritePlan, data: Buffer = b"") -> None:
        self._count(plan)
        new_clusters = plan.new_clusters
        try:
            await self.room.grow_ahead((max(new_clusters.values()) + 1) * self._map.cluster_bytes)
            await self.run(plan.steps, data)
            self.room.look()
        except BackendError as error:
            # Only an answer that excludes a late arrival of the bytes makes these clusters free again; otherwise
            # they stay taken for as long as this file is open, and are at worst leaked.
            if error.errno in SURELY_NOT_WRITTEN and not self._top.uncertain_slots.intersection(new_clusters):
                self._release(new_clusters.values())
            else:
                self._top.doubtful_clusters.update(new_clusters.values())
            raise

    async def _step(self, step: Step, data: Buffer) -> None:
        match step:
            case Write():
                await self._top.write(*_placed(step, data))
            case CopyUp(offset, source, within, start, stop):
                cluster = await self._read_segments(source)
                cluster[within : within + stop - start] = memoryview(data)[start:stop]
                await self._top.write(offset, cluster)
                # What is copied while a sync runs would wait for the next one to be begun: a fifth more copies at
                # depth 16.
                self._top.file.start_writeback()
            case Grow(size):
                await self.room.grow(size)
            case Scrub(offset, length):
                await scrub(self._top, offset, length)
            case Barrier():
                await self._sync()
            case EndBarrier(size):
                # After a loss the file may be shorter than what was seen to.
                if self._top.durable_size < size or self.loss is not None:
                    await self._sync()
            case WriteMap(entries, are_zeroes=True) if len(entries) == 1 and self._writes_entries:
                (slot,) = entries
                await self._entries.write(slot, entries[slot])
            case WriteMap(entries):
                await self._map_writer.submit(entries)

    # --- the map --------------------------------------------------------------------------------------------------

    async def _write_map_once(self, changes: list[dict[int, int]]) -> None:
        assert self._top.bat is not None
        await self._entries.wait_none()  # a page that is made now would not have them
        merged = {slot: cluster for entries in changes for slot, cluster in entries.items()}
        if len(changes) == 1:
            self._counters.map_single_writes += 1
        else:
            self._counters.map_multi_writes += 1
            self._counters.map_multi_updates += len(changes)
        await self._top.write_map(merged)
        for slot, cluster in merged.items():
            if cluster:
                self._map.assign(slot, cluster)
            else:
                self._map.clear(slot)

    async def _free(self, slots: Sequence[int]) -> None:
        """Clear the entries, make that durable, give the space back; only then may the clusters serve somebody else."""
        clusters, loss = [self._map.clusters[slot] for slot in slots], self.loss
        await self._map_writer.submit(dict.fromkeys(slots, 0))
        await self._sync()
        self._check_kept(loss)
        for punch in punches_of(clusters, self._map.cluster_bytes):
            await punch_hole(self._top, punch.offset, punch.length)
        self._epochs.retire(lambda: self._release(clusters))

    def _release(self, clusters: Iterable[int]) -> None:
        for cluster in clusters:
            self._allocator.release(cluster)

    # --- syncing, counting ----------------------------------------------------------------------------------------

    async def _sync_once(self, _waiting: list[None]) -> None:
        self._counters.bio_fsync += 1
        map_writes, mark, loss = self._top.map_writes, self.unconfirmed.mark(), self.loss
        size = self._top.file_size
        try:
            await self._top.sync()
        except BackendError as error:
            # Somebody has given one up, since the loss or because of it: it is the loss that this fails for.
            if self.loss is not None and error.errno == errno.ETIMEDOUT:
                raise BackendError(self.loss.errno, "fsync", self._top.path) from error
            raise
        if self.loss is loss:
            self._top.confirmed(map_writes, size)
            self.unconfirmed.confirmed(mark)

    async def _extend(self, size: int) -> None:
        self._counters.bio_fsync += 1
        loss = self.loss
        await self._top.extend(size)
        if self.loss is loss:
            self._top.confirmed_size(size)

    def _count(self, plan: WritePlan) -> None:
        self._counters.bio_wzero += plan.zero_clusters
        self._counters.bio_alloc += len(plan.new_clusters)
        cluster_bytes = self._map.cluster_bytes
        new = {cluster * cluster_bytes for cluster in plan.new_clusters.values()}
        for step in plan.steps:
            match step:
                case CopyUp():
                    self._counters.bio_cows += 1
                case Write(offset, start, stop) if stop - start == cluster_bytes and offset in new:
                    self._counters.bio_alloc_whole += 1


def _placed(write: Write, data: Buffer) -> tuple[int, Buffer]:
    """Where in the file, and what of the request."""
    part = write.stop - write.start
    return write.offset, data if part == len(data) else memoryview(data)[write.start : write.stop]
