"""`resize` of a running disk: its top image, and with it the disk, gets larger (kernel-ploop.md 2.5).

The plan is image/growth.py's; this is its interpreter. Lower deltas stay as they are: an image with fewer entries than
the disk has holes there. Knows nothing of queues: no request may be in flight from the call until the new stack is in
force, and the caller refuses if maintenance is under way (EBUSY)."""

from ploopfs.engine.delta import Delta
from ploopfs.engine.opening import lower_map
from ploopfs.engine.stack import Stack
from ploopfs.errors import Busy, ReadOnly, StorageTimeout
from ploopfs.image.bat import check_map_size
from ploopfs.image.growth import WriteHeader, check_growth, grown_header, plan_growth
from ploopfs.image.header import SECTOR_BYTES, Header


async def grown(stack: Stack, size_sectors: int) -> Stack:
    """The same disk with that many sectors, over the same open deltas; the stack itself if it has that size already.

    Raises, in vz9's order: ReadOnly; BadValue for a smaller size, for too many clusters, for a part of a cluster and
    for more than a version 1 image can say; BadImage for an image that cannot grow; ImageFull. Then BackendError of a
    read of a lower map or of any step. Whatever is raised, the given stack serves on with the disk as it was, and the
    image is sound: data that have been moved are named at their new places, and what was allocated for nothing stays
    unused until the file is opened again."""
    top = stack.top
    if stack.read_only:
        raise ReadOnly(f"{top.path} is open for reading only")
    if top.header is None:
        return await _grown_raw(stack, size_sectors)
    header = grown_header(top.header, size_sectors, top.path)
    if header is top.header and header.size_bytes == stack.size_bytes:
        return stack
    check_map_size(header, top.path)
    # Read before anything is written: when the header says the new size, nothing may be left that can fail.
    lower = await lower_map(stack.deltas[:-1], header.cluster_bytes, header.disk_clusters)
    if header is not top.header:
        await _grow(stack, top, top.header, header)
    return stack.successor(stack.deltas, lower=lower, size_bytes=header.size_bytes)


async def _grow(stack: Stack, top: Delta, old: Header, new: Header) -> None:
    assert top.bat is not None
    _refuse_doubts(top, range(old.first_cluster, new.first_cluster))
    top.note_modified()
    await stack.flush()  # what the file's map says is certain from here on
    plan = plan_growth(
        top.bat, top.allocator, old=old, new=new, top_level=stack.map.top_level, file_size=top.file_size
    )
    for step in plan:
        match step:
            case WriteHeader(header):
                await top.resize(header)
            case _:
                await stack.execute((step,))


def _refuse_doubts(top: Delta, room: range) -> None:
    """What the storage refused and may yet do must not land in the map."""
    if top.file.abandoned:
        raise StorageTimeout(f"{top.path}: an operation on it was given up and may yet happen")
    doubtful = top.doubtful_clusters.intersection(room)
    if doubtful:
        raise Busy(
            f"{top.path}: a write to cluster {min(doubtful)} failed and may yet arrive where the map grows to: "
            "reopen the image first"
        )


async def _grown_raw(stack: Stack, size_sectors: int) -> Stack:
    """A raw image alone: the file is the disk."""
    top = stack.top
    check_growth(
        size_sectors, now_sectors=stack.size_bytes // SECTOR_BYTES, cluster_sectors=stack.cluster_bytes // SECTOR_BYTES
    )
    size_bytes = size_sectors * SECTOR_BYTES
    if size_bytes == stack.size_bytes:
        return stack
    # Before anything is changed: a disk may be too large for its map.
    lower = await lower_map((), stack.cluster_bytes, size_bytes // stack.cluster_bytes)
    await top.grow(size_bytes)
    await top.sync()
    return stack.successor(stack.deltas, lower=lower, size_bytes=size_bytes)
