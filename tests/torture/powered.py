"""A store that loses power: bindfs over an ext4 of its own, whose shutdown drops what no fsync has confirmed.

FS_IOC_SHUTDOWN is how Linux's own tests pull the plug of a file system: from then on nothing reaches its disk, and
whoever asks it gets EIO, until it is mounted again and has replayed its journal. bindfs acknowledges a write when the
ext4 has it in memory, so what a power cut loses was acknowledged, and read back, before.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.mounted.blocks import looped, run, unmount_block
from tests.mounted.daemon import opened, unmount
from tests.mounted.disks import MIB
from tests.mounted.storage import Bindfs

BRICK_BYTES = 4096 * MIB
"""Sparse, and never full but when it is filled."""
MAKE = ("mkfs.ext4", "-q", "-F", "-m", "0", "-N", "1024", "-J", "size=16")

FS_IOC_SHUTDOWN = 0x8004587D
KEEPING_LOG, DROPPING_LOG = 1, 2
"""Names and sizes that nobody has asked to be kept are kept all the same, or are not; their bytes are not."""

FILLER = "filler"


class Powered(Bindfs):
    """`bricks` is what the store keeps, `path` where it shows it. Made by `powered`."""

    def __init__(self, place: Path, loop: Path) -> None:
        super().__init__(place / "bricks", place / "store")
        self._loop, self._has_power = loop, False

    def mount(self) -> None:
        if not self._has_power:
            run("mount", self._loop, self.bricks)
            self._has_power = True
        super().mount()

    def crash(self, seed: int) -> None:
        """Both at once: who is asked afterwards is a bindfs that is dead."""
        self.kill()
        self._cut(log_of(seed))

    def lose_power(self) -> None:
        """bindfs lives on, and passes on what it is told: EIO."""
        self._cut(DROPPING_LOG)

    def remount(self) -> None:
        """What was open on the old mount stays dead; what is opened now works, and is what the disk of the ext4 has."""
        unmount(self.path)
        if not self._has_power:
            unmount_block(self._loop, self.bricks)
        self.mount()

    def fill(self) -> None:
        """Not a block is left."""
        with opened(self.bricks / FILLER, os.O_WRONLY | os.O_CREAT) as fd:
            end, step = 0, BRICK_BYTES
            while step >= os.fstatvfs(fd).f_bsize:
                try:
                    os.posix_fallocate(fd, end, step)
                    end += step
                except OSError:
                    step //= 2

    def empty(self) -> None:
        (self.bricks / FILLER).unlink()

    def close(self) -> None:
        super().close()
        unmount(self.bricks)

    def _cut(self, log: int) -> None:
        with opened(self.bricks, os.O_RDONLY | os.O_DIRECTORY) as fd:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", log))
        self._has_power = False


@contextmanager
def _memory(place: Path) -> Iterator[Path]:
    """A disk that nobody has to wait for: the plug is pulled above it."""
    place.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", place)
    try:
        yield place
    finally:
        unmount(place)


def _made(brick: Path) -> Path:
    with brick.open("wb") as empty:
        empty.truncate(BRICK_BYTES)
    run(*MAKE, brick)
    return brick


def log_of(seed: int) -> int:
    return Random(seed).choice((KEEPING_LOG, DROPPING_LOG))


@contextmanager
def powered(place: Path) -> Iterator[Powered]:
    """Mounted at `place`/store, kept in `place`/bricks, whose disk is in `place`/memory; all are made."""
    with _memory(place / "memory") as memory, looped(_made(memory / "brick.ext4"), direct_io=False) as loop:
        running = Powered(place, loop)
        running.bricks.mkdir()
        running.path.mkdir()
        try:
            running.mount()
            yield running
        finally:
            running.close()
