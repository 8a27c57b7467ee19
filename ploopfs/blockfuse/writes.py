"""The writes of one connection for which there is no task, and their answers, which the kernel may send by itself.

Knows nothing of other requests. Invariants: a write has one answer; the descriptor's number is no other file's as long
as an answer may yet be sent to it.
"""

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from functools import cache, partial

import trio

from ploopfs.blockfuse import replies
from ploopfs.blockfuse.buffers import BUFFERS
from ploopfs.device.turn import Turn
from ploopfs.engine.file import Buffer
from ploopfs.engine.made_write import Made
from ploopfs.engine.ring_write import Reply
from ploopfs.sysfs.nodes import BlockDevice

log = logging.getLogger(__name__)

_NO_REPLY = frozenset({errno.ECANCELED, errno.ENOENT, errno.ENODEV})
"""The write has failed; the kernel has given up on this request; on all."""

Rest = Callable[[], Awaitable[None]]


@cache
def _void() -> int:
    """Open from the first connection on, as there may be no descriptor left when one is closed."""
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


class Writes:
    """By `unique`. `send` sends an answer, `go_on` starts a task for what a write has to wait for, and is told which it
    is, how many bytes it has and whether it was interrupted; `bug` is told of one that met a bug."""

    def __init__(
        self,
        device: BlockDevice,
        fd: int,
        send: Callable[[bytes], None],
        go_on: Callable[[int, int, Rest, int, bool], None],
        bug: Callable[[int], None],
    ) -> None:
        self._device, self._fd, self._send, self._go_on, self._bug = device, fd, send, go_on, bug
        self._interrupted: dict[int, bool] = {}
        self._left: dict[int, Reply] = {}
        self._is_closed = False
        self._void = _void()
        self._last_ended = trio.Event()

    def __len__(self) -> int:
        return len(self._interrupted)

    def __iter__(self) -> Iterator[int]:
        return iter(self._interrupted)

    def begin(self, unique: int, pid: int, offset: int, data: Buffer, made: Made | None = None) -> bool:
        """False: it has to wait in a task, and nothing was begun."""

        def written(rest: Rest | None) -> None:
            is_interrupted = self._interrupted.pop(unique)
            try:
                if rest is not None:
                    self._go_on(unique, pid, rest, len(data), is_interrupted)
                elif not reply.is_left:
                    self._send(reply.data)
                reply.is_due = rest is None
            except Exception:
                self._bug(unique)
            if not self._interrupted:
                self._last_ended.set()

        reply = Reply(self._fd, replies.written(unique, len(data)), partial(self._sent, unique), made)
        if not self._device.write_soon(offset, data, written, reply, None if made is None else made.pieces):
            return False
        self._interrupted[unique] = False
        if reply.is_left:
            self._left[unique] = reply
        return True

    def made(self, turn: Turn, unique: int, pid: int, offset: int, data: memoryview) -> Made | None:
        """In the turn of a thread: it is made and answered before there is anything noted of it. `data` is a part of
        the buffer in use. None: it is to `begin` as any."""
        pieces = turn.aim(offset, data)
        if pieces is None or turn.fd is None:
            return None
        notes, enters = partial(_note, turn, offset, data), partial(self._enter, turn, unique, pid, offset, data)
        return Made(turn.fd, pieces, self._fd, replies.written(unique, len(data)), notes, enters)

    def _enter(self, turn: Turn, unique: int, pid: int, offset: int, data: memoryview, made: Made, hangs: bool) -> None:
        turn.settle()
        kept = BUFFERS.kept(data)
        if hangs:
            BUFFERS.leave()  # the storage may yet take it from there
        is_begun = self.begin(unique, pid, offset, kept, made)
        assert is_begun, "nothing else has happened since it was aimed"

    def _sent(self, unique: int, result: int) -> None:
        """Of a reply that refers to this by no more than its number: with a cycle for each write the interpreter would
        spend a fifth of its time on finding them."""
        reply = self._left.pop(unique)
        if not self._left:
            self._last_ended.set()
        if self._is_closed:
            self._close()
        elif result < 0 and -result not in _NO_REPLY:
            log.error("an answer was refused: %s", os.strerror(-result))
            reply.is_left = False
            if reply.is_due:
                self._send(reply.data)

    def interrupt(self, unique: int) -> bool:
        """It counts for one that goes on in a task; whether this is one of these."""
        if unique not in self._interrupted:
            return False
        self._interrupted[unique] = True
        return True

    def forget(self, unique: int) -> None:
        """A bug has ended it."""
        self._interrupted.pop(unique, None)

    async def wait_ended(self) -> None:
        """And that the kernel has sent what was left to it: to a number that was closed no answer goes. One that goes
        on in a task has it then."""
        while self._interrupted or (self._left and not self._is_closed):
            self._last_ended = trio.Event()
            await self._last_ended.wait()

    def close(self) -> None:
        """The descriptor, for the kernel to fail what is under way; its number, when the last answer is over."""
        self._is_closed = True
        if self._left:
            os.dup2(self._void, self._fd, inheritable=False)
        else:
            self._close()

    def _close(self) -> None:
        if not self._left:
            os.close(self._fd)


def _note(turn: Turn, offset: int, data: memoryview, made: Made) -> None:
    turn.wrote(offset, BUFFERS.kept(data) if turn.is_kept else data, made.pieces, made.since_ns)
