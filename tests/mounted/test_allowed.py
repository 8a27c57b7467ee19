"""`allowed_dirs` and the kinds of file, on a mount: whoever names an image, and wherever, it lies where it may."""

import os
from pathlib import Path

import pytest

from ploopfs.cli.exits import Exit
from tests.mounted.daemon import (
    Daemon,
    device,
    errno_of,
    is_mounted,
    opened,
    ploopfs,
    said,
    serving,
    until,
    write_config,
)
from tests.mounted.disks import CLUSTER_BYTES, Disk, assert_closed, make_disk, sums
from tests.mounted.storage import Bindfs
from tests.mounted.writer import Writer

pytestmark = pytest.mark.real

CLUSTER_LOG = (CLUSTER_BYTES >> 9).bit_length() - 1


def copy_of(image: Path, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    copy = directory / "top.hds"
    copy.write_bytes(image.read_bytes())
    return copy


def refused(place: Path, image: Path, allowed: Path) -> str:
    """Why a mount with the image as its second device did not come about."""
    disk = make_disk(place / "store/first")
    (place / "mnt").mkdir()
    config = write_config(place, device(disk.directory), device(image, "ploop1"), allowed_dirs=[str(allowed)])
    done = ploopfs("mount", config, place / "mnt")
    assert done.returncode == Exit.CONFIG, done.stderr
    assert not is_mounted(place / "mnt")
    assert_closed(disk.top)
    return said(done.stderr).removeprefix(f"ploopfs: {config}: devices[1] (ploop1): ")


def test_a_descriptor_cannot_name_an_image_outside(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "store/disk", depth=2)
    outside = copy_of(disk.top, tmp_path / "outside")
    disk.top.unlink()
    disk.top.symlink_to(outside)
    told = refused(tmp_path, disk.directory, allowed=tmp_path / "store")
    assert told == f"{disk.top}, which is {outside}, lies in none of allowed_dirs: {tmp_path}/store"
    assert_closed(outside)


def test_a_configured_fifo_does_not_hold_up_the_mount(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    told = refused(tmp_path, tmp_path / "fifo", allowed=Path("/"))
    assert told == f"{tmp_path}/fifo: file type is a FIFO, expected a regular file"


def test_no_control_file_takes_an_image_from_outside(tmp_path: Path) -> None:
    first, second = (make_disk(tmp_path / "store" / name, depth=2) for name in ("first", "second"))
    outside = copy_of(first.top, tmp_path / "outside")
    before = sums([outside])
    devices = (device(first.directory, standby=False), device(second.directory, "dm-0", flavour="vz9"))
    with serving(tmp_path, *devices, allowed_dirs=[str(tmp_path / "store")]) as daemon:
        _replace_refuses(daemon, tmp_path, outside)
        _reopen_refuses(daemon, first, outside)
        _load_refuses(daemon, second, outside)
        _scst_knows_no_files(daemon, outside)
        copy = copy_of(outside, tmp_path / "store/copy")
        daemon.store("ploopfs/replace_delta", str(copy))
        assert daemon.value("pdelta/1/image") == str(copy)
    assert sums([outside]) == before
    for disk in (first, second):
        assert_closed(disk.top)


def _replace_refuses(daemon: Daemon, place: Path, outside: Path) -> None:
    (place / "store/link").symlink_to(outside.parent)
    for path in (outside, place / "store/link" / outside.name, place / "store/../outside" / outside.name):
        assert errno_of(daemon.store, "ploopfs/replace_delta", str(path)) == "EACCES"
        assert "lies in none of allowed_dirs" in daemon.value("ploopfs/last_error")
    os.mkfifo(place / "store/fifo")
    assert errno_of(daemon.store, "ploopfs/replace_delta", str(place / "store/fifo")) == "EINVAL"
    assert "file type is a FIFO" in daemon.value("ploopfs/last_error")


def _reopen_refuses(daemon: Daemon, disk: Disk, outside: Path) -> None:
    moved = disk.top.with_name("moved.hds")
    disk.top.rename(moved)
    disk.top.symlink_to(outside)
    assert errno_of(daemon.store, "ploopfs/reopen", "1") == "EACCES"
    disk.top.unlink()
    moved.rename(disk.top)
    daemon.store("ploopfs/reopen", "1")


def _load_refuses(daemon: Daemon, disk: Disk, outside: Path) -> None:
    table = f"0 {daemon.value('size', 'dm-0')} ploop {CLUSTER_LOG} {disk.deltas[0]}"
    assert errno_of(daemon.store, "ploopfs/load", f"{table} {outside}", "dm-0") == "EACCES"
    assert daemon.value("ploopfs/table_inactive", "dm-0") == ""
    daemon.store("ploopfs/load", f"{table} {disk.top}", "dm-0")


def _scst_knows_no_files(daemon: Daemon, outside: Path) -> None:
    """Its `filename` is the name of a disk here, not of a file of the machine."""
    mgmt = daemon.mountpoint / "sys/kernel/scst_tgt/handlers/vdisk_fileio/mgmt"
    for path in (outside, f"{daemon.mountpoint}/dev/../../outside/top.hds"):
        assert errno_of(mgmt.write_text, f"add_device a filename={path}") == "ENOENT"
    mgmt.write_text("add_device a filename=/dev/ploop0")
    mgmt.write_text("del_device a")


def test_the_agent_neither_probes_nor_takes_an_image_from_outside(tmp_path: Path, bindfs: Bindfs) -> None:
    disk = make_disk(bindfs.bricks / "disk", depth=2)
    outside = copy_of(disk.top, tmp_path / "outside")
    recovery = {"replace": str(outside), "probe": True, "probe_interval_s": 0.01}
    served = device(bindfs.path / "disk", recovery=recovery)
    with serving(tmp_path, served, allowed_dirs=[str(bindfs.path)]) as daemon, opened(daemon.disk()) as fd:
        bindfs.kill()
        assert Writer(fd, disk).errno_of_write() == "ENOTCONN"
        bindfs.remount()
        until(lambda: any("allowed_dirs" in str(event.get("error")) for event in daemon.events()), "a probe")
        assert daemon.value("ploopfs/agent_attempts") == "0"
        daemon.store("ploopfs/recovery", "reopen")
        until(lambda: daemon.value("queue/standby") == "off", "the recovery by another policy")
    assert_closed(outside)
    assert os.listdir(outside.parent) == [outside.name]
