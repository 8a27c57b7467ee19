"""`ploopfs/` of a device: what has no counterpart in a real kernel - why it stands by, and how to recover it.

Knows nothing of how recovery works.
"""

import errno

from ploopfs.device.device import Device
from ploopfs.device.standby import State
from ploopfs.errors import BadValue
from ploopfs.sysfs.parse import line
from ploopfs.sysfs.rows import Row


def _one_line(text: str) -> str:
    """A path may hold a newline; the attribute's value may not."""
    return text.replace("\n", "\\n")


def _show_reason(device: Device) -> str | None:
    reason = device.queue.standby.reason
    if reason is None:
        return None
    return f"{errno.errorcode.get(reason.errno, reason.errno)}: {_one_line(reason.text)}"


def _show_since(device: Device) -> str | None:
    standby = device.queue.standby
    return f"{standby.since_s:.3f}" if standby.state is State.ON else None


async def _replace(device: Device, text: str) -> None:
    path = line(text)
    if not path:
        raise BadValue("replace_delta wants the path of the new top delta")
    await device.replace_top(path)


async def _reopen(device: Device, text: str) -> None:
    if line(text) != "1":
        raise BadValue(f"reopen takes 1, not {text!r}")
    await device.reopen()


CONTROL: tuple[Row[Device], ...] = (
    Row("replace_delta", None, _replace),
    Row("reopen", None, _reopen),
    Row("standby_reason", _show_reason, signal=lambda device: device.queue.standby.changed),
    Row("standby_since", _show_since, signal=lambda device: device.queue.standby.changed),
    Row("generation", lambda device: str(device.queue.generation), signal=lambda device: device.queue.changed),
    Row("last_error", lambda device: _one_line(device.last_error) or None),
    Row("parked", lambda device: str(device.queue.parked)),
)
