"""The recovery agent in `ploopfs/`: what it is at, and what an operator may tell it."""

import errno
import os

import pytest

from ploopfs.device.recovery import Command, Manual, Recovery, Reopen, Replace
from ploopfs.device.standby import Reason
from ploopfs.errors import BadValue, PermissionDenied
from ploopfs.sysfs.nodes import Directory
from ploopfs.sysfs.openfile import CHANGED, READY
from tests.sysfs.fakes import DEVICE, FakeDevice, opened, text_of, write

CONTROL = f"{DEVICE}/ploopfs"


def shown(root: Directory) -> list[str]:
    return [text_of(root, f"{CONTROL}/{name}") for name in ("recovery", "agent", "agent_attempts", "agent_next_s")]


def test_without_a_policy_an_operator_recovers_the_device(root: Directory, device: FakeDevice) -> None:
    assert device.agent.policy == Manual()
    assert shown(root) == ["manual\n", "manual\n", "0\n", ""]


@pytest.mark.parametrize(
    ("text", "policy", "reads"),
    [
        ("reopen\n", Reopen(), "reopen\n"),
        ("reopen", Reopen(), "reopen\n"),
        ("replace /a b\n", Replace("/a b"), "replace /a b\n"),
        ("replace /a\nb\n", Replace("/a\nb"), "replace /a\\nb\n"),
        ("manual\n", Manual(), "manual\n"),
    ],
)
async def test_a_policy_is_written_in_the_words_that_it_is_read_in(
    root: Directory, device: FakeDevice, text: str, policy: object, reads: str
) -> None:
    await write(root, f"{CONTROL}/recovery", text)
    assert device.agent.policy == policy
    assert text_of(root, f"{CONTROL}/recovery") == reads
    assert text_of(root, f"{CONTROL}/agent") == ("manual\n" if policy == Manual() else "idle\n")


@pytest.mark.parametrize(
    "text", ["\n", "auto", "reopen now", "replace", "replace ", "replace rel", "replace  /a", "manual\n\n", "command"]
)
async def test_another_policy_is_refused_and_the_old_one_stays(
    root: Directory, device: FakeDevice, text: str
) -> None:
    device.agent.set_policy(Reopen())
    with pytest.raises(BadValue):
        await write(root, f"{CONTROL}/recovery", text)
    assert device.last_error.startswith("recovery: ")
    assert text_of(root, f"{CONTROL}/recovery") == "reopen\n"


async def test_a_program_comes_from_the_configuration_and_can_only_be_taken_up_again(
    root: Directory, device: FakeDevice
) -> None:
    configured = Command(("/bin/fix it", "-v"))
    device.agent.configure(Recovery(configured))
    assert shown(root)[:2] == ["command '/bin/fix it' -v\n", "idle\n"]
    await write(root, f"{CONTROL}/recovery", "manual\n")
    with pytest.raises(BadValue):
        await write(root, f"{CONTROL}/recovery", "command /bin/sh\n")
    await write(root, f"{CONTROL}/recovery", "command\n")
    assert device.agent.policy == configured


async def test_a_pause_holds_until_resume_whatever_the_policy_becomes(root: Directory) -> None:
    await write(root, f"{CONTROL}/agent", "pause\n")
    for policy in ("reopen", "manual", "replace /a"):
        await write(root, f"{CONTROL}/recovery", policy)
        assert text_of(root, f"{CONTROL}/agent") == "paused\n"
    await write(root, f"{CONTROL}/agent", "resume\n")
    assert text_of(root, f"{CONTROL}/agent") == "idle\n"
    await write(root, f"{CONTROL}/agent", "resume\n")
    await write(root, f"{CONTROL}/agent", "pause\n")
    await write(root, f"{CONTROL}/recovery", "manual")
    await write(root, f"{CONTROL}/agent", "resume\n")
    assert text_of(root, f"{CONTROL}/agent") == "manual\n"


@pytest.mark.parametrize("text", ["stop", "1", "PAUSE", "now\n\n", "now"])
async def test_an_agent_that_does_not_wait_cannot_be_hurried_nor_told_anything_else(
    root: Directory, device: FakeDevice, text: str
) -> None:
    device.agent.set_policy(Reopen())
    with pytest.raises(BadValue):
        await write(root, f"{CONTROL}/agent", text)
    assert text_of(root, f"{CONTROL}/agent") == "idle\n"


@pytest.mark.parametrize("name", ["agent_attempts", "agent_next_s"])
def test_what_is_counted_is_read_only(root: Directory, name: str) -> None:
    with pytest.raises(PermissionDenied):
        opened(root, f"{CONTROL}/{name}", os.O_WRONLY)


async def test_a_change_of_state_wakes_who_polls(root: Directory, device: FakeDevice) -> None:
    watchers = [opened(root, f"{CONTROL}/{name}") for name in ("recovery", "agent")]
    for watcher in watchers:
        watcher.read(0, 99)
        assert watcher.poll()[0] == READY
    device.agent.set_policy(Reopen())
    assert [watcher.poll()[0] for watcher in watchers] == [READY | CHANGED] * 2


@pytest.mark.expects_warnings
async def test_a_device_in_standby_shows_how_far_its_agent_is(root: Directory, device: FakeDevice) -> None:
    device.queue.standby.storage_lost(Reason(errno=errno.EIO, operation="read", file="/a"))
    device.agent.set_policy(Reopen())
    assert shown(root)[1] == "probing\n"
    await write(root, f"{CONTROL}/agent", "now")
    assert shown(root)[1] == "probing\n"
