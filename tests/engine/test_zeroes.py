"""Zeroes over an exact range: what takes space afterwards, what meets them, and what an error on the way leaves."""

import errno
import hashlib
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.failing import condemned, error_disk
from ploopfs.engine.grow import grown
from ploopfs.engine.merge import copied_up, without_level
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.stack import Stack
from ploopfs.engine.tracking import next_tracked, start_tracking
from ploopfs.errors import BackendError, NothingTracked, PloopError
from ploopfs.image.check import Verdict
from ploopfs.testing.images import ImageBuilder
from tests.engine.disk import verdict
from tests.engine.journal import JournalFiles
from tests.engine.rig import BASE, CLUSTER, NEW, OLD, TOP, Rig, data_writes, map_writes

DISK = 8 * CLUSTER


@pytest.fixture
def three(chain: Rig) -> Rig:
    """A base that has clusters 1 and 2, and a top that has 2 and 3: one of each kind, then holes."""
    chain.put(BASE, {1: OLD, 2: OLD})
    chain.put(TOP, {2: OLD, 3: OLD})
    return chain


def tracked(stack: Stack) -> list[int]:
    """What was written since the last call."""
    found: list[int] = []
    with suppress(NothingTracked):
        while True:
            found.append(next_tracked(stack))
    return found


async def reads_as(stack: Stack, expected: bytes) -> bool:
    found = bytes(await stack.read(0, len(expected)))
    return hashlib.sha256(found).digest() == hashlib.sha256(expected).digest()


# --- what is done -------------------------------------------------------------------------------------------------


async def test_each_kind_of_cluster_gives_back_what_the_format_lets_it(three: Rig) -> None:
    stack = await three.open()
    three.journal.entries.clear()
    await stack.write_zeroes(0, DISK, unmap=True)
    assert await reads_as(stack, bytes(DISK))
    assert [bool(three.entry(slot)) for slot in range(5)] == [False, True, True, False, False]
    assert data_writes(three.journal) == []
    assert {entry.offset // CLUSTER for entry in three.journal.of("punch hole")} == {1, 2}
    assert stack.allocated_bytes == 2 * CLUSTER


async def test_a_cluster_of_zeroes_above_a_lower_delta_is_durable_before_the_map_names_it(three: Rig) -> None:
    stack = await three.open()
    three.journal.entries.clear()
    await stack.write_zeroes(CLUSTER, CLUSTER, unmap=True)
    (grown,), (named,) = three.journal.of("truncate"), map_writes(three.journal)
    synced = three.journal.of("fsync")[0]
    assert grown.ended_before(synced)
    assert synced.ended_before(named)
    assert three.counters.bio_cows == 0


async def test_the_edges_keep_what_lies_beside_them(three: Rig) -> None:
    stack = await three.open()
    await stack.write_zeroes(CLUSTER + 100, 2 * CLUSTER, unmap=True)
    expected = bytes(CLUSTER) + b"o" * 100 + bytes(2 * CLUSTER) + b"o" * (CLUSTER - 100) + bytes(4 * CLUSTER)
    assert await reads_as(stack, expected)


@pytest.mark.parametrize("unmap", [True, False])
@pytest.mark.parametrize(("offset", "length"), [(5, 1), (0, CLUSTER), (4 * CLUSTER - 1, DISK), (100, 0)])
async def test_holes_stay_holes(alone: Rig, offset: int, length: int, unmap: bool) -> None:
    stack = await alone.open()
    await stack.write_zeroes(3 * CLUSTER, CLUSTER, unmap=True)
    alone.journal.entries.clear()
    await stack.write_zeroes(offset, min(length, DISK - offset), unmap=unmap)
    assert [entry.operation for entry in alone.journal.entries if entry.operation != "fsync"] == []
    assert stack.allocated_bytes == 0


async def test_without_unmap_what_has_space_keeps_it_and_is_written(three: Rig) -> None:
    stack = await three.open()
    before = [three.entry(slot) for slot in (2, 3)]
    three.journal.entries.clear()
    await stack.write_zeroes(0, DISK, unmap=False)
    assert await reads_as(stack, bytes(DISK))
    assert [three.entry(slot) for slot in (2, 3)] == before
    assert three.journal.of("punch hole") == []
    assert sum(entry.length for entry in data_writes(three.journal)) == 3 * CLUSTER
    assert stack.allocated_bytes == 3 * CLUSTER


async def test_without_check_zeros_zeroes_that_keep_their_space_take_it_where_nobody_has_any(alone: Rig) -> None:
    stack = await alone.open()
    await stack.write_zeroes(0, DISK, unmap=False, check_zeros=False)
    assert stack.allocated_bytes == DISK
    assert await reads_as(stack, bytes(DISK))


async def test_freed_clusters_serve_others_and_show_them_nothing_old(three: Rig) -> None:
    stack = await three.open()
    await stack.write_zeroes(3 * CLUSTER, CLUSTER, unmap=True)
    three.memory.images[TOP].data[2 * CLUSTER : 3 * CLUSTER] = b"?" * CLUSTER  # a storage that makes no holes
    await stack.write(6 * CLUSTER + 512, NEW)
    assert three.entry(6) == 2
    assert bytes(await stack.read(6 * CLUSTER, 1024)) == bytes(512) + NEW[:512]


async def test_a_cluster_of_zeroes_in_a_place_that_holds_old_bytes_is_scrubbed(three: Rig) -> None:
    stack = await three.open()
    await stack.write_zeroes(3 * CLUSTER, CLUSTER, unmap=True)
    three.memory.images[TOP].data[2 * CLUSTER : 3 * CLUSTER] = b"?" * CLUSTER
    await stack.write_zeroes(CLUSTER, CLUSTER, unmap=True)
    assert three.entry(1) == 2
    assert await reads_as(stack, bytes(2 * CLUSTER) + OLD + bytes(5 * CLUSTER))


async def test_a_storage_that_cannot_punch_is_written_zeroes_where_the_range_would_show_something_else(
    three: Rig,
) -> None:
    stack = await three.open()
    three.faults.fail(errno.EOPNOTSUPP, "punch hole")
    await stack.write_zeroes(0, DISK, unmap=True)
    assert await reads_as(stack, bytes(DISK))
    assert not three.entry(3)


async def test_clusters_that_lie_together_are_one_hole(alone: Rig) -> None:
    alone.put(TOP, dict.fromkeys((0, 1, 2, 5, 6), OLD))
    stack = await alone.open()
    alone.journal.entries.clear()
    await stack.write_zeroes(0, DISK, unmap=True)
    (hole,) = alone.journal.of("punch hole")
    assert (hole.offset, hole.length) == (CLUSTER, 5 * CLUSTER)
    assert len(map_writes(alone.journal)) == 1
    assert stack.allocated_bytes == 0


async def test_a_range_of_many_clusters_lets_others_go_on_in_between(alone: Rig) -> None:
    """More than one update of the map takes, and each of them is durable before the next begins."""
    disk_clusters = 2500
    alone.memory.put(TOP, ImageBuilder(disk_clusters, clusters=dict.fromkeys(range(disk_clusters), b"o" * 512)).build())
    stack = await alone.open()
    alone.journal.entries.clear()
    await stack.write_zeroes(0, disk_clusters * CLUSTER, unmap=True)
    assert len(alone.journal.of("punch hole")) == 3
    assert stack.allocated_bytes == 0
    assert stack.seek_data(0) is None


async def test_a_raw_disk_gets_a_hole_of_the_very_bytes(alone: Rig) -> None:
    alone.memory.put("/memory/disk.raw", b"r" * (2 * CLUSTER + 512))
    files = (ImageSpec("/memory/disk.raw", raw=True),)
    alone.journal.entries.clear()
    stack = await open_stack(
        JournalFiles(alone.memory, alone.journal), StackSpec(files), read_only=False, counters=Counters()
    )
    await stack.write_zeroes(100, 2 * CLUSTER, unmap=True)
    assert [(entry.offset, entry.length) for entry in alone.journal.of("punch hole")] == [(100, 2 * CLUSTER)]
    await stack.write_zeroes(10, 20, unmap=False)
    assert [(entry.offset, entry.length) for entry in alone.journal.of("write")] == [(10, 20)]
    assert await reads_as(stack, b"r" * 10 + bytes(20) + b"r" * 70 + bytes(2 * CLUSTER) + b"r" * 412)
    assert stack.allocated_bytes == stack.size_bytes


async def test_a_cluster_of_zeroes_is_tracked_though_nothing_is_written_to_it(three: Rig) -> None:
    """A copy that follows the answers must be as long as the file."""
    stack = await three.open()
    start_tracking(stack)
    assert tracked(stack)
    await stack.write_zeroes(CLUSTER, CLUSTER, unmap=True)
    assert three.entry(1) in tracked(stack)


@pytest.mark.parametrize("depth", [1, 2])
async def test_a_real_file_is_smaller_afterwards_and_sound(tmp_path: Path, depth: int) -> None:
    names = [tmp_path / f"{level}.hds" for level in range(depth)]
    for name in names:
        name.write_bytes(ImageBuilder(16, clusters=dict.fromkeys(range(8), OLD)).build())
    specs = tuple(ImageSpec(str(name)) for name in names)
    stack = await open_stack(OsFiles(), StackSpec(specs), read_only=False, counters=Counters())
    before = os.stat(names[-1]).st_blocks * 512
    await stack.write_zeroes(512, 8 * CLUSTER - 512, unmap=True)
    assert os.stat(names[-1]).st_blocks * 512 <= before - 7 * CLUSTER
    assert await reads_as(stack, b"o" * 512 + bytes(16 * CLUSTER - 512))
    await stack.aclose(clean=True)
    assert verdict(names[-1].read_bytes()).verdict is Verdict.CLEAN


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("change", ["zeroes", "discard"])
async def test_what_became_zero_after_a_merge_stays_so_where_the_level_is_named_again(
    depth: int, change: str
) -> None:
    """Who opens the images by a descriptor that nobody has changed, because the merge was not told of in time."""
    rig = Rig(paths=("/memory/bottom.hds", BASE, TOP)[-depth:])
    for path, clusters in (("/memory/bottom.hds", {0: OLD}), (BASE, {1: OLD, 2: OLD}), (TOP, {2: OLD, 3: OLD})):
        rig.put(path, clusters)
    stack = await rig.open()
    stack = without_level(stack, await copied_up(stack))
    stack = await grown(stack, 10 * CLUSTER // 512)
    if change == "zeroes":
        await stack.write_zeroes(0, DISK, unmap=True)
    else:
        await stack.discard(CLUSTER, 3 * CLUSTER)
    expected = bytes(await stack.read(0, DISK))
    assert not any(expected[CLUSTER:])
    assert not rig.entry(3) or (depth, change) == (3, "discard")
    await stack.aclose(clean=True)
    again = await rig.open()
    assert await reads_as(again, expected)


# --- what meets it ------------------------------------------------------------------------------------------------


async def test_a_copy_up_that_is_under_way_shows_no_old_bytes_after_the_zeroes(three: Rig) -> None:
    """A write of a part of the cluster copies the rest of it up from below: the zeroes come after that, or before."""
    stack = await three.open()
    held = three.faults.pause("fsync", count=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stack.write, CLUSTER + 4096, NEW)
        await wait_all_tasks_blocked()
        nursery.start_soon(partial(stack.write_zeroes, CLUSTER, CLUSTER, unmap=True))
        await wait_all_tasks_blocked()
        assert held.released is not None
        held.released.set()
    assert not any(bytes(await stack.read(CLUSTER, 4096)))
    assert not any(bytes(await stack.read(CLUSTER + 8192, CLUSTER - 8192)))
    assert three.entry(1) == 3, "the cluster of the copy-up is the one that became zeroes"


async def test_a_write_that_comes_while_a_cluster_of_zeroes_is_made_copies_nothing_old(three: Rig) -> None:
    stack = await three.open()
    held = three.faults.pause("fsync", count=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(stack.write_zeroes, CLUSTER, CLUSTER, unmap=True))
        await wait_all_tasks_blocked()
        nursery.start_soon(stack.write, CLUSTER + 4096, NEW)
        await wait_all_tasks_blocked()
        assert held.released is not None
        held.released.set()
    assert bytes(await stack.read(CLUSTER, CLUSTER)) == bytes(4096) + NEW + bytes(CLUSTER - 8192)


async def test_the_hole_of_a_discard_that_comes_late_lands_in_nobody_elses_cluster(three: Rig) -> None:
    """Above a lower delta a discard claims nothing, and zeroes may free the cluster meanwhile."""
    stack = await three.open()
    held = three.faults.pause("punch hole", count=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stack.discard, 3 * CLUSTER, CLUSTER)
        await wait_all_tasks_blocked()
        nursery.start_soon(partial(stack.write_zeroes, 3 * CLUSTER, CLUSTER, unmap=True))
        nursery.start_soon(stack.write, 6 * CLUSTER, OLD)
        await wait_all_tasks_blocked()  # for a sync, which waits for the hole
        assert held.released is not None
        held.released.set()
    assert await reads_as(stack, bytes(CLUSTER) + OLD + OLD + bytes(3 * CLUSTER) + OLD + bytes(CLUSTER))
    await stack.write(7 * CLUSTER, OLD)
    assert three.entry(7) == 2, "the cluster is free when the discard has ended"


async def test_two_that_zero_the_same_clusters_free_each_once(three: Rig) -> None:
    stack = await three.open()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(partial(stack.write_zeroes, 0, DISK, unmap=True))
    for slot in (5, 6):
        await stack.write(slot * CLUSTER, NEW)
    assert len({three.entry(slot) for slot in (1, 2, 5, 6)}) == 4


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["punch hole", "truncate", "fsync", "write"])
@pytest.mark.parametrize("skip", range(3))
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
async def test_an_error_on_the_way_leaves_each_cluster_as_it_was_or_zero_and_the_image_sound(
    three: Rig, operation: str, skip: int, number: int
) -> None:
    stack = await three.open()
    rule = three.faults.fail(number, operation, skip=skip)
    with suppress(BackendError):  # whether this step is ever reached is not the question
        await stack.write_zeroes(100, DISK - 200, unmap=True)
    three.faults.remove(rule)
    content = bytes(await stack.read(0, DISK))
    assert set(content[:CLUSTER]) | set(content[4 * CLUSTER :]) == {0}
    for slot in (1, 2, 3):
        assert set(content[slot * CLUSTER : (slot + 1) * CLUSTER]) in ({0}, {ord("o")})
    if operation == "fsync":
        return  # which has failed for good
    await stack.write_zeroes(100, DISK - 200, unmap=True)
    assert await reads_as(stack, bytes(DISK))
    await stack.aclose(clean=True)
    assert verdict(three.top).verdict is Verdict.CLEAN


async def test_a_stack_that_serves_nothing_tells_of_no_holes_that_nobody_could_read() -> None:
    stack = error_disk(size_bytes=DISK, cluster_bytes=CLUSTER)
    assert (stack.seek_data(5), stack.seek_data(DISK), stack.seek_hole(5)) == (5, None, DISK)
    assert stack.allocated_bytes == DISK
    with pytest.raises(PloopError):
        await stack.write_zeroes(0, 1, unmap=True)


async def test_a_condemned_stack_makes_nothing_zero_and_hides_nothing(three: Rig) -> None:
    stack = await three.open()
    lost = condemned(stack, errno.ENOTCONN, "write", TOP)
    before = three.top
    with pytest.raises(BackendError) as failure:
        await lost.write_zeroes(0, DISK, unmap=True)
    assert (failure.value.errno, three.top == before) == (errno.ENOTCONN, True)
    assert (lost.seek_data(0), lost.seek_hole(0), lost.allocated_bytes) == (0, DISK, DISK)


# --- what is told -------------------------------------------------------------------------------------------------


async def test_data_and_holes_are_found_from_any_byte_on(three: Rig) -> None:
    stack = await three.open()
    present = [slot in (1, 2, 3) for slot in range(8)]
    for at in sorted({*range(0, DISK, CLUSTER), *(Random(1).randrange(DISK) for _ in range(50)), DISK - 1}):
        slot = at // CLUSTER
        data = next((max(at, later * CLUSTER) for later in range(slot, 8) if present[later]), None)
        hole = next((max(at, later * CLUSTER) for later in range(slot, 8) if not present[later]), DISK)
        assert (stack.seek_data(at), stack.seek_hole(at)) == (data, hole), at
    assert (stack.seek_data(DISK), stack.seek_hole(DISK)) == (None, DISK)


async def test_nothing_is_asked_of_the_storage_to_tell_it(three: Rig) -> None:
    stack = await three.open()
    three.faults.log.clear()
    assert (stack.seek_data(0), stack.seek_hole(CLUSTER), stack.allocated_bytes) == (CLUSTER, 4 * CLUSTER, 3 * CLUSTER)
    assert three.faults.log == []
