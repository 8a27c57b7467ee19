"""Stories of a store that acknowledges, forgets and comes back, while a device is used: no acknowledged byte is gone.

The store crashes before some of its operations, wherever they lie: in a request, in the flush behind it, in a recovery
from the crash before. Then it is recovered from, the request that failed is repeated where nobody was held, and the
story goes on. Each step is compared with a model.

    python -m tests.device.stories --seeds 1000     every single crash and every pair of crashes of so many stories
"""

import argparse
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import product
from random import Random

import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.device import Device
from ploopfs.device.flavour import VZ7, VZ9
from ploopfs.device.registry import Registry
from ploopfs.device.standby import State
from ploopfs.device.waiting import OnStandby
from ploopfs.engine.file import Buffer
from ploopfs.errors import InStandby, PloopError, RequestFailed
from ploopfs.scst.module import Scst
from ploopfs.testing.forgetful import ForgetfulFiles
from tests.device.mapped import line
from tests.device.rig import CLUSTER, CONTENT, DISK_BYTES, DISK_CLUSTERS, TOP, Asked, cluster_of, image, three_deltas
from tests.engine.model import Model, Owner

ALONE_CONTENT = b"".join(map(cluster_of, (b"a", b"b", b"c", b"\0", b"\0", b"\0")))
ALONE = {TOP: image({0: b"a", 1: b"b", 2: b"c"}).build()}


@dataclass(frozen=True)
class Step:
    """`kind` is write, fua, zero, unmap (zeroes that give space back), discard or flush."""

    kind: str
    offset: int = 0
    length: int = 0
    letter: int = 0

    @property
    def data(self) -> bytes:
        return bytes([self.letter]) * self.length

    async def run(self, device: Device) -> None:
        match self.kind:
            case "write" | "fua":
                await device.write(self.offset, self.data, fua=self.kind == "fua")
            case "zero" | "unmap":
                await device.write_zeroes(self.offset, self.length, unmap=self.kind == "unmap")
            case "discard":
                await device.discard(self.offset, self.length)
            case "flush":
                await device.flush()

    def run_model(self, model: Model) -> None:
        if self.kind in ("write", "fua"):
            model.write(self.offset, self.data)
        elif self.kind in ("zero", "unmap"):
            model.write_zeroes(self.offset, self.length, unmap=self.kind == "unmap")
        elif self.kind == "discard":
            model.discard(self.offset, self.length)

    def may_be(self, start: int, found: Buffer, before: Buffer) -> bool:
        """Whether what lies at `start` is what was there `before` with any part of this step done."""
        after = bytearray(before)
        first, end = max(self.offset - start, 0), min(self.offset + self.length - start, len(before))
        after[first:end] = bytes([self.letter]) * max(0, end - first)
        return all(byte in pair for byte, pair in zip(found, zip(before, after, strict=True), strict=True))


class Recovery(Enum):
    """Of a vz7 device the top is replaced, of a vz9 one a table is loaded and resumed."""

    REOPEN = "reopen"
    REPLACE = "replace by a copy"
    LOAD = "load"
    LOAD_COPY = "load a copy"

    @property
    def is_load(self) -> bool:
        return self in (Recovery.LOAD, Recovery.LOAD_COPY)


@dataclass(frozen=True)
class Way:
    """How the store dies and how the device is brought back."""

    on_standby: OnStandby
    recovery: Recovery
    stays_dead: bool
    survival: float = 0
    pass_flushes: bool = True
    alone: bool = False


@dataclass
class Story:
    """One run; `crashes` are the operations of the store before which it crashes, counted from the first step on."""

    way: Way
    crashes: Collection[int] = ()
    seed: int = 0

    async def tell(self, steps: Sequence[Step]) -> int:
        """How many operations of the store that took."""
        self._build()
        await self._open()
        first = self.store.operations
        self.store.crash_at = {first + number for number in self.crashes}
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            for step in steps:
                await self._until_done(partial(step.run, self.device), step)
                step.run_model(self.model)
                await self._compare()
        taken = self.store.operations - first
        self.store.crash_at = set()
        assert await self.device.aclose()
        self.store.crash()
        await self._open()
        assert await self.device.read(0, DISK_BYTES) == self.model.content
        return taken

    def _build(self) -> None:
        images = ALONE if self.way.alone else three_deltas()
        random = Random(self.seed)
        self.store = ForgetfulFiles(stays_dead=self.way.stays_dead)
        self.store.survives = lambda: random.random() < self.way.survival
        for path, content in images.items():
            self.store.put(path, content)
        content, below = (ALONE_CONTENT, Owner.TOP) if self.way.alone else (CONTENT, Owner.LOWER)
        owners = [below, below, Owner.TOP, *[Owner.NOBODY] * 3]
        self.model = Model(content, owners, alone=self.way.alone, raw=False)
        self.model.lower = [] if self.way.alone else [{0, 1, 2}, {1}]
        self.paths = list(images)

    async def _open(self) -> None:
        registry = Registry()
        name, flavour = ("dm-0", VZ9) if self.way.recovery.is_load else ("ploop0", VZ7)
        self.device = await registry.add(name, flavour=flavour, image=self.paths, files=self.store)
        self.device.queue.set_on_standby(self.way.on_standby)
        self.device.tune.pass_flushes = int(self.way.pass_flushes)
        scst = Scst(registry)
        scst.load()
        scst.attach(self.device)

    async def _until_done(self, call: Callable[[], Awaitable[object]], step: Step | None = None) -> object:
        """A request that fails is repeated when the store is back, one that is held is waited for."""
        while True:
            asked = Asked(self.nursery, call())
            await wait_all_tasks_blocked()
            while self.device.queue.standby.state is State.ON or self.device.queue.suspended:
                await self._recover()
                await wait_all_tasks_blocked()
            assert asked.ended, "held though standby is over"
            if asked.error is None:
                return asked.value
            assert self.way.on_standby is OnStandby.FAIL
            assert isinstance(asked.error, RequestFailed | InStandby), asked.error
            if step is not None:
                await self._compare(step)

    async def _recover(self) -> None:
        """Again and again, where the store crashes in the recovery."""
        crashes, unflushed = self.store.crashes, self.device.unflushed
        kept, acknowledged = len(unflushed), unflushed.mark()
        path = self.paths[-1]
        if self.way.recovery in (Recovery.REPLACE, Recovery.LOAD_COPY):
            path = f"/other/{self.store.operations}.hds"
            self.store.put(path, self.store.bytes_of(self.paths[-1]))
        try:
            match self.way.recovery:
                case Recovery.REOPEN:
                    await self.device.reopen()
                case Recovery.REPLACE:
                    await self.device.replace(path)
                case _:
                    await self._load([*self.paths[:-1], path])
        except PloopError:
            assert self.store.crashes > crashes
            assert len(unflushed) == kept, "forgotten by a recovery that failed"
        else:
            assert unflushed._first_number >= acknowledged, "kept by a recovery that has written it again"
            self.paths[-1] = path

    async def _load(self, paths: Sequence[str]) -> None:
        """As a script does; a table that cannot be resumed goes: the next attempt finds the device as before."""
        mapper = self.device.mapper
        assert mapper is not None
        await mapper.load(line(*paths))
        try:
            await mapper.resume()
        except PloopError:
            await mapper.clear()
            raise

    async def _compare(self, failed: Step | None = None) -> None:
        """With what was acknowledged. Each byte of a request that failed may be there or not."""
        found = await self._until_done(partial(self.device.read, 0, DISK_BYTES))
        assert isinstance(found, bytes | bytearray)
        expected = self.model.content
        for start in range(0, DISK_BYTES, CLUSTER):
            at = slice(start, start + CLUSTER)
            is_right = found[at] == expected[at] or (failed and failed.may_be(start, found[at], expected[at]))
            assert is_right, f"cluster {start // CLUSTER} differs"


def steps_of(random: Random, count: int) -> list[Step]:
    """Few blocks, so that many steps meet."""
    steps = []
    for _ in range(count):
        kind = random.choice(("write", "write", "write", "fua", "discard", "discard", "flush", "unmap", "zero"))
        slot = random.randrange(DISK_CLUSTERS)
        if kind == "discard":
            steps.append(Step(kind, slot * CLUSTER, min(random.randrange(1, 3), DISK_CLUSTERS - slot) * CLUSTER))
        else:
            offset = slot * CLUSTER + random.choice((0, 100, CLUSTER // 2, CLUSTER - 50))
            length = random.choice((1, 100, CLUSTER, CLUSTER + 60))
            letter = 0 if kind in ("unmap", "zero") else random.choice(b"\0xyz")
            steps.append(Step(kind, offset, min(length, DISK_BYTES - offset), letter))
    return steps


def ways() -> list[Way]:
    switches = product(OnStandby, Recovery, (False, True), (0, 0.5), (True, False), (False, True))
    return [Way(*values) for values in switches]


async def tell_every_single_crash(way: Way, steps: Sequence[Step]) -> int:
    """How many stories that were."""
    count = await Story(way).tell(steps)
    for crash in range(1, count + 1):
        await Story(way, {crash}, seed=crash).tell(steps)
    return count


async def tell_every_pair_of_crashes(way: Way, steps: Sequence[Step]) -> int:
    """The second one lies anywhere after the first, most often in its recovery. How many stories that were."""
    told = 0
    for first in range(1, await Story(way).tell(steps) + 1):
        for second in range(first + 1, await Story(way, {first}, seed=first).tell(steps) + 1):
            await Story(way, {first, second}, seed=first).tell(steps)
            told += 1
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="how many stories, each in a way of its own; default 10")
    parser.add_argument("--first", type=int, default=0, help="the first seed, to tell a failed one again; default 0")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    singles, pairs, since_s = 0, 0, time.monotonic()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        way, random = ways()[seed % len(ways())], Random(seed)
        try:
            singles += trio.run(tell_every_single_crash, way, steps_of(random, 8))
            pairs += trio.run(tell_every_pair_of_crashes, way, steps_of(random, 3))
        except BaseException:
            print(f"\nseed {seed}: {way}")
            raise
        took_s = time.monotonic() - since_s
        print(f"\r{seed}: {singles} stories of one crash, {pairs} of two, {took_s:.0f} s ", end="", file=sys.stderr)
    print(f"\n{arguments.seeds} seeds: {singles} stories of one crash, {pairs} of two crashes, no byte lost")


if __name__ == "__main__":
    main()
