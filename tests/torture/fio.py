"""fio(1) writes blocks that say who they are, and its verify state says which of them were acknowledged.

The state is what fio keeps for those who cut the power: it is saved when fio is triggered (fio then runs a command that
does the harm), when it ends and when a write fails, and a later run verifies up to that point and no further. Each run
has a region of the disk to itself, so that all can be verified again later.
"""

import errno
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from tests.mounted.daemon import HANG_S
from tests.mounted.disks import MIB
from tests.torture.faults import Fault, faults_on
from tests.torture.report import Report
from tests.torture.scene import Scene, scene
from tests.torture.setting import Setting

REGION_BYTES = 8 * MIB

@dataclass(frozen=True, slots=True)
class Blocks:
    """How fio writes, and how long it thinks after each: a region is to last for some seconds. Where a write fails
    among several under way, fio 3.33 takes it for done, and its state for what it is not: so `depth` is for those who
    meet no error. And of a run of less than twice `depth` writes it verifies more than were made: WRITES are enough."""

    sizes: tuple[str, ...]
    think_us: int
    depth: int = 1

    @property
    def options(self) -> tuple[str, ...]:
        engine = ("--ioengine=psync",) if self.depth == 1 else ("--ioengine=libaio", f"--iodepth={self.depth}")
        return (*self.sizes, *engine, f"--thinktime={self.think_us}us")


BLOCKS = (
    Blocks(("--bs=4k",), 1000),
    Blocks(("--bsrange=512-64k", "--blockalign=512"), 8000),
    Blocks(("--bs=4k",), 1000, depth=8),
    Blocks(("--bsrange=4k-300k", "--blockalign=4k"), 40_000, depth=4),
    Blocks(("--bs=4k", "--direct=1"), 1000),
    Blocks(("--bsrange=4k-64k", "--blockalign=4k", "--direct=1"), 8000, depth=8),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """`errno` is what fio ended with; 0 where it was triggered or had written everything."""

    errno: int
    writes: int
    reads: int
    said: str


@dataclass(slots=True)
class Run:
    """One job of fio on one region of the disk, and what is known of it afterwards."""

    disk: Path
    place: Path
    number: int
    seed: int
    blocks: Blocks
    acknowledged: int = 0
    _process: "subprocess.Popen[str] | None" = field(default=None, repr=False)

    @property
    def _name(self) -> str:
        return f"run{self.number}"

    @property
    def _trigger(self) -> Path:
        return self.place / f"{self._name}.trigger"

    @property
    def state(self) -> Path:
        return self.place / f"local-{self._name}-0-verify.state"

    def _command(self, *others: str) -> list[str]:
        region = [f"--offset={self.number * REGION_BYTES}", f"--size={REGION_BYTES}", f"--filename={self.disk}"]
        how = ["--thread", "--rw=randwrite", f"--randseed={self.seed}", "--verify=crc32c", "--verify_fatal=1"]
        where = [f"--aux-path={self.place}", "--output-format=json"]
        return ["fio", f"--name={self._name}", *region, *how, *self.blocks.options, *where, *others]

    def start(self, on_trigger: str = "true") -> None:
        """Until its region is full, it is triggered, or a write fails."""
        trigger = [f"--trigger-file={self._trigger}", f"--trigger={on_trigger}"]
        self._process = subprocess.Popen(
            self._command("--do_verify=0", "--verify_state_save=1", "--fsync=32", *trigger),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def is_running(self) -> bool:
        assert self._process is not None
        return self._process.poll() is None

    def trigger(self) -> None:
        self._trigger.touch()

    def wait(self) -> Ended:
        assert self._process is not None
        output, said = self._process.communicate(timeout=HANG_S)
        ended = _ended(output, said)
        self.acknowledged = ended.writes
        return ended

    def stop(self) -> None:
        """Whatever became of it."""
        if self._process is not None and self.is_running:
            self._process.kill()
            self._process.communicate()

    def verify(self) -> int:
        """Every block that was acknowledged, by its checksum; how many those were."""
        command = self._command("--verify_only", "--verify_state_load=1", "--verify_state_save=0")
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
        found = _ended(done.stdout, done.stderr)
        # A fio without a state that it can use, or that is told to end, verifies nothing, or not all, and does not call
        # that an error of the job: only its exit code says so.
        assert (found.errno, done.returncode) == (0, 0), f"{self}: exit code {done.returncode}: {found}"
        # What fio's state calls complete it verifies; of those that were under way when it was saved, `depth` at most,
        # it knows no more than we do. A run of which nothing is verified says nothing.
        assert found.reads > 0, f"nothing was verified of {self}: {found.said}"
        assert found.reads >= self.acknowledged - self.blocks.depth, f"{found} of {self}"
        return found.reads


def _ended(output: str, said: str) -> Ended:
    """fio says things before its JSON, and beside it."""
    before, brace, document = output.partition("{")
    assert brace, output + said
    job: dict[str, Any] = json.loads(brace + document)["jobs"][0]
    return Ended(job["error"], job["write"]["total_ios"], job["read"]["total_ios"], before + said)


# The torture.

FAULTS_OF_A_RUN = 2
WRITES = 20
"""How many fio makes before the next trouble, at least."""


class Fio:
    """Runs of fio on one disk, each through outages to an end of its own."""

    def __init__(self, running: Scene, random: Random) -> None:
        self.runs: list[Run] = []
        self.errors: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self._scene, self._random = running, random
        self._losses = [fault for fault in faults_on(running.setting) if fault.is_loss]

    def held(self) -> None:
        """With `hold` no outage ends it; the daemon does, on the trigger that says that the state is saved."""
        end, number = self._random.choice([("terminated", "TERM"), ("killed", "KILL"), ("left alone", "")])
        blocks = self._random.choice(BLOCKS if end == "left alone" else [each for each in BLOCKS if each.depth == 1])
        with self._started(blocks, f"kill -{number} {self._scene.daemon.process.pid}" if number else "true") as run:
            for fault in self._random.sample(self._losses, FAULTS_OF_A_RUN):
                self._lose(run, fault)
            self._wait_writes(run)
            run.trigger()
            if number == "KILL":
                self._scene.killed()
            elif number:
                self._scene.ended(compare=False)
            ended = run.wait()
            assert ended.errno == 0 or number, ended
        if number:
            self._scene.serve()
        self.met[f"daemon {end}"] += 1

    def failed(self) -> None:
        """With `fail` the first outage does."""
        fault = self._random.choice(self._losses)
        with self._started(self._random.choice([each for each in BLOCKS if each.depth == 1])) as run:
            self._wait_writes(run)
            self._lose(run, fault)
            ended = run.wait()
        name = errno.errorcode.get(ended.errno, "success")
        assert name in ("EIO", self._scene.setting.kind.answer(fault.errno or "")), ended
        self.errors[name] += 1

    @contextmanager
    def _started(self, blocks: Blocks, on_trigger: str = "true") -> Iterator[Run]:
        seed = self._random.randrange(1, 1 << 16)
        run = Run(self._scene.served.disk, self._scene.place, len(self.runs), seed, blocks)
        run.start(on_trigger)
        try:
            yield run
        finally:
            run.stop()
        self.runs.append(run)

    def _lose(self, run: Run, fault: Fault) -> None:
        self._wait_writes(run)
        with fault.strikes(self._scene, self._random):
            self._scene.wait_standby(lambda: not run.is_running)
            if self._random.random() < 0.5:
                self._scene.try_to_recover(self._random)
        while self._scene.is_in_standby():
            self._scene.recover(self._random)
        self.met[fault.name] += 1

    def _wait_writes(self, run: Run) -> None:
        aim = self._writes() + WRITES
        self._scene.wait(lambda: self._writes() >= aim or not run.is_running, "fio writing")

    def _writes(self) -> int:
        return int(self._scene.served.value("stat").split()[4])


def torture(place: Path, setting: Setting, random: Random, *, runs: int) -> Report:
    """One disk, from its making to its end; it is as large as so many runs need."""
    with scene(place, replace(setting, size_bytes=runs * REGION_BYTES)) as running:
        fio = Fio(running, random)
        for _ in range(runs):
            if setting.policy == "hold":
                fio.held()
            else:
                fio.failed()
            fio.runs[-1].verify()
        verified = sum(run.verify() for run in fio.runs)
        running.adopt()
    writes = sum(run.acknowledged for run in fio.runs)
    calls = Counter({"fio runs": runs, "fio writes": writes, "fio writes verified": verified})
    return Report(str(setting), calls, errors=fio.errors, troubles=fio.met)
