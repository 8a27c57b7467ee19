"""The world of one run: stores, disks as their users know them, and the daemon that serves them until it is killed.

A disk outlives the daemons. Whatever the stores answer and the devices say passes here, and is compared with the rules
of each disk at once. Knows nothing of who does what, or when.
"""

import logging
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random

import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.device import Device
from ploopfs.device.events import Record
from ploopfs.device.flavour import Flavour
from ploopfs.device.recovery import Patience, Recovery, Reopen
from ploopfs.device.registry import Registry
from ploopfs.device.waiting import OnStandby
from ploopfs.engine.file import File
from ploopfs.engine.opening import RAW_PREFIX
from ploopfs.errors import PloopError
from ploopfs.image.check import Verdict
from ploopfs.scst.module import Scst
from ploopfs.sysfs.nodes import Directory
from ploopfs.sysfs.tree import build
from tests.engine.disk import verdict
from tests.storm.counting import Counted
from tests.storm.model import Model
from tests.storm.platter import Platter
from tests.storm.rules import Rules
from tests.storm.store import ORIGIN, Origin, Stores, StormFile, asked_by
from tests.storm.trace import Trace, Violation
from tests.sysfs.fakes import write

BOUNDS = Bounds(
    requests=48,
    park_timeout_s=20,
    quiesce_timeout_s=4,
    held_requests=16,
    held_bytes=256 << 10,
    unflushed_bytes=192 << 10,
)
HOLD_TIMEOUT_MS = 15_000
PATIENT = Patience(backoff_s=0.5, backoff_max_s=4, settle_s=5, probe_interval_s=0.3, probe_timeout_s=2)
FLUSHED = 0.8
CLUSTER_BYTES = 32768
_IN_USE_OFFSET = 44


@dataclass(eq=False)
class Disk:
    """`paths` is base first. `frozen` is what each lower image must read as. `targets` are images that an operation in
    progress may write beside the top, `mirrors` those that the agent may put in its place. `silence` is held by who
    wants no changes."""

    name: str
    flavour: Flavour
    paths: list[str]
    model: Model
    has_agent: bool
    starts_attached: bool
    raw_base: str | None = None
    mirrors: set[str] = field(default_factory=set)
    frozen: dict[str, bytes] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    made: int = 0
    requests: int = 0
    is_operated: bool = False
    is_silent: bool = False
    is_open: bool = False
    generation: int = 1
    doubts_at_begin: int | None = None
    rules: Rules = field(init=False)
    device: Device = field(init=False)
    counted: Counted = field(init=False)

    def __post_init__(self) -> None:
        self.rules = Rules(self.name)

    @property
    def top(self) -> str:
        return self.paths[-1]

    @property
    def directory(self) -> str:
        return f"sys/devices/virtual/block/{self.name}"

    @property
    def is_degraded(self) -> bool:
        """An error target is in the place of its images."""
        return self.device.mapper is not None and self.device.mapper.active.is_error

    @property
    def images(self) -> list[str]:
        """As a user names them."""
        return [RAW_PREFIX * (path == self.raw_base) + path for path in self.paths]

    def owns(self, path: str) -> bool:
        """It may write there."""
        return path == self.top or path in self.targets or path in self.mirrors

    def new_path(self, store: str) -> str:
        self.made += 1
        return f"/{store}/{self.name}-{self.made}.hds"

    @contextmanager
    def may_write(self, path: str) -> Iterator[None]:
        self.targets[path] = self.targets.get(path, 0) + 1
        try:
            yield
        finally:
            self.targets[path] -= 1
            if not self.targets[path]:
                del self.targets[path]


class _LogCounter(logging.Handler):
    """Counts the lines of each transition of each device."""

    def __init__(self) -> None:
        super().__init__(level=logging.INFO)
        self.lines: dict[tuple[str, str], int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        for kind, text in (("on", " was switched into the standby mode"), ("off", " left the standby mode")):
            if message.endswith(text):
                key = (message.removesuffix(text), kind)
                self.lines[key] = self.lines.get(key, 0) + 1


class World:
    """`daemon` is the nursery of the present daemon's tasks."""

    def __init__(self, trace: Trace, random: Random, nursery: trio.Nursery) -> None:
        self.trace, self.random = trace, random
        self.platter = Platter()
        self.stores = Stores(self.platter, Random(random.getrandbits(64)), self, nursery)
        self.disks: dict[str, Disk] = {}
        self.violation: Violation | None = None
        self.log = _LogCounter()
        self.answers: Counter[tuple[str, str]] = Counter()
        """Requests that reached the storage and ended, since the daemon began: by disk and kind."""
        self._stalled = 0
        self.stalled_before_s = 0.0
        self.stalled_since_s: float | None = None
        self.daemon: trio.Nursery
        self.registry: Registry
        self.scst: Scst
        self.tree: Directory
        self._nursery = nursery
        self._ended = trio.Event()
        self._seen_events = 1

    def stalled_s(self) -> float:
        """For how long some store has not answered, until now."""
        now_s = trio.current_time()
        return self.stalled_before_s + (now_s - self.stalled_since_s if self.stalled_since_s is not None else 0)

    def stalls(self, by: int) -> None:
        """That many stores more do not answer."""
        now_s = trio.current_time()
        if self.stalled_since_s is not None:
            self.stalled_before_s += now_s - self.stalled_since_s
        self._stalled += by
        self.stalled_since_s = now_s if self._stalled else None

    def fail(self, text: str) -> None:
        """For where an exception would be taken for the product's: the run ends at the next look."""
        if self.violation is None:
            self.violation = Violation(text)

    # --- the daemon -----------------------------------------------------------------------------------------------

    async def boot(self) -> None:
        """Most daemons flush in the background; of one that does not, whoever writes at the bound waits for a flush."""
        started = trio.Event()
        self._ended = trio.Event()
        self._nursery.start_soon(self._live, started)
        await started.wait()
        self.registry = Registry()
        self.scst = Scst(self.registry)
        self.tree = build(self.registry, self.scst)
        self._seen_events = 1
        self.log.lines.clear()
        self.answers.clear()
        for disk in self.disks.values():
            disk.rules = Rules(disk.name)
            disk.generation, disk.doubts_at_begin = 1, None
            disk.device = await self.registry.add(
                disk.name, flavour=disk.flavour, image=disk.images, files=self.stores, bounds=BOUNDS
            )
            disk.is_open = True
            disk.counted = Counted(disk.device.queue)
            if disk.device.read_only:
                raise Violation(f"{disk.name}: a sound image was opened read-only")
            self._follow_size(disk)
            disk.device.queue.changed.subscribe(partial(self._queue_changed, disk))
            disk.device.queue.set_hold_timeout(HOLD_TIMEOUT_MS)
            disk.device.queue.set_on_standby(self.random.choice(tuple(OnStandby)))
            if disk.has_agent:
                disk.device.agent.configure(Recovery(Reopen(), PATIENT))
            with asked_by(Origin(disk.name, is_request=False)):
                self.daemon.start_soon(disk.device.agent.run)
            with asked_by(Origin(disk.name, is_request=True)):
                if self.random.random() < FLUSHED:
                    self.daemon.start_soon(disk.device.flusher.run)
        self.registry.events.changed.subscribe(self._look_at_events)
        self._look_at_events()
        await self.control("sys/fs/ploopfs/modprobe", "scst")
        for disk in self.disks.values():
            if disk.starts_attached:
                self.attach(disk)

    async def _live(self, started: trio.Event) -> None:
        try:
            async with trio.open_nursery() as self.daemon:
                started.set()
                await trio.sleep_forever()
        finally:
            self._ended.set()

    async def kill(self, *, power: bool) -> None:
        """Every task ends where it stands; with `power` the stores forget what was not synced."""
        self.stores.kill()
        for disk in self.disks.values():
            disk.paths = [delta.path for delta in disk.device.stack.deltas] or disk.paths
            disk.is_open = False
        self.daemon.cancel_scope.cancel()
        await self._ended.wait()
        self.stores.bury()
        for disk in self.disks.values():
            for path in disk.paths if power else ():
                self.platter.crash(path, self.stores.random)
            if not self.is_marked(disk.top):
                disk.model.flushed(disk.model.mark())  # a mark that is gone vouches for everything
            disk.model.restarted(lost_all=power)
            disk.is_operated = disk.is_silent = disk.is_open = False
            disk.requests = 0
            self.check_images(disk, closed=False)
            self.clear_mark(disk.top)

    def is_marked(self, path: str) -> bool:
        (in_use,) = struct.unpack_from("<I", self.platter.seen(path), _IN_USE_OFFSET)
        return bool(in_use)

    def clear_mark(self, path: str) -> None:
        """What a user does after a check, durably."""
        self.platter.drop_cache(path)
        image = bytearray(self.platter.seen(path))
        struct.pack_into("<I", image, _IN_USE_OFFSET, 0)
        image.extend(bytes(-len(image) % CLUSTER_BYTES))
        self.platter.put(path, bytes(image))

    def check_images(self, disk: Disk, *, closed: bool) -> None:
        expected = (Verdict.CLEAN,) if closed else (Verdict.CLEAN, Verdict.NOT_CLOSED)
        for path in disk.paths:
            report = None if path == disk.raw_base else verdict(self.platter.seen(path), path)
            if report is not None and report.verdict not in (expected if path == disk.top else (Verdict.CLEAN,)):
                raise Violation(f"{path}: the check says {report}")
            if path in disk.frozen and path != disk.top and self.platter.seen(path) != disk.frozen[path]:
                raise Violation(f"{path}: a lower delta was changed")

    # --- what the operators do ------------------------------------------------------------------------------------

    async def control(self, path: str, text: str) -> PloopError | None:
        """Write a control file of the tree; what it answers."""
        try:
            await write(self.tree, path, text)
        except PloopError as error:
            return error
        return None

    async def tell(self, disk: Disk, file: str, text: str) -> PloopError | None:
        with asked_by(Origin(disk.name, is_request=False)):
            return await self.control(f"{disk.directory}/{file}", text)

    def attach(self, disk: Disk) -> None:
        disk.rules.attached()
        self.scst.attach(disk.device)

    def detach(self, disk: Disk) -> None:
        if not disk.rules.keeps_for_recovery:
            disk.model.forget_kept()
        disk.rules.detached()
        self.scst.core.delete_device(disk.name)

    # --- what the stores and the devices say ----------------------------------------------------------------------

    def answered(self, file: "object", number: int, operation: str) -> None:
        origin = ORIGIN.get()
        if origin is not None and origin.device in self.disks:
            asked = [self.disks[origin.device]]
        else:  # by nobody: a device is being closed, and takes a lock back
            asked = [disk for disk in self.disks.values() if _is_in_force(disk, file)]
        for disk in asked:
            disk.rules.answered(
                number,
                operation,
                is_request=origin is not None and origin.is_request,
                is_current=_is_in_force(disk, file),
            )

    def forgot(self, path: str) -> None:
        for disk in self.disks.values():
            if disk.owns(path):
                disk.model.lost()
                self.trace.note("forgot", path)

    def used_after_close(self, file: "object", operation: str) -> None:
        self.fail(f"{file.path}: {operation} after it was closed")  # type: ignore[attr-defined]

    def changing(self, file: "object", operation: str) -> None:
        path: str = file.path  # type: ignore[attr-defined]
        disk = next((disk for disk in self.disks.values() if path in disk.paths or disk.owns(path)), None)
        if disk is None or not disk.owns(path):
            self.fail(f"{path}: {operation} of a file that is no top")
            return
        if not disk.is_open:
            return
        queue = disk.device.queue
        if self._is_current(disk, file) and not queue.stats.in_flight and (disk.rules.is_on or queue.stack.is_lost):
            self.fail(f"{path}: {operation} of a top whose store is lost")

    def _is_current(self, disk: Disk, file: object) -> bool:
        return disk.is_open and _is_in_force(disk, file)

    def _queue_changed(self, disk: Disk) -> None:
        generation = disk.device.queue.generation
        if generation != disk.generation:
            disk.rules.swapped(is_degraded=disk.is_degraded)
            if disk.doubts_at_begin is not None and not disk.is_degraded:
                disk.model.recovered(is_sure=disk.model.doubts == disk.doubts_at_begin)
            disk.doubts_at_begin = None
            self._follow_size(disk)
            disk.paths = [delta.path for delta in disk.device.stack.deltas] or disk.paths
            self.trace.note("swapped", f"{disk.name} generation {generation}")
        disk.generation = generation

    def _follow_size(self, disk: Disk) -> None:
        """A disk gets longer by its table, or by its image when that is opened; never shorter."""
        size = disk.device.size_bytes
        if size < disk.model.size:
            self.fail(f"{disk.name}: has {size} bytes, and had {disk.model.size}")
        elif size > disk.model.size:
            disk.model.grow(size)
            self.trace.note("grown", f"{disk.name} to {size} bytes")

    def _look_at_events(self) -> None:
        events = self.registry.events
        for record in events.since(self._seen_events):
            self._seen_events = record.sequence + 1
            try:
                self._event(record)
            except Violation as violation:
                self.fail(str(violation))

    def _event(self, record: Record) -> None:
        facts = {name: value for name, value in record.facts.items() if name not in ("seconds", "file")}
        self.trace.note(record.event, f"{record.device} {facts}")
        match record.event:
            case "module_loaded" | "module_unloaded" if record.facts["module"] == "scst":
                for disk in self.disks.values():
                    disk.rules.key(record.event == "module_loaded")
        concerned = self.disks.get(record.device)
        if concerned is not None and concerned.is_open:
            self._event_of(concerned, record)

    def _event_of(self, disk: Disk, record: Record) -> None:
        queue = disk.device.queue
        match record.event:
            case "replace_begin":
                disk.doubts_at_begin = disk.model.doubts
            case "replace_end" if record.facts["result"] != "ok":
                disk.doubts_at_begin = None
            case "table_cleared":  # what comes into force next is not what was loaded
                disk.doubts_at_begin = None
            case "standby_on":
                if queue.stack.is_lost or disk.is_degraded:
                    disk.rules.condemned()
                elif record.facts["operation"] == "lock" and not _has_lock(queue.stack.top.file):
                    disk.rules.lock_lost()
                disk.rules.switched_on(queue.generation)
            case "standby_off":
                disk.rules.switched_off(
                    queue.generation,
                    was_detached=not disk.rules.is_attached,
                    is_stopped=disk.is_degraded or (queue.suspended and queue.stack.is_lost),
                )

    async def settle(self) -> None:
        await wait_all_tasks_blocked()
        self.raise_violation()

    def raise_violation(self) -> None:
        if self.violation is not None:
            raise self.violation


def _is_in_force(disk: Disk, file: object) -> bool:
    """A device that is being closed may still hear of its store, as when it takes back a lock."""
    return any(_below(delta.file) is file for delta in disk.device.queue.stack.deltas)


def _has_lock(file: File) -> bool:
    below = _below(file)
    assert isinstance(below, StormFile)
    return below.has_lock


def _below(file: File) -> object:
    """Without the injector's filter around it."""
    return getattr(file, "_inner", file)
