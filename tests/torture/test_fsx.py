"""Random calls on the mounted disk while everything under it fails: no acknowledged byte differs, ever."""

from pathlib import Path
from random import Random

import pytest

from tests.mounted.flavours import VZ7, VZ9, Kind, name_of
from tests.torture.faults import FAULTS
from tests.torture.fsx import torture
from tests.torture.scene import Setting

pytestmark = pytest.mark.real

TROUBLES = len(FAULTS) + 4
"""Every fault, a second loss within the recovery, and three ways in which the daemon ends."""


@pytest.mark.parametrize(("kind", "policy"), [(VZ7, "fail"), (VZ9, "hold")], ids=name_of)
def test_no_acknowledged_byte_differs_whatever_fails_under_it(tmp_path: Path, kind: Kind, policy: str) -> None:
    setting = Setting(kind, policy, depth=2, window_bytes=64 << 10)
    report = torture(tmp_path, setting, Random(3), troubles=TROUBLES)
    assert len(report.troubles) == TROUBLES, "each of them once"
    assert min(report.bytes[what] for what in ("read", "written", "zeroed")) > 0
