"""What a sync vouches for, and what it does not."""

import errno

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.engine.unconfirmed import Unconfirmed
from ploopfs.errors import BackendError
from tests.engine.rig import NEW, Rig


def test_only_a_change_that_ended_before_the_sync_began_is_confirmed_by_it() -> None:
    unconfirmed = Unconfirmed()
    assert not unconfirmed
    unconfirmed.begun()
    mark = unconfirmed.mark()
    unconfirmed.ended()
    unconfirmed.confirmed(mark)
    assert unconfirmed
    unconfirmed.confirmed(unconfirmed.mark())
    assert not unconfirmed


def test_a_change_that_failed_is_nothing_to_confirm() -> None:
    unconfirmed = Unconfirmed()
    unconfirmed.begun()
    unconfirmed.failed()
    assert not unconfirmed


def test_an_older_sync_that_ends_last_takes_nothing_back() -> None:
    unconfirmed = Unconfirmed()
    older = unconfirmed.mark()
    unconfirmed.begun()
    unconfirmed.ended()
    unconfirmed.confirmed(unconfirmed.mark())
    unconfirmed.confirmed(older)
    assert not unconfirmed


async def test_a_write_that_ends_during_a_sync_is_not_confirmed_by_it(alone: Rig, nursery: trio.Nursery) -> None:
    stack = await alone.open()
    await stack.flush()
    held = alone.faults.pause("fsync", count=1)
    nursery.start_soon(stack.flush)
    await wait_all_tasks_blocked()
    await stack.write(3 * stack.cluster_bytes, NEW)
    assert held.released is not None
    held.released.set()
    await wait_all_tasks_blocked()
    assert stack.is_unconfirmed
    await stack.flush()
    assert not stack.is_unconfirmed


async def test_a_write_that_failed_leaves_nothing_unconfirmed_unless_the_map_has_changed(alone: Rig) -> None:
    """Of a request for two clusters the first may have its entry, which no sync has confirmed."""
    stack = await alone.open()
    await stack.flush()
    alone.faults.fail(errno.ENOTCONN, "write", count=1)
    with pytest.raises(BackendError):
        await stack.write(3 * stack.cluster_bytes, NEW)
    assert not stack.is_unconfirmed
    await stack.write(2 * stack.cluster_bytes, NEW)
    alone.faults.fail(errno.ENOTCONN, "write", count=1)
    with pytest.raises(BackendError):
        await stack.write(3 * stack.cluster_bytes, NEW)
    assert stack.is_unconfirmed
