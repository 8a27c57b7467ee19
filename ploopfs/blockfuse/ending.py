"""Whether somebody who waits for an answer has been told to end.

The kernel tells a FUSE server of any signal to a waiting thread, once, and not of which. Most mean nothing to the
request: a timer, a child that ended, a stop, a language's own scheduler. A program does not expect EINTR of a disk for
these, and who is held in standby is to be held. Knows Linux' /proc, which answers at once. Invariant: of whom nothing
can be seen, it is believed that he was told to end.
"""

import re
import signal

_TO_END = sum(
    1 << (number - 1)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGTERM, signal.SIGKILL)
)
"""As a mask of /proc. For other signals that end a process the kernel itself sends SIGKILL to its threads."""

_MASKS = re.compile(r"^(SigPnd|ShdPnd|SigBlk):\t([0-9a-f]+)$", re.MULTILINE)


def is_told_to_end(thread: int) -> bool:
    """By the number that the kernel gives with a request: 0 if the mount's name space has none."""
    try:
        with open(f"/proc/{thread}/status", encoding="utf-8", errors="replace") as file:
            return ends(file.read())
    except OSError:
        return True


def ends(status: str) -> bool:
    """By what /proc shows of a thread."""
    masks = {name: int(mask, 16) for name, mask in _MASKS.findall(status)}
    if len(masks) != _MASKS.groups + 1:
        return True
    return bool((masks["SigPnd"] | masks["ShdPnd"]) & ~masks["SigBlk"] & _TO_END)
