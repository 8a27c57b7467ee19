"""Device groups: which targets are how good a way to which devices (ALUA). Kept and shown; nobody is told.

Knows nothing of what devices and targets are but their names.
"""

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from ploopfs.bounds import MAX_SCST_OBJECTS
from ploopfs.errors import AlreadyExists, BadValue
from ploopfs.scst.settings import Marked, Setting, Settings, keyed
from ploopfs.scst.text import check_name, decimal, number, switch, word

STATES = ("active", "nonoptimized", "standby", "unavailable", "offline", "transitioning")
U16_MAX = 65535
V = TypeVar("V")

CREATE_HELP = """Usage: echo "create group_name" >mgmt
       echo "del group_name" >mgmt"""
DEVICES_HELP = """Usage: echo "add device" >mgmt
       echo "del device" >mgmt"""
TARGETS_HELP = """Usage: echo "add target" >mgmt
       echo "del target" >mgmt"""


def _state(text: str) -> str:
    state = text.partition("\n")[0]
    if state not in STATES:
        raise BadValue(f"{state[:40]!r} is no state, expected one of {', '.join(STATES)}")
    return state


TARGET_GROUP_SETTINGS: tuple[Setting, ...] = (
    Setting("group_id", "0", decimal(1, U16_MAX), Marked.STORED),
    Setting("preferred", "0", switch, queued=True),
    Setting("state", "active", _state, Marked.STORED, queued=True),
)


_OF_TARGET_GROUPS = frozenset({"mgmt", *(setting.name for setting in TARGET_GROUP_SETTINGS)})


class Elsewhere:
    """A target of another host: known by its relative port number only."""

    def __init__(self) -> None:
        self.rel_tgt_id = 0

    def show(self) -> str:
        return keyed(self.rel_tgt_id)

    def store(self, text: str) -> None:
        self.rel_tgt_id = number(text, 1, U16_MAX)


class TargetGroup:
    """`targets` maps names to their place among our own targets, or to what is known of one that is elsewhere."""

    def __init__(self) -> None:
        self.settings = Settings(TARGET_GROUP_SETTINGS)
        # Both are saved whatever they are.
        self.settings["group_id"] = "0"
        self.settings["state"] = "active"
        self.targets: dict[str, str | Elsewhere] = {}


class DeviceGroup:
    """`devices` are names; a device is in one group at most."""

    def __init__(self) -> None:
        self.devices: dict[str, str] = {}
        self.target_groups: dict[str, TargetGroup] = {}

    def manage_target_groups(self, text: str) -> None:
        """One command of `target_groups/mgmt`."""
        _create_or_delete(text, self.target_groups, TargetGroup, "a target group")

    def manage_targets(self, group: TargetGroup, text: str, ours: Mapping[str, str]) -> None:
        """One command of a target group's `mgmt`; `ours` maps the names of our targets to their places."""
        action, name = _action(text)
        match action:
            case "add":
                check_name(name, "a target")
                if any(name in other.targets for other in self.target_groups.values()) or name in _OF_TARGET_GROUPS:
                    raise AlreadyExists(f"target {name} is in a target group of this device group")
                MAX_SCST_OBJECTS.check_room(len(group.targets), "targets of the group")
                group.targets[name] = ours[name] if name in ours else Elsewhere()
            case "del" if name in group.targets:
                del group.targets[name]
            case _:
                raise BadValue(f"{text!r} is no change of the targets in this group")


class DeviceGroups(dict[str, DeviceGroup]):
    def manage(self, text: str) -> None:
        """One command of `device_groups/mgmt`."""
        _create_or_delete(text, self, DeviceGroup, "a device group")

    def manage_devices(self, group: DeviceGroup, text: str, devices: Collection[str]) -> None:
        """One command of a group's `devices/mgmt`; `devices` are the names of all that exist."""
        action, name = _action(text)
        match action:
            case "add":
                if any(name in other.devices for other in self.values()) or name == "mgmt":
                    raise AlreadyExists(f"device {name} is in a device group already")
                if name not in devices:
                    raise BadValue(f"there is no device {name!r}")
                group.devices[name] = name
            case "del" if name in group.devices:
                del group.devices[name]
            case _:
                raise BadValue(f"{text!r} is no change of the devices in this group")

    def device_deleted(self, name: str) -> None:
        for group in self.values():
            group.devices.pop(name, None)

    def target_deleted(self, name: str) -> None:
        for target_group in (inner for group in self.values() for inner in group.target_groups.values()):
            if isinstance(target_group.targets.get(name), str):
                del target_group.targets[name]


def _action(text: str) -> tuple[str, str]:
    action, rest = word(text)
    return action.lower(), word(rest)[0]


def _create_or_delete(text: str, groups: dict[str, V], make: Callable[[], V], what: str) -> None:
    action, name = _action(text)
    match action:
        case "create" | "add":
            check_name(name, what)
            if name in groups or name == "mgmt":
                raise AlreadyExists(f"{what} named {name} exists already")
            MAX_SCST_OBJECTS.check_room(len(groups), "groups")
            groups[name] = make()
        case "del" if name in groups:
            del groups[name]
        case _:
            raise BadValue(f"{text!r} neither creates nor deletes {what}")
