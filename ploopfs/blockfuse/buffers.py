"""Where requests are read, and where the data of a large write stay.

Knows nothing of what they say. Invariant: what was handed out is nobody's to write to any more.
"""

import mmap

import numpy as np

from ploopfs.blockfuse.protocol import TRANSFER_BYTES
from ploopfs.bounds import MAX_TRANSFER_BYTES
from ploopfs.engine.file import Buffer

_BUFFER_BYTES = TRANSFER_BYTES + MAX_TRANSFER_BYTES
"""The kernel insists on room for the largest request before it gives any."""


class Buffers:
    """Of all connections: each has dealt with what it has read before another one reads. A buffer of its own would cost
    each disk a MiB, whether anybody uses it or not."""

    def __init__(self) -> None:
        self.current = memoryview(b"")

    def prepare(self) -> None:
        self.current = self.current or _buffer()

    def kept(self, data: memoryview) -> Buffer:
        """This part of `current`, for as long as anybody refers to it. What is large is not copied, and another buffer
        takes the place of what holds it."""
        if 2 * len(data) <= MAX_TRANSFER_BYTES:
            return bytes(data)
        self.leave()
        return data

    def leave(self) -> None:
        """To whoever refers to it; the next request is read elsewhere."""
        self.current = _buffer()


def _buffer() -> memoryview:
    # Not of zeroes: to fill it with them takes 15 µs, a twentieth of a write of 1 MiB. And the data of a write begin
    # with a page, else each page of whoever writes is copied into two of these: 6 % fewer writes of 1 MiB.
    space = np.empty(_BUFFER_BYTES + mmap.PAGESIZE, np.uint8)
    start = -(space.ctypes.data + TRANSFER_BYTES) % mmap.PAGESIZE
    return space.data[start : start + _BUFFER_BYTES]


BUFFERS = Buffers()
