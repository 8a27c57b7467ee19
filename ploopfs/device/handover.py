"""What an image goes through when it passes from one open file to another: its lock, its mark, and a bound on both.

Knows nothing of what replaces what. Invariant: a block that fails leaves the old file locked and marked as it was.
"""

import errno
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio

from ploopfs.bounds import CLOSE_TIMEOUT_S
from ploopfs.device.queue import RequestQueue
from ploopfs.device.standby import STANDBY_ERRNOS
from ploopfs.device.stats import Op
from ploopfs.device.unflushed import Unflushed
from ploopfs.engine.delta import Delta
from ploopfs.engine.file import File
from ploopfs.engine.loading import dismiss
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError, ImageLocked, InStandby, PloopError, StorageTimeout

log = logging.getLogger(__name__)


@asynccontextmanager
async def bounded(path: str, limit_s: float) -> AsyncIterator[trio.CancelScope]:
    """Raises StorageTimeout when the storage takes longer, or past the deadline that the scope is given."""
    with trio.move_on_after(limit_s) as timeout:
        yield timeout
    if timeout.cancelled_caught:
        raise StorageTimeout(f"{path}: the storage did not answer within {limit_s} s")


async def replay(unflushed: Unflushed, stack: Stack, timeout: trio.CancelScope, limit_s: float) -> None:
    """Write again what no flush has confirmed. That may be much: the bound is on each step."""

    def progressed() -> None:
        timeout.deadline = max(timeout.deadline, trio.current_time() + limit_s)

    await unflushed.replay(stack, progressed)


@asynccontextmanager
async def lock_handed_over(queue: RequestQueue, holders: Iterable[Delta], new: File) -> AsyncIterator[bool]:
    """Where the new file is also one of ours, our own old lock would refuse us: it is dropped, and taken back if the
    block fails. The new file is closed then. What it yields says whether the old lock was a writer's, which the new
    one must be, too, until nobody of us writes the image any more."""
    old = next((delta for delta in holders if delta.file.identity == new.identity), None)
    try:
        if old is not None:
            await _give_lock(queue, old)
        yield old is not None and old.locks_as_writer
    except BaseException:
        await dismiss(new)
        if old is not None:
            await take_back_lock(queue, old)
        raise


async def _give_lock(queue: RequestQueue, old: Delta) -> None:
    """Raises what means that the storage is lost; otherwise a lock that stays is refused by whoever comes next."""
    try:
        await old.file.unlock()
    except BackendError as error:
        log.info("%s", error)
        if _means_loss(queue, old, error):
            raise


def _means_loss(queue: RequestQueue, delta: Delta, error: BackendError) -> bool:
    """A storage may tell once that it is lost, and a lock may be where: whoever goes on would flush what is gone. The
    file of a table that waits tells nothing of those in force."""
    if delta not in queue.stack.deltas or not queue.standby.means_standby(error.errno) or queue.is_lost:
        return False
    queue.judge(Op.FLUSH, error, queue.generation)
    return True


async def take_back_lock(queue: RequestQueue, delta: Delta) -> None:
    """A device that writes an image without its lock, or does not know whether it has it, stops: somebody else may
    write it by now. Shielded, as nobody else takes it back, and bounded. A lock that was lost stays lost: nothing is
    written through this file any more, and it would only keep off who repairs the image."""
    if delta.lock_lost:
        return
    try:
        with trio.CancelScope(shield=True):
            async with bounded(delta.path, CLOSE_TIMEOUT_S):
                await delta.file.lock(as_writer=delta.locks_as_writer)
    except PloopError as error:
        log.error("%s: the lock could not be taken back: %s", delta.path, error)
        delta.lock_lost = True
        for each in queue.stack.deltas:
            if each.writable and each.file.identity == delta.file.identity:
                each.lock_lost = True
                _stop(queue, each.path, error)


def _stop(queue: RequestQueue, path: str, error: PloopError) -> None:
    """Who has the lock has the lease: for the device its storage has answered EBUSY, whatever kept the lock from us,
    unless that says itself that the storage is lost. So it stands by where somebody has promised to recover it. It is
    aborted besides, as the target may let go of it, which gives nobody the lock."""
    tells = isinstance(error, BackendError) and error.errno in STANDBY_ERRNOS
    queue.judge(Op.FLUSH, error if tells else BackendError(errno.EBUSY, "lock", path), queue.generation)
    queue.set_aborted(True)


def stand_by_without_lock(queue: RequestQueue) -> None:
    """Somebody has promised to recover a device that has lost its lock before: of the requests that it refuses as
    aborted none would meet the storage, and tell him."""
    stack = queue.stack
    if stack.deltas and not stack.is_lost and stack.top.lock_lost:
        _stop(queue, stack.top.path, ImageLocked("it was lost before"))


async def weaken_locks(stack: Stack) -> None:
    """Nobody of us writes the lower deltas any more: others may read them, too."""
    for delta in stack.deltas:
        if delta.locks_as_writer and not delta.writable:
            delta.locks_as_writer = False
            try:
                async with bounded(delta.path, CLOSE_TIMEOUT_S):
                    await delta.file.lock()
            except PloopError as error:
                log.error("%s: the lock is still a writer's: %s", delta.path, error)


@asynccontextmanager
async def marked(new: Delta, limit_s: float) -> AsyncIterator[None]:
    """Marked in use inside, if it is to be written; a mark of ours is taken away again if the block fails, since it
    would keep the image from being tried a second time."""
    if not new.writable:
        yield
        return
    was_closed = new.header is not None and not new.header.is_marked_in_use
    await new.mark_in_use()
    try:
        yield
    except BaseException:
        if was_closed:
            await _unmark(new, limit_s)
        raise


async def _unmark(new: Delta, limit_s: float) -> None:
    try:
        with trio.CancelScope(shield=True):
            async with bounded(new.path, limit_s):
                await new.settle()
    except PloopError as error:
        log.error("%s: the in-use mark could not be taken away again: %s", new.path, error)


@asynccontextmanager
async def settled(top: Delta, queue: RequestQueue, unflushed: Unflushed) -> AsyncIterator[None]:
    """A healthy top is flushed and its mark cleared before anything of the new one is read: both may be one file,
    reached by two paths. If the block fails, the mark is put back. No request may be in flight."""
    limit_s = queue.bounds.quiesce_timeout_s
    try:
        async with bounded(top.path, limit_s):
            mark = unflushed.mark()
            await top.settle()
            unflushed.flushed(mark)
    except PloopError as error:
        queue.judge(Op.FLUSH, error, queue.generation)
        await _stay_marked(top, queue, limit_s)
        raise
    try:
        yield
    except BaseException:
        await _mark_again(top, queue, limit_s)
        raise


async def marked_again(queue: RequestQueue) -> None:
    """Before requests may write to the top again that were kept from it because its mark could not be put back, or its
    lock could not be taken back.

    Raises InStandby, Busy and QuiesceTimeout of the queue, BackendError and StorageTimeout of the mark; the latter also
    while something that was given up may yet take the mark away. ImageLocked if the lock was lost: whoever has had it
    may have changed the image, of which we know what it was before, so that having it again is not enough."""
    stack = queue.stack
    if not stack.deltas or stack.is_lost or stack.read_only:
        return
    if stack.top.lock_lost:
        raise ImageLocked(f"{stack.top.path}: its lock was lost, somebody else may have written it: reopen the image")
    if stack.top.header is None:
        return
    if stack.top.marked:
        if stack.top.header.is_marked_in_use:
            return
        if stack.top.file.abandoned:
            raise StorageTimeout(f"{stack.top.path}: what was given up may yet clear its in-use mark: reopen the image")
    if queue.standby.refuses:
        raise InStandby("the device is in standby, and its image bears no mark: recover it")
    async with queue.quiesced(), bounded(stack.top.path, queue.bounds.quiesce_timeout_s):
        await stack.top.mark_in_use()


async def _stay_marked(top: Delta, queue: RequestQueue, limit_s: float) -> None:
    """Settling has failed, and requests go on unless the gate is shut by now."""
    if top.file.abandoned:
        # It may cut the file, or clear the mark, at any time from now on. In standby, too: its target may let go of it.
        queue.set_aborted(True)
    elif top.header is not None and not top.header.is_marked_in_use:
        await _mark_again(top, queue, limit_s)


async def _mark_again(top: Delta, queue: RequestQueue, limit_s: float) -> None:
    """Shielded: the old stack serves on, and nobody may write to an image without its mark. Unless nothing is written
    through it any more, as its storage or its lock was lost meanwhile: then the image may be somebody else's."""
    if queue.standby.refuses or queue.aborted:
        queue.set_aborted(True)  # standby ends when the target lets go, and puts back no mark
        return
    try:
        with trio.CancelScope(shield=True):
            async with bounded(top.path, limit_s):
                await top.mark_in_use()
    except PloopError as error:
        log.error("%s: the in-use mark could not be put back: %s", top.path, error)
        queue.judge(Op.FLUSH, error, queue.generation)
        queue.set_aborted(True)  # whatever the flavour: see above
