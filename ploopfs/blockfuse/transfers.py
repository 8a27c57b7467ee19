"""Reads and writes of one connection that need to wait for nothing: from the buffer in use to the answer.

Knows no other requests, nor how a request comes there. Invariant: what is not for here is left as it is, and whoever
has asked for anything else has one answer.
"""

from collections.abc import Callable, Mapping

from ploopfs.blockfuse.buffers import BUFFERS
from ploopfs.blockfuse.protocol import READ, TRANSFER, TRANSFER_BYTES, WRITE
from ploopfs.blockfuse.sender import Sender
from ploopfs.blockfuse.writes import Writes
from ploopfs.device.turn import Turn
from ploopfs.engine.file import Buffer
from ploopfs.engine.made_write import Made
from ploopfs.engine.ring import Ring
from ploopfs.sysfs.nodes import BlockDevice
from ploopfs.sysfs.opendisk import OpenDisk


class Transfers:
    """`files` by their handle. `wrote` is told how long a write is that was begun, `start` of one that has to wait in a
    task (which it is, who asks, and what for), and `bug` of one that met a bug."""

    def __init__(
        self,
        device: BlockDevice,
        files: Mapping[int, OpenDisk],
        sender: Sender,
        writes: Writes,
        wrote: Callable[[int], None],
        start: Callable[[int, int, OpenDisk, int, Buffer], None],
        bug: Callable[[int], None],
    ) -> None:
        self._device, self._files, self._sender, self._writes = device, files, sender, writes
        self._wrote, self._start, self._bug = wrote, start, bug
        self._turn: Turn | None = None

    def end_turn(self) -> None:
        """Before anything else may happen: in whatever thread it was begun, or in the event loop, which goes on without
        that."""
        if self._turn is not None:
            turn, self._turn = self._turn, None
            turn.settle()

    def _begin_turn(self) -> Turn | None:
        self._turn = self._device.begin_turn()
        return self._turn

    def answered(self, count: int, ring: Ring | None) -> int | None:
        """How many bytes were read or written for the request of `count` bytes; None if it is not for here. What is
        left to `ring` is gathered there; without one, nobody would submit it."""
        size: int
        length, opcode, unique, _node, pid, fh, offset, size = TRANSFER.unpack_from(BUFFERS.current)
        try:
            if opcode == READ and length == count == TRANSFER_BYTES:
                turn = self._turn or self._begin_turn()
                body = None if turn is None else turn.read(offset, size)
                if body is None:
                    return None
                self._sender.send(unique, body)
            elif opcode == WRITE and length == count == TRANSFER_BYTES + size and fh in self._files:
                self.end_turn()
                if ring is not None:
                    ring.gather()
                file, data = self._files[fh], BUFFERS.kept(BUFFERS.current[TRANSFER_BYTES:count])
                if not file.fua and self._writes.begin(unique, pid, offset, data):
                    self._wrote(size)
                else:
                    self._start(unique, pid, file, offset, data)
            else:
                return None
        except Exception:
            self._writes.forget(unique)
            self._bug(unique)
        return size

    def made(self, count: int) -> Made | None:
        """The write that is asked for with so many bytes, for a thread that makes it; None if it is to be `answered`,
        perhaps."""
        length, opcode, unique, _node, pid, fh, offset, size = TRANSFER.unpack_from(BUFFERS.current)
        if opcode != WRITE or not length == count == TRANSFER_BYTES + size or fh not in self._files:
            return None
        try:
            turn = self._turn or self._begin_turn()
            if turn is None or self._files[fh].fua:
                return None
            made = self._writes.made(turn, unique, pid, offset, BUFFERS.current[TRANSFER_BYTES:count])
        except Exception:  # a bug, which `answered` meets again
            return None
        if made is not None:
            self._wrote(size)
        return made
