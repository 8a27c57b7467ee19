"""The memory of a daemon that serves, as the kernel has it mapped: one place for all threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ploopfs.bounds import KEPT_MEMORY_MIB
from tests.mounted.daemon import device, opened, serving, until
from tests.mounted.disks import MIB, make_disk
from tests.smaps import in_huge_pages, resident_bytes

pytestmark = pytest.mark.real

ARENA_BYTES = 64 * MIB
"""What glibc reserves for threads with memory of their own, at a multiple of that."""
WITH_A_THREAD = """
import threading
met = threading.Barrier(2)

def stay():
    kept = [bytearray(4096) for _ in range(100)]
    met.wait()
    met.wait()

threading.Thread(target=stay).start()
met.wait()
print(open("/proc/self/maps").read(), end="")
met.wait()
"""


def arenas(maps: str) -> list[str]:
    """Of threads: what is used of it is followed by all the rest, which is not to be touched yet."""
    found, used = [], ("", 0, 0)
    for line in maps.splitlines():
        span, mode = line.split()[:2]
        start, end = (int(number, 16) for number in span.split("-"))
        if (used[0], mode, used[2], end) == ("rw-p", "---p", start, used[1] + ARENA_BYTES) and not end % ARENA_BYTES:
            found.append(line)
        used = mode, start, end
    return found


def test_a_process_with_memory_for_each_thread_is_seen() -> None:
    command = [sys.executable, "-c", WITH_A_THREAD]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert len(arenas(ended.stdout)) == 1


def test_all_threads_of_a_daemon_share_one_place_for_their_memory(tmp_path: Path) -> None:
    """The one of the log begins before anything else is there, and does not have its own, for others to share."""
    disk = make_disk(tmp_path / "disk", size_bytes=4 * MIB)
    with serving(tmp_path, device(disk.directory)) as daemon:
        with opened(daemon.disk()) as fd:
            for number in range(100):
                os.pwrite(fd, bytes([number]) * 4096, 4096 * number)
        maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
        assert len(list(Path(f"/proc/{daemon.process.pid}/task").iterdir())) > 1
        assert arenas(maps) == []


def test_what_a_daemon_has_for_large_requests_lies_in_huge_pages(tmp_path: Path) -> None:
    """Its heap beyond what it began with, and the room for a read."""
    disk = make_disk(tmp_path / "disk", size_bytes=4 * MIB)
    with serving(tmp_path, device(disk.directory)) as daemon:
        spans = in_huge_pages(Path(f"/proc/{daemon.process.pid}/smaps").read_text())
        assert max(map(len, spans)) > KEPT_MEMORY_MIB * MIB // 2


def test_who_keeps_writes_has_the_memory_for_all_that_he_may_keep(tmp_path: Path) -> None:
    """But not with the first write: who makes no more has no use for it."""
    disk = make_disk(tmp_path / "disk", size_bytes=4 * MIB)
    with serving(tmp_path, device(disk.directory), limits={"unflushed_mib": 32}) as daemon:

        def heap_bytes() -> int:
            smaps = Path(f"/proc/{daemon.process.pid}/smaps").read_text()
            return resident_bytes(smaps, max(in_huge_pages(smaps), key=len))

        with opened(daemon.disk()) as fd:
            os.pwrite(fd, bytes([1]) * 4096, 0)
            assert heap_bytes() < 16 * MIB
            for number in range(200):
                os.pwrite(fd, bytes([number]) * 4096, 4096 * number)
            assert int(daemon.attribute("ploopfs/unflushed_bytes").read_text()) < 1 * MIB
            until(lambda: heap_bytes() >= 31 * MIB, "the memory is there")
