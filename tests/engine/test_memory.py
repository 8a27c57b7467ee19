"""Memory that is free again, seen from outside: how many pages the kernel had to give anew."""

import subprocess
import sys

from ploopfs.bounds import MIB

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


def faults(how: str, count: int, size: int, where: str = "main") -> int:
    """In ten rounds of taking so many pieces of that size, and giving them back."""
    command = [sys.executable, "-c", SCRIPT, how, str(count), str(size), where]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_what_large_requests_have_used_is_used_again_up_to_the_bound() -> None:
    assert faults("kept", 16, MIB) < 16 * 256
    assert faults("kept", 256, MIB) > 256 * 256 // 2, "more than the bound is given back"


def test_what_one_thread_has_used_another_uses_again() -> None:
    assert faults("kept", 4096, 4096, "thread") < 4096 // 2
