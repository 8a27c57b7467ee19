"""Memory that is free again, seen from outside: how many pages the kernel had to give anew, and of which size."""

import ast
import ctypes
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ploopfs.bounds import KEPT_MEMORY_MIB, MAX_TRANSFER_BYTES, MIB
from ploopfs.engine import memory
from ploopfs.engine.memory import READ_ROOM
from tests.smaps import in_huge_pages

LARGE = """
import ctypes
from ploopfs.engine.memory import keep_freed_memory
keep_freed_memory()
kept = [bytearray(1 << 20) for _ in range(64)]
print(*(ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in kept))
print(open("/proc/self/smaps").read(), end="")
"""

SCRIPT = """
import resource, sys, threading
from ploopfs.engine.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()

count, size = int(sys.argv[2]), int(sys.argv[3])

def several():
    return [bytearray(size) for _ in range(count)]

def rounds():
    for _ in range(10):
        several()

several()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
if sys.argv[4] == "thread":
    thread = threading.Thread(target=rounds)
    thread.start()
    thread.join()
else:
    rounds()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

EXPECTED = """
import os
from ploopfs.engine.memory import expect, keep_freed_memory

def memory():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def growth(work):
    before = memory()
    work()
    return memory() - before

def all_that_is_left():
    expect(1 << 40).join()

kept = []
found = [expect(1)]
keep_freed_memory()
found.append(growth(lambda: expect((16 << 20) - 1).join()))
found.append(growth(lambda: kept.extend(bytes([1]) * 4096 for _ in range(2048))))
found.append(growth(all_that_is_left))
found.append(expect(1))
print(found)
"""


def faults(how: str, count: int, size: int, where: str = "main") -> int:
    """In ten rounds of taking so many pieces of that size, and giving them back."""
    command = [sys.executable, "-c", SCRIPT, how, str(count), str(size), where]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_what_large_requests_have_used_is_used_again_up_to_the_bound() -> None:
    assert faults("kept", 16, MIB) < 16 * 256
    assert faults("kept", 256, MIB) > 256 * 256 // 2, "more than the bound is given back"


def test_what_one_thread_has_used_another_uses_again() -> None:
    assert faults("kept", 4096, 4096, "thread") < 4096 // 2


def test_large_pieces_lie_in_huge_pages() -> None:
    ended = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True, timeout=60)
    where, smaps = ended.stdout.split("\n", 1)
    addresses = sorted(map(int, where.split()))
    heap = max(in_huge_pages(smaps), key=len)
    assert len(heap) < KEPT_MEMORY_MIB * MIB, "what is free of it is not given back"
    before = [address for address in addresses if address < heap.start]
    assert len(before) < 16, "these have what was free of the heap as it was"
    assert addresses[-1] + MIB <= heap.stop


def test_memory_that_is_expected_is_there_before_it_is_used() -> None:
    ended = subprocess.run([sys.executable, "-c", EXPECTED], capture_output=True, text=True, check=True, timeout=60)
    of_none, found, used, rest, beyond = ast.literal_eval(ended.stdout)
    assert of_none is None, "nothing is the process's own to use"
    assert 13 * MIB < found < 18 * MIB, "some of it may have been in use"
    assert used < 2 * MIB, "8 MiB in pieces of a page"
    assert KEPT_MEMORY_MIB * MIB // 2 < found + rest < KEPT_MEMORY_MIB * MIB
    assert beyond is None, "there is no more than what is kept"


def test_no_thread_for_memory_that_is_expected_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    unused = memory._Span(4 * MIB, 8 * MIB)
    monkeypatch.setattr(memory, "_UNUSED", unused)
    monkeypatch.setattr(threading.Thread, "start", start)
    memory.expect(1)
    assert (unused.start, unused.stop) == (6 * MIB, 8 * MIB)


def test_a_large_read_has_one_huge_page() -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(READ_ROOM))
    assert address % (2 * MIB) == 0
    assert len(READ_ROOM) == MAX_TRANSFER_BYTES
    (span,) = (each for each in in_huge_pages(Path("/proc/self/smaps").read_text()) if address in each)
    assert address + 2 * MIB <= span.stop
