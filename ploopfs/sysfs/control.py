"""`ploopfs/` of a device: what has no counterpart in a real kernel - why it stands by, who waits, how to recover.

Knows nothing of how recovery works.
"""

import re
from collections.abc import Awaitable, Callable

from ploopfs.bounds import HOLD_TIMEOUT_MS
from ploopfs.device.device import Device
from ploopfs.device.signal import Signal
from ploopfs.device.standby import State
from ploopfs.device.verify import Verify
from ploopfs.device.waiting import OnStandby
from ploopfs.errors import BadValue
from ploopfs.sysfs.parse import U32_MAX, line, queue_value
from ploopfs.sysfs.rows import Row, storing

ControlStore = Callable[[Device, str], Awaitable[str | None]]

_OPTION = re.compile(r"([a-z]+)=(\S*) +")


def one_line(text: str) -> str:
    """A path may hold a newline; the attribute's value may not."""
    return text.replace("\n", "\\n")


def _show_reason(device: Device) -> str | None:
    reason = device.queue.standby.reason
    return None if reason is None else one_line(str(reason))


def _show_since(device: Device) -> str | None:
    standby = device.queue.standby
    return f"{standby.since_s:.3f}" if standby.state is State.ON else None


def _level(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > len(str(U32_MAX)):
        raise BadValue(f"level is {text!r}, expected the number of a level")
    return int(text)


def _verify(text: str) -> Verify:
    try:
        return Verify(text)
    except ValueError:
        raise BadValue(f"verify is {text!r}, expected one of {', '.join(how.value for how in Verify)}") from None


async def _replace(device: Device, text: str) -> None:
    """`[level=N] [verify=none|map|full] PATH`"""
    rest = line(text)
    level, verify = None, Verify.NONE
    while (option := _OPTION.match(rest)) is not None:
        match option[1]:
            case "level":
                level = _level(option[2])
            case "verify":
                verify = _verify(option[2])
            case other:
                raise BadValue(f"{other} is no option of replace_delta, expected level or verify")
        rest = rest[option.end() :]
    if not rest:
        raise BadValue("replace_delta wants the path of the new delta: [level=N] [verify=none|map|full] PATH")
    await device.agent.wait_given_way()
    await device.replace(rest, level=level, verify=verify)


def _once(name: str, text: str) -> None:
    if line(text) != "1":
        raise BadValue(f"{name} takes 1, not {text!r}")


async def _reopen(device: Device, text: str) -> None:
    _once("reopen", text)
    await device.agent.wait_given_way()
    await device.reopen()


async def _fail_held(device: Device, text: str) -> None:
    _once("fail_held", text)
    device.queue.fail_held()


async def _forget_unflushed(device: Device, text: str) -> None:
    """For an operator who knows that somebody else has written the image since: his data are newer than ours."""
    if line(text) != "0":
        raise BadValue(f"unflushed_bytes takes 0, to keep nothing for a replay, not {line(text)!r}")
    device.unflushed.give_up()


def _on_standby(text: str) -> OnStandby:
    try:
        return OnStandby(line(text))
    except ValueError:
        raise BadValue(f"on_standby is {line(text)!r}, expected fail or hold") from None


def _hold_timeout_ms(text: str) -> int:
    timeout_ms = queue_value(text)
    if not 1 <= timeout_ms <= HOLD_TIMEOUT_MS.highest:
        raise BadValue(f"hold_timeout_ms is {timeout_ms}, expected 1 to {HOLD_TIMEOUT_MS.highest}")
    return timeout_ms


def explained(name: str, store: ControlStore) -> ControlStore:
    """The store of a control file: why it failed stands in `last_error`, whoever found out."""

    async def explaining(device: Device, text: str) -> str | None:
        with device.why.explaining(name):
            return await store(device, text)

    return explaining


def control(
    name: str,
    show: Callable[[Device], str | None] | None,
    store: ControlStore,
    signal: Callable[[Device], Signal] | None = None,
    *,
    bounded: bool = True,
) -> Row[Device]:
    """A row that can be written and explains its failures."""
    return Row(name, show, explained(name, store), signal, bounded)


def _show_deltas(device: Device) -> str | None:
    """A line for each level: its number, the image, whether it is read-only, the format. The second may hold blanks."""
    lines = (
        f"{level} {one_line(delta.path)} {int(not delta.writable)} {delta.format}"
        for level, delta in enumerate(device.stack.deltas)
    )
    return "\n".join(lines) or None


def _held_changed(device: Device) -> Signal:
    return device.queue.room.changed


CONTROL: tuple[Row[Device], ...] = (
    control("replace_delta", None, _replace),
    control("reopen", None, _reopen),
    Row("standby_reason", _show_reason, signal=lambda device: device.queue.standby.changed),
    Row("standby_since", _show_since, signal=lambda device: device.queue.standby.changed),
    Row("generation", lambda device: str(device.queue.generation), signal=lambda device: device.queue.changed),
    Row("deltas", _show_deltas, signal=lambda device: device.queue.changed, bounded=False),
    Row("last_error", lambda device: one_line(device.last_error) or None),
    Row("aborted", lambda device: str(int(device.queue.aborted)), signal=lambda device: device.queue.changed),
    Row("parked", lambda device: str(device.queue.parked)),
    control(
        "on_standby",
        lambda device: device.queue.policy.on_standby.value,
        storing(_on_standby, lambda device, policy: device.queue.set_on_standby(policy)),
    ),
    control(
        "hold_timeout_ms",
        lambda device: str(device.queue.policy.timeout_ms),
        storing(_hold_timeout_ms, lambda device, timeout_ms: device.queue.set_hold_timeout(timeout_ms)),
    ),
    Row("held", lambda device: str(device.queue.room.held), signal=_held_changed),
    Row("held_bytes", lambda device: str(device.queue.room.held_bytes), signal=_held_changed),
    control("fail_held", None, _fail_held),
    control("unflushed_bytes", lambda device: str(device.unflushed.data_bytes), _forget_unflushed),
)
