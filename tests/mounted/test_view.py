"""The view of `ploopfs exec` over trees that a test makes of plain files: what a daemon cannot be made to show here.

A helper arranges it in a process of its own, as the verb does, and becomes a shell.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ploopfs.cli.view import check_free
from ploopfs.errors import NamespaceError
from tests.mounted.daemon import HANG_S, ROOT
from tests.realparts import need

pytestmark = pytest.mark.real

HELPER = """
import os, sys
from ploopfs.cli.namespace import enter
from ploopfs.cli.view import View
tree, before, script = sys.argv[1:]
view = View(tree, in_user_namespace=enter())
exec(before)
view.arrange()
os.execvp("sh", ["sh", "-euc", script])
"""

SOCKET_IN_DEV = """
import socket
from ploopfs.cli.namespace import mount
mount("tmpfs", "/dev", fstype="tmpfs")
os.mknod("/dev/null", 0o20666, os.makedev(1, 3))
os.mkdir("/dev/shm")
mount("tmpfs", "/dev/shm", fstype="tmpfs")
listener = socket.socket(socket.AF_UNIX)
listener.bind("/dev/log")
listener.listen()
os.set_inheritable(listener.fileno(), True)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A disk ploop7, a mapped one dm-777 called vz, and no module loaded."""
    root = tmp_path / "tree"
    for name in ("block", "class/block", "dev/block", "fs/ploopfs", "kernel/debug/ploopfs/ploop7", "module"):
        (root / "sys" / name).mkdir(parents=True)
    (root / "sys/kernel/debug/ploopfs/ploop7/error_injection").touch()
    (root / "dev/mapper").mkdir(parents=True)
    (root / "dev/mapper/vz").symlink_to("../dm-777")
    (root / "proc/ploopfs").mkdir(parents=True)
    for name in ("diskstats", "partitions"):
        (root / "proc/ploopfs" / name).write_text(f"all {name}\n")
    for number, name in enumerate(("ploop7", "dm-777")):
        add(root, name, f"182:{4000 + number}")
    return root


def add(root: Path, name: str, numbers: str) -> None:
    directory = root / "sys/devices/virtual/block" / name
    (directory / "queue").mkdir(parents=True)
    (directory / "dev").write_text(f"{numbers}\n")
    (directory / "queue/standby").write_text("off\n")
    (root / "sys/block" / name).symlink_to(f"../devices/virtual/block/{name}")
    for place, link in (("class", name), ("dev", numbers)):
        (root / "sys" / place / "block" / link).symlink_to(f"../../devices/virtual/block/{name}")
    (root / "dev" / name).write_text(f"the disk {name}\n")


def run(tree: Path, script: str, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HELPER, str(tree), before, script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)


def inside(tree: Path, script: str, before: str = "") -> str:
    done = run(tree, script, before)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_mapped_disk_has_its_name_beside_those_of_the_system(tree: Path) -> None:
    shown = inside(tree, "cat /dev/mapper/vz; ls /dev/mapper; cat /sys/block/dm-777/queue/standby; cat /proc/diskstats")
    mapper = Path("/dev/mapper")
    names = sorted([*(os.listdir(mapper) if mapper.is_dir() else []), "vz"])
    assert shown.splitlines() == ["the disk dm-777", *names, "off", "all diskstats"]


def test_fault_injection_is_in_debugfs_and_what_is_there_stays(tree: Path) -> None:
    there = os.listdir("/sys/kernel/debug")
    assert inside(tree, "ls /sys/kernel/debug").split() == sorted([*there, "ploopfs"])
    inside(tree, "echo rule > /sys/kernel/debug/ploopfs/ploop7/error_injection")
    assert (tree / "sys/kernel/debug/ploopfs/ploop7/error_injection").read_text() == "rule\n"


def test_what_a_module_brings_comes_and_goes_while_the_command_runs(tree: Path) -> None:
    loaded = tree / "sys/kernel/scst_tgt/handlers"
    script = f"""
    test ! -e /sys/kernel/scst_tgt; test ! -e /sys/module/scst
    mkdir -p {loaded} {tree}/sys/module/scst
    echo add > /sys/kernel/scst_tgt/handlers/mgmt; ls /sys/kernel/scst_tgt; test -d /sys/module/scst
    rm -r {loaded.parent}
    test ! -e /sys/kernel/scst_tgt
    """
    assert inside(tree, script) == "handlers\n"


def test_what_a_module_has_brought_before_is_there_too(tree: Path) -> None:
    (tree / "sys/kernel/scst_tgt/devices").mkdir(parents=True)
    assert inside(tree, "ls /sys/kernel/scst_tgt; ls -d /sys/kernel/mm") == "devices\n/sys/kernel/mm\n"


def test_a_disk_that_is_added_later_is_shown_and_what_is_written_to_it_fails(tree: Path) -> None:
    later = f"{tree}/sys/devices/virtual/block/ploop8"
    script = f"""
    mkdir -p {later}/queue; echo on > {later}/queue/standby
    ln -s ../devices/virtual/block/ploop8 {tree}/sys/block/ploop8
    cat /sys/block/ploop8/queue/standby
    ! echo off > /sys/block/ploop8/queue/standby
    """
    done = run(tree, script)
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert "Read-only file system" in done.stderr
    assert (Path(later) / "queue/standby").read_text() == "on\n"


def test_no_directory_of_sys_takes_a_new_file(tree: Path) -> None:
    for place in ("kernel", "kernel/debug", "fs", "module", "block", "devices/virtual/block"):
        assert inside(tree, f"(touch /sys/{place}/new) 2>/dev/null || echo refused") == "refused\n", place


def test_a_socket_and_a_mount_in_dev_are_those_of_the_system(tree: Path) -> None:
    need(commands=("python3",))
    connect = "import socket; socket.socket(socket.AF_UNIX).connect('/dev/log')"
    shown = inside(tree, f'python3 -c "{connect}"; echo x > /dev/null; stat -f -c %T /dev/shm; ls /dev', SOCKET_IN_DEV)
    assert shown.split() == ["tmpfs", "dm-777", "log", "mapper", "null", "ploop7", "shm"]


def test_a_name_that_is_taken_is_refused(tree: Path) -> None:
    taken = min(os.listdir("/sys/block"))
    add(tree, taken, "182:4242")
    with pytest.raises(NamespaceError, match=f"/sys/block/{taken} exists on this system: the disk needs another name"):
        list(check_free(str(tree)))
    (tree / f"sys/block/{taken}").unlink()
    (tree / f"dev/{taken}").rename(tree / "dev/null")
    with pytest.raises(NamespaceError, match="/dev/null exists on this system"):
        list(check_free(str(tree)))


def test_a_number_that_is_taken_is_warned_of_and_stays_with_the_systems_disk(tree: Path) -> None:
    assert list(check_free(str(tree))) == []
    numbers = min(os.listdir("/sys/dev/block"))
    owner = Path(f"/sys/dev/block/{numbers}").resolve().name
    add(tree, "ploop9", numbers)
    assert list(check_free(str(tree))) == [
        f"ploop9 has the number of {owner}, {numbers}: who goes by numbers finds {owner}"
    ]
    assert inside(tree, f"basename $(readlink /sys/dev/block/{numbers})") == f"{owner}\n"
