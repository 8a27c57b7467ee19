"""The store that lies does so as its model says: a torture on one that does not lie would prove nothing."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.daemon import errno_of, opened
from tests.torture.lying import Lying, lying
from tests.torture.store import SECTOR_BYTES

pytestmark = pytest.mark.real

OLD, NEW = b"o" * 4096, b"n" * 4096


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Lying]:
    with lying(tmp_path) as running:
        (running.bricks / "file").write_bytes(OLD)
        yield running


def stored(store: Lying) -> bytes:
    return (store.bricks / "file").read_bytes()


def test_a_write_is_seen_at_once_and_kept_by_fsync(store: Lying) -> None:
    with opened(store.path / "file") as fd:
        os.pwrite(fd, NEW, 0)
        assert (os.pread(fd, 9000, 0), stored(store), store.pending_bytes) == (NEW, OLD, 4096)
        with opened(store.path / "file", os.O_RDONLY) as other:
            assert os.pread(other, 9000, 0) == NEW
        os.fdatasync(fd)
        assert (stored(store), store.pending_bytes) == (NEW, 0)


def test_with_its_brick_lost_it_acknowledges_and_after_a_failed_fsync_it_forgets(store: Lying) -> None:
    with opened(store.path / "file") as fd:
        store.lose_brick()
        os.pwrite(fd, NEW, 0)
        assert [errno_of(os.pread, fd, 1, 0), errno_of(os.stat, store.path / "file")] == ["ENOTCONN"] * 2
        assert [errno_of(os.fdatasync, fd) for _ in range(3)] == ["ENOTCONN"] * 3
        store.return_brick()
        os.fdatasync(fd)
        assert (os.pread(fd, 9000, 0), stored(store)) == (OLD, OLD)


def test_what_no_fsync_was_asked_for_comes_through_when_the_brick_is_back(store: Lying) -> None:
    with opened(store.path / "file") as fd:
        store.lose_brick()
        os.pwrite(fd, NEW, 0)
        store.return_brick()
        assert os.pread(fd, 9000, 0) == NEW
        os.fdatasync(fd)
        assert stored(store) == NEW


def test_killed_it_takes_everything_with_it_that_no_fsync_has_confirmed(store: Lying) -> None:
    with opened(store.path / "file") as fd:
        os.pwrite(fd, NEW, 4096)
        os.fdatasync(fd)
        os.pwrite(fd, NEW, 0)
        os.ftruncate(fd, 100_000)
        assert os.fstat(fd).st_size == 100_000
        store.kill()
        assert [errno_of(os.pread, fd, 1, 0), errno_of(os.fdatasync, fd)] == ["ENOTCONN"] * 2
        store.remount()
        assert errno_of(os.pread, fd, 1, 0) == "ENOTCONN"
    assert (store.path / "file").read_bytes() == OLD + NEW


def test_a_crash_keeps_any_of_the_sectors(store: Lying) -> None:
    with opened(store.path / "file") as fd:
        os.pwrite(fd, NEW, 0)
        store.crash(seed=1)
        store.remount()
    found = (store.path / "file").read_bytes()
    sectors = {found[start : start + SECTOR_BYTES] for start in range(0, len(found), SECTOR_BYTES)}
    assert sectors == {OLD[:SECTOR_BYTES], NEW[:SECTOR_BYTES]}


def test_more_than_its_window_goes_to_the_brick_by_itself(tmp_path: Path) -> None:
    with lying(tmp_path, window_bytes=8192) as store:
        with opened(store.path / "file", os.O_RDWR | os.O_CREAT) as fd:
            for number in range(4):
                os.pwrite(fd, NEW, number * 4096)
        assert (store.pending_bytes, stored(store)) == (8192, NEW * 2)


def test_an_operation_that_is_told_to_fail_does_nothing(store: Lying) -> None:
    with opened(store.path / "file") as fd:
        store.fail("EBUSY", ["write", "read"])
        assert [errno_of(os.pwrite, fd, NEW, 0), errno_of(os.pread, fd, 1, 0)] == ["EBUSY"] * 2
        store.fail("ENOSPC", ["grow"])
        assert [errno_of(os.pwrite, fd, NEW, 4096), errno_of(os.ftruncate, fd, 9000)] == ["ENOSPC"] * 2
        store.heal()
        assert os.pread(fd, 9000, 0) == OLD
