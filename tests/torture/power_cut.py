"""The power of a real file system is cut under a stack, again and again, while the engine uses it in this process.

Invariant: what a flush has confirmed is there, every other byte is an old one or a new one, and the images open without
a repair. The real twin of tests/engine/test_power.py.
"""

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import trio

from ploopfs.engine.counters import Counters
from ploopfs.engine.create import create_disk, snapshot_disk
from ploopfs.engine.opening import open_stack, resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.stack import Stack
from ploopfs.image.header import V2
from tests.mounted.disks import assert_closed, by_qemu, sums
from tests.torture.powered import Powered, powered
from tests.torture.report import Report

CLUSTER_BYTES = 32768
DISK_BYTES = 24 * CLUSTER_BYTES
MOST_CHANGES = 12


class Disk:
    """`flushed` is what must be there, `since` what was written over it and may be; `deltas` base first."""

    def __init__(self, directory: Path, random: Random) -> None:
        self.descriptor = create_disk(
            str(directory),
            size_sectors=DISK_BYTES // 512,
            cluster_sectors=CLUSTER_BYTES // 512,
            version=V2,
        )
        self.flushed = bytearray(DISK_BYTES)
        self.since: list[tuple[int, bytes]] = []
        self.deltas, self.lower_sums = 1, list[str]()
        self.calls: Counter[str] = Counter()
        self._random = random

    @property
    def paths(self) -> list[Path]:
        return [Path(image.path) for image in trio.run(resolve, OsFiles(), self.descriptor).images]

    async def use(self, store: Powered) -> None:
        """Opened, found to be what it has to be, changed and flushed, until the power is cut."""
        files = OsFiles()
        stack = await open_stack(files, await resolve(files, self.descriptor), read_only=False, counters=Counters())
        self.compare(await stack.read(0, DISK_BYTES))
        await stack.flush()
        self._is_flushed()
        for _ in range(self._random.randrange(MOST_CHANGES)):
            await self._change(stack)
            if self._random.random() < 0.3:
                await stack.flush()
                self._is_flushed()
                self.calls["flush"] += 1
        store.crash(self._random.getrandbits(32))
        await stack.aclose(clean=False)

    async def close(self) -> None:
        files = OsFiles()
        stack = await open_stack(files, await resolve(files, self.descriptor), read_only=False, counters=Counters())
        self.compare(await stack.read(0, DISK_BYTES))
        await stack.aclose(clean=True)

    def snapshot(self) -> None:
        """While it is closed."""
        snapshot_disk(self.descriptor)
        self.deltas += 1
        self.lower_sums = sums(self.paths[:-1])

    def assert_deltas(self) -> None:
        """After a power cut: as many as there were, and the lower ones untouched."""
        assert len(self.paths) == self.deltas
        assert sums(self.paths[:-1]) == self.lower_sums

    def compare(self, found: bytes | bytearray | memoryview) -> None:
        got = np.frombuffer(found, np.uint8)
        right = got == np.frombuffer(self.flushed, np.uint8)
        for offset, data in self.since:
            part = slice(offset, offset + len(data))
            right[part] |= got[part] == np.frombuffer(data, np.uint8)
        wrong = np.flatnonzero(~right)
        assert not len(wrong), f"{len(wrong)} bytes are neither what was flushed nor newer, the first at {wrong[0]}"
        self.flushed[:], self.since = found, []

    async def _change(self, stack: Stack) -> None:
        length = int(DISK_BYTES / 4 ** self._random.uniform(1, 8))
        offset = self._random.randrange(DISK_BYTES - length + 1)
        if self._random.random() < 0.2:
            self.since.append((offset, bytes(length)))
            self.calls["zeroes"] += 1
            await stack.write_zeroes(offset, length, unmap=self._random.random() < 0.5)
        else:
            data = self._random.randbytes(length)
            self.since.append((offset, data))
            self.calls["write"] += 1
            await stack.write(offset, data)

    def _is_flushed(self) -> None:
        for offset, data in self.since:
            self.flushed[offset : offset + len(data)] = data
        self.since = []


def torture(place: Path, random: Random, *, troubles: int) -> Report:
    """One disk, from its making to its end; each trouble is a power cut."""
    met: Counter[str] = Counter()
    with powered(place) as store:
        disk = Disk(store.bricks / "disk", random)
        for _ in range(troubles):
            if random.random() < 0.2:
                trio.run(disk.close)
                disk.snapshot()
                store.crash(random.getrandbits(32))
                met["power cut after a snapshot"] += 1
            else:
                trio.run(disk.use, store)
                met["power cut"] += 1
            store.remount()
            disk.assert_deltas()
        trio.run(disk.close)
        assert_closed(disk.paths[-1])
        disk.compare(by_qemu(disk.paths, place / "raw"))
    return Report(f"the engine, {disk.deltas} deltas", disk.calls, troubles=met)
