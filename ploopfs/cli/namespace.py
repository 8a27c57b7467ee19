"""A mount name space of our own, and the system calls that arrange it.

Knows nothing of what is mounted, or why. Invariant: what is mounted after `enter` is seen by this process and those it
starts, and gone with them; what is mounted outside meanwhile comes in.
"""

import ctypes
import os

from ploopfs.errors import NamespaceError

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000

# Not every libc has functions for these two; their numbers are the same on every machine but one.
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_AT_FDCWD = -100
_OPEN_TREE_CLONE = 0x1
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 0x4

_FORBIDDING = {
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
    "/proc/sys/user/max_user_namespaces": "0",
    "/proc/sys/user/max_mnt_namespaces": "0",
}
"""Where a system says that users get no name spaces, and the value that says it."""

_libc = ctypes.CDLL(None, use_errno=True)


def enter() -> bool:
    """Leave the mount name space of everybody; true if that took a user name space of our own, too.

    In that one the user keeps the number, and has no right that he did not have before, once he runs a program. Raises
    NamespaceError. The kernel makes one only for a process of a single thread, see `is_alone`.
    """
    in_user_namespace = _unshare(CLONE_NEWNS) != 0
    if in_user_namespace:
        _enter_user_namespace()
    mount(None, "/", flags=MS_REC | MS_SLAVE)
    return in_user_namespace


def is_alone() -> bool:
    return len(os.listdir("/proc/self/task")) == 1


def may_mount() -> bool:
    """Whether no user name space is needed: CAP_SYS_ADMIN is effective."""
    with open("/proc/self/status", encoding="utf-8") as status:
        effective = next(line.split()[1] for line in status if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> 21 & 1)


def _enter_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    number = _unshare(CLONE_NEWUSER | CLONE_NEWNS)
    if number:
        raise NamespaceError(f"no mount name space for this user: {os.strerror(number)}: {_why_forbidden()}")
    # The order is the kernel's: nobody may map a group who could still drop one.
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")


def mount(source: str | None, target: str, *, fstype: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). Raises NamespaceError."""
    from_where = None if source is None else os.fsencode(source)
    kind, data = os.fsencode(fstype), os.fsencode(options)
    if _libc.mount(from_where, os.fsencode(target), kind, ctypes.c_ulong(flags), data):
        number = ctypes.get_errno()
        what = fstype or source or "a name space of its own"
        hint = f": {_why_forbidden()}" if not may_mount() else ""
        raise NamespaceError(f"{target}: {what} cannot be mounted there: {os.strerror(number)}{hint}")


def bind(source: str, target: str) -> None:
    """With all that is mounted below `source`: a user may not take apart what was mounted together."""
    mount(source, target, flags=MS_BIND | MS_REC)


def copied(directory: str) -> int:
    """A directory with all that is mounted below it at this moment, as a descriptor for `attach`."""
    copy: int = _libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(directory), _OPEN_TREE_CLONE | _AT_RECURSIVE)
    if copy < 0:
        raise NamespaceError(f"{directory}: cannot be taken along: {os.strerror(ctypes.get_errno())}")
    return copy


def attach(copy: int, target: str) -> None:
    if _libc.syscall(_MOVE_MOUNT, copy, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH):
        raise NamespaceError(f"{target}: nothing can be mounted there: {os.strerror(ctypes.get_errno())}")
    os.close(copy)


def make_read_only(target: str) -> None:
    """The mount, not what is mounted below it."""
    mount(None, target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)


def _unshare(flags: int) -> int:
    """0, or the errno."""
    return ctypes.get_errno() if _libc.unshare(ctypes.c_int(flags)) else 0


def _why_forbidden() -> str:
    forbidding = [f"{name} is {value}" for name, value in _FORBIDDING.items() if _value(name) == value]
    return ", ".join(forbidding) or "run as root (in a container: one that may mount)"


def _value(name: str) -> str:
    try:
        with open(name, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def _write(name: str, value: str) -> None:
    with open(name, "w", encoding="utf-8") as file:
        file.write(value)
