"""fio's own verification of what it was acknowledged, across outages and the daemon's ends."""

from pathlib import Path
from random import Random

import pytest

from tests.mounted.disks import MIB
from tests.mounted.flavours import VZ7, VZ9, Kind, name_of
from tests.realparts import need
from tests.torture.fio import torture
from tests.torture.scene import Setting

pytestmark = pytest.mark.real


@pytest.mark.parametrize(("kind", "policy"), [(VZ7, "hold"), (VZ9, "fail")], ids=name_of)
def test_fio_verifies_all_that_was_acknowledged(tmp_path: Path, kind: Kind, policy: str) -> None:
    need(commands=("fio",))
    report = torture(tmp_path, Setting(kind, policy, depth=2, window_bytes=MIB), Random(1), runs=4)
    print(report)
