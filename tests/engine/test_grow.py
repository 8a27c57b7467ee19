"""A disk that grows while it is open: what it reads as, what an error or a power failure at any step leaves."""

import errno
from contextlib import suppress
from itertools import pairwise
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.grow import grown
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.errors import BackendError, BadImage, BadValue, Busy, ReadOnly, StorageTimeout
from ploopfs.image.check import Verdict
from ploopfs.image.header import CLOSED, IN_USE, V1, V2
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.engine.crash import Run, assert_survives_any_power_failure
from tests.engine.disk import Disk, Shape, draw_change, verdict
from tests.engine.journal import Journal, JournalFiles
from tests.engine.places import FaultyPlace
from tests.engine.rig import BASE, CLUSTER, NEW, OLD, TOP, Rig

SECTORS = CLUSTER // 512
SMALL, LARGE = 12, 20000
"""Clusters of a disk whose map stays within cluster 0 of the file, and of one whose map takes clusters 0 to 2."""


@pytest.fixture
def full() -> Rig:
    """An image whose clusters 1 to 4 of the file are the disk's 3, 0, 5 and 1."""
    rig = Rig()
    rig.put(TOP, {slot: bytes([slot + 1]) * CLUSTER for slot in (3, 0, 5, 1)})
    return rig


# --- what it reads as -------------------------------------------------------------------------------------------------


async def test_the_disk_is_larger_at_once_and_after_opening_again(full: Rig) -> None:
    stack = await full.open()
    before = bytes(await stack.read(0, 8 * CLUSTER))
    stack = await grown(stack, LARGE * SECTORS)
    assert stack.size_bytes == LARGE * CLUSTER
    await stack.write((LARGE - 1) * CLUSTER, NEW)
    await stack.aclose(clean=True)
    assert (full.header.in_use, full.header.first_cluster, full.header.disk_clusters) == (CLOSED, 3, LARGE)
    assert verdict(full.top).verdict is Verdict.CLEAN
    again = await full.open()
    for disk in (stack, again):
        assert disk.map == again.map
    assert await again.read(0, 8 * CLUSTER) == before
    assert await again.read((LARGE - 2) * CLUSTER, 2 * CLUSTER) == bytes(CLUSTER) + NEW + bytes(CLUSTER - len(NEW))


async def test_a_lower_delta_stays_as_it_is_and_has_nothing_in_the_new_part(chain: Rig) -> None:
    stack = await chain.open()
    base = chain.memory.bytes_of(BASE)
    stack = await grown(stack, SMALL * SECTORS)
    await stack.write(1 * CLUSTER, NEW)
    await stack.write(11 * CLUSTER, NEW)
    assert await stack.read(CLUSTER, CLUSTER) == NEW + OLD[len(NEW) :]
    assert await stack.read(8 * CLUSTER, 4 * CLUSTER) == bytes(3 * CLUSTER) + NEW + bytes(CLUSTER - len(NEW))
    assert chain.memory.bytes_of(BASE) == base


async def test_the_part_of_a_raw_base_past_the_old_end_is_there_as_it_will_be_after_opening_again() -> None:
    rig = Rig()
    rig.memory.put("/raw", OLD * 10)
    rig.put(TOP, {})
    spec = StackSpec((ImageSpec("/raw", raw=True), ImageSpec(TOP)))
    stack = await grown(await open_stack(rig.memory, spec, read_only=False, counters=Counters()), SMALL * SECTORS)
    assert await stack.read(8 * CLUSTER, 4 * CLUSTER) == OLD * 2 + bytes(2 * CLUSTER)
    await stack.aclose(clean=True)
    again = await open_stack(rig.memory, spec, read_only=True, counters=Counters())
    assert again.map == stack.map


async def test_a_raw_image_alone_grows_with_its_file() -> None:
    memory, journal = MemoryFiles(), Journal()
    memory.put("/raw", OLD + b"end".ljust(512, b"\0"))
    spec = StackSpec((ImageSpec("/raw", raw=True),), cluster_sectors=SECTORS)
    stack = await open_stack(JournalFiles(memory, journal), spec, read_only=False, counters=Counters())
    with pytest.raises(BadValue, match="size 66 sectors, expected a multiple of the cluster, 64 sectors"):
        await grown(stack, SECTORS + 2)
    assert await grown(stack, SECTORS + 1) is stack
    stack = await grown(stack, 3 * SECTORS)
    assert [entry.operation for entry in journal.entries][-2:] == ["truncate", "fsync"]
    await stack.write(2 * CLUSTER, NEW)
    assert await stack.read(CLUSTER, 2 * CLUSTER) == b"end".ljust(CLUSTER, b"\0") + NEW + bytes(CLUSTER - len(NEW))
    assert len(memory.bytes_of("/raw")) == 3 * CLUSTER


async def test_a_disk_that_is_smaller_than_its_top_grows_into_it_without_a_change(full: Rig) -> None:
    full.memory.put(TOP, ImageBuilder(disk_clusters=SMALL, clusters={10: OLD}).build())
    stack = await full.open()
    stack.size_bytes = 8 * CLUSTER
    full.journal.entries.clear()
    larger = await grown(stack, SMALL * SECTORS)
    assert (larger.size_bytes, full.journal.entries) == (SMALL * CLUSTER, [])
    assert await larger.read(10 * CLUSTER, CLUSTER) == OLD


async def test_a_dirty_bitmap_does_not_outlive_it(full: Rig) -> None:
    stack = await grown(await full.open(), SMALL * SECTORS)
    await stack.aclose(clean=True)
    assert (full.header.extension_sectors, full.header.in_use) == (0, CLOSED)


# --- what is refused, in vz9's order ----------------------------------------------------------------------------------


async def test_a_size_that_does_not_do_changes_nothing(full: Rig) -> None:
    stack = await full.open()
    full.journal.entries.clear()
    for sectors in (7 * SECTORS, 9 * SECTORS + 1, (1 << 32) * SECTORS):
        with pytest.raises(BadValue) as raised:
            await grown(stack, sectors)
        assert raised.value.errno == errno.EINVAL
    assert await grown(stack, 8 * SECTORS) is stack
    assert full.journal.entries == []


async def test_a_map_that_would_not_be_opened_again_is_refused(full: Rig) -> None:
    stack = await full.open()
    full.journal.entries.clear()
    with pytest.raises(Exception, match="m_FirstBlockOffset is") as raised:
        await grown(stack, (1 << 27) * SECTORS)
    assert getattr(raised.value, "errno", None) == errno.EINVAL
    assert full.journal.entries == []


async def test_a_read_only_disk_does_not_grow_whatever_the_size(full: Rig) -> None:
    spec = StackSpec((ImageSpec(TOP),))
    stack = await open_stack(full.memory, spec, read_only=True, counters=Counters())
    for sectors in (1, 8 * SECTORS, LARGE * SECTORS):
        with pytest.raises(ReadOnly):
            await grown(stack, sectors)


async def test_the_map_does_not_grow_where_a_failed_write_may_yet_arrive(full: Rig) -> None:
    stack = await full.open()
    full.faults.fail(errno.EIO, "write", count=1)
    with pytest.raises(BackendError):
        await stack.write(0, NEW)  # in place, in cluster 2 of the file
    with pytest.raises(Busy, match="a write to cluster 2 failed and may yet arrive"):
        await grown(stack, LARGE * SECTORS)
    stack = await grown(stack, SMALL * SECTORS)
    stack.top.file.abandoned = True
    with pytest.raises(StorageTimeout, match=TOP):
        await grown(stack, LARGE * SECTORS)


# --- order ------------------------------------------------------------------------------------------------------------


async def test_every_step_is_synced_before_the_next_begins_and_the_header_comes_last(full: Rig) -> None:
    stack = await full.open()
    full.journal.entries.clear()
    await grown(stack, LARGE * SECTORS)
    answered = full.journal.note("answered")
    writes = full.journal.of("write")
    copies = [write for write in writes if write.offset >= 3 * CLUSTER]
    (named,) = [write for write in writes if 64 <= write.offset < CLUSTER]
    cleared = full.journal.of("punch hole")
    (header,) = [write for write in writes if write.offset == 0]
    assert {write.length for write in copies} == {CLUSTER}
    assert [(hole.offset, hole.length) for hole in cleared] == [(CLUSTER, CLUSTER), (2 * CLUSTER, CLUSTER)]
    assert (len(copies), header.length) == (2, 64)
    stages = [copies, [named], cleared, [header], [answered]]
    for before, after in pairwise(stages):
        syncs = full.journal.of("fsync")
        assert any(
            all(entry.ended_before(sync) for entry in before) and all(sync.ended_before(entry) for entry in after)
            for sync in syncs
        )


# --- errors at each step ----------------------------------------------------------------------------------------------


_MOVE = ("truncate", "read", "write")
STEPS = ("fsync", *_MOVE * 2, "fsync", "write", "fsync", "punch hole", "punch hole", "fsync", "write", "fsync")
"""What the storage is asked to do for `full` to grow to LARGE."""


async def test_the_steps_are_these(full: Rig) -> None:
    stack = await full.open()
    asked = len(full.faults.log)
    await grown(stack, LARGE * SECTORS)
    assert tuple(operation for operation, _path in full.faults.log[asked:]) == STEPS


@pytest.mark.parametrize("after", [False, True], ids=["refused", "done-but-denied"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("step", range(len(STEPS)))
async def test_an_error_at_any_step_leaves_the_old_disk_in_service_and_a_sound_image(
    full: Rig, step: int, number: int, after: bool
) -> None:
    stack = await full.open()
    expected = bytes(await stack.read(0, 8 * CLUSTER))
    full.faults.fail(number, skip=step, count=1, after=after)
    with pytest.raises(BackendError) as raised:
        await grown(stack, LARGE * SECTORS)
    assert (raised.value.errno, raised.value.operation) == (number, STEPS[step])
    assert await stack.read(0, 8 * CLUSTER) == expected
    assert verdict(full.top).verdict is Verdict.NOT_CLOSED
    is_sticky = STEPS[step] == "fsync"
    if not is_sticky:
        # A new cluster must not go where the file may say that its map is.
        await stack.write(6 * CLUSTER, NEW)
        assert full.entry(6) >= 3
        expected = expected[: 6 * CLUSTER] + NEW + expected[6 * CLUSTER + len(NEW) :]
    await stack.aclose(clean=not is_sticky)
    assert verdict(full.top).verdict is (Verdict.NOT_CLOSED if is_sticky else Verdict.CLEAN)
    spec = StackSpec((ImageSpec(TOP),))
    again = await open_stack(full.memory, spec, read_only=True, counters=Counters())
    assert await again.read(0, 8 * CLUSTER) == expected


async def test_after_an_error_it_can_be_tried_again(full: Rig) -> None:
    stack = await full.open()
    before = bytes(await stack.read(0, 8 * CLUSTER))
    for operation, skip in (("truncate", 0), ("read", 0), ("punch hole", 1), ("write", 0)):
        full.faults.fail(errno.ENOSPC, operation, skip=skip, count=1)
        with pytest.raises(BackendError):
            await grown(stack, LARGE * SECTORS)
    stack = await grown(stack, LARGE * SECTORS)
    assert await stack.read(0, 8 * CLUSTER) == before
    await stack.aclose(clean=True)
    assert (verdict(full.top).verdict, full.header.disk_clusters) == (Verdict.CLEAN, LARGE)


async def test_a_header_that_the_file_may_have_is_taken_back_whole_by_a_close(full: Rig) -> None:
    stack = await full.open()
    header_write = 3  # after two copies and a page of the map
    full.faults.fail(errno.EIO, "write", skip=header_write, count=1, after=True)
    with pytest.raises(BackendError):
        await grown(stack, LARGE * SECTORS)
    assert (full.header.disk_clusters, full.header.in_use) == (LARGE, IN_USE)
    assert stack.top.doubtful_header == full.header
    await stack.aclose(clean=True)
    assert (full.header.disk_clusters, full.header.first_cluster, full.header.in_use) == (8, 1, CLOSED)
    assert verdict(full.top).verdict is Verdict.CLEAN


async def test_a_lower_map_that_cannot_be_read_stops_it_before_anything_is_written(chain: Rig) -> None:
    stack = await chain.open()
    rule = chain.faults.on(BASE, chain.faults.fail(errno.ENOTCONN, "read"))
    chain.journal.entries.clear()
    with pytest.raises(BackendError):
        await grown(stack, LARGE * SECTORS)
    assert chain.journal.of("write", "truncate", "punch hole") == []
    chain.faults.remove(rule)
    await grown(stack, LARGE * SECTORS)


async def test_a_failed_growth_of_the_file_is_cut_off_when_it_is_closed(alone: Rig) -> None:
    """The storage may have made a part of what it then denied."""
    stack = await alone.open()
    alone.faults.fail(errno.EIO, "truncate", count=1, after=True)
    with pytest.raises(BackendError):
        await stack.write(0, NEW)
    assert len(alone.top) == 9 * CLUSTER, "all that the disk can need"
    await stack.aclose(clean=True)
    assert len(alone.top) == 2 * CLUSTER


# --- power failures ---------------------------------------------------------------------------------------------------


class GrowingRun(Run):
    """Random operations with three growths among them; the last one moves every cluster that lies in its way."""

    async def operate(self) -> None:
        for clusters in (9, 8177, LARGE):
            await self.some_operations()
            self.disk.model.grow(min(clusters, 16))
            self.note()
            await self.disk.grow(clusters)
            self.note(flushed=True)
        await self.some_operations()

    async def some_operations(self) -> None:
        for _ in range(self.random.randrange(2, 10)):
            await self.operation(draw_change(len(self.disk.model), self.random))


SHAPES = {
    "v2 alone": Shape(depth=1, version=V2),
    "v1 alone": Shape(depth=1, version=V1),
    "v2 on two": Shape(depth=3, version=V2),
    "v2 on raw": Shape(depth=2, raw_base=True, raw_short_bytes=4096),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_power_failure_while_a_disk_grows_loses_nothing(
    shape: Shape, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ploopfs.engine.room.GROW_AHEAD_MIB", 1)  # what lies ahead is a copy in each outcome
    assert_survives_any_power_failure(GrowingRun(shape, seed))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_errors_at_any_steps_and_retries_end_with_the_disk_of_the_model(failing: list[int], seed: int) -> None:
    async def story() -> None:
        place = FaultyPlace()
        disk = Disk(place, Shape(clusters=8), Random(seed))
        await disk.open()
        await disk.run(draw_change(len(disk.model), disk_random))
        for skip in failing:
            rule = place.faults.fail(errno.ENOSPC, "read", "write", "truncate", "punch hole", skip=skip, count=1)
            with suppress(BackendError):
                await disk.grow(LARGE)
            place.faults.remove(rule)
            await disk.run(draw_change(len(disk.model), disk_random))
        await disk.close()

    disk_random = Random(seed + 1)
    trio.run(story)


@pytest.mark.parametrize("raw", [False, True], ids=["image", "raw"])
async def test_a_size_that_no_map_in_memory_can_hold_is_refused_before_anything_changes(full: Rig, raw: bool) -> None:
    if raw:
        full.memory.put(TOP, bytes(8 * CLUSTER))
    spec = StackSpec((ImageSpec(TOP, raw=raw),), cluster_sectors=SECTORS if raw else None)
    stack = await open_stack(full.memory, spec, read_only=False, counters=Counters())
    before = full.memory.bytes_of(TOP)
    reason = "a disk has 4294967290 clusters of 32768 bytes, expected at most" if raw else "m_FirstBlockOffset is"
    with pytest.raises((BadValue, BadImage), match=reason):
        await grown(stack, 4294967290 * SECTORS)
    assert full.memory.bytes_of(TOP) == before
    assert stack.size_bytes == 8 * CLUSTER
    await stack.aclose(clean=True)
