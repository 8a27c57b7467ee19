"""The disk is a regular file that behaves as a block device does, whichever way its data take."""

import mmap
import os
import stat
import subprocess
from collections.abc import Iterator
from random import Random

import pytest

from ploopfs.cli.exits import Exit
from tests.mounted.blocks import run
from tests.mounted.daemon import (
    Daemon,
    device,
    errno_of,
    is_mounted,
    opened,
    ploopfs,
    serving,
    until,
    write_config,
)
from tests.mounted.disks import BLOCK_BYTES, CLUSTER_BYTES, MIB, Disk, make_disk
from tests.mounted.planes import PLANES, carried_by
from tests.realparts import need

pytestmark = pytest.mark.real

READ_ONLY = "ploop1"


@pytest.fixture(scope="module", params=PLANES)
def plane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def disk(plane: str, tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return make_disk(tmp_path_factory.mktemp(f"disk-file-{plane}") / "disk", depth=2)


@pytest.fixture(scope="module")
def daemon(disk: Disk, plane: str) -> Iterator[Daemon]:
    """ploop1 has the same images without their top, and can only be read."""
    need(fuse=True, root=True)
    read_only = device(disk.deltas[0], READ_ONLY, read_only=True)
    with serving(disk.directory.parent, device(disk.directory), read_only, options=carried_by(plane)) as running:
        yield running


def test_it_says_which_way_its_data_take(daemon: Daemon, plane: str) -> None:
    assert daemon.value("ploopfs/data_plane") == plane


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


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
def test_a_read_only_disk_is_opened_for_reading_alone(daemon: Daemon, flags: int) -> None:
    assert errno_of(os.open, daemon.disk(READ_ONLY), flags) == "EACCES"
    assert errno_of(os.truncate, daemon.disk(READ_ONLY), 1) in ("EACCES", "EINVAL")
    with opened(daemon.disk(READ_ONLY), os.O_RDONLY) as fd:
        os.fsync(fd)
        assert len(os.pread(fd, BLOCK_BYTES, 0)) == BLOCK_BYTES
    assert stat.S_IMODE(daemon.disk(READ_ONLY).stat().st_mode) == 0o440


def test_what_is_changed_of_the_file_stays_and_everybody_sees_it(daemon: Daemon) -> None:
    path = daemon.disk()
    before = path.stat()
    assert stat.S_IMODE(before.st_mode) == 0o660
    try:
        os.chmod(path, 0o600)
        os.chown(path, 12, 34)
        os.utime(path, ns=(1_000_000_007, 2_000_000_011))
        with opened(path) as fd:
            for found in (path.stat(), os.fstat(fd)):
                assert stat.S_IMODE(found.st_mode) == 0o600
                assert (found.st_uid, found.st_gid) == (12, 34)
                assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_007, 2_000_000_011)
                assert found.st_ctime_ns > before.st_ctime_ns
                assert (found.st_size, found.st_blksize) == (before.st_size, before.st_blksize)
    finally:
        os.chmod(path, 0o660)
        os.chown(path, before.st_uid, before.st_gid)


def test_the_space_that_stat_tells_is_what_the_levels_have(daemon: Daemon, disk: Disk) -> None:
    """du(1) sees it, and every block of the disk that is no hole."""
    allocated = daemon.disk().stat().st_blocks * 512
    clusters = range(0, disk.size_bytes, CLUSTER_BYTES)
    filled = sum(any(disk.cluster(start)) for start in clusters) * CLUSTER_BYTES
    assert filled <= allocated < disk.size_bytes
    assert run("du", "--block-size=1", daemon.disk()).split()[0] == str(allocated)
    with opened(daemon.disk()) as fd:
        hole = next(start for start in reversed(clusters) if not any(disk.cluster(start)))
        os.pwrite(fd, b"x", hole)
        assert os.fstat(fd).st_blocks * 512 == allocated + CLUSTER_BYTES
        disk.content[hole : hole + 1] = b"x"


def test_any_range_is_written_and_read_whatever_its_alignment(daemon: Daemon, disk: Disk) -> None:
    random = Random(3)
    with opened(daemon.disk()) as fd:
        for _ in range(100):
            length = random.choice((1, 511, 4097, CLUSTER_BYTES + 3, 3 * CLUSTER_BYTES))
            offset = random.randrange(2 * MIB)
            data = random.randbytes(length)
            assert os.pwrite(fd, data, offset) == length
            disk.content[offset : offset + length] = data
            start = random.randrange(2 * MIB)
            same = os.pread(fd, length, start) == disk.content[start : start + length]
            assert same, f"{length} bytes at {start} differ"


def test_o_append_writes_past_the_end_where_there_is_no_space(daemon: Daemon) -> None:
    with opened(daemon.disk(), os.O_WRONLY | os.O_APPEND) as fd:
        assert errno_of(os.write, fd, b"x") == "ENOSPC"


def test_o_direct_reads_what_was_written(daemon: Daemon, disk: Disk) -> None:
    with opened(daemon.disk(), os.O_RDONLY | os.O_DIRECT) as fd, mmap.mmap(-1, BLOCK_BYTES) as memory:
        assert os.preadv(fd, [memory], 3 * BLOCK_BYTES) == BLOCK_BYTES
        assert memory[:] == disk.content[3 * BLOCK_BYTES : 4 * BLOCK_BYTES]


def test_fio_verifies_what_it_has_written_at_random_and_in_parallel(daemon: Daemon, disk: Disk) -> None:
    need(commands=("fio",))
    job = ["--name=v", f"--filename={daemon.disk()}", "--rw=randwrite", "--bsrange=512-65536", "--bs_unaligned=0"]
    how = ["--ioengine=libaio", "--direct=1", "--iodepth=16", "--size=4m", "--verify=crc32c", "--verify_fatal=1"]
    run("fio", *job, *how, "--randseed=1", "--verify_state_save=0")
    disk.content[:] = daemon.disk().read_bytes()


def test_a_removed_disk_is_gone_and_one_that_is_open_stays(daemon: Daemon, disk: Disk) -> None:
    write_config(disk.directory.parent, device(disk.directory))
    with opened(daemon.disk(READ_ONLY), os.O_RDONLY) as fd:
        assert ploopfs("reload", "-m", daemon.mountpoint).returncode != Exit.OK
        assert len(os.pread(fd, BLOCK_BYTES, 0)) == BLOCK_BYTES
    until(lambda: daemon.value("pstate/open_count", READ_ONLY) == "0", "it is closed")
    done = ploopfs("reload", "-m", daemon.mountpoint)
    assert (done.returncode, done.stdout) == (Exit.OK, f"removed: {READ_ONLY}\n"), done.stderr
    for call in (os.stat, os.listxattr):
        assert errno_of(call, daemon.disk(READ_ONLY)) == "ENOENT"
    assert errno_of(os.open, daemon.disk(READ_ONLY), os.O_RDONLY) == "ENOENT"
    assert not is_mounted(daemon.disk(READ_ONLY))
    with opened(daemon.disk(), os.O_RDONLY) as fd:
        assert os.pread(fd, BLOCK_BYTES, 0) == disk.content[:BLOCK_BYTES]
