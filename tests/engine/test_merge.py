"""Level top-1 goes up into the top: what is copied, beside whom, and what an error or a power failure leaves."""

import errno
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.grow import grown
from ploopfs.engine.merge import COPIES_AT_ONCE, copied_up, without_level
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError, Busy, InStandby, Interrupted, NoSuchEntry, ReadOnly
from ploopfs.image.header import V1, V2
from ploopfs.testing.images import ImageBuilder
from tests.engine.crash import Run, assert_survives_any_power_failure
from tests.engine.disk import Shape, draw_change
from tests.engine.rig import BASE, CLUSTER, NEW, OLD, TOP, Rig

MIDDLE = "/memory/middle.hds"


@pytest.fixture
def three() -> Rig:
    """Clusters 0 and 1 are the base's, 1 to 3 the middle's, 3 and 4 the top's: 1 and 2 are to be copied."""
    rig = Rig(paths=(BASE, MIDDLE, TOP))
    rig.put(BASE, {0: b"b" * CLUSTER, 1: b"B" * CLUSTER})
    rig.put(MIDDLE, dict.fromkeys((1, 2, 3), b"m" * CLUSTER))
    rig.put(TOP, dict.fromkeys((3, 4), b"t" * CLUSTER))
    return rig


async def merged(stack: Stack) -> Stack:
    return without_level(stack, await copied_up(stack))


async def test_what_the_middle_shows_is_copied_and_what_lies_deeper_is_not(three: Rig) -> None:
    stack = await three.open()
    before = bytes(await stack.read(0, 8 * CLUSTER))
    three.journal.entries.clear()
    after = await merged(stack)
    assert await after.read(0, 8 * CLUSTER) == before
    assert [bool(three.entry(slot)) for slot in range(8)] == [False, True, True, True, True, False, False, False]
    assert [delta.path for delta in after.deltas] == [BASE, TOP]
    assert after.map.top_level == 1
    assert {entry.path for entry in three.journal.of("write", "truncate", "fsync", "punch hole")} == {TOP}
    assert [delta.path for delta in stack.dropped_by(after)] == [MIDDLE]
    assert three.counters.bio_cows == 2


async def test_the_stack_without_the_level_is_the_disk_after_opening_again(three: Rig) -> None:
    stack = await merged(await three.open())
    await stack.write(0, NEW)
    content = bytes(await stack.read(0, 8 * CLUSTER))
    await stack.aclose(clean=True)
    three.paths = (BASE, TOP)
    again = await three.open()
    assert again.map == stack.map
    assert again.lower == stack.lower
    assert await again.read(0, 8 * CLUSTER) == content


async def test_a_base_that_is_merged_leaves_one_image_whose_discards_free_clusters_that_the_base_had_not(
    chain: Rig,
) -> None:
    """Those that it had are freed when the images have been opened without it: until then somebody may open them with
    it again."""
    stack = await merged(await chain.open())
    assert len(stack.deltas) == 1
    assert await stack.read(CLUSTER, CLUSTER) == OLD
    await stack.write(5 * CLUSTER, OLD)
    await stack.discard(0, 8 * CLUSTER)
    assert (bool(chain.entry(1)), chain.entry(5)) == (True, 0)
    assert not any(await stack.read(0, 8 * CLUSTER))
    with pytest.raises(NoSuchEntry):
        await copied_up(stack)
    await stack.aclose(clean=True)
    chain.paths = (TOP,)
    alone = await chain.open()
    await alone.discard(0, 8 * CLUSTER)
    assert chain.entry(1) == 0


async def test_two_discards_of_one_cluster_free_it_once_also_beside_one_that_the_base_had(chain: Rig) -> None:
    """The one that the base had is made a hole first, which takes a while."""
    stack = await merged(await chain.open())
    await stack.write(5 * CLUSTER, OLD)
    held = chain.faults.pause("punch hole", count=1)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(stack.discard, 0, 8 * CLUSTER)
        await wait_all_tasks_blocked()
        assert held.released is not None
        held.released.set()
    assert (bool(chain.entry(1)), chain.entry(5)) == (True, 0)
    for slot in (6, 7):  # each gets a cluster of its own
        await stack.write(slot * CLUSTER, bytes([slot]) * CLUSTER)
    assert await stack.read(6 * CLUSTER, 2 * CLUSTER) == bytes([6]) * CLUSTER + bytes([7]) * CLUSTER


async def test_a_raw_base_that_ends_inside_a_cluster_is_copied_with_zeroes_behind_it() -> None:
    rig = Rig()
    rig.memory.put("/raw", OLD * 2 + b"end")
    rig.put(TOP, {1: NEW})
    spec = StackSpec((ImageSpec("/raw", raw=True), ImageSpec(TOP)))
    stack = await merged(await open_stack(rig.memory, spec, read_only=False, counters=Counters()))
    expected = OLD + NEW + bytes(CLUSTER - len(NEW)) + b"end" + bytes(6 * CLUSTER - 3)
    assert await stack.read(0, 8 * CLUSTER) == expected
    assert (stack.format_version, len(stack.deltas)) == (2, 1)


async def test_the_copies_are_on_stable_storage_before_the_level_may_go(three: Rig) -> None:
    stack = await three.open()
    three.journal.entries.clear()
    await copied_up(stack)
    done = three.journal.note("done")
    last = three.journal.of("fsync")[-1]
    assert all(entry.ended_before(last) for entry in three.journal.of("write", "truncate"))
    assert last.ended_before(done)


async def test_not_more_copies_than_the_bound_are_under_way(three: Rig) -> None:
    three.memory.put(BASE, ImageBuilder(disk_clusters=50).build())
    three.memory.put(MIDDLE, ImageBuilder(disk_clusters=50, clusters=dict.fromkeys(range(50), OLD)).build())
    three.memory.put(TOP, ImageBuilder(disk_clusters=50).build())
    stack = await three.open()
    held = three.faults.on(MIDDLE, three.faults.pause("read"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copied_up, stack)
        await wait_all_tasks_blocked()
        assert held.hits == COPIES_AT_ONCE
        assert held.released is not None
        held.released.set()
    assert len(stack.map.owned_by(2)) == 50


# --- beside requests --------------------------------------------------------------------------------------------------


async def test_a_write_meets_a_copy_in_its_cluster_and_neither_is_lost(three: Rig) -> None:
    stack = await three.open()
    held = three.faults.pause("fsync", count=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copied_up, stack)
        await wait_all_tasks_blocked()
        nursery.start_soon(stack.write, CLUSTER + 512, NEW)
        nursery.start_soon(stack.write, 6 * CLUSTER, NEW)
        await wait_all_tasks_blocked()
        assert held.released is not None
        held.released.set()
    assert await stack.read(CLUSTER, CLUSTER) == b"m" * 512 + NEW + b"m" * (CLUSTER - 512 - len(NEW))
    assert len(stack.map.owned_by(1)) == 0


async def test_a_copy_finds_a_cluster_that_a_write_has_brought_up_and_leaves_it_alone(three: Rig) -> None:
    stack = await three.open()
    held = three.faults.pause("fsync", count=1)
    async with trio.open_nursery() as nursery:
        for slot in (1, 2):
            nursery.start_soon(stack.write, slot * CLUSTER, NEW)
        await wait_all_tasks_blocked()
        nursery.start_soon(copied_up, stack)
        await wait_all_tasks_blocked()
        assert held.released is not None
        held.released.set()
    assert three.counters.bio_alloc == 2
    assert await stack.read(CLUSTER, CLUSTER) == NEW + b"m" * (CLUSTER - len(NEW))


async def test_every_copy_and_the_flush_go_through_the_gate_they_are_given(three: Rig) -> None:
    stack = await three.open()
    passed = []

    async def gate(work: Callable[[Stack], Awaitable[None]]) -> None:
        passed.append(len(three.journal.of("fsync")))
        await work(stack)

    await copied_up(stack, gate)
    assert len(passed) == 3


async def test_what_the_gate_refuses_ends_the_merge(three: Rig) -> None:
    stack = await three.open()

    async def gate(_work: Callable[[Stack], Awaitable[None]]) -> None:
        raise InStandby("the device is in standby")

    with pytest.raises(InStandby):
        await copied_up(stack, gate)
    assert len(stack.map.owned_by(1)) == 2


async def test_another_stack_in_force_ends_the_merge(three: Rig) -> None:
    stack = await three.open()
    other = await grown(stack, 16 * 64)

    async def gate(work: Callable[[Stack], Awaitable[None]]) -> None:
        await work(other)

    with pytest.raises(Busy):
        await copied_up(stack, gate)
    copied = await copied_up(other)
    with pytest.raises(Busy):
        without_level(stack, copied)


async def test_when_the_time_is_over_no_copy_is_begun_and_those_under_way_end(
    three: Rig,
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    three.memory.put(MIDDLE, ImageBuilder(disk_clusters=50, clusters=dict.fromkeys(range(50), OLD)).build())
    three.memory.put(TOP, ImageBuilder(disk_clusters=50).build())
    stack = await three.open()
    slow = three.faults.pause("fsync", count=1)
    slow.released, slow.delay_s = None, 10
    with pytest.raises(Interrupted) as raised:
        await copied_up(stack, limit_s=5)
    assert raised.value.errno == errno.EINTR
    assert len(stack.map.owned_by(2)) == COPIES_AT_ONCE
    assert not stack.top.file.abandoned
    assert len((await merged(stack)).deltas) == 2


async def test_a_level_that_still_has_a_cluster_does_not_go(three: Rig) -> None:
    stack = await three.open()
    copied = await copied_up(await three_again(three))
    with pytest.raises(Busy):
        without_level(stack, copied)


async def three_again(three: Rig) -> Stack:
    spec = StackSpec(tuple(ImageSpec(path) for path in (BASE, MIDDLE, "/memory/other.hds")))
    three.memory.put("/memory/other.hds", ImageBuilder(disk_clusters=8).build())
    return await open_stack(three.memory, spec, read_only=False, counters=Counters())


async def test_a_read_only_stack_merges_nothing(three: Rig) -> None:
    spec = StackSpec(tuple(ImageSpec(path) for path in three.paths))
    with pytest.raises(ReadOnly):
        await copied_up(await open_stack(three.memory, spec, read_only=True, counters=Counters()))


# --- errors and power failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["refused", "done-but-denied"])
@pytest.mark.parametrize("operation", ["truncate", "read", "write", "fsync"])
@pytest.mark.parametrize("skip", range(3))
async def test_an_error_ends_it_and_the_disk_is_what_it_was(three: Rig, operation: str, skip: int, after: bool) -> None:
    stack = await three.open()
    before = bytes(await stack.read(0, 8 * CLUSTER))
    rule = three.faults.fail(errno.EIO, operation, skip=skip, count=1, after=after)
    with suppress(BackendError):
        await copied_up(stack)
        assert rule.hits == 0
    three.faults.remove(rule)
    assert await stack.read(0, 8 * CLUSTER) == before
    if operation != "fsync" or not rule.hits:
        after_all = await merged(stack)
        assert await after_all.read(0, 8 * CLUSTER) == before


class MergingRun(Run):
    """Random operations, level after level merged among them; from then on the level's file is gone."""

    async def operate(self) -> None:
        while len(self.disk.specs) > 1:
            await self._some_operations()
            self.note()
            await self.disk.merge()
            self.note(flushed=True)
        await self._some_operations()

    async def _some_operations(self) -> None:
        for _ in range(self.random.randrange(2, 10)):
            await self.operation(draw_change(len(self.disk.model), self.random))


SHAPES = {
    "v1 on two": Shape(depth=3, version=V1),
    "v2 on three": Shape(depth=4, version=V2),
    "v2 on raw": Shape(depth=2, raw_base=True, raw_short_bytes=4096),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_power_failure_beside_a_merge_loses_nothing_though_the_merged_files_are_gone(
    shape: Shape, seed: int
) -> None:
    assert_survives_any_power_failure(MergingRun(shape, seed))
