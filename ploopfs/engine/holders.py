"""Who holds a lock on a file: what /proc tells of other processes, for the message of an open that was refused.

Blocking: runs in a worker thread. Knows nothing of what the locks mean. Invariants: it never fails, it ends at its
deadline, and it asks the kernel's memory alone, never the file or the storage that it lies on.
"""

import os
import time
from collections.abc import Iterator

from ploopfs.bounds import SEARCH_S


def locked_file(fd: int, *, proc: str = "/proc") -> str:
    """The name that /proc gives to the file of a descriptor of ours that holds a lock; empty if it holds none.

    Not made of what stat(2) says: file systems with numbers of their own for devices (btrfs, overlayfs) show others."""
    return next((name for name, _, _ in _locks(f"{proc}/self/fdinfo/{fd}")), "")


def holders(file: str, byte: int, *, proc: str = "/proc", limit_s: float = SEARCH_S) -> list[str]:
    """`command (pid N)` of every process that holds a lock on this byte. Empty where /proc does not show it: it is
    another user's, or of another PID name space, or on another machine."""
    deadline_s = time.monotonic() + limit_s
    return [
        f"{_command(f'{proc}/{pid}')} (pid {pid})"
        for pid in sorted(int(name) for name in _listed(proc) if name.isdigit())
        if _holds(f"{proc}/{pid}/fdinfo", file, byte, deadline_s)
    ]


def _holds(fdinfo: str, file: str, byte: int, deadline_s: float) -> bool:
    for fd in _listed(fdinfo):
        if time.monotonic() > deadline_s:
            return False
        if any(name == file and first <= byte <= last for name, first, last in _locks(f"{fdinfo}/{fd}")):
            return True
    return False


def _locks(fdinfo: str) -> Iterator[tuple[str, int, float]]:
    """File, first and last byte of each lock: `lock: 1: OFDLCK ADVISORY READ -1 fe:00:1234 100 101`, or EOF."""
    for line in _text(fdinfo).splitlines():
        match line.split():
            case ["lock:", _, _, _, _, _, name, first, last]:
                yield name, int(first), float("inf") if last == "EOF" else int(last)


def _command(process: str) -> str:
    """The kernel keeps 15 bytes of a command's name; the program's file has all of it. Not from `cmdline`, which waits
    for a process that hangs in a page fault."""
    name = _text(f"{process}/comm").removesuffix("\n") or "a process"
    try:
        program = os.path.basename(os.readlink(f"{process}/exe"))
    except OSError:
        return name
    return program if program.startswith(name) else name


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
