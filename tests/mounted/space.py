"""fallocate(2), of which Python has mode 0 alone, and lseek(2) over data and holes."""

import ctypes
import os
from pathlib import Path

from tests.mounted.daemon import errno_of, opened

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
PUNCH = PUNCH_HOLE | KEEP_SIZE
"""The kernel takes no hole without KEEP_SIZE."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def runs_of_data(path: Path) -> list[tuple[int, int]]:
    """(start, end) of each."""
    runs, end, at = [], path.stat().st_size, 0
    with opened(path, os.O_RDONLY) as fd:
        while at < end and errno_of(os.lseek, fd, at, os.SEEK_DATA) == "success":
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
            runs.append((start, at))
        assert errno_of(os.lseek, fd, end, os.SEEK_DATA) == errno_of(os.lseek, fd, end, os.SEEK_HOLE) == "ENXIO"
    return runs
