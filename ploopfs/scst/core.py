"""The subsystem itself: its devices, its target drivers, its device groups, and its queue of management commands.

A command is a text that is written to an attribute; it is executed at once, and its result is kept. Knows nothing of
modules or of the tree.
"""

import logging
from collections.abc import Callable, Mapping

from ploopfs.bounds import MAX_SCST_OBJECTS
from ploopfs.device.device import Device
from ploopfs.device.events import Events, declare
from ploopfs.errors import AlreadyExists, BadValue, Busy, PloopError
from ploopfs.scst.access import Group
from ploopfs.scst.alua import DeviceGroup, DeviceGroups, TargetGroup
from ploopfs.scst.backing import Backings
from ploopfs.scst.handlers import BLOCKIO, HANDLERS, Handler
from ploopfs.scst.settings import Marked, Setting, Settings
from ploopfs.scst.targets import COPY_MANAGER, CopyManager, Driver, IscsiDriver
from ploopfs.scst.text import U64_MAX, decimal, number, truth, word
from ploopfs.scst.trace import CORE_TOPICS, VDISK_TOPICS, TraceLevel
from ploopfs.scst.vdisk import VirtualDevice

log = logging.getLogger(__name__)

VERSION = "3.11.0-pre"
LOCKSPACE_NAME_BYTES = 64
BESIDE_DEVICES = frozenset({"mgmt", "trace_level", "type"})
"""Names in the directory of a handler, where the links to its devices are too."""

DEVICE_ADDED = declare("scst_device_added", "a device came into SCST; `handler`, `filename`, `device` behind it")
DEVICE_DELETED = declare("scst_device_deleted", "a device left SCST; `handler`, `device` behind it")


def _cluster_name(text: str) -> str | None:
    name = text.removesuffix("\n")
    if len(name) >= LOCKSPACE_NAME_BYTES:
        raise BadValue(f"a cluster's name has fewer than {LOCKSPACE_NAME_BYTES} bytes")
    return name or None


def _setup_id(text: str) -> str:
    return f"{number(text) & 0xFFFFFFFF:#x}"


SETTINGS: tuple[Setting, ...] = (
    Setting("async_lun_replace", "0", truth, Marked.NEVER),
    Setting("cluster_name", None, _cluster_name),
    Setting("force_global_sgv_pool", "0", truth),
    Setting("max_tasklet_cmd", "10", decimal(0, 2**31 - 1)),
    Setting("measure_latency", "0", truth, Marked.NEVER),
    Setting("poll_us", "0", decimal(0, U64_MAX)),
    Setting("setup_id", "0x0", _setup_id),
    Setting("threads", "1", decimal(1, 2**31 - 1), queued=True),
)


class Core:
    """`last_result` is 0 or the negative errno of the last queued command."""

    def __init__(self, backings: Backings, events: Events) -> None:
        self.backings = backings
        self.vdisks: dict[str, VirtualDevice] = {}
        self.copy_manager = CopyManager()
        self.iscsi = IscsiDriver()
        self.device_groups = DeviceGroups()
        self.settings = Settings(SETTINGS)
        self.trace_level = TraceLevel(CORE_TOPICS, "retry")
        self.handler_trace_levels = {name: TraceLevel(VDISK_TOPICS) for name in HANDLERS}
        self.last_result = 0
        self.suspends = 0
        self._events = events

    def queued(self, command: Callable[[str], None], text: str, shown: str | None = None) -> None:
        """Execute a command that goes through the queue. Why it failed is in the log, where SCST's tools send one;
        `shown` is the command there, where `text` may hold a secret."""
        try:
            command(text)
        except PloopError as error:
            self.last_result = -error.errno
            log.info("%r failed: %s", text if shown is None else shown, error)
            raise
        self.last_result = 0

    def suspend(self, text: str) -> None:
        """Any number but a negative one suspends once more, for that many seconds at most; there is nothing to wait
        for."""
        self.suspends = max(0, self.suspends + (1 if number(text, -(2**31), 2**31 - 1) >= 0 else -1))

    # Devices

    def manage_devices(self, handler: Handler, text: str) -> None:
        """One command of a handler's `mgmt`."""
        action, rest = word(text)
        name, rest = word(rest)
        match action.lower():
            case "add_device":
                self.add_device(handler, name, rest)
            case "del_device":
                if word(rest)[0]:
                    raise BadValue(f"del_device takes one name, not {text!r}")
                self.delete_device(name)
            case _:
                raise BadValue(f"{action!r} is no action on devices")

    def add_device(self, handler: Handler, name: str, text: str) -> VirtualDevice:
        if name in self.vdisks or name in BESIDE_DEVICES:
            raise AlreadyExists(f"device {name} exists already")
        MAX_SCST_OBJECTS.check_room(len(self.vdisks), "devices")
        setup_id = number(self.settings["setup_id"] or "0")
        vdisk = VirtualDevice(name, handler, text, setup_id=setup_id, backings=self.backings)
        self.vdisks[name] = vdisk
        self.copy_manager.take(vdisk)
        log.info("%s: %s was added, file %s", handler.name, name, vdisk.filename)
        self._events.emit(
            _name_of(vdisk.device), DEVICE_ADDED, name=name, handler=handler.name, filename=vdisk.filename
        )
        return vdisk

    def delete_device(self, name: str) -> None:
        """It disappears from every group of every target, too."""
        if name not in self.vdisks:
            raise BadValue(f"there is no device {name!r}")
        vdisk = self.vdisks.pop(name)
        for group in self._all_access_groups():
            for lun in [lun.number for lun in group.luns.values() if lun.device is vdisk]:
                group.remove(lun)
        self.device_groups.device_deleted(name)
        device = _name_of(vdisk.device)
        vdisk.deleted()
        log.info("%s: %s was deleted", vdisk.handler.name, name)
        self._events.emit(device, DEVICE_DELETED, name=name, handler=vdisk.handler.name)

    def attach(self, device: Device) -> None:
        """Add a device under its own name, as its configuration asks for."""
        read_only = "; read_only=1" if device.read_only else ""
        self.add_device(BLOCKIO, device.name, f"filename=/dev/{device.name}{read_only}")

    def detach(self, device: Device) -> None:
        """Undo `attach`, if that is all that there is. Raises Busy if initiators may see the device, or it is in SCST
        under another name, with nothing changed; with `device` in none, nothing happens."""
        holding = [vdisk for vdisk in self.vdisks.values() if vdisk.device is device]
        for vdisk in holding:
            exported = [lun.path for lun in vdisk.exports.values() if not lun.path.startswith(f"{COPY_MANAGER}/")]
            if vdisk.name != device.name or exported:
                raise Busy(f"SCST has it as {vdisk.name}" + "".join(f", {path}" for path in exported))
        for vdisk in holding:
            self.delete_device(vdisk.name)

    # Targets

    @property
    def drivers(self) -> dict[str, Driver]:
        return {driver.name: driver for driver in (self.copy_manager, self.iscsi)}

    def manage_targets(self, text: str) -> None:
        before = set(self.iscsi.targets)
        self.iscsi.manage(text)
        for name in before - set(self.iscsi.targets):
            self.device_groups.target_deleted(name)

    def manage_group_devices(self, group: DeviceGroup, text: str) -> None:
        self.device_groups.manage_devices(group, text, self.vdisks)

    def manage_group_targets(self, group: DeviceGroup, targets: TargetGroup, text: str) -> None:
        group.manage_targets(targets, text, self._target_paths())

    def remove_iscsi(self) -> None:
        """All its targets go with the driver, and a new one knows nothing of them."""
        for name in self.iscsi.targets:
            self.device_groups.target_deleted(name)
        self.iscsi.removed()
        self.iscsi = IscsiDriver()

    def _target_paths(self) -> Mapping[str, str]:
        return {target.name: target.path for driver in self.drivers.values() for target in driver.targets.values()}

    def _all_access_groups(self) -> list[Group]:
        return [
            group
            for driver in self.drivers.values()
            for target in driver.targets.values()
            for group in target.all_groups()
        ]


def _name_of(device: Device | None) -> str:
    return device.name if device is not None else ""
