"""What lies at a mountpoint: whether a tree can be mounted there, and the way out where a dead one is in the way.

Knows the system's mount table and no session of ours. Invariant: it never unmounts anything but a ploopfs.
"""

import enum
import errno
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from ploopfs.errors import MountError

FSTYPE = "fuse.ploopfs"
MOUNTPOINT_FIELD = 4
"""Of a line of mountinfo, counted from 0; the root of the mount is before it."""

# What stat(2) of a mountpoint says whose server is gone: died, or cut off through fusectl.
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


class State(enum.Enum):
    FREE = "an empty directory"
    MISSING = "does not exist"
    NOT_A_DIRECTORY = "is not a directory"
    NOT_EMPTY = "is not empty: a mount would hide its files"
    STALE = "is a dead ploopfs mount, left by a daemon that was killed"
    SERVING = "is already served by a running ploopfs"
    OTHER_MOUNT = "is a mount of something else"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `root` is `/` unless only a part of a file system is mounted (a bind mount)."""

    root: str
    mountpoint: str
    fstype: str


def parse_mountinfo(table: bytes) -> Iterator[Mount]:
    """In the kernel's order: of several mounts on one directory, the last is the visible one.

    Anybody may have mounted something, under any name. The kernel escapes only what it separates by, so nothing but its
    own blank and newline may end a field: a carriage return in a name is a part of that name.
    """
    for line in table.split(b"\n"):
        place, _, kind = line.partition(b" - ")
        fields = place.split(b" ")
        if len(fields) > MOUNTPOINT_FIELD:
            fstype = kind.partition(b" ")[0]
            yield Mount(_unescape(fields[MOUNTPOINT_FIELD - 1]), _unescape(fields[MOUNTPOINT_FIELD]), _unescape(fstype))


def _unescape(field: bytes) -> str:
    """The kernel writes blank, tab, newline and backslash as three octal digits."""
    return os.fsdecode(re.sub(rb"\\([0-3][0-7]{2})", lambda digits: bytes([int(digits[1], 8)]), field))


def _mounts() -> list[Mount]:
    with open("/proc/self/mountinfo", "rb") as table:
        return list(parse_mountinfo(table.read()))


def ploopfs_mounts() -> list[str]:
    """Mountpoints of all trees, dead ones too, without bind mounts of their parts."""
    return [mount.mountpoint for mount in _mounts() if mount.fstype == FSTYPE and mount.root == "/"]


def mountpoints_below(directory: str) -> list[str]:
    """Of what is mounted in a directory, without what is mounted in that."""
    below = sorted({mount.mountpoint for mount in _mounts() if mount.mountpoint.startswith(f"{directory}/")})
    return [path for path in below if not any(path.startswith(f"{other}/") for other in below)]


def inspect_mountpoint(path: str) -> State:
    """Asks a live server one question, so it waits for as long as that server does."""
    place = os.path.realpath(path)
    fstypes = [mount.fstype for mount in _mounts() if mount.mountpoint == place]
    try:
        mode = os.stat(place).st_mode
    except FileNotFoundError:
        return State.MISSING
    except NotADirectoryError:
        return State.NOT_A_DIRECTORY
    except OSError as error:
        if error.errno in _DEAD and fstypes:
            return State.STALE if fstypes[-1] == FSTYPE else State.OTHER_MOUNT
        raise MountError(f"{path}: cannot be looked at: {error.strerror}") from error
    if fstypes:
        return State.SERVING if fstypes[-1] == FSTYPE else State.OTHER_MOUNT
    if not stat.S_ISDIR(mode):
        return State.NOT_A_DIRECTORY
    return State.NOT_EMPTY if _has_entries(place) else State.FREE


def _has_entries(directory: str) -> bool:
    try:
        with os.scandir(directory) as entries:
            return any(True for _ in entries)
    except OSError as error:
        raise MountError(f"{directory}: cannot be listed: {error.strerror}") from error


def check_mountpoint(path: str) -> None:
    """Raise unless a tree can be mounted at `path`."""
    state = inspect_mountpoint(path)
    if state is not State.FREE:
        raise MountError(f"{path} {state.value}{_server_of(path) if state is State.SERVING else ''}")


def _server_of(path: str) -> str:
    """Who that is, as its tree tells; nothing if it does not."""
    try:
        with open(os.path.join(path, "sys/fs/ploopfs/pid"), encoding="utf-8") as file:
            return f" (pid {int(file.read())})"
    except (OSError, ValueError):
        return ""


def replace_stale(path: str) -> None:
    """Make a stale mountpoint a plain directory again. Whoever still uses files of the dead tree keeps their errors."""
    state = inspect_mountpoint(path)
    if state is not State.STALE:
        raise MountError(f"{path} is not a dead ploopfs mount: {state.value}")
    while state is State.STALE:
        _detach(path)
        state = inspect_mountpoint(path)


def _detach(path: str) -> None:
    """Lazily. fusermount3 first, which also serves a user without root; it is not installed everywhere."""
    place = os.path.realpath(path)
    lazily = ["fusermount3", "-u", "-z"] if shutil.which("fusermount3") else ["umount", "-l"]
    done = subprocess.run([*lazily, "--", place], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MountError(f"{path}: the dead mount cannot be removed: {done.stderr.strip()}")
