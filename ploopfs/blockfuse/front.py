"""A disk as the regular file that its own connection serves.

Knows nothing of bytes and descriptors. Outlives connections: what was changed of the file stays when it is attached
again. Invariant: a disk answers as the kernel's block devices do (block/fops.c) where a regular file leaves the choice.
"""

import errno
import itertools
import os
import stat
import time

import trio

from ploopfs.blockfuse import protocol, replies
from ploopfs.blockfuse.protocol import Fallocate, Ioctl, Lseek, SetAttr
from ploopfs.blockfuse.replies import Attributes
from ploopfs.device.stats import Op
from ploopfs.errors import BadValue, NoDataBeyond, NotForDisks
from ploopfs.sysfs.nodes import BlockDevice, Disk
from ploopfs.sysfs.opendisk import OpenDisk, check_truncation

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
"""Modes of fallocate(2)."""

BLKGETSIZE64 = 0x80081272
BLKFLSBUF = 0x1261
"""The only ones of a block device's ioctls that the kernel can carry to a regular file: the number of the others does
not say what they read or write, and a FUSE server is trusted with no other memory."""


_numbers = itertools.count(protocol.ROOT)
"""Of inodes: a disk that came again is another file than it was, and the number of its file system may be the same."""


class Front:
    """`disk` is the node of the tree; whoever may look at that or change it, sees the same."""

    def __init__(self, disk: Disk) -> None:
        self.device: BlockDevice = disk.device
        self._disk = disk
        self._since_ns = time.time_ns()
        self._number = next(_numbers)

    def open(self, flags: int) -> OpenDisk:
        return OpenDisk(self._disk, flags)

    def attributes(self) -> Attributes:
        shown = self._disk.changes.shown(self._disk.mode, (os.geteuid(), os.getegid()), self._since_ns)
        return Attributes(self._number, self.device.size_bytes, self.device.allocated_bytes, shown)

    def change(self, wanted: SetAttr) -> None:
        valid, changes, now_ns = wanted.valid, self._disk.changes, time.time_ns()
        if valid & protocol.SIZE:
            check_truncation(self.device, wanted.size)
        if valid & protocol.MODE:
            changes.mode = stat.S_IMODE(wanted.mode)
        if valid & protocol.UID:
            changes.uid = wanted.uid
        if valid & protocol.GID:
            changes.gid = wanted.gid
        if valid & protocol.ATIME:
            changes.atime_ns = now_ns if valid & protocol.ATIME_NOW else wanted.atime_ns
        if valid & protocol.MTIME:
            changes.mtime_ns = now_ns if valid & protocol.MTIME_NOW else wanted.mtime_ns
        changes.ctime_ns = now_ns

    async def allocate(self, wanted: Fallocate) -> None:
        """As blkdev_fallocate: no space is taken in advance (mode 0), since nobody could promise that there is some; a
        range that ends past the device is an error, or cut off where the caller says that the size stays."""
        offset, end, mode = wanted.offset, wanted.offset + wanted.length, wanted.mode
        if mode not in (PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE):
            raise NotForDisks(errno.EOPNOTSUPP, f"fallocate mode {mode:#x} is none of a disk")
        size = self.device.size_bytes
        if offset >= size or (end > size and not mode & KEEP_SIZE):
            raise BadValue(f"fallocate from {offset} to {end} leaves a disk of {size} bytes")
        await self.device.write_zeroes(offset, min(end, size) - offset, unmap=bool(mode & PUNCH_HOLE))

    def seek(self, wanted: Lseek) -> int:
        if wanted.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise BadValue(f"lseek whence {wanted.whence} is not for a file system to answer")
        if wanted.offset >= self.device.size_bytes:
            raise NoDataBeyond(f"{wanted.offset} is past the end at {self.device.size_bytes}")
        if wanted.whence == os.SEEK_HOLE:
            return self.device.seek_hole(wanted.offset)
        found = self.device.seek_data(wanted.offset)
        if found is None:
            raise NoDataBeyond(f"no data from {wanted.offset} on")
        return found

    async def control(self, wanted: Ioctl) -> bytes:
        """What an ioctl(2) returns in its argument."""
        await trio.lowlevel.checkpoint()
        if wanted.command == BLKGETSIZE64:
            return replies.number(self.device.size_bytes)
        if wanted.command == BLKFLSBUF:
            await self.device.flush()
            return b""
        raise NotForDisks(errno.ENOTTY, f"ioctl {wanted.command:#x} is none that a disk answers")

    def interrupt(self, task: trio.lowlevel.Task, op: Op) -> bool:
        """Fail the request that this task waits with at the gate; False: it does not wait, the storage has it."""
        return self.device.interrupt(task, op)
