"""Each disk on a connection of its own, mounted over its file: how it comes, is cut off, and goes."""

import os
import select
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from ploopfs.cli.exits import Exit
from ploopfs.fuse.mountpoint import ploopfs_mounts
from tests.mounted.daemon import (
    HOLD_MS,
    Daemon,
    device,
    errno_of,
    opened,
    ploopfs,
    serving,
    until,
    write_config,
)
from tests.mounted.disks import BLOCK_BYTES, MIB, Disk, assert_closed, make_disk
from tests.mounted.planes import OWN, carried_by
from tests.mounted.storage import Bindfs
from tests.mounted.writer import Writer
from tests.realparts import need

pytestmark = pytest.mark.real

serving_own = partial(serving, options=carried_by(OWN))


def mounts(below: Path) -> list[tuple[str, str, str]]:
    """Place, type and source of every mount, in the kernel's order."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        lines = [line.split() for line in table]
    fields = [(line[4], line[line.index("-") + 1], line[line.index("-") + 2]) for line in lines]
    return [found for found in fields if Path(found[0]).is_relative_to(below)]


def disk_mounts(daemon: Daemon) -> list[str]:
    return sorted(source for _, fstype, source in mounts(daemon.mountpoint) if fstype == "fuse.ploopfs-disk")


def command(daemon: Daemon, word: str, name: str = "ploop0") -> str:
    """`connection` of a device, told to do something; the state after it."""
    daemon.store("ploopfs/connection", word, name)
    return daemon.value("ploopfs/connection", name)


def told(daemon: Daemon) -> list[str]:
    return [f"{one['device']} {one['state']}" for one in daemon.events() if one["event"] == "connection"]


def make_disks(place: Path, count: int = 2) -> list[Disk]:
    return [make_disk(place / f"disk{number}", size_bytes=4 * MIB, seed=number) for number in range(count)]


def entries(disks: list[Disk]) -> list[dict[str, object]]:
    return [device(disk.directory, f"ploop{number}") for number, disk in enumerate(disks)]


# How it comes.


def test_each_disk_has_a_mount_and_the_tree_is_counted_once(tmp_path: Path) -> None:
    disks = make_disks(tmp_path)
    with serving_own(tmp_path, *entries(disks)) as daemon:
        mnt = os.fspath(daemon.mountpoint)
        assert mounts(daemon.mountpoint) == [
            (mnt, "fuse.ploopfs", "ploopfs"),
            (f"{mnt}/dev/ploop0", "fuse.ploopfs-disk", "ploop0"),
            (f"{mnt}/dev/ploop1", "fuse.ploopfs-disk", "ploop1"),
        ]
        assert ploopfs_mounts().count(mnt) == 1
        assert [place for place in ploopfs_mounts() if place.startswith(mnt)] == [mnt]
        for number, disk in enumerate(disks):
            name = f"ploop{number}"
            assert (daemon.value("ploopfs/data_plane", name), daemon.value("ploopfs/connection", name)) == (
                "own",
                "attached",
            )
            with opened(daemon.disk(name)) as fd:
                Writer(fd, disk).write(20)
                Writer(fd, disk).assert_all_there()
        assert len({daemon.disk(f"ploop{number}").stat().st_dev for number in range(2)}) == 2
        assert daemon.end() == Exit.OK
        assert mounts(daemon.mountpoint) == []
    for disk in disks:
        assert_closed(disk.top)


@pytest.mark.parametrize("how", ["option", "configuration"])
def test_on_demand_the_tree_serves_the_disks_itself(tmp_path: Path, how: str) -> None:
    [disk] = make_disks(tmp_path, 1)
    options = ["--data-plane", "pyfuse3"] if how == "option" else []
    configured = "own" if how == "option" else "pyfuse3"
    with serving(tmp_path, *entries([disk]), options=options, data_plane=configured) as daemon:
        assert (disk_mounts(daemon), daemon.value("ploopfs/data_plane"), told(daemon)) == ([], "pyfuse3", [])
        with opened(daemon.disk()) as fd:
            Writer(fd, disk).write(20)
            Writer(fd, disk).assert_all_there()
        # Who wants one all the same says so.
        assert command(daemon, "attach") == "attached"
        assert disk_mounts(daemon) == ["ploop0"]
        with opened(daemon.disk()) as fd:
            Writer(fd, disk).assert_all_there()


def test_disks_come_and_go_with_a_reload(tmp_path: Path) -> None:
    disks = make_disks(tmp_path, 3)
    listed = entries(disks)
    with serving_own(tmp_path, *listed[:2]) as daemon:
        write_config(tmp_path, listed[0], listed[2])
        with opened(daemon.disk("ploop1")) as fd:
            kept = ploopfs("reload", "-m", daemon.mountpoint)
            assert "ploop1: it is open (1 times)" in kept.stderr
            assert os.pread(fd, BLOCK_BYTES, 0) == disks[1].content[:BLOCK_BYTES]
            assert disk_mounts(daemon) == ["ploop0", "ploop1", "ploop2"]
        assert daemon.value("ploopfs/connection", "ploop2") == "attached", "before the reload has ended"
        assert ploopfs("reload", "-m", daemon.mountpoint).returncode == Exit.OK
        until(lambda: disk_mounts(daemon) == ["ploop0", "ploop2"], "the mount of the removed one goes")
        write_config(tmp_path, *listed)
        assert ploopfs("reload", "-m", daemon.mountpoint).returncode == Exit.OK
        assert disk_mounts(daemon) == ["ploop0", "ploop1", "ploop2"]
        assert daemon.disk("ploop1").read_bytes()[:BLOCK_BYTES] == disks[1].content[:BLOCK_BYTES]
        assert told(daemon) == []


# One is cut off.


def test_an_aborted_device_fails_alone_and_is_attached_again(tmp_path: Path) -> None:
    disks = make_disks(tmp_path)
    [entry, other] = entries(disks)
    held = entry | {"on_standby": "hold", "hold_timeout_ms": HOLD_MS}
    with serving_own(tmp_path, held, other) as daemon, ThreadPoolExecutor(1) as thread:
        with opened(daemon.disk()) as fd, opened(daemon.disk("ploop1")) as neighbour:
            writer = Writer(fd, disks[0])
            writer.write(20)
            with opened(daemon.mountpoint / "sys/kernel/debug/ploopfs/ploop0/error_injection", os.O_WRONLY) as rules:
                os.write(rules, b"add,op=READ,errno=ENOTCONN,count=1")
            read = thread.submit(errno_of, os.pread, fd, BLOCK_BYTES, 0)
            until(lambda: daemon.value("ploopfs/held") == "1", "the read is held")
            assert command(daemon, "abort") == "aborted"
            assert read.result() in ("ECONNABORTED", "ENOTCONN")
            assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"
            assert errno_of(os.open, daemon.disk(), os.O_RDONLY) == "ENOTCONN"
            assert daemon.value("queue/standby") == "on", "the tree does not notice"
            assert sorted(os.listdir(daemon.mountpoint / "dev")) == ["ploop0", "ploop1"]
            assert os.pwrite(neighbour, b"neighbour", 0) == 9
            daemon.store("ploopfs/reopen", "1")
            assert command(daemon, "attach") == "attached"
            assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN", "what was open stays cut off"
            with opened(daemon.disk()) as again:
                Writer(again, disks[0]).write(20)
                Writer(again, disks[0]).assert_all_there()
            assert disk_mounts(daemon) == ["ploop0", "ploop1"]
        assert (told(daemon)[0], told(daemon)[-1]) == ("ploop0 aborted", "ploop0 attached")
        until(lambda: daemon.value("pstate/open_count") == "0", "what was cut off is not open any more")
        assert daemon.end() == Exit.OK
    for disk in disks:
        assert_closed(disk.top)


def test_what_a_hung_store_still_writes_keeps_the_next_connection_away(tmp_path: Path, bindfs: Bindfs) -> None:
    """Cut off is at once; attached again is what cannot be overtaken by a write of before."""
    make_disk(bindfs.bricks / "disk", size_bytes=4 * MIB)
    [healthy] = make_disks(tmp_path, 1)
    with serving_own(tmp_path, device(bindfs.path / "disk"), device(healthy.directory, "ploop1")) as daemon:
        with opened(daemon.disk()) as fd, ThreadPoolExecutor(1) as thread:
            with bindfs.stopped():
                write = thread.submit(errno_of, os.pwrite, fd, b"under way", 1 << 20)
                until(lambda: daemon.value("inflight").split() == ["0", "1"], "the write in flight")
                assert command(daemon, "abort") == "aborted"
                assert write.result() in ("ECONNABORTED", "ENOTCONN")
                assert daemon.disk("ploop1").read_bytes()[:BLOCK_BYTES] == healthy.content[:BLOCK_BYTES]
                attaching = thread.submit(errno_of, daemon.store, "ploopfs/connection", "attach")
                until(lambda: not attaching.done() or attaching.result() == "EBUSY", "nothing is mounted yet")
                assert daemon.value("ploopfs/connection") == "aborted"
            assert attaching.result() == "success"
        with opened(daemon.disk()) as fd:
            assert os.pread(fd, 9, 1 << 20) == b"under way", "it was late, and before everything else"
        assert daemon.end() == Exit.OK


def test_a_change_wakes_who_waits_and_what_makes_no_sense_is_refused_with_its_reason(tmp_path: Path) -> None:
    with (
        serving_own(tmp_path, *entries(make_disks(tmp_path, 1))) as daemon,
        opened(daemon.attribute("ploopfs/connection"), os.O_RDONLY) as fd,
    ):
        assert os.read(fd, 100) == b"attached\n"
        poller = select.poll()
        poller.register(fd, select.POLLPRI | select.POLLERR)
        assert poller.poll(0) == []
        daemon.store("ploopfs/connection", "detach")
        assert poller.poll(60_000)
        assert os.pread(fd, 100, 0) == b"detached\n"
        for word, number in (("abort", "EPERM"), ("attached", "EINVAL"), ("", "EINVAL")):
            assert errno_of(daemon.store, "ploopfs/connection", word) == number
            assert daemon.value("ploopfs/last_error").startswith("connection: ")
        assert daemon.value("ploopfs/connection") == "detached"


def test_who_has_opened_the_tree_s_file_and_who_the_attached_one_see_each_other_s_writes_at_once(
    tmp_path: Path,
) -> None:
    """Nothing is kept of a disk but by the device, which is one, whichever way the requests come."""
    [disk] = make_disks(tmp_path, 1)
    with serving_own(tmp_path, *entries([disk])) as daemon:
        assert command(daemon, "detach") == "detached"
        with opened(daemon.disk()) as before:
            assert command(daemon, "attach") == "attached"
            with opened(daemon.disk()) as after:
                assert os.fstat(before).st_dev != os.fstat(after).st_dev
                for number, (writing, reading) in enumerate([(before, after), (after, before)] * 10):
                    data = bytes([number + 1]) * BLOCK_BYTES
                    assert os.pwrite(writing, data, 0) == os.pwrite(writing, data, disk.size_bytes // 2) == BLOCK_BYTES
                    assert os.pread(reading, BLOCK_BYTES, 0) == os.pread(reading, BLOCK_BYTES, disk.size_bytes // 2)
                    assert os.pread(reading, BLOCK_BYTES, 0) == data
                os.fsync(before)
                os.fsync(after)
                assert daemon.value("ploopfs/unflushed_bytes") == "0"
            refused = ploopfs("umount", daemon.mountpoint)
            assert (refused.returncode, disk_mounts(daemon)) == (Exit.NO_MOUNT, ["ploop0"])
            assert os.pwrite(before, b"still served", 0) == 12
        assert daemon.end() == Exit.OK
    assert_closed(disk.top)


# Unmounting.


def test_umount_of_a_tree_names_who_is_in_use_and_puts_back_what_it_took(tmp_path: Path) -> None:
    disks = make_disks(tmp_path)
    with serving_own(tmp_path, *entries(disks)) as daemon:
        with opened(daemon.disk("ploop1")) as fd:
            refused = ploopfs("umount", daemon.mountpoint)
            why = "ploop1: connection: its mount is busy, it is open (1 times)"
            assert (refused.returncode, refused.stderr) == (Exit.NO_MOUNT, f"ploopfs: {daemon.mountpoint}: {why}\n")
            assert disk_mounts(daemon) == ["ploop0", "ploop1"]
            assert daemon.value("ploopfs/connection", "ploop0") == "attached"
            assert os.pwrite(fd, b"still served", 0) == 12
        with opened(daemon.attribute("size"), os.O_RDONLY):
            refused = ploopfs("umount", daemon.mountpoint)
            assert (refused.returncode, "busy" in refused.stderr) == (Exit.NO_MOUNT, True)
            assert disk_mounts(daemon) == ["ploop0", "ploop1"]
        daemon.store("ploopfs/connection", "abort", "ploop0")
        screen = ploopfs("why", "ploop0", "-m", daemon.mountpoint).stdout
        assert screen.startswith("ploop0 is cut off: its connection was aborted\n")
        inside = ploopfs("exec", daemon.mountpoint, "--", "ls", "/dev/ploop0", "/dev/ploop1")
        assert (inside.stdout, "/dev/ploop0" in inside.stderr) == ("/dev/ploop1\n", True), "only that one is missing"
        assert ploopfs("umount", daemon.mountpoint).returncode == Exit.OK
        assert (daemon.wait(), mounts(daemon.mountpoint)) == (Exit.OK, [])
    for disk in disks:
        assert_closed(disk.top)


def test_plain_umount_is_refused_and_the_recursive_one_ends_the_daemon(tmp_path: Path) -> None:
    disks = make_disks(tmp_path)
    with serving_own(tmp_path, *entries(disks)) as daemon:
        for plain in (["umount"], ["fusermount3", "-u"]):
            assert subprocess.run([*plain, daemon.mountpoint], capture_output=True, check=False).returncode != 0
        assert disk_mounts(daemon) == ["ploop0", "ploop1"]
        subprocess.run(["umount", "-R", daemon.mountpoint], check=True)
        assert (daemon.wait(), mounts(daemon.mountpoint)) == (Exit.OK, [])
    for disk in disks:
        assert_closed(disk.top)


def test_fusermount3_lazily_ends_the_daemon_as_soon_as_nobody_has_a_disk_open(tmp_path: Path) -> None:
    [disk] = make_disks(tmp_path, 1)
    with serving_own(tmp_path, *entries([disk])) as daemon:
        with opened(daemon.disk()) as fd:
            subprocess.run(["fusermount3", "-u", "-z", daemon.mountpoint], check=True)
            assert mounts(daemon.mountpoint) == []
            Writer(fd, disk).write(20)
            Writer(fd, disk).assert_all_there()
            assert daemon.process.poll() is None
        assert daemon.wait() == Exit.OK
    assert_closed(disk.top)


def test_a_signal_ends_a_daemon_whose_tree_is_gone_and_whose_disk_is_open(tmp_path: Path) -> None:
    [disk] = make_disks(tmp_path, 1)
    with serving_own(tmp_path, *entries([disk])) as daemon, opened(daemon.disk()) as fd:
        subprocess.run(["umount", "-l", daemon.mountpoint], check=True)
        assert os.pwrite(fd, b"acknowledged", 0) == 12
        assert daemon.end() == Exit.OK
        assert errno_of(os.pwrite, fd, b"too late", 0) == "ENOTCONN"
    assert_closed(disk.top)


def test_a_disk_that_somebody_unmounts_or_cuts_off_is_attached_again(tmp_path: Path) -> None:
    [disk] = make_disks(tmp_path, 1)
    with serving_own(tmp_path, *entries([disk])) as daemon:
        with opened(daemon.disk()) as fd:
            Writer(fd, disk).write(20)
        subprocess.run(["umount", daemon.disk()], check=True)
        daemon.wait_for_line("ploop0: its connection is detached")
        assert daemon.value("ploopfs/data_plane") == "pyfuse3"
        with opened(daemon.disk()) as fd:
            Writer(fd, disk).assert_all_there()
            Writer(fd, disk).write(20)
        assert command(daemon, "attach") == "attached"
        with opened(daemon.disk()) as fd:
            Writer(fd, disk).assert_all_there()
            forced = subprocess.run(["umount", "-f", daemon.disk()], capture_output=True, check=False)
            assert forced.returncode != 0, "it is open: it is cut off, and stays mounted"
            daemon.wait_for_line("ploop0: its connection is aborted")
            assert errno_of(os.pread, fd, 1, 0) == "ENOTCONN"
        assert (daemon.value("ploopfs/connection"), disk_mounts(daemon)) == ("aborted", ["ploop0"])
        assert command(daemon, "attach") == "attached"
        with opened(daemon.disk()) as fd:
            Writer(fd, disk).assert_all_there()


def test_a_request_under_way_is_answered_before_a_signal_ends_the_daemon(tmp_path: Path, bindfs: Bindfs) -> None:
    disk = make_disk(bindfs.bricks / "disk", size_bytes=4 * MIB)
    with serving_own(tmp_path, device(bindfs.path / "disk")) as daemon:
        with opened(daemon.disk()) as fd, ThreadPoolExecutor(1) as thread:
            with bindfs.stopped():
                write = thread.submit(os.pwrite, fd, b"under way", 1 << 20)
                until(lambda: daemon.value("inflight").split() == ["0", "1"], "the write in flight")
                daemon.process.send_signal(signal.SIGTERM)
                daemon.wait_for_line("SIGTERM: ending")
            assert write.result() == 9
        assert daemon.wait() == Exit.OK
    assert_closed(disk.top)


# A crash.


def test_a_killed_daemon_leaves_dead_disks_that_go_with_the_dead_tree(tmp_path: Path) -> None:
    disks = make_disks(tmp_path)
    with serving_own(tmp_path, *entries(disks)) as daemon, opened(daemon.disk()) as fd:
        before = mounts(daemon.mountpoint)
        Writer(fd, disks[0]).write(20)
        daemon.process.kill()
        assert daemon.wait() == -signal.SIGKILL
        assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"
        assert errno_of(os.stat, daemon.disk("ploop1")) == "ENOTCONN"
        assert [place for place in ploopfs_mounts() if place == os.fspath(daemon.mountpoint)] != []
        with serving(tmp_path, *entries(disks), options=[*carried_by(OWN), "--replace-stale"]) as second:
            assert mounts(second.mountpoint) == before, "nothing of the dead one is left below"
            assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"
            with opened(second.disk()) as again:
                Writer(again, disks[0]).assert_all_there()
            assert second.end() == Exit.OK
        assert mounts(daemon.mountpoint) == []
    for disk in disks:
        assert_closed(disk.top)


# Other name spaces.


def test_a_copy_of_a_disk_in_another_name_space_is_served_until_it_goes(tmp_path: Path) -> None:
    need(commands=("unshare", "nsenter"))
    [disk] = make_disks(tmp_path, 1)
    with serving_own(tmp_path, *entries([disk])) as daemon:
        elsewhere = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo there; cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert elsewhere.stdin is not None
        assert elsewhere.stdout is not None
        with elsewhere.stdin, elsewhere.stdout:
            assert elsewhere.stdout.readline() == b"there\n"
            done = ploopfs("umount", "--timeout", "0.1", daemon.mountpoint)
            assert (done.returncode, mounts(daemon.mountpoint)) == (Exit.TIMEOUT, [])
            head = ["nsenter", "-t", str(elsewhere.pid), "-m", "head", "-c", str(BLOCK_BYTES), str(daemon.disk())]
            assert subprocess.run(head, capture_output=True, check=True).stdout == disk.content[:BLOCK_BYTES]
        assert elsewhere.wait() == 0
        assert daemon.wait() == Exit.OK
    assert_closed(disk.top)
