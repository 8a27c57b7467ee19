"""One write that the kernel makes by itself (ring.py): its pieces, one after the other, and the reply behind them.

Knows nothing of how it is asked for. Invariant: who waits for it hears once, when nothing of its pieces is under way.
"""

import errno
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

log = logging.getLogger(__name__)

Pieces = Sequence[tuple[int, bytes | bytearray | memoryview]]
"""Offsets, and the bytes that belong there; each is written when those before it have been."""

Ended = Callable[[int, int], None]
"""Hears how many pieces were written in full, and of the last one that was begun the result as of pwrite(2): how many
bytes, or an errno as a negative number."""


def _told(_full: int, _result: int) -> None:
    """Somebody was, already."""


class Maker(Protocol):
    """Who makes a write, and sends its reply, in the ring's place; `since_ns` is when he began, of the monotonic
    clock."""

    @property
    def since_ns(self) -> int: ...

    def begin(self, fd: int, pieces: Pieces, ended: Ended, reply: "Reply") -> "Write": ...


class Reply:
    """Bytes that the kernel writes to `fd`, in one call, as soon as a write has succeeded: what tells of that is in the
    ring by then, though nobody may have heard of it. If it `is_left` to the kernel, `sent` is called with the result,
    an errno as a negative number where it was not to be, before or after the write is told of; until then `fd` stays
    open. `is_due` is for its owner: the write was told of. `maker` makes the write and sends this, if not the ring."""

    __slots__ = ("data", "fd", "is_due", "is_left", "maker", "sent")

    def __init__(self, fd: int, data: bytes, sent: Callable[[int], None], maker: Maker | None = None) -> None:
        self.fd, self.data, self.sent, self.maker = fd, data, sent, maker
        self.is_left = self.is_due = False


class Write:
    """One that has begun. It may be given up by whoever waits for it, and goes on."""

    __slots__ = ("_begun", "_ended", "_full", "_holds", "_lengths", "_reply", "_result", "_task")

    def __init__(self, holds: list[object], lengths: list[int], ended: Ended, reply: Reply | None) -> None:
        self._holds, self._lengths, self._ended, self._reply = holds, lengths, ended, reply
        self._begun = self._full = len(lengths)
        self._result = lengths[-1]
        self._task: Task | None = None

    def is_under_way(self) -> bool:
        return self._begun > 0

    async def wait(self) -> tuple[int, int]:
        """For what `ended` hears."""
        if self._begun:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._give_up)
        return self._full, self._result

    def _give_up(self, _raise_cancel: RaiseCancelT) -> Abort:
        self._task = None
        return Abort.SUCCEEDED

    @property
    def is_over(self) -> bool:
        return not self._begun and self._reply is None

    def end(self, part: int, result: int) -> bool:
        """Of a piece, or of the reply behind them; whether nothing of it is under way any more."""
        try:
            if part == len(self._lengths):
                assert self._reply is not None
                reply, self._reply = self._reply, None
                reply.sent(result)
                return self.is_over
            if result != self._lengths[part] and part < self._full:
                self._full, self._result = part, result
            self._begun -= 1
            if not self._begun:
                ended, self._ended, self._holds = self._ended, _told, []  # who is told may know this
                ended(self._full, self._result)
                if self._task is not None and not self._begun:
                    trio.lowlevel.reschedule(self._task)
        except Exception:
            log.exception("who was told of a write's end met a bug")
        return self.is_over

    def follows(self, part: int) -> bool:
        """Whether anything is under way that this part has to come after."""
        return self._begun > len(self._lengths) - part

    def hold(self, part: int, go_on: Callable[[bool], None]) -> None:
        """The kernel has nothing from this part on. When all before it has ended, `go_on` hears whether it was written
        in full; if not, the rest will not be."""
        ended, holds, pieces = self._ended, self._holds, len(self._lengths) - part

        def heard(full: int, result: int) -> None:
            is_whole = full >= part
            if is_whole and pieces:
                self._ended, self._holds, self._begun = ended, holds, pieces
            try:
                if not self._begun:
                    ended(full, result)
            finally:
                go_on(is_whole)
                if not is_whole and self._reply is not None:
                    self.end(len(self._lengths), -errno.ECANCELED)

        self._ended = heard
        self._begun -= pieces
