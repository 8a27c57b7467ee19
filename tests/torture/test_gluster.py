"""GlusterFS forgets what it has acknowledged and answers the next fsync with success: ploopfs does not."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.mounted.daemon import errno_of, opened, serving, until
from tests.mounted.disks import BLOCK_BYTES, MIB, Disk, assert_closed, by_qemu, make_disk
from tests.mounted.flavours import KINDS, VZ7, VZ9, Kind, Served, name_of
from tests.realparts import need
from tests.torture.gluster import COMMANDS, gluster

pytestmark = pytest.mark.real

KEPT, FORGOTTEN = b"k" * BLOCK_BYTES, b"f" * BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class User:
    """Of one disk, with one open file all along. `told` is what the fsync with the brick away has answered."""

    served: Served
    disk: Disk
    fd: int
    told: list[str]


DEVICES = {"vz7": (VZ7, "ploop0", True), "vz9": (VZ9, "dm-0", True), "without standby": (VZ7, "ploop1", False)}


@pytest.fixture(scope="module")
def forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, User]]:
    """One outage for all: a block is flushed, and overwritten while the brick is away; then it is back.

    Afterwards QEMU finds in the closed stacks what each `disk` says."""
    need(commands=COMMANDS)
    place = tmp_path_factory.mktemp("gluster")
    with gluster(place) as store:
        disks = {name: make_disk(store.bricks / device, size_bytes=MIB) for name, (_, device, _) in DEVICES.items()}
        configured = [
            kind.configured(store.path / device) | {"name": device, "standby": standby}
            for kind, device, standby in DEVICES.values()
        ]
        with serving(place, *configured) as daemon:
            with ExitStack() as files:
                users = {}
                for name, (_, device, _) in DEVICES.items():
                    fd = files.enter_context(opened(daemon.disk(device)))
                    users[name] = User(Served(daemon, device), disks[name], fd, [])
                for user in users.values():
                    os.pwrite(user.fd, KEPT, 0)
                    os.fsync(user.fd)
                store.lose_brick()
                for user in users.values():
                    assert os.pwrite(user.fd, FORGOTTEN, 0) == BLOCK_BYTES
                    user.told.append(errno_of(os.fsync, user.fd))
                store.return_brick()
                for disk in disks.values():
                    path = store.path / disk.top.relative_to(store.bricks)
                    until(partial(_opens, path), "the client of GlusterFS is connected, and opens files again")
                    with opened(path) as image:
                        os.fsync(image)
                    assert FORGOTTEN not in disk.top.read_bytes(), "GlusterFS has not forgotten it"
                yield users
            assert daemon.end() == 0
        for disk in disks.values():
            assert_closed(disk.top)
            assert by_qemu(disk.deltas, place / "raw") == disk.content


def _opens(path: Path) -> bool:
    try:
        with opened(path):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_what_glusterfs_has_acknowledged_and_forgotten_is_written_again(
    forgotten: dict[str, User], kind: Kind
) -> None:
    user = forgotten[kind.flavour]
    assert user.told == ["EIO"]
    assert user.served.value("queue/standby") == "on"
    assert user.served.value("ploopfs/standby_reason").startswith("errno=ENOTCONN operation=fsync ")
    assert user.served.value("ploopfs/unflushed_bytes") == str(BLOCK_BYTES)
    user.served.store("ploopfs/reopen", "1")
    assert [user.served.value("queue/standby"), user.served.value("ploopfs/unflushed_bytes")] == ["off", "0"]
    assert FORGOTTEN in user.disk.top.read_bytes()
    user.disk.content[:BLOCK_BYTES] = FORGOTTEN


def test_without_standby_a_flush_that_failed_stays_failed_until_reopen(forgotten: dict[str, User]) -> None:
    """Nobody has promised to recover the device, so nothing is kept; and nobody is told that all is well."""
    user = forgotten["without standby"]
    assert [*user.told, *(errno_of(os.fsync, user.fd) for _ in range(2))] == ["EIO"] * 3
    user.served.store("ploopfs/reopen", "1")
    os.fsync(user.fd)
    assert os.pread(user.fd, BLOCK_BYTES, 0) == KEPT
    user.disk.content[:BLOCK_BYTES] = KEPT
