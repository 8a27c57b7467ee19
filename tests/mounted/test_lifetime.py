"""How a daemon begins and ends: what it refuses, what it leaves behind, and with which exit code."""

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ploopfs.cli.exits import Exit
from tests.mounted.daemon import (
    HANG_S,
    PLOOPFS,
    ROOT,
    device,
    errno_of,
    is_mounted,
    opened,
    ploopfs,
    said,
    serving,
    unmount,
    until,
    write_config,
)
from tests.mounted.disks import assert_closed, is_marked, make_disk
from tests.mounted.storage import Bindfs
from tests.mounted.writer import Writer
from tests.realparts import need

pytestmark = pytest.mark.real


# Beginning.


def refused(config: Path, mountpoint: Path, code: Exit) -> str:
    """Why a mount did not come about; nothing is mounted then."""
    mountpoint.mkdir(exist_ok=True)
    done = ploopfs("mount", config, mountpoint)
    assert done.returncode == code, done.stderr
    assert not is_mounted(mountpoint)
    return done.stderr


def test_a_malformed_configuration_is_told_with_its_line(tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text("devices:\n  - name: ploop0\n    image: [a.hds, b.hds]\n    standbye: true\n")
    told = refused(config, tmp_path / "mnt", Exit.CONFIG)
    assert told.startswith(f"ploopfs: {config}:4: devices[0].standbye: is no known key")
    assert "(did you mean standby?)" in told


def test_a_configuration_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "No such file or directory" in refused(tmp_path / "none.yaml", tmp_path / "mnt", Exit.CONFIG)


def test_a_bad_image_is_told_with_file_field_and_value(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk")
    with opened(disk.top) as fd:
        os.pwrite(fd, (3).to_bytes(4, "little"), 28)  # m_Sectors
    told = refused(write_config(tmp_path, device(disk.top)), tmp_path / "mnt", Exit.CONFIG)
    assert said(told).startswith(f"ploopfs: {tmp_path}/config.yaml: devices[0] (ploop0): {disk.top}: m_Sectors is 3, ")


def test_what_is_already_open_is_closed_when_a_later_image_is_bad(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk")
    config = write_config(tmp_path, device(disk.directory), device(tmp_path / "none.hds", "ploop1"))
    told = refused(config, tmp_path / "mnt", Exit.CONFIG)
    assert f"devices[1] (ploop1): {tmp_path}/none.hds: stat: ENOENT" in told
    assert_closed(disk.top)


def test_a_mountpoint_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk")
    config = write_config(tmp_path, device(disk.directory))
    assert "is not empty" in refused(config, disk.directory, Exit.NO_MOUNT)
    assert_closed(disk.top)


def test_a_fuse_device_that_may_not_be_opened_is_told_when_the_images_are_open_already(tmp_path: Path) -> None:
    """As nested as an error can be: below the session, the agents and the signals."""
    need(commands=("unshare",))
    disk = make_disk(tmp_path / "disk")
    (tmp_path / "mnt").mkdir()
    (tmp_path / "dev").mkdir()
    script = (
        f"mount -t tmpfs -o nodev tmpfs {tmp_path}/dev && mknod {tmp_path}/dev/fuse c 10 229"
        f" && mount --bind {tmp_path}/dev/fuse /dev/fuse && exec \"$@\""
    )
    mount = (*PLOOPFS, "mount", str(write_config(tmp_path, device(disk.directory))), f"{tmp_path}/mnt")
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh", *mount]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    told = "ploopfs: /dev/fuse: Permission denied: run as root, or allow the device to this user"
    assert (done.returncode, said(done.stderr)) == (Exit.NO_MOUNT, told)
    assert "Traceback" not in done.stderr
    assert_closed(disk.top)


def test_a_second_daemon_finds_the_mountpoint_served_and_the_image_locked(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", depth=2)
    with serving(tmp_path, device(disk.directory)) as daemon, opened(daemon.disk()) as fd:
        again = ploopfs("mount", tmp_path / "config.yaml", daemon.mountpoint)
        served_by = f"{daemon.mountpoint} is already served by a running ploopfs (pid {daemon.process.pid})\n"
        assert (again.returncode, again.stderr) == (Exit.NO_MOUNT, f"ploopfs: {served_by}")
        again = ploopfs("mount", "--replace-stale", tmp_path / "config.yaml", daemon.mountpoint)
        assert (again.returncode, "is already served by a running ploopfs" in again.stderr) == (Exit.NO_MOUNT, True)
        for read_only in (False, True):
            other = tmp_path / f"other-{read_only}"
            other.mkdir()
            config = write_config(other, device(disk.directory, read_only=read_only))
            told = refused(config, other / "mnt", Exit.CONFIG)
            assert f"{disk.top}: cannot be opened for " in told
            assert "lock is held by " in told
            assert f"(pid {daemon.process.pid})" in told
        assert os.pwrite(fd, b"still served", 0) == 12
        assert daemon.end() == 0
    assert_closed(disk.top)


def test_qemu_cannot_write_an_image_that_is_mounted(tmp_path: Path) -> None:
    need(commands=("qemu-io",))
    disk = make_disk(tmp_path / "disk")
    with serving(tmp_path, device(disk.directory)):
        done = subprocess.run(
            ["qemu-io", "-f", "parallels", "-c", "write 0 4k", disk.top], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "lock" in done.stdout + done.stderr


def test_two_daemons_share_lower_deltas_and_read_only_images(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", depth=2)
    second = tmp_path / "second"
    second.mkdir()
    with (
        serving(tmp_path, device(disk.directory, read_only=True)) as one,
        serving(second, device(disk.deltas, read_only=True)) as other,
    ):
        assert [one.value("ro"), other.value("ro")] == ["1", "1"]
        assert one.disk().read_bytes() == other.disk().read_bytes() == disk.content
        assert errno_of(os.open, one.disk(), os.O_RDWR) == "EACCES"
    assert_closed(disk.top)


# Ending.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_the_images(tmp_path: Path, number: signal.Signals) -> None:
    disk = make_disk(tmp_path / "disk", depth=2)
    with serving(tmp_path, device(disk.directory)) as daemon:
        with opened(daemon.disk()) as fd:
            Writer(fd, disk).write(50)
        assert is_marked(disk.top)
        assert daemon.end(number) == Exit.OK
        assert not is_mounted(daemon.mountpoint)
    assert_closed(disk.top)
    with serving(tmp_path, device(disk.directory)) as daemon, opened(daemon.disk()) as fd:
        Writer(fd, disk).assert_all_there()


def test_a_signal_ends_a_daemon_whose_disk_is_open(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk")
    with serving(tmp_path, device(disk.directory)) as daemon, opened(daemon.disk()) as fd:
        os.pwrite(fd, b"acknowledged", 0)
        assert daemon.end() == Exit.OK
        assert errno_of(os.pwrite, fd, b"too late", 0) == "ENOTCONN"
    assert_closed(disk.top)


@pytest.mark.parametrize("noticed", [True, False], ids=["in standby", "not noticed yet"])
def test_an_image_on_a_dead_store_stays_marked_and_the_exit_code_says_so(
    tmp_path: Path, bindfs: Bindfs, noticed: bool
) -> None:
    disk = make_disk(bindfs.bricks / "disk")
    with serving(tmp_path, device(bindfs.path / "disk")) as daemon:
        with opened(daemon.disk()) as fd:
            writer = Writer(fd, disk)
            writer.write(20)
            bindfs.kill()
            if noticed:
                assert writer.errno_of_write() == "ENOTCONN"
        assert daemon.end() == Exit.NOT_CLOSED
        errors = [line for line in daemon.log.splitlines() if " ERROR " in line]
        assert str(bindfs.path / "disk" / disk.top.name) in errors[-1]
    assert is_marked(disk.top)


@pytest.mark.parametrize("back", [True, False], ids=["store back", "store dead"])
def test_umount_tells_of_an_image_that_was_not_closed(tmp_path: Path, bindfs: Bindfs, back: bool) -> None:
    disk = make_disk(bindfs.bricks / "disk")
    top = bindfs.path / "disk" / disk.top.name
    with serving(tmp_path, device(bindfs.path / "disk")) as daemon:
        bindfs.kill()
        with opened(daemon.disk()) as fd:
            assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"
        if back:
            bindfs.remount()
        done = ploopfs("umount", daemon.mountpoint)
        assert done.returncode == Exit.NOT_CLOSED
        assert done.stderr == f"ploopfs: {top}: could not be flushed and stays marked in use\n"
        assert daemon.wait() == Exit.NOT_CLOSED
    assert is_marked(disk.top)


@pytest.mark.parametrize("requests", [0, 1], ids=["nothing in flight", "a write in flight"])
def test_a_store_that_hangs_is_given_up_at_the_deadline(tmp_path: Path, bindfs: Bindfs, requests: int) -> None:
    disk = make_disk(bindfs.bricks / "disk")
    with (
        serving(tmp_path, device(bindfs.path / "disk"), shutdown_deadline_s=0.2) as daemon,
        opened(daemon.disk()) as fd,
        ThreadPoolExecutor(1) as thread,
    ):
        os.pwrite(fd, b"to be flushed", 0)
        with bindfs.stopped():
            hanging = [thread.submit(errno_of, os.pwrite, fd, b"x", 1 << 20) for _ in range(requests)]
            until(lambda: daemon.value("pstate/active_reqs") == str(requests), "the request in flight")
            assert daemon.end() == Exit.NOT_CLOSED
            assert f"ploop0: {'not closed cleanly: ' * requests}{bindfs.path}/disk/root.hds" in daemon.log
        assert [write.result() for write in hanging] == ["ECONNABORTED"] * requests
    assert is_marked(disk.top)


def test_a_second_signal_does_not_kill_a_daemon_that_is_closing_images(tmp_path: Path, bindfs: Bindfs) -> None:
    disk = make_disk(bindfs.bricks / "disk")
    with serving(tmp_path, device(bindfs.path / "disk"), shutdown_deadline_s=1) as daemon:
        with opened(daemon.disk()) as fd:
            os.pwrite(fd, b"to be flushed", 0)
        with bindfs.stopped():
            daemon.process.send_signal(signal.SIGTERM)
            until(lambda: not is_mounted(daemon.mountpoint), "the end of the session")
            assert daemon.end() == Exit.NOT_CLOSED
    assert is_marked(disk.top)


def test_umount_waits_until_the_images_are_closed(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk")
    with serving(tmp_path, device(disk.directory)) as daemon:
        with opened(daemon.disk()) as fd:
            Writer(fd, disk).write(50)
            busy = ploopfs("umount", daemon.mountpoint)
            assert (busy.returncode, "busy" in busy.stderr) == (Exit.NO_MOUNT, True), busy.stderr
            for command in (["fusermount3", "-u"], ["umount"]):
                plain = subprocess.run([*command, daemon.mountpoint], capture_output=True, text=True, check=False)
                assert (plain.returncode != 0, "busy" in plain.stderr) == (True, True), plain.stderr
            Writer(fd, disk).write(10)
        assert ploopfs("umount", daemon.mountpoint).returncode == Exit.OK
        assert_closed(disk.top)
        assert daemon.wait() == Exit.OK


# A crash.


def test_a_killed_daemon_leaves_a_dead_mount_that_is_replaced_and_all_data(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", depth=2)
    with serving(tmp_path, device(disk.directory)) as daemon:
        with opened(daemon.disk()) as fd:
            Writer(fd, disk).write(100)
            daemon.process.kill()
            assert daemon.wait() == -signal.SIGKILL
            assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"
        until(lambda: errno_of(os.stat, daemon.mountpoint) == "ENOTCONN", "the mountpoint is dead")

        stale = ploopfs("mount", tmp_path / "config.yaml", daemon.mountpoint)
        assert stale.returncode == Exit.NO_MOUNT
        assert "dead ploopfs mount, left by a daemon that was killed; --replace-stale clears it" in stale.stderr
        assert ploopfs("status", "--mount", daemon.mountpoint).returncode == Exit.NO_MOUNT

        with serving(tmp_path, device(disk.directory), options=["--replace-stale"]) as second:
            assert second.value("ro") == "0"
            second.wait_for_line(f"{disk.top}: was not closed; checked: sound")
            assert "WARNING" not in second.log
            [checked] = [record for record in second.events() if record["event"] == "image_checked"]
            assert (checked["device"], checked["path"]) == ("ploop0", str(disk.top))
            with opened(second.disk()) as fd:
                writer = Writer(fd, disk)
                writer.assert_all_there()
                writer.write(100)
                writer.assert_all_there()
            assert second.end() == Exit.OK
    assert_closed(disk.top)


def test_replace_stale_needs_nothing_stale(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk")
    with serving(tmp_path, device(disk.directory), options=["--replace-stale"]) as daemon:
        assert daemon.end() == Exit.OK


# In the background.


@contextmanager
def background(mountpoint: Path) -> Iterator[int]:
    """A process descriptor of the daemon that serves `mountpoint`; it is ended afterwards."""
    pid = int((mountpoint / "sys/fs/ploopfs/pid").read_text())
    daemon = os.pidfd_open(pid)
    try:
        yield daemon
    finally:
        poller = select.poll()
        poller.register(daemon, select.POLLIN)
        if not poller.poll(0):
            signal.pidfd_send_signal(daemon, signal.SIGTERM)
            assert poller.poll(HANG_S * 1000)
        os.close(daemon)
        unmount(mountpoint)


def test_a_daemon_returns_when_the_tree_is_there_and_logs_to_its_file(tmp_path: Path) -> None:
    disk, mountpoint, log = make_disk(tmp_path / "disk"), tmp_path / "mnt", tmp_path / "log"
    mountpoint.mkdir()
    config = write_config(tmp_path, device(disk.directory))
    done = ploopfs("mount", "--daemon", "--log-file", log, "--log-level", "debug", config, mountpoint)
    assert done.returncode == Exit.OK, done.stderr
    with background(mountpoint) as daemon:
        assert (done.stdout, done.stderr) == ("", "")
        assert (mountpoint / "sys/block/ploop0/queue/standby").read_text() == "off\n"
        assert os.getsid(int((mountpoint / "sys/fs/ploopfs/pid").read_text())) != os.getsid(0)
        assert "INFO ploopfs.device.registry: ploop0: " in log.read_text()
        assert ploopfs("umount", mountpoint).returncode == Exit.OK
        poller = select.poll()
        poller.register(daemon, select.POLLIN)
        assert poller.poll(0), "umount has waited for it"
    assert_closed(disk.top)


def test_a_daemon_that_cannot_begin_says_why_with_its_exit_code(tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    config = write_config(tmp_path, device(tmp_path / "none.hds"))
    done = ploopfs("mount", "-d", "--log-file", tmp_path / "log", config, mountpoint)
    assert done.returncode == Exit.CONFIG
    assert f"devices[0] (ploop0): {tmp_path}/none.hds: stat: ENOENT" in done.stderr
    assert not is_mounted(mountpoint)
