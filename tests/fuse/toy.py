"""A toy tree in a process of its own: `python -m tests.fuse.toy MOUNTPOINT` prints `ready` when it answers.

SIGTERM terminates the session, SIGINT cancels it. One node for each rule that the tests of the mounted tree prove.
"""

import logging
import os
import select
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import trio

from ploopfs.device.signal import Signal
from ploopfs.device.soon import Written
from ploopfs.device.stats import Op
from ploopfs.device.turn import Turn
from ploopfs.engine.file import Buffer
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.errors import BadValue, BeyondEnd, MountError
from ploopfs.fuse import mount
from ploopfs.fuse.loop import EventLoop
from ploopfs.fuse.mount import serve, terminate
from ploopfs.sysfs.nodes import Attribute, Directory, Disk, Link, Node

DISK_BYTES = 1 << 20
ALLOCATED_BYTES = DISK_BYTES // 4
MANY = 2000
MAX_TASKS = 300


class _AtHand(Turn):
    """Everything of these bytes; a thread is to write none."""

    __slots__ = ("_data",)

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def read(self, offset: int, length: int) -> memoryview:
        return self._data[offset : offset + length]

    def aim(self, offset: int, data: Buffer) -> None:
        """Nowhere."""

    def settle(self) -> None:
        """Nobody counts them."""


class MemoryDisk:
    """A disk that counts what is asked of it. `gate` is None, or an event that every read waits for."""

    def __init__(self, *, read_only: bool = False, gate: trio.Event | None = None) -> None:
        self.read_only, self._gate = read_only, gate
        self._data = bytearray(DISK_BYTES)
        self.flushes = self.fua_writes = self.writes = self.unmaps = self.open_count = self.waiting = 0

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    async def read(self, offset: int, length: int) -> memoryview:
        if self._gate is not None:
            self.waiting += 1
            await self._gate.wait()
        return memoryview(self._data)[offset : offset + length]

    def begin_turn(self) -> Turn | None:
        return None if self._gate is not None else _AtHand(memoryview(self._data))

    def write_soon(
        self,
        _offset: int,
        _data: Buffer,
        _written: Written,
        _reply: Reply | None = None,
        _pieces: Pieces | None = None,
    ) -> bool:
        return False

    def interrupt(self, _task: trio.lowlevel.Task, _op: Op) -> bool:
        return False

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> int:
        await trio.lowlevel.checkpoint()
        if offset >= self.size_bytes:
            raise BeyondEnd("at the end")
        taken = data[: self.size_bytes - offset]
        self._data[offset : offset + len(taken)] = taken
        self.writes += 1
        self.fua_writes += fua
        return len(taken)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        await trio.lowlevel.checkpoint()
        if offset >= self.size_bytes:
            raise BadValue("at the end")
        taken = min(length, self.size_bytes - offset)
        self._data[offset : offset + taken] = bytes(taken)
        self.unmaps += unmap

    def seek_data(self, offset: int) -> int | None:
        return offset if offset < self.size_bytes else None

    def seek_hole(self, _offset: int) -> int:
        return self.size_bytes

    @property
    def allocated_bytes(self) -> int:
        return ALLOCATED_BYTES

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self.flushes += 1

    def opened(self) -> None:
        self.open_count += 1

    def released(self) -> None:
        self.open_count -= 1

    def counts(self) -> str:
        return f"{self.writes} {self.fua_writes} {self.flushes}"


class CountingLoop(EventLoop):
    """Counts how often pyfuse3 waits for a request. Has `victim` been told, it is killed when the next one was seen,
    which is its own, and before pyfuse3 reads it; the event loop says `taken back` when it comes round."""

    waits = 0
    victim: int | None = None

    def __init__(self, is_needed: Callable[[], bool]) -> None:
        super().__init__(is_needed)
        self.lowlevel.wait_readable = partial(self._count, self.lowlevel.wait_readable)  # type: ignore[method-assign]

    async def _count(self, wait_readable: Callable[[int], Awaitable[None]], fd: int) -> None:
        CountingLoop.waits += 1
        await wait_readable(fd)
        if CountingLoop.victim is not None:
            victim, CountingLoop.victim = os.pidfd_open(CountingLoop.victim), None
            signal.pidfd_send_signal(victim, signal.SIGKILL)
            select.select([victim], [], [])
            os.close(victim)
            assert select.select([fd], [], [], 0)[0] == [], "the next request was another's"
            trio.lowlevel.spawn_system_task(_say_taken_back)


async def _say_taken_back() -> None:
    print("taken back", flush=True)


class Toy:
    def __init__(self) -> None:
        self.shown, self.text, self.level = 0, "first", "off"
        self.changed = Signal()
        self.names: dict[str, Node] = {}
        self.gate = trio.Event()
        self.disk, self.stuck = MemoryDisk(), MemoryDisk(gate=self.gate)
        self.many: dict[str, Node] = {f"entry{number:04}": Attribute(str) for number in range(MANY)}
        self.nodes: dict[str, Node] = {
            "counter": Attribute(self._count),
            "text": Attribute(lambda: self.text, self._store_text),
            "write_only": Attribute(None, self._store_text),
            "long": Attribute(lambda: "x" * 5000),
            "einval": Attribute(self._einval),
            "bug": Attribute(self._bug, self._store_bug),
            "level": Attribute(lambda: self.level, None, self.changed),
            "toggle": Attribute(None, self._toggle),
            "names": Attribute(None, self._name),
            "counts": Attribute(self.disk.counts),
            "opened": Attribute(lambda: str(self.disk.open_count)),
            "waiting": Attribute(lambda: str(self.stuck.waiting)),
            "waits": Attribute(lambda: str(CountingLoop.waits)),
            "unstick": Attribute(None, self._unstick),
            "victim": Attribute(None, self._kill),
            "link": Link("dev/disk"),
        }
        devices: dict[str, Node] = {
            "disk": Disk(self.disk),
            "read_only": Disk(MemoryDisk(read_only=True)),
            "stuck": Disk(self.stuck),
        }
        for name, children in {"dev": devices, "many": self.many, "changing": self.names}.items():
            self.nodes[name] = Directory(lambda children=children: children)  # type: ignore[misc]
        self.nodes["fixed"] = Directory(lambda: {"value": self.nodes["text"], "changing": self.nodes["changing"]}, True)
        self.root = Directory(self._root)

    def _root(self) -> Mapping[str, Node]:
        return self.nodes

    def _count(self) -> str:
        self.shown += 1
        return str(self.shown)

    async def _store_text(self, text: str) -> None:
        if text.startswith("bad"):
            raise BadValue(text)
        self.text = f"{len(text)}:{text[:20].rstrip()}"

    def _einval(self) -> str:
        raise BadValue("never a value")

    def _bug(self) -> str:
        raise RuntimeError("a bug in show")

    async def _store_bug(self, _text: str) -> None:
        raise ExceptionGroup("bugs", [ValueError("a bug in store")])

    async def _toggle(self, text: str) -> None:
        self.level = text.strip()
        self.changed.fire()

    async def _name(self, text: str) -> None:
        """Make `changing` list exactly these names; those that stay keep their nodes."""
        kept = {name: self.names.get(name) or Attribute(str) for name in text.split()}
        self.names.clear()
        self.names.update(kept)

    async def _kill(self, text: str) -> None:
        CountingLoop.victim = int(text)

    async def _unstick(self, _text: str) -> None:
        self.gate.set()


async def main(mountpoint: str) -> None:
    logging.basicConfig(level=logging.INFO)
    mount.EventLoop = CountingLoop  # type: ignore[attr-defined]
    async with trio.open_nursery() as nursery:
        await nursery.start(_on_signals, nursery.cancel_scope)
        tree = Toy().root

        async def serving(task_status: trio.TaskStatus[None]) -> None:
            await serve(tree, mountpoint, allow_other=False, max_tasks=MAX_TASKS, task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(serving)
        print("ready", flush=True)


async def _on_signals(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        async for number in received:
            if number == signal.SIGTERM:
                terminate()
            else:
                scope.cancel()


if __name__ == "__main__":
    try:
        trio.run(main, os.fspath(sys.argv[1]))
    except* MountError as group:
        sys.exit(f"refused: {group.exceptions[0]}")
