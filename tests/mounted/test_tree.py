"""The tree as other programs see it: the golden listings through the mount, lsblk, find and cat."""

import difflib
import errno
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ploopfs.engine.create import create_image
from ploopfs.image.header import DEFAULT_CLUSTER_SECTORS, V2
from tests.mounted.daemon import Daemon, device, serving
from tests.mounted.disks import MIB
from tests.mounted.storage import Bindfs
from tests.realparts import need
from tests.sysfs.test_golden import DEVICES, GOLDEN, masked

pytestmark = pytest.mark.real

DISK_BYTES = 64 * MIB
SUBSYSTEM = ("sys/kernel/scst_tgt", "sys/module/")
UNREADABLE = ["queue/wbt_lat_usec"]
"""The attributes whose show is EINVAL, counted from the device."""
UNBOUNDED = frozenset({"error_injection", "deltas", "table", "table_inactive", "load", "message"})
"""The attributes whose text may be longer than a page."""


def value(path: Path, mode: int) -> str:
    if not mode & 0o444:
        return "(write-only)"
    try:
        text = path.read_text()
    except OSError as error:
        return f"({errno.errorcode[error.errno or 0]})"
    # The golden stacks lie in /images.
    return json.dumps(masked(f"/{path}", re.sub(r"(?<![^ \n@])/\S*/(?=[^/\s]+[ \n])", "/images/", text)))


def listed(path: Path, name: str) -> str:
    found = path.lstat()
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISLNK(found.st_mode):
        return f"{mode:04o} {name} -> {os.readlink(path)}"
    if stat.S_ISDIR(found.st_mode):
        return f"{mode:04o} {name}/"
    if name.startswith("dev/"):
        return f"{mode:04o} {name} (disk of {found.st_size} bytes)"
    if name == "sys/fs/ploopfs/events":
        return f"{mode:04o} {name} (stream)"
    if name == "sys/fs/ploopfs/metrics":
        assert path.read_bytes().endswith(b"\n")
        return f"{mode:04o} {name} (report)"
    assert found.st_size == (0 if name.startswith("proc/") or path.name in UNBOUNDED else 4096)
    return f"{mode:04o} {name} {value(path, mode)}"


def listing(root: Path) -> list[str]:
    """Without the target subsystem, which has a listing of its own."""
    names = sorted(str(path.relative_to(root)) for path in walk(root))
    return [listed(root / name, name) for name in names if not name.startswith(SUBSYSTEM)]


def walk(directory: Path) -> Iterator[Path]:
    for entry in os.scandir(directory):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path))


def image(path: Path) -> Path:
    create_image(str(path), size_sectors=DISK_BYTES >> 9, cluster_sectors=DEFAULT_CLUSTER_SECTORS, version=V2)
    return path


def one_delta(_local: Path, bindfs: Bindfs) -> list[str]:
    return [str(bindfs.path / image(bindfs.bricks / "disk.hds").name)]


def three_deltas(local: Path, bindfs: Bindfs) -> list[str]:
    """The base on a file system of the kernel, the others on FUSE: `io` tells."""
    base = local / "base.raw"
    with base.open("wb") as file:
        file.truncate(DISK_BYTES)
    uppers = [image(bindfs.bricks / name).name for name in ("middle.hds", "top.hds")]
    return [f"raw@{base}", *(str(bindfs.path / name) for name in uppers)]


def raw(local: Path, _bindfs: Bindfs) -> list[str]:
    with (local / "disk.raw").open("wb") as file:
        file.truncate(DISK_BYTES)
    return [f"raw@{local}/disk.raw"]


GOLDEN_DISKS = {
    "vz7-1-delta": one_delta,
    "vz7-3-deltas": three_deltas,
    "vz9-1-delta": one_delta,
    "vz9-3-deltas": three_deltas,
    "block-1": raw,
}


@pytest.mark.parametrize("name", DEVICES)
def test_the_mounted_tree_is_the_golden_listing(tmp_path: Path, bindfs: Bindfs, name: str) -> None:
    disk, flavour, _ = DEVICES[name]
    images = GOLDEN_DISKS[name](tmp_path, bindfs)
    with serving(
        tmp_path, device(images, disk, flavour=flavour.name, standby=flavour.supports_standby)
    ) as daemon:
        seen = listing(daemon.mountpoint)
    golden = (GOLDEN / f"{name}.txt").read_text().splitlines()
    difference = "\n".join(difflib.unified_diff(golden, seen, name, "mounted", lineterm=""))
    assert not difference, f"the mounted tree is not its golden listing:\n{difference}"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    need(fuse=True, root=True)
    place = tmp_path_factory.mktemp("tree")
    images = [device(image(place / f"{name}.hds"), name) for name in ("ploop0", "ploop1")]
    with serving(place, images[0], images[1] | {"read_only": True}) as running:
        yield running


def test_lsblk_shows_the_disks_of_the_tree(daemon: Daemon) -> None:
    need(commands=("lsblk",))
    columns = "NAME,MAJ:MIN,SIZE,RO,TYPE,DISC-GRAN,LOG-SEC,PHY-SEC"
    command = ["lsblk", "--sysroot", str(daemon.mountpoint), "--noheadings", "--output", columns]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["ploop0", "182:0", "64M", "0", "disk", "1M", "512", "512"],
        ["ploop1", "182:16", "64M", "1", "disk", "1M", "512", "512"],
    ]


def test_find_and_cat_read_the_whole_tree(daemon: Daemon) -> None:
    root = daemon.mountpoint
    command = ["find", f"{root}/sys", "-type", "f", "-perm", "/444", "-exec", "cat", "{}", "+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines() == [
        f"cat: {root}/sys/devices/virtual/block/{name}/{path}: Invalid argument"
        for name in ("ploop0", "ploop1")
        for path in UNREADABLE
    ]
    assert done.stdout.splitlines().count("off") == 2


def test_every_link_leads_somewhere(daemon: Daemon) -> None:
    links = [path for path in walk(daemon.mountpoint) if path.is_symlink()]
    assert all(path.exists() for path in links)
    assert len([path for path in links if "scst_tgt" not in path.parts and "module" not in path.parts]) == 8
    assert os.path.samefile(daemon.mountpoint / "sys/block/ploop0", daemon.mountpoint / "sys/dev/block/182:0")


def test_the_loop_of_a_watching_script_runs_as_it_stands(daemon: Daemon) -> None:
    script = f"for f in {daemon.mountpoint}/sys/block/*/queue/standby; do cat $f; done"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "off\noff\n"


def test_a_setting_is_stored_and_a_wrong_one_is_the_shells_error(daemon: Daemon) -> None:
    path = daemon.attribute("queue/nr_requests")
    done = subprocess.run(["bash", "-c", f"echo 64 > {path}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.endswith("write error: Invalid argument\n")) == (1, True)
    daemon.store("queue/rotational", "1")
    assert daemon.value("queue/rotational") == "1"
    daemon.store("queue/rotational", "0")
