"""Random calls on the mounted disk while everything under it fails: no acknowledged byte differs, ever."""

from pathlib import Path
from random import Random

import pytest

from tests.mounted.flavours import VZ7, VZ9
from tests.mounted.planes import OWN, TREE
from tests.realparts import need
from tests.torture.faults import faults_on
from tests.torture.fsx import torture
from tests.torture.setting import BINDFS, COMMANDS, Setting

pytestmark = pytest.mark.real

OTHERS = 4
"""Beside the faults: a second loss within the recovery, and three ways in which the daemon ends."""


@pytest.mark.parametrize(
    "setting",
    [Setting(VZ7, "fail", depth=2, store=BINDFS, agent=True), Setting(VZ9, "hold", depth=2, plane=TREE)],
    ids=str,
)
def test_no_acknowledged_byte_differs_whatever_fails_under_it(tmp_path: Path, setting: Setting) -> None:
    need(commands=COMMANDS, loop=True, file_systems=("ext4",))
    troubles = len(faults_on(setting)) + OTHERS
    report = torture(tmp_path, setting, Random(3), troubles=troubles)
    assert len(report.troubles) == troubles, "each of them once"
    assert min(report.calls[f"{what} directly"] for what in ("read", "write")) > 0
    assert min(report.bytes["read"], report.bytes["written"]) > 0
    assert (report.bytes["zeroed"] > 0) == (setting.plane == OWN)
