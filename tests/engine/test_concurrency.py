"""Requests that meet: in one cluster, in one fsync, in one page of the map, in a cluster that changes hands."""

import errno

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.engine.combine import Combiner
from ploopfs.engine.epochs import Epochs
from ploopfs.errors import BackendError
from tests.engine.rig import BASE, CLUSTER, NEW, OLD, TOP, Rig, map_writes


async def test_writes_to_one_new_cluster_allocate_it_once(alone: Rig) -> None:
    stack = await alone.open()
    async with trio.open_nursery() as nursery:
        for part in range(8):
            nursery.start_soon(stack.write, part * 4096, bytes([part + 1]) * 4096)
    assert alone.counters.bio_alloc == 1
    assert await stack.read(0, CLUSTER) == b"".join(bytes([part + 1]) * 4096 for part in range(8))


async def test_a_write_waits_for_the_cluster_that_another_one_allocates_and_reads_do_not(alone: Rig) -> None:
    stack = await alone.open()
    held = alone.faults.pause("fsync")
    answered: list[str] = []

    async def write(name: str, offset: int) -> None:
        await stack.write(offset, NEW)
        answered.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, "first", 0)
        await wait_all_tasks_blocked()
        nursery.start_soon(write, "same cluster", 8192)
        nursery.start_soon(write, "in place", 3 * CLUSTER)
        await wait_all_tasks_blocked()
        assert answered == ["in place"]
        assert alone.counters.bio_lockouts == 0  # counted when the wait is over
        assert await stack.read(0, CLUSTER) == bytes(CLUSTER)
        assert held.released is not None
        held.released.set()
    assert answered == ["in place", "first", "same cluster"]
    assert alone.counters.bio_lockouts == 1
    assert await stack.read(0, 12288) == NEW + bytes(4096) + NEW


async def test_a_second_write_tries_itself_when_the_first_one_fails(alone: Rig) -> None:
    stack = await alone.open()
    held = alone.faults.pause("truncate", count=1)
    held.errno = errno.EIO

    async def fail() -> None:
        with pytest.raises(BackendError):
            await stack.write(0, OLD)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await wait_all_tasks_blocked()
        nursery.start_soon(stack.write, 8192, NEW)
        await wait_all_tasks_blocked()
        assert held.released is not None
        held.released.set()
    assert await stack.read(0, CLUSTER) == bytes(8192) + NEW + bytes(CLUSTER - 12288)


async def test_a_freed_cluster_serves_nobody_else_while_an_old_read_is_in_flight(alone: Rig) -> None:
    stack = await alone.open()
    held = alone.faults.pause("read", count=1)
    seen = []

    async def read() -> None:
        seen.append(bytes(await stack.read(3 * CLUSTER, CLUSTER)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        await stack.discard(3 * CLUSTER, CLUSTER)
        await stack.write(0, b"s" * CLUSTER)
        assert alone.entry(0) == 2
        assert held.released is not None
        held.released.set()
    assert seen[0] in (OLD, bytes(CLUSTER))
    await stack.write(CLUSTER, NEW)
    assert alone.entry(1) == 1
    assert await stack.read(CLUSTER, CLUSTER) == NEW + bytes(CLUSTER - len(NEW))


async def test_a_late_write_into_a_freed_cluster_shows_up_nowhere(alone: Rig) -> None:
    stack = await alone.open()
    held = alone.faults.pause("write", count=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stack.write, 3 * CLUSTER, NEW)
        await wait_all_tasks_blocked()
        nursery.start_soon(stack.discard, 3 * CLUSTER, CLUSTER)
        nursery.start_soon(stack.write, 0, b"s" * CLUSTER)
        await wait_all_tasks_blocked()
        assert held.released is not None
        held.released.set()
    assert await stack.read(0, CLUSTER) == b"s" * CLUSTER
    await stack.write(CLUSTER + 8192, NEW)
    assert alone.entry(1) == 1
    assert await stack.read(CLUSTER, CLUSTER) == bytes(8192) + NEW + bytes(CLUSTER - 12288)


async def test_a_write_behind_a_discard_of_its_cluster_is_not_lost(alone: Rig) -> None:
    stack = await alone.open()
    held = alone.faults.pause("punch hole", count=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stack.discard, 3 * CLUSTER, CLUSTER)
        await wait_all_tasks_blocked()
        nursery.start_soon(stack.write, 3 * CLUSTER, NEW)
        nursery.start_soon(stack.discard, 3 * CLUSTER, CLUSTER // 2)
        await wait_all_tasks_blocked()
        assert held.released is not None
        held.released.set()
    assert await stack.read(3 * CLUSTER, CLUSTER) == NEW + bytes(CLUSTER - len(NEW))


async def test_two_discards_of_one_cluster_free_it_once(alone: Rig) -> None:
    stack = await alone.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stack.discard, 3 * CLUSTER, CLUSTER)
        nursery.start_soon(stack.discard, 3 * CLUSTER, CLUSTER)
    for slot in (0, 1):
        await stack.write(slot * CLUSTER, NEW)
    assert {alone.entry(0), alone.entry(1)} == {1, 2}


async def test_flushes_that_wait_for_one_another_share_a_sync(alone: Rig) -> None:
    stack = await alone.open()
    before = len(alone.journal.of("fsync"))
    held = alone.faults.pause("fsync", count=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stack.flush)
        await wait_all_tasks_blocked()
        for _ in range(9):
            nursery.start_soon(stack.flush)
        await wait_all_tasks_blocked()
        assert held.released is not None
        held.released.set()
    assert len(alone.journal.of("fsync")) - before == 2
    assert (alone.counters.bio_flush_out, alone.counters.bio_fsync) == (10, 2)


async def test_copies_that_wait_for_one_another_share_a_sync_and_a_map_write() -> None:
    alone = Rig(paths=(BASE, TOP))
    alone.put(BASE, dict.fromkeys(range(8), OLD))
    alone.put(TOP, {3: OLD})
    stack = await alone.open()
    alone.journal.entries.clear()
    synced, named = alone.faults.pause("fsync", count=1), alone.faults.pause("write", count=1)
    named.skip = 6  # the data of all five, and the map entry of the first
    assert synced.released is not None
    assert named.released is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stack.write, 0, NEW)
        await wait_all_tasks_blocked()
        for slot in (1, 2, 4, 5):
            nursery.start_soon(stack.write, slot * CLUSTER, NEW)
        await wait_all_tasks_blocked()
        synced.released.set()
        await wait_all_tasks_blocked()
        named.released.set()
    assert len(alone.journal.of("fsync")) == 2
    assert len(map_writes(alone.journal)) <= 3
    assert alone.counters.map_multi_updates >= 3  # of those who came while another one's entry was written
    assert [bool(alone.entry(slot)) for slot in range(8)] == [True] * 6 + [False] * 2


async def test_new_clusters_share_a_sync_and_each_has_its_own_entry_written(alone: Rig) -> None:
    stack = await alone.open()
    alone.journal.entries.clear()
    async with trio.open_nursery() as nursery:
        for slot in (0, 1, 2, 4, 5):
            nursery.start_soon(stack.write, slot * CLUSTER, NEW)
    assert len(alone.journal.of("fsync")) <= 2
    assert [entry.length for entry in map_writes(alone.journal)] == [4] * 5
    assert [bool(alone.entry(slot)) for slot in range(8)] == [True] * 6 + [False] * 2


async def test_growing_for_two_at_once_never_shrinks_the_file(alone: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ploopfs.engine.room.GROW_AHEAD_MIB", 0)
    stack = await alone.open()
    held = alone.faults.pause("truncate", count=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stack.write, 0, b"a" * CLUSTER)
        await wait_all_tasks_blocked()
        nursery.start_soon(stack.write, 4 * CLUSTER, b"b" * 4 * CLUSTER)
        await wait_all_tasks_blocked()
        assert held.released is not None
        held.released.set()
    assert await stack.read(0, CLUSTER) == b"a" * CLUSTER
    assert await stack.read(4 * CLUSTER, 4 * CLUSTER) == b"b" * 4 * CLUSTER
    assert [entry.offset for entry in alone.journal.of("truncate")] == [3 * CLUSTER, 7 * CLUSTER]


# --- the parts --------------------------------------------------------------------------------------------------------


class Slow:
    """A run that a test lets end. `rounds` are the items of each."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []
        self.go = trio.Semaphore(0)
        self.errno = 0

    async def __call__(self, items: list[int]) -> None:
        self.rounds.append(list(items))
        await self.go.acquire()
        if self.errno:
            raise BackendError(self.errno, "run", "/path")


async def test_who_comes_during_a_run_waits_for_the_next_one() -> None:
    slow = Slow()
    combiner = Combiner(slow)
    async with trio.open_nursery() as nursery:
        for item in range(4):
            nursery.start_soon(combiner.submit, item)
            await wait_all_tasks_blocked()
        assert slow.rounds == [[0]]
        slow.go.release()
        await wait_all_tasks_blocked()
        assert slow.rounds == [[0], [1, 2, 3]]
        slow.go.release()


async def test_an_error_is_that_of_everybody_in_the_round_and_of_nobody_else() -> None:
    slow = Slow()
    combiner = Combiner(slow)
    outcomes: dict[int, str] = {}

    async def submit(item: int) -> None:
        try:
            await combiner.submit(item)
            outcomes[item] = "done"
        except BackendError as error:
            outcomes[item] = errno.errorcode[error.errno]

    async with trio.open_nursery() as nursery:
        for item in range(3):
            nursery.start_soon(submit, item)
            await wait_all_tasks_blocked()
        slow.go.release()
        await wait_all_tasks_blocked()
        slow.errno = errno.EIO
        slow.go.release()
        await wait_all_tasks_blocked()
        slow.errno = 0
        nursery.start_soon(submit, 3)
        slow.go.release()
    assert outcomes == {0: "done", 1: "EIO", 2: "EIO", 3: "done"}


async def test_a_leader_that_is_cancelled_leaves_its_round_to_the_next_in_line() -> None:
    slow = Slow()
    combiner = Combiner(slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(combiner.submit, 0)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as cancelled:
            cancelled.start_soon(combiner.submit, 1)
            await wait_all_tasks_blocked()
            nursery.start_soon(combiner.submit, 2)
            await wait_all_tasks_blocked()
            slow.go.release()
            await wait_all_tasks_blocked()
            cancelled.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert slow.rounds == [[0], [1, 2], [1, 2]]
        slow.go.release()


def test_what_is_retired_is_called_when_the_last_request_of_before_has_left() -> None:
    epochs, called = Epochs(), []
    first = epochs.enter()
    second = epochs.enter()
    epochs.retire(lambda: called.append("a"))
    third = epochs.enter()
    epochs.retire(lambda: called.append("b"))
    epochs.leave(second)
    assert called == []
    epochs.leave(first)
    assert called == ["a"]
    epochs.leave(third)
    assert called == ["a", "b"]


def test_a_request_that_came_later_holds_nothing_up_and_an_older_one_holds_up_all() -> None:
    epochs, called = Epochs(), []
    old = epochs.enter()
    epochs.retire(lambda: called.append("a"))
    epochs.retire(lambda: called.append("b"))
    later = epochs.enter()
    epochs.leave(old)
    assert called == ["a", "b"]
    epochs.leave(later)
    epochs.retire(lambda: called.append("c"))
    assert called == ["a", "b", "c"]
