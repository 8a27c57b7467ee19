"""One thread with a table of descriptors of its own, in which no image is ever open: where processes are started.

Whoever is started gets a copy of the table of who starts it, and closes what is in it before it runs. Each such close
sends FLUSH to the server of a FUSE store, and waits for the answer for as long as that takes: beside one store that
hangs no program could be started for another. Knows nothing of what is started. Invariant: what is done here sees the
standard streams as /dev/null and nothing else that is open; a number of a descriptor from elsewhere means nothing here.
"""

import ctypes
import errno
import gc
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

import trio

T = TypeVar("T")

log = logging.getLogger(__name__)

_CLONE_FILES = 0x400
_libc = ctypes.CDLL(None, use_errno=True)


class Apart:
    """Work is done one piece after the other. The thread begins with `begin`, or else with the first piece."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """A child of a fork has no thread but the one that forked."""
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._beginning = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Before any image is open: what is open now is closed in the thread."""
        with self._beginning:
            if self._thread is not None:
                return
            # Nobody is left who would wait for it at the end of the process.
            self._thread = threading.Thread(target=self._serve, name="apart", daemon=True)
            self._thread.start()
        self._ask(lambda: None).result()

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. It may wait, but not for a storage: whoever comes next waits for it."""
        return await trio.to_thread.run_sync(self.run_blocking, work)

    def run_blocking(self, work: Callable[[], T]) -> T:
        self.begin()
        return self._ask(work).result()

    def _ask(self, work: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()

        def answer() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._work.put(answer)
        return future

    def _serve(self) -> None:
        _leave_descriptors()
        while True:
            answer = self._work.get()
            # What the collector finds may close descriptors, and it does so in the thread that it happens to run in:
            # by numbers that belong to the others.
            collects = gc.isenabled()
            gc.disable()
            try:
                answer()
            finally:
                if collects:
                    gc.enable()
            del answer


def _leave_descriptors() -> None:
    if _libc.unshare(_CLONE_FILES):
        number = errno.errorcode.get(ctypes.get_errno(), "?")
        log.info("descriptors cannot be left behind (%s): a hung storage delays the start of programs", number)
        return
    os.closerange(0, os.sysconf("SC_OPEN_MAX"))
    for _stream in range(3):
        os.open(os.devnull, os.O_RDWR)


def path_of(fd: int) -> str:
    """By which the thread can open what the caller has open as `fd`, a pipe for instance."""
    return f"/proc/self/task/{threading.get_native_id()}/fd/{fd}"


APART = Apart()
"""There is one in a process: its table costs nothing, and begins before the first image or is too late."""
os.register_at_fork(after_in_child=APART.forget)
