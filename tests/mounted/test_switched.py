"""EBUSY, ENOTCONN and EIO by a real store that is switched while the image is open, and what each of them means."""

import errno
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.daemon import HOLD_MS, errno_of, opened, serving, until
from tests.mounted.disks import BLOCK_BYTES, MIB, Disk, assert_closed, by_qemu, make_disk, sums
from tests.mounted.flavours import KINDS, Kind, Served, name_of
from tests.mounted.switched import Switched, switched
from tests.mounted.writer import Writer
from tests.realparts import need

pytestmark = pytest.mark.real

TRIGGERS = ("EBUSY", "ENOTCONN", "EIO")
OTHERS = ("ENOSPC", "ETIMEDOUT", "EROFS")


@dataclass(frozen=True, slots=True)
class Scene:
    """A disk of two deltas; the top lies on a store that is switched, the base does not. `mapped` is an offset that
    the top holds."""

    kind: Kind
    served: Served
    store: Switched
    disk: Disk
    fd: int
    mapped: int

    def reopen(self) -> str:
        return errno_of(self.served.store, "ploopfs/reopen", "1")

    def read(self) -> str:
        return errno_of(os.pread, self.fd, BLOCK_BYTES, self.mapped)

    def write(self) -> str:
        """The same bytes as are there: nobody knows how much of a failed write was done."""
        return errno_of(os.pwrite, self.fd, self.disk.content[self.mapped : self.mapped + BLOCK_BYTES], self.mapped)


@contextmanager
def scene(place: Path, kind: Kind, *, policy: str = "fail") -> Iterator[Scene]:
    """Afterwards the disk is as it was acknowledged, and the image is sound."""
    need(commands=("qemu-storage-daemon",))
    disk = make_disk(place / "disk", depth=2, size_bytes=16 * MIB)
    with switched(disk.top, place / "top.hds") as store:
        configured = kind.configured([disk.deltas[0], store.path], on_standby=policy, hold_timeout_ms=HOLD_MS)
        with serving(place, configured) as daemon:
            with opened(daemon.disk(kind.device)) as fd:
                writer = Writer(fd, disk)
                writer.write(40)
                mapped = 5 * BLOCK_BYTES
                os.pwrite(fd, b"m" * BLOCK_BYTES, mapped)
                disk.content[mapped : mapped + BLOCK_BYTES] = b"m" * BLOCK_BYTES
                yield Scene(kind, kind.of(daemon), store, disk, fd, mapped)
                writer.write(40)
                writer.assert_all_there()
            assert daemon.end() == 0
    assert_closed(disk.top)
    assert sums(disk.deltas[:-1]) == disk.lower_sums
    assert by_qemu(disk.deltas, place / "raw") == disk.content


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_the_answer_of_the_store_means_standby_and_is_shown(tmp_path: Path, kind: Kind) -> None:
    with scene(tmp_path, kind) as one:
        requests = (one.read, "read"), (one.write, "write")
        for name, (request, operation) in itertools.product(TRIGGERS, requests):
            with one.store.failing(getattr(errno, name)):
                assert request() == kind.answer(name)
                assert one.served.value("queue/standby") == "on"
                reason = one.served.value("ploopfs/standby_reason")
                assert reason.startswith(f"errno={name} operation={operation} offset=")
                assert reason.endswith(f" level=1 file={one.store.path}")
                assert [one.read(), one.write(), errno_of(os.fsync, one.fd)] == ["EIO"] * 3
                assert one.reopen() == name
                assert f"{one.store.path}: read " in one.served.value("ploopfs/last_error")
                assert one.served.value("queue/standby") == "on"
            # Nothing of the store is asked in standby, so nobody notices that it is well again.
            assert [one.read(), one.served.value("queue/standby")] == ["EIO", "on"]
            assert one.reopen() == "success"
            assert [one.served.value("queue/standby"), one.read(), one.write()] == ["off", "success", "success"]
        assert one.served.value("ploopfs/generation") == str(1 + len(TRIGGERS) * len(requests))


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_with_hold_whoever_met_the_error_gets_the_data(tmp_path: Path, kind: Kind) -> None:
    with scene(tmp_path, kind, policy="hold") as one, ThreadPoolExecutor(3) as threads:
        expected = bytes(one.disk.content[one.mapped : one.mapped + BLOCK_BYTES])
        for name in TRIGGERS:
            with one.store.failing(getattr(errno, name)):
                reads = [threads.submit(os.pread, one.fd, BLOCK_BYTES, one.mapped) for _ in range(2)]
                # The page cache has what a write is about to bring to the store, and may give it to a read.
                until(lambda: one.served.value("ploopfs/held") == "2", "both reads held")
                write = threads.submit(one.write)
                until(lambda: one.served.value("ploopfs/held") == "3", "all requests held")
                assert one.served.value("ploopfs/standby_reason").startswith(f"errno={name} ")
                assert one.reopen() == name
                assert one.served.value("ploopfs/held") == "3"
                assert not any((*map(Future.done, reads), write.done()))
            assert one.reopen() == "success"
            assert [read.result() for read in reads] == [expected] * 2
            assert write.result() == "success"
            assert one.served.value("ploopfs/held") == "0"


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_another_answer_of_the_store_is_a_plain_error(tmp_path: Path, kind: Kind) -> None:
    with scene(tmp_path, kind, policy="hold") as one:
        for name in OTHERS:
            with one.store.failing(getattr(errno, name)):
                assert one.read() == kind.answer(name)
                assert one.served.value("queue/standby") == "off"
            assert one.reopen() == "success"  # vz7 aborts where it does not stand by
            assert one.read() == "success"
    assert "standby mode" not in one.served.daemon.log


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_a_failed_fsync_is_believed_once_and_for_all(tmp_path: Path, kind: Kind) -> None:
    """The store says later that all is well, and does not have the data: only a new open is believed."""
    with scene(tmp_path, kind) as one:
        for name in (*TRIGGERS, "ENOSPC"):
            with one.store.failing_one_flush(getattr(errno, name)):
                assert one.write() == "success"
                unflushed = one.served.value("ploopfs/unflushed_bytes")
                assert int(unflushed) >= BLOCK_BYTES
                assert errno_of(os.fsync, one.fd) == kind.answer_to_fsync(name)
                assert errno_of(os.fsync, one.fd) != "success"
                if name in TRIGGERS:
                    assert one.served.value("queue/standby") == "on"
                    assert one.served.value("ploopfs/standby_reason").startswith(f"errno={name} operation=fsync ")
                assert one.served.value("ploopfs/unflushed_bytes") == unflushed
            assert one.reopen() == "success", one.served.value("ploopfs/last_error")
            assert errno_of(os.fsync, one.fd) == "success"
            assert one.served.value("ploopfs/unflushed_bytes") == "0"
