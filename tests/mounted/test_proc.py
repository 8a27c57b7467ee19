"""`proc/` of a mounted tree, beside the kernel's own and as tools read it that take another root."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S, Daemon, device, opened, serving
from tests.mounted.disks import make_disk
from tests.mounted.exporter import scraped
from tests.realparts import need

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    need(fuse=True, root=True)
    place = tmp_path_factory.mktemp("proc")
    disks = [device(make_disk(place / name).directory, name) for name in ("ploop0", "ploop1")]
    with serving(place, disks[0], disks[1] | {"read_only": True}) as running:
        yield running


def lines(file: Path | str) -> list[str]:
    return Path(file).read_text().splitlines()


def run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG_S).stdout


@dataclass(frozen=True, slots=True)
class Loop:
    name: str

    @property
    def numbers(self) -> str:
        return Path(f"/sys/block/{Path(self.name).name}/dev").read_text().strip()


@contextmanager
def loop_over(disk: Path) -> Iterator[Loop]:
    need(commands=("losetup",), loop=True)
    name = run("losetup", "--find", "--show", disk).strip()
    try:
        yield Loop(name)
    finally:
        run("losetup", "--detach", name)


def lsblk(daemon: Daemon) -> dict[str, list[str | None]]:
    columns = "NAME,MOUNTPOINTS,SIZE,RO,TYPE"
    shown = run("lsblk", "--sysroot", daemon.mountpoint, "--json", "--output", columns)
    return {disk["name"]: disk["mountpoints"] for disk in json.loads(shown)["blockdevices"]}


@pytest.mark.parametrize("name", ["diskstats", "partitions"])
def test_a_line_of_ours_has_the_fields_of_the_kernels(daemon: Daemon, name: str) -> None:
    ours, theirs = lines(daemon.mountpoint / "proc" / name), lines(f"/proc/{name}")
    if name == "partitions":
        assert ours[:2] == theirs[:2]
    assert [line.split()[:2] for line in ours[-2:]] == [["182", "0"], ["182", "16"]]
    assert len(ours[-1].split()) == len(theirs[-1].split())


def test_the_head_of_swaps_is_the_kernels(daemon: Daemon) -> None:
    assert lines(daemon.mountpoint / "proc/swaps")[0] == lines("/proc/swaps")[0]


def test_the_files_for_the_whole_system_hold_its_disks_and_ours_live(daemon: Daemon) -> None:
    file = daemon.mountpoint / "proc/ploopfs/diskstats"

    def names(of: Path) -> list[str]:
        """Without loop devices, which come and go with whoever else uses some."""
        return [name for line in lines(of) if not (name := line.split()[2]).startswith("loop")]

    def reads() -> int:
        return int(next(line.split()[3] for line in lines(file) if " ploop1 " in line))

    assert names(file) == [*names(Path("/proc/diskstats")), "ploop0", "ploop1"]
    before = reads()
    with opened(daemon.disk("ploop1"), os.O_RDONLY) as fd:
        os.pread(fd, 4096, 0)
    assert reads() == before + 1


def test_cp_copies_all_of_a_file_though_its_size_is_zero(daemon: Daemon, tmp_path: Path) -> None:
    file = daemon.mountpoint / "proc/ploopfs/partitions"
    assert file.stat().st_size == 0
    run("cp", file, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == file.read_text()


def test_lsblk_shows_where_a_file_system_on_a_disk_is_mounted(daemon: Daemon, tmp_path: Path) -> None:
    need(commands=("lsblk", "mkfs.ext4", "mount"))
    assert lsblk(daemon) == {"ploop0": [None], "ploop1": [None]}
    place = tmp_path / "file system"
    place.mkdir()
    run("mkfs.ext4", "-q", daemon.disk())
    with loop_over(daemon.disk()) as loop:
        run("mount", loop.name, place)
        try:
            assert lsblk(daemon) == {"ploop0": [str(place)], "ploop1": [None]}
            theirs = [line for line in lines("/proc/self/mountinfo") if loop.numbers in line.split()]
            expected = [line.replace(loop.numbers, "182:0").replace(loop.name, "/dev/ploop0") for line in theirs]
            assert lines(daemon.mountpoint / "proc/self/mountinfo") == expected != []
        finally:
            run("umount", place)
    assert lsblk(daemon) == {"ploop0": [None], "ploop1": [None]}


def test_lsblk_shows_a_swap_area_on_a_disk(daemon: Daemon) -> None:
    need(commands=("lsblk", "mkswap", "swapon", "swapoff"))
    with loop_over(daemon.disk()) as loop:
        run("mkswap", loop.name)
        run("swapon", loop.name)
        try:
            assert lsblk(daemon) == {"ploop0": ["[SWAP]"], "ploop1": [None]}
        finally:
            run("swapoff", loop.name)


def test_node_exporter_tells_of_our_disks(daemon: Daemon) -> None:
    root = daemon.mountpoint
    answer = scraped(
        f"--path.sysfs={root}/sys", f"--path.procfs={root}/proc", f"--path.rootfs={root}", "--collector.diskstats"
    )
    assert 'node_scrape_collector_success{collector="diskstats"} 1' in answer
    written = daemon.value("stat").split()[4]
    assert f'node_disk_writes_completed_total{{device="ploop0"}} {written}' in answer
    assert 'node_disk_info{device="ploop1",major="182",minor="16"' in answer
