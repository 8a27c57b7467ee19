"""What a device-mapper device has in the tree: `dm/`, `vz_trusted_exec`, and the files that stand for dmsetup's ioctls.

Which devices have them is their flavour's word. Knows nothing of tables.
"""

from collections.abc import Callable, Mapping

from ploopfs.bounds import MAX_TABLE_BYTES
from ploopfs.device.device import Device
from ploopfs.device.mapper import Mapper
from ploopfs.device.messages import answer
from ploopfs.device.signal import Signal
from ploopfs.errors import BadValue
from ploopfs.sysfs.control import control
from ploopfs.sysfs.nodes import Node
from ploopfs.sysfs.parse import line, queue_bool
from ploopfs.sysfs.rows import Removed, Row, attribute, constant, directory, ignoring, storing

FLUSH = {"flush": True, "noflush": False}
LOCKFS = frozenset({"lockfs", "nolockfs"})
"""Accepted, and without effect: no file system is mounted through us, so there is none to freeze."""


def mapper(device: Device) -> Mapper:
    """Rows of this module are for mapped devices only."""
    assert device.mapper is not None
    return device.mapper


def _changed(device: Device) -> Signal:
    return mapper(device).changed


DM: tuple[Row[Device], ...] = (
    Row("name", lambda device: mapper(device).name),
    Row("uuid", lambda device: mapper(device).uuid),
    Row("suspended", lambda device: str(int(mapper(device).suspended)), signal=_changed),
    constant("use_blk_mq", 1),
    Row("rq_based_seq_io_merge_deadline", lambda _: "0", ignoring),
)

TRUSTED: Row[Device] = Row(
    "vz_trusted_exec",
    lambda device: str(int(mapper(device).is_trusted)),
    storing(queue_bool, lambda device, is_trusted: setattr(mapper(device), "is_trusted", is_trusted)),
)

GROUPS: Mapping[str, Callable[[Device, Removed], Node]] = {
    "dm": lambda device, removed: directory(DM, device, removed),
    TRUSTED.name: lambda device, removed: attribute(TRUSTED, device, removed),
}


def _show_inactive(device: Device) -> str | None:
    table = mapper(device).inactive_table
    return table.line if table is not None else None


def _whole(text: str) -> str:
    """A longer text may have been cut on its way, amid a name."""
    if len(text) >= MAX_TABLE_BYTES:
        raise BadValue(f"the text has {len(text)} characters, expected fewer than {MAX_TABLE_BYTES}")
    return text


async def _load(device: Device, text: str) -> None:
    table = _whole(text)
    await device.agent.wait_given_way()
    await mapper(device).load(table)


async def _clear(device: Device, text: str) -> None:
    if line(text) != "1":
        raise BadValue(f"clear takes 1, not {text!r}")
    await mapper(device).clear()


def _flushes(text: str) -> bool:
    """`[flush|noflush] [lockfs|nolockfs]`; flush and lockfs are the default, as they are dmsetup's."""
    flush = True
    for word in text.split():
        if word not in FLUSH and word not in LOCKFS:
            raise BadValue(f"{word!r} is no way to suspend or resume, expected {', '.join((*FLUSH, *sorted(LOCKFS)))}")
        flush = FLUSH.get(word, flush)
    return flush


async def _suspend(device: Device, text: str) -> None:
    flush = _flushes(text)
    await device.agent.wait_given_way()
    await mapper(device).suspend(flush=flush)


async def _resume(device: Device, text: str) -> None:
    _flushes(text)
    await mapper(device).resume()


async def _message(device: Device, text: str) -> str:
    return (await answer(mapper(device), _whole(text))).removesuffix("\n")


def _show_answer(device: Device) -> str | None:
    """For `cat` after `echo`; who writes and reads through one descriptor gets the answer to his own message."""
    return mapper(device).answer.removesuffix("\n") or None


def _long(name: str, show: Callable[[Device], str | None], signal: Callable[[Device], Signal]) -> Row[Device]:
    return Row(name, show, signal=signal, bounded=False)


MAPPED: tuple[Row[Device], ...] = (
    _long("table", lambda device: mapper(device).active.table.line, _changed),
    _long("table_inactive", _show_inactive, _changed),
    Row("status", lambda device: mapper(device).active.status, signal=_changed),
    Row("status_inactive", lambda device: mapper(device).inactive_status, signal=_changed),
    control("load", None, _load, bounded=False),
    control("clear", None, _clear),
    control("suspend", None, _suspend),
    control("resume", None, _resume),
    control("message", _show_answer, _message, bounded=False),
    Row("event_nr", lambda device: str(mapper(device).active.event_nr), signal=_changed),
    Row("open_count", lambda device: str(device.open_count)),
)
"""`ploopfs/` of a mapped device, beside what every device has there."""
