"""`on_standby=hold` on a real store that dies: its users wait and never hear of it, within bounds, and nobody else
does."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from tests.mounted.daemon import HANG_S, Daemon, device, errno_of, opened, serving, until
from tests.mounted.disks import BLOCK_BYTES, Disk, assert_closed, is_marked, make_disk
from tests.mounted.planes import OWN, TREE, carried_by
from tests.mounted.storage import Bindfs
from tests.mounted.test_hang import assert_read, filled_blocks
from tests.mounted.writer import Writer

pytestmark = pytest.mark.real

READERS = 500
AT_ONCE_S = 0.5
"""Far more than an answer takes that waits for nobody, and far less than any bound on a wait."""


@dataclass(frozen=True, slots=True)
class Scene:
    """ploop0 lies on a store and holds, ploop1 on none."""

    bindfs: Bindfs
    daemon: Daemon
    disk: Disk
    healthy: Disk

    def lose_store(self) -> None:
        self.bindfs.kill()

    def recover(self) -> None:
        self.bindfs.remount()
        self.daemon.store("ploopfs/reopen", "1")

    def held(self) -> int:
        return int(self.daemon.value("ploopfs/held"))


@contextmanager
def scene_of(
    tmp_path: Path, bindfs: Bindfs, limits: dict[str, object] | None = None, *, plane: str = OWN
) -> Iterator[Scene]:
    disk, healthy = make_disk(bindfs.bricks / "disk", depth=2), make_disk(tmp_path / "healthy", seed=2)
    devices = device(bindfs.path / "disk", on_standby="hold"), device(healthy.directory, "ploop1")
    with serving(tmp_path, *devices, limits=limits, options=carried_by(plane)) as daemon:
        yield Scene(bindfs, daemon, disk, healthy)


@pytest.fixture
def scene(tmp_path: Path, bindfs: Bindfs) -> Iterator[Scene]:
    with scene_of(tmp_path, bindfs) as scene:
        yield scene


@contextmanager
def threads_of(scene: Scene, count: int) -> Iterator[ThreadPoolExecutor]:
    """Nobody of them is held any longer when the block ends, however it does."""
    with ThreadPoolExecutor(count) as threads:
        try:
            yield threads
        finally:
            with suppress(OSError):
                scene.daemon.store("ploopfs/fail_held", "1")


@contextmanager
def readers(scene: Scene, count: int, held: int) -> Iterator[list[tuple[int, Future[bytes]]]]:
    """The store is lost; inside, as many of `count` readers as may are held."""
    filled = filled_blocks(scene.disk)
    offsets = [filled[number % len(filled)] for number in range(count)]
    scene.lose_store()
    with opened(scene.daemon.disk(), os.O_RDONLY) as fd, threads_of(scene, count) as threads:
        reads = [(offset, threads.submit(os.pread, fd, BLOCK_BYTES, offset)) for offset in offsets]
        until(lambda: scene.held() == held, f"{held} readers held")
        yield reads


def outcomes(reads: Sequence[tuple[int, Future[bytes]]]) -> list[str]:
    return [errno_of(read.result) for _, read in reads]


def usual_s(daemon: Daemon, *names: str) -> float:
    """How long reading takes that attribute which takes longest. The median: what waits waits each time, while a busy
    machine may delay any one answer."""

    def once_s(name: str) -> float:
        started = time.monotonic()
        daemon.value(name)
        return time.monotonic() - started

    return max(median(once_s(name) for _ in range(20)) for name in names)


def test_500_held_readers_delay_neither_the_status_nor_the_neighbour_and_all_are_served_after_recovery(
    scene: Scene,
) -> None:
    daemon = scene.daemon
    with readers(scene, READERS, READERS) as reads, opened(daemon.disk("ploop1")) as neighbour:
        assert daemon.value("queue/standby") == "on"
        shown = ("queue/standby", "ploopfs/held", "ploopfs/standby_reason", "size", "inflight", "stat")
        assert usual_s(daemon, *shown) < AT_ONCE_S
        assert daemon.value("inflight").split() == ["0", "0"]
        for offset in filled_blocks(scene.healthy):
            wanted = scene.healthy.content[offset : offset + BLOCK_BYTES]
            assert os.pread(neighbour, BLOCK_BYTES, offset) == wanted
        assert os.pwrite(neighbour, b"neighbour", 12345) == 9
        os.fsync(neighbour)
        assert not any(read.done() for _, read in reads)
        scene.recover()
        assert_read(scene.disk, reads)
    assert [daemon.value("ploopfs/held"), daemon.value("queue/standby")] == ["0", "off"]
    assert daemon.end() == 0
    assert_closed(scene.disk.top)


def test_fail_held_fails_500_readers_and_the_device_still_stands_by(scene: Scene) -> None:
    with readers(scene, READERS, READERS) as reads:
        scene.daemon.store("ploopfs/fail_held", "1")
        assert set(outcomes(reads)) == {"EIO"}
        assert [scene.held(), scene.daemon.value("queue/standby")] == [0, "on"]


def test_beyond_the_bound_readers_are_refused_at_once_and_the_others_wait(tmp_path: Path, bindfs: Bindfs) -> None:
    with scene_of(tmp_path, bindfs, {"held_requests": 100}) as scene, readers(scene, 300, 100) as reads:
        until(lambda: sum(read.done() for _, read in reads) == 200, "the others refused")
        refused = [(offset, read) for offset, read in reads if read.done()]
        assert set(outcomes(refused)) <= {"EIO", "ENOTCONN"}, "ENOTCONN: who met it himself and found no room"
        scene.recover()
        assert_read(scene.disk, [each for each in reads if each not in refused])


@pytest.mark.parametrize(("plane", "held"), [(OWN, 10), (TREE, 1)])
def test_writers_are_held_together_or_one_at_a_time_where_the_kernel_locks_the_file_and_all_of_them_succeed(
    tmp_path: Path, bindfs: Bindfs, plane: str, held: int
) -> None:
    """Parallel writes are a matter of the connection: pyfuse3 cannot ask for them."""
    length = 100 << 10
    with (
        scene_of(tmp_path, bindfs, plane=plane) as scene,
        opened(scene.daemon.disk()) as fd,
        threads_of(scene, 10) as threads,
    ):
        scene.lose_store()
        writes = [threads.submit(os.pwrite, fd, b"w" * length, number * length) for number in range(10)]
        until(lambda: scene.held() == held, f"{held} held")
        assert scene.daemon.value("ploopfs/held_bytes") == str(held * length)
        scene.recover()
        assert [write.result(HANG_S) for write in writes] == [length] * 10
        assert set(os.pread(fd, 10 * length, 0)) == {ord("w")}


def test_a_held_reader_gets_eio_at_the_timeout(scene: Scene) -> None:
    scene.daemon.store("ploopfs/hold_timeout_ms", "300")
    scene.lose_store()
    with opened(scene.daemon.disk(), os.O_RDONLY) as fd:
        started = time.monotonic()
        assert errno_of(os.pread, fd, 1, 0) == "EIO"
        assert 0.3 <= time.monotonic() - started < HANG_S / 2
    assert scene.daemon.value("queue/standby") == "on"


def test_a_shorter_timeout_counts_for_readers_that_are_held_already(scene: Scene) -> None:
    with readers(scene, 20, 20) as reads:
        scene.daemon.store("ploopfs/hold_timeout_ms", "1")
        assert outcomes(reads) == ["EIO"] * 20
    timeouts = [record for record in scene.daemon.events() if record["event"] == "hold_timeout"]
    assert len(timeouts) == 20
    assert scene.daemon.value("queue/standby") == "on"


def test_the_policy_can_be_changed_while_readers_are_held(scene: Scene) -> None:
    with readers(scene, 50, 50) as reads:
        scene.daemon.store("ploopfs/on_standby", "fail")
        assert set(outcomes(reads)) == {"EIO"}
        with opened(scene.daemon.disk(), os.O_RDONLY) as fd:
            assert errno_of(os.pread, fd, 1, 0) == "EIO"
        scene.recover()


def test_a_daemon_that_is_told_to_end_lets_held_readers_go_and_says_that_the_image_is_not_closed(scene: Scene) -> None:
    with opened(scene.daemon.disk(), os.O_RDONLY) as fd, threads_of(scene, 20) as threads:
        scene.lose_store()
        reads = [threads.submit(os.pread, fd, 1, 0) for _ in range(20)]
        until(lambda: scene.held() == 20, "20 readers held")
        assert scene.daemon.end() != 0
        assert {errno_of(read.result) for read in reads} <= {"EIO", "ENOTCONN", "ECONNABORTED"}
    assert "stays marked in use" in scene.daemon.log
    assert is_marked(scene.disk.top)


def test_a_writer_never_hears_of_an_outage(scene: Scene) -> None:
    """One whole story, three times: writes, flushes and reads that come late and right."""
    with opened(scene.daemon.disk()) as fd, threads_of(scene, 1) as thread:
        writer = Writer(fd, scene.disk)
        for outage in range(3):
            writer.write(40)
            scene.lose_store()
            writing = thread.submit(writer.write, 60)
            until(lambda: scene.held() == 1, "the writer is held")
            scene.recover()
            writing.result(HANG_S)
            assert scene.daemon.value("ploopfs/generation") == str(outage + 2)
        writer.assert_all_there()
    assert scene.daemon.end() == 0
    assert_closed(scene.disk.top)


@pytest.mark.parametrize("on_standby", ["fail", "hold"])
@pytest.mark.parametrize("by_copy", [False, True], ids=["reopened", "replaced by a copy"])
def test_every_acknowledged_byte_reads_back_after_a_store_that_forgot_what_was_not_flushed(
    tmp_path: Path, bindfs: Bindfs, on_standby: str, by_copy: bool
) -> None:
    """What a store may do that dies with writes in its own cache: it comes back as it was at the last flush."""
    disk = make_disk(bindfs.bricks / "disk", depth=2)
    as_flushed = tmp_path / "as_flushed"
    with (
        serving(tmp_path, device(bindfs.path / "disk", on_standby=on_standby)) as daemon,
        opened(daemon.disk()) as fd,
        threads_of(Scene(bindfs, daemon, disk, disk), 1) as thread,
    ):
        writer = Writer(fd, disk)
        top = disk.top
        for outage in range(3):
            writer.write(20)
            os.fsync(fd)
            shutil.copyfile(top, as_flushed)
            writer.write_unflushed(30)
            assert int(daemon.value("ploopfs/unflushed_bytes")) > 0
            bindfs.kill()
            if on_standby == "hold":
                writing = thread.submit(writer.write, 1)
                until(lambda: daemon.value("ploopfs/held") == "1", "the writer is held")
            else:
                assert writer.errno_of_write() == "ENOTCONN"
            if by_copy:
                top = bindfs.bricks / f"copy{outage}.hds"
            shutil.copyfile(as_flushed, top)
            bindfs.remount()
            if by_copy:
                daemon.store("ploopfs/replace_delta", str(bindfs.path / top.name))
            else:
                daemon.store("ploopfs/reopen", "1")
            assert daemon.value("ploopfs/unflushed_bytes") == "0" or on_standby == "hold"
            if on_standby == "hold":
                writing.result(HANG_S)
            else:
                writer.write(1)
            writer.assert_all_there()
    assert daemon.end() == 0
    assert_closed(top)
