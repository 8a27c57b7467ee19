"""Many devices in one tree: how long it takes until all serve, what each costs in memory, how fast the tree is read.

Measured from outside, on a real mount. Invariant: what is compared with the kernel's own sysfs, and with what a FUSE
file system in C makes of that, is read by the same program in the same minute, as many files, so that the machine is
the same for all.
"""

import glob
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import TypeVar

from ploopfs.engine.create import create_image
from ploopfs.image.header import DEFAULT_CLUSTER_SECTORS, SECTOR_BYTES, V2
from tests.bench.images import settle
from tests.mounted.daemon import HANG_S, Daemon, device, opened, serving
from tests.mounted.storage import Bindfs
from tests.soak.measure import private_bytes

Tell = Callable[[str], None]
T = TypeVar("T")

DAY_S = 24 * 3600
CONCURRENT_CAT = 1000
"""Files of one cat(1), so that starting it is no part of a file's time."""
REPEATS = 5
WALKED = 5
"""Devices of which every file is looked at: a tree of a thousand has a quarter of a million."""
PLAIN = ("rotational", "nr_requests", "read_ahead_kb", "logical_block_size", "max_sectors_kb", "add_random")
"""Attributes of the kernel's queues that are as cheap to show as ours."""


@dataclass(frozen=True, slots=True)
class Tree:
    """What was measured of a tree with so many devices. Times are in seconds, sizes in bytes."""

    devices: int
    ready_s: float
    """From the start of the process until it says that the tree is served."""
    serving_s: float
    """Until each disk has answered a read as well."""
    start_bytes: int
    """Of memory that nobody else has, then."""
    walked_bytes: int
    """And when every file of so many devices (`walked`) was read once."""
    walked: int
    walk_s: float
    ls_s: float
    lsblk_s: float
    cat: "Beside"
    """Of one `queue/standby` among all, by one cat(1)."""
    read: "Beside"
    """The same by open(2), read(2) and close(2) alone."""
    end_s: float


@dataclass(frozen=True, slots=True)
class Beside:
    """Seconds per file: of our tree, of the kernel's own sysfs, and of that behind bindfs, which is a FUSE file system
    too, and in C."""

    ours_s: float
    kernel_s: float
    bindfs_s: float


def make_images(place: Path, count: int, size_bytes: int, tell: Tell) -> list[Path]:
    """New ones, which are on the disk as a whole: what is not, the mount would have to write."""
    place.mkdir()
    first = place / "0.hds"
    create_image(
        str(first), size_sectors=size_bytes // SECTOR_BYTES, cluster_sectors=DEFAULT_CLUSTER_SECTORS, version=V2
    )
    images = [first]
    for number in range(1, count):
        tell(f"making image {number + 1} of {count}")
        images.append(Path(copyfile(first, place / f"{number}.hds")))
        settle(images[-1])
    return images


def measure_tree(place: Path, images: Sequence[Path], tell: Tell, options: Sequence[str] = ()) -> Tree:
    """A tree with a device for each image."""
    place.mkdir()
    count = len(images)
    devices = [device(image, f"ploop{number}") for number, image in enumerate(images)]
    tell(f"mounting {count} devices")
    started_s = time.perf_counter()
    with serving(place, *devices, options=["--log-level", "warning", *options], life_s=DAY_S) as daemon:
        ready_s = time.perf_counter() - started_s
        _read_all_disks(daemon, count)
        serving_s = time.perf_counter() - started_s
        start_bytes = private_bytes(daemon.process.pid)
        walked = min(count, WALKED)
        tell(f"reading every file of {walked} devices")
        walk_s, _ = _timed(lambda: _walk([daemon.attribute("", f"ploop{number}") for number in range(walked)]))
        walked_bytes = private_bytes(daemon.process.pid)
        tell(f"reading a tree of {count} devices")
        ours = [str(daemon.attribute("queue/standby", f"ploop{number}")) for number in range(count)]
        ls_s, _ = _timed(lambda: _run("ls", "-l", str(daemon.mountpoint / "sys/block"), str(daemon.mountpoint / "dev")))
        lsblk_s, listed = _timed(lambda: _run("lsblk", "--sysroot", str(daemon.mountpoint), "--noheadings", "--raw"))
        assert len(listed.splitlines()) == count, listed
        theirs = kernels_own(count)
        with _behind_bindfs(place / "bindfs", theirs) as behind:
            cat = _by_turns(_cat, ours, theirs, behind)
            read = _by_turns(_read_each, ours, theirs, behind)
        ending_s = time.perf_counter()
        assert daemon.end() == 0, daemon.log
        end_s = time.perf_counter() - ending_s
    return Tree(
        count, ready_s, serving_s, start_bytes, walked_bytes, walked, walk_s, ls_s, lsblk_s, cat, read, end_s
    )


def kernels_own(count: int) -> list[str]:
    """So many readable attributes of the queues of the system's own disks, again and again if it has fewer."""
    found = sorted(path for name in PLAIN for path in glob.glob(f"/sys/block/*/queue/{name}"))
    return (found * (count // len(found) + 1))[:count]


@contextmanager
def _behind_bindfs(place: Path, paths: Sequence[str]) -> Iterator[list[str]]:
    """The same files of /sys, as it shows them."""
    place.mkdir()
    sysfs = Bindfs(Path("/sys"), place)
    try:
        sysfs.mount()
        yield [str(place / os.path.relpath(path, sysfs.bricks)) for path in paths]
    finally:
        sysfs.close()


Read = Callable[[Sequence[str]], object]


def _by_turns(read: Read, *sides: Sequence[str]) -> Beside:
    """The fastest time of each: what is slower was held up by something else."""
    fastest = [float("inf")] * len(sides)
    for _ in range(REPEATS):
        for side, paths in enumerate(sides):
            taken_s, _ = _timed(lambda paths=paths: read(paths))  # type: ignore[misc]
            fastest[side] = min(fastest[side], taken_s / len(paths))
    return Beside(*fastest)


def _read_all_disks(daemon: Daemon, count: int) -> None:
    for number in range(count):
        with opened(daemon.disk(f"ploop{number}"), os.O_RDONLY) as fd:
            assert len(os.pread(fd, 4096, 0)) == 4096


def _walk(devices: Sequence[Path]) -> None:
    for device_directory in devices:
        for directory, _, names in os.walk(device_directory):
            for name in names:
                with suppress(OSError), opened(Path(directory) / name, os.O_RDONLY | os.O_NONBLOCK) as fd:
                    os.read(fd, 4096)


def _cat(paths: Sequence[str]) -> None:
    for start in range(0, len(paths), CONCURRENT_CAT):
        _run("cat", *paths[start : start + CONCURRENT_CAT])


def _read_each(paths: Sequence[str]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=True)
    return done.stdout


def _timed(what: Callable[[], T]) -> tuple[float, T]:
    started_s = time.perf_counter()
    result = what()
    return time.perf_counter() - started_s, result
