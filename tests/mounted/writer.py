"""A user of the disk with one open file all along, who notes what was acknowledged."""

import os
from random import Random

from tests.mounted.daemon import errno_of
from tests.mounted.disks import MIB, Disk

LONGEST_BYTES = 20_000


class Writer:
    """Random writes, at no alignment; every one that returns is in `disk.content`."""

    def __init__(self, fd: int, disk: Disk, seed: int = 7) -> None:
        self.fd, self._disk, self._random = fd, disk, Random(seed)
        self._refused: tuple[int, bytes] | None = None

    def write(self, count: int) -> None:
        """The refused write first, since nobody knows how much of it was done."""
        if self._refused is not None:
            self._acknowledge(*self._refused)
            self._refused = None
        for number in range(count):
            self._acknowledge(*self._next())
            if number % 16 == 0:
                os.fsync(self.fd)

    def write_unflushed(self, count: int) -> None:
        for _ in range(count):
            self._acknowledge(*self._next())

    def errno_of_write(self) -> str:
        """Of one write that is to be refused; it is repeated later."""
        self._refused = self._refused or self._next()
        offset, data = self._refused
        return errno_of(os.pwrite, self.fd, data, offset)

    def assert_all_there(self) -> None:
        """Compared piece by piece: the difference of two disks is no message. Where a write was refused each byte may
        be the old one or the new one."""
        for start in range(0, self._disk.size_bytes, MIB):
            found = os.pread(self.fd, MIB, start)
            assert found == self._expected(start, found), f"the MiB at {start} differs"

    def _expected(self, start: int, found: bytes) -> bytearray:
        expected = self._disk.content[start : start + MIB]
        offset, data = self._refused or (0, b"")
        for place in range(max(start, offset), min(start + MIB, offset + len(data))):
            if found[place - start] == data[place - offset]:
                expected[place - start] = data[place - offset]
        return expected

    def _acknowledge(self, offset: int, data: bytes) -> None:
        assert os.pwrite(self.fd, data, offset) == len(data)
        self._disk.content[offset : offset + len(data)] = data

    def _next(self) -> tuple[int, bytes]:
        length = self._random.randrange(1, LONGEST_BYTES)
        return self._random.randrange(self._disk.size_bytes - length), self._random.randbytes(length)
