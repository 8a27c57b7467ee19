"""Faults made through a real mount: errnos as a real store gives them, standby, recovery, hangs, and the command."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.daemon import Daemon, device, errno_of, opened, ploopfs, serving, until
from tests.mounted.disks import BLOCK_BYTES, Disk, assert_closed, make_disk
from tests.mounted.writer import Writer

pytestmark = pytest.mark.real


@dataclass(frozen=True, slots=True)
class Scene:
    disk: Disk
    daemon: Daemon

    @property
    def rules(self) -> Path:
        return self.daemon.mountpoint / "sys/kernel/debug/ploopfs/ploop0/error_injection"

    def rule(self, command: str) -> None:
        with opened(self.rules, os.O_WRONLY) as fd:
            os.write(fd, f"{command}\n".encode())

    def inject(self, *arguments: str) -> str:
        done = ploopfs("inject", "-m", self.daemon.mountpoint, "ploop0", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    disk = make_disk(tmp_path / "disk", depth=3)
    with serving(tmp_path, device(disk.directory)) as daemon:
        yield Scene(disk, daemon)


def filled_block(disk: Disk) -> int:
    """The offset of one that a delta holds."""
    blocks = range(0, disk.size_bytes, BLOCK_BYTES)
    return next(offset for offset in blocks if any(disk.content[offset : offset + BLOCK_BYTES]))


@pytest.mark.parametrize("name", ["EBUSY", "ENOTCONN", "EIO"])
def test_a_fault_of_the_store_means_standby_and_its_removal_lets_recovery_succeed(scene: Scene, name: str) -> None:
    daemon = scene.daemon
    with opened(daemon.disk()) as fd:
        writer = Writer(fd, scene.disk)
        writer.write(50)
        scene.rule(f"add,op=WRITE,errno={name}")
        assert [writer.errno_of_write(), writer.errno_of_write()] == [name, "EIO"]
        assert daemon.value("queue/standby") == "on"
        assert daemon.value("ploopfs/standby_reason").startswith(f"errno={name} operation=write ")
        scene.rule("add,op=OPEN,errno=ENOTCONN")
        assert errno_of(daemon.store, "ploopfs/reopen", "1") == "ENOTCONN"
        assert daemon.value("queue/standby") == "on"
        scene.rule("removeall")
        daemon.store("ploopfs/reopen", "1")
        assert daemon.value("queue/standby") == "off"
        writer.write(50)
        writer.assert_all_there()
    assert daemon.end() == 0
    assert_closed(scene.disk.top)


def test_the_file_is_the_owner_s_and_says_what_is_wrong(scene: Scene) -> None:
    assert scene.rules.stat().st_mode & 0o777 == 0o600
    assert scene.rules.read_text() == ""
    assert errno_of(scene.rule, "add,op=READ,errno=EBUZY") == "EINVAL"
    assert errno_of(scene.rule, "remove,id=7") == "ENOENT"
    assert (scene.rules.parent / "last_error").read_text() == "id is 7, expected that of a rule (there: none)\n"
    assert errno_of(scene.rule, "add,level=3,hang") == "EINVAL"
    for _ in range(64):
        scene.rule("add,op=FLUSH,errno=ENOTCONN,level=2,skip=1000,count=1,seed=1,chance=1000")
    assert errno_of(scene.rule, "add,hang") == "ENOSPC"
    assert len(scene.rules.read_bytes()) > 4096
    assert scene.rules.read_text().count("\n") == 64


def test_one_sector_of_the_disk_can_be_bad_wherever_it_lies(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", depth=3)
    bad = filled_block(disk) // 512
    with serving(tmp_path, device(disk.directory, standby=False)) as daemon, opened(daemon.disk()) as fd:
        scene = Scene(disk, daemon)
        scene.rule(f"add,op=READ,status=MEDIUM,start={bad + 1},nr_sectors=1")
        assert os.pread(fd, 512, bad * 512) == disk.content[bad * 512 : bad * 512 + 512]
        assert errno_of(os.pread, fd, 1, bad * 512 + 512) == "ENODATA"
        assert os.pread(fd, 512, bad * 512 + 1024) == disk.content[bad * 512 + 1024 : bad * 512 + 1536]
        assert ",hits=1,last_time=" in scene.rules.read_text()


def test_what_hangs_by_a_rule_blocks_nobody_else_and_goes_on_when_it_is_removed(scene: Scene) -> None:
    offset = filled_block(scene.disk)
    with opened(scene.daemon.disk(), os.O_RDONLY) as fd, ThreadPoolExecutor(1) as thread:
        scene.rule("add,op=READ,hang")
        hung = thread.submit(os.pread, fd, BLOCK_BYTES, offset)
        until(lambda: "hits=1" in scene.rules.read_text(), "the read hangs")
        assert scene.daemon.value("inflight").split() == ["1", "0"]
        assert scene.daemon.value("queue/standby") == "off"
        scene.rule("removeall")
        assert hung.result() == scene.disk.content[offset : offset + BLOCK_BYTES]


def test_a_failed_fsync_is_eio_and_no_write_is_lost_by_it(scene: Scene) -> None:
    with opened(scene.daemon.disk()) as fd:
        writer = Writer(fd, scene.disk)
        writer.write(17)
        scene.rule("add,op=FLUSH,errno=EIO,count=1")
        assert [errno_of(os.fsync, fd), errno_of(os.fsync, fd)] == ["EIO", "EIO"]
        assert scene.daemon.value("queue/standby") == "on"
        scene.daemon.store("ploopfs/reopen", "1")
        os.fsync(fd)
        writer.assert_all_there()


def test_the_command_adds_lists_and_removes_rules(scene: Scene) -> None:
    assert scene.inject("--op", "READ", "--errno", "EBUSY", "--level", "2", "--count", "3") == (
        "1: READ EBUSY level=2 count=3, 0 hits\n"
    )
    scene.inject("--status", "MEDIUM", "--start", "8", "--sectors", "8", "--chance", "2", "--seed", "7")
    scene.inject("--delay-ms", "5", "--hang", "--errno", "EIO", "--after", "--skip", "1")
    assert scene.inject("--list").splitlines() == [
        "3: ALL EIO skip=1 delay_ms=5 hang after, 0 hits",
        "2: ALL ENODATA sectors=8-15 seed=7 chance=1/2, 0 hits",
        "1: READ EBUSY level=2 count=3, 0 hits",
    ]
    scene.inject("--remove", "2")
    scene.inject("--remove", "3")
    offset = filled_block(scene.disk)
    with opened(scene.daemon.disk()) as fd:
        os.pread(fd, 1, offset)
        assert '"first": 0,\n    "last": 18446744073709551615' in scene.inject("--list", "--json")
    scene.inject("--remove-all")
    assert scene.inject("--list") == ""


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("ploop0",), 2, "ploopfs inject: error: what the rule does is missing, expected one of status=, errno=,"),
        (("ploop0", "--errno", "EBUZY"), 2, "ploopfs inject: error: errno is 'EBUZY', expected a name such as E"),
        (("ploop0", "--remove", "5"), 1, "ploopfs: ploop0: id is 5, expected that of a rule (there: none)"),
        (("ploop0", "--list", "--errno", "EIO"), 2, "ploopfs inject: error: errno=EIO is of a new rule, expected"),
        (("ploop9", "--list"), 1, "ploopfs: ploop9: no such device in "),
        (("ploop0", "--op", "ERASE"), 2, "invalid choice: 'ERASE'"),
        (("ploop0", "--list", "--remove-all"), 2, "not allowed with argument"),
    ],
)
def test_a_mistake_of_the_command_is_told_in_one_line(
    scene: Scene, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = ploopfs("inject", "-m", scene.daemon.mountpoint, *arguments)
    assert done.returncode == code
    assert says in done.stderr.splitlines()[-1]
