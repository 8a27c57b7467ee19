"""A hole's first write without a task: data at the end of the file, and then its entry of the map."""

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.room import Room
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError
from ploopfs.image.check import Verdict
from ploopfs.image.header import HEADER_BYTES
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.device.ready import ReadyFiles
from tests.engine.crash import Run, assert_survives_any_power_failure
from tests.engine.disk import Shape, verdict
from tests.engine.rig import BASE, CLUSTER, NEW, OLD, TOP, Rig, data_writes, map_writes

NEXT = 2
"""The cluster of the file that is the next one: the image has its map, and cluster 3 of the disk."""


@pytest.fixture
def alone(alone: Rig) -> Rig:
    alone.storage = ReadyFiles
    return alone


def room_of(stack: Stack) -> Room:
    assert stack.room is not None
    return stack.room


def no_room(*_arguments: object) -> int:
    raise OSError(errno.ENOSPC, "no room")


def needs_room(stack: Stack) -> bool:
    room_of(stack).look()
    return room_of(stack).is_wanted


async def opened(rig: Rig) -> Stack:
    """With room at the end of the file for all that the disk can need."""
    stack = await rig.open()
    await room_of(stack).make()
    rig.journal.entries.clear()
    return stack


class Soon:
    """A write; `heard` is how it ended."""

    def __init__(self, stack: Stack, slot: int, data: bytes = NEW, within: int = 0) -> None:
        self.heard: list[BackendError | None] = []
        self.is_begun = stack.write_soon(slot * CLUSTER + within, data, self.heard.append)

    @property
    def errno(self) -> int:
        [error] = self.heard
        return error.errno if error else 0


async def written(stack: Stack, slot: int, data: bytes = NEW, within: int = 0) -> Soon:
    """When nothing more happens by itself."""
    soon = Soon(stack, slot, data, within)
    assert soon.is_begun
    await wait_all_tasks_blocked()
    return soon


async def hung(rig: Rig, stack: Stack, slot: int, *, at_entry: bool) -> tuple[Soon, trio.Event]:
    """The storage does not answer the write of its data, or that of its entry, before the event is set."""
    rule = rig.faults.on(TOP, rig.faults.pause("write", count=1))
    rule.skip = int(at_entry)
    soon = await written(stack, slot)
    assert (rule.hits, soon.heard) == (1, [])
    assert rule.released is not None
    return soon, rule.released


# --- what it does -------------------------------------------------------------------------------------------------


async def test_its_data_are_written_and_then_the_four_bytes_of_its_entry_and_nothing_else(alone: Rig) -> None:
    stack = await opened(alone)
    soon = await written(stack, 5, within=512)
    assert soon.errno == 0
    data, entry = alone.journal.entries
    assert (data.operation, data.offset, data.data) == ("write", NEXT * CLUSTER + 512, NEW)
    assert (entry.operation, entry.offset, entry.data) == ("write", HEADER_BYTES + 4 * 5, bytes((NEXT, 0, 0, 0)))
    assert data.ended_before(entry)
    assert bytes(await stack.read(5 * CLUSTER, 512 + 4096)) == bytes(512) + NEW
    assert stack.is_unconfirmed
    await stack.flush()
    assert not stack.is_unconfirmed


async def test_until_then_the_disk_is_as_it_was_and_the_cluster_is_known_to_be_its(alone: Rig) -> None:
    stack = await opened(alone)
    soon, released = await hung(alone, stack, 5, at_entry=True)
    assert bytes(await stack.read(5 * CLUSTER, 4096)) == bytes(4096)
    assert stack.serves(range(5 * CLUSTER, 5 * CLUSTER + 1), 0, NEXT * CLUSTER, 1)
    assert (stack.is_unconfirmed, alone.entry(5)) == (True, 0)
    released.set()
    await wait_all_tasks_blocked()
    assert soon.errno == 0
    assert bytes(await stack.read(5 * CLUSTER, 4096)) == NEW


async def test_it_is_counted_as_one_that_waits_in_a_task(alone: Rig) -> None:
    stack = await opened(alone)
    await written(stack, 5)
    await written(stack, 6, NEW * (CLUSTER // len(NEW)))
    other = Rig()
    other.put(TOP, {3: OLD})
    slow = await opened(other)
    await slow.write(5 * CLUSTER, NEW)
    await slow.write(6 * CLUSTER, NEW * (CLUSTER // len(NEW)))
    counts = [(each.bio_alloc, each.bio_alloc_whole, each.map_single_writes, each.map_multi_writes)
              for each in (alone.counters, other.counters)]
    assert counts == [(2, 1, 2, 0)] * 2


async def test_many_at_once_each_have_a_cluster_and_the_image_is_sound_and_as_long_as_it_must_be(alone: Rig) -> None:
    stack = await opened(alone)
    soons = [Soon(stack, slot, bytes([slot + 1]) * CLUSTER) for slot in (0, 1, 2, 4, 5, 6)]
    assert all(each.is_begun for each in soons)
    await wait_all_tasks_blocked()
    assert [each.errno for each in soons] == [0] * 6
    for slot in (0, 1, 2, 4, 5, 6):
        assert bytes(await stack.read(slot * CLUSTER, 9)) == bytes([slot + 1]) * 9
    assert alone.journal.of("fsync", "truncate") == []
    await stack.aclose(clean=True)
    assert verdict(alone.top).verdict is Verdict.CLEAN
    assert len(alone.top) == 8 * CLUSTER


# --- what is left for a task --------------------------------------------------------------------------------------


async def _free_one(stack: Stack) -> None:
    await stack.write(7 * CLUSTER, NEW)
    await stack.discard(7 * CLUSTER, CLUSTER)


async def _in_doubt(stack: Stack) -> None:
    stack.top.uncertain_slots.add(0)


async def _lost(stack: Stack) -> None:
    stack.note_loss(BackendError(errno.EIO, "read", TOP))


async def _preallocating(stack: Stack) -> None:
    stack.top.preallocates = True


async def _not_durable(stack: Stack) -> None:
    stack.top.durable_size = NEXT * CLUSTER


async def _shorter(stack: Stack) -> None:
    stack.top.file_size = NEXT * CLUSTER


IN_THE_WAY: dict[str, Callable[[Stack], Awaitable[None]]] = {
    "a released cluster": _free_one,
    "an uncertain entry": _in_doubt,
    "a loss": _lost,
    "preallocation": _preallocating,
    "an end that is not durable": _not_durable,
    "a file that is too short": _shorter,
}


def untouched(rig: Rig, stack: Stack, slot: int, data: bytes = NEW, within: int = 0) -> None:
    before = len(rig.journal.entries), rig.counters.bio_alloc, stack.is_unconfirmed
    assert not Soon(stack, slot, data, within).is_begun
    assert (len(rig.journal.entries), rig.counters.bio_alloc, stack.is_unconfirmed) == before


@pytest.mark.parametrize("what", IN_THE_WAY)
async def test_none_is_begun_where_more_is_needed_or_something_is_in_doubt(alone: Rig, what: str) -> None:
    stack = await opened(alone)
    await IN_THE_WAY[what](stack)
    untouched(alone, stack, 5)


async def test_nor_of_zeroes_nor_of_two_clusters(alone: Rig) -> None:
    stack = await opened(alone)
    untouched(alone, stack, 5, bytes(4096))
    untouched(alone, stack, 5, within=CLUSTER - 1)


async def test_nor_where_a_lower_level_has_the_cluster(chain: Rig) -> None:
    chain.storage = ReadyFiles
    stack = await opened(chain)
    untouched(chain, stack, 1)
    assert (await written(stack, 2)).errno == 0


async def test_nor_where_the_file_has_a_gap() -> None:
    rig = Rig(storage=ReadyFiles)
    rig.put(TOP, {3: OLD, 4: OLD})
    image = bytearray(rig.top)
    image[HEADER_BYTES + 4 * 3 : HEADER_BYTES + 4 * 4] = bytes(4)
    rig.memory.put(TOP, bytes(image))
    stack = await opened(rig)
    untouched(rig, stack, 5)
    await stack.write(3 * CLUSTER, NEW)  # which takes it
    assert (await written(stack, 5)).errno == 0


async def test_nor_beyond_what_the_file_has_durably(alone: Rig) -> None:
    stack = await alone.open()
    untouched(alone, stack, 5)
    stack.top.file_size = stack.top.durable_size = (NEXT + 1) * CLUSTER
    assert (await written(stack, 5)).errno == 0
    untouched(alone, stack, 6)


async def test_a_raw_image_has_no_map() -> None:
    memory = MemoryFiles()
    memory.put(BASE, bytes(4 * CLUSTER))
    stack = await open_stack(memory, StackSpec((ImageSpec(BASE, raw=True),)), read_only=False, counters=Counters())
    assert Soon(stack, 0).is_begun
    assert not needs_room(stack)


# --- beside others ------------------------------------------------------------------------------------------------


async def test_a_page_of_the_map_is_not_written_before_the_entries_in_flight_and_then_it_has_them(
    alone: Rig, nursery: trio.Nursery
) -> None:
    stack = await opened(alone)
    soon, released = await hung(alone, stack, 0, at_entry=True)
    nursery.start_soon(stack.discard, 3 * CLUSTER, CLUSTER)
    await wait_all_tasks_blocked()
    assert [entry.length for entry in map_writes(alone.journal)] == []
    untouched(alone, stack, 5)
    released.set()
    await wait_all_tasks_blocked()
    assert soon.errno == 0
    one, page = map_writes(alone.journal)
    assert one.ended_before(page)
    assert page.length > 4
    assert (alone.entry(0), alone.entry(3)) == (NEXT, 0)
    assert bytes(await stack.read(0, 4096)) == NEW


async def test_while_a_page_is_written_none_is_begun(alone: Rig, nursery: trio.Nursery) -> None:
    stack = await opened(alone)
    rule = alone.faults.on(TOP, alone.faults.pause("write", count=1))
    nursery.start_soon(stack.discard, 3 * CLUSTER, CLUSTER)
    await wait_all_tasks_blocked()
    assert rule.hits == 1
    untouched(alone, stack, 5)
    assert rule.released is not None
    rule.released.set()
    await wait_all_tasks_blocked()


@pytest.mark.parametrize("at_entry", [False, True], ids=["data", "entry"])
async def test_a_second_write_to_the_same_cluster_waits_and_goes_in_place(
    alone: Rig, nursery: trio.Nursery, at_entry: bool
) -> None:
    stack = await opened(alone)
    soon, released = await hung(alone, stack, 5, at_entry=at_entry)
    untouched(alone, stack, 5)
    nursery.start_soon(stack.write, 5 * CLUSTER + 4096, b"second")
    await wait_all_tasks_blocked()
    assert len(data_writes(alone.journal)) == int(at_entry)
    released.set()
    await wait_all_tasks_blocked()
    assert soon.errno == 0
    assert bytes(await stack.read(5 * CLUSTER, 4102)) == NEW + b"second"
    assert (alone.counters.bio_alloc, alone.counters.bio_lockouts, alone.entry(5)) == (1, 1, NEXT)


@pytest.mark.parametrize("operation", ["discard", "zero", "unmap"])
async def test_what_makes_the_cluster_zero_beside_it_leaves_it_one_or_the_other(
    alone: Rig, nursery: trio.Nursery, operation: str
) -> None:
    stack = await opened(alone)
    soon, released = await hung(alone, stack, 5, at_entry=True)
    if operation == "discard":
        nursery.start_soon(stack.discard, 5 * CLUSTER, CLUSTER)
    else:
        nursery.start_soon(lambda: stack.write_zeroes(5 * CLUSTER, CLUSTER, unmap=operation == "unmap"))
    await wait_all_tasks_blocked()
    released.set()
    await wait_all_tasks_blocked()
    assert soon.errno == 0
    assert bytes(await stack.read(5 * CLUSTER, CLUSTER)).rstrip(b"\0") in (b"", NEW)
    await stack.aclose(clean=True)
    assert verdict(alone.top).verdict is Verdict.CLEAN


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_entry", [False, True], ids=["data", "entry"])
@pytest.mark.parametrize("after", [False, True], ids=["not done", "done"])
async def test_after_an_error_that_leaves_it_in_doubt_nobody_gets_the_cluster_and_the_entry_is_written_again(
    alone: Rig, at_entry: bool, after: bool
) -> None:
    stack = await opened(alone)
    alone.faults.fail(errno.EIO, "write", skip=int(at_entry), count=1, after=after)
    soon = await written(stack, 5)
    assert soon.errno == errno.EIO
    assert (stack.top.uncertain_slots, NEXT in stack.top.doubtful_clusters) == ({5}, True)
    alone.faults.rules.clear()
    assert bytes(await stack.read(5 * CLUSTER, 4096)) == bytes(4096)
    untouched(alone, stack, 6)
    await stack.write(6 * CLUSTER, OLD[:4096])
    assert alone.entry(6) == NEXT + 1
    assert (alone.entry(5), stack.top.uncertain_slots) == (0, set())
    assert (await written(stack, 5)).errno == 0
    assert alone.entry(5) == NEXT + 2
    assert bytes(await stack.read(5 * CLUSTER, 4096)) == NEW


@pytest.mark.parametrize("at_entry", [False, True], ids=["data", "entry"])
async def test_after_an_error_that_excludes_that_it_arrives_the_cluster_is_free_and_is_scrubbed_for_the_next_one(
    alone: Rig, at_entry: bool
) -> None:
    stack = await opened(alone)
    alone.faults.fail(errno.ENOSPC, "write", skip=int(at_entry), count=1)
    soon = await written(stack, 5)
    assert soon.errno == errno.ENOSPC
    alone.faults.rules.clear()
    assert (stack.top.uncertain_slots, stack.top.doubtful_clusters, alone.entry(5)) == (set(), set(), 0)
    untouched(alone, stack, 6)
    await stack.write(6 * CLUSTER + 8192, b"part")
    assert alone.entry(6) == NEXT
    expected = bytes(8192) + b"part" + bytes(CLUSTER - 8196)
    is_same = bytes(await stack.read(6 * CLUSTER, CLUSTER)) == expected
    assert is_same
    assert (await written(stack, 5)).errno == 0


async def test_who_waits_for_a_cluster_whose_write_fails_gets_one_of_his_own(alone: Rig, nursery: trio.Nursery) -> None:
    stack = await opened(alone)
    soon, released = await hung(alone, stack, 5, at_entry=False)
    nursery.start_soon(stack.write, 5 * CLUSTER, b"second")
    await wait_all_tasks_blocked()
    alone.faults.rules.pop().errno = errno.EIO
    released.set()
    await wait_all_tasks_blocked()
    assert soon.errno == errno.EIO
    assert bytes(await stack.read(5 * CLUSTER, 8)) == b"second\0\0"
    assert alone.entry(5) == NEXT + 1


async def test_a_flush_beside_it_waits_for_it_and_does_not_vouch_for_one_that_failed(
    alone: Rig, nursery: trio.Nursery
) -> None:
    stack = await opened(alone)
    soon, released = await hung(alone, stack, 5, at_entry=True)
    failures: list[BackendError] = []

    async def flush() -> None:
        try:
            await stack.flush()
        except BackendError as error:
            failures.append(error)

    nursery.start_soon(flush)
    await wait_all_tasks_blocked()
    alone.faults.rules[0].errno = errno.EIO
    released.set()
    await wait_all_tasks_blocked()
    assert (soon.errno, [each.operation for each in failures]) == (errno.EIO, ["fsync"])


# --- power failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "together", "seed"), [(1, 1, 21), (1, 4, 25), (2, 1, 15), (2, 4, 3)])
def test_a_power_failure_at_any_moment_leaves_what_was_there_or_what_was_written(
    depth: int, together: int, seed: int
) -> None:
    run = Run(Shape(clusters=12, depth=depth, leaks=False), seed, operations=24, together=together, soon=True)
    assert min(run.disk.begun_soon) > 0, "none was written without a task"
    assert_survives_any_power_failure(run)


# --- room ahead ---------------------------------------------------------------------------------------------------


async def test_room_is_made_once_and_durably_and_none_is_needed_then(alone: Rig) -> None:
    stack = await alone.open()
    alone.journal.entries.clear()
    assert needs_room(stack)
    await room_of(stack).make()
    grown, synced = alone.journal.entries
    assert (grown.operation, grown.offset, synced.operation, synced.offset) == (
        "truncate", 9 * CLUSTER, "sync size", 9 * CLUSTER,
    )
    assert grown.ended_before(synced)
    assert (needs_room(stack), stack.top.durable_size) == (False, 9 * CLUSTER)
    await room_of(stack).make()
    assert len(alone.journal.entries) == 2


async def test_where_the_file_may_not_become_so_long_nothing_is_made_and_writes_go_on(alone: Rig) -> None:
    stack = await alone.open()
    refusal = alone.faults.fail(errno.EFBIG, "truncate", count=1)
    await room_of(stack).make()
    assert (refusal.hits, len(alone.top)) == (1, NEXT * CLUSTER)
    await stack.write(0, NEW)
    assert bytes(await stack.read(0, 4096)) == NEW


async def test_no_room_is_needed_by_who_preallocates(alone: Rig) -> None:
    stack = await alone.open()
    stack.top.preallocates = True
    assert not needs_room(stack)
    stack.top.preallocates = False
    assert needs_room(stack)


async def test_no_flush_is_believed_after_one_of_the_size_that_failed(alone: Rig) -> None:
    stack = await alone.open()
    alone.faults.fail(errno.EIO, "fsync", count=1)
    with pytest.raises(BackendError):
        await room_of(stack).make()
    with pytest.raises(BackendError) as raised:
        await stack.flush()
    assert (raised.value.errno, raised.value.operation) == (errno.EIO, "fsync")


async def test_a_size_is_not_certain_if_the_storage_was_lost_while_it_was_synced(
    alone: Rig, nursery: trio.Nursery
) -> None:
    stack = await alone.open()
    before = stack.top.durable_size
    held = alone.faults.pause("fsync", count=1)
    nursery.start_soon(room_of(stack).make)
    await wait_all_tasks_blocked()
    stack.note_loss(BackendError(errno.EIO, "write", TOP))
    assert held.released is not None
    held.released.set()
    await wait_all_tasks_blocked()
    assert (stack.top.file_size, stack.top.durable_size) == (9 * CLUSTER, before)


async def test_where_there_is_no_room_for_the_end_none_is_made_and_flushes_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(ImageBuilder(disk_clusters=8, clusters={3: OLD}).build())
    stack = await open_stack(OsFiles(), StackSpec((ImageSpec(str(image)),)), read_only=False, counters=Counters())
    size = stack.top.file_size
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", no_room)
        await room_of(stack).make()
    assert stack.top.file_size == size
    await stack.flush()
    await room_of(stack).make()
    assert stack.top.durable_size == stack.top.file_size > size
    await stack.aclose(clean=True)
    assert image.stat().st_size == size


async def test_it_is_noticed_in_time_that_room_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ploopfs.engine.room.GROW_AHEAD_MIB", 1)
    memory = MemoryFiles()
    memory.put(TOP, ImageBuilder(disk_clusters=99, clusters={}).build())
    stack = await open_stack(memory, StackSpec((ImageSpec(TOP),)), read_only=False, counters=Counters())
    room, made = room_of(stack), 0
    for slot in range(99):
        await stack.write(slot * CLUSTER, NEW)
        enough, noticed, room._enough_up_to = room._enough_up_to, room.is_wanted, 0
        assert needs_room(stack) is noticed
        room._enough_up_to = enough
        if noticed:
            await room.make()
            made += 1
    assert made > 3
