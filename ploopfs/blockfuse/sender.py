"""Answers to the kernel, each in one call.

Knows nothing of requests. Invariant: nothing is written to a descriptor that is closed.
"""

import errno
import logging
import os
from contextlib import suppress

from ploopfs.blockfuse import replies
from ploopfs.engine.file import Buffer

log = logging.getLogger(__name__)


class Sender:
    """To `fd`, until it is `closed`. Each answer names the request by its `unique`."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def closed(self) -> None:
        self._fd = -1

    def send(self, unique: int, body: Buffer) -> None:
        self._write(replies.header(unique, len(body)), body)

    def send_whole(self, answer: bytes) -> None:
        """With its header."""
        self._write(answer)

    def fail(self, unique: int, number: int) -> None:
        self._write(replies.failure(unique, number))

    def _write(self, *parts: Buffer) -> None:
        if self._fd < 0:
            return
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            # ENOENT: the kernel has given up on this request. ENODEV: on all, as the next read says.
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return
            log.exception("an answer was refused")
            with suppress(OSError):
                os.write(self._fd, replies.failure(replies.unique_of(parts[0]), errno.EIO))
