"""`tracking_start`, `tracking_stop` and `tracking_get_next`: a copy of the top file while it is written.

The marks are made by the delta, after a write has ended, so that who reads a cluster that it was told of reads either
all of the write or is told of the cluster again. They belong to the open file: another stack over it tracks on, another
top does not. Nothing here waits or touches the storage."""

import numpy as np

from ploopfs.engine.stack import Stack
from ploopfs.errors import AlreadyExists, NoSuchEntry, NothingTracked, ReadOnly
from ploopfs.image.tracker import Tracker


def is_tracking(stack: Stack) -> bool:
    return stack.top.tracker is not None


def start_tracking(stack: Stack) -> None:
    """Every used cluster of the top file counts as written from here on. No request may be in flight: a write that
    began before would end unseen. The caller refuses if maintenance is under way, and begins it.

    Raises ReadOnly, AlreadyExists if tracking is on."""
    top = stack.top
    _refuse_read_only(stack)
    if top.tracker is not None:
        raise AlreadyExists(f"{top.path}: tracking is on already")
    if top.header is None:
        end = -(-top.file_size // stack.cluster_bytes)
        top.tracker = Tracker(np.zeros(0, np.uint32), first_cluster=end, cluster_bytes=stack.cluster_bytes)
        return
    assert top.bat is not None
    top.tracker = Tracker(top.bat.used(), first_cluster=top.header.first_cluster, cluster_bytes=stack.cluster_bytes)


def stop_tracking(stack: Stack) -> None:
    """Raises ReadOnly, NoSuchEntry if tracking is off."""
    _tracker(stack)
    stack.top.tracker = None


def next_tracked(stack: Stack) -> int:
    """The next cluster of the top file that was written, which is clean from here on; round and round.

    Raises ReadOnly, NoSuchEntry if tracking is off, NothingTracked if no cluster is left."""
    cluster = _tracker(stack).next()
    if cluster is None:
        raise NothingTracked(f"{stack.top.path}: no cluster was written")
    return cluster


def _tracker(stack: Stack) -> Tracker:
    _refuse_read_only(stack)
    if stack.top.tracker is None:
        raise NoSuchEntry(f"{stack.top.path}: tracking is off")
    return stack.top.tracker


def _refuse_read_only(stack: Stack) -> None:
    if stack.read_only:
        raise ReadOnly(f"{stack.top.path} is open for reading only")
