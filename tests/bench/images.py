"""Makes the images that are measured on, and the copies of them that each server gets.

Every cluster that is said to be written holds bytes that are no zeroes and differ from every other's: a hole is
answered without any file, and would measure nothing. Knows nothing of servers.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from random import Random

import trio

from ploopfs.engine.counters import Counters
from ploopfs.engine.create import create_image
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.os_file import OsFiles
from ploopfs.image.header import SECTOR_BYTES, V2
from tests.bench.cases import CLUSTER_BYTES

BATCH = 16
"""Clusters that are written at once, so that a full image is not flushed after each."""

Tell = Callable[[str], None]


def empty_image(path: Path, size_bytes: int) -> Path:
    create_image(
        str(path),
        size_sectors=size_bytes // SECTOR_BYTES,
        cluster_sectors=CLUSTER_BYTES // SECTOR_BYTES,
        version=V2,
    )
    return path


def full_image(path: Path, size_bytes: int) -> Path:
    empty_image(path, size_bytes)
    trio.run(_write, path, range(size_bytes // CLUSTER_BYTES))
    return path


def full_file(path: Path, size_bytes: int) -> Path:
    """The same bytes without a format around them."""
    with path.open("wb") as file:
        for cluster in range(size_bytes // CLUSTER_BYTES):
            file.write(content(cluster))
        os.fsync(file.fileno())
    return path


def stack(place: Path, size_bytes: int, depth: int) -> list[Path]:
    """Base first; cluster n of the disk is in level n modulo `depth`. Each image is written alone, as a disk of its
    own: what a stack of so many is, only its reader knows."""
    place.mkdir()
    deltas = []
    for level in range(depth):
        deltas.append(empty_image(place / f"{level:03}.hds", size_bytes))
        trio.run(_write, deltas[-1], range(level, size_bytes // CLUSTER_BYTES, depth))
    return deltas


def content(cluster: int) -> bytes:
    return cluster.to_bytes(8, "little", signed=False) + _noise()[8:]


def _noise(kept: list[bytes] = []) -> bytes:  # noqa: B006 - made once, and the same in every run
    if not kept:
        kept.append(Random(5).randbytes(CLUSTER_BYTES))
    return kept[0]


async def _write(path: Path, clusters: Iterable[int]) -> None:
    opened = await open_stack(
        OsFiles(), StackSpec((ImageSpec(str(path)),)), read_only=False, counters=Counters()
    )
    wanted = list(clusters)
    for start in range(0, len(wanted), BATCH):
        async with trio.open_nursery() as nursery:
            for cluster in wanted[start : start + BATCH]:
                nursery.start_soon(partial(opened.write, cluster * CLUSTER_BYTES, content(cluster)))
    await opened.aclose(clean=True)


def copy(source: Path, target: Path) -> Path:
    """Byte by byte, never a reflink: the first write to shared blocks would cost one of the peers more. Holes stay
    holes."""
    with source.open("rb") as reading, target.open("wb") as writing:
        length, start = os.fstat(reading.fileno()).st_size, 0
        while start < length:
            piece = reading.read(CLUSTER_BYTES)
            if any(piece):
                writing.seek(start)
                writing.write(piece)
            start += len(piece)
        writing.truncate(length)
        os.fsync(writing.fileno())
    shutil.copymode(source, target)
    return target


def warm(paths: Sequence[Path]) -> None:
    """All of them are in the page cache, page by page: some servers drop what they find there when they open an image,
    and ext4 writes 4 KiB in two to four times the time where pages came in larger pieces, as chance has it. All are
    dropped first, or each would have its old pages again: reads of 1 MiB from one image can be 7 % slower than from
    another by where in memory these lie."""
    for path in paths:
        settle(path)
        with path.open("rb") as dropping:
            os.posix_fadvise(dropping.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for path in paths:
        with path.open("rb") as reading:
            os.posix_fadvise(reading.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            while reading.read(CLUSTER_BYTES):
                pass


def settle(path: Path) -> None:
    """What a run left dirty is written back before the next one, which may be another peer's."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
