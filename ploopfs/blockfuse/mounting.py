"""One FUSE file system over one regular file: the system calls and the helper that mount it, and take it away again.

Knows neither the protocol nor what is served. The way to a file of our own tree leads through its server, which is the
task that wants the mount: everything in here waits for that, and is called in threads. Invariants: what is unmounted is
what was mounted here, known by its number; a descriptor belongs to the caller from the moment in which it is returned.
"""

import ctypes
import errno
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from ploopfs.engine.apart import APART
from ploopfs.errors import Busy, MountError, PermissionDenied

SUBTYPE = "ploopfs-disk"
"""Another one than the tree has: whoever looks for trees in a table of mounts finds each of them once."""

_FUSE_DEVICE = "/dev/fuse"
_HELPER = "fusermount3"

_MS_NOSUID = 0x2
_MS_NODEV = 0x4
_MNT_DETACH = 0x2
_UMOUNT_NOFOLLOW = 0x8

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENOTCONN, errno.ECONNABORTED})
"""The name has left the tree, or the tree is gone: the kernel has taken the mount with it."""

_CREDENTIALS = struct.Struct("3i")
"""struct ucred: the numbers of process, user and group."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mounted:
    """`fd` is the server's end, not blocking; `number` is the mount's in mountinfo."""

    fd: int
    number: int


def mount_over(file: str, *, source: str, allow_other: bool) -> Mounted:
    """Cover `file` with a file system whose root is a regular file, too. Raises MountError."""
    with _as_mount_error():
        fd = _mount_ourselves(file, source, allow_other=allow_other)
        if fd is None:
            fd = _mount_by_helper(file, source, allow_other=allow_other)
        try:
            os.set_blocking(fd, False)
            return Mounted(fd, _number_at(file))
        except BaseException:
            os.close(fd)
            raise


@contextmanager
def _as_mount_error() -> Iterator[None]:
    """What the system has no room for, or what has gone meanwhile."""
    try:
        yield
    except OSError as error:
        raise MountError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error


def unmount(file: str, number: int, *, lazily: bool = False) -> None:
    """Nothing, if that mount is not there any more. Raises Busy if it is in use, MountError.

    Lazily, who has it open keeps it, and nobody is waited for.
    """
    with _as_mount_error():
        try:
            if _number_at(file) != number:
                return  # somebody has mounted another thing over it, or has taken ours away
        except OSError as error:
            if error.errno in _GONE:
                return
            raise
    failure = _umount(file, lazily=lazily)
    if failure == errno.EPERM:
        _unmount_by_helper(file, lazily=lazily)
    elif failure == errno.EBUSY:
        raise Busy("its mount is busy")
    elif failure and is_mounted(file, number):
        raise MountError(f"umount2(2): {os.strerror(failure)}")


def is_mounted(file: str, number: int) -> bool:
    """From the table of mounts: no file system is asked, so no server that hangs is waited for. A number that is free
    is given to the next mount of anybody, so the place counts, too; `file` has no symbolic link in its path."""
    place = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % found[0][0], os.fsencode(file))
    with _as_mount_error(), open("/proc/self/mountinfo", "rb") as table:
        lines = (line.split(b" ", 5) for line in table)
        return any(line[0] == b"%d" % number and line[4] == place for line in lines)


def _number_at(file: str) -> int:
    """Of the mount that a path leads to. O_PATH: nothing is asked of who serves it."""
    fd = os.open(file, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="utf-8") as facts:
            return next(int(line.split()[1]) for line in facts if line.startswith("mnt_id:"))
    finally:
        os.close(fd)


def _mount_ourselves(file: str, source: str, *, allow_other: bool) -> int | None:
    """The server's end; None without the right to mount."""
    fd = os.open(_FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = [f"fd={fd}", f"rootmode={stat.S_IFREG:o}", f"user_id={os.geteuid()}", f"group_id={os.getegid()}"]
    options += ["default_permissions", *(["allow_other"] if allow_other else [])]
    kind, flags = f"fuse.{SUBTYPE}".encode(), ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    if not _libc.mount(os.fsencode(source), os.fsencode(file), kind, flags, ",".join(options).encode()):
        return fd
    number = ctypes.get_errno()
    os.close(fd)
    if number == errno.EPERM:
        return None
    raise MountError(f"mount(2): {os.strerror(number)}")


def _umount(file: str, *, lazily: bool) -> int:
    failed = _libc.umount2(os.fsencode(file), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazily else 0))
    return ctypes.get_errno() if failed else 0


# --- without the right to mount -----------------------------------------------------------------------------------


def escaped(name: str) -> str:
    """As a value among the options of the helper, which takes a comma for the end of one and a backslash for this."""
    return name.replace("\\", "\\\\").replace(",", "\\,")


def _mount_by_helper(file: str, source: str, *, allow_other: bool) -> int:
    """The descriptor that the helper has opened: it sends it through a socket, whose number is in its environment."""
    if shutil.which(_HELPER) is None:
        raise MountError(f"mount(2): {os.strerror(errno.EPERM)}, and {_HELPER} is missing")
    if not os.access(file, os.W_OK):
        raise PermissionDenied(f"{_HELPER} mounts over nothing that its user may not write to")
    options = [f"fsname={escaped(source)}", f"subtype={escaped(SUBTYPE)}", "default_permissions", "nosuid", "nodev"]
    command = [_HELPER, "-o", ",".join([*options, *(["allow_other"] if allow_other else [])]), "--", file]
    # Programs are started where no image is open, in a thread with descriptors of its own. An address in no file system
    # is all that it and we have in common; the kernel chooses it.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as ours:
        ours.bind("")
        ours.listen()
        done = APART.run_blocking(partial(_run_with_socket, ours.getsockname(), command))
        if done.returncode != 0:
            # It looks for the file as root, whom a tree without that option keeps out.
            hint = "" if allow_other else "; without root it takes -o allow_other"
            raise MountError(_said_by(done) + hint)
        return _received(ours)


def _run_with_socket(address: bytes, command: list[str]) -> "subprocess.CompletedProcess[str]":
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as theirs:
        theirs.connect(address)
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        return _run(command, environment, keeping=(theirs.fileno(),))


def _received(listening: socket.socket) -> int:
    """Anybody may find the address and connect: only what we have connected ourselves is listened to."""
    listening.setblocking(False)
    try:
        while True:
            peer, _ = listening.accept()
            with peer:
                pid, _, _ = _CREDENTIALS.unpack(
                    peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                )
                if pid != os.getpid():
                    continue
                peer.setblocking(False)
                _, descriptors, _, _ = socket.recv_fds(peer, 1, 1)
                if descriptors:
                    # Programs are started elsewhere, so none gets it in between.
                    os.set_inheritable(descriptors[0], False)
                    return descriptors[0]
    except BlockingIOError:
        raise MountError(f"{_HELPER} has mounted and sent no descriptor") from None


def _unmount_by_helper(file: str, *, lazily: bool) -> None:
    command = [_HELPER, "-u", *(["-z"] if lazily else []), "--", file]
    done = APART.run_blocking(partial(_run, command, dict(os.environ)))
    if done.returncode == 0:
        return
    if "busy" in done.stderr:
        raise Busy("its mount is busy")
    raise MountError(_said_by(done))


def _run(
    command: list[str], environment: dict[str, str], *, keeping: tuple[int, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    # The texts of the C library are looked at.
    environment |= {"LC_ALL": "C"}
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=environment,
        pass_fds=keeping,
    )


def _said_by(done: "subprocess.CompletedProcess[str]") -> str:
    said = " ".join(done.stderr.split()).removeprefix(f"{_HELPER}: ")
    return f"{_HELPER}: {said or f'exit code {done.returncode}'}"
