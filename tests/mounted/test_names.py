"""Names of devices on a real mount: the kernel goes by them for a while, and nobody finds an old one."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.mounted.daemon import Daemon, device, errno_of, ploopfs, serving, write_config
from tests.mounted.disks import MIB
from tests.realparts import need

pytestmark = pytest.mark.real

DIRECTORIES = ("sys/block", "sys/class/block", "sys/devices/virtual/block", "sys/kernel/debug/ploopfs", "dev")


def looked_at(daemon: Daemon) -> dict[str, str]:
    """With every name of ploop1 in the kernel's hands afterwards, if it is there."""
    os.listdir(daemon.mountpoint / "sys/block")
    return {name: errno_of(os.lstat, daemon.mountpoint / name / "ploop1") for name in DIRECTORIES}


def links(daemon: Daemon) -> int:
    return (daemon.mountpoint / "sys/devices/virtual/block").stat().st_nlink


def test_who_removes_and_adds_a_device_finds_no_old_name_and_no_old_value(tmp_path: Path) -> None:
    need(fuse=True)
    images = [tmp_path / f"{number}.hds" for number in range(2)]
    for image in images:
        assert ploopfs("create", f"{4 * MIB}", image).returncode == 0
    devices = [device(image, f"ploop{number}") for number, image in enumerate(images)]
    with serving(tmp_path, *devices) as daemon:
        there, before = looked_at(daemon), links(daemon)
        attribute = daemon.attribute("queue/standby", "ploop1")
        assert (set(there.values()), attribute.read_text()) == ({"success"}, "off\n")
        number = os.lstat(daemon.mountpoint / "sys/block/ploop1").st_ino
        reloaded(tmp_path, daemon, devices[:1])
        assert (set(looked_at(daemon).values()), links(daemon)) == ({"ENOENT"}, before - 1)
        assert errno_of(os.open, attribute, os.O_RDONLY) == "ENOENT"
        reloaded(tmp_path, daemon, devices)
        assert (set(looked_at(daemon).values()), links(daemon)) == ({"success"}, before)
        assert os.lstat(daemon.mountpoint / "sys/block/ploop1").st_ino != number


def reloaded(place: Path, daemon: Daemon, devices: list[dict[str, object]]) -> None:
    write_config(place, *devices)
    done: subprocess.CompletedProcess[str] = ploopfs("reload", "-m", daemon.mountpoint)
    assert done.returncode == 0, done.stderr
