"""Where requests are read: what the kernel copies goes from page to page."""

import ctypes
import mmap

from ploopfs.blockfuse.buffers import Buffers
from ploopfs.blockfuse.protocol import TRANSFER_BYTES
from ploopfs.bounds import MAX_TRANSFER_BYTES


def test_the_data_of_every_write_begin_with_a_page() -> None:
    buffers = Buffers()
    buffers.prepare()
    seen = []
    for _ in range(8):
        assert len(buffers.current) == TRANSFER_BYTES + MAX_TRANSFER_BYTES
        seen.append(buffers.current)
        assert (ctypes.addressof(ctypes.c_char.from_buffer(buffers.current)) + TRANSFER_BYTES) % mmap.PAGESIZE == 0
        buffers.leave()
    assert len({ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in seen}) == 8, "each is its own"
