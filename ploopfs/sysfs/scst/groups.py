"""`device_groups/`: which targets are how good a way to which devices. Knows nothing of what that is good for."""

from ploopfs.scst.alua import CREATE_HELP, DEVICES_HELP, TARGETS_HELP, DeviceGroup, DeviceGroups, Elsewhere, TargetGroup
from ploopfs.scst.core import Core
from ploopfs.sysfs.nodes import Directory, Link, Node
from ploopfs.sysfs.rows import Kept, Removed, Row, directory
from ploopfs.sysfs.scst.parts import Of, direct, directories, links, queued, settings_of, together

# The one management command that does not go through the queue.
ALL: tuple[Row[Of[DeviceGroups]], ...] = (
    Row("mgmt", lambda _: f"{CREATE_HELP}", direct(lambda of, text: of.it.manage(text))),
)
DEVICES: tuple[Row[Of[DeviceGroup]], ...] = (
    Row("mgmt", lambda _: DEVICES_HELP, queued(lambda of, text: of.core.manage_group_devices(of.it, text))),
)
TARGET_GROUPS: tuple[Row[Of[DeviceGroup]], ...] = (
    Row("mgmt", lambda _: CREATE_HELP, queued(lambda of, text: of.it.manage_target_groups(text))),
)
ELSEWHERE: tuple[Row[Of[Elsewhere]], ...] = (
    Row("rel_tgt_id", lambda of: of.it.show(), direct(lambda of, text: of.it.store(text))),
)


def device_groups(core: Core, removed: Removed) -> Directory:
    groups = core.device_groups

    def make(name: str, group: DeviceGroup) -> Directory:
        return _device_group(core, group, lambda: removed() or groups.get(name) is not group)

    return together(directory(ALL, Of(core, groups), removed).children, directories(lambda: groups, make))


def _device_group(core: Core, group: DeviceGroup, removed: Removed) -> Directory:
    of = Of(core, group)

    def make(name: str, targets: TargetGroup) -> Directory:
        return _target_group(core, group, targets, lambda: removed() or group.target_groups.get(name) is not targets)

    def fixed() -> dict[str, Node]:
        return {
            "devices": together(
                directory(DEVICES, of, removed).children,
                links(lambda: group.devices, lambda name: f"../../../devices/{name}"),
            ),
            "target_groups": together(
                directory(TARGET_GROUPS, of, removed).children, directories(lambda: group.target_groups, make)
            ),
        }

    return together(fixed)


def _target_group(core: Core, group: DeviceGroup, targets: TargetGroup, removed: Removed) -> Directory:
    def manage(of: Of[TargetGroup], text: str) -> None:
        of.core.manage_group_targets(group, of.it, text)

    def make(name: str, target: str | Elsewhere) -> Node:
        if isinstance(target, str):
            return Link(f"../../../../targets/{target}")
        return directory(ELSEWHERE, Of(core, target), lambda: removed() or targets.targets.get(name) is not target)

    mgmt: Row[Of[TargetGroup]] = Row("mgmt", lambda _: TARGETS_HELP, queued(manage))
    kept = Kept(make)

    def fixed() -> dict[str, Node]:
        attributes = directory([mgmt], Of(core, targets), removed).children()
        return {**settings_of(core, targets.settings, removed), **attributes}

    return together(fixed, lambda: kept.of(targets.targets))
