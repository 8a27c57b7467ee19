"""Signals to programs whose requests are held: who is told to end does, and nobody else hears of any."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S, HOLD_MS, Daemon, device, opened, serving, until
from tests.mounted.disks import BLOCK_BYTES, MIB, Disk, assert_closed, make_disk
from tests.mounted.planes import OWN, carried_by
from tests.mounted.test_hang import filled_blocks
from tests.realparts import need

pytestmark = pytest.mark.real

PROGRAM = """
import ctypes, os, signal, sys
handled = []
for number in (signal.SIGUSR1, signal.SIGURG, signal.SIGALRM, signal.SIGTERM):
    signal.signal(number, lambda number, _frame: handled.append(number))
    signal.siginterrupt(number, False)
path, call, offset = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(b"w" * 4096, 4096)
fd = os.open(path, os.O_RDWR)
done = getattr(libc, call)(fd, buffer, ctypes.c_size_t(4096), ctypes.c_int64(int(offset)))
print(done, ctypes.get_errno() if done < 0 else buffer.raw.hex())
"""
"""It asks the C library, as Python would ask again after EINTR. All handlers are such that system calls go on."""

MEANS_NOTHING = (signal.SIGUSR1, signal.SIGURG, signal.SIGALRM)
LOOK_S = 0.5
"""Longer than it takes to be told of a signal, and to look at it again."""


@dataclass(frozen=True, slots=True)
class Scene:
    daemon: Daemon
    disk: Disk

    @property
    def rules(self) -> Path:
        return self.daemon.mountpoint / "sys/kernel/debug/ploopfs/ploop0/error_injection"

    @property
    def offset(self) -> int:
        return filled_blocks(self.disk)[0]

    @property
    def content(self) -> bytes:
        return bytes(self.disk.content[self.offset : self.offset + BLOCK_BYTES])

    def held(self) -> int:
        return int(self.daemon.value("ploopfs/held"))

    def assert_stays_held(self) -> None:
        until_s = time.monotonic() + LOOK_S
        while time.monotonic() < until_s:
            assert self.held() == 1

    def recover(self) -> None:
        self.rules.write_text("removeall\n")
        if self.daemon.value("queue/standby") == "on":
            self.daemon.store("ploopfs/reopen", "1")

    @contextmanager
    def lost(self) -> Iterator[None]:
        """Inside, the storage is; a first reader has met that, and whoever comes now is held before he meets it."""
        self.rules.write_text("add,errno=ENOTCONN\n")
        try:
            with opened(self.daemon.disk(), os.O_RDONLY) as fd, ThreadPoolExecutor(1) as thread:
                first = thread.submit(os.pread, fd, 1, self.offset)
                until(lambda: self.held() == 1, "the first reader is held")
                self.daemon.store("ploopfs/fail_held", "1")
                assert isinstance(first.exception(HANG_S), OSError)
            yield
        finally:
            self.recover()

    @contextmanager
    def held_program(self, call: str) -> Iterator[subprocess.Popen[str]]:
        """A program that waits for its answer to `call`."""
        command = [sys.executable, "-c", PROGRAM, os.fspath(self.daemon.disk()), call, str(self.offset)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            until(lambda: self.held() == 1, "the program is held")
            yield process
        finally:
            process.kill()
            process.communicate(timeout=HANG_S)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    need(fuse=True, root=True)
    place = tmp_path_factory.mktemp("interrupt")
    disk = make_disk(place / "disk", depth=2, size_bytes=16 * MIB)
    entry = device(disk.directory, on_standby="hold", hold_timeout_ms=HOLD_MS)
    with serving(place, entry, options=carried_by(OWN)) as daemon:
        yield Scene(daemon, disk)
        assert daemon.end() == 0, daemon.log
    assert_closed(disk.top)


def test_signals_that_do_not_end_a_program_leave_its_read_held_until_the_recovery_serves_it(scene: Scene) -> None:
    with scene.lost(), scene.held_program("pread") as program:
        for number in (*MEANS_NOTHING, signal.SIGSTOP, signal.SIGCONT):
            program.send_signal(number)
            scene.assert_stays_held()
        scene.recover()
        out, _ = program.communicate(timeout=HANG_S)
    assert out == f"{BLOCK_BYTES} {scene.content.hex()}\n"


@pytest.mark.parametrize("call", ["pread", "pwrite"])
def test_a_program_that_catches_what_tells_it_to_end_gets_eintr_for_what_was_not_done(scene: Scene, call: str) -> None:
    with scene.lost(), scene.held_program(call) as program:
        program.send_signal(signal.SIGTERM)
        out, _ = program.communicate(timeout=HANG_S)
        assert out == f"-1 {errno.EINTR}\n"
        assert scene.held() == 0
    with opened(scene.daemon.disk(), os.O_RDONLY) as fd:
        assert os.pread(fd, BLOCK_BYTES, scene.offset) == scene.content


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_who_was_sent_a_signal_that_means_nothing_dies_of_the_next_that_does(
    scene: Scene, number: signal.Signals
) -> None:
    with scene.lost(), scene.held_program("pread") as program:
        program.send_signal(signal.SIGUSR1)
        scene.assert_stays_held()
        began = time.monotonic()
        program.send_signal(number)
        assert program.wait(HANG_S) in (-number, 1)
        assert time.monotonic() - began < 10 * LOOK_S
        until(lambda: scene.held() == 0, "nobody is held for who is gone")


def test_a_write_of_who_was_killed_while_it_was_held_is_never_done(scene: Scene) -> None:
    with scene.lost(), scene.held_program("pwrite") as program:
        program.kill()
        assert program.wait(HANG_S) == -signal.SIGKILL
        until(lambda: scene.held() == 0, "nobody is held for who is gone")
    with opened(scene.daemon.disk(), os.O_RDONLY) as fd:
        assert os.pread(fd, BLOCK_BYTES, scene.offset) == scene.content


def test_who_is_killed_while_he_waits_for_none_of_his_requests_goes_at_once(scene: Scene) -> None:
    """The kernel tells a server of signals to who waits, and a virtual machine waits for nothing it has asked for."""
    fio = ["fio", "--name=a", f"--filename={scene.daemon.disk()}", "--rw=randread", "--bs=4k", "--size=1m", "--thread"]
    asynchronously = ["--ioengine=libaio", "--direct=1", "--iodepth=4", f"--offset={scene.offset}"]
    with scene.lost():
        process = subprocess.Popen([*fio, *asynchronously], stdout=subprocess.DEVNULL)
        try:
            until(lambda: scene.held() == 4, "four requests are held")
        finally:
            process.kill()
            assert process.wait(HANG_S) == -signal.SIGKILL
        assert scene.held() == 0
