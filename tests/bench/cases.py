"""What is measured: each case is one kind of request, on one kind of image, so many at a time.

Knows no server and no fio but the names of its options. Invariant: a case that uses something up (holes, clusters of a
lower delta) has a part of the disk of its own for each run, so that every run of every peer finds the same.
"""

from dataclasses import dataclass
from enum import Enum
from itertools import takewhile

from ploopfs.bounds import UNFLUSHED_MIB

MIB = 1 << 20
CLUSTER_BYTES = MIB
BLOCK_BYTES = 4096


class Image(Enum):
    """What the disk of a case consists of; the value says it in the report."""

    FULL = "one delta, every cluster written"
    EMPTY = "one delta, all holes"
    OVER = "an empty delta over one with every cluster written"
    DEEP = "clusters spread evenly over all deltas"


@dataclass(frozen=True, slots=True)
class Case:
    """`target` is the least ratio to QEMU that is wanted; None where none is. `flush_mib`: who writes flushes whenever
    he has written so much."""

    pattern: str
    block: str
    depth: int
    image: Image = Image.FULL
    target: float | None = None
    flush_mib: int = 0

    @property
    def name(self) -> str:
        what = {Image.EMPTY: "allocating write", Image.OVER: "copy-up write"}.get(self.image)
        kind = what or (self.pattern.replace("rand", "random ") if self.is_random else f"sequential {self.pattern}")
        flushed = f", a flush for each {self.flush_mib} MiB" if self.flush_mib else ""
        return f"{self.block.replace('k', ' KiB').replace('m', ' MiB')} {kind}, QD {self.depth}{flushed}"

    @property
    def is_random(self) -> bool:
        return self.pattern.startswith("rand")

    @property
    def is_write(self) -> bool:
        return "write" in self.pattern

    @property
    def unit(self) -> str:
        return "MiB/s" if self.block == "1m" else "IOPS"

    @property
    def uses_up(self) -> bool:
        """One write to each cluster, which afterwards is none of its kind any more."""
        return self.image in (Image.EMPTY, Image.OVER)


FULL = (
    Case("randread", "4k", 1, target=1.2),
    Case("randread", "4k", 16, target=2),
    Case("randread", "4k", 32, target=2),
    Case("randwrite", "4k", 1, target=1),
    Case("randwrite", "4k", 16, target=1),
    Case("read", "1m", 1, target=2.5),
    Case("write", "1m", 1, target=1.3),
    Case("randwrite", "4k", 16, flush_mib=int(UNFLUSHED_MIB)),
    Case("write", "1m", 1, flush_mib=int(UNFLUSHED_MIB)),
)
"""The last two have everybody keep the promise that ploopfs makes of a device with both fuses in by itself: of what was
acknowledged no more is in nothing but a page cache."""
USING_UP = (
    Case("write", "4k", 1, Image.EMPTY, target=1),
    Case("write", "4k", 16, Image.EMPTY, target=1),
    Case("write", "4k", 1, Image.OVER, target=1),
    Case("write", "4k", 16, Image.OVER, target=1),
    Case("write", "4k", 16, Image.EMPTY, flush_mib=4),
)
"""The last one has everybody write his map: QEMU does so when it is asked to flush."""
DEEP = (
    Case("randread", "4k", 1, Image.DEEP),
    Case("randread", "4k", 16, Image.DEEP),
    Case("read", "1m", 1, Image.DEEP),
)
CHECKED = (
    Case("randread", "4k", 16),
    Case("randwrite", "4k", 16),
)
"""With both fuses in and out."""

DEEP_TIMES = 4
"""So many times as many of the writes that allocate where several are under way: 512 are over in 20 ms, in which memory
and page cache are new to every server."""

STACK_DEPTHS = (1, 10, 100)
DEPTH_SPREAD = 0.05
CHECK_COST = 0.02


@dataclass(frozen=True, slots=True)
class Plan:
    """How often and how long; with `io_bytes` so much instead. `clusters` is how many a run at depth 1 uses up of
    holes, `copied` any run of a lower delta; `pairs` how many short runs with the fuses in, each beside one with them
    out."""

    runs: int
    seconds: int
    size_bytes: int
    clusters: int
    copied: int
    pairs: int
    io_bytes: int = 0

    @classmethod
    def quick(cls) -> "Plan":
        return cls(runs=1, seconds=1, size_bytes=128 * MIB, clusters=128, copied=16, pairs=5)

    @classmethod
    def full(cls) -> "Plan":
        return cls(runs=5, seconds=3, size_bytes=512 * MIB, clusters=512, copied=64, pairs=40)

    def used_up(self, case: Case) -> int:
        """Clusters of one run."""
        if case.image is Image.OVER:
            return self.copied
        return self.clusters if case.depth == 1 else self.clusters * DEEP_TIMES

    def disk_bytes(self, image: Image) -> int:
        """A region for each run of each case that uses it up."""
        cases = [case for case in USING_UP if case.image is image]
        return self._region_start(cases[-1], self.runs) if cases else self.size_bytes

    def region(self, case: Case, run: int) -> range:
        """The bytes of the disk that this run uses up."""
        return range(self._region_start(case, run), self._region_start(case, run + 1))

    def _region_start(self, case: Case, run: int) -> int:
        before = takewhile(lambda each: each != case, (each for each in USING_UP if each.image is case.image))
        clusters = sum(self.used_up(each) for each in before) * self.runs + self.used_up(case) * run
        return clusters * CLUSTER_BYTES


def fio_options(case: Case, plan: Plan, run: int, deep: dict[str, str]) -> dict[str, str]:
    """`deep` is how this machine keeps several requests under way, without their number."""
    options = {"rw": case.pattern, "bs": case.block, **_engine(case, deep)}
    if case.flush_mib:
        options["fsync"] = str(case.flush_mib * MIB // (MIB if case.block == "1m" else BLOCK_BYTES))
    if not case.uses_up:
        as_long = {"time_based": "1", "runtime": str(plan.seconds)}
        as_much = {"io_size": str(plan.io_bytes)}
        return options | {"size": str(plan.size_bytes)} | (as_much if plan.io_bytes else as_long)
    region = plan.region(case, run)
    block = BLOCK_BYTES
    return options | {
        # One block, and then what is left of its cluster is passed over.
        "rw": f"{case.pattern}:{CLUSTER_BYTES - block}",
        "offset": str(region.start),
        "size": str(len(region)),
        "io_size": str(len(region) // CLUSTER_BYTES * block),
    }


def _engine(case: Case, deep: dict[str, str]) -> dict[str, str]:
    if case.depth == 1:
        return {"ioengine": "psync"}
    return {**deep, "numjobs" if deep["ioengine"] == "psync" else "iodepth": str(case.depth)}
