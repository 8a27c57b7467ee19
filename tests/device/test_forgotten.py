"""A store that acknowledges, forgets and comes back, at every step of a story: no acknowledged byte is gone.

The store crashes before one of its operations, wherever that lies: in a request, in the flush behind it, in a recovery
from the crash before. Then it is recovered from, the request that failed is repeated where nobody was held, and the
story goes on.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.device import Device
from ploopfs.device.flavour import VZ7
from ploopfs.device.registry import Registry
from ploopfs.device.standby import State
from ploopfs.device.waiting import OnStandby
from ploopfs.engine.file import Buffer
from ploopfs.errors import InStandby, PloopError, RequestFailed
from ploopfs.scst.module import Scst
from ploopfs.testing.forgetful import ForgetfulFiles
from tests.device.rig import CLUSTER, CONTENT, DISK_BYTES, DISK_CLUSTERS, TOP, Asked, cluster_of, image, three_deltas
from tests.engine.model import Model, Owner

pytestmark = pytest.mark.expects_warnings

ALONE_CONTENT = b"".join(map(cluster_of, (b"a", b"b", b"c", b"\0", b"\0", b"\0")))
ALONE = {TOP: image({0: b"a", 1: b"b", 2: b"c"}).build()}


@dataclass(frozen=True)
class Step:
    """`kind` is write, fua, discard or flush."""

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
            case "discard":
                await device.discard(self.offset, self.length)
            case "flush":
                await device.flush()

    def run_model(self, model: Model) -> None:
        if self.kind in ("write", "fua"):
            model.write(self.offset, self.data)
        elif self.kind == "discard":
            model.discard(self.offset, self.length)

    def may_be(self, start: int, found: Buffer, before: Buffer) -> bool:
        """Whether what lies at `start` is what was there `before` with any part of this step done."""
        after = bytearray(before)
        first, end = max(self.offset - start, 0), min(self.offset + self.length - start, len(before))
        after[first:end] = bytes([self.letter]) * max(0, end - first)
        return all(byte in pair for byte, pair in zip(found, zip(before, after, strict=True), strict=True))


@dataclass(frozen=True)
class Way:
    """How the store dies and how the device is brought back."""

    on_standby: OnStandby
    replaces: bool
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
        self.paths = list(images)

    async def _open(self) -> None:
        registry = Registry()
        self.device = await registry.add("ploop0", flavour=VZ7, image=self.paths, files=self.store)
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
            while self.device.queue.standby.state is State.ON:
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
        crashes = self.store.crashes
        try:
            if self.way.replaces:
                await self._replace_by_a_copy()
            else:
                await self.device.reopen()
        except PloopError:
            assert self.store.crashes > crashes

    async def _replace_by_a_copy(self) -> None:
        """Of what the crash has left."""
        path = f"/other/{self.store.operations}.hds"
        self.store.put(path, self.store.bytes_of(self.paths[-1]))
        await self.device.replace(path)
        self.paths[-1] = path

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
        kind = random.choice(("write", "write", "write", "fua", "discard", "discard", "flush"))
        slot = random.randrange(DISK_CLUSTERS)
        if kind == "discard":
            steps.append(Step(kind, slot * CLUSTER, min(random.randrange(1, 3), DISK_CLUSTERS - slot) * CLUSTER))
        else:
            offset = slot * CLUSTER + random.choice((0, 100, CLUSTER // 2, CLUSTER - 50))
            length = random.choice((1, 100, CLUSTER, CLUSTER + 60))
            steps.append(Step(kind, offset, min(length, DISK_BYTES - offset), random.choice(b"\0xyz")))
    return steps


def ways() -> list[Way]:
    return [
        Way(on_standby, replaces, stays_dead, survival, pass_flushes, alone)
        for on_standby in OnStandby
        for replaces in (False, True)
        for stays_dead in (False, True)
        for survival in (0, 0.5)
        for pass_flushes in (True, False)
        for alone in (False, True)
    ]


@pytest.mark.parametrize("seed", range(0, len(ways()), 3))
async def test_no_acknowledged_byte_is_lost_wherever_in_a_story_the_store_crashes(seed: int) -> None:
    way = ways()[seed]
    steps = steps_of(Random(seed), 8)
    for crash in range(1, await Story(way).tell(steps) + 1):
        await Story(way, {crash}, seed=crash).tell(steps)


@given(st.sampled_from(ways()), st.sets(st.integers(1, 150), max_size=12), st.integers(0, 2**32 - 1))
async def test_nor_however_often_it_crashes_in_recoveries_too(way: Way, crashes: set[int], seed: int) -> None:
    await Story(way, crashes, seed).tell(steps_of(Random(seed), 12))
