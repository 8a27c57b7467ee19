"""The recovery agent in `ploopfs/` of a device: what it does, and how an operator tells it to do otherwise.

Knows nothing of how it works.
"""

import posixpath

import trio

from ploopfs.device.device import Device
from ploopfs.device.recovery import Command, Manual, Policy, Reopen, Replace
from ploopfs.errors import BadValue
from ploopfs.sysfs.control import control, one_line
from ploopfs.sysfs.parse import line
from ploopfs.sysfs.rows import Row


def _policy(device: Device, text: str) -> Policy:
    """A program is named by the configuration alone: who may write here could run anything as us otherwise."""
    match text.split(" ", 1):
        case ["manual"]:
            return Manual()
        case ["reopen"]:
            return Reopen()
        case ["replace", path] if posixpath.isabs(path):
            return Replace(path)
        case ["command"] if isinstance(device.agent.configured.policy, Command):
            return device.agent.configured.policy
        case ["command"]:
            raise BadValue("command is for a device whose configuration names one")
    raise BadValue(f"recovery is {text!r}, expected manual, reopen, replace and an absolute path, or command")


async def _store_policy(device: Device, text: str) -> None:
    device.agent.set_policy(_policy(device, line(text)))


async def _tell(device: Device, text: str) -> None:
    match line(text):
        case "pause":
            device.agent.pause()
        case "resume":
            device.agent.resume()
        case "now":
            device.agent.hurry()
        case other:
            raise BadValue(f"agent is {other!r}, expected pause, resume or now")


def _show_next(device: Device) -> str | None:
    at_s = device.agent.next_at_s
    return None if at_s is None else f"{max(0.0, at_s - trio.current_time()):.1f}"


AGENT: tuple[Row[Device], ...] = (
    control(
        "recovery",
        lambda device: one_line(str(device.agent.policy)),
        _store_policy,
        lambda device: device.agent.changed,
    ),
    control("agent", lambda device: device.agent.state.value, _tell, lambda device: device.agent.changed),
    Row("agent_attempts", lambda device: str(device.agent.attempts), signal=lambda device: device.agent.changed),
    Row("agent_next_s", _show_next),
)
