"""Bytes of a top's file that are to read as zeroes: a hole where the storage can make one, else written.

Knows nothing of maps.
"""

import errno

import trio

from ploopfs.engine.delta import Delta
from ploopfs.errors import BackendError

_CANNOT_PUNCH = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})

_PIECE_BYTES = 1 << 20


async def scrub(top: Delta, offset: int, length: int) -> None:
    """Of a cluster that is about to be somebody's: with space of its own where that is taken ahead."""
    await (write_zeroes(top, offset, length) if top.preallocates else make_zero(top, offset, length))


async def make_zero(top: Delta, offset: int, length: int) -> None:
    if not await punch_hole(top, offset, length):
        await write_zeroes(top, offset, length)


async def punch_hole(top: Delta, offset: int, length: int) -> bool:
    """False: the storage cannot."""
    try:
        await top.punch(offset, length)
    except BackendError as error:
        if error.errno not in _CANNOT_PUNCH:
            raise
        return False
    return True


async def write_zeroes(top: Delta, offset: int, length: int) -> None:
    for start in range(0, length, _PIECE_BYTES):
        await top.write(offset + start, bytes(min(_PIECE_BYTES, length - start)))
        await trio.lowlevel.checkpoint()
