"""Starts and ends a toy tree by its own process id, and leaves no mount behind, whatever the test did to it."""

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HANG_S = 60
"""Only a failing test waits that long."""

LIFE_S = 10 * HANG_S
"""A toy that hangs is killed, and whoever waits for it gets an error; a whole module shares one."""


def errno_of(call: Callable[..., object], *arguments: object) -> str:
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "success"


def until(path: Path, text: str) -> None:
    """Ask the tree itself until `path` reads `text`; the bound only ends a test that fails."""
    deadline = time.monotonic() + HANG_S
    while (found := path.read_text()) != text:
        assert time.monotonic() < deadline, f"{path} reads {found!r} and not {text!r}"


class Mounted:
    """A running toy. `log` is what it wrote to standard error."""

    def __init__(self, process: subprocess.Popen[str], path: Path, log_path: Path) -> None:
        self.process, self.path, self._log_path = process, path, log_path

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(HANG_S)

    def said(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], HANG_S)[0], "it hangs"
        return self.process.stdout.readline()


@contextmanager
def mounted(place: Path) -> Iterator[Mounted]:
    """Mount a toy at `place`/mnt, which is made if it is missing."""
    mountpoint, log_path = place / "mnt", place / "log"
    with suppress(OSError):
        mountpoint.mkdir()
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuse.toy", os.fspath(mountpoint)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    watchdog = threading.Timer(LIFE_S, process.kill)
    watchdog.start()
    try:
        toy = Mounted(process, mountpoint, log_path)
        assert toy.said() == "ready\n", log_path.read_text()
        yield toy
    finally:
        _end(process, mountpoint)
        watchdog.cancel()


def _end(process: subprocess.Popen[str], mountpoint: Path) -> None:
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(HANG_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        if process.stdout is not None:
            process.stdout.close()
        # Not mounted any more is the usual case, and the failure of this command then.
        subprocess.run(["umount", "-l", os.fspath(mountpoint)], capture_output=True, check=False)
