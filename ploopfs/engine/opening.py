"""From what a user names (a descriptor, its directory, files) to an open stack.

Nothing is written before every image of the stack has passed every check. Knows nothing of devices.
"""

import logging
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ploopfs.bounds import MAX_DESCRIPTOR_BYTES, MAX_DISK_CLUSTERS
from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import Delta, ImageSpec
from ploopfs.engine.file import Files
from ploopfs.engine.loading import dismiss, open_delta, reread
from ploopfs.engine.stack import Stack
from ploopfs.engine.unclosed import Closed, advised, close_unclosed, not_closed
from ploopfs.errors import BadImage, ImageMismatch, ImageNotClosed
from ploopfs.image.bat import Bat
from ploopfs.image.descriptor import Descriptor, parse
from ploopfs.image.header import DEFAULT_CLUSTER_SECTORS, HEADER_BYTES, MUTABLE_START, SECTOR_BYTES
from ploopfs.image.map import Map, RawLevel
from ploopfs.image.stacking import check_depth, check_stack

log = logging.getLogger(__name__)

DESCRIPTOR_NAME = "DiskDescriptor.xml"
RAW_PREFIX = "raw@"


@dataclass(frozen=True, slots=True)
class StackSpec:
    """`images` is base first. `cluster_sectors` is what a descriptor (or the user, for a raw image) says; None: the
    images decide."""

    images: tuple[ImageSpec, ...]
    cluster_sectors: int | None = None


async def resolve(files: Files, image: str | Sequence[str], *, cluster_sectors: int | None = None) -> StackSpec:
    """`image` is a DiskDescriptor.xml, the directory that holds it, one image, or several, base first; `raw@` marks a
    raw base."""
    if isinstance(image, str):
        if not image.startswith(RAW_PREFIX) and await files.is_directory(image):
            image = posixpath.join(image, DESCRIPTOR_NAME)
        if image.endswith(".xml"):
            # A leading ../ of a File is taken off the name of the descriptor's directory, which must be the real one.
            return spec_of(await read_descriptor(files, await files.real_path(image)))
        image = [image]
    return StackSpec(tuple(_spec_of_file(path) for path in image), cluster_sectors)


async def read_descriptor(files: Files, path: str) -> Descriptor:
    return parse(await read_descriptor_bytes(files, path), path)


async def read_descriptor_bytes(files: Files, path: str) -> bytes:
    """The whole text, unless it is longer than any real descriptor (`parse` refuses that)."""
    file = await files.open(path, writable=False)
    try:
        return bytes(await file.read(0, MAX_DESCRIPTOR_BYTES + 1))
    finally:
        await file.aclose()


def spec_of(descriptor: Descriptor) -> StackSpec:
    """The running stack of a disk: the chain that ends at its top."""
    images = tuple(
        ImageSpec(entry.path, raw=descriptor.raw_base and level == 0) for level, entry in enumerate(descriptor.chain())
    )
    return StackSpec(images, descriptor.cluster_sectors)


async def open_stack(
    files: Files,
    spec: StackSpec,
    *,
    read_only: bool,
    counters: Counters,
    closes_unclosed: bool = True,
    on_closed: Callable[[Closed], None] = lambda _closed: None,
) -> Stack:
    """Open every delta, lower ones read-only, and mark the top in use.

    A top that was not closed is checked first, and closed if it is sound (not without `closes_unclosed`); `on_closed`
    is told. Raises BackendError, ImageLocked, BadImage, ImageMismatch, ImageConverting; ImageNotClosed, with the
    command that repairs it, for an image that was not closed and is to be written or built upon."""
    try:
        if read_only:
            return await _open(files, spec, read_only=True, counters=counters)
        try:
            return await _open(files, spec, read_only=False, counters=counters)
        except ImageNotClosed as error:
            if not closes_unclosed:
                raise not_closed(spec.images[-1].path, str(error)) from error
            closed = await _close_unclosed_top(files, spec, counters)
            if closed is None:
                raise
        on_closed(closed)
        return await _open(files, spec, read_only=False, counters=counters)
    except BadImage as error:
        raise await advised(files, error) from error


async def _close_unclosed_top(files: Files, spec: StackSpec, counters: Counters) -> Closed | None:
    """Nothing is written before all else about the stack is known to be right."""
    stack = await _open(files, spec, read_only=True, counters=counters)
    try:
        _refuse_marked(stack.deltas)
    finally:
        await stack.aclose(clean=False)
    return await close_unclosed(files, spec.images[-1])


async def _open(files: Files, spec: StackSpec, *, read_only: bool, counters: Counters) -> Stack:
    check_depth([image.path for image in spec.images])
    deltas: list[Delta] = []
    try:
        last = len(spec.images) - 1
        for level, image in enumerate(spec.images):
            deltas.append(await open_delta(files, image, writable=level == last and not read_only))
        stack = assemble(deltas, spec.cluster_sectors, counters)
        if not read_only:
            _refuse_marked(deltas)
            await stack.top.mark_in_use()
    except BaseException:
        for delta in deltas:
            await dismiss(delta.file)
        raise
    return stack


async def reopen_lower(files: Files, delta: Delta) -> Delta:
    """The same lower delta through a fresh open of its path. Raises ImageMismatch if another image lies there now."""
    file = await files.open(delta.path, writable=False)
    try:
        await file.lock()
        size = await file.size()
        if size != delta.file_size:
            raise ImageMismatch(
                f"{delta.path}: the file has {size} bytes, expected {delta.file_size} as when it was opened"
            )
        if delta.header is not None and bytes(await file.read(0, HEADER_BYTES)) != delta.header.raw:
            raise ImageMismatch(f"{delta.path}: the header is not the one that was opened")
    except BaseException:
        await dismiss(file)
        raise
    return delta.through(file)


def assemble(deltas: Sequence[Delta], cluster_sectors: int | None, counters: Counters) -> Stack:
    """Check that these deltas form a stack, and merge their maps."""
    lower = _checked(deltas, cluster_sectors)
    for delta in deltas[:-1]:
        lower = lower.stacked(delta.map_level)
    return _over(deltas, lower, _size_bytes(deltas[-1]), counters)


async def rebuilt(
    deltas: Sequence[Delta],
    size_bytes: int,
    counters: Counters,
    *,
    cluster_sectors: int | None = None,
    below: Map | None = None,
) -> Stack:
    """A stack over deltas that are open already, base first: what another image in the place of a lower level needs, as
    the merged map no longer says what the other levels have there.

    The map of a lower delta is read again from its file, unless the delta has just been opened and still holds it. The
    disk keeps `size_bytes`, whatever the top has; `cluster_sectors` matters for a raw image alone, and `below` is that
    of the stack whose place it takes. Nothing is written or closed, and any stack that these deltas serve serves on,
    except that a lower delta that holds a map gives it up. Raises BackendError, BadImage, ImageConverting;
    ImageMismatch also for a lower file that is no longer the one that was opened. Nothing has changed then."""
    empty = _checked(deltas, cluster_sectors, size_bytes)
    lower = await lower_map(deltas[:-1], empty.cluster_bytes, len(empty))
    return _over(deltas, lower, size_bytes, counters, below)


async def lower_map(lower: Sequence[Delta], cluster_bytes: int, disk_clusters: int) -> Map:
    """The merged map of open lower deltas, as their files have it. Raises as `rebuilt`."""
    merged = Map.empty(cluster_bytes=cluster_bytes, disk_clusters=disk_clusters)
    for delta in lower:
        merged = merged.stacked(await _map_level_again(delta))
    return merged


def _checked(deltas: Sequence[Delta], cluster_sectors: int | None, size_bytes: int | None = None) -> Map:
    """The empty disk that these deltas are stacked on; its size is the top's unless it is given."""
    check_stack([delta.layer for delta in deltas])
    top = deltas[-1]
    cluster_bytes = (cluster_sectors or DEFAULT_CLUSTER_SECTORS) * SECTOR_BYTES
    if top.header is not None:
        if cluster_sectors is not None and cluster_sectors != top.header.cluster_sectors:
            raise BadImage(
                top.path, "m_Sectors", top.header.cluster_sectors, f"{cluster_sectors}, the disk's Blocksize"
            )
        cluster_bytes = top.header.cluster_bytes
    disk_clusters = -(-(size_bytes or _size_bytes(top)) // cluster_bytes)
    if disk_clusters > MAX_DISK_CLUSTERS:
        expected = f"at most {MAX_DISK_CLUSTERS} clusters of {cluster_bytes} bytes"
        raise BadImage(top.path, "disk size", f"{disk_clusters} clusters", expected)
    return Map.empty(cluster_bytes=cluster_bytes, disk_clusters=disk_clusters)


def _size_bytes(top: Delta) -> int:
    return top.header.size_bytes if top.header is not None else top.file_size


def _over(
    deltas: Sequence[Delta], lower: Map, size_bytes: int, counters: Counters, below: Map | None = None
) -> Stack:
    for delta in deltas[:-1]:
        delta.bat = None  # its entries are in the merged map; a deep stack would hold them a second time
    return Stack(deltas, lower=lower, size_bytes=size_bytes, counters=counters, below=below)


async def _map_level_again(delta: Delta) -> Bat | RawLevel:
    if delta.header is None or delta.bat is not None:
        return delta.map_level
    now = await reread(delta)
    assert now.header is not None
    if now.header.raw[:MUTABLE_START] != delta.header.raw[:MUTABLE_START]:
        raise ImageMismatch(f"{delta.path}: the header is not the one that was opened")
    if now.file_size != delta.file_size:
        raise ImageMismatch(
            f"{delta.path}: the file has {now.file_size} bytes, expected {delta.file_size} as when it was opened"
        )
    return now.map_level


def _refuse_marked(deltas: Sequence[Delta]) -> None:
    """vz7 looks at the mark of every delta it opens: a lower one that somebody writes cannot be built upon."""
    for delta in deltas[:-1]:
        if delta.header is not None and delta.header.is_marked_in_use:
            raise not_closed(delta.path, f"m_DiskInUse is {delta.header.in_use:#x}, and it is a lower delta")


def _spec_of_file(path: str) -> ImageSpec:
    if path.startswith(RAW_PREFIX):
        return ImageSpec(path.removeprefix(RAW_PREFIX), raw=True)
    return ImageSpec(path)
