"""Replacing a delta of a running device, the one thing that ends standby (kernel-ploop.md 2.1).

Staged, with one commit point, `RequestQueue.swap`: quiesce; settle the old top if its storage is healthy; open, check,
verify and mark the new image; merge the maps; write again what no flush has confirmed; commit. Any failure before the
commit leaves the old stack and standby as they were, and says why in `last_error`. The old image of a device in standby
is never written to again: whoever stole its lease may be writing it.
"""

import errno
import logging
import posixpath
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from ploopfs.bounds import VERIFY_TIMEOUT_S
from ploopfs.device.handover import bounded, lock_handed_over, marked, replay, settled
from ploopfs.device.last_error import LastError
from ploopfs.device.ownership import (
    explaining_mark,
    is_copy_of,
    is_the_image,
    refuse_foreign_mark,
    slots_to_differ,
    vanished_slots,
)
from ploopfs.device.queue import RequestQueue
from ploopfs.device.unflushed import Unflushed
from ploopfs.device.verify import Verify, verify_replacement
from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import Delta
from ploopfs.engine.file import File, Files
from ploopfs.engine.loading import AcceptMark, load_delta
from ploopfs.engine.opening import rebuilt, reopen_lower
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError, BadValue, NoSuchEntry, PloopError
from ploopfs.image.header import SECTOR_BYTES
from ploopfs.image.stacking import check_replacement

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operation puts where; `level` None is the top."""

    operation: str
    path: str
    level: int | None = None
    verify: Verify = Verify.NONE
    is_reopen: bool = False


class Replacement:
    """The replace operations of one device; one at a time (a second one gets Busy)."""

    def __init__(
        self,
        device_name: str,
        queue: RequestQueue,
        files: Files,
        *,
        counters: Counters,
        unflushed: Unflushed,
        why: LastError,
    ) -> None:
        self.results: dict[tuple[str, str], int] = {}
        self._name = device_name
        self._queue = queue
        self._files = files
        self._counters = counters
        self._unflushed = unflushed
        self._why = why
        self._was_lost = False

    async def replace(self, path: str, *, level: int | None = None, verify: Verify = Verify.NONE) -> None:
        """Replace a delta (the top, if no level is given) by the image at an absolute path. Raises PloopError with
        nothing changed."""
        await self._recorded(Wanted("replace_delta", path, level, verify))

    async def reopen(self) -> None:
        """Replace the top by a fresh open of its own path: sticky errors of a file descriptor die with it."""
        await self._recorded(Wanted("reopen", self._queue.stack.top.path, is_reopen=True))

    async def _recorded(self, wanted: Wanted) -> None:
        facts = {"operation": wanted.operation, "level": wanted.level, "path": wanted.path}
        self._queue.events.emit("replace_begin", **facts)
        try:
            with self._why.explaining(f"{wanted.operation} {wanted.path}"):
                await self._replace(wanted)
        except PloopError as error:
            log.error("%s: %s", self._name, self._why.text)
            self._ended(wanted, errno.errorcode.get(error.errno, str(error.errno)), str(error))
            raise
        level = "top" if wanted.level is None else f"level {wanted.level}"
        log.info("%s: %s is now %s (generation %d)", self._name, level, wanted.path, self._queue.generation)
        self._ended(wanted, "ok", "")

    def _ended(self, wanted: Wanted, result: str, error: str) -> None:
        key = (wanted.operation, result)
        self.results[key] = self.results.get(key, 0) + 1
        self._queue.events.emit(
            "replace_end",
            operation=wanted.operation,
            level=wanted.level,
            path=wanted.path,
            result=result,
            error=error,
            generation=self._queue.generation,
        )

    async def _replace(self, wanted: Wanted) -> None:
        path = wanted.path
        if not posixpath.isabs(path):
            raise BadValue(f"{path!r} is not an absolute path")
        async with self._queue.quiesced():
            # Once: clearing `aborted` meanwhile does not bring back what the old storage may have forgotten.
            self._was_lost = self._queue.is_lost
            old = self._queue.stack
            level = _checked_level(old, wanted.level)
            replaced = old.deltas[level]
            async with AsyncExitStack() as undo:
                await undo.enter_async_context(self._settled(replaced))
                timeout = await undo.enter_async_context(self._bounded(path, wanted.verify))
                accept = self._accept_mark(wanted, replaced)
                new = await undo.enter_async_context(self._opened(path, old, level, accept))
                await verify_replacement(
                    replaced,
                    new,
                    wanted.verify,
                    cluster_bytes=old.cluster_bytes,
                    replayed=self._replayed_slots() if replaced is old.top else (),
                )
                deltas = await undo.enter_async_context(self._with_others_opened_again(old, level))
                deltas[level] = new
                stack = await self._stack(old, deltas, level)
                if stack.top is not old.top:
                    await undo.enter_async_context(marked(stack.top, self._queue.bounds.quiesce_timeout_s))
                await self._replay(stack, timeout)
                self._queue.swap(stack)
                self._queue.standby.recovered()
        for delta in old.deltas:
            if delta not in stack.deltas:
                await delta.file.aclose()

    def _accept_mark(self, wanted: Wanted, replaced: Delta) -> AcceptMark:
        if wanted.is_reopen:
            return is_the_image(replaced)
        return is_copy_of(replaced, self._replayed_slots())

    def _replayed_slots(self) -> set[int]:
        if not self._was_lost:
            return set()
        stack = self._queue.stack
        return slots_to_differ(stack.top, self._unflushed, cluster_bytes=stack.cluster_bytes)

    @asynccontextmanager
    async def _opened(self, path: str, old: Stack, level: int, accept_mark: AcceptMark) -> AsyncIterator[Delta]:
        """The image at `path` as the delta of a level, which it takes the lock from if both are one file."""
        replaced = old.deltas[level]
        file = await self._files.open(path, writable=replaced.writable)
        async with lock_handed_over(self._queue, [replaced], file):
            new = await self._open(file, old, level, accept_mark)
            try:
                yield new
            except BaseException:
                if file.identity == replaced.file.identity and new.may_be_marked:
                    replaced.marked = True  # by us, whatever the header of the old delta says
                raise

    async def _open(self, file: File, old: Stack, level: int, accept_mark: AcceptMark) -> Delta:
        replaced = old.deltas[level]
        with explaining_mark(file.path):
            delta = await load_delta(file, raw=replaced.header is None, accept_mark=accept_mark)
            refuse_foreign_mark(delta, accept_mark)
        if delta.writable and delta.header is not None and delta.header.is_marked_in_use:
            # Our own mark, under which we have written: a close must not put this header back.
            delta.note_modified()
        check_replacement(
            delta.layer,
            cluster_bytes=old.cluster_bytes,
            format_version=old.format_version,
            # A lower delta may be older than a growth of the disk.
            size_bytes=old.size_bytes if delta.writable else min(old.size_bytes, _size_bytes(replaced)),
            is_base=level == 0,
        )
        return delta

    @asynccontextmanager
    async def _with_others_opened_again(self, old: Stack, replaced: int) -> AsyncIterator[list[Delta]]:
        """The deltas of the new stack. What took one away took the others' open files too, as a rule, so after an
        outage each is opened again. A lower one that cannot be stays as it is, since only the top decides whether we
        recover; the top is opened again as by `reopen`, or nothing is replaced."""
        deltas = list(old.deltas)
        async with AsyncExitStack() as top:
            if self._was_lost and replaced != len(deltas) - 1:
                accept = is_the_image(old.top)
                deltas[-1] = await top.enter_async_context(self._opened(old.top.path, old, len(deltas) - 1, accept))
            async with self._with_lower_opened_again(old, deltas, replaced):
                yield deltas

    @asynccontextmanager
    async def _with_lower_opened_again(self, old: Stack, deltas: list[Delta], replaced: int) -> AsyncIterator[None]:
        try:
            for level, delta in enumerate(old.deltas[:-1] if self._was_lost or self._queue.has_failed else ()):
                if level == replaced:
                    continue
                try:
                    deltas[level] = await reopen_lower(self._files, delta)
                except PloopError as error:
                    log.warning("%s: level %d is not opened again: %s", self._name, level, error)
            yield
        except BaseException:
            with trio.CancelScope(shield=True):
                for level, delta in enumerate(deltas[:-1]):
                    if level != replaced and delta not in old.deltas:
                        await delta.file.aclose()
            raise

    async def _stack(self, old: Stack, deltas: list[Delta], replaced: int) -> Stack:
        """The merged map of unchanged lower deltas goes over as it is."""
        top = deltas[-1]
        if replaced != len(deltas) - 1:
            cluster_sectors = old.cluster_bytes // SECTOR_BYTES
            return await rebuilt(
                deltas, old.size_bytes, self._counters, cluster_sectors=cluster_sectors, below=old.below
            )
        vanished = vanished_slots(old.top.bat, top.bat, self._replayed_slots())
        if vanished:
            log.warning("%s: %d map entries of the old top are not in %s", self._name, vanished, top.path)
        # Not `successor`: a lost one that waits for its recovery counts nothing.
        return Stack(deltas, lower=old.lower, size_bytes=old.size_bytes, counters=self._counters, below=old.below)

    async def _replay(self, stack: Stack, timeout: trio.CancelScope) -> None:
        """What a lost storage has acknowledged and no flush has confirmed is written again, before standby clears."""
        if self._was_lost and not stack.read_only and self._unflushed:
            mark = self._unflushed.mark()
            log.info("%s: writing %d unflushed bytes again", self._name, self._unflushed.data_bytes)
            await replay(self._unflushed, stack, timeout, self._queue.bounds.quiesce_timeout_s)
            self._unflushed.flushed(mark)

    @asynccontextmanager
    async def _settled(self, top: Delta) -> AsyncIterator[None]:
        """Around the replacement of a healthy top. A lost one is left alone, also one of which that shows only now; a
        top that stays keeps its mark, and a lower delta has none."""
        async with AsyncExitStack() as undo:
            if top.writable and not self._was_lost:
                try:
                    await undo.enter_async_context(settled(top, self._queue, self._unflushed))
                except BackendError as error:
                    self._was_lost = self._queue.is_lost
                    if not self._was_lost or top.file.abandoned:
                        raise
                    log.warning("%s: the storage of %s is lost, nobody had noticed: %s", self._name, top.path, error)
            yield

    def _bounded(
        self, path: str, verify: Verify = Verify.NONE
    ) -> AbstractAsyncContextManager[trio.CancelScope]:
        return bounded(path, VERIFY_TIMEOUT_S if verify is Verify.FULL else self._queue.bounds.quiesce_timeout_s)


def _checked_level(stack: Stack, level: int | None) -> int:
    top = len(stack.deltas) - 1
    if top < 0:
        raise NoSuchEntry("the device has no delta")
    if level is None:
        return top
    if not 0 <= level <= top:
        raise NoSuchEntry(f"level is {level}, and the stack has levels 0 to {top}")
    return level


def _size_bytes(delta: Delta) -> int:
    return delta.header.size_bytes if delta.header is not None else delta.file_size
