"""A device of three deltas on storage in memory that fails on command.

The disk has six clusters: 0, 1 and 2 in the base, 1 again in the middle, 2 again in the top, the rest in nobody.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from ploopfs.device.bounds import Bounds
from ploopfs.device.device import Device
from ploopfs.device.flavour import VZ7, Flavour
from ploopfs.device.queue import RequestQueue
from ploopfs.device.registry import Registry
from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.engine.inject.rule import Rule
from ploopfs.errors import BackendError, PloopError
from ploopfs.image.header import HEADER_BYTES, Header
from ploopfs.scst.module import Scst
from ploopfs.testing.faulty import Faults, FaultyFiles
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder

CLUSTER = 32768
DISK_CLUSTERS = 6
DISK_BYTES = DISK_CLUSTERS * CLUSTER
BASE, MIDDLE, TOP, NEW = "/store/base.hds", "/store/middle.hds", "/store/top.hds", "/other/top.hds"
STACK = (BASE, MIDDLE, TOP)
CHANGES = frozenset({"write", "truncate", "punch hole"})
"""Operations that change a file."""

REQUESTS: dict[Op, Callable[[Device], Awaitable[object]]] = {
    Op.READ: lambda device: device.read(2 * CLUSTER, 512),
    Op.WRITE: lambda device: device.write(2 * CLUSTER, b"w" * 512),
    Op.DISCARD: lambda device: device.discard(2 * CLUSTER, CLUSTER),
    Op.FLUSH: lambda device: device.flush(),
}
"""One request of each kind; each reaches the top."""


def cluster_of(letter: bytes) -> bytes:
    return letter * CLUSTER


CONTENT = b"".join(map(cluster_of, (b"a", b"m", b"t", b"\0", b"\0", b"\0")))
"""What the disk reads as before anybody writes."""


def image(clusters: dict[int, bytes], **fields: object) -> ImageBuilder:
    """`clusters` gives the letter that fills a cluster."""
    builder = ImageBuilder(DISK_CLUSTERS, clusters={slot: cluster_of(letter) for slot, letter in clusters.items()})
    for name, value in fields.items():
        setattr(builder, name, value)
    return builder


def three_deltas() -> dict[str, bytes]:
    return {
        BASE: image({0: b"a", 1: b"b", 2: b"c"}).build(),
        MIDDLE: image({1: b"m"}).build(),
        TOP: image({2: b"t"}).build(),
    }


@dataclass(slots=True)
class Rig:
    """The device with what is around it: the store below, the target above."""

    store: MemoryFiles
    faults: Faults
    registry: Registry
    scst: Scst
    device: Device

    @property
    def queue(self) -> RequestQueue:
        return self.device.queue

    @property
    def state(self) -> State:
        return self.queue.standby.state

    async def content(self) -> bytes:
        return bytes(await self.device.read(0, DISK_BYTES))

    def is_marked(self, path: str) -> bool:
        return Header.parse(self.store.bytes_of(path)[:HEADER_BYTES], path).is_marked_in_use

    def copy(self, path: str, to: str) -> None:
        self.store.put(to, self.store.bytes_of(path))

    def lose(self, errno: int, *operations: str, path: str = TOP, skip: int = 0, count: int | None = None) -> Rule:
        """From now on the storage answers these operations (none: all) on `path` with `errno`."""
        return self.faults.on(path, self.faults.fail(errno, *operations, skip=skip, count=count))

    def hang(self, *operations: str, path: str = TOP, skip: int = 0, count: int | None = None) -> trio.Event:
        """From now on the storage does not answer these operations on `path` until the event is set."""
        rule = self.faults.on(path, self.faults.pause(*operations, count=count))
        rule.skip = skip
        assert rule.released is not None
        return rule.released

    def changes_of(self, path: str, since: int = 0) -> list[str]:
        """Operations that would change the file, from entry `since` of the log on."""
        return [operation for operation, of in self.faults.log[since:] if of == path and operation in CHANGES]

    async def enter_standby(self, errno: int) -> Rule:
        """By a read of the top that meets `errno`, as everything on the top does from then on."""
        rule = self.lose(errno)
        assert await errno_of(REQUESTS[Op.READ](self.device)) == errno
        assert self.state is State.ON
        return rule


async def rig_of(
    images: dict[str, bytes],
    *,
    stack: Sequence[str] | None = None,
    armed: bool = True,
    read_only: bool = False,
    bounds: Bounds | None = None,
    storage: type[FaultyFiles] = FaultyFiles,
    name: str = "ploop0",
    flavour: Flavour = VZ7,
) -> Rig:
    """A device on `stack` (all `images`, base first); `armed`: both fuses are in."""
    store, faults = MemoryFiles(), Faults()
    for path, content in images.items():
        store.put(path, content)
    registry = Registry()
    scst = Scst(registry)
    device = await registry.add(
        name,
        flavour=flavour,
        image=list(stack or images),
        files=storage(store, faults),
        read_only=read_only,
        bounds=bounds or Bounds(),
    )
    if armed:
        scst.load()
        scst.attach(device)
    return Rig(store, faults, registry, scst, device)


async def errno_of(call: Awaitable[object]) -> int:
    """The errno that a call fails with, 0 if it does not."""
    try:
        await call
    except PloopError as error:
        return error.errno
    return 0


def backend_error(errno: int, path: str = TOP) -> BackendError:
    return BackendError(errno, "read", path, offset=0, length=512)


class Asked:
    """A call that runs beside the test until it has `ended`; then `error`, or `value`."""

    def __init__(self, nursery: trio.Nursery, call: Awaitable[object]) -> None:
        self.ended = False
        self.value: object = None
        self.error: PloopError | None = None
        self.cancel_scope = trio.CancelScope()
        nursery.start_soon(self._run, call)

    @property
    def errno(self) -> int:
        assert self.ended
        return self.error.errno if self.error else 0

    async def _run(self, call: Awaitable[object]) -> None:
        with self.cancel_scope:
            try:
                self.value = await call
            except PloopError as error:
                self.error = error
        self.ended = True
