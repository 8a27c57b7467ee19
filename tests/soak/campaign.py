"""Each work of a soak on a daemon of its own, measured from a warm start to the end; and what that says.

Knows what is done and what is measured, and no terminal. Invariant: a verdict is on growth per operation, so that it
does not depend on how long the run was; what the kernel or the interpreter count exactly must not have grown at all.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.mounted.blocks import run
from tests.mounted.daemon import device, opened, serving, until
from tests.mounted.disks import MIB, assert_closed, make_disk
from tests.soak.inside import DAEMON, Asked
from tests.soak.measure import (
    Holds,
    Meter,
    Sample,
    differences,
    files_below,
    locks_below,
    loops_below,
    mounts_below,
    slope,
)
from tests.soak.works import VZ7_DEVICE, VZ9_DEVICE, Scene, Work, mounts

SAMPLES = 20
MOST_BLOCKS_PER_OPERATION = 0.02
"""An object that is left behind by each operation is at least one block; what the allocator keeps is a few hundred."""
LEAST_GROWN_BLOCKS = 1000
"""Below it they say nothing either: a task, or a cache that fills, has some hundreds."""
MOST_BYTES_PER_OPERATION = 16
LEAST_GROWTH_BYTES = 2 * MIB
"""Below it memory says nothing: free lists and arenas come and go."""
WARM_MOUNTS = 2
DAY_S = 24 * 3600

IDLE_TASKS = 16
ROUND = 32
"""What a work does in turn repeats after as many operations, or a divisor of it."""

Progress = Callable[[str, int, int], bool]
"""Is told what is done, how often it was, and how often it is to be; true if that is enough."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Of one work. `grown` is what the daemon holds more of than before; `leaks` says in words what is wrong,
    and is empty if nothing is."""

    work: str
    operations: int
    seconds: float
    grown: dict[str, int]
    blocks_per_operation: float
    bytes_per_operation: float
    private_bytes: tuple[int, int]
    leaks: list[str] = field(default_factory=list)
    traced: dict[str, int] = field(default_factory=dict)


@contextmanager
def scene_of(place: Path, *, traced: bool = False) -> Iterator[tuple[Scene, Meter]]:
    """A daemon that can be asked, with a device of each flavour and one that is no ploop."""
    disks = {name: make_disk(place / name, depth=2, size_bytes=16 * MIB) for name in (VZ7_DEVICE, VZ9_DEVICE)}
    tops = {name: [disk.top, Path(shutil.copyfile(disk.top, f"{disk.top}.other"))] for name, disk in disks.items()}
    raw = place / "xvda.raw"
    with raw.open("wb") as file:
        file.truncate(8 * MIB)
    devices = [
        device(disks[VZ7_DEVICE].deltas, VZ7_DEVICE),
        device(disks[VZ9_DEVICE].deltas, VZ9_DEVICE, flavour="vz9", dm_name="soak"),
        device([f"raw@{raw}"], "xvda", flavour="block", standby=False),
    ]
    reading, writing = os.pipe()
    try:
        command = (sys.executable, "-c", DAEMON, str(writing), "traced" if traced else "plain")
        options = ["--log-level", "error", "--log-file", os.devnull]
        with serving(place, *devices, options=options, command=command, pass_fds=[writing], life_s=DAY_S) as daemon:
            os.close(writing)
            writing = -1
            scene = Scene(daemon, tops, place)
            prime(scene)
            yield scene, Meter(Asked(daemon.process.pid, reading), daemon.process.pid, place)
            assert daemon.end() == 0
        for images in tops.values():
            for image in images:
                assert_closed(image)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def prime(scene: Scene) -> None:
    """What is made once and then kept: a node for every name, and as many idle tasks as the session keeps, which come
    by that many requests that wait at the same time; those of a disk too, whose connection is another one."""
    for _ in os.walk(scene.daemon.mountpoint):
        pass
    _wait_at_once(scene, scene.daemon.disk(VZ9_DEVICE))
    with _tree_alone(scene) as tree:
        _wait_at_once(scene, tree / "dev" / VZ9_DEVICE)


@contextmanager
def _tree_alone(scene: Scene) -> Iterator[Path]:
    """Without what is mounted in it: a disk there is the tree's own file."""
    place = scene.place / "tree"
    place.mkdir()
    run("mount", "--bind", "--make-private", scene.daemon.mountpoint, place)
    try:
        yield place
    finally:
        run("umount", place)
        place.rmdir()


def _wait_at_once(scene: Scene, disk: Path) -> None:
    with opened(disk) as fd, ThreadPoolExecutor(IDLE_TASKS) as threads:
        scene.daemon.store("ploopfs/suspend", "flush", VZ9_DEVICE)
        reads = [threads.submit(os.pread, fd, 512, 0) for _ in range(IDLE_TASKS)]
        until(lambda: scene.daemon.value("ploopfs/parked", VZ9_DEVICE) == str(IDLE_TASKS), "every read waits")
        scene.daemon.store("ploopfs/resume", "flush", VZ9_DEVICE)
        assert [len(read.result()) for read in reads] == [512] * IDLE_TASKS


def soak(
    name: str, work: Work, count: int, place: Path, *, traced: bool = False, progress: Progress = lambda *_: False
) -> Finding:
    """Do `work` `count` times, after a tenth of that to get warm. Raises what the work raises."""
    warm = max(2 * ROUND, count // 10)
    warm += -warm % ROUND
    count += -count % ROUND
    with scene_of(place, traced=traced) as (scene, meter):
        steps = work(scene)
        try:
            for number in range(warm):
                next(steps)
                progress(f"{name}: getting warm", number + 1, warm)
            first = meter.settled(0)
            samples = [first]
            for number in range(1, count + 1):
                next(steps)
                if progress(name, number, count) and number % ROUND == 0:
                    count = number
                    break
                if number % max(1, count // SAMPLES) == 0 and number < count:
                    samples.append(meter.sample(number))
            samples.append(meter.settled(count, first.holds))
        finally:
            steps.close()
    return judge(name, samples)


def judge(name: str, samples: list[Sample]) -> Finding:
    first, last = samples[0], samples[-1]
    # A thread or a task that was idle when it began may be gone: that is no leak.
    grown = {what: change for what, change in differences(first.holds, last.holds).items() if change > 0}
    blocks = slope(samples, lambda sample: sample.blocks)
    memory = slope(samples, lambda sample: sample.private_bytes)
    leaks = [f"{what}: {change:+}" for what, change in grown.items()]
    grown_blocks = last.blocks - first.blocks
    if blocks > MOST_BLOCKS_PER_OPERATION and grown_blocks > LEAST_GROWN_BLOCKS:
        leaks.append(f"{blocks:.3f} blocks of memory per operation")
    growth_bytes = last.private_bytes - samples[len(samples) // 2].private_bytes
    if memory > MOST_BYTES_PER_OPERATION and growth_bytes > LEAST_GROWTH_BYTES:
        leaks.append(f"{memory:.1f} bytes of memory per operation")
    return Finding(
        name,
        last.operations,
        last.seconds - first.seconds,
        grown,
        round(blocks, 5),
        round(memory, 3),
        (first.private_bytes, last.private_bytes),
        leaks,
        differences(first.traced, last.traced),
    )


def soak_mounts(count: int, place: Path, *, progress: Progress = lambda *_: False) -> Finding:
    """Daemons that come and go: what each leaves on the machine, and with whoever started it."""
    disk = make_disk(place / "disk", depth=2, size_bytes=16 * MIB)
    steps = mounts(place, disk)
    try:
        for _ in range(WARM_MOUNTS):
            next(steps)
        first = of_machine(place, 0)
        for number in range(1, count + 1):
            next(steps)
            if progress("mounts", number, count):
                count = number
                break
        return judge("mounts", [first, of_machine(place, count)])
    finally:
        steps.close()


def of_machine(place: Path, operations: int) -> Sample:
    """What there is of us between one daemon and the next."""
    holds: Holds = {
        "mounts": len(mounts_below(place)),
        "locks": len(locks_below(place)),
        "loop devices": len(loops_below(place)),
        "files": len(files_below(place)),
        "descriptors here": len(os.listdir("/proc/self/fd")),
        "threads here": len(os.listdir("/proc/self/task")),
        "children here": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
    }
    return Sample(operations, holds, 0, 0, time.monotonic(), {})
