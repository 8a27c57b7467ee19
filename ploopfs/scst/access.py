"""Who may see which device under which number: groups of LUNs and initiators, those of a whole target and named ones.

Knows nothing of what a device is but its name. Invariant: a LUN is in `luns` of its group exactly while its device
lists it among its exports.
"""

import re
from collections.abc import Callable, Mapping
from typing import Protocol

from ploopfs.bounds import MAX_SCST_OBJECTS
from ploopfs.errors import AlreadyExists, BadValue
from ploopfs.scst.settings import Marked, Setting, Settings
from ploopfs.scst.text import check_name, decimal, first_digit, number, only, parameters, truth, word

MAX_LUN = 16383
ONE_CPU = "1"
_CPUS = re.compile(r"[0-9a-fA-F]{1,8}(,[0-9a-fA-F]{1,8})*\n?")


def _starts_with(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        for value in values:
            if text.lower().startswith(value.lower()):
                return value
        raise BadValue(f"{text[:40]!r} is none of {', '.join(values)}")

    return parse


def _io_grouping_type(text: str) -> str:
    if text[:1].isdigit():
        return decimal(1, 2**31 - 1)(text)
    return _starts_with("auto", "this_group_only", "never")(text)


def _cpu_mask(text: str) -> str:
    if _CPUS.fullmatch(text) is None:
        raise BadValue(f"{text[:40]!r} is no mask of CPUs")
    return text.removesuffix("\n").lower()


GROUP_SETTINGS: tuple[Setting, ...] = (
    Setting("addr_method", "PERIPHERAL", _starts_with("FLAT", "PERIPHERAL", "LUN")),
    Setting("io_grouping_type", "auto", _io_grouping_type, queued=True),
    Setting("black_hole", "0", first_digit("0", "1", "2", "3", "4"), Marked.NEVER),
    Setting("cpu_mask", ONE_CPU, _cpu_mask, queued=True),
)
NAMED_GROUP_SETTINGS: tuple[Setting, ...] = (*GROUP_SETTINGS, Setting("per_sess_dedicated_tgt_threads", "0", truth))

LUNS_HELP = """Usage: echo "add H:C:I:L lun [parameters]" >mgmt
       echo "add VNAME lun [parameters]" >mgmt
       echo "del lun" >mgmt
       echo "replace H:C:I:L lun [parameters]" >mgmt
       echo "replace VNAME lun [parameters]" >mgmt
       echo "replace_no_ua H:C:I:L lun [parameters]" >mgmt
       echo "replace_no_ua VNAME lun [parameters]" >mgmt
       echo "clear" >mgmt

where parameters are one or more param_name=value pairs separated by ';'

The following parameters available: read_only"""

INITIATORS_HELP = """Usage: echo "add INITIATOR_NAME" >mgmt
       echo "del INITIATOR_NAME" >mgmt
       echo "move INITIATOR_NAME DEST_GROUP_NAME" >mgmt
       echo "clear" >mgmt"""


class Exportable(Protocol):
    """What a LUN needs of a device."""

    name: str

    @property
    def read_only(self) -> bool: ...
    def exported(self, lun: "Lun") -> None: ...
    def unexported(self, lun: "Lun") -> None: ...


class Lun:
    """A device under a number. `path` is its directory, counted from the directory of all targets."""

    def __init__(self, lun: int, device: Exportable, path: str, *, read_only: bool) -> None:
        self.number, self.device, self.path = lun, device, path
        self._read_only = read_only

    @property
    def read_only(self) -> bool:
        return self._read_only or self.device.read_only


class Group:
    """`path` is counted as that of a LUN. `initiators` are names and patterns, in the order in which they came."""

    def __init__(self, path: str, table: tuple[Setting, ...] = GROUP_SETTINGS) -> None:
        self.path = path
        self.luns: dict[int, Lun] = {}
        self.initiators: dict[str, str] = {}
        self.settings = Settings(table)

    def add(self, lun: int, device: Exportable, *, read_only: bool = False) -> None:
        if lun in self.luns:
            raise AlreadyExists(f"{self.path}: LUN {lun} exists already")
        self.luns[lun] = Lun(lun, device, f"{self.path}/luns/{lun}", read_only=read_only)
        device.exported(self.luns[lun])

    def remove(self, lun: int) -> None:
        if lun not in self.luns:
            raise BadValue(f"{self.path}: there is no LUN {lun}")
        gone = self.luns.pop(lun)
        gone.device.unexported(gone)

    def clear(self) -> None:
        for lun in tuple(self.luns):
            self.remove(lun)

    def manage_luns(self, text: str, devices: Mapping[str, Exportable]) -> None:
        """One command of `luns/mgmt`."""
        action, rest = word(text)
        match action.lower():
            case "add":
                self.add(*self._placed(rest, devices), read_only=self._read_only(rest))
            case "replace" | "replace_no_ua":
                lun, device = self._placed(rest, devices)
                read_only = self._read_only(rest)
                if lun in self.luns:
                    self.remove(lun)
                self.add(lun, device, read_only=read_only)
            case "del":
                self.remove(number(only(rest, "a LUN")))
            case "clear":
                if word(rest)[0]:
                    raise BadValue(f"clear takes nothing, not {rest!r}")
                self.clear()
            case _:
                raise BadValue(f"{action!r} is no action on LUNs")

    def _placed(self, text: str, devices: Mapping[str, Exportable]) -> tuple[int, Exportable]:
        name, rest = word(text)
        if name not in devices:
            raise BadValue(f"{self.path}: there is no device {name!r}")
        return number(word(rest)[0], 0, MAX_LUN), devices[name]

    @staticmethod
    def _read_only(text: str) -> bool:
        read_only = False
        for name, value in parameters(word(word(text)[1])[1]):
            if name != "read_only":
                raise BadValue(f"parameter {name} of a LUN is unknown")
            read_only = number(value) != 0
        return read_only

    def add_initiator(self, name: str) -> None:
        check_name(name, "an initiator")
        if name in self.initiators or name == "mgmt":
            raise AlreadyExists(f"{self.path}: initiator {name} exists already")
        MAX_SCST_OBJECTS.check_room(len(self.initiators), f"initiators of {self.path}")
        self.initiators[name] = name

    def remove_initiator(self, name: str) -> None:
        if self.initiators.pop(name, None) is None:
            raise BadValue(f"{self.path}: there is no initiator {name!r}")

    def manage_initiators(self, text: str, groups: Mapping[str, "Group"]) -> None:
        """One command of `initiators/mgmt`; `groups` are those of the same target."""
        action, rest = word(text)
        name, rest = word(rest)
        match action.lower():
            case "add":
                self.add_initiator(name)
            case "del":
                self.remove_initiator(name)
            case "move":
                self._move(name, word(rest)[0], groups)
            case "clear":
                self.initiators.clear()
            case _:
                raise BadValue(f"{action!r} is no action on initiators")

    def _move(self, name: str, to: str, groups: Mapping[str, "Group"]) -> None:
        if name not in self.initiators:
            raise BadValue(f"{self.path}: there is no initiator {name!r}")
        if to not in groups:
            raise BadValue(f"{self.path}: there is no group {to!r} to move {name} to")
        groups[to].add_initiator(name)
        self.remove_initiator(name)
