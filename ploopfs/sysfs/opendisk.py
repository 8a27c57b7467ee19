"""What one open descriptor of a disk does, whoever serves it.

Knows nothing of FUSE. Invariant: what opening took (the device's open count), `release` gives back once.
"""

import os

from ploopfs.bounds import MAX_OPEN_FILES, MAX_OTHERS_FILES
from ploopfs.errors import BadValue, Busy, NoSuchDevice, PermissionDenied, TooManyOpen
from ploopfs.sysfs.nodes import BlockDevice, Disk


class OpenDisk:
    """Neither O_TRUNC nor close(2) does anything to it, as with a block device. `fua`: a write is durable when it
    returns."""

    __slots__ = ("device", "fua")

    def __init__(self, disk: Disk, flags: int) -> None:
        if disk.removed():  # after its name was looked up
            raise NoSuchDevice("the device was removed")
        if disk.is_settling:
            raise Busy("requests of a connection that was cut off are still under way")
        if flags & os.O_ACCMODE != os.O_RDONLY and disk.device.read_only:
            raise PermissionDenied("the device is read-only")
        self.device: BlockDevice = disk.device
        # O_SYNC contains the bit of O_DSYNC; both promise that a write is durable when it returns.
        self.fua = bool(flags & os.O_DSYNC)
        self.device.opened()

    def release(self) -> None:
        self.device.released()


def check_room(open_files: int, *, uid: int, owner: int) -> None:
    """Whoever may only look must not keep the owner from a disk, or from recovering it."""
    limit = MAX_OPEN_FILES if uid in (0, owner) else MAX_OTHERS_FILES
    if open_files >= limit:
        raise TooManyOpen(f"{limit} files are open")


def check_truncation(device: BlockDevice, size_bytes: int) -> None:
    """No effect, as on a block device; but a size that a disk will not have must not look like success."""
    if size_bytes not in (0, device.size_bytes):
        raise BadValue(f"a disk of {device.size_bytes} bytes cannot be truncated to {size_bytes}")
