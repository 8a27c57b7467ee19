"""A write that a thread of ours makes in one go, and the reply behind it, as the kernel does for the ring (ring.py).

Knows nothing of how the thread comes to it. Invariants: nothing of a write happens unless all that comes before it in
the write has happened in full; who is told was told of no part before.
"""

import errno
import os

from ploopfs.engine.ring_write import Ended, Pieces, Reply, Write


class Made:
    """`ended`, `reply` and `write` are those of `Ring.begin`."""

    def __init__(self, fd: int, pieces: Pieces, ended: Ended, reply: Reply) -> None:
        self._fd, self._pieces, self._reply = fd, pieces, reply
        self.write = Write([], [len(data) for _, data in pieces], ended, reply)
        self._results: list[int] | None = None
        self._replied: int | None = None
        self._told = 0
        reply.is_left = True

    @property
    def has_succeeded(self) -> bool:
        """And whoever asked has his answer."""
        return self._replied is not None and self._replied >= 0

    def make(self) -> None:
        """It blocks, and raises nothing."""
        results, is_whole = [], True
        for offset, data in self._pieces:
            result = _written(self._fd, data, offset) if is_whole else -errno.ECANCELED
            is_whole = result == len(data)
            results.append(result)
        self._results = results  # before anybody may know
        self._replied = _replied(self._reply) if is_whole else -errno.ECANCELED

    def tell(self) -> bool:
        """Whoever waits for what has ended by now, once for each part; whether that is all."""
        if self._results is None:
            return False
        results = self._results if self._replied is None else [*self._results, self._replied]
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


def _replied(reply: Reply) -> int:
    try:
        return os.write(reply.fd, reply.data)
    except OSError as error:
        return -(error.errno or errno.EIO)
