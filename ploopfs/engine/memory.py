"""What happens to memory that is free again: the process keeps some of it for the next request, in huge pages.

Without this the C library gives back what large requests have used, and the next ones take it anew, a page fault for
each 4 KiB: 37 % of the CPU time of reads of 1 MiB, 18 % of that of writes (fio, depth 4). And to copy a MiB the kernel
would look up 256 pages, each of them twice in a virtual machine: with huge ones a third more reads of 1 MiB, 16 to 22 %
more writes. Knows nothing of who uses it.
"""

import ctypes
import gc
import mmap
import threading
from contextlib import suppress
from dataclasses import dataclass

from ploopfs.bounds import KEPT_MEMORY_MIB, MAX_TRANSFER_BYTES, MIB

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENAS = -8  # M_ARENA_MAX
_HIGHEST_MMAP_THRESHOLD_BYTES = 32 * MIB
"""glibc takes no more (mallopt(3)); larger pieces are mapped one by one, and given back."""
_HUGE_BYTES = 2 * MIB
"""Of a huge page; where they are larger nothing is gained."""
_PIECE_BYTES = 16 * MIB
_PIECES = KEPT_MEMORY_MIB * MIB // _PIECE_BYTES * 3 // 4
"""Not all that is kept: then what was taken for them alone would be given back when it is free."""

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, from Linux 5.14 on (madvise(2)): as if somebody wrote there, and left what is there as it is."""

_OBJECTS_BETWEEN = 200_000
"""New ones less those that went; the interpreter's own is 700."""


def _mapped(length: int) -> memoryview:
    """Of its own, for good."""
    huge_pages = -(-length // _HUGE_BYTES)
    space = mmap.mmap(-1, (huge_pages + 1) * _HUGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        space.madvise(mmap.MADV_HUGEPAGE)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(space)) % _HUGE_BYTES
    return memoryview(space)[start : start + length]


READ_ROOM = _mapped(MAX_TRANSFER_BYTES)
"""For the bytes of a read that is answered before anything else is read."""
ZEROES = memoryview(mmap.mmap(-1, MAX_TRANSFER_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ))
"""Nobody has ever written there, so that all of it is the kernel's one page of zeroes, which every cache has."""


@dataclass(slots=True)
class _Span:
    start: int = 0
    stop: int = 0


_UNUSED = _Span()
"""What the heap grew by at once, whole huge pages, less what is expected to be used."""

_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def expect(length: int) -> threading.Thread | None:
    """So much more of the heap will be used soon, and a thread has the kernel find the memory. In a virtual machine
    that has to ask its host for it the first use of a huge page takes 5 ms: a quarter more writes of 4 KiB at depth 16
    that allocate, as long as what is kept of them is new memory. That thread; None if there is nothing to do. To be
    called by one thread at a time."""
    start = _UNUSED.start
    stop = min(start + -(-length // _HUGE_BYTES) * _HUGE_BYTES, _UNUSED.stop)
    if start >= stop:
        return None
    _UNUSED.start = stop
    thread = threading.Thread(target=_find, args=(start, stop), name="memory", daemon=True)
    with suppress(RuntimeError):  # no more threads: it is found by whoever uses it
        thread.start()
    return thread


def _find(start: int, stop: int) -> None:
    """One page at a time: whoever maps anything waits meanwhile. What the kernel refuses is as it was."""
    for page in range(start, stop, _HUGE_BYTES):
        if _madvise(page, _HUGE_BYTES, _POPULATE_WRITE):
            return


def keep_freed_memory() -> None:
    """Nothing, where the C library is none that has mallopt(3). To be called while there is one thread."""
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _HIGHEST_MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_MEMORY_MIB * MIB)
        # What one thread has freed any other uses again, as long as it is in a cache: with both fuses in 12 % more
        # writes of 1 MiB, 7 % less CPU time for those of 4 KiB at depth 16.
        mallopt(_M_ARENAS, 1)
        _take_heap_in_huge_pages(libc)


def _take_heap_in_huge_pages(libc: ctypes.CDLL) -> None:
    """What the heap grows by here, and keeps, as it is free at once; nothing of it is there before it is used, or
    expected to be."""
    libc.sbrk.argtypes, libc.sbrk.restype = (ctypes.c_ssize_t,), ctypes.c_void_p
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes = (ctypes.c_void_p,)
    start = -(-libc.sbrk(0) // mmap.PAGESIZE) * mmap.PAGESIZE
    pieces = [libc.malloc(_PIECE_BYTES) for _ in range(_PIECES)]
    end = libc.sbrk(0)
    _madvise(start, end - start, mmap.MADV_HUGEPAGE)  # what it refuses stays in small ones
    for piece in pieces:
        libc.free(piece)
    _UNUSED.start, _UNUSED.stop = -(-start // _HUGE_BYTES) * _HUGE_BYTES, end // _HUGE_BYTES * _HUGE_BYTES


def collect_seldom() -> None:
    """What is there now is looked at no more. Requests leave no cycles, but enough objects for a search after every
    fiftieth, through all that waits to be flushed: 21 % of the CPU time of writes of 4 KiB at depth 16."""
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN)
