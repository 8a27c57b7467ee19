"""One very large device: what its map costs in memory, and how long requests wait while its top is replaced.

Measured from outside, on a real mount. Invariant: the images are what they say: every entry of a full map names a
cluster of its own, which lies within the file, though as a hole.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

import numpy as np

from ploopfs.engine.create import create_image
from ploopfs.image.header import DEFAULT_CLUSTER_SECTORS, HEADER_BYTES, SECTOR_BYTES, V2
from tests.mounted.daemon import Daemon, device, opened, serving
from tests.scale.many import DAY_S, Tell
from tests.soak.measure import private_bytes

CLUSTER_BYTES = DEFAULT_CLUSTER_SECTORS * SECTOR_BYTES
BLOCK_BYTES = 4096
READERS = 4


@dataclass(frozen=True, slots=True)
class MapMemory:
    """Of a device with one delta, and with two. In bytes for each cluster of the disk."""

    clusters: int
    alone_bytes: float
    stacked_bytes: float


@dataclass(frozen=True, slots=True)
class Replaced:
    """Of some replacements of a top by another with as many entries. The longest wait is of any read that was under way
    or came meanwhile; without one it is what reads of this machine take now and then anyway."""

    entries: int
    times: int
    whole_s: float
    """From one event to the other, the median."""
    longest_wait_s: float
    """The longest wait of each, the median."""
    worst_wait_s: float
    """Of all."""
    usual_wait_s: float
    """The longest in as much time without a replacement."""
    errors: int


def full_image(path: Path, entries: int) -> Path:
    """Every cluster of the disk has one of the file, and none was ever written: the file has no more than its map."""
    header = create_image(
        str(path),
        size_sectors=entries * DEFAULT_CLUSTER_SECTORS,
        cluster_sectors=DEFAULT_CLUSTER_SECTORS,
        version=V2,
    )
    numbers = np.arange(header.first_cluster, header.first_cluster + entries, dtype="<u4")
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(numbers.tobytes())
        file.truncate((header.first_cluster + entries) * CLUSTER_BYTES)
    return path


def measure_map(place: Path, clusters: int, tell: Tell, options: Sequence[str] = ()) -> MapMemory:
    """The difference to a small device, with the top's map in memory and, below it, another full one."""
    place.mkdir()
    tell(f"making images of {clusters} clusters")
    small, lower = full_image(place / "small.hds", 16), full_image(place / "lower.hds", clusters)
    top = full_image(place / "top.hds", clusters)
    held = []
    for number, deltas in enumerate(([small], [top], [lower, top])):
        tell(f"serving {len(deltas)} of them")
        own = place / str(number)
        own.mkdir()
        with serving(own, device(deltas), options=["--log-level", "warning", *options], life_s=DAY_S) as daemon:
            with opened(daemon.disk(), os.O_RDONLY) as fd:
                os.pread(fd, BLOCK_BYTES, 0)
            held.append(private_bytes(daemon.process.pid))
            assert daemon.end() == 0, daemon.log
    return MapMemory(clusters, *((each - held[0]) / clusters for each in held[1:]))


def measure_replace(
    place: Path, entries: int, times: int, tell: Tell, options: Sequence[str] = (), *, depth: int = 2
) -> Replaced:
    """The top of a stack of `depth` by another image of as many entries and back, while readers ask all the time."""
    place.mkdir()
    tell(f"making images of {entries} entries")
    deltas = [full_image(place / f"{level}.hds", entries) for level in range(depth)]
    # Made anew: whoever copies such a file writes a TiB of zeroes.
    tops = [deltas[-1], full_image(place / "other.hds", entries)]
    waits, wholes, errors = [], [], 0
    with serving(place, device(deltas), options=["--log-level", "warning", *options], life_s=DAY_S) as daemon:
        with reading(daemon, entries * CLUSTER_BYTES) as readers:
            for number in range(times):
                tell(f"replacing a top of {entries} entries: {number + 1} of {times}")
                readers.begin()
                daemon.store("ploopfs/replace_delta", str(tops[(number + 1) % 2]))
                waits.append(readers.longest_s())
                wholes.append(_whole_s(daemon))
            # As much time without one.
            readers.begin()
            readers.wait_s(sum(wholes))
            usual = readers.longest_s()
            errors = readers.errors
        assert daemon.end() == 0, daemon.log
    return Replaced(entries, times, median(wholes), median(waits), max(waits), usual, errors)


def _whole_s(daemon: Daemon) -> float:
    events = [event for event in daemon.events() if event["event"] in ("replace_begin", "replace_end")]
    begin, end = events[-2:]
    assert (begin["event"], end["event"], end["result"]) == ("replace_begin", "replace_end", "ok"), events
    return float(end["time"]) - float(begin["time"])


class Readers:
    """Threads that read blocks all the while; the longest wait counts from `begin`, of reads under way then too."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.errors = 0
        self._fd, self._blocks = fd, size_bytes // BLOCK_BYTES
        self._longest_s = [0.0] * READERS
        self._started_s = [time.perf_counter()] * READERS
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(number,)) for number in range(READERS)]

    def begin(self) -> None:
        self._longest_s[:] = [0.0] * READERS

    def longest_s(self) -> float:
        """Who waits just now has waited too."""
        now_s = time.perf_counter()
        return max(*self._longest_s, *(now_s - started_s for started_s in self._started_s))

    def wait_s(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _read(self, number: int) -> None:
        random = Random(number)
        while not self._stopping.is_set():
            self._started_s[number] = time.perf_counter()
            try:
                data = os.pread(self._fd, BLOCK_BYTES, random.randrange(self._blocks) * BLOCK_BYTES)
                self.errors += len(data) != BLOCK_BYTES
            except OSError:
                self.errors += 1
            waited_s = time.perf_counter() - self._started_s[number]
            self._longest_s[number] = max(self._longest_s[number], waited_s)


@contextmanager
def reading(daemon: Daemon, size_bytes: int) -> Iterator[Readers]:
    with opened(daemon.disk(), os.O_RDONLY) as fd:
        readers = Readers(fd, size_bytes)
        readers.start()
        try:
            yield readers
        finally:
            readers.stop()
