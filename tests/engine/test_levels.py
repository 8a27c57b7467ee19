"""Lower levels that user space has merged or rearranged: what the disk reads as, and what is not believed."""

import errno
import struct
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.levels import merged_backward, merged_forward, updated_index
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.stack import Stack
from ploopfs.errors import (
    BackendError,
    BadValue,
    ImageMismatch,
    ImageNotClosed,
    LevelTooLarge,
    NoSuchEntry,
    NotSupported,
    PloopError,
    WrongLength,
)
from ploopfs.image.bat import Bat
from ploopfs.image.header import IN_USE, MUTABLE_START, Header
from ploopfs.testing.images import ImageBuilder
from tests.engine.rig import BASE, CLUSTER, NEW, OLD, TOP, Rig

LEVELS = (BASE, "/memory/1.hds", "/memory/2.hds", TOP)
DISK = 8 * CLUSTER

Operation = Callable[[Stack, int], Awaitable[Stack]]


@pytest.fixture
def four() -> Rig:
    """Every cluster has another set of levels that have it, and each level has bytes of its own."""
    rig = Rig(paths=LEVELS)
    random = Random(4)
    for level, path in enumerate(LEVELS):
        slots = [slot for slot in range(8) if (slot * 7 + 3) >> level & 1]
        rig.put(path, {slot: random.randbytes(CLUSTER) for slot in slots})
    return rig


def clusters_of(image: bytes) -> dict[int, bytes]:
    header = Header.parse(image, "image")
    entries = enumerate(Bat(header, image[: header.bat_area_bytes]).clusters)
    return {slot: image[cluster * CLUSTER : (cluster + 1) * CLUSTER] for slot, cluster in entries if cluster}


def merge_files(rig: Rig, source: str, target: str, *, forward: bool) -> None:
    """What user space does before it says so. The file is written in place, as its open descriptors see it."""
    theirs, ours = clusters_of(rig.memory.bytes_of(source)), clusters_of(rig.memory.bytes_of(target))
    merged = {**theirs, **ours} if forward else {**ours, **theirs}
    rig.memory.images[target].data[:] = ImageBuilder(disk_clusters=8, clusters=merged).build()


@pytest.mark.parametrize("level", [0, 1])
async def test_a_level_merged_forward_is_not_needed_any_more(four: Rig, level: int) -> None:
    stack = await four.open()
    before = bytes(await stack.read(0, DISK))
    merge_files(four, LEVELS[level], LEVELS[level + 1], forward=True)
    after = await merged_forward(stack, level)
    await assert_taken_over(four, stack, after, dropped=level, before=before)


@pytest.mark.parametrize("level", [1, 2])
async def test_a_level_merged_backward_is_not_needed_any_more(four: Rig, level: int) -> None:
    stack = await four.open()
    before = bytes(await stack.read(0, DISK))
    merge_files(four, LEVELS[level], LEVELS[level - 1], forward=False)
    after = await merged_backward(stack, level)
    await assert_taken_over(four, stack, after, dropped=level, before=before)


async def assert_taken_over(rig: Rig, old: Stack, new: Stack, *, dropped: int, before: bytes) -> None:
    """The same disk on the same open files, without one level; and so it is after opening it again."""
    assert [delta.path for delta in old.dropped_by(new)] == [LEVELS[dropped]]
    for delta in old.dropped_by(new):
        await delta.aclose(clean=False)
    assert await new.read(0, DISK) == before
    await new.write(5 * CLUSTER, NEW)
    await new.aclose(clean=True)
    rig.paths = tuple(path for path in LEVELS if path != LEVELS[dropped])
    again = await rig.open()
    assert again.map == new.map
    assert await again.read(0, DISK) == before[: 5 * CLUSTER] + NEW + before[5 * CLUSTER + len(NEW) :]


async def test_a_raw_base_may_be_merged_into_and_have_got_longer() -> None:
    rig = Rig()
    rig.memory.put("/raw", OLD)
    rig.put(LEVELS[1], {2: b"m" * CLUSTER})
    rig.put(TOP, {})
    spec = StackSpec((ImageSpec("/raw", raw=True), ImageSpec(LEVELS[1]), ImageSpec(TOP)))
    stack = await open_stack(rig.memory, spec, read_only=False, counters=Counters())
    rig.memory.images["/raw"].data[:] = OLD + bytes(CLUSTER) + b"m" * CLUSTER
    after = await merged_backward(stack, 1)
    assert await after.read(0, 4 * CLUSTER) == OLD + bytes(CLUSTER) + b"m" * CLUSTER + bytes(CLUSTER)
    with pytest.raises(NotSupported) as raised:
        await merged_forward(stack, 0)
    assert raised.value.errno == 524


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED: tuple[tuple[Operation, int, type[PloopError], int], ...] = (
    (merged_forward, 3, NoSuchEntry, errno.ENOENT),
    (merged_forward, 9, NoSuchEntry, errno.ENOENT),
    (merged_backward, 3, NoSuchEntry, errno.ENOENT),
    (merged_backward, 0, BadValue, errno.EINVAL),
    (merged_forward, 2, BadValue, errno.EINVAL),
)


@pytest.mark.parametrize(("operation", "level", "error", "number"), REFUSED)
async def test_a_level_that_cannot_have_been_merged_is_refused_without_a_look(
    four: Rig, operation: Operation, level: int, error: type[PloopError], number: int
) -> None:
    stack = await four.open()
    four.journal.entries.clear()
    with pytest.raises(error) as raised:
        await operation(stack, level)
    assert (raised.value.errno, four.journal.entries) == (number, [])


async def test_in_a_stack_of_two_there_is_nothing_to_merge_but_into_the_top(chain: Rig) -> None:
    stack = await chain.open()
    with pytest.raises(BadValue, match="a stack of 2 deltas, expected at least 3"):
        await merged_forward(stack, 0)


async def test_a_neighbour_that_has_outgrown_the_delta_above_it_is_refused(four: Rig) -> None:
    stack = await four.open()
    four.memory.images[LEVELS[1]].data[:] = ImageBuilder(disk_clusters=9).build()
    for operation, level in ((merged_forward, 0), (merged_backward, 2)):
        with pytest.raises(LevelTooLarge, match=r"/1\.hds: m_SizeInSectors is 576, expected at most 512") as raised:
            await operation(stack, level)
        assert raised.value.errno == errno.EFBIG


async def test_a_neighbour_that_lacks_a_cluster_is_not_believed(four: Rig) -> None:
    stack = await four.open()
    before = bytes(await stack.read(0, DISK))
    for operation, level in ((merged_forward, 0), (merged_backward, 1)):
        with pytest.raises(ImageMismatch, match=r"clusters of level \d or its own are not in it, the first is \d"):
            await operation(stack, level)
    assert await stack.read(0, DISK) == before


async def test_a_neighbour_that_is_still_being_written_is_not_believed(four: Rig) -> None:
    stack = await four.open()
    merge_files(four, BASE, LEVELS[1], forward=True)
    struct.pack_into("<I", four.memory.images[LEVELS[1]].data, MUTABLE_START, IN_USE)
    with pytest.raises(ImageNotClosed, match=LEVELS[1]):
        await merged_forward(stack, 0)


async def test_a_neighbour_that_cannot_be_read_leaves_the_stack_as_it_was(four: Rig) -> None:
    stack = await four.open()
    before = bytes(await stack.read(0, DISK))
    merge_files(four, BASE, LEVELS[1], forward=True)
    for path in LEVELS[1:3]:
        rule = four.faults.on(path, four.faults.fail(errno.ENOTCONN, "read"))
        with pytest.raises(BackendError):
            await merged_forward(stack, 0)
        four.faults.remove(rule)
    assert stack.level_of(BASE) == 0
    assert await stack.read(0, CLUSTER) == before[:CLUSTER]


# --- update_delta_index -----------------------------------------------------------------------------------------------


async def test_clusters_that_have_moved_within_their_file_are_found_where_they_are(four: Rig) -> None:
    stack = await four.open()
    before = bytes(await stack.read(0, DISK))
    level, slots = 1, [int(slot) for slot in stack.map.owned_by(1)]
    assert slots
    data = four.memory.images[LEVELS[level]].data
    moved = {}
    for slot in slots:
        old = stack.map.clusters[slot]
        moved[slot] = len(data) // CLUSTER
        data += data[old * CLUSTER : (old + 1) * CLUSTER]
        data[old * CLUSTER : (old + 1) * CLUSTER] = b"?" * CLUSTER
    after = await updated_index(stack, level, moved)
    assert stack.dropped_by(after) == []
    assert await after.read(0, DISK) == before
    assert [after.map.clusters[slot] for slot in slots] == list(moved.values())


async def test_a_cluster_of_another_level_stays_where_it_is(four: Rig) -> None:
    stack = await four.open()
    (slot, *_rest) = (int(slot) for slot in stack.map.owned_by(3))
    hidden = stack.lower.levels[slot]
    after = await updated_index(stack, 0, {slot: 1})
    assert after.map == stack.map
    assert after.lower.levels[slot] == hidden


async def test_all_entries_are_checked_before_one_is_applied(four: Rig) -> None:
    four.memory.put(TOP, ImageBuilder(disk_clusters=9).build())
    stack = await four.open()
    (hole, *_rest) = (slot for slot in range(9) if stack.map.is_hole(slot))
    (good, *_rest) = (int(slot) for slot in stack.map.owned_by(0, 1, 2))
    level = stack.map.levels[good]
    end = len(four.memory.bytes_of(LEVELS[level])) // CLUSTER
    before = stack.map.clusters[good]
    for bad in ({9: 1}, {-1: 1}, {hole: 1}, {good: end}, {good: 0}):
        with pytest.raises(BadValue) as raised:
            await updated_index(stack, level, {good: 1, **bad})
        assert raised.value.errno == errno.EINVAL
    assert stack.map.clusters[good] == before
    with pytest.raises(NoSuchEntry):
        await updated_index(stack, 3, {good: 1})


async def test_a_file_that_does_not_end_with_a_cluster_is_refused(four: Rig) -> None:
    stack = await four.open()
    four.memory.images[BASE].data.append(0)
    with pytest.raises(WrongLength, match=f"{BASE}: the file has") as raised:
        await updated_index(stack, 0, {})
    assert raised.value.errno == errno.EPROTO
