"""What a server answers in the kernel's FUSE protocol: values become bytes.

Sans-IO, of the same ABI as `protocol`. Knows no disk. Invariant: the length in a header is that of all its bytes.
"""

import mmap
import stat
from struct import Struct
from typing import NamedTuple

from ploopfs.blockfuse.protocol import LEAST_MINOR, MAJOR, MINOR, NS, Init
from ploopfs.bounds import DISK_BACKGROUND, MAX_TRANSFER_BYTES
from ploopfs.engine.file import Buffer
from ploopfs.errors import MountError
from ploopfs.sysfs.nodes import Shown

HEADER = Struct("=IiQ")  # struct fuse_out_header: len, error, unique
HEADER_BYTES = HEADER.size

# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
# map_alignment, flags2
_INIT = Struct("=IIIIHHIIHHI28x")
_ATTR = Struct("=QI4xQQQqqqIIIIIIIIII")  # attr_valid and its nsec, struct fuse_attr
_OPEN = Struct("=QI4x")
_COUNT = Struct("=I4x")
_WRITTEN = Struct("=IiQI4x")  # with its header
_STATFS = Struct("=QQQQQIII28x")  # five counts, bsize, namelen, frsize
_IOCTL = Struct("=iIII")
_NUMBER = Struct("=Q")

ASYNC_READ, BIG_WRITES, ASYNC_DIO, PARALLEL_DIROPS, MAX_PAGES = (1 << bit for bit in (0, 5, 15, 18, 22))
WANTED = ASYNC_READ | BIG_WRITES | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES
"""Without ASYNC_DIO the kernel waits for each part of an asynchronous request: depth 16 is then depth 1. Not
ATOMIC_O_TRUNC: with it the kernel, and so an asynchronous reader, takes the file for empty until it asks again."""

DIRECT_IO, PARALLEL_DIRECT_WRITES = 1 << 0, 1 << 6
HOW_OPEN = DIRECT_IO | PARALLEL_DIRECT_WRITES
"""The page cache must neither answer for a device nor acknowledge for it; writers do not wait for each other."""

_BLOCK_BYTES = 4096
_NAME_MAX = 255
_TIME_GRANULARITY_NS = 1


class Attributes(NamedTuple):
    """What stat(2) says of the file, a regular one. `number` is the inode's."""

    number: int
    size_bytes: int
    allocated_bytes: int
    shown: Shown


def header(unique: int, body_bytes: int) -> bytes:
    """Of an answer whose body the caller has."""
    return HEADER.pack(HEADER_BYTES + body_bytes, 0, unique)


def unique_of(answer: Buffer) -> int:
    """Of one that begins with its header."""
    unique: int
    _length, _error, unique = HEADER.unpack_from(answer)
    return unique


def failure(unique: int, number: int) -> bytes:
    return HEADER.pack(HEADER_BYTES, -number, unique)


def agreed(init: Init) -> bytes:
    """What this kernel and we both can. Raises MountError for one that is too old."""
    if (init.major, init.minor) < (MAJOR, LEAST_MINOR):
        raise MountError(f"the kernel speaks FUSE {init.major}.{init.minor}, at least {MAJOR}.{LEAST_MINOR} is needed")
    return _INIT.pack(
        MAJOR,
        MINOR,
        init.max_readahead,
        init.flags & WANTED,
        DISK_BACKGROUND,
        DISK_BACKGROUND * 3 // 4,
        MAX_TRANSFER_BYTES,
        _TIME_GRANULARITY_NS,
        MAX_TRANSFER_BYTES // mmap.PAGESIZE,
        0,
        0,
    )


def attributes(of: Attributes) -> bytes:
    """Valid for no time at all: they change without a request."""
    shown = of.shown
    times_ns = (shown.atime_ns, shown.mtime_ns, shown.ctime_ns)
    seconds, nanoseconds = zip(*(divmod(time_ns, NS) for time_ns in times_ns), strict=True)
    blocks = of.allocated_bytes // 512
    return _ATTR.pack(
        *(0, 0, of.number, of.size_bytes, blocks, *seconds, *nanoseconds),
        *(stat.S_IFREG | shown.mode, 1, shown.uid, shown.gid, 0, _BLOCK_BYTES, 0),
    )


def opened(fh: int) -> bytes:
    return _OPEN.pack(fh, HOW_OPEN)


def count(written: int) -> bytes:
    """Of the bytes that were written."""
    return _COUNT.pack(written)


def written(unique: int, count: int) -> bytes:
    """With its header."""
    return _WRITTEN.pack(_WRITTEN.size, 0, unique, count)


def statistics() -> bytes:
    """All counts are 0, as in sysfs. That it answers at all makes a loop device believe in discard."""
    return _STATFS.pack(0, 0, 0, 0, 0, _BLOCK_BYTES, _NAME_MAX, _BLOCK_BYTES)


def ioctl_result(output: bytes) -> bytes:
    return _IOCTL.pack(0, 0, 0, 0) + output


def number(value: int) -> bytes:
    """An offset, or a size."""
    return _NUMBER.pack(value)
