"""GlusterFS forgets what it has acknowledged and answers the next fsync with success: ploopfs does not."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounted.daemon import HOLD_MS, errno_of, opened, serving
from tests.mounted.disks import BLOCK_BYTES, MIB, Disk, assert_closed, by_qemu, make_disk
from tests.mounted.flavours import KINDS, VZ7, Kind, Served, name_of
from tests.realparts import need
from tests.torture.gluster import COMMANDS, Gluster, gluster

pytestmark = pytest.mark.real

KEPT, FORGOTTEN = b"k" * BLOCK_BYTES, b"f" * BLOCK_BYTES


@contextmanager
def scene(place: Path, kind: Kind, **others: object) -> Iterator[tuple[Gluster, Disk, Served, int]]:
    """One block is written and flushed; an open file. Afterwards QEMU finds in the closed stack what `disk` says."""
    need(commands=COMMANDS)
    with gluster(place) as store:
        disk = make_disk(store.bricks / "disk", depth=2, size_bytes=16 * MIB)
        with serving(place, kind.configured(store.path / "disk", hold_timeout_ms=HOLD_MS, **others)) as daemon:
            served = kind.of(daemon)
            with opened(served.disk) as fd:
                os.pwrite(fd, KEPT, 0)
                os.fsync(fd)
                yield store, disk, served, fd
            assert daemon.end() == 0
        assert_closed(disk.top)
        assert by_qemu(disk.deltas, place / "raw") == disk.content


def forgotten(store: Gluster, disk: Disk, fd: int) -> bool:
    """Loses the brick, and has it back: is what was acknowledged in between gone for good?"""
    store.lose_brick()
    assert os.pwrite(fd, FORGOTTEN, 0) == BLOCK_BYTES
    assert errno_of(os.fsync, fd) in ("EIO", "ENOTCONN")
    store.return_brick()
    with opened(store.path / "disk" / disk.top.name) as image:
        os.fsync(image)
    return FORGOTTEN not in disk.top.read_bytes()


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_what_glusterfs_has_acknowledged_and_forgotten_is_written_again(tmp_path: Path, kind: Kind) -> None:
    with scene(tmp_path, kind) as (store, disk, served, fd):
        assert forgotten(store, disk, fd)
        assert served.value("queue/standby") == "on", served.daemon.log + str(served.daemon.events())
        assert served.value("ploopfs/unflushed_bytes") == str(BLOCK_BYTES)
        served.store("ploopfs/reopen", "1")
        assert [served.value("queue/standby"), served.value("ploopfs/unflushed_bytes")] == ["off", "0"]
        assert FORGOTTEN in disk.top.read_bytes()
        disk.content[:BLOCK_BYTES] = FORGOTTEN


def test_without_standby_a_flush_that_failed_stays_failed_until_reopen(tmp_path: Path) -> None:
    """Nobody has promised to recover the device, so nothing is kept; and nobody is told that all is well."""
    with scene(tmp_path, VZ7, standby=False) as (store, disk, served, fd):
        assert forgotten(store, disk, fd)
        assert [errno_of(os.fsync, fd) for _ in range(2)] == ["EIO"] * 2
        served.store("ploopfs/reopen", "1")
        os.fsync(fd)
        assert os.pread(fd, BLOCK_BYTES, 0) == KEPT
        disk.content[:BLOCK_BYTES] = KEPT
