"""What must not grow with the number of devices or the size of a disk; and the measuring itself, on small ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ploopfs.bounds import MAX_DEVICES
from ploopfs.device.flavour import VZ7
from ploopfs.device.registry import Registry
from ploopfs.testing.faulty import Faults, FaultyFiles
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.mounted.daemon import HANG_S, ROOT
from tests.mounted.disks import MIB, inspected
from tests.realparts import need
from tests.scale.large import CLUSTER_BYTES, full_image
from tests.scale.many import kernels_own

TOP, NEW = "/store/top.hds", "/store/new.hds"
FEW, MANY = 6, 200_000


async def operations_of_replace(clusters: int) -> list[tuple[str, str]]:
    store, faults = MemoryFiles(), Faults()
    for path in (TOP, NEW):
        store.put(path, ImageBuilder(clusters, clusters={0: b"x" * 32768}).build())
    registry = Registry()
    device = await registry.add("ploop0", flavour=VZ7, image=TOP, files=FaultyFiles(store, faults))
    faults.log.clear()
    await device.replace(NEW)
    done = list(faults.log)
    assert await registry.aclose()
    return done


async def test_a_replacement_asks_the_storage_no_oftener_for_a_large_map_than_for_a_small_one() -> None:
    """Requests wait meanwhile, and each operation of a slow storage is so much longer."""
    assert await operations_of_replace(MANY) == await operations_of_replace(FEW)


@pytest.mark.slow
async def test_a_registry_takes_as_many_devices_as_the_bound_says() -> None:
    store, registry = MemoryFiles(), Registry()
    image = ImageBuilder(FEW).build()
    for number in range(MAX_DEVICES):
        store.put(f"/store/{number}.hds", image)
        await registry.add(f"ploop{number}", flavour=VZ7, image=f"/store/{number}.hds", files=store)
    assert registry.census.version - 1 == len(registry.devices) == MAX_DEVICES
    assert len({device.minor for device in registry.devices.values()}) == MAX_DEVICES
    assert await registry.aclose()


def test_a_full_map_is_one_to_the_check_too_and_costs_no_space(tmp_path: Path) -> None:
    path = full_image(tmp_path / "full.hds", 5000)
    found = inspected(path)
    assert (found.exit_code, found.problems, found.allocated_clusters) == (0, (), 5000)
    assert path.stat().st_size >= 5000 * CLUSTER_BYTES
    assert path.stat().st_blocks * 512 < 4 * MIB


def test_as_many_files_of_the_kernel_are_read_as_of_ours() -> None:
    paths = kernels_own(1000)
    assert len(paths) == 1000
    for path in set(paths):
        assert Path(path).read_text().endswith("\n")


def scale(place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.scale", "--dir", str(place), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)


@pytest.mark.real
def test_a_tree_of_twenty_devices_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    need(commands=("lsblk", "bindfs"), fuse=True)
    small = ("--devices", "20", "--size", "64", "--map-gib", "4", "--entries", "4096", "--times", "2")
    done = scale(tmp_path, *small, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert {figure["name"]: figure["value"] for figure in found}["reads that failed"] == 0
    # How much memory each of twenty costs is within what the first one's allocator happens to keep.
    measured = [figure for figure in found if figure["unit"] in ("s", "ms", "us") and "idle CPU" not in figure["name"]]
    assert len(measured) >= 17
    assert all(figure["value"] > 0 for figure in measured), measured
    assert any(figure["name"].startswith("20 devices of 64 MiB") for figure in found)
    assert os.listdir(tmp_path) == []


def test_more_devices_than_a_daemon_takes_are_a_wrong_command_line(tmp_path: Path) -> None:
    done = scale(tmp_path, "--devices", str(MAX_DEVICES + 1))
    assert done.returncode == 2
    assert f"{MAX_DEVICES + 1} is not from 2 to {MAX_DEVICES:d}" in done.stderr
