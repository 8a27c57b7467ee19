"""Memory that is free again, seen from outside: how many pages the kernel had to give anew."""

import subprocess
import sys

SCRIPT = """
import resource, sys
from ploopfs.engine.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()

def several():
    return [bytearray(1 << 20) for _ in range(int(sys.argv[2]))]

several()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    several()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, mib: int) -> int:
    """In ten rounds of taking so many MiB and giving them back."""
    command = [sys.executable, "-c", SCRIPT, how, str(mib)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_what_large_requests_have_used_is_used_again_up_to_the_bound() -> None:
    assert faults("kept", 16) < 16 * 256
    assert faults("kept", 256) > 256 * 256 // 2, "more than the bound is given back"
