"""What happens to memory that is free again: the process keeps some of it for the next request.

Without this the C library gives back what large requests have used, and the next ones take it anew, a page fault for
each 4 KiB: 37 % of the CPU time of reads of 1 MiB, 18 % of that of writes (fio, depth 4). Knows nothing of who uses it.
"""

import ctypes
import gc

from ploopfs.bounds import KEPT_MEMORY_MIB, MAX_TRANSFER_BYTES, MIB

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENAS = -8  # M_ARENA_MAX
_HIGHEST_MMAP_THRESHOLD_BYTES = 32 * MIB
"""glibc takes no more (mallopt(3)); larger pieces are mapped one by one, and given back."""


_OBJECTS_BETWEEN = 200_000
"""New ones less those that went; the interpreter's own is 700."""


READ_ROOM = memoryview(bytearray(MAX_TRANSFER_BYTES))
"""For the bytes of a read that is answered before anything else is read."""


def keep_freed_memory() -> None:
    """Nothing, where the C library is none that has mallopt(3)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _HIGHEST_MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_MEMORY_MIB * MIB)
        # What one thread has freed any other uses again, as long as it is in a cache: with both fuses in 12 % more
        # writes of 1 MiB, 7 % less CPU time for those of 4 KiB at depth 16.
        mallopt(_M_ARENAS, 1)


def collect_seldom() -> None:
    """What is there now is looked at no more. Requests leave no cycles, but enough objects for a search after every
    fiftieth, through all that waits to be flushed: 21 % of the CPU time of writes of 4 KiB at depth 16."""
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN)
