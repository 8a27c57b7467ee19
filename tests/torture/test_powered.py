"""The store that loses power forgets what no fsync has confirmed: a torture on one that does not would prove less."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.daemon import errno_of, opened
from tests.realparts import need
from tests.torture.powered import DROPPING_LOG, KEEPING_LOG, Powered, log_of, powered

pytestmark = pytest.mark.real

OLD, NEW = b"o" * 4096, b"n" * 4096


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Powered]:
    need(commands=("bindfs", "losetup", "mkfs.ext4"), loop=True, file_systems=("ext4",))
    with powered(tmp_path_factory.mktemp("powered")) as running:
        yield running


@pytest.fixture
def file(store: Powered, request: pytest.FixtureRequest) -> Path:
    """Holds what an fsync has confirmed."""
    path = store.path / str(request.node.name)
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, OLD, 0)
        os.fsync(fd)
    return path


def test_a_crash_takes_what_was_acknowledged_and_read_back(store: Powered, file: Path) -> None:
    with opened(file) as fd:
        os.pwrite(fd, NEW * 2, 0)
        assert file.read_bytes() == NEW * 2
        store.crash(seed=1)
        assert [errno_of(os.pwrite, fd, NEW, 0), errno_of(os.fdatasync, fd)] == ["ENOTCONN"] * 2
        store.remount()
        assert errno_of(os.pread, fd, 1, 0) == "ENOTCONN"
    assert file.read_bytes() == OLD


def test_what_an_fsync_has_confirmed_survives_a_crash_however_it_comes(store: Powered, file: Path) -> None:
    assert {log_of(seed) for seed in range(4)} == {KEEPING_LOG, DROPPING_LOG}
    for seed in range(4):
        data = bytes([seed]) * 9000
        with opened(file) as fd:
            os.pwrite(fd, data, 0)
            os.fdatasync(fd)
        store.crash(seed)
        store.remount()
        assert file.read_bytes() == data


def test_killed_it_takes_nothing_with_it(store: Powered, file: Path) -> None:
    with opened(file) as fd:
        os.pwrite(fd, NEW, 0)
        store.kill()
        store.remount()
    assert file.read_bytes() == NEW


def test_without_power_it_lives_and_fails(store: Powered, file: Path) -> None:
    with opened(file) as fd:
        os.pwrite(fd, NEW, 0)
        store.lose_power()
        assert [errno_of(os.pwrite, fd, NEW, 0), errno_of(os.fsync, fd)] == ["EIO"] * 2
        store.kill()
        store.remount()
    assert file.read_bytes() == OLD


def test_filled_it_has_room_for_nothing_new_and_keeps_what_it_has(store: Powered, file: Path) -> None:
    with opened(file) as fd:
        store.fill()
        assert errno_of(os.pwrite, fd, NEW, 1 << 20) == "ENOSPC"
        assert errno_of(os.pwrite, fd, NEW, 0) == "success"
        store.empty()
        assert errno_of(os.pwrite, fd, NEW, 1 << 20) == "success"
        assert os.pread(fd, 4096, 0) == NEW
