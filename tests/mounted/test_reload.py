"""The configuration is read again while disks are in use: by SIGHUP, and by the verb that sends it."""

import errno
import json
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ploopfs.cli.exits import Exit
from tests.mounted.daemon import (
    HANG_S,
    PLOOPFS,
    ROOT,
    Daemon,
    device,
    errno_of,
    is_polling,
    opened,
    ploopfs,
    serving,
    until,
    write_config,
)
from tests.mounted.disks import MIB, assert_closed, is_marked, make_disk
from tests.mounted.storage import Bindfs, waits_for_store
from tests.mounted.writer import Writer
from tests.realparts import need

pytestmark = pytest.mark.real

ENDS = ("config_reloaded", "config_reload_failed")


def reloads(daemon: Daemon) -> list[dict[str, Any]]:
    return [event for event in daemon.events() if event["event"] in ENDS]


def hang_up(daemon: Daemon) -> dict[str, Any]:
    """SIGHUP, and what came of it."""
    before = len(reloads(daemon))
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: len(reloads(daemon)) > before, "the reload")
    return reloads(daemon)[-1]


def test_devices_come_and_go_under_a_mount_and_others_do_not_notice(tmp_path: Path) -> None:
    need(commands=("lsblk",))
    disks = [make_disk(tmp_path / f"disk{number}", depth=2, size_bytes=4 * MIB) for number in range(3)]
    entries = [device(disk.directory, f"ploop{number}") for number, disk in enumerate(disks)]
    with serving(tmp_path, *entries[:2]) as daemon, opened(daemon.disk()) as fd:
        writer = Writer(fd, disks[0])
        writer.write(20)
        inode = daemon.disk("ploop1").stat().st_ino
        diskseq = int(daemon.value("diskseq", "ploop1"))

        write_config(tmp_path, entries[0], entries[2])
        with opened(daemon.disk("ploop1")):
            facts = hang_up(daemon)
            assert (facts["added"], facts["kept"]) == ("ploop2", "ploop1: it is open (1 times)")
        assert daemon.disk("ploop2").read_bytes() == disks[2].content

        with opened(daemon.attribute("queue/standby", "ploop1"), os.O_RDONLY) as standby:
            os.read(standby, 100)
            poller = select.poll()
            poller.register(standby, select.POLLPRI | select.POLLERR)
            assert poller.poll(0) == []
            done = ploopfs("reload", "-m", daemon.mountpoint)
            assert (done.returncode, done.stdout, done.stderr) == (Exit.OK, "removed: ploop1\n", "")
            assert poller.poll(60_000), "who waits is woken"
            assert errno_of(os.pread, standby, 100, 0) == "ENODEV"
        assert_closed(disks[1].top)
        assert errno_of(os.stat, daemon.disk("ploop1")) == "ENOENT"
        assert sorted(os.listdir(daemon.mountpoint / "sys/block")) == ["ploop0", "ploop2"]
        listed = subprocess.run(
            ["lsblk", "--sysroot", daemon.mountpoint, "-rno", "NAME"], capture_output=True, text=True, check=False
        )
        assert sorted(listed.stdout.split()) == ["ploop0", "ploop2"], listed.stderr

        write_config(tmp_path, *entries)
        assert hang_up(daemon)["added"] == "ploop1"
        assert daemon.disk("ploop1").stat().st_ino != inode
        assert int(daemon.value("diskseq", "ploop1")) > diskseq
        assert daemon.disk("ploop1").read_bytes() == disks[1].content

        writer.write(20)
        writer.assert_all_there()
        assert daemon.end() == Exit.OK
    for disk in disks:
        assert_closed(disk.top)


def test_mistakes_and_what_needs_a_remount_are_told_by_the_verb_and_the_disks_go_on(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk")
    entry = device(disk.directory)
    with serving(tmp_path, entry) as daemon, opened(daemon.disk()) as fd:
        config = tmp_path / "config.yaml"
        good = config.read_text()
        config.write_text(f"zebra: 1\n{good}")
        done = ploopfs("reload", "-m", daemon.mountpoint)
        assert done.returncode == Exit.CONFIG
        assert done.stderr.startswith(f"ploopfs: nothing was changed:\n{config}:")

        config.write_text("zebra: 1\n")
        assert hang_up(daemon)["text"].startswith(f"{config}:1: zebra: is no known key")
        daemon.wait_for_line(f"not reloaded: {config}:1: zebra: is no known key")

        write_config(tmp_path, entry | {"read_only": True, "on_standby": "hold"}, limits={"held_mib": 1})
        done = ploopfs("reload", "--json", "-m", daemon.mountpoint)
        assert done.returncode == Exit.FAILED
        facts = json.loads(done.stdout)
        assert (facts["changed"], facts["remount"]) == ("ploop0.on_standby", "ploop0.read_only, limits.held_mib")
        assert [daemon.value("ploopfs/on_standby"), daemon.value("ro")] == ["hold", "0"]

        assert os.pwrite(fd, b"still served", 0) == 12
        assert is_marked(disk.top)
        write_config(tmp_path, entry, allowed_dirs=[str(tmp_path / "elsewhere")])
        assert hang_up(daemon)["changed"] == "allowed_dirs, ploop0.on_standby"
        assert errno_of(daemon.store, "ploopfs/replace_delta", str(disk.top)) == errno.errorcode[errno.EACCES]
        assert daemon.end() == Exit.OK
    assert_closed(disk.top)


def test_the_verb_tells_of_its_own_reload_and_not_of_one_that_is_under_way(tmp_path: Path, bindfs: Bindfs) -> None:
    disk, hanging = make_disk(tmp_path / "disk"), make_disk(bindfs.bricks / "disk")
    other = device(bindfs.path / "disk", "ploop1")
    with serving(tmp_path, device(disk.directory)) as daemon:
        write_config(tmp_path, device(disk.directory), other)
        with bindfs.stopped():
            daemon.process.send_signal(signal.SIGHUP)
            until(lambda: waits_for_store(daemon.process.pid), "the first reload has read the file, and opens an image")
            assert daemon.events()[-1]["event"] == "config_reload_begin"
            write_config(tmp_path, device(disk.directory, on_standby="hold"), other)
            command = [*PLOOPFS, "reload", "-m", os.fspath(daemon.mountpoint)]
            verb = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            until(lambda: is_polling(Path(f"/proc/{verb.pid}")), "it has sent the signal, and waits")
            assert reloads(daemon) == []
        assert verb.communicate(timeout=HANG_S)[0] == "changed: ploop0.on_standby\n"
        assert [event["added"] for event in reloads(daemon)] == ["ploop1", ""]
        assert daemon.end() == Exit.OK
    assert_closed(hanging.top)
