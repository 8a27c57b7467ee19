"""A daemon that was asked a thousand things holds what it held before, to the object; the long form is tools/soak.

What is counted exactly decides here; slopes of memory need the long form."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S, ROOT, until
from tests.soak.campaign import judge, prime, scene_of, soak_mounts
from tests.soak.measure import Meter, Sample
from tests.soak.works import WORKS, Scene

pytestmark = pytest.mark.real

FEW = {"opens": 1024, "replaces": 64, "reopens": 64, "standbys": 64, "loads": 32, "attachments": 32}
MANY = 128
WARM = 32
FEW_SAMPLES = 100
"""Of hundreds until the limit."""


@pytest.fixture(scope="module")
def metered() -> Iterator[tuple[Scene, Meter]]:
    """In memory where the system has it: a thousand flushes of a disk would only measure the disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as place, scene_of(Path(place)) as scene:
        yield scene


@pytest.mark.parametrize("name", WORKS)
def test_what_was_done_again_and_again_leaves_no_descriptor_no_thread_and_no_object_behind(
    metered: tuple[Scene, Meter], name: str
) -> None:
    scene, meter = metered
    steps = WORKS[name][1](scene)
    try:
        for _ in range(2 * WARM):
            next(steps)
        before = meter.settled(0)
        count = FEW.get(name, MANY)
        for _ in range(count):
            next(steps)
        after = meter.settled(count, before.holds)
    finally:
        steps.close()
    assert judge(name, [before, after]).grown == {}


def test_a_daemon_is_measured_with_as_many_idle_tasks_as_it_ever_keeps(metered: tuple[Scene, Meter]) -> None:
    scene, meter = metered
    before = meter.settled(0)
    prime(scene)
    assert meter.settled(1).holds["tasks"] <= before.holds["tasks"]


def test_a_daemon_that_does_nothing_is_settled_long_before_the_limit(
    metered: tuple[Scene, Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, meter = metered
    samples: list[Sample] = []
    sample = meter.sample

    def noted(operations: int) -> Sample:
        samples.append(sample(operations))
        return samples[-1]

    monkeypatch.setattr(meter, "sample", noted)
    holds = meter.settled(7).holds
    assert meter.settled(7, holds).holds == holds
    assert len(samples) < FEW_SAMPLES


def test_daemons_that_come_and_go_leave_nothing_on_the_machine(tmp_path: Path) -> None:
    assert soak_mounts(3, tmp_path).grown == {}


def sample(operations: int, blocks: int, private_bytes: int, **holds: int) -> Sample:
    return Sample(operations, holds, blocks, private_bytes, 0.0, {})


def test_what_grows_with_each_operation_is_a_leak() -> None:
    steady = [sample(number, 5000, 1 << 25, fds=7) for number in range(0, 100_000, 10_000)]
    assert judge("steady", steady).leaks == []
    assert judge("one", [*steady, sample(100_000, 5000, 1 << 25, fds=8)]).leaks == ["fds: +1"]
    assert judge("fewer", [*steady, sample(100_000, 5000, 1 << 25, fds=6)]).leaks == []
    blocks = [sample(number, 5000 + number // 10, 1 << 25) for number in range(0, 100_000, 10_000)]
    assert judge("blocks", blocks).leaks == ["0.100 blocks of memory per operation"]
    memory = [sample(number, 5000, (1 << 25) + 100 * number) for number in range(0, 100_000, 10_000)]
    assert judge("memory", memory).leaks == ["100.0 bytes of memory per operation"]
    uneven = [sample(number, 5000 + number // 10_000 % 2, 1 << 25) for number in range(0, 100_000, 10_000)]
    assert judge("uneven", uneven).leaks == []


def test_the_command_says_what_it_found_and_a_wrong_count_is_usage() -> None:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tests.soak", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run("--polls", "many").returncode == 2
    told = run("--only", "mounts", "--mounts", "1")
    assert told.returncode == 0, told.stderr
    assert "nothing left behind" in told.stdout


def test_the_interrupt_of_a_terminal_ends_a_soak_in_order_and_not_its_daemon_under_it() -> None:
    """A terminal sends it to the whole foreground group."""
    command = [sys.executable, "-m", "tests.soak", "--only", "polls", "--polls", "32"]
    soak = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{soak.pid}/task/{soak.pid}/children")
    until(lambda: any(map(_is_daemon, children.read_text().split())), "the daemon is started")
    os.killpg(soak.pid, signal.SIGINT)
    _, said = soak.communicate(timeout=HANG_S)
    assert (soak.returncode, said) == (128 + signal.SIGINT, "")


def _is_daemon(pid: str) -> bool:
    try:
        return b"\0mount\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
