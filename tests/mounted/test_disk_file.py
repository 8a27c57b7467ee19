"""The disk is a regular file that behaves as a block device does."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.mounted.daemon import Daemon, device, errno_of, opened, serving, until
from tests.mounted.disks import BLOCK_BYTES, MIB, Disk, make_disk
from tests.realparts import need

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return make_disk(tmp_path_factory.mktemp("disk-file") / "disk", depth=2)


@pytest.fixture(scope="module")
def daemon(disk: Disk) -> Iterator[Daemon]:
    need(fuse=True, root=True)
    with serving(disk.directory.parent, device(disk.directory)) as running:
        yield running


def counter(daemon: Daemon, name: str) -> int:
    return int(daemon.value(f"pstat/{name}"))


def test_dd_with_truncation_keeps_the_size(daemon: Daemon, disk: Disk) -> None:
    done = subprocess.run(
        ["dd", "if=/dev/zero", f"of={daemon.disk()}", "bs=64k", "count=1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    disk.content[: 1 << 16] = bytes(1 << 16)
    assert daemon.disk().stat().st_size == disk.size_bytes
    assert daemon.disk().read_bytes() == disk.content


def test_dd_past_the_end_fills_the_disk_and_finds_no_space(daemon: Daemon, disk: Disk) -> None:
    start = disk.size_bytes // (1 << 16) - 1
    command = ["dd", "if=/dev/zero", f"of={daemon.disk()}", "bs=64k", f"seek={start}", "count=2", "conv=notrunc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "1+0 records out" in done.stderr
    disk.content[start << 16 :] = bytes(1 << 16)
    assert daemon.disk().read_bytes() == disk.content


def test_a_write_across_the_end_is_short(daemon: Daemon, disk: Disk) -> None:
    with opened(daemon.disk()) as fd:
        assert os.pwrite(fd, b"12345", disk.size_bytes - 3) == 3
        disk.content[-3:] = b"123"
        assert errno_of(os.pwrite, fd, b"x", disk.size_bytes) == "ENOSPC"
        assert os.pread(fd, 100, disk.size_bytes - 3) == b"123"
        assert os.pread(fd, 100, disk.size_bytes) == b""
        assert os.lseek(fd, 0, os.SEEK_END) == disk.size_bytes
    assert daemon.value("queue/standby") == "off"
    assert daemon.value("pstate/aborted") == "0"


def test_the_disk_is_truncated_to_no_other_size(daemon: Daemon, disk: Disk) -> None:
    for size_bytes in (1, disk.size_bytes - 512, disk.size_bytes + 512):
        assert errno_of(os.truncate, daemon.disk(), size_bytes) == "EINVAL"
    with opened(daemon.disk()) as fd:
        os.ftruncate(fd, disk.size_bytes)
    assert daemon.disk().stat().st_size == disk.size_bytes


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC], ids=["O_SYNC", "O_DSYNC"])
def test_a_synchronous_write_reaches_fdatasync(daemon: Daemon, disk: Disk, flag: int) -> None:
    before = counter(daemon, "bio_fsync")
    with opened(daemon.disk(), os.O_WRONLY | flag) as fd:
        for number in range(1, 4):
            os.pwrite(fd, b"durable", BLOCK_BYTES)
            assert counter(daemon, "bio_fsync") >= before + number
    disk.content[BLOCK_BYTES : BLOCK_BYTES + 7] = b"durable"


def test_fsync_counts_as_a_flush_and_close_does_not(daemon: Daemon, disk: Disk) -> None:
    with opened(daemon.disk()) as fd:
        os.pwrite(fd, disk.content[:10], 0)
        before = [counter(daemon, "bio_flush_in"), counter(daemon, "bio_fsync")]
        os.close(os.dup(fd))
        assert [counter(daemon, "bio_flush_in"), counter(daemon, "bio_fsync")] == before
        os.fsync(fd)
        assert [counter(daemon, "bio_flush_in"), counter(daemon, "bio_fsync")] == [before[0] + 1, before[1] + 1]


def test_open_files_of_the_disk_are_counted(daemon: Daemon) -> None:
    def none_is_open() -> bool:
        return daemon.value("pstate/open_count") == "0"

    # The kernel releases a file some time after close(2).
    until(none_is_open, "all are released")
    with opened(daemon.disk()), opened(daemon.disk(), os.O_RDONLY):
        assert daemon.value("pstate/open_count") == "2"
    until(none_is_open, "both are released")


def test_statistics_count_what_was_asked(daemon: Daemon) -> None:
    def columns() -> list[int]:
        return [int(column) for column in daemon.value("stat").split()]

    before = columns()
    with opened(daemon.disk(), os.O_RDONLY) as fd:
        os.pread(fd, 64 << 10, 0)
    after = columns()
    assert [after[0] - before[0], after[2] - before[2]] == [1, 128]
    assert after[4:7] == before[4:7]


def test_a_request_is_a_mebibyte_at_most_and_a_larger_one_is_done_in_several(daemon: Daemon) -> None:
    """The kernel sees to it: nothing of ours has to hold more than that for one request."""
    before = [int(column) for column in daemon.value("stat").split()]
    with opened(daemon.disk(), os.O_RDONLY) as fd:
        assert len(os.pread(fd, 4 * MIB, 0)) == 4 * MIB
    after = [int(column) for column in daemon.value("stat").split()]
    assert after[2] - before[2] == 4 * MIB // 512
    assert after[0] - before[0] >= 4


def test_another_program_reads_the_whole_disk(daemon: Daemon, disk: Disk) -> None:
    done = subprocess.run(["cmp", daemon.disk(), "-"], input=bytes(disk.content), check=False)
    assert done.returncode == 0
