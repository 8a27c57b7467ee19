"""Whether somebody who waits for an answer has been told to end.

The kernel tells a FUSE server of any signal to a waiting thread, once, and not of which. Most mean nothing to the
request: a timer, a child that ended, a stop, a language's own scheduler. A program does not expect EINTR of a disk for
these, and who is held in standby is to be held. Knows Linux' /proc, which answers at once. Invariant: of whom nothing
can be seen, it is believed that he was told to end.
"""

import os
import re
import signal

_TO_END = sum(
    1 << (number - 1)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGTERM, signal.SIGKILL)
)
"""As a mask of /proc. For other signals that end a process the kernel itself sends SIGKILL to its threads."""

_MASKS = re.compile(r"^(SigPnd|ShdPnd|SigBlk):\t([0-9a-f]+)$", re.MULTILINE)


_PROCESS = re.compile(r"^Tgid:\t([0-9]{1,10})$", re.MULTILINE)
_FLAGS = re.compile(r".*\) [A-Z](?: -?[0-9]+){5} ([0-9]{1,10}) ", re.DOTALL)
"""The name of a program is in parentheses, and may hold anything."""
_EXITING = 0x4
"""PF_EXITING of the flags of a thread (include/linux/sched.h)."""


def is_told_to_end(thread: int) -> bool:
    """By the number that the kernel gives with a request: 0 if the mount's name space has none."""
    try:
        return ends(_read(f"/proc/{thread}/status"))
    except OSError:
        return True


def ends(status: str) -> bool:
    """By what /proc shows of a thread."""
    masks = {name: int(mask, 16) for name, mask in _MASKS.findall(status)}
    if len(masks) != _MASKS.groups + 1:
        return True
    return bool((masks["SigPnd"] | masks["ShdPnd"]) & ~masks["SigBlk"] & _TO_END)


def process_of(thread: int) -> int:
    """0 if nothing can be seen."""
    try:
        found = _PROCESS.search(_read(f"/proc/{thread}/status"))
    except OSError:
        return 0
    return int(found[1]) if found else 0


def is_leaving(process: int) -> bool:
    """All its threads have left the program, and what is left of it waits in the kernel for what it once asked for."""
    try:
        # The first thread is there until the last one has gone, and hardly ever one of those that leave before others.
        return is_exiting(_read(f"/proc/{process}/stat")) and all(
            is_exiting(_read(f"/proc/{process}/task/{thread}/stat")) for thread in os.listdir(f"/proc/{process}/task")
        )
    except OSError:
        return False


def is_exiting(status: str) -> bool:
    """By what /proc shows of a thread."""
    flags = _FLAGS.match(status)
    return flags is not None and bool(int(flags[1]) & _EXITING)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
