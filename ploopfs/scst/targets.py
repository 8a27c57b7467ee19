"""Target drivers and their targets: names under which groups of devices are offered.

The iSCSI driver's targets come and go by commands; that of the copy manager is always there, and has every writable
device. Nothing is served. Knows nothing of the tree.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping

from ploopfs.bounds import MAX_SCST_OBJECTS
from ploopfs.errors import AlreadyExists, BadValue, NoSuchEntry, NotUnique
from ploopfs.scst.access import NAMED_GROUP_SETTINGS, Exportable, Group
from ploopfs.scst.iscsi import DRIVER_SETTINGS, PORTAL, TARGET_SETTINGS, USERS, Extras
from ploopfs.scst.settings import Marked, Setting, Settings
from ploopfs.scst.text import check_name, first_digit, number, parameters, switch, word, words
from ploopfs.scst.trace import ISCSI_TOPICS, TraceLevel

COPY_MANAGER = "copy_manager"
COPY_MANAGER_TARGET = "copy_manager_tgt"
ISCSI = "iscsi"
REL_TGT_ID_MAX = 65535
SG_TABLE_ENTRIES = 65535
MASK = "***"
"""Stands in the log for what may be a secret."""

ACTIONS = frozenset(f"{verb}_{what}" for verb in ("add", "del") for what in ("target", "attribute", "target_attribute"))

GROUPS_HELP = """Usage: echo "create GROUP_NAME" >mgmt
       echo "del GROUP_NAME" >mgmt"""


def without_secrets(text: str) -> str:
    """A command of the driver's `mgmt` for the log: its action and the first word after it. The secret of a user can
    stand anywhere behind them, and where a word was forgotten not even the name of the attribute says so."""
    action, rest = word(text)
    if action.lower() not in ACTIONS:
        return MASK
    first, rest = word(rest)
    return " ".join(part for part in (action, first, MASK if word(rest)[0] else "") if part)


def _comment(text: str) -> str | None:
    return text.removesuffix("\n") or None


TARGET_ATTRIBUTES: tuple[Setting, ...] = (
    Setting("forward_src", "0", switch),
    Setting("forward_dst", "0", first_digit("0", "1")),
    Setting("aen_disabled", "0", first_digit("0", "1")),
    Setting("comment", None, _comment),
    Setting("sg_tablesize", str(SG_TABLE_ENTRIES), marked=Marked.NEVER),
    *(
        Setting(f"{direction}_{counter}", "0", marked=Marked.NEVER)
        for direction in ("write", "read", "bidi")
        for counter in ("cmd_count", "io_count_kb", "unaligned_cmd_count")
    ),
    Setting("unknown_cmd_count", "0", marked=Marked.NEVER),
    Setting("none_cmd_count", "0", marked=Marked.NEVER),
)
COPY_MANAGER_SETTINGS: tuple[Setting, ...] = (
    Setting("allow_not_connected_copy", "0", first_digit("0", "1")),
    Setting(
        "dif_capabilities",
        "dif_supported, hw_dif_type1_supported, hw_dif_type2_supported, hw_dif_type3_supported",
        marked=Marked.NEVER,
    ),
)


class Target:
    """`group` is what initiators see that are in none of the named `groups`. `path` is counted from all targets."""

    def __init__(self, name: str, driver: str, tid: int, table: tuple[Setting, ...] = ()) -> None:
        self.name, self.tid = name, tid
        self.path = f"{driver}/{name}"
        self.enabled = False
        self.rel_tgt_id = 0
        self.settings = Settings((*TARGET_ATTRIBUTES, *table))
        self.group = Group(self.path)
        self.groups: dict[str, Group] = {}
        self.extras = Extras(*USERS, PORTAL)

    def manage_groups(self, text: str) -> None:
        """One command of `ini_groups/mgmt`."""
        action, rest = word(text)
        name = word(rest)[0]
        match action.lower():
            case "create":
                check_name(name, "a group")
                if name in self.groups or name == "mgmt":
                    raise AlreadyExists(f"{self.path}: group {name} exists already")
                MAX_SCST_OBJECTS.check_room(len(self.groups), f"groups of {self.path}")
                self.groups[name] = Group(f"{self.path}/ini_groups/{name}", NAMED_GROUP_SETTINGS)
            case "del":
                if name not in self.groups:
                    raise BadValue(f"{self.path}: there is no group {name!r}")
                self.groups.pop(name).clear()
            case _:
                raise BadValue(f"{action!r} is no action on groups")

    def all_groups(self) -> Iterable[Group]:
        return (self.group, *self.groups.values())

    def removed(self) -> None:
        for group in self.all_groups():
            group.clear()


class CopyManager:
    """The driver whose one target has a LUN of every writable device, under numbers that are not used again."""

    name = COPY_MANAGER

    def __init__(self) -> None:
        self.settings = Settings(COPY_MANAGER_SETTINGS)
        self.target = Target(COPY_MANAGER_TARGET, COPY_MANAGER, 0)
        self.targets = {COPY_MANAGER_TARGET: self.target}
        self._numbers = itertools.count()

    def take(self, device: Exportable) -> None:
        if not device.read_only:
            luns = self.target.group.luns
            self.target.group.add(next(lun for lun in self._numbers if lun not in luns), device)


class IscsiDriver:
    """`relative_ids` gives the numbers for targets that are enabled without one of their own."""

    name = ISCSI

    def __init__(self) -> None:
        self.settings = Settings(DRIVER_SETTINGS)
        self.trace_level = TraceLevel(ISCSI_TOPICS, "conn")
        self.targets: dict[str, Target] = {}
        self.extras = Extras(*USERS)
        self._tids = itertools.count(1)
        self._last_rel_tgt_id = 0

    def manage(self, text: str) -> None:
        """One command of `mgmt`."""
        action, rest = word(text)
        commands: Mapping[str, Callable[[str], None]] = {
            "add_target": self._add_target,
            "del_target": self._remove_target,
            "add_attribute": self.extras.add,
            "del_attribute": self.extras.remove,
            "add_target_attribute": lambda text: self._target(text).extras.add(word(text)[1]),
            "del_target_attribute": lambda text: self._target(text).extras.remove(word(text)[1]),
        }
        assert commands.keys() == ACTIONS
        if action.lower() not in commands:
            raise BadValue(f"{action!r} is no action on targets")
        commands[action.lower()](rest)

    def enable(self, target: Target, text: str) -> None:
        """Without a relative port number a target gets the next one that is free; one of its own must be its alone."""
        enabled = first_digit("0", "1")(text) == "1"
        if enabled and not target.rel_tgt_id:
            target.rel_tgt_id = self._free_rel_tgt_id()
        elif enabled:
            self._check_unique(target.rel_tgt_id, target)
        target.enabled = enabled

    def set_rel_tgt_id(self, target: Target, text: str) -> None:
        rel_tgt_id = number(text)
        if target.enabled and rel_tgt_id != target.rel_tgt_id:
            self._check_unique(rel_tgt_id, target)
        if rel_tgt_id > REL_TGT_ID_MAX or (not rel_tgt_id and target.enabled):
            raise BadValue(f"{target.path}: {rel_tgt_id} is no relative port number")
        target.rel_tgt_id = rel_tgt_id

    def removed(self) -> None:
        for target in self.targets.values():
            target.removed()
        self.targets.clear()

    def _add_target(self, text: str) -> None:
        name, rest = word(text)
        check_name(name, "a target")
        taken = {"mgmt", "trace_level", "version", "open_state", *self.settings.table, *self.extras}
        if name in taken or any(name.lower() == other.lower() for other in self.targets):
            raise AlreadyExists(f"target {name} exists already")
        MAX_SCST_OBJECTS.check_room(len(self.targets), "targets")
        target = Target(name, ISCSI, 0, TARGET_SETTINGS)
        for key, value in parameters(rest):
            self._set(target, key, value)
        target.tid = next(self._tids)
        self.targets[name] = target

    @staticmethod
    def _set(target: Target, key: str, value: str) -> None:
        for setting in TARGET_SETTINGS:
            if setting.name.lower() == key:
                return target.settings.store(setting.name, value)
        raise BadValue(f"parameter {key} of a target is unknown")

    def _remove_target(self, text: str) -> None:
        found = words(text)
        if len(found) != 1:
            raise BadValue(f"the name of one target wanted, not {len(found)} words")
        if found[0] not in self.targets:
            raise NoSuchEntry(f"there is no target {found[0]}")
        self.targets.pop(found[0]).removed()

    def _target(self, text: str) -> Target:
        name = word(text)[0]
        if name not in self.targets:
            raise NoSuchEntry(f"there is no target {name!r}")
        return self.targets[name]

    def _free_rel_tgt_id(self) -> int:
        used = {target.rel_tgt_id for target in self.targets.values() if target.enabled}
        candidates = itertools.chain(range(self._last_rel_tgt_id + 1, REL_TGT_ID_MAX + 1), range(1, REL_TGT_ID_MAX + 1))
        self._last_rel_tgt_id = next(candidate for candidate in candidates if candidate not in used)
        return self._last_rel_tgt_id

    def _check_unique(self, rel_tgt_id: int, of: Target) -> None:
        for target in self.targets.values():
            if target is not of and target.enabled and target.rel_tgt_id == rel_tgt_id:
                raise NotUnique(f"{of.path}: relative port number {rel_tgt_id} is that of {target.path}")


Driver = CopyManager | IscsiDriver
