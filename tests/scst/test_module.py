"""The modules, and the two fuses: loading is one, adding a device the other."""

import errno

import pytest

from ploopfs.device.flavour import BLOCK
from ploopfs.device.standby import State
from ploopfs.scst.module import Scst
from tests.device.rig import CLUSTER, TOP, Rig, errno_of, rig_of, three_deltas
from tests.scst.rig import Subsystem, loaded
from tests.scst.rig import errno_of as errno_name


async def unarmed() -> Rig:
    return await rig_of(three_deltas(), armed=False)


def test_loading_puts_the_key_in_and_unloading_takes_it_out() -> None:
    subsystem = Subsystem()
    key, scst = subsystem.registry.key, subsystem.scst
    assert (scst.loaded, key.enabled, list(scst.modules)) == (False, False, [])
    scst.load()
    assert (scst.loaded, key.enabled, list(scst.modules)) == (True, True, ["scst", "scst_vdisk", "iscsi_scst"])
    scst.unload()
    assert (scst.loaded, key.enabled, list(scst.modules)) == (False, False, [])


def test_loading_what_is_loaded_succeeds_and_changes_nothing() -> None:
    subsystem = loaded("ploop0")
    subsystem.manage("add_device ploop0 filename=/dev/ploop0")
    before = dict(subsystem.scst.modules)
    for name in ("scst", "scst_vdisk", "scst-vdisk", "iscsi-scst", "iscsi_scst"):
        subsystem.scst.load(name)
    assert dict(subsystem.scst.modules) == before
    assert "ploop0" in subsystem.core.vdisks


@pytest.mark.parametrize("name", ["scst_vdisk", "iscsi-scst"])
def test_a_module_brings_what_it_needs(name: str) -> None:
    subsystem = Subsystem()
    subsystem.scst.load(name)
    assert set(subsystem.scst.modules) == {"scst", "scst_vdisk", "iscsi_scst"}


def test_modules_go_one_by_one_too_and_come_back() -> None:
    scst = loaded().scst
    scst.unload("iscsi-scst")
    assert list(scst.modules) == ["scst", "scst_vdisk"]
    scst.load("iscsi-scst")
    assert list(scst.modules) == ["scst", "scst_vdisk", "iscsi_scst"]
    for name in ("iscsi_scst", "scst_vdisk", "scst"):
        scst.unload(name)
    assert not scst.loaded


@pytest.mark.parametrize(("name", "errno"), [("nosuch", "ENOENT"), ("", "EINVAL"), ("scst scst", "ENOENT")])
def test_an_unknown_module_is_not_found(name: str, errno: str) -> None:
    subsystem = loaded()
    assert errno_name(subsystem.scst.load, name) == errno
    assert errno_name(subsystem.scst.unload, name) == errno


def test_what_is_not_loaded_cannot_be_unloaded() -> None:
    subsystem = loaded()
    subsystem.scst.unload()
    assert [errno_name(subsystem.scst.unload, name) for name in ("scst", "iscsi_scst")] == ["ENOENT", "ENOENT"]


@pytest.mark.parametrize("name", ["scst", "scst_vdisk"])
def test_nothing_is_unloaded_under_a_device(name: str) -> None:
    subsystem = loaded("ploop0")
    subsystem.manage("add_device a filename=/dev/ploop0")
    assert errno_name(subsystem.scst.unload, name) == "EBUSY"
    assert (subsystem.scst.loaded, subsystem.registry.key.enabled, subsystem.states()) == (True, True, ["off"])
    subsystem.manage("del_device a")
    subsystem.scst.unload(name)
    assert name not in subsystem.scst.modules


def test_the_target_driver_goes_with_its_targets_and_leaves_the_devices() -> None:
    subsystem = loaded("ploop0")
    subsystem.manage("add_device a filename=/dev/ploop0")
    subsystem.core.manage_targets("add_target iqn.x")
    subsystem.core.iscsi.targets["iqn.x"].group.manage_luns("add a 0", subsystem.core.vdisks)
    assert list(subsystem.core.vdisks["a"].exports) == ["export0", "export1"]
    subsystem.scst.unload("iscsi_scst")
    assert list(subsystem.core.vdisks["a"].exports) == ["export0"]
    subsystem.scst.load("iscsi_scst")
    assert subsystem.core.iscsi.targets == {}
    assert subsystem.states() == ["off"]


def test_a_new_subsystem_knows_nothing_of_the_old() -> None:
    subsystem = loaded()
    subsystem.core.manage_targets("add_target iqn.x")
    subsystem.core.settings.store("setup_id", "7")
    subsystem.core.device_groups.manage("create g")
    subsystem.scst.unload()
    subsystem.scst.load()
    assert (subsystem.core.iscsi.targets, subsystem.core.device_groups) == ({}, {})
    assert subsystem.core.settings["setup_id"] == "0x0"


def test_loading_and_unloading_are_events() -> None:
    subsystem = loaded()
    subsystem.scst.unload()
    records = [(record.event, record.facts["module"]) for record in subsystem.registry.events.since(0)]
    assert records == [
        ("module_loaded", "scst"),
        ("module_loaded", "scst_vdisk"),
        ("module_loaded", "iscsi_scst"),
        ("module_unloaded", "iscsi_scst"),
        ("module_unloaded", "scst_vdisk"),
        ("module_unloaded", "scst"),
    ]


# Attached by configuration.


async def test_attaching_adds_the_device_under_its_own_name() -> None:
    rig, other = await unarmed(), await unarmed()
    rig.scst.load()
    rig.scst.attach(rig.device)
    assert (rig.state, other.state, rig.queue.standby.armed) == (State.OFF, State.NOT_SUPPORTED, True)
    vdisk = rig.scst.core.vdisks["ploop0"]
    assert (vdisk.filename, vdisk.device, vdisk.handler.name) == ("/dev/ploop0", rig.device, "vdisk_blockio")
    assert rig.scst.is_attached(rig.device)
    assert not other.scst.is_attached(other.device)
    rig.scst.core.delete_device("ploop0")
    assert (rig.state, rig.scst.is_attached(rig.device)) == (State.NOT_SUPPORTED, False)


async def test_a_read_only_device_is_attached_read_only() -> None:
    rig = await rig_of(three_deltas(), armed=True, read_only=True)
    assert rig.state is State.OFF
    assert rig.scst.core.vdisks["ploop0"].read_only


@pytest.mark.expects_warnings
async def test_attaching_before_loading_is_warned_about_once_and_arms_nothing_until_it_is_loaded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = await unarmed()
    rig.scst.attach(rig.device)
    rig.lose(errno.ENOTCONN, path=TOP, count=1)
    assert await errno_of(rig.device.read(2 * CLUSTER, 1)) == errno.ENOTCONN
    assert caplog.text.count("STANDBY_EN is set while ploop_standby_check is disabled") == 1
    warnings = [record.facts["text"] for record in rig.registry.events.since(0) if record.event == "warning"]
    assert warnings == ["STANDBY_EN is set while ploop_standby_check is disabled"]
    assert (rig.state, rig.queue.standby.armed) == (State.OFF, False), "nothing on the queue was touched"
    rig.scst.load()
    assert rig.queue.standby.armed
    assert list(rig.scst.core.vdisks) == ["ploop0"], "it is in the subsystem that was loaded"
    assert errno_name(rig.scst.unload) == "EBUSY"


@pytest.mark.expects_warnings
async def test_both_fuses_and_a_lost_storage_make_standby_and_the_other_device_has_none_of_it() -> None:
    rig, other = await unarmed(), await unarmed()
    rig.scst.load()
    rig.scst.attach(rig.device)
    other.scst.load()
    for one in (rig, other):
        one.lose(errno.ENOTCONN)
        assert await errno_of(one.device.read(2 * CLUSTER, 1)) == errno.ENOTCONN
    assert (rig.state, other.state) == (State.ON, State.NOT_SUPPORTED)


@pytest.mark.expects_warnings
async def test_deleting_in_standby_clears_both_bits_and_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    rig = await rig_of(three_deltas())
    warning = "STANDBY_EN was cleared in standby mode"
    for _ in range(2):
        lost = await rig.enter_standby(errno.EBUSY)
        rig.scst.core.delete_device("ploop0")
        assert rig.state is State.NOT_SUPPORTED
        assert not rig.queue.standby.refuses
        rig.faults.remove(lost)
        rig.scst.attach(rig.device)
        assert rig.queue.standby.armed, "a later add"
        assert not rig.queue.standby.refuses, "shows no stale standby"
    assert caplog.text.count(warning) == 1
    events = [record.event for record in rig.registry.events.since(0)]
    assert events.count("warning") == 1
    assert events.count("attached") == 3
    assert events.count("detached") == 2


def test_a_disk_that_is_no_ploop_can_be_attached_and_never_supports_standby() -> None:
    subsystem = loaded("ploop0")
    ram = subsystem.disk("xvda", flavour=BLOCK)
    subsystem.scst.attach(ram)
    assert subsystem.states() == ["not supported", "not supported"]
    assert subsystem.scst.is_attached(ram)
    subsystem.manage("add_device ploop0 filename=/dev/ploop0")
    assert subsystem.states() == ["off", "not supported"]
    subsystem.manage("del_device xvda")
    assert not subsystem.scst.is_attached(ram)


def test_two_subsystems_share_nothing() -> None:
    one, two = loaded("ploop0"), loaded("ploop0")
    one.manage("add_device a filename=/dev/ploop0")
    assert (one.states(), two.states()) == (["off"], ["not supported"])
    assert isinstance(two.scst, Scst)
