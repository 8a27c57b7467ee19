"""One ploop block device: a queue in front of a stack, with the numbers and names that the tree shows.

Knows nothing of FUSE or of paths in the tree. The device, its open handles, its counters and its statistics outlive
every replaced top. Sizes and offsets are bytes.
"""

import itertools

from ploopfs.device.flavour import Flavour
from ploopfs.device.limits import QueueSettings, Tune
from ploopfs.device.queue import DEFAULT_BOUNDS, Bounds, RequestQueue
from ploopfs.device.replace import Replacement
from ploopfs.device.standby import StandbyKey
from ploopfs.device.stats import DiskStats, Op
from ploopfs.engine.counters import Counters
from ploopfs.engine.file import Buffer, Files
from ploopfs.engine.stack import Stack
from ploopfs.errors import BeyondEnd, ReadOnly

_diskseq = itertools.count(1)


class Device:
    """`size_bytes` is fixed when the device is made: a replaced top may be larger, the disk stays as it is."""

    def __init__(
        self,
        name: str,
        *,
        flavour: Flavour,
        key: StandbyKey,
        stack: Stack,
        files: Files,
        counters: Counters,
        bounds: Bounds = DEFAULT_BOUNDS,
    ) -> None:
        self.name = name
        self.flavour = flavour
        self.major = flavour.major
        self.minor = flavour.minor(name)
        self.diskseq = next(_diskseq)
        self.size_bytes = stack.size_bytes
        self.read_only = stack.read_only
        self.queue = RequestQueue(name, flavour, key, stack, bounds)
        self.counters = counters
        self.settings = QueueSettings()
        self.tune = Tune()
        self.open_count = 0
        self._replacement = Replacement(name, self.queue, files, size_bytes=stack.size_bytes, counters=counters)

    @property
    def stack(self) -> Stack:
        return self.queue.stack

    @property
    def stats(self) -> DiskStats:
        return self.queue.stats

    @property
    def last_error(self) -> str:
        """Why the last control operation failed; empty if it did not."""
        return self._replacement.last_error

    def opened(self) -> None:
        self.open_count += 1

    def released(self) -> None:
        self.open_count -= 1

    async def read(self, offset: int, length: int) -> Buffer:
        """The bytes of the range that exist: short or empty at the end of the device."""
        length = max(0, min(length, self.size_bytes - offset))
        self.counters.bio_in += 1
        async with self.queue.request(Op.READ, length) as stack:
            data = await stack.read(offset, length) if length else b""
        self.counters.bio_out += 1
        return data

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> int:
        """The number of bytes written: short where the device ends. Raises BeyondEnd at or past the end."""
        if self.read_only:
            raise ReadOnly(f"{self.name} is read-only")
        if offset >= self.size_bytes and data:
            raise BeyondEnd(f"{self.name}: a write at {offset}, past the end at {self.size_bytes}")
        data = data[: self.size_bytes - offset]
        self.counters.bio_in += 1
        self.counters.bio_fua_in += fua
        async with self.queue.request(Op.WRITE, len(data)) as stack:
            if data:
                fua = fua and bool(self.tune.pass_fuas)
                await stack.write(offset, data, fua=fua, check_zeros=bool(self.tune.check_zeros))
        self.counters.bio_out += 1
        return len(data)

    async def discard(self, offset: int, length: int) -> None:
        """Whole clusters of the range read as zeroes afterwards; the rest of the range is left alone."""
        if self.read_only:
            raise ReadOnly(f"{self.name} is read-only")
        length = max(0, min(length, self.size_bytes - offset))
        async with self.queue.request(Op.DISCARD, length) as stack:
            await stack.discard(offset, length)

    async def flush(self) -> None:
        """Every write acknowledged before is on stable storage."""
        self.counters.bio_flush_in += 1
        async with self.queue.request(Op.FLUSH) as stack:
            if self.tune.pass_flushes:
                await stack.flush()
            else:
                self.counters.bio_flush_skip += 1

    async def replace_top(self, path: str) -> None:
        """Put the image at `path` in the place of the top delta, and leave standby."""
        await self._replacement.replace_top(path)

    async def reopen(self) -> None:
        """Open the top's own path again: the same image on storage that has come back."""
        await self._replacement.reopen()

    async def aclose(self) -> bool:
        """Flush and close; raises if that fails. A store that is lost is not written to: then the answer is False, and
        the image keeps its in-use mark."""
        lost = not self.read_only and (self.queue.standby.refuses or self.queue.aborted)
        await self.stack.aclose(clean=not lost)
        return not lost
