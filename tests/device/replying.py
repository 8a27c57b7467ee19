"""A storage that has everything at hand and sends the replies that are left to it, as io_uring does.

Invariant: a reply is sent in one call after the last piece was written, to whatever its number is then; `sent` hears
the result once, after `answered`: `gap`, where there is one, has to be set in between."""

import errno
import os
from contextvars import copy_context

import trio

from ploopfs.engine.file import Answered, File
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.errors import BackendError
from tests.device.ready import ReadyFile, ReadyFiles


class ReplyingFile(ReadyFile):
    """`gap`: what lies between the end of the write and the reply. `refusal`: what a reply meets instead."""

    gap: trio.Event | None = None
    refusal: int | None = None

    def write_soon(self, pieces: Pieces, answered: Answered, reply: Reply | None = None) -> bool:
        if reply is None:
            return super().write_soon(pieces, answered)
        reply.is_left = True

        async def write() -> None:
            try:
                for offset, data in pieces:
                    await self.write(offset, data)
            except BackendError as error:
                answered(error)
                reply.sent(-errno.ECANCELED)
                return
            if self.gap is None:
                result = self._send(reply)
                answered(None)
            else:
                answered(None)
                await self.gap.wait()
                result = self._send(reply)
            await trio.lowlevel.checkpoint()
            reply.sent(result)

        trio.lowlevel.spawn_system_task(write, context=copy_context())
        return True

    def _send(self, reply: Reply) -> int:
        if self.refusal is not None:
            return -self.refusal
        try:
            return os.write(reply.fd, reply.data)
        except OSError as error:
            return -(error.errno or 0)


class ReplyingFiles(ReadyFiles):
    def wrap(self, file: File) -> ReplyingFile:
        return ReplyingFile(file, self.faults)
