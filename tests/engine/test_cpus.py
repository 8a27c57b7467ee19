"""The event loop and the kernel's workers, each on a CPU of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ploopfs.engine import cpus
from ploopfs.engine.cpus import Apart, two_cpus
from ploopfs.engine.ring import ring_of_loop
from tests.engine.killing import ROOT
from tests.realparts import need


class Scheduler:
    """A thread that runs on the least CPU that it may run on, unless it is `at` another one."""

    def __init__(self, *allowed: int, at: int) -> None:
        self.allowed, self.at = set(allowed), at
        self.sets: list[set[int]] = []

    def set(self, _thread: int, allowed: set[int]) -> None:
        if not allowed:
            raise OSError(22, "no CPU")
        self.sets.append(allowed)
        self.allowed = allowed
        if self.at not in allowed:
            self.at = min(allowed)

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _thread: set(self.allowed))
        monkeypatch.setattr(os, "sched_setaffinity", self.set)
        monkeypatch.setattr(cpus, "_running_on", lambda: self.at)


@pytest.mark.parametrize(
    ("allowed", "at", "workers"),
    [((0, 1), 0, 1), ((0, 1), 1, 0), ((4, 9), 4, 9), ((0,), 0, None), ((0, 1, 2), 0, None), ((0, 1), 7, None)],
)
def test_of_two_cpus_the_workers_have_the_one_that_this_thread_does_not_run_on(
    monkeypatch: pytest.MonkeyPatch, allowed: tuple[int, ...], at: int, workers: int | None
) -> None:
    Scheduler(*allowed, at=at).use(monkeypatch)
    assert two_cpus() == (None if workers is None else Apart(workers))


def test_a_thread_on_the_workers_cpu_leaves_it_and_may_run_where_it_might_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = Scheduler(0, 1, at=1)
    scheduler.use(monkeypatch)
    Apart(1).keep()
    assert (scheduler.at, scheduler.allowed) == (0, {0, 1})
    Apart(1).keep()
    assert len(scheduler.sets) == 2, "it is left alone where it belongs"


def test_a_thread_that_has_no_other_cpu_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(1, at=1)
    scheduler.use(monkeypatch)
    Apart(1).keep()
    assert (scheduler.at, scheduler.allowed) == (1, {1})


def test_the_kernel_takes_a_set_of_cpus_as_bits() -> None:
    assert [Apart(cpu).mask for cpu in (0, 1, 9)] == [b"\x01", b"\x02", b"\x00\x02"]


@pytest.fixture
def some() -> Iterator[set[int]]:
    """Two of this machine's, or the only one."""
    need(io_uring=True)
    all_cpus = os.sched_getaffinity(0)
    allowed = set(sorted(all_cpus)[:2])
    os.sched_setaffinity(0, allowed)
    yield allowed
    os.sched_setaffinity(0, all_cpus)


# In a process of its own: the workers of rings before this one would still be there.
WRITES_ONCE = """
import json, os, sys, trio
from pathlib import Path
from ploopfs.engine.ring import ring_of_loop

async def main():
    ring, ended = ring_of_loop(), trio.Event()
    ring.begin(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), ((0, b"x"),), lambda _full, _result: ended.set())
    await ended.wait()
    tasks = [task for task in Path("/proc/self/task").iterdir() if "iou-wrk" in (task / "comm").read_text()]
    workers = [sorted(os.sched_getaffinity(int(task.name))) for task in tasks]
    print(json.dumps([sorted(os.sched_getaffinity(0)), [ring.apart.workers] if ring.apart else None, workers]))

trio.run(main)
"""


@pytest.mark.real
def test_the_kernels_own_workers_run_on_the_cpu_that_is_theirs(tmp_path: Path, some: set[int]) -> None:
    command = [sys.executable, "-c", WRITES_ONCE, os.fspath(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    allowed, theirs, workers = json.loads(done.stdout)
    assert allowed == sorted(some), "nobody else is bound"
    assert (theirs is None) == (len(some) == 1)
    assert workers
    assert workers == [theirs or allowed] * len(workers)


@pytest.mark.real
async def test_a_loop_that_hands_over_several_writes_at_once_leaves_the_workers_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, some: set[int]
) -> None:
    ring = ring_of_loop()
    assert ring is not None
    kept = []
    monkeypatch.setattr(Apart, "keep", lambda _self: kept.append(len(ended)))
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    ended: list[int] = []
    for count in (1, 5):
        ring.gather()
        for _ in range(count):
            ring.begin(fd, ((0, b"x"),), lambda _full, result: ended.append(result))
        ring.submit()
        while len(ended) < count:
            await trio.lowlevel.checkpoint()
        ended.clear()
    assert kept == [0] * (len(some) == 2), "once, and not for a single write"
    os.close(fd)
