"""Replacing the top delta of a running device, the one thing that ends standby (kernel-ploop.md 2.1).

Staged, with one commit point, `RequestQueue.swap`: quiesce; settle the old top if its storage is healthy; open, check
and mark the new one; merge the maps; commit. Any failure before the commit leaves the old stack and standby as they
were, and says why in `last_error`. The merged map of the lower deltas goes over to the new stack as it is. The old
image of a device in standby is never written to again: whoever stole its lease may be writing it.
"""

import logging
import posixpath
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import trio

from ploopfs.device.queue import RequestQueue
from ploopfs.device.stats import Op
from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import AcceptMark, Delta, load_delta
from ploopfs.engine.file import CLOSE_TIMEOUT_S, File, Files
from ploopfs.engine.opening import reopen_lower
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError, BadValue, ImageNotClosed, PloopError, StorageTimeout
from ploopfs.image.bat import Bat
from ploopfs.image.header import MUTABLE_START, Header
from ploopfs.image.stacking import check_replacement

log = logging.getLogger(__name__)

IsOurs = Callable[[Delta], AcceptMark]


class Replacement:
    """The replace operations of one device; one at a time (a second one gets Busy)."""

    def __init__(
        self, device_name: str, queue: RequestQueue, files: Files, *, size_bytes: int, counters: Counters
    ) -> None:
        self.last_error = ""
        self._name = device_name
        self._queue = queue
        self._files = files
        self._size_bytes = size_bytes
        self._counters = counters

    async def replace_top(self, path: str) -> None:
        """Replace the top by the image at an absolute path. Raises PloopError with nothing changed."""
        await self._recorded("replace_delta", path, _is_copy_of)

    async def reopen(self) -> None:
        """Replace the top by a fresh open of its own path: sticky errors of a file descriptor die with it."""
        await self._recorded("reopen", self._queue.stack.top.path, _is_the_image)

    @property
    def _is_lost(self) -> bool:
        """The old stack's storage has failed: nothing more is written to it."""
        return self._queue.standby.refuses or self._queue.aborted

    async def _recorded(self, operation: str, path: str, is_ours: IsOurs) -> None:
        try:
            await self._replace(path, is_ours)
        except PloopError as error:
            self.last_error = f"{operation} {path}: {error}"
            log.error("%s: %s", self._name, self.last_error)
            raise
        self.last_error = ""
        log.info("%s: the top delta is now %s (generation %d)", self._name, path, self._queue.generation)

    async def _replace(self, path: str, is_ours: IsOurs) -> None:
        if not posixpath.isabs(path):
            raise BadValue(f"{path!r} is not an absolute path")
        async with self._queue.quiesced():
            old = self._queue.stack
            async with self._settled(old.top), self._bounded(path):
                file = await self._files.open(path, writable=old.top.writable)
                async with _lock_handed_over(old.top.file, file):
                    new_top = await self._open(file, old, is_ours(old.top))
                    async with self._lower(old) as lower:
                        stack = self._stack(old, lower, new_top)
                        if new_top.writable:
                            await new_top.mark_in_use()
                        self._queue.swap(stack)
        for delta in old.deltas:
            if delta not in stack.deltas:
                await delta.file.aclose()

    async def _open(self, file: File, old: Stack, accept_mark: AcceptMark) -> Delta:
        top = await load_delta(file, raw=old.top.header is None, accept_mark=accept_mark)
        _refuse_foreign_mark(top, accept_mark)
        if top.header is not None and top.header.is_marked_in_use:
            # Our own mark, under which we have written: a close must not put this header back.
            top.note_modified()
        check_replacement(
            top.layer,
            cluster_bytes=old.cluster_bytes,
            format_version=old.format_version,
            size_bytes=self._size_bytes,
            is_base=len(old.deltas) == 1,
        )
        return top

    @asynccontextmanager
    async def _lower(self, old: Stack) -> AsyncIterator[list[Delta]]:
        """The lower deltas of the new stack. What took the top away took their open files too, as a rule, so after an
        outage each is opened again; one that cannot be stays as it is, since only the top decides whether we
        recover."""
        lower = list(old.deltas[:-1])
        try:
            if self._is_lost:
                for level, delta in enumerate(lower):
                    try:
                        lower[level] = await reopen_lower(self._files, delta)
                    except PloopError as error:
                        log.warning("%s: level %d is not opened again: %s", self._name, level, error)
            yield lower
        except BaseException:
            with trio.CancelScope(shield=True):
                for delta in lower:
                    if delta not in old.deltas:
                        await delta.file.aclose()
            raise

    def _stack(self, old: Stack, lower: list[Delta], new_top: Delta) -> Stack:
        stack = Stack((*lower, new_top), lower=old.lower, size_bytes=self._size_bytes, counters=self._counters)
        vanished = _vanished_entries(old.top.bat, new_top.bat)
        if vanished:
            log.warning("%s: %d map entries of the old top are not in %s", self._name, vanished, new_top.path)
        return stack

    @asynccontextmanager
    async def _settled(self, top: Delta) -> AsyncIterator[None]:
        """A healthy top is flushed and its mark cleared before anything of the new one is read: both may be one file,
        reached by two paths. If the replacement fails, the mark is put back."""
        if self._is_lost or not top.writable:
            yield
            return
        try:
            async with self._bounded(top.path):
                await top.settle()
        except PloopError as error:
            self._queue.judge(Op.FLUSH, error, self._queue.generation)
            raise
        try:
            yield
        except BaseException:
            await self._mark_again(top)
            raise

    async def _mark_again(self, top: Delta) -> None:
        """Shielded: the old stack serves on, and nobody may write to an image without its mark."""
        try:
            with trio.CancelScope(shield=True):
                async with self._bounded(top.path):
                    await top.mark_in_use()
        except PloopError as error:
            log.error("%s: %s: the in-use mark could not be put back", self._name, error)
            self._queue.judge(Op.FLUSH, error, self._queue.generation)

    @asynccontextmanager
    async def _bounded(self, path: str) -> AsyncIterator[None]:
        limit_s = self._queue.bounds.quiesce_timeout_s
        with trio.move_on_after(limit_s) as timeout:
            yield
        if timeout.cancelled_caught:
            raise StorageTimeout(f"{path}: the storage did not answer within {limit_s} s")


@asynccontextmanager
async def _lock_handed_over(old: File, new: File) -> AsyncIterator[None]:
    """Where both are one file, our own old lock would refuse us: it is dropped, and taken back if the block fails.
    The new file is closed then."""
    is_same = old.identity == new.identity
    try:
        if is_same:
            await _unlock(old)
        yield
    except BaseException:
        with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
            scope.shield = True
            if new.abandoned:
                # It is never closed, so the lock would stay with it: nobody, ourselves included, could open the image.
                await _unlock(new)
            await new.aclose()
            if is_same:
                await _lock_again(old)
        raise


async def _unlock(file: File) -> None:
    try:
        await file.unlock()
    except BackendError as error:
        log.info("%s", error)


async def _lock_again(file: File) -> None:
    try:
        await file.lock()
    except PloopError as error:
        log.error("%s: the lock could not be taken back: %s", file.path, error)


# --- whose mark is it? --------------------------------------------------------------------------------------------


def _is_the_image(old: Delta) -> AcceptMark:
    """For reopen: the mark at our own path is ours if what opening and closing never changes is as we know it."""
    ours = _marked_header(old)

    def accept(header: Header, _bat: Bat) -> bool:
        return ours is not None and header.raw[:MUTABLE_START] == ours.raw[:MUTABLE_START]

    return accept


def _is_copy_of(old: Delta) -> AcceptMark:
    """For replace: the kernel refuses a marked image. But the image we hold, or a copy of it, bears the mark that we
    wrote: then its header is ours to the last bit, and every cluster that we have acknowledged is in its map."""
    ours = _marked_header(old)

    def accept(header: Header, bat: Bat) -> bool:
        return ours is not None and header.raw == ours.raw and not _vanished_entries(old.bat, bat)

    return accept


def _marked_header(old: Delta) -> Header | None:
    """The old top's header as it is while marked; None if the mark is not there. After a settle that failed half-way
    the header in memory is already the closed one, and the mark still counts as set."""
    if old.header is None or not (old.header.is_marked_in_use or old.marked):
        return None
    if old.header.is_marked_in_use:
        return old.header
    marked = old.header.marked_in_use()
    return marked.changed(in_use=marked.in_use, flags=marked.flags, extension_sectors=0)


def _refuse_foreign_mark(top: Delta, accept: AcceptMark) -> None:
    """A read-only open tolerates the mark, replacing a delta does not (2.1, 8)."""
    if top.writable or top.header is None or top.bat is None or not top.header.is_marked_in_use:
        return
    if not accept(top.header, top.bat):
        raise ImageNotClosed(
            f"{top.path}: m_DiskInUse is {top.header.in_use:#x}: the image is in use or was not closed"
        )


def _vanished_entries(old: Bat | None, new: Bat | None) -> int:
    """How many clusters the old top has that the new one has not, or has elsewhere."""
    if old is None or new is None:
        return 0
    before, after = old.view(), new.view()
    shared = min(len(before), len(after))
    differing = (before[:shared] != after[:shared]) & (before[:shared] != 0)
    return int(np.count_nonzero(differing)) + int(np.count_nonzero(before[shared:]))
