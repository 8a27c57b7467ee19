"""What is taken from the kernel's own files: which lines are those of loop devices over our disks."""

from pathlib import Path

import pytest

from ploopfs.fuse import host
from ploopfs.fuse.host import LinuxHost
from ploopfs.sysfs.proc import Use

OURS = "43 27 7:0 / /mnt/fs rw - ext4 /dev/loop0 rw"
SWAPS = "Filename\tType\n"
OUR_SWAP = "/dev/loop0                              partition\t65532\t\t0\t\t-2"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files that there are; others read as empty, as `_read` promises."""
    texts: dict[str, str] = {}
    monkeypatch.setattr(host, "_read", lambda path: texts.get(path, ""))
    return texts


@pytest.fixture
def linux(files: dict[str, str], tmp_path: Path) -> LinuxHost:
    """Reached through a link, which the kernel's name of a file is without; ploop0 is under loop0."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "link").symlink_to("mnt")
    for loop in ("block/loop0", "dev/block/7:0"):
        files[f"/sys/{loop}/loop/backing_file"] = f"{tmp_path}/mnt/dev/ploop0\n"
    return LinuxHost(str(tmp_path / "link"))


def test_only_mounts_of_loop_devices_over_our_disks_are_uses(files: dict[str, str], linux: LinuxHost) -> None:
    files["/sys/dev/block/7:1/loop/backing_file"] = "/elsewhere/dev/ploop0\n"
    others = [
        "21 1 254:0 / / rw - ext4 /dev/vda rw",
        "44 27 7:1 / /mnt/else rw - ext4 /dev/loop1 rw",
        "45 27 7:2 / /mnt/gone rw - ext4 /dev/loop2 rw",
        "46 27 259:0 / /mnt/partition rw - ext4 /dev/loop0p1 rw",
        "too short",
    ]
    files["/proc/self/mountinfo"] = "\n".join([*others, OURS, ""])
    assert linux.mounts() == (Use("ploop0", OURS),)


def test_a_mountpoint_may_hold_what_python_takes_for_an_end_of_line(files: dict[str, str], linux: LinuxHost) -> None:
    line = OURS.replace("/mnt/fs", "/mnt/a\x0bb\x85c\udcff")
    files["/proc/self/mountinfo"] = f"{line}\n"
    assert linux.mounts() == (Use("ploop0", line),)


def test_only_swap_areas_on_loop_devices_over_our_disks_are_uses(files: dict[str, str], linux: LinuxHost) -> None:
    files["/proc/swaps"] = f"{SWAPS}/swapfile file\t1\t0\t-2\n/dev/loop1 partition\t1\t0\t-3\n{OUR_SWAP}\n"
    assert linux.swaps() == (Use("ploop0", OUR_SWAP),)


def test_a_line_that_could_not_be_shown_is_no_use(files: dict[str, str], linux: LinuxHost) -> None:
    files["/proc/self/mountinfo"] = "43 27 7:0 / /mnt/fs rw ext4\n43 27 7:0\n43 27 7:0 / /mnt/fs rw - ext4\n"
    files["/proc/swaps"] = f"{SWAPS}/dev/loop0\n/dev/loop0 \n"
    assert (linux.mounts(), linux.swaps()) == ((), ())


def test_what_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    assert host._read(str(tmp_path / "none")) == ""
    assert host._read(str(tmp_path)) == ""


def test_the_kernels_own_statistics_are_handed_on(files: dict[str, str], linux: LinuxHost) -> None:
    files["/proc/diskstats"], files["/proc/partitions"] = "stats\n", "partitions\n"
    assert (linux.diskstats(), linux.partitions()) == ("stats\n", "partitions\n")
