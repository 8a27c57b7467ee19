"""Locks that keep two writers off one image: open-file-description locks in QEMU's layout.

Byte 100+i is read-locked by who uses permission i, byte 200+i by who does not share it; nobody write-locks, they only
test. So two daemons, and a daemon and any QEMU tool, see each other. Blocking: runs in a worker thread. OFD locks
belong to the open file, not to the process, and so survive that another descriptor of the file is closed. Knows
nothing of images."""

import errno
import fcntl
import os
import struct
import time
from enum import IntEnum

from ploopfs.bounds import GONE_LOCK_MS
from ploopfs.engine.holders import holders, locked_file
from ploopfs.errors import ImageLocked

_USED = 100
_UNSHARED = 200
_NOBODYS = 199
"""Of no permission: who locks it is in nobody's way."""
_LOOK_AGAIN_S = 0.005
_FLOCK = struct.Struct("@hhqqi0q")


class Permission(IntEnum):
    """QEMU's permission bits; the number is the offset within both ranges."""

    CONSISTENT_READ = 0
    WRITE = 1
    RESIZE = 3


_WRITER_USES = (Permission.CONSISTENT_READ, Permission.WRITE, Permission.RESIZE)
_READER_USES = (Permission.CONSISTENT_READ,)
_NOT_SHARED = (Permission.WRITE, Permission.RESIZE)
"""Neither a writer nor a reader stands a second writer beside it: a lower delta must not change under its upper."""


_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})


def can_lock(fd: int, *, is_behind_client: bool = False) -> bool:
    """Whether the storage has locks that whoever else could use the file sees, as far as this can be told; no lock that
    anybody looks at is taken. `fd` has none yet.

    The server of a FUSE store sees locks only if it asks the kernel for them. Otherwise the kernel keeps them to this
    one mount, and shows them among those of the descriptor; it does not know those that a server has."""
    try:
        _is_locked(fd, _USED)
        return not (is_behind_client and _is_kept_to_mount(fd))
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise


def _is_kept_to_mount(fd: int) -> bool:
    _set(fd, fcntl.F_RDLCK, _NOBODYS)
    try:
        return bool(locked_file(fd))
    finally:
        _set(fd, fcntl.F_UNLCK, _NOBODYS)


def claim(fd: int, path: str, *, writable: bool) -> None:
    """Take the locks, then look for a conflict; raises ImageLocked, which names who holds the other lock, and leaves
    nothing locked if there is one. What an earlier claim has beyond this one goes last.

    A storage without locks (ENOLCK, EOPNOTSUPP) is used without them: the in-use mark still stands. A lock that no
    process is seen to hold is waited for, within a bound: the kernel closes the files of a process that was killed with
    writes in its io_uring a moment after the process is gone.
    """
    until_s = time.monotonic() + GONE_LOCK_MS / 1000
    while (conflict := _taken(fd, writable=writable)) is not None:
        file = locked_file(fd)
        release(fd)  # before others are looked for
        permission, byte = conflict
        who = ", ".join(holders(file, byte))
        if who or time.monotonic() >= until_s:
            lock = f"{permission.name.lower()} lock is held by {who or 'another process'}"
            raise ImageLocked(f"{path}: cannot be opened for {'writing' if writable else 'reading'}: its {lock}")
        time.sleep(_LOOK_AGAIN_S)


def claim_free(fd: int, *, writable: bool) -> bool:
    """Take the locks if nobody is in the way, else leave nothing locked, and wait for nobody: whether they were."""
    try:
        is_free = _taken(fd, writable=writable) is None
        if not is_free:
            release(fd)
    except OSError:  # which `claim` meets again
        return False
    return is_free


def _taken(fd: int, *, writable: bool) -> tuple[Permission, int] | None:
    """A conflict, and the byte of the other lock; None if there is none."""
    uses = _WRITER_USES if writable else _READER_USES
    try:
        for permission in uses:
            _set(fd, fcntl.F_RDLCK, _USED + permission)
        for permission in _NOT_SHARED:
            _set(fd, fcntl.F_RDLCK, _UNSHARED + permission)
        conflicts = [(p, _UNSHARED + p) for p in uses if _is_locked(fd, _UNSHARED + p)]
        conflicts += [(p, _USED + p) for p in _NOT_SHARED if _is_locked(fd, _USED + p)]
        for permission in () if conflicts else set(_WRITER_USES) - set(uses):
            _set(fd, fcntl.F_UNLCK, _USED + permission)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return conflicts[0] if conflicts else None


def release(fd: int) -> None:
    try:
        _set(fd, fcntl.F_UNLCK, 0, length=0)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _set(fd: int, kind: int, start: int, length: int = 1) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def _is_locked(fd: int, byte: int) -> bool:
    """Whether somebody else's lock on this byte would refuse a write lock."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK
