"""Holes, seen and made with the tools that everybody has. Only a connection of its own carries fallocate and lseek:
with the tree's, the kernel answers both by itself, and nothing changes."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.blocks import EXT4, looped, mounted, run
from tests.mounted.daemon import Daemon, device, errno_of, opened, serving
from tests.mounted.disks import CLUSTER_BYTES, MIB, Disk, assert_closed, make_disk, sums
from tests.mounted.planes import OWN, TREE, carried_by
from tests.mounted.space import KEEP_SIZE, PUNCH, ZERO_RANGE, fallocate, runs_of_data
from tests.realparts import need

pytestmark = pytest.mark.real

SIZE = 32 * MIB
RAW = "xvda"
NOT_A_FEATURE = ("EOPNOTSUPP", "ENOTSUP")


@dataclass(frozen=True, slots=True)
class Scene:
    """ploop0 is one image alone, ploop1 has two levels; xvda is a `raw` file."""

    daemon: Daemon
    disks: dict[str, Disk]
    raw: Path

    def allocated(self, name: str) -> int:
        return self.daemon.disk(name).stat().st_blocks * 512

    def assert_reads_right(self, name: str) -> None:
        found = hashlib.sha256(self.daemon.disk(name).read_bytes()).hexdigest()
        assert found == hashlib.sha256(self.disks[name].content).hexdigest(), f"{name} differs"

    def zeroed(self, name: str, offset: int, length: int) -> None:
        self.disks[name].content[offset : offset + length] = bytes(length)


@contextmanager
def scene_on(place: Path, plane: str) -> Iterator[Scene]:
    disks = {
        f"ploop{depth - 1}": make_disk(place / f"disk{depth}", depth=depth, size_bytes=SIZE, seed=depth)
        for depth in (1, 2)
    }
    raw = place / "disk.raw"
    raw.write_bytes(b"r" * MIB)
    entries = [device(disk.directory, name) for name, disk in disks.items()]
    entries.append(device([f"raw@{raw}"], RAW, flavour="block", standby=False))
    with serving(place, *entries, options=carried_by(plane)) as daemon:
        yield Scene(daemon, disks, raw)
        assert daemon.end() == 0, daemon.log
    for disk in disks.values():
        assert_closed(disk.top)
        assert sums(disk.deltas[:-1]) == disk.lower_sums


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    need(fuse=True, root=True)
    with scene_on(tmp_path_factory.mktemp("holes"), OWN) as scene:
        yield scene


each_disk = pytest.mark.parametrize("name", ["ploop0", "ploop1"])


def filled_runs(disk: Disk) -> list[tuple[int, int]]:
    """As the bytes have them: clusters that are not zeroes."""
    runs: list[tuple[int, int]] = []
    for start in range(0, disk.size_bytes, CLUSTER_BYTES):
        if any(disk.cluster(start)):
            if runs and runs[-1][1] == start:
                runs[-1] = runs[-1][0], start + CLUSTER_BYTES
            else:
                runs.append((start, start + CLUSTER_BYTES))
    return runs


# --- seen ---------------------------------------------------------------------------------------------------------


@each_disk
def test_lseek_du_and_qemu_img_see_the_same_data_and_holes(own: Scene, name: str) -> None:
    path, disk = own.daemon.disk(name), own.disks[name]
    runs = runs_of_data(path)
    assert runs == filled_runs(disk)
    assert sum(stop - start for start, stop in runs) == own.allocated(name)
    assert run("du", "--block-size=1", path).split()[0] == str(own.allocated(name))
    mapped = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", path))
    assert [(each["start"], each["start"] + each["length"]) for each in mapped if each["data"]] == runs


@each_disk
def test_a_sparse_copy_has_the_bytes_and_no_more_space(own: Scene, name: str, tmp_path: Path) -> None:
    path, copy = own.daemon.disk(name), tmp_path / "copy"
    run("cp", "--sparse=auto", path, copy)
    assert copy.stat().st_blocks * 512 <= own.allocated(name) + CLUSTER_BYTES
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(own.disks[name].content).digest()
    # And back: what is zero in it takes no space of the disk.
    before = own.allocated(name)
    run("dd", f"if={copy}", f"of={path}", "bs=64k", "conv=sparse,notrunc", "status=none")
    assert own.allocated(name) == before
    own.assert_reads_right(name)


# --- made ---------------------------------------------------------------------------------------------------------


def image_bytes(disk: Disk) -> int:
    return disk.top.stat().st_blocks * 512


@each_disk
@pytest.mark.parametrize("option", ["-p", "-z"], ids=["punch", "zero"])
def test_fallocate_makes_exactly_its_range_zeroes(own: Scene, name: str, option: str) -> None:
    disk = own.disks[name]
    start, stop = filled_runs(disk)[0]
    offset, length = start + 700, stop - start + CLUSTER_BYTES
    before, took = own.allocated(name), image_bytes(disk)
    run("fallocate", option, "--offset", str(offset), "--length", str(length), own.daemon.disk(name))
    own.zeroed(name, offset, length)
    own.assert_reads_right(name)
    if option == "-p" and name == "ploop0":
        assert own.allocated(name) <= before - (stop - start - CLUSTER_BYTES)
        assert image_bytes(disk) <= took
    elif option == "-z":
        assert own.allocated(name) >= before, "who keeps the space, keeps it"


@each_disk
def test_a_range_past_the_end_is_cut_off_or_refused_and_other_modes_are_none_of_a_disk(own: Scene, name: str) -> None:
    disk = own.disks[name]
    with opened(own.daemon.disk(name)) as fd:
        assert errno_of(fallocate, fd, PUNCH, disk.size_bytes - 700, CLUSTER_BYTES) == "success"
        own.zeroed(name, disk.size_bytes - 700, 700)
        assert errno_of(fallocate, fd, PUNCH, disk.size_bytes, 1) == "EINVAL"
        assert errno_of(fallocate, fd, ZERO_RANGE, disk.size_bytes - 1, 2) == "EINVAL"
        assert errno_of(fallocate, fd, ZERO_RANGE | KEEP_SIZE, disk.size_bytes - 1, 2) == "success"
        for mode in (0x08, 0x20):  # collapse, insert
            assert errno_of(fallocate, fd, mode, 0, CLUSTER_BYTES) in NOT_A_FEATURE
        assert os.fstat(fd).st_size == disk.size_bytes
    own.assert_reads_right(name)


@each_disk
def test_blkdiscard_on_a_loop_device_gives_the_space_back(own: Scene, name: str) -> None:
    need(commands=("blkdiscard",), loop=True)
    disk = own.disks[name]
    half = disk.size_bytes // 2
    before = own.allocated(name)
    with looped(own.daemon.disk(name), direct_io=True) as loop:
        run("blkdiscard", "--offset", str(half), "--length", str(half), loop)
    own.zeroed(name, half, half)
    own.assert_reads_right(name)
    assert own.allocated(name) < before
    if name == "ploop0":
        assert all(stop <= half for _, stop in runs_of_data(own.daemon.disk(name)))
    with looped(own.daemon.disk(name), direct_io=True) as loop:
        run("blkdiscard", "--zeroout", "--offset", "512", "--length", "1024", loop)
    own.zeroed(name, 512, 1024)
    own.assert_reads_right(name)


@each_disk
def test_fstrim_of_a_file_system_makes_the_image_smaller(own: Scene, name: str, tmp_path: Path) -> None:
    need(commands=("fstrim", "mkfs.ext4"), loop=True, file_systems=("ext4",))
    disk = own.disks[name]
    with looped(own.daemon.disk(name), direct_io=True) as loop:
        run(*EXT4.make, loop)
        with mounted(loop, tmp_path / "fs") as place:
            (place / "kept").write_bytes(b"kept" * 1000)
            (place / "large").write_bytes(os.urandom(8 * MIB))
            os.sync()
            full, took = own.allocated(name), image_bytes(disk)
            (place / "large").unlink()
            os.sync()
            run("fstrim", place)
            assert own.allocated(name) <= full - 6 * MIB
            assert image_bytes(disk) <= took - 6 * MIB
            assert (place / "kept").read_bytes() == b"kept" * 1000
    run(*EXT4.check, own.daemon.disk(name))
    disk.content[:] = own.daemon.disk(name).read_bytes()


def test_of_a_raw_disk_all_is_data_and_a_punched_hole_is_one_of_its_file(own: Scene) -> None:
    path, before = own.daemon.disk(RAW), own.raw.stat().st_blocks
    run("fallocate", "-p", "--offset", "100000", "--length", str(MIB // 2), path)
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(
        b"r" * 100000 + bytes(MIB // 2) + b"r" * (MIB // 2 - 100000)
    ).digest()
    assert own.raw.stat().st_blocks <= before - (MIB // 2 - 8192) // 512
    assert (own.raw.stat().st_size, own.allocated(RAW), runs_of_data(path)) == (MIB, MIB, [(0, MIB)])


def test_a_disk_that_is_all_holes_takes_no_space_and_reads_as_zeroes(own: Scene) -> None:
    path, disk = own.daemon.disk(), own.disks["ploop0"]
    run("fallocate", "-p", "--offset", "0", "--length", str(disk.size_bytes), path)
    own.zeroed("ploop0", 0, disk.size_bytes)
    assert (runs_of_data(path), own.allocated("ploop0")) == ([], 0)
    own.assert_reads_right("ploop0")
    with opened(path) as fd:
        os.pwrite(fd, b"x", 5 * CLUSTER_BYTES + 3)
    disk.content[5 * CLUSTER_BYTES + 3 : 5 * CLUSTER_BYTES + 4] = b"x"
    assert runs_of_data(path) == [(5 * CLUSTER_BYTES, 6 * CLUSTER_BYTES)]
    own.assert_reads_right("ploop0")


# --- the tree's connection ----------------------------------------------------------------------------------------


def test_through_the_tree_the_kernel_says_no_or_that_all_is_data_and_nothing_changes(tmp_path: Path) -> None:
    need(commands=("blkdiscard",), loop=True)
    with scene_on(tmp_path, TREE) as scene:
        path, disk = scene.daemon.disk(), scene.disks["ploop0"]
        with opened(path) as fd:
            for mode in (PUNCH, ZERO_RANGE, 0):
                assert errno_of(fallocate, fd, mode, 0, CLUSTER_BYTES) in NOT_A_FEATURE
            assert (os.lseek(fd, 5, os.SEEK_DATA), os.lseek(fd, 5, os.SEEK_HOLE)) == (5, disk.size_bytes)
        assert scene.allocated("ploop0") == sum(stop - start for start, stop in filled_runs(disk))
        with looped(path, direct_io=True) as loop:
            run("blkdiscard", loop)  # advice, which may stay without effect
            run("blkdiscard", "--zeroout", "--offset", "512", "--length", "1024", loop)
        scene.zeroed("ploop0", 512, 1024)
        copy = tmp_path / "copy"
        run("cp", "--sparse=always", path, copy)
        assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(disk.content).digest()
        for name in scene.disks:
            scene.assert_reads_right(name)
