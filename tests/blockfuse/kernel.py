"""Stands for the kernel at the other end of a connection: sends requests, and sees what is answered.

A pair of sockets that keep the bounds of messages, as /dev/fuse does. The layouts are written down here once more, as
tuples of widths, so that a mistake in the product's is none in here.
"""

import errno
import itertools
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
import trio.testing

from ploopfs.blockfuse import connection as connection_module
from ploopfs.blockfuse import transfers as transfers_module
from ploopfs.blockfuse import writes as writes_module
from ploopfs.blockfuse.buffers import Buffers
from ploopfs.blockfuse.connection import Connection
from ploopfs.blockfuse.front import Front
from ploopfs.sysfs.nodes import BlockDevice, Disk

GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 3, 4, 14, 15, 16, 17, 18, 20
FLUSH, INIT, INTERRUPT, DESTROY, IOCTL, POLL, BATCH_FORGET, FALLOCATE, LSEEK = 25, 26, 36, 38, 39, 40, 42, 43, 46
FORGET, LOOKUP, GETXATTR, ACCESS = 2, 1, 22, 34

_SENT = Path(__file__).resolve().parents[1] / "data/fuse/linux-6.18.txt"
SENT_BY_LINUX = {name: bytes.fromhex(sent) for name, sent in map(str.split, _SENT.read_text().splitlines())}
"""What the kernel has sent to a connection, each read whole."""

PID = 4711
U16, U32, U64 = 2, 4, 8


def packed(*fields: tuple[int, int]) -> bytes:
    """Each field as its width and its value."""
    return b"".join(value.to_bytes(width, "little") for width, value in fields)


def request(opcode: int, body: bytes = b"", *, unique: int, node: int = 1, uid: int = 0, pid: int = PID) -> bytes:
    length = 40 + len(body)
    fields = (U32, length), (U32, opcode), (U64, unique), (U64, node), (U32, uid), (U32, 0), (U32, pid), (U32, 0)
    return packed(*fields) + body


def transfer(fh: int, offset: int, size: int) -> bytes:
    """fuse_read_in and fuse_write_in."""
    return packed((U64, fh), (U64, offset), (U32, size), (U32, 0), (U64, 0), (U32, 0), (U32, 0))


def init(*, major: int = 7, minor: int = 45, flags: int = 0xFFFFFFFF) -> bytes:
    return packed((U32, major), (U32, minor), (U32, 1 << 17), (U32, flags), *[(U32, 0)] * 12)


def setattr_of(valid: int, *, size: int = 0, mode: int = 0, uid: int = 0, gid: int = 0, time_s: int = 0) -> bytes:
    longs = (U64, 0), (U64, size), (U64, 0), (U64, time_s), (U64, time_s), (U64, 0)
    return packed((U32, valid), (U32, 0), *longs, *((U32, each) for each in (7, 8, 0, mode, 0, uid, gid, 0)))


def fallocate(fh: int, offset: int, length: int, mode: int) -> bytes:
    return packed((U64, fh), (U64, offset), (U64, length), (U32, mode), (U32, 0))


def lseek(fh: int, offset: int, whence: int) -> bytes:
    return packed((U64, fh), (U64, offset), (U32, whence), (U32, 0))


def ioctl(fh: int, command: int, out_size: int = 0) -> bytes:
    return packed((U64, fh), (U32, 0), (U32, command), (U64, 0), (U32, 0), (U32, out_size))


class Answer(NamedTuple):
    unique: int
    errno: int
    body: bytes

    def number(self, at: int = 0, width: int = U64) -> int:
        return int.from_bytes(self.body[at : at + width], "little")


class Kernel:
    """`answers` in the order in which they came; `answer` waits for the one to a request. `scope` is around the
    `connection`."""

    connection: Connection

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._uniques = itertools.count(0x5EED << 32, 2)
        self.answers: list[Answer] = []
        self.scope = trio.CancelScope()

    async def ask(self, opcode: int, body: bytes = b"", *, node: int = 1, uid: int = 0, pid: int = PID) -> int:
        """Send a request; the number by which it is known."""
        unique = next(self._uniques)
        await self.send(request(opcode, body, unique=unique, node=node, uid=uid, pid=pid))
        return unique

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        while not self.sent(data):
            await trio.lowlevel.checkpoint()

    def sent(self, data: bytes) -> bool:
        """False: there is no room for it yet."""
        try:
            self._sock.send(data)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                return False
            raise
        return True

    async def answer(self, unique: int) -> Answer:
        while True:
            for answer in self.answers:
                if answer.unique == unique:
                    return answer
            if not self._took():
                await trio.lowlevel.wait_readable(self._sock)

    async def call(self, opcode: int, body: bytes = b"", *, uid: int = 0) -> Answer:
        return await self.answer(await self.ask(opcode, body, uid=uid))

    async def open(self, flags: int = os.O_RDWR) -> int:
        opened = await self.call(OPEN, packed((U32, flags), (U32, 0)))
        assert opened.errno == 0, errno.errorcode[opened.errno]
        return opened.number()

    async def interrupt(self, unique: int) -> None:
        await self.send(request(INTERRUPT, packed((U64, unique)), unique=unique | 1))

    async def settled(self) -> list[Answer]:
        """All answers, when nothing more happens by itself."""
        await trio.testing.wait_all_tasks_blocked()
        self.took_all()
        return self.answers

    def _took(self) -> bool:
        """False: there is no answer yet."""
        try:
            data = self._sock.recv(1 << 21)
        except BlockingIOError:
            return False
        assert data, "the connection has ended"
        length, number = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little", signed=True)
        assert length == len(data)
        unique = int.from_bytes(data[8:16], "little")
        assert all(answer.unique != unique for answer in self.answers), f"{unique} is answered twice"
        self.answers.append(Answer(unique, -number, data[16:]))
        return True

    def took_all(self) -> int:
        """Take what is answered already; how many that makes."""
        while self._took():
            pass
        return len(self.answers)

    @property
    def has_hung_up(self) -> bool:
        return self._sock.fileno() < 0

    def hang_up(self) -> None:
        self._sock.close()


def read_into(buffers: Buffers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the connections read."""
    for module in (connection_module, transfers_module, writes_module):
        monkeypatch.setattr(module, "BUFFERS", buffers)


@asynccontextmanager
async def connected(device: BlockDevice, disk: Disk | None = None) -> AsyncIterator[Kernel]:
    """A connection that has agreed; it has ended when the block has."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        end.setblocking(False)
    kernel = Kernel(ours)
    connection = kernel.connection = Connection(theirs.detach(), Front(disk or Disk(device)))
    async with trio.open_nursery() as nursery:
        await kernel.ask(INIT, init())
        await nursery.start(_run, connection, kernel.scope)
        await kernel.settled()
        try:
            yield kernel
        finally:
            kernel.hang_up()


async def _run(connection: Connection, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    with scope:
        await connection.run(task_status=task_status)
