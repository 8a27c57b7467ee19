"""What a disk answers in standby and while it holds, and who else notices, whichever way its data take."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S, HOLD_MS, Daemon, device, errno_of, opened, serving, until
from tests.mounted.disks import BLOCK_BYTES, MIB, Disk, assert_closed, make_disk
from tests.mounted.planes import OWN, PLANES, carried_by
from tests.mounted.space import PUNCH, fallocate
from tests.mounted.test_hang import filled_blocks
from tests.mounted.test_hold import AT_ONCE_S, usual_s
from tests.realparts import need

pytestmark = pytest.mark.real

READERS = 200
FAILS, FAILS_VZ9, HOLDS, HEALTHY = "ploop0", "dm-0", "ploop1", "ploop2"


@dataclass(frozen=True, slots=True)
class Scene:
    daemon: Daemon
    disks: dict[str, Disk]
    plane: str

    def disk(self, name: str) -> Path:
        return self.daemon.disk(name)

    @contextmanager
    def lost(self, name: str) -> Iterator[None]:
        """Inside, its store answers nothing but ENOTCONN; then it is well again, and recovered from."""
        rules = self.daemon.mountpoint / f"sys/kernel/debug/ploopfs/{name}/error_injection"
        rules.write_text("add,errno=ENOTCONN\n")
        try:
            yield
        finally:
            rules.write_text("removeall\n")
            self.daemon.store("ploopfs/reopen", "1", name)

    def held(self) -> int:
        return int(self.daemon.value("ploopfs/held", HOLDS))

    def assert_nobody_else_notices(self) -> None:
        """The tree answers at once, and so does another disk."""
        assert usual_s(self.daemon, "queue/standby", "size", "stat") < AT_ONCE_S
        healthy = self.disks[HEALTHY]
        with opened(self.disk(HEALTHY)) as fd:
            started = time.monotonic()
            for offset in filled_blocks(healthy):
                assert os.pread(fd, BLOCK_BYTES, offset) == healthy.content[offset : offset + BLOCK_BYTES]
            assert os.pwrite(fd, healthy.content[:512], 0) == 512
            os.fsync(fd)
            assert time.monotonic() - started < 20 * AT_ONCE_S

    @contextmanager
    def reader(self) -> Iterator[subprocess.Popen[str]]:
        """A program whose read is held."""
        offset = filled_blocks(self.disks[HOLDS])[0]
        command = ["dd", f"if={self.disk(HOLDS)}", "of=/dev/null", "bs=4k", f"skip={offset // 4096}", "count=1"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            until(lambda: self.held() == 1, "the reader is held")
            yield process
        finally:
            process.kill()
            self.daemon.store("ploopfs/fail_held", "1", HOLDS)
            process.communicate(timeout=HANG_S)


@pytest.fixture(scope="module", params=PLANES)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    need(fuse=True, root=True)
    plane = str(request.param)
    place = tmp_path_factory.mktemp(f"planes-{plane}")
    names = (FAILS, FAILS_VZ9, HOLDS, HEALTHY)
    disks = {name: make_disk(place / name, depth=2, size_bytes=16 * MIB) for name in names}
    entries = [
        device(disks[FAILS].directory, FAILS),
        device(disks[FAILS_VZ9].directory, FAILS_VZ9, flavour="vz9"),
        device(disks[HOLDS].directory, HOLDS, on_standby="hold", hold_timeout_ms=HOLD_MS),
        device(disks[HEALTHY].directory, HEALTHY),
    ]
    with serving(place, *entries, options=carried_by(plane)) as daemon:
        yield Scene(daemon, disks, plane)
        assert daemon.end() == 0, daemon.log
    for disk in disks.values():
        assert_closed(disk.top)


@pytest.mark.parametrize(("name", "first"), [(FAILS, "ENOTCONN"), (FAILS_VZ9, "EIO")])
def test_the_errnos_of_an_outage_are_those_of_the_flavour_and_end_with_it(scene: Scene, name: str, first: str) -> None:
    disk = scene.disks[name]
    filled = filled_blocks(disk)[0]
    with opened(scene.disk(name)) as fd:
        with scene.lost(name):
            assert errno_of(os.pread, fd, 1, filled) == first
            assert scene.daemon.value("queue/standby", name) == "on"
            assert errno_of(os.pread, fd, 1, filled) == "EIO"
            assert errno_of(os.pwrite, fd, b"x", filled) == "EIO"
            assert errno_of(os.fsync, fd) == "EIO"
            if scene.plane == OWN:
                assert errno_of(fallocate, fd, PUNCH, filled, 4096) == "EIO"
                assert os.lseek(fd, filled, os.SEEK_DATA) == filled, "the map is in memory"
            assert os.fstat(fd).st_size == disk.size_bytes
            with opened(scene.disk(name), os.O_RDONLY) as another:
                assert errno_of(os.pread, another, 1, filled) == "EIO"
        assert scene.daemon.value("queue/standby", name) == "off"
        assert os.pread(fd, BLOCK_BYTES, filled) == disk.content[filled : filled + BLOCK_BYTES]
        os.fsync(fd)


def test_200_held_requests_delay_neither_the_tree_nor_another_disk_and_are_served_after_recovery(scene: Scene) -> None:
    filled = filled_blocks(scene.disks[HOLDS])
    offsets = [filled[number % len(filled)] for number in range(READERS)]
    with opened(scene.disk(HOLDS), os.O_RDONLY) as fd, ThreadPoolExecutor(READERS) as threads:
        with scene.lost(HOLDS):
            reads = [threads.submit(os.pread, fd, BLOCK_BYTES, offset) for offset in offsets]
            until(lambda: scene.held() == READERS, "all readers are held")
            scene.assert_nobody_else_notices()
            assert not any(read.done() for read in reads)
        for offset, read in zip(offsets, reads, strict=True):
            assert read.result(HANG_S) == scene.disks[HOLDS].content[offset : offset + BLOCK_BYTES]
    assert scene.held() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_held_reader_dies_of_a_signal_at_once_where_the_connection_hears_of_it(
    scene: Scene, number: signal.Signals
) -> None:
    """Through the tree's he goes when his request does: pyfuse3 knows no INTERRUPT, and the kernel waits for the
    answer to what the daemon has, whatever happens to who asked."""
    with scene.lost(HOLDS), scene.reader() as reader:
        reader.send_signal(number)
        if scene.plane == OWN:
            assert reader.wait(HANG_S) == -number
            until(lambda: scene.held() == 0, "nobody is held for who is gone")
        else:
            assert usual_s(scene.daemon, "queue/standby") < AT_ONCE_S
            assert (reader.poll(), scene.held()) == (None, 1)
            scene.daemon.store("ploopfs/fail_held", "1", HOLDS)
            assert reader.wait(HANG_S) in (-number, 1)


def test_a_connection_is_aborted_and_attached_again_and_nobody_else_notices(scene: Scene) -> None:
    connection = scene.daemon.attribute("ploopfs/connection", HOLDS)
    if scene.plane != OWN:
        assert connection.read_text() == "detached\n"
        return
    filled, content = filled_blocks(scene.disks[HOLDS])[0], scene.disks[HOLDS].content
    expected = content[filled : filled + BLOCK_BYTES]
    with opened(scene.disk(HOLDS)) as fd, ThreadPoolExecutor(10) as threads, scene.lost(HOLDS):
        reads = [threads.submit(errno_of, os.pread, fd, 1, filled) for _ in range(10)]
        until(lambda: scene.held() == 10, "ten are held")
        connection.write_text("abort\n")
        assert {read.result(HANG_S) for read in reads} <= {"ECONNABORTED", "ENOTCONN"}
        assert connection.read_text() == "aborted\n"
        assert errno_of(os.pread, fd, 1, filled) == "ENOTCONN"
        assert errno_of(os.open, scene.disk(HOLDS), os.O_RDONLY) == "ENOTCONN"
        scene.assert_nobody_else_notices()
        assert scene.daemon.value("ploopfs/connection", HEALTHY) == "attached"
        until(lambda: scene.held() == 0, "nobody is held for a connection that is gone")
        connection.write_text("attach\n")
        assert connection.read_text() == "attached\n"
        assert errno_of(os.pread, fd, 1, filled) == "ENOTCONN", "what was open stays so"
    with opened(scene.disk(HOLDS)) as fd:
        assert os.pread(fd, BLOCK_BYTES, filled) == expected
        assert os.pwrite(fd, expected, filled) == BLOCK_BYTES
        os.fsync(fd)
    until(lambda: scene.daemon.value("pstate/open_count", HOLDS) == "0", "all are released")
