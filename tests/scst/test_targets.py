"""Targets, groups and LUNs: names and numbers, and what they refuse."""

import pytest

from ploopfs.errors import BadValue
from ploopfs.scst.access import Group
from ploopfs.scst.core import Core
from ploopfs.scst.targets import Target
from ploopfs.scst.text import NAME_MAX_BYTES
from tests.scst.rig import Subsystem, errno_of, loaded

IQN = "iqn.2024-01.e2e:scst"


def prepared() -> Subsystem:
    """Two devices and one target with a group."""
    subsystem = loaded("ploop0", "ploop1")
    for name in ("ploop0", "ploop1"):
        subsystem.manage(f"add_device {name} filename=/dev/{name}")
    subsystem.core.manage_targets(f"add_target {IQN}\n")
    target(subsystem).manage_groups("create g1")
    return subsystem


def target(subsystem: Subsystem, name: str = IQN) -> Target:
    return subsystem.core.iscsi.targets[name]


def luns(group: Group) -> dict[int, tuple[str, bool]]:
    return {number: (lun.device.name, lun.read_only) for number, lun in group.luns.items()}


# LUNs.


def test_luns_are_added_replaced_and_deleted() -> None:
    subsystem = prepared()
    group, devices = target(subsystem).group, subsystem.core.vdisks
    for text in ("add ploop0 0\n", "ADD ploop1 0x10 read_only=1;", "add ploop0 16383"):
        group.manage_luns(text, devices)
    assert luns(group) == {0: ("ploop0", False), 16: ("ploop1", True), 16383: ("ploop0", False)}
    group.manage_luns("replace ploop1 0", devices)
    group.manage_luns("replace_no_ua ploop0 16", devices)
    group.manage_luns("replace ploop0 5", devices)
    assert luns(group) == {16383: ("ploop0", False), 0: ("ploop1", False), 16: ("ploop0", False), 5: ("ploop0", False)}
    group.manage_luns("del 16\n", devices)
    assert 16 not in luns(group)
    group.manage_luns("clear", devices)
    assert luns(group) == {}
    assert [list(vdisk.exports) for vdisk in devices.values()] == [["export0"], ["export0"]]


@pytest.mark.parametrize(
    ("text", "errno"),
    [
        ("add ploop1 0", "EEXIST"),
        ("add nodev 1", "EINVAL"),
        ("add ploop1", "EINVAL"),
        ("add ploop1 x", "EINVAL"),
        ("add ploop1 16384", "EINVAL"),
        ("add ploop1 99999", "EINVAL"),
        ("add ploop1 1 bogus=1", "EINVAL"),
        ("add ploop1 1 read_only=x", "EINVAL"),
        ("add ploop1 1 read_only", "EINVAL"),
        ("del 7", "EINVAL"),
        ("del", "EINVAL"),
        ("del 0 1", "EINVAL"),
        ("replace nodev 0", "EINVAL"),
        ("replace ploop1 0 bogus=1", "EINVAL"),
        ("clear all", "EINVAL"),
        ("bogus", "EINVAL"),
        ("", "EINVAL"),
    ],
)
def test_a_command_on_luns_that_is_refused_changes_nothing(text: str, errno: str) -> None:
    subsystem = prepared()
    for group in target(subsystem).all_groups():
        group.manage_luns("add ploop0 0", subsystem.core.vdisks)
        assert errno_of(group.manage_luns, text, subsystem.core.vdisks) == errno
        assert luns(group) == {0: ("ploop0", False)}


def test_names_of_exports_are_not_used_again() -> None:
    subsystem = prepared()
    group, vdisk = target(subsystem).group, subsystem.core.vdisks["ploop0"]
    for _ in range(2):
        group.manage_luns("add ploop0 0", subsystem.core.vdisks)
        group.manage_luns("del 0", subsystem.core.vdisks)
    group.manage_luns("add ploop0 0", subsystem.core.vdisks)
    assert list(vdisk.exports) == ["export0", "export3"]


def test_a_lun_of_a_read_only_device_is_read_only() -> None:
    subsystem = prepared()
    subsystem.manage("add_device ro filename=/dev/ploop0; read_only=1")
    target(subsystem).group.manage_luns("add ro 1", subsystem.core.vdisks)
    assert luns(target(subsystem).group) == {1: ("ro", True)}


def test_the_copy_manager_has_every_writable_device_under_numbers_that_grow() -> None:
    subsystem = prepared()
    group = subsystem.core.copy_manager.target.group
    assert luns(group) == {0: ("ploop0", False), 1: ("ploop1", False)}
    subsystem.manage("del_device ploop0")
    subsystem.manage("add_device ro filename=/dev/ploop0; read_only=1")
    group.manage_luns("add ro 2", subsystem.core.vdisks)
    subsystem.manage("add_device ploop0 filename=/dev/ploop0")
    assert luns(group) == {1: ("ploop1", False), 2: ("ro", True), 3: ("ploop0", False)}


# Groups and initiators.


def test_groups_come_and_go_with_their_luns() -> None:
    subsystem = prepared()
    one = target(subsystem)
    one.groups["g1"].manage_luns("add ploop0 0", subsystem.core.vdisks)
    assert [errno_of(one.manage_groups, text) for text in ("create g1", "create mgmt")] == ["EEXIST", "EEXIST"]
    bad = ("create", "del", "del none", "bogus x", "create a/b", "")
    assert [errno_of(one.manage_groups, text) for text in bad] == ["EINVAL"] * len(bad)
    one.manage_groups("DEL g1\n")
    assert (one.groups, list(subsystem.core.vdisks["ploop0"].exports)) == ({}, ["export0"])


def test_initiators_are_added_moved_and_deleted() -> None:
    one = target(prepared())
    one.manage_groups("create g2")
    first, second = one.groups["g1"], one.groups["g2"]
    for name in ("iqn.a", "iqn.b*", "iqn.c"):
        first.manage_initiators(f"add {name}\n", one.groups)
    first.manage_initiators("move iqn.a g2", one.groups)
    first.manage_initiators("del iqn.c", one.groups)
    assert (list(first.initiators), list(second.initiators)) == (["iqn.b*"], ["iqn.a"])
    second.manage_initiators("add iqn.b*", one.groups)
    assert errno_of(first.manage_initiators, "move iqn.b* g2", one.groups) == "EEXIST"
    assert list(first.initiators) == ["iqn.b*"]
    first.manage_initiators("clear", one.groups)
    assert first.initiators == {}


@pytest.mark.parametrize(
    ("text", "errno"),
    [
        ("add iqn.a", "EEXIST"),
        ("add mgmt", "EEXIST"),
        ("add", "EINVAL"),
        ("add a/b", "EINVAL"),
        ("del none", "EINVAL"),
        ("del", "EINVAL"),
        ("move iqn.a", "EINVAL"),
        ("move iqn.a none", "EINVAL"),
        ("move none g1", "EINVAL"),
        ("bogus", "EINVAL"),
    ],
)
def test_a_command_on_initiators_that_is_refused_changes_nothing(text: str, errno: str) -> None:
    one = target(prepared())
    group = one.groups["g1"]
    group.manage_initiators("add iqn.a", one.groups)
    assert errno_of(group.manage_initiators, text, one.groups) == errno
    assert list(group.initiators) == ["iqn.a"]


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("addr_method", "flat\n", "FLAT\n[key]"),
        ("io_grouping_type", "never", "never\n[key]"),
        ("io_grouping_type", "3", "3\n[key]"),
        ("black_hole", "4", "4"),
        ("cpu_mask", "FF,00000003\n", "ff,00000003\n[key]"),
        ("per_sess_dedicated_tgt_threads", "1", "1\n[key]"),
    ],
)
def test_a_group_keeps_its_settings(name: str, text: str, shown: str) -> None:
    settings = target(prepared()).groups["g1"].settings
    settings.store(name, text)
    assert settings.show(name) == shown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("addr_method", "x"),
        ("io_grouping_type", "0"),
        ("io_grouping_type", "x"),
        ("black_hole", "5"),
        ("cpu_mask", "x"),
    ],
)
def test_a_group_refuses_other_settings(name: str, text: str) -> None:
    with pytest.raises(BadValue):
        target(prepared()).groups["g1"].settings.store(name, text)


# Targets.


def test_targets_have_numbers_and_names_of_their_own() -> None:
    core = prepared().core
    core.manage_targets("add_target iqn.other InitialR2T=Yes; MaxSessions=4")
    assert [one.tid for one in core.iscsi.targets.values()] == [1, 2]
    settings = core.iscsi.targets["iqn.other"].settings
    assert [settings.show(name) for name in ("InitialR2T", "MaxSessions", "alias", "comment")] == [
        "Yes\n[key]\n",
        "4\n[key]\n",
        "",
        None,
    ]
    for text in (f"add_target {IQN}", f"add_target {IQN.upper()}", "add_target enabled", "add_target mgmt"):
        assert errno_of(core.manage_targets, text) == "EEXIST", text
    bad = ("add_target", "add_target iqn.x bogus=1", "add_target iqn.x MaxSessions=x", "del_target", "bogus", "")
    assert [errno_of(core.manage_targets, text) for text in bad] == ["EINVAL"] * len(bad)
    assert errno_of(core.manage_targets, "del_target nope") == "ENOENT"
    assert list(core.iscsi.targets) == [IQN, "iqn.other"]
    core.manage_targets("del_target iqn.other")
    core.manage_targets("add_target iqn.other")
    assert core.iscsi.targets["iqn.other"].tid == 3


def test_a_deleted_target_exports_nothing_any_more() -> None:
    subsystem = prepared()
    target(subsystem).groups["g1"].manage_luns("add ploop0 0", subsystem.core.vdisks)
    subsystem.core.manage_targets(f"del_target {IQN}")
    assert list(subsystem.core.vdisks["ploop0"].exports) == ["export0"]


def enabled(core: Core, name: str, text: str = "1") -> str:
    return errno_of(core.iscsi.enable, core.iscsi.targets[name], text)


def test_enabling_gives_a_relative_port_number_that_is_free() -> None:
    core = prepared().core
    for name in ("b", "c", "d"):
        core.manage_targets(f"add_target {name}")
    core.iscsi.set_rel_tgt_id(core.iscsi.targets["c"], "2")
    assert [enabled(core, name) for name in (IQN, "c", "b")] == [""] * 3
    assert [core.iscsi.targets[name].rel_tgt_id for name in (IQN, "b", "c", "d")] == [1, 3, 2, 0]
    assert enabled(core, IQN, "0") == ""
    assert (core.iscsi.targets[IQN].enabled, core.iscsi.targets[IQN].rel_tgt_id) == (False, 1)
    assert [enabled(core, IQN, text) for text in ("x", "", "2")] == ["EINVAL"] * 3


def test_a_relative_port_number_is_its_targets_alone_while_that_is_enabled() -> None:
    core = prepared().core
    core.manage_targets("add_target b")
    one, two = core.iscsi.targets[IQN], core.iscsi.targets["b"]
    core.iscsi.enable(one, "1")
    core.iscsi.set_rel_tgt_id(two, "1")
    assert enabled(core, "b") == "EBADSLT"
    assert not two.enabled
    core.iscsi.set_rel_tgt_id(two, "0x2")
    core.iscsi.enable(two, "1")
    assert errno_of(core.iscsi.set_rel_tgt_id, two, "1") == "EBADSLT"
    bad = ("0", "65536", "x", "")
    assert [errno_of(core.iscsi.set_rel_tgt_id, two, text) for text in bad] == ["EINVAL"] * 4
    assert two.rel_tgt_id == 2
    core.iscsi.enable(two, "0")
    core.iscsi.set_rel_tgt_id(two, "0")
    assert two.rel_tgt_id == 0


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("HeaderDigest", "crc32c\n", "CRC32C\n[key]\n"),
        ("DataDigest", "CRC32C,None", "None,CRC32C\n[key]\n"),
        ("ImmediateData", "No", "No\n[key]\n"),
        ("ImmediateData", ":default:", "Yes"),
        ("MaxBurstLength", "65536", "65536\n[key]\n"),
        ("redirect", "10.0.0.1:3260 TEMP", "10.0.0.1 temp\n[key]\n"),
        ("redirect", "[fe80::1]:99 perm", "[fe80::1]:99 perm\n[key]\n"),
        ("redirect", "\n", ""),
        ("alias", " my disk \n", "my disk\n[key]\n"),
        ("per_portal_acl", "1\n", "1\n[key]\n"),
        ("comment", "some words\n", "some words\n[key]"),
        ("aen_disabled", "1", "1\n[key]"),
    ],
)
def test_a_target_keeps_its_settings(name: str, text: str, shown: str) -> None:
    settings = target(prepared()).settings
    settings.store(name, text)
    assert settings.show(name) == shown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HeaderDigest", "md5"),
        ("InitialR2T", "maybe"),
        ("QueuedCommands", "0"),
        ("redirect", "10.0.0.1"),
        ("redirect", "host temp"),
        ("redirect", "10.0.0.1 soon"),
        ("redirect", "10.0.0.1 temp now"),
        ("per_portal_acl", "2"),
        ("forward_src", "2"),
    ],
)
def test_a_target_refuses_other_settings(name: str, text: str) -> None:
    with pytest.raises(BadValue):
        target(prepared()).settings.store(name, text)


def test_the_driver_keeps_its_settings() -> None:
    settings = prepared().core.iscsi.settings
    for name, text, shown in (
        ("enabled", "1\n", "1\n"),
        ("link_local", "0", "0\n[key]\n"),
        ("internal_portal", "127.0.0.1 ::1", "127.0.0.1 ::1\n[key]\n"),
        ("isns_entity_name", "me\n", "me"),
    ):
        settings.store(name, text)
        assert settings.show(name) == shown
    for name, text in (("enabled", "2"), ("internal_portal", "nowhere")):
        with pytest.raises(BadValue):
            settings.store(name, text)


# Users and portals.

SECRET = "12charsecret"


def test_users_and_portals_are_attributes_that_are_added() -> None:
    core = prepared().core
    extras = target_of(core).extras
    for user in ("IncomingUser joe", "IncomingUser jim", "OutgoingUser o1"):
        core.manage_targets(f"add_target_attribute {IQN} {user} {SECRET}")
    core.manage_targets(f"add_target_attribute {IQN} allowed_portal 10.0.0.1")
    core.manage_targets(f"add_target_attribute {IQN} OutgoingUser o2 {SECRET}\n")
    assert {name: extra.show() for name, extra in extras.items()} == {
        "IncomingUser": f"joe {SECRET}\n[key]\n",
        "IncomingUser1": f"jim {SECRET}\n[key]\n",
        "allowed_portal": "10.0.0.1\n[key]\n",
        "OutgoingUser": f"o2 {SECRET}\n[key]\n",
    }
    assert [name for name, extra in extras.items() if not extra.is_secret] == ["allowed_portal"]
    core.manage_targets(f"del_target_attribute {IQN} IncomingUser joe {SECRET}")
    core.manage_targets(f"del_target_attribute {IQN} allowed_portal 10.0.0.1")
    assert list(extras) == ["IncomingUser1", "OutgoingUser"]
    core.manage_targets(f"add_attribute IncomingUser joe {SECRET}")
    assert list(core.iscsi.extras) == ["IncomingUser"]


@pytest.mark.parametrize("digits", [300, 243])
def test_the_name_of_an_added_attribute_fits_into_a_directory(digits: int) -> None:
    """One that does not makes the whole directory unreadable: the kernel refuses the listing."""
    core = prepared().core
    name = "IncomingUser" + "0" * digits
    errnos = [errno_of(core.manage_targets, f"add_attribute {name} {user} {SECRET}") for user in ("joe", "jim")]
    assert errnos[-1] == "EINVAL"
    assert all(len(added) <= NAME_MAX_BYTES for added in core.iscsi.extras)


def target_of(core: Core) -> Target:
    return core.iscsi.targets[IQN]


@pytest.mark.parametrize(
    ("text", "errno"),
    [
        ("add_attribute IncomingUser joe short", "EINVAL"),
        ("add_attribute IncomingUser joe", "EINVAL"),
        ("add_attribute IncomingUser", "EINVAL"),
        ("add_attribute allowed_portal 10.0.0.1", "EINVAL"),
        ("add_attribute bogus x", "EINVAL"),
        (f"add_target_attribute {IQN} IncomingUser joe {SECRET}", "EINVAL"),
        (f"add_target_attribute {IQN} allowed_portal", "EINVAL"),
        (f"add_target_attribute {IQN} allowed_portal 1 2", "EINVAL"),
        (f"add_target_attribute nope IncomingUser joe {SECRET}", "ENOENT"),
        ("del_target_attribute nope IncomingUser joe", "ENOENT"),
        (f"del_target_attribute {IQN} IncomingUser jim", "ENOENT"),
        (f"del_target_attribute {IQN} allowed_portal 10.0.0.1", "EINVAL"),
        ("del_attribute bogus x", "EINVAL"),
    ],
)
def test_an_attribute_that_is_refused_is_not_there(text: str, errno: str) -> None:
    core = prepared().core
    core.manage_targets(f"add_target_attribute {IQN} IncomingUser joe {SECRET}")
    assert errno_of(core.manage_targets, text) == errno
    assert (list(target_of(core).extras), list(core.iscsi.extras)) == (["IncomingUser"], [])


def test_an_added_attribute_can_be_stored_to() -> None:
    core = prepared().core
    extras = target_of(core).extras
    for name in ("joe", "jim"):
        core.manage_targets(f"add_target_attribute {IQN} IncomingUser {name} {SECRET}")
    extras.store("IncomingUser", f"jon {SECRET}2\n")
    assert extras["IncomingUser"].show() == f"jon {SECRET}2\n[key]\n"
    assert errno_of(extras.store, "IncomingUser", f"jim {SECRET}") == "EEXIST"
    assert errno_of(extras.store, "IncomingUser", "\n") == "EINVAL"
