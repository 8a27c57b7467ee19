"""A copy of the top file that follows the tracker is the file, whatever was written meanwhile."""

import errno
from contextlib import suppress
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.opening import StackSpec, open_stack, rebuilt
from ploopfs.engine.stack import Stack
from ploopfs.engine.tracking import is_tracking, next_tracked, start_tracking, stop_tracking
from ploopfs.errors import AlreadyExists, BackendError, NoSuchEntry, NothingTracked, ReadOnly
from tests.engine.disk import Disk, Shape, draw_change, draw_disjoint
from tests.engine.journal import Journal, JournalFiles
from tests.engine.places import MemoryPlace
from tests.engine.rig import BASE, CLUSTER, NEW, TOP, Rig


def answers(stack: Stack) -> list[int]:
    found = []
    with suppress(NothingTracked):
        while True:
            found.append(next_tracked(stack))
    return found


async def test_all_used_clusters_of_the_file_come_first_then_those_that_are_written(alone: Rig) -> None:
    stack = await alone.open()
    start_tracking(stack)
    assert answers(stack) == [0, 1]
    await stack.write(3 * CLUSTER, NEW)
    assert answers(stack) == [1]
    await stack.write(0, NEW)  # a new cluster, and its entry in the map
    assert answers(stack) == [2, 0]
    await stack.discard(0, CLUSTER)
    assert sorted(answers(stack)) == [0, 2]
    with pytest.raises(NothingTracked) as raised:
        next_tracked(stack)
    assert raised.value.errno == errno.EAGAIN


async def test_it_is_off_until_it_is_started_and_after_it_is_stopped(alone: Rig) -> None:
    stack = await alone.open()
    for _ in range(2):
        assert not is_tracking(stack)
        for call in (next_tracked, stop_tracking):
            with pytest.raises(NoSuchEntry):
                call(stack)
        start_tracking(stack)
        assert is_tracking(stack)
        with pytest.raises(AlreadyExists):
            start_tracking(stack)
        stop_tracking(stack)


async def test_what_is_read_only_is_not_tracked(alone: Rig) -> None:
    stack = await open_stack(alone.memory, StackSpec((ImageSpec(TOP),)), read_only=True, counters=Counters())
    for call in (start_tracking, stop_tracking, next_tracked):
        with pytest.raises(ReadOnly):
            call(stack)


async def test_of_a_raw_image_every_cluster_is_used() -> None:
    rig = Rig()
    rig.memory.put("/raw", bytes(2 * CLUSTER + 512))
    spec = StackSpec((ImageSpec("/raw", raw=True),), cluster_sectors=64)
    stack = await open_stack(rig.memory, spec, read_only=False, counters=Counters())
    start_tracking(stack)
    assert answers(stack) == [0, 1, 2]


async def test_another_stack_over_the_same_open_top_tracks_on(chain: Rig) -> None:
    stack = await chain.open()
    start_tracking(stack)
    assert answers(stack) == [0]
    again = await rebuilt(stack.deltas, stack.size_bytes, stack.counters)
    await again.write(0, NEW)
    assert answers(again) == [1, 0]
    assert chain.memory.bytes_of(BASE)


async def test_a_cluster_is_told_of_when_its_write_has_ended_and_not_while_it_is_half_there(alone: Rig) -> None:
    stack = await alone.open()
    start_tracking(stack)
    assert answers(stack) == [0, 1]
    held = alone.faults.pause("write", count=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stack.write, 3 * CLUSTER, NEW)
        await wait_all_tasks_blocked()
        assert answers(stack) == []
        assert held.released is not None
        held.released.set()
    assert answers(stack) == [1]


async def test_a_write_that_failed_may_have_changed_its_cluster(alone: Rig) -> None:
    stack = await alone.open()
    start_tracking(stack)
    assert answers(stack) == [0, 1]
    alone.faults.fail(errno.EIO, "write", count=1)
    with pytest.raises(BackendError):
        await stack.write(3 * CLUSTER, NEW)
    assert answers(stack) == [1]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("seed", range(6))
async def test_a_copy_that_follows_the_answers_is_the_file(seed: int, depth: int) -> None:
    random = Random(seed)
    place = MemoryPlace()
    disk = Disk(place, Shape(8, depth=depth), random, JournalFiles(place.files, Journal(shuffle=random)))
    await disk.open()
    for _ in range(5):
        await disk.run(draw_change(len(disk.model), random))
    start_tracking(disk.stack)
    copy = bytearray()

    def copy_some(count: int) -> None:
        for _ in range(count):
            with suppress(NothingTracked):
                start = next_tracked(disk.stack) * CLUSTER
                copy.extend(bytes(max(0, start + CLUSTER - len(copy))))
                copy[start : start + CLUSTER] = place.content(disk.top_path)[start : start + CLUSTER]

    for _ in range(20):
        copy_some(random.randrange(4))
        await disk.run_together(draw_disjoint(len(disk.model), random.randrange(1, 6), random))
    assert disk.stack.top.bat is not None
    await disk.grow(8177)  # the map, and data that are in its way, are written too
    copy_some(1000)
    whole = place.content(disk.top_path)
    header_and_map = {0, 1}
    for cluster in header_and_map | {int(cluster) for cluster in disk.stack.top.bat.used()}:
        used = slice(cluster * CLUSTER, (cluster + 1) * CLUSTER)
        assert copy[used] == whole[used], cluster
