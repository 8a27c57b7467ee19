"""One ploop instance: what a device-mapper table names, opened and checked beside the one in force.

Knows nothing of suspending or messages. Invariants: opening an instance that fails leaves every file and lock
as it was; an image that the device in force is writing is not written to by an instance that waits to take over, which
reads it again when it does.
"""

import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass

import trio

from ploopfs.device.handover import bounded, lock_handed_over, marked, replay, take_back_lock
from ploopfs.device.ownership import explaining_mark, is_copy_of, is_the_image, slots_to_differ
from ploopfs.device.queue import RequestQueue
from ploopfs.device.table import ErrorTarget, PloopTarget, Table
from ploopfs.device.unflushed import Unflushed
from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import Delta, ImageSpec
from ploopfs.engine.failing import error_disk
from ploopfs.engine.file import File, Files
from ploopfs.engine.loading import AcceptMark, load_delta, reread
from ploopfs.engine.opening import rebuilt
from ploopfs.engine.stack import Stack
from ploopfs.errors import BadImage, ImageLocked, ImageRefused, PloopError, ReadOnly
from ploopfs.image.header import SECTOR_BYTES
from ploopfs.image.mapped import TOO_LONG, check_mapped, refused
from ploopfs.image.stacking import Layer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an instance is opened beside. `writes` is the top that the device in force is writing, if it is healthy;
    `lost` is the one whose storage has failed: a marked copy of it is ours, and what it may have lost is written again.
    `replayed` is a top that waits and has that already, on stable storage. `holders` are our open images, those first
    that hold the lock where several are one file."""

    queue: RequestQueue
    holders: Sequence[Delta]
    writes: Delta | None
    waiting: Delta | None
    lost: Delta | None
    unflushed: Unflushed
    replayed: Delta | None

    @property
    def limit_s(self) -> float:
        return self.queue.bounds.quiesce_timeout_s


@dataclass(eq=False, slots=True)
class Instance:
    """`recovers`: it was made from a lost one, and has all that was acknowledged. `shares`: the top in force is one of
    its files, so what it knows of that file is out of date when it takes over. `owns_top`: nobody else writes its
    top. `has_lost_top`: that is the image which the device has lost, and has again if this instance does not take over;
    what was acknowledged and nobody kept may be missing there."""

    table: Table
    stack: Stack
    recovers: bool = False
    shares: bool = False
    owns_top: bool = True
    has_lost_top: bool = False

    @property
    def is_error(self) -> bool:
        return isinstance(self.table.target, ErrorTarget)

    @property
    def files(self) -> list[File]:
        return [delta.file for delta in self.stack.deltas]

    @property
    def lost_its_lock(self) -> bool:
        """Somebody else may write its top by now."""
        return any(delta.lock_lost for delta in self.stack.deltas if delta.writable)

    @property
    def _may_settle(self) -> bool:
        return self.owns_top and not self.has_lost_top and not self.lost_its_lock

    @property
    def is_in_doubt(self) -> bool:
        """What was given up may yet reach its top, and whoever hears the answer is nobody."""
        return any(delta.file.abandoned for delta in self.stack.deltas if delta.writable)

    async def aclose(self, queue: RequestQueue, *, clean: bool, relocked: Sequence[Delta]) -> None:
        """It will not take over. `clean`: the top that it owns is closed as it was found. `relocked` are open images of
        ours which get their locks back. What fails is logged, as nobody can do anything about it."""
        files = self.files
        with trio.CancelScope(shield=True):
            try:
                async with bounded(files[-1].path if files else "", queue.bounds.quiesce_timeout_s):
                    await self.stack.aclose(clean=clean and self._may_settle)
            except PloopError as error:
                log.error("%s", error)
            for other in relocked:
                if any(other.file.identity == file.identity for file in files):
                    await take_back_lock(queue, other)

    async def take_over_from(self, top: Delta, counters: Counters) -> None:
        """`top` may be one of our files: read that again, and mark our own top, which nobody else writes any more.

        It has been settled, or has failed to be. Raises as opening does, with nothing changed."""
        if not self.shares:
            return
        deltas = [
            await _read_again(delta, top) if delta.file.identity == top.file.identity else delta
            for delta in self.stack.deltas
        ]
        size_bytes, cluster_sectors = self.stack.size_bytes, self.stack.cluster_bytes // SECTOR_BYTES
        stack = await rebuilt(deltas, size_bytes, counters, cluster_sectors=cluster_sectors)
        if stack.top.writable and not stack.top.marked:
            await stack.top.mark_in_use()
        self.stack = stack


async def open_instance(
    table: Table, files: Files, around: Surroundings, *, cluster_bytes: int, writable: bool, counters: Counters
) -> Instance:
    """Open, check and mark what a table names; `cluster_bytes` is for a target without images.

    Raises BackendError of opening or reading; ImageLocked and ImageNotClosed for what somebody else has; ImageRefused
    with dm-ploop's errno for what does not fit."""
    match table.target:
        case ErrorTarget():
            return Instance(table, error_disk(size_bytes=table.size_bytes, cluster_bytes=cluster_bytes))
        case PloopTarget() as target:
            return await _open(table, target, files, around, writable=writable, counters=counters)


async def _open(
    table: Table, target: PloopTarget, files: Files, around: Surroundings, *, writable: bool, counters: Counters
) -> Instance:
    end_sectors = target.off_sectors + table.length_sectors
    written = around.writes and around.writes.file.identity
    async with AsyncExitStack() as undo:
        timeout = await undo.enter_async_context(bounded(target.images[-1].path, around.limit_s))
        deltas: list[Delta] = []
        # The top first, then downwards, as the kernel adds them: so the top's failure is the one that is told.
        for image in reversed(target.images):
            is_top = not deltas
            file = await files.open(image.path, writable=is_top and writable)
            if any(file.identity == delta.file.identity for delta in deltas):
                await file.aclose()
                raise ImageLocked(f"{image.path}: the table names this image twice")
            lock_handover = lock_handed_over(around.queue, around.holders, file)
            locks_as_writer = await undo.enter_async_context(lock_handover)
            # Size, header and map of an image that is written meanwhile would not fit together.
            async with around.queue.quiesced() if file.identity == written else nullcontext():
                deltas.insert(0, await _loaded(file, image, around, is_top=is_top, locks_as_writer=locks_as_writer))
        layers = [_layer(delta) for delta in deltas]
        check_mapped(layers, cluster_sectors=target.cluster_sectors, end_sectors=end_sectors)
        size_bytes = end_sectors * SECTOR_BYTES
        stack = await rebuilt(deltas, size_bytes, counters, cluster_sectors=target.cluster_sectors)
        instance = Instance(
            table,
            stack,
            recovers=around.lost is not None,
            shares=any(delta.file.identity == written for delta in deltas),
            owns_top=stack.top.file.identity != written,
            has_lost_top=around.lost is not None and stack.top.file.identity == around.lost.file.identity,
        )
        if instance.owns_top:
            await undo.enter_async_context(marked(stack.top, around.limit_s))
        done = around.replayed
        if instance.recovers and (done is None or done.file.identity != stack.top.file.identity):
            await _replay(stack, around, timeout)
        return instance


async def _loaded(
    file: File, image: ImageSpec, around: Surroundings, *, is_top: bool, locks_as_writer: bool
) -> Delta:
    accept_mark = _accept_mark(file, around)
    try:
        with explaining_mark(image.path):
            delta = await load_delta(file, raw=image.raw, accept_mark=accept_mark, locks_as_writer=locks_as_writer)
    except BadImage as error:
        raise refused(error, is_top=is_top) from error
    return _known(delta)


def _accept_mark(file: File, around: Surroundings) -> AcceptMark | None:
    """Whose mark may be on an image that is to be written: ours, on a file that we hold or on a copy of a lost one."""
    for ours in (around.waiting, around.writes):
        if ours is not None and ours.file.identity == file.identity:
            return is_the_image(ours)
    if around.lost is None:
        return None
    cluster_bytes = around.lost.header.cluster_bytes if around.lost.header is not None else 1
    return is_copy_of(around.lost, slots_to_differ(around.lost, around.unflushed, cluster_bytes=cluster_bytes))


def _layer(delta: Delta) -> Layer:
    """A growth that the outage cut off has left our own image with a part of a cluster, which no entry names."""
    is_ours = delta.writable and delta.header is not None and delta.header.is_marked_in_use
    return Layer(delta.path, delta.header, delta.trusted_size) if is_ours else delta.layer


async def _replay(stack: Stack, around: Surroundings, timeout: trio.CancelScope) -> None:
    """What a lost storage has acknowledged and no flush has confirmed; it stays in memory until we take over."""
    unflushed = around.unflushed
    if not unflushed:
        return
    if stack.read_only:
        raise ReadOnly(f"{stack.top.path} is read-only, and acknowledged writes wait to be written again")
    if unflushed.end > stack.size_bytes:
        raise ImageRefused(
            TOO_LONG, f"the table ends at byte {stack.size_bytes}, and a write at {unflushed.end} waits to be repeated"
        )
    log.info("%s: writing %d unflushed bytes again", stack.top.path, unflushed.data_bytes)
    await replay(unflushed, stack, timeout, around.limit_s)


async def _read_again(delta: Delta, top: Delta) -> Delta:
    again = _known(await reread(delta, is_the_image(top)))
    again.locks_as_writer = delta.locks_as_writer
    return again


def _known(delta: Delta) -> Delta:
    if delta.writable and delta.header is not None and delta.header.is_marked_in_use:
        # Our own mark, under which we have written: a close must not put this header back.
        delta.note_modified()
    return delta
