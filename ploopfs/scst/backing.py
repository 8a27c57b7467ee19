"""Which device of ours a file name of SCST means, and how often it is in SCST: STANDBY_EN.

A name is read with the mount as the root of its world: `/dev/ploop0`, `/dev/mapper/NAME`, or the same under the
mountpoint. Knows nothing of virtual devices. Invariant: STANDBY_EN of a queue is in exactly while somebody holds the
device, if its flavour can have it at all.
"""

import posixpath
from collections import Counter
from collections.abc import Iterator

from ploopfs.device.device import Device
from ploopfs.device.registry import Registry
from ploopfs.errors import BadValue, NoSuchEntry


class Backings:
    def __init__(self, registry: Registry, mountpoint: str) -> None:
        self._registry = registry
        self._mountpoint = mountpoint.rstrip("/")
        self._held: Counter[Device] = Counter()

    def find(self, filename: str) -> Device:
        if not filename.startswith("/"):
            raise BadValue(f"file name {filename!r} is not absolute")
        path = posixpath.normpath("/" + filename.lstrip("/"))
        devices = self._registry.devices
        for name in self._names_in_dev(path):
            # By its own name without a look at the others: a thousand that are attached one after the other have it.
            if name in devices:
                return devices[name]
            for device in devices.values():
                if name in names_of(device):
                    return device
        raise NoSuchEntry(f"{filename}: there is no such disk in the tree")

    def is_held(self, device: Device) -> bool:
        return bool(self._held[device])

    def hold(self, device: Device) -> None:
        self._held[device] += 1
        if self._held[device] == 1 and device.flavour.supports_standby:
            device.queue.standby.attach()

    def release(self, device: Device) -> None:
        self._held[device] -= 1
        if not self._held[device]:
            del self._held[device]
            if device.flavour.supports_standby:
                device.queue.standby.detach()

    def _names_in_dev(self, path: str) -> Iterator[str]:
        for root in {"", self._mountpoint}:
            if path.startswith(f"{root}/dev/"):
                yield path.removeprefix(f"{root}/dev/")


def names_of(device: Device) -> tuple[str, ...]:
    """What a device is called below `/dev`; a mapped one has a second name, which its mapper knows."""
    return (device.name,) if device.mapper is None else (device.name, f"mapper/{device.mapper.name}")
