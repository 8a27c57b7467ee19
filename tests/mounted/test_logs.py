"""A daemon whose log is full, stuck or closed serves on, and loses nothing but messages."""

import os
import subprocess
import sys
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
    Daemon,
    device,
    errno_of,
    is_mounted,
    opened,
    serving,
    unmount,
    until,
    write_config,
)
from tests.mounted.disks import assert_closed, make_disk
from tests.mounted.storage import wait_mounted
from tests.mounted.writer import Writer

pytestmark = pytest.mark.real

LOUD = 300
"""Refused control writes: each is a message of more than a hundred bytes."""


LATE_LOG = """
import sys
import threading
from ploopfs.cli import logs, main

ends = threading.Event()
write, close = logs.FileLog.__call__, logs.Behind.close

def write_late(self, record):
    ends.wait()
    write(self, record)

def close_it(self):
    ends.set()
    close(self)

logs.FileLog.__call__, logs.Behind.close = write_late, close_it
sys.exit(main.main())
"""
"""Its log writes nothing before it is asked to end."""


def be_loud(daemon: Daemon, count: int = LOUD) -> None:
    for _ in range(count):
        assert errno_of(daemon.store, "ploopfs/replace_delta", "/nowhere/" + "x" * 200) == "ENOENT"


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """16 KiB in memory."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        unmount(place)


def test_a_full_disk_for_the_log_costs_messages_and_no_request_and_room_brings_the_log_back(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk")
    with small_disk(tmp_path / "logs") as logs:
        log, ballast = logs / "log", logs / "ballast"
        ballast.write_bytes(bytes(8192))
        with (
            serving(tmp_path, device(disk.directory), options=["--log-file", str(log)]) as daemon,
            opened(daemon.disk()) as fd,
        ):
            writer = Writer(fd, disk)
            be_loud(daemon)
            writer.write(20)
            assert os.statvfs(logs).f_bavail == 0
            assert "messages were lost" not in log.read_text()
            ballast.unlink()
            be_loud(daemon, 1)
            until(lambda: "messages were lost: No space left on device" in log.read_text(), "the log tells its loss")
            until(lambda: log.read_text().endswith("\n"), "its last line is whole")
            assert all(line[:4].isdigit() for line in log.read_text().splitlines()[-2:])
            writer.assert_all_there()
            assert daemon.end() == Exit.OK
        assert [line for line in daemon.log.splitlines() if "is ready" not in line] == []
    assert_closed(disk.top)


def test_a_log_that_nobody_reads_holds_up_neither_requests_nor_the_end(tmp_path: Path) -> None:
    disk, reading, writing = make_disk(tmp_path / "disk"), *os.pipe()
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    os.set_blocking(writing, False)
    while errno_of(os.write, writing, bytes(4096)) == "success":
        pass
    os.set_blocking(writing, True)
    command = [*PLOOPFS, "mount", str(write_config(tmp_path, device(disk.directory))), str(mountpoint)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=writing)
    os.close(writing)
    try:
        wait_mounted(mountpoint)
        attribute = mountpoint / "sys/block/ploop0/ploopfs/replace_delta"
        with opened(mountpoint / "dev/ploop0") as fd, opened(attribute, os.O_WRONLY) as replace:
            for _ in range(LOUD):
                assert errno_of(os.write, replace, b"/nowhere") == "ENOENT"
            Writer(fd, disk).write(20)
            assert (mountpoint / "sys/block/ploop0/queue/standby").read_text() == "off\n"
        process.terminate()
        assert process.wait(HANG_S) == Exit.OK
    finally:
        process.kill()
        process.wait()
        unmount(mountpoint)
        os.close(reading)
    assert_closed(disk.top)


def test_why_a_mount_was_refused_is_the_last_thing_said(tmp_path: Path) -> None:
    """What was opened before is closed again first, and the log tells all of that, however slow it is."""
    disk = make_disk(tmp_path / "disk")
    (tmp_path / "mnt").mkdir()
    config = write_config(tmp_path, device(disk.directory), device(tmp_path / "none", "ploop1"))
    command = [sys.executable, "-c", LATE_LOG, "mount", str(config), str(tmp_path / "mnt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    *logged, last = done.stderr.splitlines()
    assert (done.returncode, last.partition(" (ploop1): ")[0]) == (Exit.CONFIG, f"ploopfs: {config}: devices[1]")
    assert any("ploop0 was added" in line for line in logged)


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_are_not_mistaken_for_an_image(tmp_path: Path, closed: str) -> None:
    disk = make_disk(tmp_path / "disk")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    config = write_config(tmp_path, device(disk.directory))
    script = f'exec "$@" {closed}'
    process = subprocess.Popen(["sh", "-c", script, "sh", *PLOOPFS, "mount", str(config), str(mountpoint)], cwd=ROOT)
    try:
        wait_mounted(mountpoint)
        assert (mountpoint / "sys/block/ploop0/queue/standby").read_text() == "off\n"
        standard = {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in range(3)}
        assert not [target for target in standard if target.startswith((str(disk.directory), "/dev/fuse"))]
        with opened(mountpoint / "dev/ploop0") as fd:
            Writer(fd, disk).write(20)
        process.terminate()
        assert process.wait(HANG_S) == Exit.OK
        assert not is_mounted(mountpoint)
    finally:
        process.kill()
        process.wait()
        unmount(mountpoint)
    assert_closed(disk.top)


def test_many_who_are_loud_at_once_are_all_answered(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk")
    with (
        serving(tmp_path, device(disk.directory), options=["--log-file", "/dev/full"]) as daemon,
        ThreadPoolExecutor(8) as threads,
    ):
        for done in [threads.submit(be_loud, daemon, 20) for _ in range(8)]:
            done.result(HANG_S)
        assert daemon.value("queue/standby") == "off"
        assert daemon.end() == Exit.OK
    assert_closed(disk.top)
