"""Lower levels that user space has changed: merged into a neighbour, or rearranged (kernel-ploop.md 2.5).

`notify_merged_forward`, `notify_merged_backward` and `update_delta_index`. Nothing is written here: the files are as
user space has left them, and a new stack over the same open files says where things are now. No request may be in
flight from the call until that stack is in force; the caller refuses if maintenance is under way (EBUSY). Whatever is
raised, the given stack serves on as it was."""

from collections.abc import Mapping

from ploopfs.engine.delta import Delta
from ploopfs.engine.loading import reread
from ploopfs.engine.opening import rebuilt
from ploopfs.engine.stack import Stack
from ploopfs.errors import (
    BadValue,
    ImageMismatch,
    ImageNotClosed,
    LevelTooLarge,
    NoSuchEntry,
    NotSupported,
    WrongLength,
)


async def merged_forward(stack: Stack, level: int) -> Stack:
    """User space has copied what a level has into the level above it, where that one had nothing: the level goes, and
    those above it move down by one.

    Raises NoSuchEntry for the top or no level at all, NotSupported for a raw level, BadValue for top-1 (its upper
    neighbour is the top: that is `merge`) and in a stack of fewer than three; then as `_without`."""
    _check_lower(stack, level)
    _check_mergeable(stack, level)
    if level == len(stack.deltas) - 2:
        raise BadValue(f"level {level}: above it is the top, which only `merge` copies to")
    return await _without(stack, level, into=level + 1)


async def merged_backward(stack: Stack, level: int) -> Stack:
    """User space has copied what a level has into the level below it: the level goes, and those above it move down by
    one. Raises as `merged_forward`, and BadValue for level 0 instead of top-1."""
    _check_lower(stack, level)
    if level == 0:
        raise BadValue("level 0: there is nothing below it")
    _check_mergeable(stack, level)
    return await _without(stack, level, into=level - 1)


def _check_mergeable(stack: Stack, level: int) -> None:
    if stack.deltas[level].header is None:
        raise NotSupported(f"level {level}: {stack.deltas[level].path} is a raw image")
    if len(stack.deltas) < 3:
        raise BadValue(f"a stack of {len(stack.deltas)} deltas, expected at least 3")


def _check_lower(stack: Stack, level: int) -> None:
    top = len(stack.deltas) - 1
    if not 0 <= level < top:
        raise NoSuchEntry(f"level {level}: expected a level below the top, level {top}")


async def _without(stack: Stack, level: int, *, into: int) -> Stack:
    """Raises LevelTooLarge if the neighbour is larger than the delta above it is going to be; ImageNotClosed while it
    bears the in-use mark, ImageMismatch if it lacks a cluster that the level or itself had to give: then user space has
    not done what it says. BackendError and BadImage of reading the levels again."""
    neighbour = await reread(stack.deltas[into])
    if neighbour.header is not None and neighbour.header.is_marked_in_use:
        raise ImageNotClosed(f"{neighbour.path}: the in-use mark is set: it is still being merged into")
    deltas = [*stack.deltas[:into], neighbour, *stack.deltas[into + 1 :]]
    del deltas[level]
    index = deltas.index(neighbour)
    _check_size(neighbour, deltas[index + 1])
    merged = await rebuilt(deltas, stack.size_bytes, stack.counters, below=stack.below)
    lost = [slot for slot in stack.lower.owned_by(level, into) if merged.lower.levels[slot] != index]
    if lost:
        raise ImageMismatch(
            f"{neighbour.path}: {len(lost)} clusters of level {level} or its own are not in it, the first is {lost[0]}"
        )
    return merged


def _check_size(lower: Delta, upper: Delta) -> None:
    assert upper.header is not None
    if lower.header is not None and lower.header.size_sectors > upper.header.size_sectors:
        raise LevelTooLarge(
            f"{lower.path}: m_SizeInSectors is {lower.header.size_sectors}, expected at most "
            f"{upper.header.size_sectors}, as the delta above it ({upper.path}) has"
        )


async def updated_index(stack: Stack, level: int, entries: Mapping[int, int]) -> Stack:
    """User space has moved clusters within the file of a lower level: `entries` says where they are now (cluster of the
    disk -> cluster of the file). All are checked, then all are applied, each where the level owns that cluster of the
    disk among the lower ones; the file's own map is user space's to write.

    Raises NoSuchEntry for the top or no level at all; BadValue for a cluster past the end of the disk or of the file,
    for one that nobody has, and for header and map; WrongLength for a file that does not end with a cluster."""
    _check_lower(stack, level)
    delta = stack.deltas[level]
    for slot in entries:
        if not 0 <= slot < len(stack.map):
            raise BadValue(f"cluster {slot}, expected one of a disk of {len(stack.map)} clusters")
        if stack.map.is_hole(slot):
            raise BadValue(f"cluster {slot}: no level has it")
    size = await delta.file.size()
    if size % stack.cluster_bytes:
        raise WrongLength(f"{delta.path}: the file has {size} bytes, expected a multiple of {stack.cluster_bytes}")
    first, end = delta.header.first_cluster if delta.header else 0, size // stack.cluster_bytes
    for slot, cluster in entries.items():
        if not first <= cluster < end:
            raise BadValue(f"cluster {slot}: {cluster} is not in {delta.path}, expected {first} to {end - 1}")
    moved = Delta(delta.file, header=delta.header, bat=None, file_size=size, trusted_size=size)
    deltas = (*stack.deltas[:level], moved, *stack.deltas[level + 1 :])
    lower = stack.lower.repointed(level, entries)
    return stack.successor(deltas, lower=lower)
