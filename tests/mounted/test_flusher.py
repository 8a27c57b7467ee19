"""Through a real mount: what is kept for a recovery is flushed by the daemon itself, before a writer waits for that."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S, device, opened, serving, until
from tests.mounted.disks import BLOCK_BYTES, CLUSTER_BYTES, MIB, assert_closed, make_disk
from tests.mounted.test_inject import Scene

pytestmark = pytest.mark.real

HALF, FULL = MIB // CLUSTER_BYTES // 2, MIB // CLUSTER_BYTES
"""Writes of a cluster that make a flush due, and that fill what may be kept."""


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    disk = make_disk(tmp_path / "disk")
    with serving(tmp_path, device(disk.directory), limits={"unflushed_mib": 1}) as daemon:
        with opened(daemon.disk()) as fd:
            os.pwrite(fd, b"x" * (2 * MIB), 0)  # from now on these clusters are written in place
            os.fsync(fd)
        yield Scene(disk, daemon)


def kept(scene: Scene) -> int:
    return int(scene.daemon.value("ploopfs/unflushed_bytes"))


def flushes(scene: Scene) -> int:
    return int(scene.daemon.value("stat").split()[15])


def write(fd: int, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        data = bytes([number + 1]) * CLUSTER_BYTES
        assert os.pwrite(fd, data, number * CLUSTER_BYTES) == CLUSTER_BYTES


def test_writes_go_on_while_it_hangs_up_to_the_bound_and_wait_there_until_it_has_made_room(scene: Scene) -> None:
    with opened(scene.daemon.disk()) as fd, ThreadPoolExecutor(1) as thread:
        before = flushes(scene)
        scene.rule("add,op=FLUSH,hang")
        write(fd, HALF)
        until(lambda: "hits=1" in scene.rules.read_text(), "a flush that nobody has asked for")
        write(fd, FULL - HALF - 1, HALF)
        assert (kept(scene), flushes(scene)) == ((FULL - 1) * CLUSTER_BYTES, before)
        last = thread.submit(write, fd, 1, FULL - 1)
        until(lambda: kept(scene) == FULL * CLUSTER_BYTES, "the last write is done, and not acknowledged")
        assert not last.done()
        assert "hits=1" in scene.rules.read_text(), "it waits for that flush, and for none of its own"
        scene.rule("removeall")
        last.result(HANG_S)
        until(lambda: kept(scene) == 0, "as much as half had come meanwhile, and is flushed too")
        assert flushes(scene) - before == 2
        written = os.pread(fd, FULL * CLUSTER_BYTES, 0)
    is_same = written == b"".join(bytes([number + 1]) * CLUSTER_BYTES for number in range(FULL))
    assert is_same
    assert scene.daemon.end() == 0
    assert_closed(scene.disk.top)


def test_it_stays_below_half_though_no_user_flushes_also_after_one_has_failed_and_the_end_waits_for_it(
    scene: Scene,
) -> None:
    with opened(scene.daemon.disk()) as fd:
        for _ in range(3):
            write(fd, HALF)
            until(lambda: kept(scene) == 0, "flushed by itself")
        write(fd, HALF - 1)
        assert kept(scene) == (HALF - 1) * CLUSTER_BYTES, "which is not half yet"
        scene.rule("add,op=FLUSH,errno=ENOTCONN,count=1")
        write(fd, 1, HALF - 1)
        until(lambda: scene.daemon.value("queue/standby") == "on", "the flush in the background has failed")
        assert kept(scene) == HALF * CLUSTER_BYTES
        scene.daemon.store("ploopfs/reopen", "1")
        assert (scene.daemon.value("queue/standby"), kept(scene)) == ("off", 0)
        assert os.pread(fd, BLOCK_BYTES, (HALF - 1) * CLUSTER_BYTES) == bytes([HALF]) * BLOCK_BYTES
        write(fd, HALF)
        until(lambda: kept(scene) == 0, "it goes on")
        scene.rule("removeall")
        scene.rule("add,op=FLUSH,delay_ms=200,count=1")
        write(fd, HALF)
        until(lambda: "hits=1" in scene.rules.read_text(), "it is under way")
    assert scene.daemon.end() == 0
    assert_closed(scene.disk.top)
