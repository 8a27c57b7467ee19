"""The target subsystem: loading it is one fuse, attaching a device the other."""

import errno

import pytest

from ploopfs.device.standby import StandbyKey, State
from ploopfs.scst import Scst
from tests.device.rig import CLUSTER, Rig, errno_of, rig_of, three_deltas


async def unloaded() -> Rig:
    return await rig_of(three_deltas(), armed=False)


def test_loading_puts_the_key_in() -> None:
    key = StandbyKey()
    scst = Scst(key)
    assert not scst.loaded
    scst.load()
    assert (scst.loaded, key.enabled) == (True, True)
    scst.load()
    assert scst.loaded


async def test_attaching_sets_the_bit_of_that_device() -> None:
    rig, other = await unloaded(), await unloaded()
    rig.scst.load()
    rig.scst.attach(rig.device)
    assert (rig.state, other.state) == (State.OFF, State.NOT_SUPPORTED)
    assert rig.queue.standby.armed


@pytest.mark.expects_warnings
async def test_attaching_before_loading_is_warned_about_and_arms_nothing_until_it_is_loaded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = await unloaded()
    rig.scst.attach(rig.device)
    assert "STANDBY_EN is set while ploop_standby_check is disabled" in caplog.text
    assert (rig.state, rig.queue.standby.armed) == (State.OFF, False)
    rig.scst.load()
    assert rig.queue.standby.armed


@pytest.mark.expects_warnings
async def test_both_fuses_and_a_lost_storage_make_standby() -> None:
    rig = await unloaded()
    rig.scst.load()
    rig.scst.attach(rig.device)
    rig.lose(errno.ENOTCONN)
    assert await errno_of(rig.device.read(2 * CLUSTER, 1)) == errno.ENOTCONN
    assert rig.state is State.ON
    rig.scst.attach(rig.device)
    assert rig.state is State.ON
