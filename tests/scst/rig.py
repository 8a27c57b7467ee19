"""The subsystem over disks without storage: their queues have the real standby machine, and nothing else waits."""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

from ploopfs.device.device import Device
from ploopfs.device.flavour import VZ7, Flavour
from ploopfs.device.registry import Registry
from ploopfs.device.standby import Standby, State
from ploopfs.errors import PloopError
from ploopfs.scst.core import Core
from ploopfs.scst.handlers import BLOCKIO, HANDLERS
from ploopfs.scst.module import Scst
from tests.sysfs.fakes import FakeDelta, FakeDevice, FakeQueue, FakeRegistry, FakeStack

MOUNTPOINT = "/mnt/ploop"
MIB = 1 << 20


def errno_of(call: Callable[..., object], *arguments: object) -> str:
    """The name of the errno that a call fails with, "" if it does not."""
    try:
        call(*arguments)
    except PloopError as error:
        return errno.errorcode[error.errno]
    return ""


@dataclass
class Subsystem:
    """Disks are `disk(NAME)`; commands go to the handlers as one writes them."""

    registry: FakeRegistry = field(default_factory=FakeRegistry)
    scst: Scst = field(init=False)

    def __post_init__(self) -> None:
        self.registry.key.enabled = False
        self.scst = self.registry.scst = Scst(cast(Registry, self.registry), MOUNTPOINT)

    @property
    def core(self) -> Core:
        return self.scst.core

    def disk(self, name: str, *, flavour: Flavour = VZ7, read_only: bool = False, mib: int = 64) -> Device:
        queue = FakeQueue(Standby(name, self.registry.key))
        disk = FakeDevice(FakeStack((FakeDelta(f"/images/{name}"),)), queue, name, flavour.minor(name), flavour)
        self.registry.devices[name] = replace(disk, read_only=read_only, size_bytes=mib * MIB)
        return cast(Device, self.registry.devices[name])

    def state(self, name: str) -> State:
        return self.registry.devices[name].queue.standby.state

    def states(self) -> list[str]:
        return [device.queue.standby.state.value for device in self.registry.devices.values()]

    def manage(self, text: str, handler: str = BLOCKIO.name) -> None:
        self.core.manage_devices(HANDLERS[handler], text)

    def errno(self, text: str, handler: str = BLOCKIO.name) -> str:
        return errno_of(self.manage, text, handler)


def loaded(*disks: str) -> Subsystem:
    """With the module loaded, and disks of these names."""
    subsystem = Subsystem()
    subsystem.scst.load()
    for name in disks:
        subsystem.disk(name)
    return subsystem
