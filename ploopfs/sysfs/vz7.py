"""The attribute groups of a vz7 device: `pstate/ pdelta/ pstat/ ptune/` (kernel-ploop.md 4.1).

Which of them a device has is its flavour's word. Knows nothing of requests: what has no counterpart in user space is 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from ploopfs.device.device import Device
from ploopfs.device.limits import Tune
from ploopfs.device.stats import SECTOR_BYTES, Op
from ploopfs.engine.counters import PSTAT_NAMES
from ploopfs.engine.delta import Delta
from ploopfs.errors import Busy
from ploopfs.sysfs.nodes import Directory
from ploopfs.sysfs.parse import U32_MAX, lax_value
from ploopfs.sysfs.rows import Kept, Removed, Row, constant, directory, refusing, storing

EVENT_NONE = 0
EVENT_ABORTED = 1
DISCARD_BY_HOLES = 2
NO_DUMP = -1
ALWAYS_ZERO = (
    "discard_bios entry_reqs entry_read_sync_reqs barrier_reqs fastpath_reqs map_pages locked "
    "free_reqs free_qmax blockable_reqs blocked_bios freeze_state"
)
"""Of `pstate/`: stages and pools that requests here do not pass."""


async def _set_aborted(device: Device, text: str) -> None:
    with device.why.explaining("aborted"):
        await device.set_aborted(lax_value(text) != 0)


def _in_flight(name: str, op: Op) -> Row[Device]:
    return Row(name, lambda device: str(device.stats.by_op[op].in_flight))


PSTATE: tuple[Row[Device], ...] = (
    Row("block_size", lambda device: str(device.stack.cluster_bytes // SECTOR_BYTES)),
    Row("fmt_version", lambda device: str(device.stack.format_version)),
    Row("total_bios", lambda device: str(device.stats.in_flight + device.queue.parked)),
    Row("active_reqs", lambda device: str(device.stats.in_flight)),
    Row("queued_bios", lambda device: str(device.queue.parked)),
    _in_flight("discard_inflight_bios", Op.DISCARD),
    _in_flight("fsync_reqs", Op.FLUSH),
    constant("running", 1),
    Row(
        "aborted",
        lambda device: str(int(device.queue.aborted)),
        _set_aborted,
        signal=lambda device: device.queue.changed,
    ),
    # Without a delta -1 as an unsigned number, as the kernel prints it.
    Row("top", lambda device: str((len(device.stack.deltas) - 1) & U32_MAX)),
    # The kernel's blocks until something happens; a show that waits would hold a task of the mount for ever.
    Row("event", lambda device: str(EVENT_ABORTED if device.queue.aborted else EVENT_NONE)),
    Row("open_count", lambda device: str(device.open_count)),
    constant("cookie", ""),
    Row("push_backup_uuid", lambda _: None),
    constant("discard_mode", DISCARD_BY_HOLES),
    *(constant(name, 0) for name in ALWAYS_ZERO.split()),
)


def _counter(name: str) -> Row[Device]:
    """Writing anything resets it."""
    return Row(
        name,
        lambda device: str(getattr(device.counters, name)),
        storing(lambda _: 0, lambda device, zero: setattr(device.counters, name, zero)),
    )


def _tune(name: str) -> Row[Device]:
    return Row(
        name,
        lambda device: str(getattr(device.tune, name)),
        storing(lax_value, lambda device, value: setattr(device.tune, name, value)),
    )


PSTAT = tuple(map(_counter, PSTAT_NAMES))

PTUNE: tuple[Row[Device], ...] = (
    *(_tune(field.name) for field in fields(Tune)),
    # It can be set while the device is stopped only, and a device of ours runs for as long as it exists.
    Row(
        "discard_granularity",
        lambda device: str(device.stack.cluster_bytes),
        refusing(Busy, "discard_granularity cannot change while the device runs"),
    ),
    constant("discard_alignment", 0),
)


@dataclass(frozen=True, slots=True)
class Level:
    """One delta at its place in the stack."""

    number: int
    delta: Delta


def _major(device_number: int) -> int:
    """The halves of both numbers lie crossed in a dev_t: eight bits of minor and twelve of major came first."""
    return device_number >> 32 & ~0xFFF | device_number >> 8 & 0xFFF


def _minor(device_number: int) -> int:
    return device_number >> 12 & ~0xFF & U32_MAX | device_number & 0xFF


def _image_info(level: Level) -> str:
    delta = level.delta
    return f"ino:{delta.inode}\nsdev:{_major(delta.device_number)}:{_minor(delta.device_number)}"


PDELTA: tuple[Row[Level], ...] = (
    Row("level", lambda level: str(level.number)),
    Row("image", lambda level: level.delta.path),
    Row("image_info", _image_info),
    Row("format", lambda level: level.delta.format),
    Row("io", lambda level: level.delta.io_engine),
    Row("ro", lambda level: str(int(not level.delta.writable))),
    constant("transparent", 0),
    constant("dump", NO_DUMP),
)


def _pdelta(device: Device, removed: Removed) -> Directory:
    """A directory per level, and a new one when another delta takes the level, as the kernel removes and adds it."""

    def numbered() -> dict[str, Delta]:
        return {str(number): delta for number, delta in enumerate(device.stack.deltas)}

    def make(number: str, delta: Delta) -> Directory:
        return directory(PDELTA, Level(int(number), delta), lambda: removed() or numbered().get(number) is not delta)

    kept = Kept(make)
    return Directory(lambda: kept.of(numbered()))


GROUPS: Mapping[str, Callable[[Device, Removed], Directory]] = {
    "pstate": lambda device, removed: directory(PSTATE, device, removed),
    "pdelta": _pdelta,
    "pstat": lambda device, removed: directory(PSTAT, device, removed),
    "ptune": lambda device, removed: directory(PTUNE, device, removed),
}
