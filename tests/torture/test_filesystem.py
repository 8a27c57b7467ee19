"""ext4 and XFS on a disk whose store dies and returns: their checks find nothing, every acknowledged fsync is there."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.mounted.blocks import EXT4, XFS, FileSystem
from tests.mounted.disks import MIB
from tests.mounted.flavours import VZ7, VZ9
from tests.mounted.planes import TREE
from tests.realparts import need
from tests.torture.filesystem import faults_of, torture
from tests.torture.setting import BINDFS, COMMANDS, Setting

pytestmark = pytest.mark.real

OTHERS = 4
"""Beside the faults: a second loss within the recovery, and three ways in which the daemon ends."""


@pytest.mark.parametrize(
    ("system", "setting"),
    [
        (EXT4, Setting(VZ7, "hold", depth=2, store=BINDFS, agent=True)),
        (EXT4, Setting(VZ9, "fail", depth=2, plane=TREE)),
        (XFS, Setting(VZ9, "hold", depth=2, window_bytes=MIB, agent=True)),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_every_acknowledged_fsync_survives_the_store_and_the_daemon(
    tmp_path: Path, system: FileSystem, setting: Setting
) -> None:
    need(
        commands=(*COMMANDS, system.make[0], system.check[0]),
        loop=True,
        file_systems=("ext4", system.name),
    )
    setting = replace(setting, size_bytes=system.disk_bytes)
    troubles = len(faults_of(setting)) + OTHERS
    report = torture(tmp_path, setting, system, Random(1), troubles=troubles)
    assert len(report.troubles) == troubles, "each of them once"
    assert min(report.calls[what] for what in ("create", "overwrite directly")) > 0
