"""An image on which something was given up: what is all but done is waited for, and nothing else."""

import pytest
import trio
from trio.testing import MockClock

from ploopfs.bounds import GIVEN_UP_MS
from ploopfs.engine.given_up import Change, GivenUp
from ploopfs.engine.storage import Identity
from ploopfs.errors import StorageTimeout

PATH, IMAGE = "/store/top.hds", Identity(1, 2, "ext4")


def given_up(ends_s: float) -> GivenUp:
    files = GivenUp()
    files.add(Change(PATH, IMAGE, lambda: trio.current_time() < ends_s))
    return files


async def test_what_ends_in_a_moment_is_waited_for(autojump_clock: MockClock) -> None:
    started_s = trio.current_time()
    await given_up(started_s + GIVEN_UP_MS / 2000).wait_ended(PATH, IMAGE)
    assert GIVEN_UP_MS / 2000 <= autojump_clock.current_time() - started_s < GIVEN_UP_MS / 1000


async def test_what_does_not_end_in_a_moment_is_not_waited_for_any_longer(autojump_clock: MockClock) -> None:
    started_s = trio.current_time()
    with pytest.raises(StorageTimeout, match="was given up and may yet happen"):
        await given_up(started_s + 3600).wait_ended(PATH, IMAGE)
    assert autojump_clock.current_time() - started_s < 2 * GIVEN_UP_MS / 1000


async def test_another_image_is_not_kept_waiting(autojump_clock: MockClock) -> None:
    started_s = trio.current_time()
    await given_up(started_s + 3600).wait_ended("/store/other.hds", Identity(1, 3, "ext4"))
    assert autojump_clock.current_time() == started_s
