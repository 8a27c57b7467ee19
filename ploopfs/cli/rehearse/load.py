"""Requests on the disk of a device: single ones that must end as expected, and a load beside everything else.

Knows the disk as a file. Every thread here may hang for as long as the storage does, so none is waited for without a
bound, and none keeps the process.
"""

import errno
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TypeVar

from ploopfs.cli.rehearse.ledger import BLOCK_BYTES, LANES, Ledger
from ploopfs.errors import Unmet

T = TypeVar("T")

PAUSE_S = 0.002
PAUSE_AFTER_ERROR_S = 0.02
_seeds = itertools.count(1)

SINGLE_LANE = LANES - 1
"""The lane of single requests; a load has the others."""


def bounded(call: Callable[[], T], timeout_s: float, what: str) -> T:
    """The result of a call that may hang. Raises Unmet if it does not end, and what it raises."""
    ended: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            ended.append(call())
        except BaseException as error:  # whatever it is, the caller raises it
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if raised:
        raise raised[0]
    if not ended:
        raise Unmet(f"{what} did not end within {timeout_s:g} s")
    return ended[0]


class DiskUser:
    """One open file of a disk, writing to the blocks of one lane. An error is the name of its errno, or empty.

    No two users write the same bytes, so that a block that was not written does not look like one that was."""

    def __init__(self, path: str, ledger: Ledger, *, lane: int, writes: bool) -> None:
        self._fd = os.open(path, (os.O_RDWR if writes else os.O_RDONLY) | os.O_CLOEXEC)
        self._ledger = ledger
        self._lane = lane
        self._random = Random(next(_seeds))
        self._known = [block for block in ledger if block % LANES == lane]

    def request(self, kind: str) -> str:
        """Raises Unmet for a block that reads wrong."""
        try:
            match kind:
                case "write":
                    self._write()
                case "read":
                    self._read()
                case _:
                    os.fsync(self._fd)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error.errno))
        return ""

    def check(self, block: int) -> None:
        """Raises Unmet, and OSError."""
        found = os.pread(self._fd, BLOCK_BYTES, block * BLOCK_BYTES)
        if not self._ledger.fits(block, found):
            raise Unmet(f"the {BLOCK_BYTES} bytes at {block * BLOCK_BYTES} are not those that were acknowledged")

    def close(self) -> None:
        os.close(self._fd)

    def _write(self) -> None:
        block, data = self._ledger.draw(self._random, self._lane), self._random.randbytes(BLOCK_BYTES)
        self._ledger.issued(block, data)
        os.pwrite(self._fd, data, block * BLOCK_BYTES)
        self._ledger.acknowledged(block, data)
        self._known.append(block)

    def _read(self) -> None:
        """Of what an image holds, so that the storage is asked, where anything is known."""
        self.check(self._random.choice(self._known) if self._known else 0)


class Load:
    """Threads that read, write and flush until they are stopped; an error is counted, and the next request made."""

    def __init__(self, path: str, ledger: Ledger, *, threads: int, writes: bool) -> None:
        self.errors: Counter[str] = Counter()
        self.requests = 0
        self.wrong: Unmet | None = None
        self._writes = writes
        self._stopping = threading.Event()
        self._users = [DiskUser(path, ledger, lane=lane, writes=writes) for lane in range(threads)]
        self._threads = [threading.Thread(target=self._run, args=(user,), daemon=True) for user in self._users]
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> None:
        """Raises Unmet if a request does not end in time, or read what was never written."""
        self._stopping.set()
        deadline_s = time.monotonic() + timeout_s
        for thread, user in zip(self._threads, self._users, strict=True):
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                raise Unmet(f"a request of the load did not end within {timeout_s:g} s")
            user.close()
        if self.wrong is not None:
            raise self.wrong

    def _run(self, user: DiskUser) -> None:
        random = Random(next(_seeds))
        kinds = ("write", "write", "write", "read", "read", "flush") if self._writes else ("read",)
        while not self._stopping.is_set():
            try:
                error = user.request(random.choice(kinds))
            except Unmet as wrong:
                self.wrong = wrong
                return
            self.requests += 1
            if error:
                self.errors[error] += 1
            time.sleep(PAUSE_AFTER_ERROR_S if error else PAUSE_S)
