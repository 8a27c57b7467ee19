"""The attributes of any disk, beside its groups (kernel-ploop.md 4.4). Knows nothing of ploop."""

import re

from ploopfs.device.device import Device
from ploopfs.device.stats import SECTOR_BYTES
from ploopfs.errors import BadValue, NoSuchDevice
from ploopfs.sysfs.parse import scanned_value
from ploopfs.sysfs.rows import Row, constant

SYNTHETIC_UEVENT = re.compile(
    r"(add|change|remove|move|online|offline|bind|unbind)"
    r"( [0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}( [A-Za-z0-9]+=[A-Za-z0-9]+)*)?\n?"
)
"""An action, and optionally a UUID with variables of the writer's own."""


def _columns(numbers: tuple[int, ...]) -> str:
    return " ".join(f"{number:8d}" for number in numbers)


def _show_uevent(device: Device) -> str:
    return f"MAJOR={device.major}\nMINOR={device.minor}\nDEVNAME={device.name}\nDEVTYPE=disk\nDISKSEQ={device.diskseq}"


async def _store_uevent(_device: Device, text: str) -> None:
    """Checked as the kernel checks it, and then nothing: nobody listens for uevents of a mounted tree."""
    if SYNTHETIC_UEVENT.fullmatch(text) is None:
        raise BadValue(f"{text!r} is no uevent action")


async def _store_poll_msecs(device: Device, text: str) -> None:
    """The value is checked before it turns out that there is nothing to poll."""
    if scanned_value(text) < -1:
        raise BadValue(f"{text!r} is neither an interval nor -1")
    raise NoSuchDevice(f"{device.name} has no media events")


BLOCK: tuple[Row[Device], ...] = (
    Row("size", lambda device: str(device.size_bytes // SECTOR_BYTES)),
    Row("ro", lambda device: str(int(device.read_only))),
    Row("dev", lambda device: f"{device.major}:{device.minor}"),
    Row("uevent", _show_uevent, _store_uevent),
    Row("stat", lambda device: _columns(device.stats.stat_columns())),
    Row("inflight", lambda device: _columns(device.stats.inflight_columns())),
    Row("range", lambda device: str(device.flavour.minors_per_disk)),
    Row("ext_range", lambda device: str(device.flavour.minors_per_disk)),
    Row("diskseq", lambda device: str(device.diskseq)),
    constant("removable", 0),
    constant("hidden", 0),
    constant("alignment_offset", 0),
    constant("discard_alignment", 0),
    constant("capability", 0),
    Row("events", lambda _: None),
    Row("events_async", lambda _: None),
    Row("events_poll_msecs", lambda _: "-1", _store_poll_msecs),
)
