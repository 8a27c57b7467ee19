"""The target subsystem on a real mount: from the shell, with the tool's own commands, and what that does to standby."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.daemon import Daemon, device, errno_of, opened, serving
from tests.mounted.disks import MIB, make_disk
from tests.mounted.scstadmin import DRIVERS, Driver, Failed
from tests.mounted.storage import Bindfs
from tests.mounted.test_tree import image, walk
from tests.realparts import need

pytestmark = pytest.mark.real

SHELLS = ("dash", "bash")
ROOT = "sys/kernel/scst_tgt"
IQN = "iqn.2024-01.e2e:scst"
DISK_BYTES = 64 * MIB


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Three disks, of which one is no ploop; nothing is loaded and nothing attached."""
    raw = tmp_path / "xvda.raw"
    with raw.open("wb") as file:
        file.truncate(8 * MIB)
    disks = [device(image(tmp_path / f"{name}.hds"), name, standby=False) for name in ("ploop0", "ploop1")]
    ram = device([f"raw@{raw}"], "xvda", standby=False, flavour="block")
    with serving(tmp_path, *disks, ram, loaded=False) as running:
        yield running


def standby(daemon: Daemon) -> list[str]:
    return [daemon.value("queue/standby", name) for name in ("ploop0", "ploop1", "xvda")]


def shell(name: str, daemon: Daemon, script: str) -> tuple[int, str]:
    """Exit code and standard error of a script that is in the mountpoint."""
    done = subprocess.run([name, "-c", script], cwd=daemon.mountpoint, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def read(daemon: Daemon, path: str) -> str:
    return (daemon.mountpoint / ROOT / path).read_text()


# From the shell.


@pytest.mark.parametrize("name", SHELLS)
def test_a_script_loads_the_module_adds_a_disk_and_takes_everything_back(daemon: Daemon, name: str) -> None:
    need(commands=(name,))
    assert not list((daemon.mountpoint / "sys/module").iterdir())
    script = f"""set -e
        echo scst > sys/fs/ploopfs/modprobe
        test -d sys/module/scst -a -d {ROOT}
        test "$(cat sys/fs/ploopfs/ploop_standby_check)" = 1
        test "$(cat sys/block/ploop0/queue/standby)" = 'not supported'
        echo 'add_device disk0 filename=/dev/ploop0; nv_cache=0' > {ROOT}/handlers/vdisk_blockio/mgmt
        test "$(cat sys/block/ploop0/queue/standby)" = off
        test "$(cat sys/block/ploop1/queue/standby)" = 'not supported'
        test "$(readlink {ROOT}/devices/disk0/handler)" = ../../handlers/vdisk_blockio
        ! echo scst > sys/fs/ploopfs/rmmod
        echo 'del_device disk0' > {ROOT}/handlers/vdisk_blockio/mgmt
        test "$(cat sys/block/ploop0/queue/standby)" = 'not supported'
        echo scst > sys/fs/ploopfs/rmmod
        test ! -e {ROOT} -a ! -e sys/module/scst
        test "$(cat sys/fs/ploopfs/ploop_standby_check)" = 0"""
    code, said = shell(name, daemon, script)
    assert (code, len(said.splitlines())) == (0, 1), said


@pytest.mark.parametrize(
    ("path", "text", "errno"),
    [
        ("sys/fs/ploopfs/modprobe", "nosuch", "No such file or directory"),
        ("sys/fs/ploopfs/rmmod", "nosuch", "No such file or directory"),
        ("sys/fs/ploopfs/rmmod", "scst", "Device or resource busy"),
        (f"{ROOT}/handlers/vdisk_blockio/mgmt", "add_device a filename=/dev/ploop0", "File exists"),
        (f"{ROOT}/handlers/vdisk_blockio/mgmt", "add_device b filename=/dev/none", "No such file or directory"),
        (f"{ROOT}/handlers/vdisk_blockio/mgmt", "add_device b filename=ploop0", "Invalid argument"),
        (f"{ROOT}/handlers/vdisk_blockio/mgmt", "bogus", "Invalid argument"),
        (f"{ROOT}/devices/a/filename", "/dev/ploop1", "Invalid argument"),
        (f"{ROOT}/targets/iscsi/mgmt", "del_target none", "No such file or directory"),
    ],
)
def test_a_refused_command_is_the_shells_error(daemon: Daemon, path: str, text: str, errno: str) -> None:
    need(commands=("bash",))
    add = f"echo 'add_device a filename=/dev/ploop0' > {ROOT}/handlers/vdisk_blockio/mgmt"
    assert shell("bash", daemon, f"echo scst > sys/fs/ploopfs/modprobe; {add}") == (0, "")
    code, said = shell("bash", daemon, f"echo '{text}' > {path}")
    assert (code, said) == (1, f"bash: line 1: echo: write error: {errno}\n")
    assert standby(daemon) == ["off", "not supported", "not supported"]


def test_writing_the_modules_names_cannot_be_read_back(daemon: Daemon) -> None:
    for name in ("modprobe", "rmmod"):
        path = daemon.mountpoint / "sys/fs/ploopfs" / name
        assert errno_of(path.read_text) == "EACCES"
        assert path.stat().st_mode & 0o777 == 0o200


def test_every_link_of_the_subsystem_leads_somewhere_and_every_file_reads(daemon: Daemon) -> None:
    (daemon.mountpoint / "sys/fs/ploopfs/modprobe").write_text("scst")
    for command in ("add_device a filename=/dev/ploop0", f"add_device b filename={daemon.mountpoint}/dev/ploop1"):
        (daemon.mountpoint / ROOT / "handlers/vdisk_blockio/mgmt").write_text(command)
    (daemon.mountpoint / ROOT / "targets/iscsi/mgmt").write_text(f"add_target {IQN}")
    (daemon.mountpoint / ROOT / f"targets/iscsi/{IQN}/luns/mgmt").write_text("add a 0")
    places = [*walk(daemon.mountpoint / ROOT), *walk(daemon.mountpoint / "sys/module")]
    assert all(place.exists() for place in places if place.is_symlink())
    assert os.path.samefile(places[0].parent / "devices/a", places[0].parent / f"targets/iscsi/{IQN}/luns/0/device")
    files = [place for place in places if place.is_file() and place.stat().st_mode & 0o444]
    assert len(files) > 150
    for file in files:
        file.read_text()


# What it does to standby.


def test_devices_with_and_without_support_stand_side_by_side(daemon: Daemon) -> None:
    (daemon.mountpoint / "sys/fs/ploopfs/modprobe").write_text("scst")
    mgmt = daemon.mountpoint / ROOT / "handlers/vdisk_blockio/mgmt"
    for name in ("ploop0", "xvda"):
        mgmt.write_text(f"add_device {name} filename=/dev/{name}")
    assert standby(daemon) == ["off", "not supported", "not supported"]
    assert read(daemon, "devices/xvda/size_mb") == "8\n"
    mgmt.write_text("add_device again filename=/dev/ploop0")
    mgmt.write_text("del_device ploop0")
    assert standby(daemon) == ["off", "not supported", "not supported"]
    for attribute, text in (("active", "0"), ("filename", "/dev/ploop1"), ("active", "1")):
        (daemon.mountpoint / ROOT / "devices/again" / attribute).write_text(text)
    assert standby(daemon) == ["not supported", "off", "not supported"]


def test_a_disk_of_the_configuration_is_in_scst_under_its_own_name(tmp_path: Path, bindfs: Bindfs) -> None:
    """And deleting it in standby clears both bits, with one warning in the log; added again it starts afresh."""
    make_disk(bindfs.bricks / "disk")
    with serving(tmp_path, device(bindfs.path / "disk")) as daemon:
        assert read(daemon, "devices/ploop0/filename") == "/dev/ploop0\n[key]\n\n"
        mgmt = daemon.mountpoint / ROOT / "handlers/vdisk_blockio/mgmt"
        bindfs.kill()
        with opened(daemon.disk()) as fd:
            assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"
            assert daemon.value("queue/standby") == "on"
            mgmt.write_text("del_device ploop0")
            assert daemon.value("queue/standby") == "not supported"
            mgmt.write_text("add_device other filename=/dev/ploop0")
            assert daemon.value("queue/standby") == "off"
            assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"
            assert daemon.value("queue/standby") == "on"
        bindfs.remount()
        daemon.store("ploopfs/reopen", "1")
        assert daemon.value("queue/standby") == "off"
    assert daemon.log.count("STANDBY_EN was cleared in standby mode") == 1


def test_a_disk_attached_while_nothing_is_loaded_is_warned_about_once_and_is_in_scst_later(tmp_path: Path) -> None:
    with serving(tmp_path, device(image(tmp_path / "d.hds")), loaded=False) as daemon:
        assert daemon.value("queue/standby") == "off"
        assert not (daemon.mountpoint / ROOT).exists()
        (daemon.mountpoint / "sys/fs/ploopfs/modprobe").write_text("scst")
        assert read(daemon, "devices/ploop0/active") == "1\n"
        events = (daemon.mountpoint / "sys/fs/ploopfs/events").read_text()
    warning = "STANDBY_EN is set while ploop_standby_check is disabled"
    assert (daemon.log.count(warning), events.count(warning)) == (1, 1)


# SCST's own tool, as it was seen to act, and itself where it is installed.


@pytest.fixture(params=DRIVERS)
def admin(request: pytest.FixtureRequest, daemon: Daemon) -> Driver:
    (daemon.mountpoint / "sys/fs/ploopfs/modprobe").write_text("scst")
    return DRIVERS[request.param](daemon.mountpoint)


CONFIGURATION = """
HANDLER vdisk_blockio {
        DEVICE p1 {
                blocksize 4096
                filename %s/dev/ploop1
                usn abc
        }
}
TARGET_DRIVER iscsi {
        enabled 1

        TARGET iqn.2024-01.e2e:scst {
                IncomingUser "joe 12charsecret"
                InitialR2T Yes
                enabled 1
                rel_tgt_id 1

                LUN 0 p1 {
                        read_only 1
                }
                GROUP g1 {
                        LUN 5 p1

                        INITIATOR iqn.ini:1
                }
        }
}
DEVICE_GROUP dg1 {
        DEVICE p1

        TARGET_GROUP tg1 {
                group_id 5
                state active

                TARGET iqn.2024-01.e2e:scst
        }
}
"""


def test_the_tool_opens_lists_and_closes_devices(daemon: Daemon, admin: Driver) -> None:
    assert admin.devices() == []
    admin.open_device("p1", "vdisk_blockio", {"filename": "/dev/ploop1", "blocksize": "4096"})
    admin.open_device("xvda", "vdisk_fileio", {"filename": "/dev/xvda"})
    assert admin.devices() == ["p1", "xvda"]
    assert admin.device_attributes("p1") == {"blocksize": "4096", "filename": "/dev/ploop1", "size": str(DISK_BYTES)}
    assert standby(daemon) == ["not supported", "off", "not supported"]
    with pytest.raises(Failed):
        admin.open_device("p1", "vdisk_blockio", {"filename": "/dev/ploop0"})
    with pytest.raises(Failed):
        admin.open_device("p2", "vdisk_blockio", {"filename": "/dev/none"})
    with pytest.raises(Failed):
        admin.close_device("none", "vdisk_blockio")
    admin.close_device("p1", "vdisk_blockio")
    assert (admin.devices(), standby(daemon)) == (["xvda"], ["not supported"] * 3)


def test_the_tool_swaps_the_file_behind_a_device(daemon: Daemon, admin: Driver) -> None:
    admin.open_device("p1", "vdisk_blockio", {"filename": "/dev/ploop1"})
    admin.set_device_attribute("p1", "active", "0")
    assert admin.device_attributes("p1")["active"] == "0"
    assert standby(daemon) == ["not supported", "off", "not supported"]
    admin.set_device_attribute("p1", "filename", f"{daemon.mountpoint}/dev/ploop0")
    admin.set_device_attribute("p1", "active", "1")
    assert standby(daemon) == ["off", "not supported", "not supported"]
    admin.set_device_attribute("p1", "usn", "abc")
    assert admin.device_attributes("p1")["usn"] == "abc"


def test_the_tool_makes_targets_with_luns_and_groups(daemon: Daemon, admin: Driver) -> None:
    admin.open_device("p1", "vdisk_blockio", {"filename": "/dev/ploop1"})
    admin.add_target(IQN)
    admin.add_lun(IQN, 0, "p1", {})
    admin.add_lun(IQN, 1, "p1", {"read_only": "1"})
    admin.add_group(IQN, "g1")
    admin.add_initiator(IQN, "g1", "iqn.ini:1")
    admin.enable_target(IQN)
    assert (admin.targets(), admin.groups(IQN)) == ([IQN], ["g1"])
    assert read(daemon, f"targets/iscsi/{IQN}/luns/1/read_only") == "1\n[key]\n"
    assert read(daemon, f"targets/iscsi/{IQN}/ini_groups/g1/initiators/iqn.ini:1") == "iqn.ini:1\n"
    assert read(daemon, f"targets/iscsi/{IQN}/rel_tgt_id") == "1\n[key]\n"
    with pytest.raises(Failed):
        admin.add_lun(IQN, 0, "p1", {})
    admin.remove_lun(IQN, 0)
    luns = daemon.mountpoint / ROOT / f"targets/iscsi/{IQN}/luns"
    assert sorted(path.name for path in luns.iterdir()) == ["1", "mgmt"]


def test_the_tool_applies_saves_and_clears_a_configuration(daemon: Daemon, admin: Driver, tmp_path: Path) -> None:
    file = tmp_path / "scst.conf"
    file.write_text(CONFIGURATION % daemon.mountpoint)
    admin.apply(file)
    assert standby(daemon) == ["not supported", "off", "not supported"]
    saved = admin.saved(tmp_path / "saved.conf")
    assert set(saved) >= {
        "HANDLER vdisk_blockio",
        "DEVICE p1",
        "blocksize 4096",
        f"filename {daemon.mountpoint}/dev/ploop1",
        f"size {DISK_BYTES}",
        "usn abc",
        f"TARGET {IQN}",
        "IncomingUser joe 12charsecret",
        "InitialR2T Yes",
        "enabled 1",
        "rel_tgt_id 1",
        "LUN 0 p1",
        "read_only 1",
    }
    assert read(daemon, "targets/iscsi/enabled") == "1\n\n"
    assert read(daemon, "device_groups/dg1/target_groups/tg1/group_id") == "5\n[key]\n"
    admin.clear()
    assert (admin.devices(), admin.targets(), standby(daemon)) == ([], [], ["not supported"] * 3)
    assert read(daemon, "targets/iscsi/enabled") == "0\n\n"
    (daemon.mountpoint / "sys/fs/ploopfs/rmmod").write_text("scst")
    assert not (daemon.mountpoint / ROOT).exists()
