"""Is the image that is to take a delta's place what that delta was? What a replace compares if it is asked to.

The kernel never compares (kernel-ploop.md 2.1); here an operator may ask for the maps or for the data. Knows nothing of
queues. Nothing is written."""

from collections.abc import Collection
from enum import Enum

import numpy as np

from ploopfs.engine.delta import Delta
from ploopfs.engine.file import File
from ploopfs.engine.loading import reread
from ploopfs.errors import ImageMismatch
from ploopfs.image.bat import Bat


class Verify(Enum):
    """The value is what `verify=` takes."""

    NONE = "none"
    """The structural checks of the kernel."""
    MAP = "map"
    """Both have the same clusters of the disk, wherever in their files."""
    FULL = "full"
    """And the same data in each of them."""


async def verify_replacement(
    old: Delta, new: Delta, how: Verify, *, cluster_bytes: int, replayed: Collection[int] = ()
) -> None:
    """Clusters of the disk that will be written again (`replayed`) may differ: a lost storage may have forgotten them.
    Raises ImageMismatch that names the first difference; BackendError where the old image must be read but cannot.

    The map of the top in force is in memory, so comparing with it needs no storage; that of a lower delta, and all
    data, are read from the old file.
    """
    if how is Verify.NONE:
        return
    if old.header is None or new.header is None:
        _same_size(old, new)
        if how is Verify.FULL:
            await _same_raw_data(old, new, cluster_bytes, replayed)
        return
    before = old.bat or (await reread(old)).bat
    assert before is not None
    assert new.bat is not None
    _same_slots(before, new.bat, new.path, replayed)
    if how is Verify.FULL:
        await _same_data(old, before, new, new.bat, cluster_bytes, replayed)


def _same_slots(old: Bat, new: Bat, path: str, replayed: Collection[int]) -> None:
    slots = np.concatenate([np.flatnonzero(old.view()), np.flatnonzero(new.view())])
    once, times = np.unique(slots, return_counts=True)
    differing = [slot for slot in once[times == 1].tolist() if slot not in replayed]
    if differing:
        raise ImageMismatch(
            f"{path}: its block map differs from the old delta's in {len(differing)} clusters, first in cluster "
            f"{differing[0]} of the disk"
        )


async def _same_data(
    old: Delta, before: Bat, new: Delta, after: Bat, cluster_bytes: int, replayed: Collection[int]
) -> None:
    for slot in np.flatnonzero(before.view()).tolist():
        if slot in replayed:
            continue
        mine = await _read(old.file, before.clusters[slot] * cluster_bytes, cluster_bytes)
        theirs = await _read(new.file, after.clusters[slot] * cluster_bytes, cluster_bytes)
        if mine != theirs:
            raise ImageMismatch(f"{new.path}: the data of cluster {slot} of the disk differ from the old delta's")


def _same_size(old: Delta, new: Delta) -> None:
    if old.file_size != new.file_size:
        raise ImageMismatch(f"{new.path}: has {new.file_size} bytes, expected {old.file_size} as the old delta has")


async def _same_raw_data(old: Delta, new: Delta, cluster_bytes: int, replayed: Collection[int]) -> None:
    for offset in range(0, old.file_size, cluster_bytes):
        if offset // cluster_bytes in replayed:
            continue
        if await _read(old.file, offset, cluster_bytes) != await _read(new.file, offset, cluster_bytes):
            raise ImageMismatch(f"{new.path}: the data at byte {offset} differ from the old delta's")


async def _read(file: File, offset: int, length: int) -> bytes:
    """What an interrupted growth left out at the end of a file reads as zeroes."""
    return bytes(await file.read(offset, length)).ljust(length, b"\0")
