"""Devices without requests: values that the tree shows, and a record of what it asked for.

The standby machine, signals, statistics and counters are the real ones, as they do not wait.
"""

from dataclasses import dataclass, field
from typing import cast

from ploopfs.device.active import ActiveTable
from ploopfs.device.agent import Agent
from ploopfs.device.device import Device
from ploopfs.device.events import DeviceEvents, Events
from ploopfs.device.flavour import VZ7, Flavour
from ploopfs.device.last_error import LastError
from ploopfs.device.limits import QueueSettings, Tune
from ploopfs.device.queue import RequestQueue
from ploopfs.device.registry import Registry
from ploopfs.device.signal import Signal
from ploopfs.device.standby import Standby, StandbyKey
from ploopfs.device.stats import DiskStats
from ploopfs.device.table import Table
from ploopfs.device.unflushed import Unflushed
from ploopfs.device.verify import Verify
from ploopfs.device.waiting import HoldPolicy, OnStandby, WaitingRoom
from ploopfs.engine.counters import Counters
from ploopfs.engine.inject.injector import Injector
from ploopfs.errors import PloopError
from ploopfs.scst.module import Scst
from ploopfs.sysfs.nodes import Attribute, Directory, Node
from ploopfs.sysfs.openfile import OpenAttribute, opening
from ploopfs.sysfs.proc import ABSENT, Host
from ploopfs.sysfs.tree import build
from ploopfs.testing.files import MemoryFiles

CLUSTER_BYTES = 1 << 20
DEVICE = "sys/devices/virtual/block/ploop0"


@dataclass(eq=False)
class FakeDelta:
    path: str
    writable: bool = True
    format: str = "ploop1"
    io_engine: str = "kaio"
    inode: int = 1234
    device_number: int = 8 << 8 | 17
    tracker: None = None
    preallocates: bool = False

    @property
    def header(self) -> object:
        return None if self.format == "raw" else self


@dataclass(eq=False)
class FakeStack:
    deltas: tuple[FakeDelta, ...]
    cluster_bytes: int = CLUSTER_BYTES
    format_version: int = 2

    @property
    def size_bytes(self) -> int:
        return 64 * self.cluster_bytes

    @property
    def top(self) -> FakeDelta:
        return self.deltas[-1]


@dataclass(eq=False)
class FakeQueue:
    standby: Standby
    stack: FakeStack = field(default_factory=lambda: FakeStack((FakeDelta("/images/disk.hds"),)))
    aborted: bool = False
    suspended: bool = False
    generation: int = 1
    parked: int = 0
    changed: Signal = field(default_factory=Signal)
    storage_full: Signal = field(default_factory=Signal)
    policy: HoldPolicy = field(default_factory=HoldPolicy)
    room: WaitingRoom = field(init=False)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.room = WaitingRoom(self.policy, 30)

    def set_on_standby(self, on_standby: OnStandby) -> None:
        self.policy.on_standby = on_standby

    def set_hold_timeout(self, timeout_ms: int) -> None:
        self.policy.timeout_ms = timeout_ms

    def fail_held(self) -> int:
        self.asked.append("fail_held")
        return 0

    def set_aborted(self, value: bool) -> None:
        self.aborted = value
        self.changed.fire()


@dataclass(eq=False)
class FakeMapper:
    """Its active table is the real one."""

    queue: FakeQueue
    name: str
    uuid: str = ""
    suspended: bool = False
    is_trusted: bool = True
    answer: str = ""
    inactive_table: Table | None = None
    inactive_status: str | None = None
    changed: Signal = field(default_factory=Signal)
    asked: list[str] = field(default_factory=list)
    active: ActiveTable = field(init=False)

    def __post_init__(self) -> None:
        self.active = ActiveTable(cast(RequestQueue, self.queue), read_only=False)
        self.active.changed.subscribe(self.changed.fire)

    async def load(self, text: str) -> None:
        self.asked.append(f"load {text}")

    async def clear(self) -> None:
        self.asked.append("clear")

    async def suspend(self, *, flush: bool) -> None:
        self.asked.append(f"suspend flush={flush}")

    async def resume(self) -> None:
        self.asked.append("resume")


@dataclass(eq=False)
class FakeDevice:
    stack: FakeStack
    queue: FakeQueue
    name: str = "ploop0"
    minor: int = 0
    flavour: Flavour = VZ7
    major: int = VZ7.major
    diskseq: int = 7
    size_bytes: int = 64 * CLUSTER_BYTES
    read_only: bool = False
    open_count: int = 0
    why: LastError = field(default_factory=LastError)
    unflushed: Unflushed = field(default_factory=lambda: Unflushed(1 << 20))
    stats: DiskStats = field(default_factory=DiskStats)
    counters: Counters = field(default_factory=Counters)
    settings: QueueSettings = field(default_factory=QueueSettings)
    tune: Tune = field(default_factory=Tune)
    mapper: FakeMapper | None = None
    injector: Injector = field(default_factory=Injector)
    all_events: Events = field(default_factory=Events)
    asked: list[str] = field(default_factory=list)
    refusal: PloopError | None = None
    replace_results: dict[tuple[str, str], int] = field(default_factory=dict)
    agent: Agent = field(init=False)

    def __post_init__(self) -> None:
        self.agent = Agent(cast(Device, self), MemoryFiles())

    async def set_aborted(self, aborted: bool) -> None:
        self.queue.set_aborted(aborted)

    @property
    def last_error(self) -> str:
        return self.why.text

    @property
    def events(self) -> DeviceEvents:
        return DeviceEvents(self.all_events, self.name)

    async def replace(self, path: str, *, level: int | None = None, verify: Verify = Verify.NONE) -> None:
        self._answer(f"replace {path}" if level is None else f"replace {path} level={level} verify={verify.value}")

    async def reopen(self) -> None:
        self._answer("reopen")

    async def flush(self) -> None:
        self._answer("flush")

    def _answer(self, asked: str) -> None:
        self.asked.append(asked)
        if self.refusal is not None:
            raise self.refusal


@dataclass(eq=False)
class FakeRegistry:
    pid: int = 4711
    devices: dict[str, FakeDevice] = field(default_factory=dict)
    key: StandbyKey = field(default_factory=lambda: StandbyKey(enabled=True))
    changed: Signal = field(default_factory=Signal)
    reload_asked: Signal = field(default_factory=Signal)
    events: Events = field(default_factory=Events)
    scst: Scst = field(init=False)
    _counted: dict[str, FakeDevice] = field(default_factory=dict)
    _census: Signal = field(default_factory=Signal)

    def __post_init__(self) -> None:
        self.scst = Scst(cast(Registry, self))

    @property
    def census(self) -> Signal:
        """Tests put devices in and take them out as they like."""
        if self._counted != self.devices:
            self._counted = dict(self.devices)
            self._census.fire()
        return self._census

    def lend(self, _name: str) -> float:
        return 0

    def add(self, *deltas: FakeDelta, name: str = "ploop0", flavour: Flavour = VZ7) -> FakeDevice:
        """A device whose two fuses are in (if it can have them), on the given deltas or on one."""
        standby = Standby(name, self.key)
        if flavour.supports_standby:
            standby.attach()
        stack = FakeStack(deltas or (FakeDelta("/images/disk.hds"),))
        queue = FakeQueue(standby, stack)
        device = FakeDevice(
            stack,
            queue,
            name,
            minor=flavour.minor(name),
            major=flavour.major,
            flavour=flavour,
            mapper=FakeMapper(queue, f"ploop{flavour.minor(name)}") if flavour.mapped else None,
        )
        self.devices[name] = device
        return device


def tree_of(registry: FakeRegistry, host: Host = ABSENT) -> Directory:
    return build(cast(Registry, registry), registry.scst, host)


def node_at(root: Directory, path: str) -> Node:
    node: Node = root
    for name in path.split("/"):
        assert isinstance(node, Directory)
        node = node.children()[name]
    return node


def opened(root: Directory, path: str, flags: int = 0) -> OpenAttribute:
    node = node_at(root, path)
    assert isinstance(node, Attribute)
    return opening(node, flags)


def text_of(root: Directory, path: str) -> str:
    """What cat(1) prints."""
    return opened(root, path).read(0, 1 << 16).decode()


async def write(root: Directory, path: str, text: str) -> None:
    """What printf(1) into the file does."""
    await opened(root, path, 1).write(0, text.encode())


def walk(root: Directory, prefix: str = "") -> list[tuple[str, Node]]:
    """Every node below `root` with its path, sorted by path."""
    found: list[tuple[str, Node]] = []
    for name, node in root.children().items():
        found.append((prefix + name, node))
        if isinstance(node, Directory):
            found += walk(node, f"{prefix}{name}/")
    return sorted(found, key=lambda entry: entry[0])
