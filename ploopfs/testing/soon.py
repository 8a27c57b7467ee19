"""`File.write_soon` for files in memory: a task that nobody waits for does what `write` does.

Knows nothing of what the file makes of that. Invariant: who asked hears of it once, and in another turn."""

from contextvars import copy_context
from functools import partial

import trio

from ploopfs.engine.file import Answered, File
from ploopfs.engine.left_to_loop import leave_to_loop
from ploopfs.engine.ring_write import Pieces
from ploopfs.errors import BackendError


def write_soon(file: File, pieces: Pieces, answered: Answered) -> bool:
    async def write() -> None:
        try:
            for offset, data in pieces:
                await file.write(offset, data)
        except BackendError as error:
            answered(error)
        else:
            answered(None)

    leave_to_loop(partial(trio.lowlevel.spawn_system_task, write, context=copy_context()))
    return True
