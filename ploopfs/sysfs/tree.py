"""The whole tree of one registry: `sys/` and `proc/` as real ones are laid out, and `dev/` with the disks.

Directories are computed from the registry each time they are looked at, so devices may come and go; the nodes of a
device are the same objects for as long as it stays registered.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from ploopfs import __version__
from ploopfs.device.device import Device
from ploopfs.device.registry import Registry
from ploopfs.errors import BadValue
from ploopfs.scst.module import Scst
from ploopfs.sysfs.agent import AGENT
from ploopfs.sysfs.block import BLOCK
from ploopfs.sysfs.control import CONTROL
from ploopfs.sysfs.debug import DEBUG
from ploopfs.sysfs.nodes import Directory, Disk, Link, Names, Node, Report, Stream
from ploopfs.sysfs.parse import line
from ploopfs.sysfs.plane import CARRIED, Carried, Plane, Planes, alone
from ploopfs.sysfs.proc import ABSENT, Host, System, proc_directory
from ploopfs.sysfs.queue import QUEUE
from ploopfs.sysfs.rows import Kept, Removed, Row, attribute, directory
from ploopfs.sysfs.scst.modules import control, modules
from ploopfs.sysfs.scst.parts import together
from ploopfs.sysfs.scst.root import scst_tgt
from ploopfs.sysfs.vz7 import GROUPS as VZ7_GROUPS
from ploopfs.sysfs.vz9 import GROUPS as VZ9_GROUPS
from ploopfs.sysfs.vz9 import MAPPED

GROUPS: Mapping[str, Callable[[Device, Removed], Node]] = {**VZ7_GROUPS, **VZ9_GROUPS}
"""What a flavour may have in the directory of a device beside what every disk has."""


async def _ask_reload(registry: Registry, text: str) -> None:
    if line(text) != "1":
        raise BadValue(f"reload takes 1, not {line(text)!r}")
    registry.reload_asked.fire()


MODULE: tuple[Row[Registry], ...] = (
    Row("version", lambda _: __version__),
    Row("pid", lambda registry: str(registry.pid)),
    Row("reload", None, _ask_reload),
    Row("ploop_standby_check", lambda registry: str(int(registry.key.enabled))),
)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceNodes:
    """Every node of one device outside its directory, and that directory. Equal links are still different files."""

    device: Device
    directory: Directory
    debug: Directory
    disk: Disk
    in_block: Link
    in_class: Link
    in_dev: Link
    in_mapper: Link


def build(registry: Registry, scst: Scst, host: Host = ABSENT, planes: Planes = alone) -> Directory:
    """The root directory. `host` is the system around us, for the files that show its part in our disks; `planes` are
    the ways that their data takes."""

    def make(name: str, device: Device) -> DeviceNodes:
        return _device_nodes(device, planes, lambda: registry.devices.get(name) is not device)

    kept: Kept[Device, DeviceNodes] = Kept(make)

    def per_device(
        entry: Callable[[DeviceNodes], tuple[str, Node]], lend: Callable[[str], float] | None = registry.lend
    ) -> Directory:
        return _counted(registry, lambda: dict(map(entry, kept.of(registry.devices).values())), lend)

    def by_dm_name() -> dict[str, Node]:
        devices = kept.of(registry.devices).values()
        return {nodes.device.mapper.name: nodes.in_mapper for nodes in devices if nodes.device.mapper is not None}

    mapper_directory = Directory(by_dm_name)
    of_module = _of_module(registry, scst)
    devices = per_device(lambda nodes: (nodes.device.name, nodes.directory))
    debug = _fixed({"ploopfs": per_device(lambda nodes: (nodes.device.name, nodes.debug))})
    sys = {
        "block": per_device(lambda nodes: (nodes.device.name, nodes.in_block)),
        "class": _fixed({"block": per_device(lambda nodes: (nodes.device.name, nodes.in_class))}),
        "dev": _fixed({"block": per_device(lambda nodes: (_numbers(nodes.device), nodes.in_dev), None)}),
        "devices": _fixed({"virtual": _fixed({"block": devices})}),
        "kernel": together(lambda: {"debug": debug}, scst_tgt(scst)),
        "fs": _fixed({"ploopfs": directory(MODULE, registry, lambda: False, lambda: of_module)}),
        "module": Directory(modules(scst)),
    }
    # Names in here are not lent: a connection of its own that is mounted over one would be mounted over an old one.
    dev = _counted(registry, lambda: _dev(kept.of(registry.devices).values(), mapper_directory))
    return _fixed({"sys": _fixed(sys), "dev": dev, "proc": proc_directory(System(registry, host))})


def _device_nodes(device: Device, planes: Planes, removed: Removed) -> DeviceNodes:
    disk = Disk(device, removed)
    from_block = f"../devices/virtual/block/{device.name}"
    return DeviceNodes(
        device=device,
        directory=_device_directory(device, planes(device, disk), removed),
        debug=directory(DEBUG, device, removed),
        disk=disk,
        in_block=Link(from_block),
        in_class=Link(f"../{from_block}"),
        in_dev=Link(f"../{from_block}"),
        in_mapper=Link(f"../{device.name}"),
    )


def _device_directory(device: Device, plane: Plane, removed: Removed) -> Directory:
    mapped = MAPPED if device.flavour.mapped else ()

    def carried() -> dict[str, Node]:
        subject = Carried(device, plane)
        return {row.name: attribute(row, subject, removed) for row in CARRIED}

    def others() -> dict[str, Node]:
        return {
            "subsystem": Link("../../../../class/block"),
            "holders": _fixed({}),
            "slaves": _fixed({}),
            "queue": directory(QUEUE, device, removed),
            **{name: make(device, removed) for name, make in GROUPS.items() if name in device.flavour.groups},
            "ploopfs": directory((*CONTROL, *AGENT, *mapped), device, removed, carried),
        }

    return directory(BLOCK, device, removed, others)


def _dev(devices: Iterable[DeviceNodes], mapper_directory: Directory) -> dict[str, Node]:
    """The disks, and `mapper/` where one of them is mapped."""
    nodes = tuple(devices)
    disks: dict[str, Node] = {each.device.name: each.disk for each in nodes}
    return disks | ({"mapper": mapper_directory} if any(each.device.flavour.mapped for each in nodes) else {})


def _of_module(registry: Registry, scst: Scst) -> dict[str, Node]:
    # The library comes with an HTTP server: only who serves a tree pays for loading it.
    from ploopfs.sysfs.metrics import exposition  # noqa: PLC0415

    metrics = Report(partial(exposition, registry))
    return {"events": Stream(registry.events), "metrics": metrics, **control(scst)}


def _counted(
    registry: Registry, children: Callable[[], Mapping[str, Node]], lend: Callable[[str], float] | None = None
) -> Directory:
    """Made anew only when a device has come or gone: one name of a thousand is looked up as fast as one of two."""
    known, census = Names({}), -1

    def names() -> Names:
        nonlocal known, census
        if census != registry.census.version:
            known, census = Names(children()), registry.census.version
        return known

    return Directory(names, changed=registry.census, lend=lend)


def _fixed(children: Mapping[str, Node]) -> Directory:
    return Directory(lambda: children, is_fixed=True)


def _numbers(device: Device) -> str:
    return f"{device.major}:{device.minor}"
