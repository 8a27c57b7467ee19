"""Opening the file of an image: it must be a regular one, in a directory that is allowed.

Blocking: runs in a worker thread. Knows nothing of images. Invariants: nothing is opened for reading or writing before
that is settled, since opening a device or a FIFO can already do something, or wait; and what was looked at is what is
opened, whatever becomes of the path meanwhile.

So a descriptor that can do nothing (O_PATH) is taken first, the kernel is asked what it is and where it lies now, and
that very file is opened through it. RESOLVE_BENEATH of openat2(2) would refuse every absolute link, those from one
allowed directory into another too, and a caller would have to choose the directory before the path is resolved.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from ploopfs.errors import BadImage, OutsideAllowedDirs

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFLNK: "a symbolic link",
}


class AllowedDirs:
    """Where images may lie; whoever opens files of one daemon shares one, so that a change counts for all."""

    def __init__(self, directories: Sequence[str] | None = None) -> None:
        """None allows every place. Blocking: links in the paths are resolved now, so that one which somebody changes
        later leads nowhere else."""
        self._roots = None if directories is None else tuple(map(os.path.realpath, directories))

    def become(self, other: "AllowedDirs") -> None:
        """The same as another, from the next open on."""
        self._roots = other._roots

    def check(self, fd: int, path: str) -> None:
        """`path` is what was asked for. Raises OutsideAllowedDirs."""
        roots = self._roots
        if roots is None:
            return
        place = os.readlink(f"/proc/self/fd/{fd}")
        if not any(place.startswith(f"{root.rstrip('/')}/") for root in roots):
            raise OutsideAllowedDirs(path, place, roots)


ANYWHERE = AllowedDirs()


def open_image(path: str, flags: int, allowed: AllowedDirs) -> int:
    """A descriptor of the file; links are followed. Raises OSError, BadImage and OutsideAllowedDirs."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return open_found(place, path, flags, allowed)
    finally:
        close_image(place)


def open_found(place: int, path: str, flags: int, allowed: AllowedDirs) -> int:
    """The same through a descriptor with O_PATH that somebody has already, and who closes it."""
    kind = stat.S_IFMT(os.fstat(place).st_mode)
    if kind != stat.S_IFREG:
        raise BadImage(path, "file type", _KINDS.get(kind, f"{kind:#o}"), "a regular file")
    allowed.check(place, path)
    return os.open(f"/proc/self/fd/{place}", flags | os.O_CLOEXEC)


def close_image(fd: int) -> None:
    """For good, whatever it says: what it could report of writes an fsync has reported, and of a mount that has died in
    the midst of something the next call would say the same."""
    with suppress(OSError):
        os.close(fd)
