"""Users of a disk who read and write it all the while, each in a thread, and note what was acknowledged.

Every worker has blocks of its own, so what a block holds is known at any moment to who reads or writes it. The kernel
lets one write or fsync of a file through at a time: while that one waits, the other writers wait behind it unseen by
the daemon, and only reads come through.
"""

import errno
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.mounted.daemon import HANG_S, opened
from tests.mounted.disks import BLOCK_BYTES, Disk

READERS = 3
WRITERS = 3
WORKERS = READERS + WRITERS
FSYNC_EVERY = 16


class Traffic:
    """`errors` counts errnos of failed calls; `slowest_s` is the longest that one call took. Made by `traffic`."""

    def __init__(self, fd: int, disk: Disk, standby: Path) -> None:
        self.errors: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._fd, self._disk, self._standby = fd, disk, standby
        self._steps = [0] * WORKERS
        self._stopping = False
        self._stepped = threading.Condition()

    def wait_steps(self, count: int) -> None:
        """Until each worker has ended that many further calls with success."""
        with self._stepped:
            aims = [steps + count for steps in self._steps]
            self._stepped.wait_for(lambda: self._stopping or all(map(int.__ge__, self._steps, aims)), HANG_S)
            assert all(map(int.__ge__, self._steps, aims)), f"no progress: {self._steps}, wanted {aims}"

    def wait_errors(self, count: int) -> None:
        """Until so many calls have failed since the beginning."""
        with self._stepped:
            self._stepped.wait_for(lambda: self._stopping or self.errors.total() >= count, HANG_S)
            assert self.errors.total() >= count, f"{self.errors}, wanted {count}"

    def stop(self) -> None:
        with self._stepped:
            self._stopping = True
            self._stepped.notify_all()

    def work(self, worker: int) -> None:
        """Until it is told to stop. A call that failed is repeated when standby is over."""
        random = Random(worker)
        blocks = range(worker, self._disk.size_bytes // BLOCK_BYTES, WORKERS)
        try:
            while not self._stopping:
                self._step(worker, random.choice(blocks) * BLOCK_BYTES, random)
        except BaseException:
            self.stop()
            raise

    def _step(self, worker: int, offset: int, random: Random) -> None:
        if worker >= READERS and self._steps[worker] % FSYNC_EVERY == 0:
            self._repeated(lambda: os.fsync(self._fd))
        elif worker < READERS or random.random() < 0.3:
            found = self._repeated(lambda: os.pread(self._fd, BLOCK_BYTES, offset))
            assert found == self._disk.content[offset : offset + BLOCK_BYTES], f"the block at {offset} differs"
        else:
            data = random.randbytes(BLOCK_BYTES)
            assert self._repeated(lambda: os.pwrite(self._fd, data, offset)) == BLOCK_BYTES
            self._disk.content[offset : offset + BLOCK_BYTES] = data
        with self._stepped:
            self._steps[worker] += 1
            self._stepped.notify_all()

    def _repeated(self, call: Callable[[], object]) -> object:
        while True:
            started_s = time.monotonic()
            try:
                return call()
            except OSError as error:
                with self._stepped:
                    self.errors[errno.errorcode[error.errno or 0]] += 1
                    self._stepped.notify_all()
                if self._stopping:
                    raise
                self._wait_standby_over()
            finally:
                self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)

    def _wait_standby_over(self) -> None:
        with opened(self._standby, os.O_RDONLY) as fd:
            poller = select.poll()
            poller.register(fd, select.POLLPRI)
            while os.pread(fd, 100, 0) == b"on\n":
                assert poller.poll(HANG_S * 1000), "standby was not over in time"


@contextmanager
def traffic(path: Path, disk: Disk, standby: Path) -> Iterator[Traffic]:
    """Inside, WORKERS threads use the disk at `path`; what they have written is in `disk.content` afterwards."""
    with opened(path) as fd, ThreadPoolExecutor(WORKERS) as threads:
        running = Traffic(fd, disk, standby)
        workers: list[Future[None]] = [threads.submit(running.work, number) for number in range(WORKERS)]
        try:
            yield running
        finally:
            running.stop()
        for worker in workers:
            worker.result()
