"""The subsystem keeps as many objects of a kind as its bound says, and refuses one more with a reason."""

from collections.abc import Callable

import pytest

from ploopfs.bounds import MAX_SCST_OBJECTS
from ploopfs.scst.core import Core
from ploopfs.scst.handlers import HANDLERS
from tests.scst.rig import errno_of, loaded

Add = Callable[[Core, int], None]

KINDS: dict[str, Add] = {
    "devices": lambda core, number: core.manage_devices(HANDLERS["vdisk_nullio"], f"add_device d{number}"),
    "targets": lambda core, number: core.manage_targets(f"add_target iqn.{number}"),
    "groups of a target": lambda core, number: core.iscsi.targets["iqn.x"].manage_groups(f"create g{number}"),
    "initiators": lambda core, number: core.iscsi.targets["iqn.x"].group.manage_initiators(f"add i{number}", {}),
    "users": lambda core, number: core.manage_targets(f"add_attribute IncomingUser u{number} secret-of-a-user"),
    "device groups": lambda core, number: core.device_groups.manage(f"create g{number}"),
    "target groups": lambda core, number: core.device_groups["g"].manage_target_groups(f"create t{number}"),
    "targets of a group": lambda core, number: core.manage_group_targets(
        core.device_groups["g"], core.device_groups["g"].target_groups["t"], f"add iqn.{number}"
    ),
}
THERE_ALREADY = {"targets": 1, "device groups": 1, "target groups": 1}


def prepared() -> Core:
    core = loaded("ploop0").core
    core.manage_targets("add_target iqn.x")
    core.device_groups.manage("create g")
    core.device_groups["g"].manage_target_groups("create t")
    return core


@pytest.mark.parametrize("kind", KINDS)
def test_one_more_than_the_bound_is_refused_and_fits_when_one_has_gone(kind: str) -> None:
    core = prepared()
    room = MAX_SCST_OBJECTS - THERE_ALREADY.get(kind, 0)
    for number in range(room):
        KINDS[kind](core, number)
    assert errno_of(KINDS[kind], core, room) == "ENOSPC"
    assert errno_of(KINDS[kind], core, room) == "ENOSPC"
    if kind == "devices":
        core.delete_device("d0")
    elif kind == "targets":
        core.manage_targets("del_target iqn.0")
    else:
        return
    KINDS[kind](core, room)
