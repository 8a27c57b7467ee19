"""Where requests are read, and where the data of a large write stay until it is done.

Knows nothing of what they say. Invariant: nobody writes to a buffer that a storage may yet read.
"""

from collections.abc import Awaitable
from typing import TypeVar

from ploopfs.blockfuse.protocol import TRANSFER_BYTES
from ploopfs.bounds import MAX_TRANSFER_BYTES, SPARE_BUFFERS
from ploopfs.engine.file import Buffer
from ploopfs.errors import PloopError

T = TypeVar("T")

_BUFFER_BYTES = TRANSFER_BYTES + MAX_TRANSFER_BYTES
"""The kernel insists on room for the largest request before it gives any."""


class Buffers:
    """Of all connections: each has dealt with what it has read before another one reads. A
    buffer of its own would cost each disk a MiB, whether anybody uses it or not."""

    def __init__(self) -> None:
        self.current = bytearray()
        self._spare: list[bytearray] = []

    def prepare(self) -> None:
        self.current = self.current or bytearray(_BUFFER_BYTES)

    def kept(self, data: memoryview) -> tuple[Buffer, bytearray | None]:
        """The data of a write for as long as it takes, and the buffer that they lie in, which is to be given back: a
        large one is not copied, and another buffer takes the place of what holds it."""
        if 2 * len(data) <= MAX_TRANSFER_BYTES:
            return bytes(data), None
        buffer, self.current = self.current, self._spare.pop() if self._spare else bytearray(_BUFFER_BYTES)
        return data, buffer

    async def until(self, work: Awaitable[T], buffer: bytearray | None) -> T:
        """Its result; the buffer is given back when it has one. What was given up may yet read it."""
        try:
            result = await work
        except PloopError:
            self.give_back(buffer)
            raise
        self.give_back(buffer)
        return result

    def give_back(self, buffer: bytearray | None) -> None:
        if buffer is not None and len(self._spare) < SPARE_BUFFERS:
            self._spare.append(buffer)


BUFFERS = Buffers()
