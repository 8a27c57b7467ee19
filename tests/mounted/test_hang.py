"""A store that neither answers nor fails, bindfs under SIGSTOP: whoever does not need it must not wait for it."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounted.daemon import Daemon, device, errno_of, opened, serving, until
from tests.mounted.disks import BLOCK_BYTES, Disk, assert_closed, make_disk
from tests.mounted.storage import Bindfs

pytestmark = pytest.mark.real

READERS = 200
QUIESCE_TIMEOUT_S = 1.5


def filled_blocks(disk: Disk) -> list[int]:
    """Offsets that a delta holds, so that reading them asks the store."""
    offsets = range(0, disk.size_bytes, BLOCK_BYTES)
    return [offset for offset in offsets if any(disk.content[offset : offset + BLOCK_BYTES])]


@contextmanager
def parked_reads(bindfs: Bindfs, daemon: Daemon, disk: Disk) -> Iterator[list[tuple[int, Future[bytes]]]]:
    """Inside, the store is stopped and READERS reads wait for it; afterwards each has ended."""
    filled = filled_blocks(disk)
    offsets = [filled[number % len(filled)] for number in range(READERS)]
    with opened(daemon.disk(), os.O_RDONLY) as fd, ThreadPoolExecutor(READERS) as threads:
        for path in disk.deltas:
            bindfs.drop_cache(path)
        with bindfs.stopped():
            reads = [(offset, threads.submit(os.pread, fd, BLOCK_BYTES, offset)) for offset in offsets]
            until(lambda: daemon.value("inflight").split() == [str(READERS), "0"], "all reads in flight")
            yield reads


def assert_read(disk: Disk, reads: list[tuple[int, Future[bytes]]]) -> None:
    for offset, read in reads:
        assert read.result() == disk.content[offset : offset + BLOCK_BYTES]


def test_200_parked_reads_delay_neither_the_status_nor_the_neighbour(tmp_path: Path, bindfs: Bindfs) -> None:
    disk, healthy = make_disk(bindfs.bricks / "disk", depth=3), make_disk(tmp_path / "healthy", seed=2)
    with serving(tmp_path, device(bindfs.path / "disk"), device(healthy.directory, "ploop1")) as daemon:
        with parked_reads(bindfs, daemon, disk) as reads, opened(daemon.disk("ploop1")) as neighbour:
            assert daemon.value("queue/standby") == "off"
            assert daemon.value("pstate/active_reqs") == str(READERS)
            assert daemon.value("size") == str(disk.size_bytes // 512)
            assert os.pread(neighbour, BLOCK_BYTES, 0) == healthy.content[:BLOCK_BYTES]
            for offset in filled_blocks(healthy):
                assert os.pread(neighbour, BLOCK_BYTES, offset) == healthy.content[offset : offset + BLOCK_BYTES]
            assert os.pwrite(neighbour, b"neighbour", 12345) == 9
            os.fsync(neighbour)
            assert not any(read.done() for _, read in reads)
        assert_read(disk, reads)
        assert daemon.value("queue/standby") == "off"
        assert daemon.value("inflight").split() == ["0", "0"]
    assert daemon.end() == 0
    assert_closed(disk.top)


def test_a_replace_while_requests_hang_is_busy_and_everything_goes_on(tmp_path: Path, bindfs: Bindfs) -> None:
    disk = make_disk(bindfs.bricks / "disk", depth=3)
    top = str(bindfs.path / disk.top.relative_to(bindfs.bricks))
    limits: dict[str, object] = {"quiesce_timeout_s": QUIESCE_TIMEOUT_S}
    with serving(tmp_path, device(bindfs.path / "disk"), limits=limits) as daemon:
        with parked_reads(bindfs, daemon, disk) as reads:
            assert errno_of(daemon.store, "ploopfs/replace_delta", top) == "EBUSY"
            assert f"{READERS} requests in flight did not end within" in daemon.value("ploopfs/last_error")
            assert daemon.value("queue/standby") == "off"
            assert not any(read.done() for _, read in reads)
        assert_read(disk, reads)
        daemon.store("ploopfs/replace_delta", top)
        assert daemon.value("ploopfs/generation") == "2"
        assert daemon.disk().read_bytes() == disk.content
    assert daemon.end() == 0
    assert_closed(disk.top)


@pytest.mark.parametrize(
    ("call", "errno"),
    [
        (lambda fd, offset: os.pwrite(fd, b"x", offset), "ENOTCONN"),
        (lambda fd, offset: os.pread(fd, 100, offset), "ENOTCONN"),
        (lambda fd, _offset: os.fsync(fd), "EIO"),
    ],
    ids=["write", "read", "fsync"],
)
def test_what_hangs_when_the_store_dies_means_standby_too(
    tmp_path: Path, bindfs: Bindfs, call: Callable[[int, int], object], errno: str
) -> None:
    """The kernel answers what the store had when it died with another errno than whatever comes later."""
    disk = make_disk(bindfs.bricks / "disk", depth=2)
    filled = filled_blocks(disk)[0]
    with (
        serving(tmp_path, device(bindfs.path / "disk")) as daemon,
        opened(daemon.disk()) as fd,
        ThreadPoolExecutor(1) as thread,
    ):
        os.pwrite(fd, disk.content[:BLOCK_BYTES], 0)  # so that there is something to flush
        for path in disk.deltas:
            bindfs.drop_cache(path)
        with bindfs.stopped():
            hanging = thread.submit(errno_of, call, fd, filled)
            until(lambda: daemon.value("pstate/active_reqs") == "1", "the request in flight")
            bindfs.kill()
            assert hanging.result() == errno
        assert [daemon.value("queue/standby"), daemon.value("pstate/aborted")] == ["on", "0"]
        assert daemon.value("ploopfs/standby_reason").startswith("errno=ENOTCONN ")
        bindfs.remount()
        daemon.store("ploopfs/reopen", "1")
        assert os.pread(fd, BLOCK_BYTES - 1, filled + 1) == disk.content[filled + 1 : filled + BLOCK_BYTES]
    assert daemon.end() == 0
    assert_closed(disk.top)
