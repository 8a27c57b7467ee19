"""`flip_upper_deltas`: the top and the delta below it change places (kernel-ploop.md 2.5).

It is a step of merging a top into its base when there is no third delta: user space has cleared, in the base's file,
every entry that the top has too, so that either order of the two is the same disk. Opening, locking and marking are the
caller's; here it is decided that they may, and the new stack is made. No request may be in flight."""

import numpy as np

from ploopfs.engine.delta import Delta
from ploopfs.engine.opening import rebuilt
from ploopfs.engine.stack import Stack
from ploopfs.errors import AlreadyExists, NoSuchEntry, PermissionDenied, ReadOnly, WrongLevel


def check_flip(stack: Stack) -> None:
    """Raises ReadOnly, NoSuchEntry for fewer than two deltas, WrongLevel for a raw base below the top."""
    if stack.read_only:
        raise ReadOnly(f"{stack.top.path} is open for reading only")
    if len(stack.deltas) < 2:
        raise NoSuchEntry(f"{stack.top.path}: there is no delta below it")
    if stack.deltas[-2].header is None:
        raise WrongLevel(f"{stack.deltas[-2].path}: a raw image cannot be the top")


async def flipped(stack: Stack, *, upper: Delta, lower: Delta) -> Stack:
    """The stack with `upper`, what was level top-1, on `lower`, what was the top.

    `upper` has been opened for writing, and read and checked, since user space changed it; it is to be marked in use
    before the stack is in force. `lower` is the old top, settled, and opened again for reading (`Delta.through`).
    Nothing is written here. Raises as `check_flip`; PermissionDenied if `upper` is not writable, AlreadyExists if a
    cluster is present in both, and as `rebuilt` for images that cannot lie in this order."""
    check_flip(stack)
    if not upper.writable:
        raise PermissionDenied(f"{upper.path} is open for reading only")
    _refuse_common_clusters(upper, stack.top)
    return await rebuilt((*stack.deltas[:-2], lower, upper), stack.size_bytes, stack.counters, below=stack.below)


def _refuse_common_clusters(upper: Delta, old_top: Delta) -> None:
    assert upper.bat is not None
    assert old_top.bat is not None
    ours, theirs = upper.bat.view(), old_top.bat.view()
    shared = min(len(ours), len(theirs))
    common = np.flatnonzero((ours[:shared] != 0) & (theirs[:shared] != 0))
    if len(common):
        raise AlreadyExists(
            f"{len(common)} clusters are both in {upper.path} and in {old_top.path}, the first is {common[0]}"
        )
