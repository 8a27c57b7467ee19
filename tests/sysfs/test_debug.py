"""`sys/kernel/debug/ploopfs/<dev>/`: rules by writing, the list by reading, and the reason of a refusal."""

import errno
import os

import pytest

from ploopfs.errors import BadValue, LimitReached, NoSuchDevice, NoSuchEntry
from ploopfs.sysfs.nodes import Attribute, Directory
from tests.sysfs.fakes import FakeDevice, FakeRegistry, node_at, opened, text_of, write

DEBUG = "sys/kernel/debug/ploopfs/ploop0"
RULES = f"{DEBUG}/error_injection"


async def test_a_rule_that_is_written_is_read(root: Directory, device: FakeDevice) -> None:
    assert text_of(root, RULES) == ""
    await write(root, RULES, "add,op=READ,start=0,nr_sectors=8,status=IOERR,chance=10\n")
    assert text_of(root, RULES) == "0:7 op=READ,status=IOERR,chance=10,id=1,where=sectors,errno=EIO,hits=0\n"
    await write(root, RULES, "add,errno=EBUSY")
    assert [rule.number for rule in device.injector.rules] == [2, 1]
    await write(root, RULES, "remove,id=2\n")
    assert text_of(root, RULES).count("\n") == 1
    await write(root, RULES, "removeall\n")
    assert text_of(root, RULES) == ""


@pytest.mark.parametrize(
    ("command", "error", "says"),
    [
        ("add,op=READ,errno=EBUZY\n", BadValue, "errno is 'EBUZY', expected a name such as E"),
        ("remove,id=9\n", NoSuchEntry, "id is 9, expected that of a rule (there: none)"),
    ],
)
async def test_a_refused_command_says_why_until_one_is_accepted(
    root: Directory, command: str, error: type[BadValue | NoSuchEntry], says: str
) -> None:
    assert text_of(root, f"{DEBUG}/last_error") == ""
    with pytest.raises(error):
        await write(root, RULES, command)
    assert text_of(root, f"{DEBUG}/last_error").startswith(says)
    await write(root, RULES, "removeall")
    assert text_of(root, f"{DEBUG}/last_error") == ""


async def test_the_reason_of_a_refusal_is_one_line(root: Directory) -> None:
    with pytest.raises(BadValue):
        await write(root, RULES, "add,errno=E\tX")
    assert text_of(root, f"{DEBUG}/last_error").count("\n") == 1


async def test_the_list_of_64_rules_is_shown_whole(root: Directory) -> None:
    for _ in range(64):
        await write(root, RULES, "add,errno=ENOTCONN,level=0,skip=1,count=2,delay_ms=5,hang,after,seed=0")
    with pytest.raises(LimitReached) as caught:
        await write(root, RULES, "add,errno=EIO")
    assert caught.value.errno == errno.ENOSPC
    shown = text_of(root, RULES)
    assert len(shown) > 4096
    assert [line.count("hits=0") for line in shown.splitlines()] == [1] * 64
    assert shown.endswith("hits=0\n")


def test_only_the_owner_may_look_and_write_as_in_debugfs(root: Directory) -> None:
    modes = {name: node_at(root, f"{DEBUG}/{name}").mode for name in ("error_injection", "last_error")}
    assert modes == {"error_injection": 0o600, "last_error": 0o400}


async def test_an_accepted_command_is_an_event_and_a_refused_one_is_none(root: Directory, device: FakeDevice) -> None:
    await write(root, RULES, "add,errno=EIO\n")
    with pytest.raises(BadValue):
        await write(root, RULES, "add\n")
    [record] = device.all_events.since(0)
    assert (record.device, record.event, record.facts) == ("ploop0", "fault_rules", {"command": "add,errno=EIO"})


async def test_the_rules_of_a_device_go_with_it(root: Directory, registry: FakeRegistry) -> None:
    file = opened(root, RULES, os.O_RDWR)
    await file.write(0, b"add,errno=EIO")
    registry.add()
    with pytest.raises(NoSuchDevice):
        file.read(0, 4096)
    assert text_of(root, RULES) == ""


def test_each_device_has_rules_of_its_own(root: Directory, registry: FakeRegistry) -> None:
    registry.add(name="ploop1")
    nodes = [node_at(root, f"sys/kernel/debug/ploopfs/{name}/error_injection") for name in ("ploop0", "ploop1")]
    assert all(isinstance(node, Attribute) for node in nodes)
    assert nodes[0] is not nodes[1]
