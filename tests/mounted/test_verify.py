"""fio writes the disk at random and reads all of it back by checksum; afterwards the image is sound and QEMU agrees."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S, Daemon, device, serving
from tests.mounted.disks import MIB, Disk, assert_closed, by_qemu, make_disk
from tests.realparts import need

pytestmark = pytest.mark.real

FIO = (
    "fio",
    "--name=verify",
    f"--filesize={64 * MIB}",
    "--allow_file_create=0",
    "--fallocate=none",
    "--verify=crc32c",
    "--do_verify=1",
    "--verify_fatal=1",
    "--verify_state_save=0",
    "--randseed=20",
)


@dataclass(frozen=True, slots=True)
class Served:
    place: Path
    disk: Disk
    daemon: Daemon


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    need(commands=("fio",))
    disk = make_disk(tmp_path / "disk", depth=3)
    with serving(tmp_path, device(disk.directory)) as daemon:
        yield Served(tmp_path, disk, daemon)


@pytest.mark.parametrize(
    "job",
    [
        ("--rw=randwrite", "--ioengine=psync", "--bsrange=1k-48k", "--bs_unaligned=1", "--fsync=16", "--io_size=12M"),
        ("--rw=randwrite", "--ioengine=psync", "--bs=4k", "--direct=1", "--fdatasync=64", "--io_size=8M"),
        ("--rw=randwrite", "--ioengine=libaio", "--iodepth=16", "--direct=1", "--bsrange=512-64k", "--io_size=16M"),
        ("--rw=write", "--ioengine=psync", "--bs=1M", "--direct=1", "--end_fsync=1"),
    ],
    ids=["unaligned with fsync", "direct", "direct and deep", "sequential"],
)
def test_what_fio_wrote_it_reads_back(served: Served, job: tuple[str, ...]) -> None:
    filename = f"--filename={served.daemon.disk()}"
    done = subprocess.run([*FIO, filename, *job], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert served.daemon.disk().stat().st_size == served.disk.size_bytes
    seen = served.daemon.disk().read_bytes()
    assert served.daemon.end() == 0
    assert_closed(served.disk.top)
    assert by_qemu(served.disk.deltas, served.place / "raw") == seen
