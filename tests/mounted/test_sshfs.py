"""A session of the store ends and another begins: the old file answers EIO for ever, a new open works."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.daemon import HOLD_MS, errno_of, opened, serving, until
from tests.mounted.disks import BLOCK_BYTES, MIB, Disk, assert_closed, by_qemu, make_disk
from tests.mounted.flavours import KINDS, Kind, Served, name_of
from tests.mounted.sshfs import SFTP_SERVER, Sshfs, sshfs
from tests.mounted.writer import Writer
from tests.realparts import need

pytestmark = pytest.mark.real


@dataclass(frozen=True, slots=True)
class Scene:
    served: Served
    store: Sshfs
    disk: Disk
    writer: Writer
    fd: int

    def write(self, word: bytes) -> None:
        """To the first block."""
        data = word.ljust(BLOCK_BYTES, b".")
        assert os.pwrite(self.fd, data, 0) == BLOCK_BYTES
        self.disk.content[:BLOCK_BYTES] = data

    def stored(self) -> bytes:
        """The top as the server has it."""
        return self.disk.top.read_bytes()


@contextmanager
def scene(place: Path, kind: Kind, policy: str) -> Iterator[Scene]:
    """Afterwards nothing acknowledged is lost, and the image is sound."""
    need(commands=("sshfs", SFTP_SERVER))
    with sshfs(place) as store:
        disk = make_disk(store.bricks / "disk", depth=2, size_bytes=16 * MIB)
        configured = kind.configured(store.path / "disk", on_standby=policy, hold_timeout_ms=HOLD_MS)
        with serving(place, configured) as daemon:
            with opened(daemon.disk(kind.device)) as fd:
                writer = Writer(fd, disk)
                writer.write(40)
                yield Scene(kind.of(daemon), store, disk, writer, fd)
                writer.write(40)
                writer.assert_all_there()
            assert daemon.end() == 0
    assert_closed(disk.top)
    assert by_qemu(disk.deltas, place / "raw") == disk.content


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_what_a_lost_session_had_acknowledged_is_written_to_the_next(tmp_path: Path, kind: Kind) -> None:
    with scene(tmp_path, kind, "fail") as one:
        one.write(b"kept....")
        os.fsync(one.fd)
        assert one.served.value("ploopfs/unflushed_bytes") == "0"
        assert b"kept...." in one.stored()
        one.store.stop_session()
        one.write(b"lost....")
        assert one.served.value("ploopfs/unflushed_bytes") == str(BLOCK_BYTES)
        one.store.end_session()
        assert b"lost...." not in one.stored()
        assert errno_of(os.fsync, one.fd) == "EIO"
        assert one.served.value("queue/standby") == "on"
        assert one.served.value("ploopfs/standby_reason").startswith("errno=EIO operation=")
        # The store has long been back, but not for this file.
        assert errno_of(os.stat, one.store.path / "disk") == "success"
        assert one.writer.errno_of_write() == "EIO"
        one.served.store("ploopfs/reopen", "1")
        assert one.served.value("queue/standby") == "off"
        assert b"lost...." in one.stored()


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_with_hold_a_flush_that_met_the_end_of_the_session_succeeds_on_the_next(tmp_path: Path, kind: Kind) -> None:
    with scene(tmp_path, kind, "hold") as one, ThreadPoolExecutor(1) as thread:
        one.store.end_session()
        flush = thread.submit(os.fsync, one.fd)
        until(lambda: one.served.value("ploopfs/held") == "1", "the flush held")
        assert one.served.value("ploopfs/standby_reason").startswith("errno=EIO operation=fsync ")
        one.served.store("ploopfs/reopen", "1")
        flush.result()
        assert one.served.value("ploopfs/unflushed_bytes") == "0"
