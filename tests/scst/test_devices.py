"""Virtual devices: what adding one takes, and which disk has STANDBY_EN while it is there."""

import errno

import pytest
import trio
import trio.testing

from ploopfs.bounds import SYNC_TIMEOUT_S
from ploopfs.device.flavour import VZ9
from ploopfs.errors import PloopError
from ploopfs.scst.handlers import NULLIO_BYTES
from ploopfs.scst.vdisk import crc32c
from tests.device.rig import TOP, Asked, rig_of, three_deltas
from tests.scst.rig import MIB, MOUNTPOINT, Subsystem, errno_of, loaded
from tests.sysfs.fakes import FakeMapper


def added(text: str, *disks: str, handler: str = "vdisk_blockio") -> Subsystem:
    """With one device `a`, or whatever `text` says."""
    subsystem = loaded(*(disks or ("ploop0",)))
    subsystem.manage(f"add_device {text}", handler)
    return subsystem


# Which disk a file name means.


@pytest.mark.parametrize(
    "filename",
    [
        "/dev/ploop0",
        "//dev//ploop0",
        "/dev/./ploop0",
        "/dev/mapper/../ploop0",
        f"{MOUNTPOINT}/dev/ploop0",
        f"{MOUNTPOINT}/sys/../dev/ploop0",
    ],
)
def test_a_disk_is_found_by_its_name_in_dev_of_the_tree(filename: str) -> None:
    assert added(f"a filename={filename}").states() == ["off"]


@pytest.mark.parametrize("name", ["dm-3", "mapper/vol"])
@pytest.mark.parametrize("root", ["", MOUNTPOINT])
def test_a_mapped_disk_is_found_by_both_its_names(root: str, name: str) -> None:
    subsystem = loaded()
    subsystem.disk("dm-3", flavour=VZ9)
    device = subsystem.registry.devices["dm-3"]
    device.mapper = FakeMapper(device.queue, "vol")
    subsystem.manage(f"add_device a filename={root}/dev/{name}")
    assert subsystem.states() == ["off"]


@pytest.mark.parametrize("root", ["", MOUNTPOINT])
@pytest.mark.parametrize("name", ["/dev/ploop1", "/dev", "/dev/", "/ploop0", "/x/dev/ploop0", "/dev/mapper/ploop0"])
def test_what_is_no_disk_of_the_tree_does_not_exist(root: str, name: str) -> None:
    subsystem = loaded("ploop0")
    assert subsystem.errno(f"add_device a filename={root}{name}") == "ENOENT"
    assert (dict(subsystem.core.vdisks), subsystem.states()) == ({}, ["not supported"])


# What adding takes, and what it refuses.


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        ("add_device", "EINVAL"),
        ("add_device a", "EINVAL"),
        ("add_device a filename", "EINVAL"),
        ("add_device a filename=ploop0", "EINVAL"),
        ("add_device a filename=/dev/none", "ENOENT"),
        ("add_device a filename=/dev/ploop0; bogus=1", "EINVAL"),
        ("add_device a filename=/dev/ploop0; filename=/dev/ploop0", "EINVAL"),
        ("add_device a filename=/dev/ploop0; o_direct=1", "EINVAL"),
        ("add_device a filename=/dev/ploop0; read_only=x", "EINVAL"),
        ("add_device a filename=/dev/ploop0; blocksize=100", "EINVAL"),
        ("add_device a filename=/dev/ploop0; blocksize=768", "EINVAL"),
        ("add_device a filename=/dev/ploop0; tst=2", "EINVAL"),
        ("add_device a filename=/dev/ploop0; numa_node_id=-2", "EINVAL"),
        ("add_device a filename=/dev/ploop0; dif_mode=dev", "EINVAL"),
        ("add_device a filename=/dev/ploop0; t10_dev_id=" + "x" * 26, "EINVAL"),
        ("add_device a/b filename=/dev/ploop0", "EINVAL"),
        ("add_device " + "n" * 65 + " filename=/dev/ploop0", "EINVAL"),
        ("add_device mgmt filename=/dev/ploop0", "EEXIST"),
        ("add_device b filename=/dev/ploop0", "EEXIST"),
        ("frobnicate x", "EINVAL"),
        ("", "EINVAL"),
        ("del_device", "EINVAL"),
        ("del_device nodev", "EINVAL"),
        ("del_device b c", "EINVAL"),
    ],
)
def test_a_command_that_is_refused_changes_nothing(command: str, errno: str) -> None:
    subsystem = added("b filename=/dev/ploop1", "ploop0", "ploop1")
    assert subsystem.errno(command) == errno
    assert list(subsystem.core.vdisks) == ["b"]
    assert subsystem.states() == ["not supported", "off"]


@pytest.mark.parametrize(
    "command",
    [
        "add_device a filename=/dev/ploop0",
        "ADD_DEVICE a FILENAME=/dev/ploop0\n",
        "  add_device  a   filename = /dev/ploop0 ; blocksize=4096;",
        "add_device a filename=/dev/ploop0;dif_type=0;",
        "add_device a blocksize=0x1000; filename=/dev/ploop0; nv_cache=0",
        "add_device " + "n" * 64 + " filename=/dev/ploop0",
    ],
)
def test_verbs_parameters_and_blanks_may_be_written_as_one_likes(command: str) -> None:
    subsystem = loaded("ploop0")
    subsystem.manage(command)
    assert subsystem.states() == ["off"]


def test_parameters_become_the_values_that_are_shown() -> None:
    text = "read_only=1; removable=1; rotational=0; nv_cache=1; tst=0; t10_dev_id=abc; blocksize=4096; numa_node_id=1"
    settings = added(f"a filename=/dev/ploop0; {text}; cluster_mode=1").core.vdisks["a"].settings
    shown = {name: settings.show(name) for name in ("read_only", "removable", "nv_cache", "t10_dev_id", "blocksize")}
    assert shown == {
        "read_only": "1\n[key]",
        "removable": "1\n[key]",
        "nv_cache": "1\n[key]",
        "t10_dev_id": "abc\n[key]",
        "blocksize": "4096\n[key]",
    }
    assert [settings.show(name) for name in ("rotational", "tst", "numa_node_id", "cluster_mode")] == [
        "0\n[key]",
        "0\n[key]",
        "1\n[key]",
        "1\n[key]",
    ]
    assert settings.show("thin_provisioned") == "0", "a read-only device discards nothing"


def test_the_identity_comes_from_the_name_and_the_setup() -> None:
    assert crc32c(b"ploop0\0") == 0x465642C7
    subsystem = loaded("ploop0")
    subsystem.core.settings.store("setup_id", "0x10")
    subsystem.manage("add_device ploop0 filename=/dev/ploop0")
    settings = subsystem.core.vdisks["ploop0"].settings
    assert (settings["usn"], settings["t10_dev_id"]) == ("10465642c7", "10465642c7-ploop0")


def test_a_long_name_is_cut_where_initiators_see_less_of_it() -> None:
    settings = added(f"{'n' * 64} filename=/dev/ploop0").core.vdisks["n" * 64].settings
    assert [len(settings[name] or "") for name in ("prod_id", "t10_dev_id")] == [16, 25]


def test_a_read_only_disk_wants_a_read_only_device() -> None:
    subsystem = loaded()
    subsystem.disk("ploop0", read_only=True)
    assert subsystem.errno("add_device a filename=/dev/ploop0") == "EACCES"
    subsystem.manage("add_device a filename=/dev/ploop0; read_only=1")
    assert subsystem.states() == ["off"]


# STANDBY_EN: in from the command that adds to the one that deletes.


def test_a_disk_may_be_in_scst_twice_and_supports_standby_until_the_last_is_deleted() -> None:
    subsystem = added("a filename=/dev/ploop0", "ploop0", "ploop1")
    subsystem.manage("add_device b filename=/dev/ploop0")
    assert subsystem.states() == ["off", "not supported"]
    subsystem.manage("del_device a")
    assert subsystem.states() == ["off", "not supported"]
    subsystem.manage("del_device b")
    assert subsystem.states() == ["not supported", "not supported"]


def test_closing_the_file_deletes_nothing() -> None:
    subsystem = added("a filename=/dev/ploop0")
    vdisk = subsystem.core.vdisks["a"]
    vdisk.set_active("0\n")
    assert (vdisk.active, subsystem.states()) == (False, ["off"])
    vdisk.set_active("1")
    vdisk.set_active("1")
    assert (vdisk.active, subsystem.states()) == (True, ["off"])
    assert [errno_of(vdisk.set_active, text) for text in ("2", "x", "")] == ["EINVAL"] * 3


def test_another_file_name_moves_standby_en_and_is_possible_while_inactive() -> None:
    subsystem = added("a filename=/dev/ploop0", "ploop0", "ploop1")
    vdisk = subsystem.core.vdisks["a"]
    assert errno_of(vdisk.set_filename, "/dev/ploop1") == "EINVAL"
    vdisk.set_active("0")
    assert [errno_of(vdisk.set_filename, text) for text in ("", "\n", "ploop1")] == ["EINVAL"] * 3
    assert (vdisk.filename, subsystem.states()) == ("/dev/ploop0", ["off", "not supported"])
    vdisk.set_filename(" /dev/ploop1 \n")
    assert (vdisk.filename, subsystem.states()) == ("/dev/ploop1", ["not supported", "off"])
    vdisk.set_active("1")
    subsystem.manage("del_device a")
    assert subsystem.states() == ["not supported", "not supported"]


def test_the_same_file_name_again_does_not_touch_the_queue() -> None:
    subsystem = added("a filename=/dev/ploop0")
    changes = subsystem.registry.devices["ploop0"].queue.standby.changed
    before = changes.version
    vdisk = subsystem.core.vdisks["a"]
    vdisk.set_active("0")
    vdisk.set_filename(f"{MOUNTPOINT}/dev/ploop0")
    vdisk.set_active("1")
    assert changes.version == before


def test_a_file_that_is_missing_is_missed_when_the_device_becomes_active() -> None:
    subsystem = added("a filename=/dev/ploop9; active=0")
    vdisk = subsystem.core.vdisks["a"]
    assert (vdisk.active, vdisk.size_bytes, vdisk.device) == (False, 0, None)
    assert errno_of(vdisk.set_active, "1") == "ENOENT"
    assert not vdisk.active
    assert errno_of(vdisk.resync_size, "1") == "EMEDIUMTYPE"
    subsystem.disk("ploop9", mib=8)
    vdisk.set_active("1")
    assert (vdisk.active, vdisk.size_bytes) == (True, 8 * MIB)
    assert subsystem.states() == ["not supported", "off"]


def test_an_inactive_device_is_in_scst_too() -> None:
    subsystem = added("a filename=/dev/ploop0; active=0")
    assert subsystem.states() == ["off"]
    assert errno_of(subsystem.scst.unload) == "EBUSY"


def test_a_deleted_device_leaves_every_group_of_every_target() -> None:
    subsystem = added("a filename=/dev/ploop0")
    core = subsystem.core
    core.manage_targets("add_target iqn.x")
    target = core.iscsi.targets["iqn.x"]
    target.manage_groups("create g")
    for group in target.all_groups():
        group.manage_luns("add a 3", core.vdisks)
    core.device_groups.manage("create dg")
    core.manage_group_devices(core.device_groups["dg"], "add a")
    vdisk = core.vdisks["a"]
    assert {name: lun.path for name, lun in vdisk.exports.items()} == {
        "export0": "copy_manager/copy_manager_tgt/luns/0",
        "export1": "iscsi/iqn.x/luns/3",
        "export2": "iscsi/iqn.x/ini_groups/g/luns/3",
    }
    subsystem.manage("del_device a")
    assert [dict(group.luns) for group in target.all_groups()] == [{}, {}]
    assert core.copy_manager.target.group.luns == {}
    assert core.device_groups["dg"].devices == {}


def test_coming_and_going_are_events() -> None:
    subsystem = added("a filename=/dev/ploop0")
    subsystem.manage("del_device a")
    events = [record for record in subsystem.registry.events.since(0) if record.event.startswith("scst_")]
    assert [(record.event, record.device, record.facts["name"]) for record in events] == [
        ("scst_device_added", "ploop0", "a"),
        ("scst_device_deleted", "ploop0", "a"),
    ]
    assert events[0].facts["filename"] == "/dev/ploop0"


# Values with rules of their own.


def test_the_size_can_be_set_in_whole_blocks_and_read_again_from_the_disk() -> None:
    vdisk = added("a filename=/dev/ploop0; blocksize=4096").core.vdisks["a"]
    assert (vdisk.size_bytes, vdisk.has_key_size) == (64 * MIB, True)
    vdisk.set_size("8192")
    assert vdisk.size_bytes == 8192
    vdisk.set_size("3", 20)
    assert vdisk.size_bytes == 3 * MIB
    assert [errno_of(vdisk.set_size, text) for text in ("512", "x", "-1")] == ["EINVAL"] * 3
    assert errno_of(vdisk.set_size, str(2**63), 20) == "EINVAL"
    vdisk.resync_size("")
    assert vdisk.size_bytes == 64 * MIB


def test_blocking_counts() -> None:
    vdisk = added("a filename=/dev/ploop0").core.vdisks["a"]
    for text, blocks in (("1\n", 1), ("11 cookie", 2), ("0", 1), (" 0 ", 0), ("0", 0)):
        vdisk.set_blocks(text)
        assert vdisk.blocks == blocks
    assert [errno_of(vdisk.set_blocks, text) for text in ("", "2", "0 1", "1x")] == ["EINVAL"] * 4


def test_the_reservations_of_an_exported_device_stay_where_they_are() -> None:
    subsystem = loaded("ploop0")
    subsystem.manage("add_device ro filename=/dev/ploop0; read_only=1")
    subsystem.manage("add_device rw filename=/dev/ploop0")
    readonly, writable = subsystem.core.vdisks["ro"], subsystem.core.vdisks["rw"]
    # The copy manager takes no read-only device.
    assert (list(readonly.exports), list(writable.exports)) == ([], ["export0"])
    readonly.set_pr_file_name("/pr/x\n")
    assert readonly.pr_file_name == "/pr/x"
    readonly.set_pr_file_name("\n")
    assert readonly.pr_file_name == "/var/lib/scst/pr/ro"
    readonly.set_pr_state("version 1\ngeneration 0\n")
    assert errno_of(readonly.set_pr_state, "version 1\ngeneration 5\n") == "EINVAL"
    assert [errno_of(writable.set_pr_file_name, "/x"), errno_of(writable.set_pr_state, "x")] == ["EBUSY", "EBUSY"]
    readonly.settings.store("cluster_mode", "1")
    assert errno_of(readonly.set_pr_file_name, "/x") == "EPERM"


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("naa_id", "0x5000c50015ea71ac\n", "0x5000c50015ea71ac\n[key]"),
        ("naa_id", "6" + "0" * 31, "0x6" + "0" * 31 + "\n[key]"),
        ("naa_id", "\n", ""),
        ("eui64_id", "0x" + "AB" * 12, "0x" + "ab" * 12 + "\n[key]"),
        ("usn", "x" * 20 + "\n", "x" * 20 + "\n[key]"),
        ("prod_id", "disk\n", "disk\n[key]"),
        ("scsi_device_name", "\n", ""),
        ("threads_pool_type", "shared\n", "shared\n[key]"),
        ("threads_num", "4", "4\n[key]"),
        ("opt_trans_len", "524288", "524288\n[key]"),
        ("expl_alua", "5", "1\n[key]"),
    ],
)
def test_a_setting_takes_what_the_original_takes(name: str, text: str, shown: str) -> None:
    settings = added("a filename=/dev/ploop0").core.vdisks["a"].settings
    settings.store(name, text)
    assert settings.show(name) == shown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("naa_id", "4" + "0" * 15),
        ("naa_id", "123"),
        ("naa_id", "5" + "z" * 15),
        ("eui64_id", "0" * 15),
        ("usn", "x" * 21),
        ("prod_id", "x" * 17),
        ("t10_vend_id", "x" * 9),
        ("threads_pool_type", "none"),
        ("threads_num", "-1"),
        ("numa_node_id", "-2"),
        ("lb_per_pb_exp", "2"),
    ],
)
def test_a_setting_refuses_what_the_original_refuses(name: str, text: str) -> None:
    settings = added("a filename=/dev/ploop0").core.vdisks["a"].settings
    before = settings.show(name)
    assert errno_of(settings.store, name, text) == "EINVAL"
    assert settings.show(name) == before


# Other handlers.


def test_a_file_handler_takes_a_disk_of_the_tree_too() -> None:
    subsystem = added("a filename=/dev/ploop0; async=1; o_direct=1", handler="vdisk_fileio")
    settings = subsystem.core.vdisks["a"].settings
    assert subsystem.states() == ["off"]
    assert [settings.show(name) for name in ("async", "o_direct")] == ["1\n[key]", "1\n[key]"]
    assert [settings.show(name) for name in ("bind_alua_state", "thin_provisioned")] == ["0", "0"]
    assert settings.show("t10_vend_id") == "SCST_FIO"
    assert subsystem.errno("add_device b filename=/etc/passwd", "vdisk_fileio") == "ENOENT"


def test_a_disk_of_nothing_needs_no_file() -> None:
    subsystem = added("a", handler="vdisk_nullio")
    vdisk = subsystem.core.vdisks["a"]
    assert (vdisk.size_bytes, vdisk.has_key_size, subsystem.states()) == (NULLIO_BYTES, False, ["not supported"])
    subsystem.manage("add_device b size_mb=5; dummy=1", "vdisk_nullio")
    assert subsystem.core.vdisks["b"].size_bytes == 5 * MIB
    assert subsystem.errno("add_device c size=513", "vdisk_nullio") == "EINVAL"
    assert subsystem.errno("add_device c filename=/dev/ploop0", "vdisk_nullio") == "EINVAL"
    assert errno_of(subsystem.scst.unload) == "EBUSY"


def test_a_drive_holds_a_disk_for_as_long_as_it_is_in() -> None:
    subsystem = added("a", handler="vcdrom")
    drive = subsystem.core.vdisks["a"]
    assert (drive.size_bytes, drive.read_only, drive.exports) == (0, True, {})
    drive.set_medium("/dev/ploop0\n")
    assert (drive.size_bytes, subsystem.states()) == (64 * MIB, ["off"])
    assert errno_of(drive.set_medium, "/dev/none") == "ENOENT"
    assert (drive.filename, subsystem.states()) == ("/dev/ploop0", ["off"])
    drive.set_medium("\n")
    assert (drive.filename, drive.size_bytes, subsystem.states()) == (None, 0, ["not supported"])
    assert subsystem.errno("add_device b filename=/dev/ploop0", "vcdrom") == "EINVAL"


# Flushing.


async def test_sync_flushes_the_disk() -> None:
    rig = await rig_of(three_deltas())
    await rig.device.write(0, b"x")
    before = rig.faults.log.count(("fsync", TOP))
    await rig.scst.core.vdisks["ploop0"].wait_flushed()
    assert rig.faults.log.count(("fsync", TOP)) > before


async def test_sync_of_a_closed_file_is_refused_and_of_none_is_nothing() -> None:
    rig = await rig_of(three_deltas())
    vdisk = rig.scst.core.vdisks["ploop0"]
    vdisk.set_active("0")
    with pytest.raises(PloopError) as refused:
        await vdisk.wait_flushed()
    assert refused.value.errno == errno.EMEDIUMTYPE
    await added("a", handler="vdisk_nullio").core.vdisks["a"].wait_flushed()


async def test_sync_gives_up_on_a_store_that_does_not_answer(autojump_clock: trio.testing.MockClock) -> None:
    assert autojump_clock.autojump_threshold == 0
    rig = await rig_of(three_deltas())
    await rig.device.write(0, b"x")
    rig.hang("fsync")
    async with trio.open_nursery() as nursery:
        asked = Asked(nursery, rig.scst.core.vdisks["ploop0"].wait_flushed())
    assert asked.errno == errno.ETIMEDOUT
    assert SYNC_TIMEOUT_S <= trio.current_time() < SYNC_TIMEOUT_S + 1
