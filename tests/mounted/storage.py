"""The store under the images: bindfs, a FUSE file system: its death is a real ENOTCONN, its stop a real hang."""

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.mounted.daemon import HANG_S, is_mounted, opened, unmount


class Bindfs:
    """`bricks` is what the store keeps, `path` where it shows it. Made by `store`."""

    def __init__(self, bricks: Path, path: Path) -> None:
        self.bricks, self.path = bricks, path
        self._process: subprocess.Popen[bytes] | None = None

    def mount(self) -> None:
        assert self._process is None
        self._process = subprocess.Popen(["bindfs", "-f", self.bricks, self.path], stdin=subprocess.DEVNULL)
        wait_mounted(self.path)
        self.path.stat()

    def kill(self) -> None:
        """The mount stays, and answers every operation with ENOTCONN."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(HANG_S)
        self._process = None

    def remount(self) -> None:
        """What was open on the old mount stays dead; what is opened now works."""
        unmount(self.path)
        self.mount()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Inside, whoever asks the store waits."""
        assert self._process is not None
        with stopped(self._process):
            yield

    def drop_cache(self, image: Path) -> None:
        """The store is asked for every byte of an image (named as one of `bricks`) that is read from now on."""
        with opened(self.path / image.relative_to(self.bricks), os.O_RDONLY) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        unmount(self.path)
        if self._process is not None:
            self.kill()


@contextmanager
def stopped(process: subprocess.Popen[Any]) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@contextmanager
def store(place: Path) -> Iterator[Bindfs]:
    """Mounted at `place`/store, kept in `place`/bricks; both are made."""
    bricks, path = place / "bricks", place / "store"
    bricks.mkdir()
    path.mkdir()
    running = Bindfs(bricks, path)
    try:
        running.mount()
        yield running
    finally:
        running.close()


def waits_for_store(process: int) -> bool:
    """Some thread of it waits in the kernel for the answer of a FUSE server."""
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            if "request_wait_answer" in (task / "stack").read_text():
                return True
        except OSError:
            continue
    return False


def wait_mounted(place: Path) -> None:
    """The mount table reports its changes to poll(2)."""
    with open("/proc/self/mounts", "rb") as table:
        changes = select.poll()
        changes.register(table, select.POLLPRI | select.POLLERR)
        while not is_mounted(place):
            assert changes.poll(HANG_S * 1000), f"{place} was not mounted"
