"""What SCST would write to the kernel's log, by topic: kept and shown, since scripts raise it before they report.

Knows nothing of what is logged here; that has levels of its own.
"""

from collections.abc import Mapping

from ploopfs.errors import BadValue
from ploopfs.scst.text import number, word

_COMMON = {
    "out_of_mem": 0x100,
    "minor": 0x200,
    "sg": 0x80,
    "mem": 0x40,
    "buff": 0x20,
    "entryexit": 0x10,
    "pid": 0x8,
    "line": 0x4,
    "function": 0x2,
    "debug": 0x1,
    "special": 0x2000,
    "scsi": 0x1000,
    "mgmt": 0x400,
    "mgmt_dbg": 0x800,
    "flow_control": 0x4000,
    "pr": 0x8000,
}
_EVERYTHING = 0xFFFFFFFF
_DEFAULT = 0x2F0E
"""out_of_mem, minor, pid, line, function, special, mgmt and mgmt_dbg, as in a build for debugging."""

CORE_TOPICS = {
    "retry": 0x80000000,
    "scsi_serializing": 0x40000000,
    "data_send": 0x20000000,
    "data_received": 0x1000000,
    "block": 0x10000,
}
VDISK_TOPICS = {"order": 0x80000000}
ISCSI_TOPICS = {"d_write": 0x80000, "conn": 0x100000, "conn_dbg": 0x200000, "iov": 0x400000, "pdu": 0x800000}


class TraceLevel:
    """A set of topics; `topics` are those beside the common ones, `extra` those that are in from the start."""

    def __init__(self, topics: Mapping[str, int], *extra: str) -> None:
        self._bits = _COMMON | dict(topics)
        self._default = _DEFAULT | sum(topics[name] for name in extra)
        self._level = self._default

    def show(self) -> str:
        shown = " | ".join(name for name, bit in self._bits.items() if self._level & bit)
        return (
            f'{shown}\n\n\nUsage:\n\techo "all|none|default" >trace_level\n\techo "value DEC|0xHEX|0OCT" >trace_level\n'
            f'\techo "add|del TOKEN" >trace_level\n\nwhere TOKEN is one of [{", ".join(self._bits)}]'
        )

    def store(self, text: str) -> None:
        action, rest = word(text)
        operand = word(rest)[0]
        match action.lower():
            case "all":
                self._level = _EVERYTHING
            case "none" | "null":
                self._level = 0
            case "default":
                self._level = self._default
            case "value":
                self._level = number(operand, 0, _EVERYTHING)
            case "add":
                self._level |= self._bit(operand)
            case "del":
                self._level &= ~self._bit(operand)
            case _:
                raise BadValue(f"{action!r} is no action on a trace level")

    def _bit(self, name: str) -> int:
        try:
            return self._bits[name.lower()]
        except KeyError:
            raise BadValue(f"{name!r} is no topic, expected one of {', '.join(self._bits)}") from None
