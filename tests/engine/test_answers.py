"""Whether a sync is believed depends on what those are answered who are in flight beside it."""

import errno
from contextlib import suppress

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.engine.inject.rule import Rule
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError
from tests.engine.rig import CLUSTER, NEW, Rig


class Beside:
    """A change that hangs in the storage, and an operation that begins after it and is answered before it."""

    def __init__(self, rig: Rig, nursery: trio.Nursery, change: str) -> None:
        self.rig, self.nursery = rig, nursery
        self.held: Rule = rig.faults.pause(change, count=1)
        self.error: BackendError | None = None
        self.ended = False

    async def begin(self, stack: Stack, offset: int = 3 * CLUSTER) -> None:
        self.nursery.start_soon(self._fail, stack, offset)
        await wait_all_tasks_blocked()
        assert self.held.hits

    async def _fail(self, stack: Stack, offset: int) -> None:
        with suppress(BackendError):
            await stack.write(offset, NEW)

    async def flush(self, stack: Stack) -> None:
        try:
            await stack.flush()
        except BackendError as error:
            self.error = error
        self.ended = True

    def answer(self, number: int | None) -> None:
        self.held.errno = number
        assert self.held.released is not None
        self.held.released.set()


@pytest.mark.parametrize("change", ["write", "truncate"])
async def test_a_sync_is_not_believed_when_a_change_beside_it_was_told_that_the_storage_is_lost(
    alone: Rig, nursery: trio.Nursery, change: str
) -> None:
    """Though its own answer was success, and came first."""
    stack = await alone.open()
    beside = Beside(alone, nursery, change)
    await beside.begin(stack, 3 * CLUSTER if change == "write" else 0)
    nursery.start_soon(beside.flush, stack)
    await wait_all_tasks_blocked()
    assert not beside.ended, "nobody knows yet what the change is answered"
    beside.answer(errno.ENOTCONN)
    await wait_all_tasks_blocked()
    assert beside.error is not None
    assert (beside.error.errno, beside.error.operation) == (errno.ENOTCONN, "fsync")


@pytest.mark.parametrize("number", [None, errno.ENOSPC])
async def test_it_is_believed_when_the_storage_is_sound(
    alone: Rig, nursery: trio.Nursery, number: int | None
) -> None:
    stack = await alone.open()
    beside = Beside(alone, nursery, "write")
    await beside.begin(stack)
    nursery.start_soon(beside.flush, stack)
    await wait_all_tasks_blocked()
    beside.answer(number)
    await wait_all_tasks_blocked()
    assert (beside.ended, beside.error) == (True, None)


async def test_a_change_that_begins_after_the_answer_holds_up_no_sync(alone: Rig, nursery: trio.Nursery) -> None:
    stack = await alone.open()
    before, after = Beside(alone, nursery, "write"), Beside(alone, nursery, "write")
    await before.begin(stack)
    nursery.start_soon(before.flush, stack)
    await wait_all_tasks_blocked()
    await after.begin(stack)
    before.answer(None)
    await wait_all_tasks_blocked()
    assert (before.ended, before.error) == (True, None)
    after.answer(None)


async def test_no_map_names_a_cluster_whose_barrier_was_answered_beside_the_news_of_a_loss(
    alone: Rig, nursery: trio.Nursery
) -> None:
    """The new cluster may be gone with what the storage has lost; its entry would show whatever lies there."""
    stack = await alone.open()
    beside = Beside(alone, nursery, "write")
    await beside.begin(stack)
    failed: list[int] = []

    async def allocate() -> None:
        try:
            await stack.write(0, NEW)
        except BackendError as error:
            failed.append(error.errno)

    nursery.start_soon(allocate)
    await wait_all_tasks_blocked()
    beside.answer(errno.ENOTCONN)
    await wait_all_tasks_blocked()
    assert failed == [errno.ENOTCONN]
    assert alone.entry(0) == 0


async def test_what_a_read_is_answered_in_the_same_moment_is_heard_before_the_sync_is_believed(
    alone: Rig, nursery: trio.Nursery
) -> None:
    """Whoever hears of it tells the stack (`note_loss`), and the barrier does not hold."""
    stack = await alone.open()
    failed: list[int] = []
    reading, syncing = alone.faults.pause("read", count=1), alone.faults.pause("fsync", count=1)
    reading.errno = errno.ENOTCONN

    async def read() -> None:
        try:
            await stack.read(3 * CLUSTER, 4096)
        except BackendError as error:
            stack.note_loss(error)

    async def allocate() -> None:
        try:
            await stack.write(0, NEW)
        except BackendError as error:
            failed.append(error.errno)

    nursery.start_soon(read)
    nursery.start_soon(allocate)
    await wait_all_tasks_blocked()
    for rule in (syncing, reading):
        assert rule.released is not None
        rule.released.set()
    await wait_all_tasks_blocked()
    assert failed == [errno.ENOTCONN]
    assert alone.entry(0) == 0
