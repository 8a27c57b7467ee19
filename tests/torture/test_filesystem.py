"""ext4 and XFS on a disk whose store dies and returns: their checks find nothing, every acknowledged fsync is there."""

from pathlib import Path
from random import Random

import pytest

from tests.mounted.blocks import EXT4, XFS, FileSystem
from tests.mounted.flavours import VZ7, VZ9, Kind
from tests.realparts import need
from tests.torture.filesystem import torture
from tests.torture.scene import Setting

pytestmark = pytest.mark.real

TROUBLES = 13
"""Every fault but a full store, a second loss within the recovery, and three ways in which the daemon ends."""


@pytest.mark.parametrize(
    ("system", "kind", "policy"),
    [(EXT4, VZ7, "hold"), (EXT4, VZ9, "fail"), (XFS, VZ9, "hold")],
    ids=lambda value: getattr(value, "name", getattr(value, "flavour", None)),
)
def test_every_acknowledged_fsync_survives_the_store_and_the_daemon(
    tmp_path: Path, system: FileSystem, kind: Kind, policy: str
) -> None:
    need(commands=("losetup", system.make[0], system.check[0]), loop=True, file_systems=(system.name,))
    setting = Setting(kind, policy, depth=2, window_bytes=1 << 20, size_bytes=system.disk_bytes)
    report = torture(tmp_path, setting, system, Random(1), troubles=TROUBLES)
    assert report.troubles.total() == TROUBLES
    assert report.calls["create"] > 0
