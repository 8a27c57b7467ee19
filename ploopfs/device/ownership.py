"""Whose is the in-use mark on an image that is to take a top's place?

The kernel refuses a marked image. But the image that we hold, or a copy of it, bears the mark that we wrote ourselves.
Pure decisions over headers and maps. Invariant: a mark is taken for ours only if all that we know of our image fits."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np

from ploopfs.device.unflushed import Unflushed
from ploopfs.engine.delta import Delta
from ploopfs.engine.loading import AcceptMark
from ploopfs.engine.unclosed import advice
from ploopfs.errors import ImageNotClosed
from ploopfs.image.bat import Bat
from ploopfs.image.header import MUTABLE_START, Header


def is_the_image(old: Delta) -> AcceptMark:
    """For reopen: the mark at our own path is ours if what opening and closing never changes is as we know it; or as a
    growth that the outage cut off has left it."""
    ours = [header.raw[:MUTABLE_START] for header in (_marked_header(old), old.doubtful_header) if header is not None]

    def accept(header: Header, _bat: Bat) -> bool:
        return header.raw[:MUTABLE_START] in ours

    return accept


def is_copy_of(old: Delta, may_differ: Collection[int]) -> AcceptMark:
    """For replace: the kernel refuses a marked image. But the image we hold, or a copy of it, bears the mark that we
    wrote: then its header is ours to the last bit, or the one that a growth was about to write, and every cluster that
    we have acknowledged is in its map or is one that `may_differ`."""
    ours = [header.raw for header in (_marked_header(old), old.doubtful_header) if header is not None]

    def accept(header: Header, bat: Bat) -> bool:
        return header.raw in ours and not vanished_slots(old.bat, bat, may_differ)

    return accept


def slots_to_differ(lost: Delta, unflushed: Unflushed, *, cluster_bytes: int) -> set[int]:
    """Where a lost image may have an older entry than we know: what a replay writes again, and what no flush has
    confirmed, such as a cluster that was moved to make room for a larger map. Its old place is as it was."""
    return unflushed.slots(cluster_bytes) | lost.unconfirmed_slots.keys() | lost.uncertain_slots


def _marked_header(old: Delta) -> Header | None:
    """The old top's header as it is while marked; None if the mark is not there. After a settle that failed half-way
    the header in memory is already the closed one, and the mark still counts as set."""
    if old.header is None or not old.may_be_marked:
        return None
    if old.header.is_marked_in_use:
        return old.header
    marked = old.header.marked_in_use()
    return marked.changed(in_use=marked.in_use, flags=marked.flags, extension_sectors=0)


@contextmanager
def explaining_mark(path: str) -> Iterator[None]:
    """A mark that is not known to be ours is refused with what leads on: a repair takes it away, under the lock that
    nobody else may have then, and what waits to be written again is written to what it leaves. Of ours it is if one was
    written late to an image whose lock was lost meanwhile: that is not known from a stranger's."""
    try:
        yield
    except ImageNotClosed as error:
        raise ImageNotClosed(f"{error}; {advice(path)}") from error


def refuse_foreign_mark(top: Delta, accept: AcceptMark) -> None:
    """A read-only open tolerates the mark, replacing a delta does not (2.1, 8)."""
    if top.writable or top.header is None or top.bat is None or not top.header.is_marked_in_use:
        return
    if not accept(top.header, top.bat):
        raise ImageNotClosed(
            f"{top.path}: m_DiskInUse is {top.header.in_use:#x}: the image is in use or was not closed"
        )


def vanished_slots(old: Bat | None, new: Bat | None, replayed: Collection[int]) -> int:
    """How many clusters of the disk the old top has that the new one has not, or has elsewhere, and that will not be
    written again."""
    if old is None or new is None:
        return 0
    before, after = old.view(), new.view()
    shared = min(len(before), len(after))
    slots = np.flatnonzero((before[:shared] != after[:shared]) & (before[:shared] != 0))
    beyond = shared + np.flatnonzero(before[shared:])
    return sum(slot not in replayed for slot in (*slots.tolist(), *beyond.tolist()))
