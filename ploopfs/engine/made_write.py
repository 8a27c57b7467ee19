"""A write that a thread of ours makes in one go, and the reply behind it, as the kernel does for the ring (ring.py).

It is made before there is anything noted of it: who waits for the reply does not wait for that, unless it is sent later
with those of other writes. Knows nothing of how the thread comes to it. Invariants: nothing of a write happens unless
all that comes before it in the write has happened in full; who is told was told of no part before.
"""

import errno
import logging
import os
import time
from collections.abc import Callable

from ploopfs.engine.ring_write import Ended, Pieces, Reply, Write

log = logging.getLogger(__name__)


class Made:
    """What goes where in `fd`, as whoever owns the file has said, and the `answer` that is then written to `answer_fd`.
    `notes` is told that it has succeeded. One that fails, or hangs in a storage, as that is told, `enters` instead:
    there it is the `Reply.maker` of what is asked for."""

    __slots__ = (
        *("_answer_fd", "_enters", "_fd", "_notes", "_replied", "_results", "_told"),
        *("answer", "pieces", "since_ns", "write"),
    )

    def __init__(
        self,
        fd: int,
        pieces: Pieces,
        answer_fd: int,
        answer: bytes,
        notes: Callable[["Made"], None],
        enters: Callable[["Made", bool], None],
    ) -> None:
        self.since_ns = time.monotonic_ns()
        self.write: Write | None = None
        self.pieces, self.answer = pieces, answer
        self._fd, self._answer_fd = fd, answer_fd
        self._notes, self._enters = notes, enters
        self._results: list[int] | None = None
        self._replied: int | None = None
        self._told = 0

    @property
    def has_failed(self) -> bool:
        """Or nobody took its answer."""
        return self._replied is not None and self._replied < 0

    def make(self, *, answers: bool = True) -> None:
        """It blocks, and raises nothing. Without `answers` somebody else is to send the answer to one that has not
        failed, or `reply` does."""
        results, is_whole = [], True
        for offset, data in self.pieces:
            result = _written(self._fd, data, offset) if is_whole else -errno.ECANCELED
            is_whole = result == len(data)
            results.append(result)
        self._results = results  # before anybody may know
        if not is_whole:
            self._replied = -errno.ECANCELED
        elif answers:
            self.reply()

    def reply(self) -> None:
        """Unless that has happened, or is not to."""
        if self._replied is None:
            self._replied = _written_to(self._answer_fd, self.answer)

    def note(self) -> None:
        """Before anybody else can look."""
        try:
            self._notes(self)
        except Exception:
            log.exception("a write that was made and answered met a bug")

    def enter(self, *, hangs: bool) -> None:
        """Likewise."""
        try:
            self._enters(self, hangs)
        except Exception:
            log.exception("a write that was made met a bug")

    def begin(self, fd: int, pieces: Pieces, ended: Ended, reply: Reply) -> Write:
        """As `Ring.begin`, of what is made."""
        assert fd == self._fd
        assert pieces is self.pieces, "it was made where it was aimed"
        self.write = Write([], [len(data) for _, data in pieces], ended, reply)
        reply.is_left = True
        return self.write

    def tell(self) -> bool:
        """Whoever waits for what has ended by now, once for each part; whether that is all."""
        if self._results is None:
            return False
        results = self._results if self._replied is None else [*self._results, self._replied]
        if self.write is None:
            return self._replied is not None
        while self._told < len(results):
            part = self._told
            self._told += 1
            self.write.end(part, results[part])
        return self.write.is_over


def _written(fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
    try:
        return os.pwrite(fd, data, offset)
    except OSError as error:
        return -(error.errno or errno.EIO)


def _written_to(fd: int, answer: bytes) -> int:
    try:
        return os.write(fd, answer)
    except OSError as error:
        return -(error.errno or errno.EIO)
