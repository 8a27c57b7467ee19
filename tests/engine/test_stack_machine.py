"""Hypothesis drives a stack and its model through everything a stack lives through; small and dense finds the most."""

from random import Random

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ploopfs.image.header import V1, V2, Version
from tests.engine.disk import (
    KINDS_OF_DATA,
    MAX_DEPTH,
    MODELLED,
    Change,
    Disk,
    Shape,
    data_of,
    draw_change,
    draw_disjoint,
)
from tests.engine.journal import Journal, JournalFiles
from tests.engine.model import CLUSTER_BYTES
from tests.engine.places import MemoryPlace

SHORT = (0, 512, CLUSTER_BYTES, 2 * CLUSTER_BYTES - 4096)
SEEDS = st.integers(0, 2**32 - 1)
SLOTS = st.integers(0, MODELLED - 1)
SIZES = st.sampled_from((7, 9, 12, MODELLED, 8176, 8177, 20000))
WITHIN = st.sampled_from((0, 1, 511, 512, 4096, CLUSTER_BYTES // 2, CLUSTER_BYTES - 1))
LENGTHS = st.sampled_from((1, 511, 512, 4096, CLUSTER_BYTES - 1, CLUSTER_BYTES, CLUSTER_BYTES + 1, 3 * CLUSTER_BYTES))


class Machine(RuleBasedStateMachine):
    """Every operation lets other tasks run a drawn number of times, so that concurrent ones meet at every point."""

    max_depth = MAX_DEPTH

    def start(self, shape: Shape, seed: int) -> None:
        self.random = Random(seed)
        place = MemoryPlace()
        self.disk = Disk(place, shape, self.random, JournalFiles(place.files, Journal(shuffle=self.random)))
        trio.run(self.disk.open)

    def range_of(self, slot: int, within: int, length: int) -> tuple[int, int]:
        offset = slot * CLUSTER_BYTES % len(self.disk.model) + within
        return offset, min(length, len(self.disk.model) - offset)

    @rule(slot=SLOTS, within=WITHIN, length=LENGTHS, kind=st.sampled_from(KINDS_OF_DATA), fua=st.booleans())
    def write(self, slot: int, within: int, length: int, kind: str, fua: bool) -> None:
        offset, length = self.range_of(slot, within, length)
        trio.run(self.disk.run, Change("write", offset, length, data_of(kind, length, self.random), fua))

    @rule(slot=SLOTS, within=WITHIN, length=LENGTHS)
    def read(self, slot: int, within: int, length: int) -> None:
        trio.run(self.disk.run, Change("read", *self.range_of(slot, within, length)))

    @rule(slot=SLOTS, count=st.integers(1, 4))
    def discard_whole_clusters(self, slot: int, count: int) -> None:
        trio.run(self.disk.run, Change("discard", *self.range_of(slot, 0, count * CLUSTER_BYTES)))

    @rule(slot=SLOTS, within=WITHIN, length=LENGTHS)
    def discard(self, slot: int, within: int, length: int) -> None:
        trio.run(self.disk.run, Change("discard", *self.range_of(slot, within, length)))

    @rule(slot=SLOTS, within=WITHIN, length=LENGTHS, kind=st.sampled_from(("zero", "unmap")))
    def write_zeroes(self, slot: int, within: int, length: int, kind: str) -> None:
        trio.run(self.disk.run, Change(kind, *self.range_of(slot, within, length)))
        self.disk.assert_told_as_it_is()

    @rule()
    def flush(self) -> None:
        trio.run(self.disk.run, Change("flush", 0, 0))

    @rule(count=st.integers(2, 8))
    def many_at_once(self, count: int) -> None:
        trio.run(self.disk.run_together, draw_disjoint(len(self.disk.model), count, self.random))

    @precondition(lambda self: len(self.disk.specs) < self.max_depth)
    @rule()
    def snapshot(self) -> None:
        trio.run(self.disk.snapshot)

    @rule(clusters=SIZES)
    def grow(self, clusters: int) -> None:
        # A raw image is as long as its disk; in memory that has to be bytes.
        raw_alone = self.disk.specs[-1].raw
        trio.run(self.disk.grow, min(clusters, MODELLED) if raw_alone else clusters)
        trio.run(self.disk.verify)

    @precondition(lambda self: len(self.disk.specs) > 1)
    @rule(count=st.integers(0, 5))
    def merge(self, count: int) -> None:
        # A discard beside it would depend on who comes first: it has no effect on a cluster of a lower level.
        drawn = draw_disjoint(len(self.disk.model), count, self.random) if count else []
        trio.run(self.disk.merge, [change for change in drawn if change.kind != "discard"])
        trio.run(self.disk.verify)

    @rule()
    def reopen(self) -> None:
        trio.run(self.disk.reopen)

    @rule()
    def die_and_come_back(self) -> None:
        trio.run(self.disk.die)
        trio.run(self.disk.open)
        trio.run(self.disk.verify)

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            trio.run(self.disk.close)


class AloneMachine(Machine):
    """One image: the only stack in which a discard frees clusters."""

    max_depth = 1

    @initialize(clusters=st.integers(4, 8), version=st.sampled_from((V1, V2)), seed=SEEDS)
    def build(self, clusters: int, version: Version, seed: int) -> None:
        self.start(Shape(clusters, depth=1, version=version), seed)


class ChainMachine(Machine):
    @initialize(
        clusters=st.integers(4, 8), depth=st.integers(2, MAX_DEPTH), version=st.sampled_from((V1, V2)), seed=SEEDS
    )
    def build(self, clusters: int, depth: int, version: Version, seed: int) -> None:
        self.start(Shape(clusters, depth=depth, version=version), seed)


class RawBaseMachine(Machine):
    @initialize(clusters=st.integers(4, 8), depth=st.integers(1, MAX_DEPTH), short=st.sampled_from(SHORT), seed=SEEDS)
    def build(self, clusters: int, depth: int, short: int, seed: int) -> None:
        self.start(Shape(clusters, depth=depth, raw_base=True, raw_short_bytes=short), seed)


TestAlone = AloneMachine.TestCase
TestChain = ChainMachine.TestCase
TestRawBase = RawBaseMachine.TestCase
TestAlone.settings = TestChain.settings = TestRawBase.settings = settings(max_examples=120, stateful_step_count=30)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("seed", range(5))
async def test_a_long_walk_ends_where_the_model_ends(seed: int, version: Version, depth: int) -> None:
    """Hypothesis looks for short stories; a long one meets what only many operations make likely."""
    random = Random(seed)
    place = MemoryPlace()
    shuffled = JournalFiles(place.files, Journal(shuffle=random))
    disk = Disk(place, Shape(8, depth=depth, version=version), random, shuffled)
    await disk.open()
    for step in range(300):
        if step % 50 == 49:
            await random.choice((disk.reopen, disk.verify))()
        elif step % 10 == 0:
            await disk.run_together(draw_disjoint(len(disk.model), random.randrange(2, 9), random))
        else:
            await disk.run(draw_change(len(disk.model), random))
    await disk.close()
