"""Kills a process that writes to a disk, again and again, and finds every write that it had acknowledged.

kill -9 takes no page out of the kernel's cache: what was acknowledged is there, flushed or not, and an operation that
had begun is there byte for byte or not. The images are sound but for leaks and the mark; opened and closed
once more, they are clean in our eyes and in QEMU's.
"""

import hashlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import trio

from ploopfs.engine.counters import Counters
from ploopfs.engine.create import create_disk, snapshot_disk
from ploopfs.engine.opening import StackSpec, open_stack, resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.image.check import Verdict
from ploopfs.image.header import V2
from tests.engine import qemu
from tests.engine.disk import verdict
from tests.engine.victim import data_of

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = 32768
DISK_CLUSTERS = 24
MOST_LINES = 80
"""A victim is killed when it has said a number of things that is drawn, and as much longer as a killer needs."""
LONGEST_PAUSE_S = 0.01
HANG_S = 60


@dataclass(slots=True)
class Change:
    """`length` bytes at `offset`; `data` None are zeroes of whole clusters, where the top had them."""

    offset: int
    length: int
    data: bytes | None


@dataclass(slots=True)
class Model:
    """`content` is what was acknowledged; `under_way` what had begun and was not, by number; `kills` and the rest count
    what was survived."""

    content: bytearray = field(default_factory=lambda: bytearray(DISK_CLUSTERS * CLUSTER))
    under_way: dict[int, Change] = field(default_factory=dict)
    may_be_bytes: int = DISK_CLUSTERS * CLUSTER
    operations: int = 0
    kills: int = 0
    marked: int = 0

    def hears(self, line: str, seed: int) -> None:
        """What a victim says."""
        word, number, *rest = line.split()
        if word == "done":
            self.done(int(number), [int(slot) for slot in rest])
        elif word != "begins":
            return
        elif rest[0] == "grow":
            self.may_be_bytes = int(rest[1])
        else:
            offset, length = int(rest[1]), int(rest[2])
            data = {"write": data_of(seed, int(number), length), "zero": bytes(length)}.get(rest[0])
            self.under_way[int(number)] = Change(offset, length, data)

    def done(self, number: int, slots: Sequence[int] = ()) -> None:
        """`slots` are the clusters that a discard made zeroes."""
        self.operations += 1
        change = self.under_way.get(number)
        if change is None:
            self.content.extend(bytes(self.may_be_bytes - len(self.content)))
        elif change.data is not None:
            self.content[change.offset : change.offset + change.length] = change.data
        for slot in slots:
            self.content[slot * CLUSTER : (slot + 1) * CLUSTER] = bytes(CLUSTER)
        self.under_way.pop(number, None)

    def compare(self, found: bytes) -> None:
        """And go on from what was found: of what was under way each byte is there or not."""
        assert len(found) in (len(self.content), self.may_be_bytes), f"{len(found)} bytes"
        expected = np.frombuffer(bytes(self.content).ljust(len(found), b"\0"), np.uint8)
        got = np.frombuffer(found, np.uint8)
        right = got == expected
        for change in self.under_way.values():
            part = slice(change.offset, change.offset + change.length)
            right[part] |= got[part] == (np.frombuffer(change.data, np.uint8) if change.data is not None else 0)
        wrong = np.flatnonzero(~right)
        assert not len(wrong), f"{len(wrong)} acknowledged bytes are not there, the first at {wrong[0]}"
        self.content[:] = found
        self.may_be_bytes = len(found)
        self.under_way.clear()


class Disk:
    """A real disk of two deltas in a directory. `frozen` are the lower deltas' sums, which nothing may change."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        descriptor = create_disk(
            str(directory), size_sectors=DISK_CLUSTERS * CLUSTER // 512, cluster_sectors=64, version=V2
        )
        snapshot_disk(descriptor)
        self.frozen: dict[str, str] = {}

    def spec(self) -> StackSpec:
        return trio.run(resolve, OsFiles(), str(self.directory))

    def examine(self, model: Model, *, closes: bool) -> None:
        """After a kill: the descriptor is whole, each image sound, each acknowledged byte there. `closes`: what was not
        closed is not left for the next one to open, and QEMU is asked as well."""
        spec = self.spec()
        paths = [image.path for image in spec.images]
        self._remove_what_a_snapshot_left(paths)
        model.compare(trio.run(_content, spec))
        found = self._verdict(paths[-1])
        assert found in (Verdict.CLEAN, Verdict.NOT_CLOSED)
        model.marked += found is Verdict.NOT_CLOSED
        assert {self._verdict(path) for path in paths[:-1]} <= {Verdict.CLEAN}
        self._compare_frozen(paths[:-1])
        if closes:
            trio.run(_opened_and_closed, spec)
            assert self._verdict(paths[-1]) is Verdict.CLEAN
            for path in paths:
                code, said = qemu.check(path)
                assert code == 0, said
            assert qemu.content(spec.images, self.directory.parent) == model.content

    def _verdict(self, path: str) -> Verdict:
        return verdict(Path(path).read_bytes(), path).verdict

    def _remove_what_a_snapshot_left(self, named: Sequence[str]) -> None:
        """A new delta, whole or not, that the descriptor does not name yet."""
        left = {str(path) for path in self.directory.glob("root.hds*")} - set(named)
        assert len(left) <= 1
        for path in left:
            os.unlink(path)

    def _compare_frozen(self, lower: Sequence[str]) -> None:
        sums = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in lower}
        assert self.frozen.items() <= sums.items(), "a delta below the top was changed"
        self.frozen = sums


async def _content(spec: StackSpec) -> bytes:
    stack = await open_stack(OsFiles(), spec, read_only=True, counters=Counters())
    content = bytes(await stack.read(0, stack.size_bytes))
    await stack.aclose(clean=False)
    return content


async def _opened_and_closed(spec: StackSpec) -> None:
    """Which checks an image that was not closed."""
    stack = await open_stack(OsFiles(), spec, read_only=False, counters=Counters())
    await stack.aclose(clean=True)


class Killer:
    """`kill` runs one victim to its end. Made by `killer`."""

    def __init__(self, forker: subprocess.Popen[bytes], random: Random) -> None:
        self._forker, self._random = forker, random
        self._rest = b""
        self._victim = 0

    def kill(self, disk: Disk, model: Model) -> None:
        assert self._forker.stdin is not None
        seed = self._random.randrange(1 << 30)
        self._forker.stdin.write(f"{seed} {disk.directory}\n".encode())
        self._forker.stdin.flush()
        lines = self._lines()
        word, victim = next(lines).split()
        assert word == "lives"
        self._victim = int(victim)
        for _ in range(self._random.randrange(MOST_LINES)):
            line = next(lines)
            assert not line.startswith("died"), f"of its own accord: {line}"
            model.hears(line, seed)
        # Each step of what it is doing now is as likely as another to be the last.
        select.select([], [], [], self._random.choice((0, self._random.uniform(0, LONGEST_PAUSE_S))))
        os.kill(self._victim, signal.SIGKILL)
        for line in lines:
            if line.startswith("died"):
                self._victim = 0
                assert int(line.split()[1]) == signal.SIGKILL, line
                model.kills += 1
                return
            model.hears(line, seed)

    def let_nobody_live(self) -> None:
        """Where a kill was interrupted: whoever forks victims waits for this one, and does not end before."""
        if self._victim:
            os.kill(self._victim, signal.SIGKILL)

    def _lines(self) -> Iterator[str]:
        while True:
            yield from self._complete_lines()
            assert self._hears(HANG_S), "no answer"

    def _complete_lines(self) -> Iterator[str]:
        while b"\n" in self._rest:
            line, self._rest = self._rest.split(b"\n", 1)
            yield line.decode()

    def _hears(self, timeout_s: float) -> bool:
        assert self._forker.stdout is not None
        if not select.select([self._forker.stdout], [], [], timeout_s)[0]:
            return False
        part = os.read(self._forker.stdout.fileno(), 1 << 16)
        assert part, "the process that forks victims has ended"
        self._rest += part
        return True


@contextmanager
def killer(random: Random) -> Iterator[Killer]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.victim"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    one = Killer(process, random)
    try:
        yield one
    finally:
        one.let_nobody_live()
        process.stdin.close()
        process.wait(HANG_S)
        process.stdout.close()


def as_numbers(model: Model) -> Mapping[str, int]:
    return {
        "kills": model.kills,
        "operations": model.operations,
        "unclosed": model.marked,
    }
