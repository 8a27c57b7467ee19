"""The story of the project on real parts: the store under a stack dies with ENOTCONN, and is recovered from."""

import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S, Daemon, device, errno_of, opened, ploopfs, serving
from tests.mounted.disks import CLUSTER_BYTES, Disk, assert_closed, by_qemu, is_marked, make_disk, sums
from tests.mounted.storage import Bindfs
from tests.mounted.writer import Writer

pytestmark = pytest.mark.real


@dataclass(frozen=True, slots=True)
class Scene:
    """A stack of three deltas on a store; `disk` names its files behind the store's back."""

    place: Path
    bindfs: Bindfs
    disk: Disk
    daemon: Daemon

    def top(self) -> Path:
        return self.bindfs.path / self.disk.top.relative_to(self.bindfs.bricks)


@pytest.fixture
def scene(tmp_path: Path, bindfs: Bindfs) -> Iterator[Scene]:
    disk = make_disk(bindfs.bricks / "disk", depth=3)
    with serving(tmp_path, device(bindfs.path / "disk")) as daemon:
        yield Scene(tmp_path, bindfs, disk, daemon)


def shell(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", script, "bash", *arguments], capture_output=True, text=True, check=False)


# Each way to recover returns where the top lies afterwards.


def replaced_by_itself(scene: Scene) -> Path:
    told = shell('echo "$1" > "$2"', scene.top(), scene.daemon.attribute("ploopfs/replace_delta"))
    assert (told.returncode, told.stderr) == (0, "")
    return scene.disk.top


def replaced_by_a_copy(scene: Scene) -> Path:
    copy = scene.place / "elsewhere" / "top.hds"
    copy.parent.mkdir()
    shutil.copyfile(scene.disk.top, copy)
    told = shell('echo "$1" > "$2"', copy, scene.daemon.attribute("ploopfs/replace_delta"))
    assert (told.returncode, told.stderr) == (0, "")
    return copy


def reopened(scene: Scene) -> Path:
    told = shell('echo 1 > "$1"', scene.daemon.attribute("ploopfs/reopen"))
    assert (told.returncode, told.stderr) == (0, "")
    return scene.disk.top


def test_a_read_of_what_was_read_before_finds_the_store_dead(scene: Scene) -> None:
    with opened(scene.daemon.disk()) as fd:
        os.pwrite(fd, b"x" * 4096, 0)
        os.fsync(fd)
        assert os.pread(fd, 4096, 0) == os.pread(fd, 4096, 0) == b"x" * 4096
        scene.bindfs.kill()
        assert errno_of(os.pread, fd, 4096, 0) == "ENOTCONN"
    assert scene.daemon.value("queue/standby") == "on"


@pytest.mark.parametrize("recover", [replaced_by_itself, replaced_by_a_copy, reopened])
def test_nothing_acknowledged_is_lost_with_the_store(scene: Scene, recover: Callable[[Scene], Path]) -> None:
    daemon = scene.daemon
    with opened(daemon.disk()) as fd:
        writer = Writer(fd, scene.disk)
        writer.write(200)
        assert daemon.value("queue/standby") == "off"

        scene.bindfs.kill()
        assert writer.errno_of_write() == "ENOTCONN"
        assert [writer.errno_of_write(), errno_of(os.pread, fd, 1, 0), errno_of(os.fsync, fd)] == ["EIO"] * 3
        assert daemon.value("queue/standby") == "on"
        reason = daemon.value("ploopfs/standby_reason")
        assert reason.startswith("errno=ENOTCONN operation=")
        assert reason.endswith(f" level=2 file={scene.top()}")

        scene.bindfs.remount()
        assert writer.errno_of_write() == "EIO"
        top = recover(scene)
        assert daemon.value("queue/standby") == "off"
        assert daemon.value("ploopfs/standby_reason") == ""
        assert daemon.value("ploopfs/generation") == "2"
        writer.write(100)
        writer.assert_all_there()

    done = ploopfs("umount", daemon.mountpoint)
    assert (done.returncode, daemon.wait()) == (0, 0), done.stderr
    assert daemon.log.count("ploop0 was switched into the standby mode") == 1
    assert_closed(top)
    assert sums(scene.disk.deltas[:-1]) == scene.disk.lower_sums
    assert by_qemu([*scene.disk.deltas[:-1], top], scene.place / "raw") == scene.disk.content
    assert is_marked(scene.disk.top) is (top != scene.disk.top), "the old image is not written to after the outage"


def test_a_poller_is_woken_by_both_edges_of_every_outage(scene: Scene) -> None:
    with (
        opened(scene.daemon.attribute("queue/standby"), os.O_RDONLY) as standby,
        opened(scene.daemon.disk()) as fd,
        select.epoll() as poller,
    ):
        # epoll asks a file once when it is registered, and afterwards only those that have called.
        assert os.pread(standby, 100, 0) == b"off\n"
        poller.register(standby, select.EPOLLPRI)

        def woken_to_read(value: bytes) -> bool:
            [(_, events)] = poller.poll(HANG_S)
            return bool(events & select.EPOLLPRI) and os.pread(standby, 100, 0) == value

        for _ in range(2):
            assert poller.poll(0) == []
            scene.bindfs.kill()
            assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"
            assert woken_to_read(b"on\n")
            assert poller.poll(0) == []
            scene.bindfs.remount()
            scene.daemon.store("ploopfs/reopen", "1")
            assert woken_to_read(b"off\n")
    assert scene.daemon.value("ploopfs/generation") == "3"


def test_a_second_failure_after_the_first_neither_logs_nor_notifies_again(scene: Scene) -> None:
    with opened(scene.daemon.disk()) as fd, opened(scene.daemon.attribute("queue/standby"), os.O_RDONLY) as standby:
        scene.bindfs.kill()
        assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"
        assert os.pread(standby, 100, 0) == b"on\n"
        since = scene.daemon.value("ploopfs/standby_since")
        assert [errno_of(os.pwrite, fd, b"x", 0) for _ in range(10)] == ["EIO"] * 10
        poller = select.poll()
        poller.register(standby, select.POLLPRI)
        assert poller.poll(0) == []
        assert scene.daemon.value("ploopfs/standby_since") == since
    scene.daemon.end()
    assert scene.daemon.log.count("standby mode") == 1


# One fuse out: nothing on the queue is touched, and a failed request aborts as in vz7.


@pytest.mark.parametrize(
    ("standby", "loaded", "shown"),
    [(False, True, "not supported"), (True, False, "off"), (False, False, "not supported")],
    ids=["STANDBY_EN out", "key out", "both out"],
)
def test_with_a_fuse_out_errors_are_plain_and_the_device_aborts(
    tmp_path: Path, bindfs: Bindfs, standby: bool, loaded: bool, shown: str
) -> None:
    disk = make_disk(bindfs.bricks / "disk")
    with (
        serving(tmp_path, device(bindfs.path / "disk", standby=standby), loaded=loaded) as daemon,
        opened(daemon.disk()) as fd,
    ):
        writer = Writer(fd, disk)
        writer.write(20)
        assert [daemon.value("queue/standby"), daemon.value("pstate/aborted")] == [shown, "0"]
        bindfs.kill()
        assert writer.errno_of_write() == "ENOTCONN"
        assert [daemon.value("queue/standby"), daemon.value("pstate/aborted")] == [shown, "1"]
        assert daemon.value("ploopfs/standby_reason") == ""
        assert writer.errno_of_write() == "EIO"
        hole = next(start for start in range(0, disk.size_bytes, CLUSTER_BYTES) if not any(disk.cluster(start)))
        assert not any(os.pread(fd, CLUSTER_BYTES, hole)), "reads pass, and a hole needs no store"

        bindfs.remount()
        daemon.store("ploopfs/reopen", "1")
        assert [daemon.value("queue/standby"), daemon.value("pstate/aborted")] == [shown, "0"]
        writer.write(20)
        writer.assert_all_there()
    assert daemon.end() == 0
    assert "standby mode" not in daemon.log
    assert_closed(disk.top)
