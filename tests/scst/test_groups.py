"""Device groups and their target groups: names that belong to one at a time."""

import pytest

from ploopfs.errors import BadValue
from ploopfs.scst.alua import DeviceGroup, Elsewhere
from ploopfs.scst.core import Core
from tests.scst.rig import errno_of, loaded


def prepared() -> Core:
    subsystem = loaded("ploop0", "ploop1")
    subsystem.manage("add_device a filename=/dev/ploop0")
    subsystem.manage("add_device b filename=/dev/ploop1")
    core = subsystem.core
    core.manage_targets("add_target iqn.x")
    for name in ("g1", "g2"):
        core.device_groups.manage(f"create {name}\n")
    group(core).manage_target_groups("add t1")
    return core


def group(core: Core, name: str = "g1") -> DeviceGroup:
    return core.device_groups[name]


def test_groups_are_created_and_deleted() -> None:
    core = prepared()
    assert list(core.device_groups) == ["g1", "g2"]
    assert [errno_of(core.device_groups.manage, text) for text in ("create g1", "add mgmt")] == ["EEXIST", "EEXIST"]
    bad = ("create", "del none", "bogus x", "", "create a/b")
    assert [errno_of(core.device_groups.manage, text) for text in bad] == ["EINVAL"] * len(bad)
    core.device_groups.manage("DEL g1")
    assert list(core.device_groups) == ["g2"]


def test_a_device_is_in_one_group_at_most() -> None:
    core = prepared()
    core.manage_group_devices(group(core), "add a\n")
    assert [errno_of(core.manage_group_devices, group(core, name), "add a") for name in ("g1", "g2")] == ["EEXIST"] * 2
    bad = ("add none", "add", "del b", "bogus a", "")
    assert [errno_of(core.manage_group_devices, group(core), text) for text in bad] == ["EINVAL"] * len(bad)
    core.manage_group_devices(group(core), "del a")
    core.manage_group_devices(group(core, "g2"), "add a")
    assert (group(core).devices, list(group(core, "g2").devices)) == ({}, ["a"])


def test_a_target_is_ours_or_elsewhere_and_in_one_target_group_of_a_group() -> None:
    core = prepared()
    one = group(core)
    one.manage_target_groups("create t2")
    first, second = one.target_groups["t1"], one.target_groups["t2"]
    core.manage_group_targets(one, first, "add iqn.x")
    core.manage_group_targets(one, second, "add iqn.elsewhere")
    assert first.targets == {"iqn.x": "iscsi/iqn.x"}
    other = second.targets["iqn.elsewhere"]
    assert isinstance(other, Elsewhere)
    assert other.show() == "0\n[key]"
    other.store("12")
    assert other.show() == "12\n[key]"
    assert [errno_of(other.store, text) for text in ("0", "65536", "x")] == ["EINVAL"] * 3
    for text in ("add iqn.x", "add state", "add mgmt"):
        assert errno_of(core.manage_group_targets, one, second, text) == "EEXIST"
    bad = ("del iqn.x", "add", "bogus", "")
    assert [errno_of(core.manage_group_targets, one, second, text) for text in bad] == ["EINVAL"] * len(bad)
    core.manage_group_targets(one, second, "del iqn.elsewhere")
    assert second.targets == {}


def test_a_target_that_goes_leaves_its_group_and_one_that_is_elsewhere_stays() -> None:
    core = prepared()
    one = group(core)
    for name in ("iqn.x", "iqn.y"):
        core.manage_group_targets(one, one.target_groups["t1"], f"add {name}")
    core.manage_targets("del_target iqn.x")
    assert list(one.target_groups["t1"].targets) == ["iqn.y"]


def test_target_groups_are_created_and_deleted() -> None:
    one = group(prepared())
    assert errno_of(one.manage_target_groups, "create t1") == "EEXIST"
    assert [errno_of(one.manage_target_groups, text) for text in ("del none", "create", "x")] == ["EINVAL"] * 3
    one.manage_target_groups("del t1")
    assert one.target_groups == {}


def test_a_target_group_is_saved_with_its_number_and_its_state() -> None:
    settings = group(prepared()).target_groups["t1"].settings
    assert [settings.show(name) for name in ("group_id", "state", "preferred")] == ["0\n[key]", "active\n[key]", "0"]
    for name, text in (("group_id", "7\n"), ("state", "nonoptimized\n"), ("preferred", "1")):
        settings.store(name, text)
    assert [settings.show(name) for name in ("group_id", "state", "preferred")] == [
        "7\n[key]",
        "nonoptimized\n[key]",
        "1\n[key]",
    ]
    for name, text in (("group_id", "0"), ("group_id", "65536"), ("state", "asleep"), ("preferred", "2")):
        with pytest.raises(BadValue):
            settings.store(name, text)


def test_the_result_of_a_queued_command_is_kept_and_its_reason_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    core = prepared()
    assert errno_of(core.queued, core.manage_targets, "add_target iqn.x") == "EEXIST"
    assert core.last_result == -17
    assert "'add_target iqn.x' failed: target iqn.x exists already" in caplog.messages
    core.queued(core.manage_targets, "add_target iqn.y")
    assert core.last_result == 0


def test_suspending_counts() -> None:
    core = prepared()
    for text, count in (("0", 1), ("10", 2), ("-1", 1), ("-1", 0), ("-1", 0)):
        core.suspend(text)
        assert core.suspends == count
    assert errno_of(core.suspend, "x") == "EINVAL"


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("setup_id", "0x10\n", "0x10\n[key]"),
        ("setup_id", "17", "0x11\n[key]"),
        ("threads", "4", "4\n[key]"),
        ("cluster_name", "c1\n", "c1\n[key]"),
        ("cluster_name", "\n", None),
        ("async_lun_replace", "1", "1"),
        ("max_tasklet_cmd", "20", "20\n[key]"),
        ("poll_us", "0", "0"),
    ],
)
def test_the_subsystem_keeps_its_settings(name: str, text: str, shown: str | None) -> None:
    core = prepared()
    core.settings.store(name, text)
    assert core.settings.show(name) == shown


@pytest.mark.parametrize(("name", "text"), [("threads", "0"), ("setup_id", "x"), ("cluster_name", "c" * 64)])
def test_the_subsystem_refuses_other_settings(name: str, text: str) -> None:
    assert errno_of(prepared().settings.store, name, text) == "EINVAL"
