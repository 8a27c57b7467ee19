"""The device-mapper shell of one device: tables, suspend and resume, as in kernel-ploop.md 2.2.

Where vz7 replaces a delta within its ploop, here a whole new instance takes over while the device and its queue stay.
Knows nothing of the tree or of dmsetup. Invariants: one operation at a time; a failed one changes nothing; `_commit` is
the one point at which a loaded table comes into force; a stack whose storage was lost is never used again once a table
was loaded from it, whatever happens to that table.
"""

import errno
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ploopfs.device.active import ActiveTable
from ploopfs.device.events import declare
from ploopfs.device.handover import bounded, settled, weaken_locks
from ploopfs.device.instance import Instance, Surroundings, open_instance
from ploopfs.device.queue import RequestQueue
from ploopfs.device.signal import Signal
from ploopfs.device.stats import Op
from ploopfs.device.table import PloopTarget, Table, parse_table, status_line
from ploopfs.device.unflushed import Unflushed
from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import Delta
from ploopfs.engine.failing import condemned
from ploopfs.engine.file import Files
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError, Busy, InStandby, NoResume, PloopError, StorageTimeout

if TYPE_CHECKING:
    from ploopfs.device.device import Device

log = logging.getLogger(__name__)

SUSPENDED = declare("suspended", "device-mapper suspended the device: what comes waits (`flushed`)")
RESUMED = declare("resumed", "it goes on (`swapped`: with the table that was loaded)")
CLEARED = declare("table_cleared", "the table that was loaded is gone")


class Mapper:
    """`active` is the table in force. `changed` fires when a table, a flag or `suspended` changes. `suspended` is what
    the operator did; the queue of a lost device also waits from a load to the resume that puts it in force. `results`
    counts loads, as a replacement counts its operations."""

    def __init__(self, device: "Device", files: Files, counters: Counters, *, name: str, uuid: str) -> None:
        self.name, self.uuid = name, uuid
        self.changed = Signal()
        self.suspended = False
        self.answer = ""
        self.is_trusted = True
        self.files = files
        self.results: dict[tuple[str, str], int] = {}
        self._device = device
        self._counters = counters
        self._stays_read_only = device.read_only
        self.active = ActiveTable(device.queue, read_only=device.read_only)
        self._waiting: Instance | None = None
        self._last_top: Delta | None = None
        self._under_way = ""
        self.active.changed.subscribe(self.changed.fire)

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def queue(self) -> RequestQueue:
        return self._device.queue

    @property
    def unflushed(self) -> Unflushed:
        return self._device.unflushed

    @property
    def is_lost(self) -> bool:
        """Nothing more is written to the images in force."""
        return self.queue.is_lost

    @property
    def is_busy(self) -> bool:
        """An operation is under way, or a table waits to take over."""
        return bool(self._under_way) or self._waiting is not None

    @property
    def inactive_table(self) -> Table | None:
        return self._waiting.table if self._waiting is not None else None

    @property
    def waiting_is_outdated(self) -> bool:
        """It was loaded before the storage was lost, or has lost its lock since, or something was given up on it: it
        cannot be resumed any more."""
        waiting = self._waiting
        if waiting is None or waiting.is_error:
            return False
        return waiting.lost_its_lock or waiting.is_in_doubt or (self.is_lost and not waiting.recovers)

    @property
    def inactive_status(self) -> str | None:
        table = self.inactive_table
        if table is None:
            return None
        is_falloc = isinstance(table.target, PloopTarget) and table.target.falloc_new_clu
        return status_line(table, "f" if is_falloc else "")

    # --- the operations -------------------------------------------------------------------------------------------

    @contextmanager
    def alone(self, operation: str, *, beside_waiting: bool = True) -> Iterator[None]:
        """No other operation meanwhile. One that changes the stack in force is refused while a table waits to take its
        place, which would not have the change."""
        self.queue.check_lives()
        if self._under_way:
            raise Busy(f"{self._under_way} is under way")
        if self._waiting is not None and not beside_waiting:
            raise Busy("an inactive table is loaded: resume or clear it first")
        self._under_way = operation
        try:
            yield
        finally:
            self._under_way = ""

    async def load(self, text: str) -> None:
        """Open what a table names as the inactive one, in the place of any other. A device in standby leaves it when
        everything of the new instance is right, and its requests then wait for the resume.

        Raises BadValue for the text, and as `open_instance`."""
        with self.alone("load"):
            table = parse_table(text)
            facts = {"operation": "load", "level": None, "path": _path_of(table)}
            self.queue.events.emit("replace_begin", **facts)
            try:
                await self._load(table)
            except PloopError as error:
                log.error("%s: load: %s", self._device.name, error)
                result = errno.errorcode.get(error.errno, str(error.errno))
                self._emit_end(facts, result, str(error))
                raise
            self._emit_end(facts, "ok", "")
            log.info("%s: loaded %s", self._device.name, table.line)

    async def clear(self) -> None:
        """Drop the inactive table, if there is one. A device that was lost before it was loaded is so again."""
        with self.alone("clear"):
            dropped, self._waiting = self._waiting, None
            if dropped is not None:
                await self._drop(dropped)
                self._fall_back()
                self.queue.events.emit(CLEARED)
            self._let_pass()

    async def suspend(self, *, flush: bool = True) -> None:
        """What comes waits, what is in flight ends, nobody fails; with `flush` all that was acknowledged is durable.
        Raises with the device as it was."""
        with self.alone("suspend"):
            if self.suspended:
                return
            flush = flush and not self.active.is_error
            if flush and self.is_lost:
                raise InStandby("the storage of the device is lost: it can be suspended without a flush only")
            await self.queue.suspend()
            try:
                if flush:
                    if self.is_lost:
                        raise InStandby("the storage was lost before the requests in flight had ended")
                    await self._flush()
            except BaseException:
                self._let_pass()
                raise
            self.suspended = True
            self.changed.fire()
            self.queue.events.emit(SUSPENDED, flushed=flush)

    async def resume(self) -> None:
        """Put the inactive table in force, if there is one, and let requests through. Raises NoResume, and what closing
        the old instance or reading the new one again raises, with nothing changed."""
        with self.alone("resume"):
            waiting = self._waiting
            if waiting is not None:
                await self._swap(waiting)
            elif self.suspended and self.active.noresume:
                raise NoResume("set_noresume forbids to resume")
            was_suspended, self.suspended = self.suspended, False
            self._let_pass()
            self.changed.fire()
            if was_suspended or waiting is not None:
                self.queue.events.emit(RESUMED, swapped=waiting is not None)

    async def exchange(self, make: Callable[[Stack], Awaitable[Stack]], *, limit_s: float) -> None:
        """Put what `make` makes of the stack in force in its place, while no request is in flight."""
        queue = self.queue
        async with queue.quiesced():
            if self.is_lost:
                raise InStandby("the storage was lost before the requests in flight had ended")
            old = queue.stack
            try:
                async with bounded(old.top.path, limit_s):
                    new = await make(old)
            except BackendError as error:
                queue.judge(Op.WRITE, error, queue.generation)
                raise
            except StorageTimeout:
                if old.top.file.abandoned:  # it may yet happen, under whoever writes from now on
                    queue.set_aborted(True)
                raise
            if new is old:
                return
            queue.swap(new)
        for delta in old.dropped_by(new):
            await delta.file.aclose()

    async def aclose(self) -> None:
        """The daemon ends: what waits will not take over."""
        dropped, self._waiting = self._waiting, None
        if dropped is not None:
            await self._drop(dropped)

    # --- load -----------------------------------------------------------------------------------------------------

    async def _load(self, table: Table) -> None:
        queue = self.queue
        recovers = self.is_lost and isinstance(table.target, PloopTarget)
        writable = not (table.read_only or self._stays_read_only)
        if recovers:
            # What is in flight could still reach images that the new instance is about to write.
            await queue.suspend()
        try:
            instance = await open_instance(
                replace(table, read_only=not writable),
                self.files,
                self._surroundings(),
                cluster_bytes=queue.stack.cluster_bytes,
                writable=writable,
                counters=self._counters,
            )
        except BaseException:
            self._let_pass()
            raise
        if recovers:
            self._condemn()
            queue.standby.recovered()
        previous, self._waiting = self._waiting, instance
        if previous is not None:
            await self._drop(previous)
        if not recovers:
            self._fall_back()
        self._let_pass()
        self.changed.fire()

    def _fall_back(self) -> None:
        """Nothing that could recover a lost device waits any more: it is in standby again."""
        if (self.queue.stack.is_lost or self.active.is_error) and self.queue.loss is not None:
            self.queue.standby.storage_lost(self.queue.loss)

    def _surroundings(self) -> Surroundings:
        stack, waiting = self.queue.stack, self._waiting
        lost = self._top if self.is_lost else None
        written = stack.top if lost is None and stack.deltas and stack.top.writable else None
        knows = waiting is not None and waiting.stack.deltas and not waiting.lost_its_lock
        ours = waiting.stack.top if waiting is not None and knows else None
        return Surroundings(
            queue=self.queue,
            holders=self._open_deltas(),
            writes=written,
            waiting=ours,
            lost=lost,
            unflushed=self.unflushed,
            replayed=ours if waiting is not None and waiting.recovers else None,
        )

    @property
    def _top(self) -> Delta | None:
        """Of the last table that had one."""
        stack = self.queue.stack
        return stack.top if stack.deltas else self._last_top

    def _open_deltas(self) -> list[Delta]:
        """Where an image is open twice, the later open file has its lock."""
        waiting = self._waiting.stack.deltas if self._waiting is not None else ()
        return [*waiting, *self.queue.stack.deltas]

    def _condemn(self) -> None:
        """From here on the new instance may have written to the old one's image, of which the old one knows nothing.
        Nobody is in flight, so this is no new generation."""
        stack, loss = self.queue.stack, self.queue.loss
        if stack.deltas and not stack.is_lost:
            if loss is None:  # aborted, by no answer of the storage
                self.queue.stack = condemned(stack, errno.EIO, "write", stack.top.path)
            else:
                self.queue.stack = condemned(stack, loss.errno, loss.operation, loss.file)

    async def _drop(self, instance: Instance) -> None:
        """Another instance, if one waits, has the locks of the images that both have, and the mark of the top."""
        successor = self._waiting.files if self._waiting is not None else []
        kept = {file.identity for file in successor}
        relocked = [delta for delta in self.queue.stack.deltas if delta.file.identity not in kept]
        await instance.aclose(
            self.queue,
            clean=not (successor and instance.files and successor[-1].identity == instance.files[-1].identity),
            relocked=relocked,
        )
        self.changed.fire()

    def _let_pass(self) -> None:
        """Unless there is a reason to wait: suspended, or a lost device whose new table is not in force yet."""
        if not self.suspended and not (self._waiting is not None and self._waiting.recovers):
            self.queue.resume()

    # --- suspend and resume ---------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        queue, unflushed, stack = self.queue, self.unflushed, self.queue.stack
        if self.active.is_error:
            return
        mark = unflushed.mark()
        try:
            async with bounded(stack.top.path, queue.bounds.quiesce_timeout_s):
                await stack.flush()
        except PloopError as error:
            raise queue.judge(Op.FLUSH, error, queue.generation) from error
        unflushed.flushed(mark)

    async def _swap(self, new: Instance) -> None:
        queue, old = self.queue, self.queue.stack
        await queue.suspend()
        try:
            if self.waiting_is_outdated:
                raise Busy(f"{_outdated_by(new)} after the inactive table was loaded: load it again")
            async with AsyncExitStack() as undo:
                if not self.is_lost and old.deltas and old.top.writable:
                    await self._settle(undo, old.top, new)
                    async with bounded(old.top.path, queue.bounds.quiesce_timeout_s):
                        await new.take_over_from(old.top, self._counters)
                self._commit(new)
        except BaseException:
            self._let_pass()
            raise
        for delta in old.deltas:
            await delta.file.aclose()
        await weaken_locks(new.stack)
        log.info("%s: the table is now %s (generation %d)", self._device.name, self.active.table.line, queue.generation)

    async def _settle(self, undo: AsyncExitStack, top: Delta, new: Instance) -> None:
        """Where nobody promised recovery, a storage that fails now must not keep the device from its new table. But an
        image that both have must be opened again: what was given up without an answer may still reach it, and what a
        failed fsync has left in the page cache would be read as if it were on the storage."""
        try:
            await undo.enter_async_context(settled(top, self.queue, self.unflushed))
        except PloopError as error:
            if self.queue.standby.refuses or new.shares:
                raise
            log.warning("%s: %s keeps its in-use mark: %s", self._device.name, top.path, error)

    def _commit(self, new: Instance) -> None:
        device = self._device
        if new.recovers:
            self.unflushed.flushed(self.unflushed.mark())
        self._last_top = self._top
        self._waiting = None
        self.active.put(new.table)
        device.read_only = new.table.read_only
        self.queue.swap(new.stack)

    # --- reports --------------------------------------------------------------------------------------------------

    def _emit_end(self, facts: dict[str, str | None], result: str, error: str) -> None:
        self.results["load", result] = self.results.get(("load", result), 0) + 1
        self.queue.events.emit("replace_end", **facts, result=result, error=error, generation=self.queue.generation)


def _outdated_by(new: Instance) -> str:
    if new.is_in_doubt:
        return "an operation on its top was given up"
    return f"{'its lock' if new.lost_its_lock else 'the storage'} was lost"


def _path_of(table: Table) -> str:
    """The image that an event about a table names."""
    return table.target.images[-1].path if isinstance(table.target, PloopTarget) else "error"
