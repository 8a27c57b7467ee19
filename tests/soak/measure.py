"""What a daemon holds: from outside, as the kernel counts it, and from inside, as Python does.

Knows nothing of what is done to the daemon. Invariant: two samples of a daemon that holds the same are equal in
`holds`, to the object; memory is measured too, but as a slope over many samples, since no single number of it means
anything.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mounted.daemon import HANG_S
from tests.soak.inside import Asked, Inside

SETTLE_S = 20
"""For what comes late: the kernel's releases and forgets, threads that end when they have been idle."""

Holds = dict[str, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """After so many `operations`. `holds` is what must not grow, by name; memory is in bytes."""

    operations: int
    holds: Holds
    blocks: int
    private_bytes: int
    seconds: float
    traced: dict[str, int]


class Meter:
    """Measures one daemon; `place` is the directory with everything that belongs to it."""

    def __init__(self, asked: Asked, pid: int, place: Path) -> None:
        self._asked, self._pid, self._place = asked, pid, place
        self._started_s = time.monotonic()

    def sample(self, operations: int) -> Sample:
        inside = self._asked.ask(HANG_S)
        return Sample(
            operations,
            self._holds(inside),
            inside.blocks,
            private_bytes(self._pid),
            time.monotonic() - self._started_s,
            inside.traced,
        )

    def settled(self, operations: int, like: Holds | None = None) -> Sample:
        """When it holds what it held before (`like`), or at least the same twice and no idle thread. The last sample
        in any case."""
        deadline_s = time.monotonic() + SETTLE_S
        last = self.sample(operations)
        while time.monotonic() < deadline_s:
            if last.holds == like:
                return last
            previous, last = last, self.sample(operations)
            is_idle = not any(name.startswith("thread Trio") for name in last.holds)
            if like is None and previous.holds == last.holds and is_idle:
                return last
        return last

    def _holds(self, inside: Inside) -> Holds:
        """Names say where each count comes from."""
        process = Path(f"/proc/{self._pid}")
        found: Counter[str] = Counter()
        for target in _targets(process / "fd"):
            found[f"fd {target}"] += 1
        found["kernel threads"] = len(os.listdir(process / "task"))
        for name in inside.threads:
            found[f"thread {name}"] += 1
        found["tasks"] = inside.tasks
        found["inodes"], found["open files"] = inside.inodes, inside.files
        found["open directories"] = inside.directories
        found["locks"] = len(locks_below(self._place))
        found["files"] = len(files_below(self._place))
        found["mounts"] = len(mounts_below(self._place))
        found["loop devices"] = len(loops_below(self._place))
        found.update({f"object {name}": count for name, count in inside.objects.items()})
        return dict(found)


def differences(before: Holds, after: Holds) -> dict[str, int]:
    """What grew or shrank, by how much."""
    names = sorted(before.keys() | after.keys())
    changes = {name: after.get(name, 0) - before.get(name, 0) for name in names}
    return {name: change for name, change in changes.items() if change}


def slope(samples: Sequence[Sample], value: Callable[[Sample], int]) -> float:
    """Growth per operation, by least squares."""
    xs = [sample.operations for sample in samples]
    ys = [value(sample) for sample in samples]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0


def private_bytes(pid: int) -> int:
    """What nobody else has of the memory of a process: what ending it would give back."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Private_"))


def _targets(directory: Path) -> list[str]:
    targets = []
    for name in os.listdir(directory):
        try:
            targets.append(os.readlink(directory / name))
        except FileNotFoundError:
            continue
    return targets


def files_below(place: Path) -> list[Path]:
    """What was mounted there is not looked at: looking is an operation too."""
    found = []
    for directory, below, files in os.walk(place):
        below[:] = [name for name in below if name != "mnt"]
        found += [Path(directory) / name for name in files]
    return found


def locks_below(place: Path) -> list[str]:
    """Lines of the kernel's table of locks that name a file of `place`. OFD locks name no process."""
    ours = set()
    for path in files_below(place):
        status = path.stat()
        ours.add(f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}")
    return [line for line in Path("/proc/locks").read_text().splitlines() if line.split()[-3] in ours]


def mounts_below(place: Path) -> list[str]:
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in table if Path(line.split()[4]).is_relative_to(place)]


def loops_below(place: Path) -> list[str]:
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if Path(file.read_text().strip()).is_relative_to(place):
                found.append(file.parts[3])
        except OSError:
            continue
    return found
