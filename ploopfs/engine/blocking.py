"""The calls to the operating system, on an open file, that may wait for its storage as long as that likes.

Whoever calls is a thread of its own. Knows nothing of whose file it is; what fails is an OSError.
"""

import ctypes
import errno
import os

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_SYNC_FILE_RANGE_WRITE = 2
_NO_DSYNC = frozenset({errno.EOPNOTSUPP, errno.EINVAL})
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def read_fully(fd: int, offset: int, data: bytearray) -> bytearray:
    """Fills `data`, which is shorter afterwards if the file ends."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            view.release()
            del data[done:]
            break
        done += count
    return data


def read_from_storage(fd: int, offset: int, data: bytearray) -> bytearray:
    """Past the page cache. Buffered, and with the pages dropped first, as O_DIRECT would want an alignment of some."""
    start = offset - offset % _PAGE_BYTES
    end = -(-(offset + len(data)) // _PAGE_BYTES) * _PAGE_BYTES
    os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)
    return read_fully(fd, offset, data)


def write_fully(fd: int, offset: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count


def write_through(fd: int, offset: int, data: bytes) -> None:
    """And what is needed to find it: it alone is flushed, and the size of the file."""
    try:
        os.pwritev(fd, [data], offset, os.RWF_DSYNC)
    except OSError as error:
        if error.errno not in _NO_DSYNC:
            raise
        os.fdatasync(fd)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def start_writeback(fd: int) -> None:
    _libc.sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)  # what it fails with, the next fsync says


def punch(fd: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
