"""`proc/`: the disks in the files from which tools take statistics, partitions, swap areas and mounts.

Each is written as the kernel writes it, so that a tool with an alternative root reads it. The files of `proc/` itself
hold our disks and nothing else; those of `proc/ploopfs/` hold the disks of the system around us, too. Knows nothing of
where that system's lines come from. Invariant: a file is the answer of the moment in which reading it starts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ploopfs.device.device import Device
from ploopfs.device.registry import Registry
from ploopfs.sysfs.nodes import Directory
from ploopfs.sysfs.rows import Row, directory

BLOCK_BYTES = 1024
SWAP_NAME_COLUMNS = 40
SWAPS_HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"
PARTITIONS_HEAD = "major minor  #blocks  name\n"


@dataclass(frozen=True, slots=True)
class Use:
    """A line of the system's own, of mountinfo or swaps, that is of a loop device over a disk of ours."""

    device: str
    line: str


class Host(Protocol):
    """The system around us. Nothing here waits or fails: what cannot be read is not there."""

    def diskstats(self) -> str: ...

    def partitions(self) -> str: ...

    def mounts(self) -> Sequence[Use]: ...

    def swaps(self) -> Sequence[Use]: ...


class _Absent:
    def diskstats(self) -> str:
        return ""

    partitions = diskstats

    def mounts(self) -> Sequence[Use]:
        return ()

    swaps = mounts


ABSENT: Host = _Absent()
"""For a tree that stands alone."""


@dataclass(frozen=True, slots=True)
class System:
    """What the files are made of."""

    registry: Registry
    host: Host

    @property
    def devices(self) -> Sequence[Device]:
        return tuple(self.registry.devices.values())


def _diskstats_line(device: Device) -> str:
    columns = " ".join(map(str, device.stats.stat_columns()))
    return f"{device.major:4d} {device.minor:7d} {device.name} {columns}"


def _partitions_line(device: Device) -> str:
    return f"{device.major:4d}  {device.minor:7d} {device.size_bytes // BLOCK_BYTES:10d} {device.name}"


def _mountinfo_line(device: Device, line: str) -> str:
    """With our numbers and our name in the place of the loop device's: in a kernel nothing would lie between."""
    mount, parent, _, others = line.split(" ", 3)
    rest, _, kind = others.partition(" - ")
    fstype, _, options = kind.split(" ", 2)
    return f"{mount} {parent} {device.major}:{device.minor} {rest} - {fstype} /dev/{device.name} {options}"


def _swaps_line(device: Device, line: str) -> str:
    _, others = line.split(maxsplit=1)
    return f"{f'/dev/{device.name}':{SWAP_NAME_COLUMNS - 1}} {others}"


def _show_diskstats(system: System) -> str | None:
    return "\n".join(map(_diskstats_line, system.devices)) or None


def _show_partitions(system: System) -> str | None:
    """The kernel writes the head with the first disk."""
    return "\n".join([PARTITIONS_HEAD, *map(_partitions_line, system.devices)]) if system.devices else None


def _lines(text: str) -> list[str]:
    """Names may hold what splitlines() takes for an end of line, too."""
    return text.removesuffix("\n").split("\n") if text else []


def _show_all_diskstats(system: System) -> str | None:
    return "\n".join([*_lines(system.host.diskstats()), *map(_diskstats_line, system.devices)]) or None


def _show_all_partitions(system: System) -> str | None:
    others = _lines(system.host.partitions())
    return "\n".join([*others, *map(_partitions_line, system.devices)]) if others else _show_partitions(system)


def _of_ours(system: System, uses: Sequence[Use], shown: Callable[[Device, str], str]) -> list[str]:
    """A loop device outlives the disk that it was made of, and with it its lines."""
    devices = system.registry.devices
    return [shown(devices[use.device], use.line) for use in uses if use.device in devices]


def _show_swaps(system: System) -> str:
    return "\n".join([SWAPS_HEAD, *_of_ours(system, system.host.swaps(), _swaps_line)])


def _show_mountinfo(system: System) -> str | None:
    return "\n".join(_of_ours(system, system.host.mounts(), _mountinfo_line)) or None


PROC: tuple[Row[System], ...] = (
    Row("diskstats", _show_diskstats, bounded=False),
    Row("partitions", _show_partitions, bounded=False),
    Row("swaps", _show_swaps, bounded=False),
)
SELF: tuple[Row[System], ...] = (Row("mountinfo", _show_mountinfo, bounded=False),)
WITH_HOST: tuple[Row[System], ...] = (
    Row("diskstats", _show_all_diskstats, bounded=False),
    Row("partitions", _show_all_partitions, bounded=False),
)


def proc_directory(system: System) -> Directory:
    def below(rows: Sequence[Row[System]]) -> Directory:
        return directory(rows, system, lambda: False)

    return directory(PROC, system, lambda: False, lambda: {"self": below(SELF), "ploopfs": below(WITH_HOST)})
