"""Names of devices on a real mount: the kernel goes by them for a while, and nobody finds an old one."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ploopfs.engine.create import create_image
from ploopfs.image.header import V2
from tests.mounted.daemon import Daemon, device, errno_of, opened, serving, until, write_config
from tests.realparts import need

pytestmark = pytest.mark.real

DIRECTORIES = ("sys/block", "sys/class/block", "sys/devices/virtual/block", "sys/kernel/debug/ploopfs", "dev")


def looked_at(daemon: Daemon) -> dict[str, str]:
    """With every name of ploop1 in the kernel's hands afterwards, if it is there."""
    os.listdir(daemon.mountpoint / "sys/block")
    return {name: errno_of(os.lstat, daemon.mountpoint / name / "ploop1") for name in DIRECTORIES}


def links(daemon: Daemon) -> int:
    return (daemon.mountpoint / "sys/devices/virtual/block").stat().st_nlink


@contextmanager
def looking(daemon: Daemon) -> Iterator[None]:
    """Somebody looks at every name all the time."""
    enough = threading.Event()

    def look() -> None:
        while not enough.is_set():
            looked_at(daemon)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def test_who_removes_and_adds_a_device_finds_no_old_name_and_no_old_value(tmp_path: Path) -> None:
    need(fuse=True)
    images = [tmp_path / f"{number}.hds" for number in range(2)]
    for image in images:
        create_image(str(image), size_sectors=64, cluster_sectors=64, version=V2)
    devices = [device(image, f"ploop{number}") for number, image in enumerate(images)]
    with serving(tmp_path, *devices) as daemon, looking(daemon):
        before = links(daemon)
        attribute = daemon.attribute("queue/standby", "ploop1")
        assert (set(looked_at(daemon).values()), attribute.read_text()) == ({"success"}, "off\n")
        number = os.lstat(daemon.mountpoint / "sys/block/ploop1").st_ino
        reload_until(tmp_path, daemon, devices[:1], "device_removed")
        assert (set(looked_at(daemon).values()), links(daemon)) == ({"ENOENT"}, before - 1)
        assert errno_of(os.open, attribute, os.O_RDONLY) == "ENOENT"
        reload_until(tmp_path, daemon, devices, "device_added")
        assert (set(looked_at(daemon).values()), links(daemon)) == ({"success"}, before)
        assert os.lstat(daemon.mountpoint / "sys/block/ploop1").st_ino != number
        assert attribute.read_text() in ("off\n", "not supported\n")  # the fuse is put in after it came


def reload_until(place: Path, daemon: Daemon, devices: list[dict[str, object]], event: str) -> None:
    write_config(place, *devices)
    known = daemon.events()[-1]["seq"]
    with opened(daemon.mountpoint / "sys/fs/ploopfs/reload", os.O_WRONLY) as fd:
        os.write(fd, b"1\n")
    until(lambda: any(each["event"] == event for each in daemon.events() if each["seq"] > known), event)
