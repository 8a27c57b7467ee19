"""fio's own verification of what it was acknowledged, across outages and the daemon's ends."""

import os
from pathlib import Path
from random import Random

import pytest

from tests.mounted.daemon import opened, until
from tests.mounted.disks import MIB
from tests.mounted.flavours import VZ7, VZ9, Kind, name_of
from tests.realparts import need
from tests.torture.fio import REGION_BYTES, Blocks, Run, torture
from tests.torture.scene import Setting

pytestmark = pytest.mark.real


@pytest.mark.parametrize(("kind", "policy"), [(VZ7, "hold"), (VZ9, "fail")], ids=name_of)
def test_fio_verifies_all_that_was_acknowledged(tmp_path: Path, kind: Kind, policy: str) -> None:
    need(commands=("fio",))
    setting = Setting(kind, policy, depth=2, window_bytes=MIB)
    report = torture(tmp_path, setting, Random(1), runs=2)
    assert report.calls["fio runs"] == 2
    assert report.calls["fio writes verified"] > 0


def test_a_block_that_is_lost_is_told(tmp_path: Path) -> None:
    """Of a plain file."""
    need(commands=("fio",))
    file = tmp_path / "file"
    file.write_bytes(bytes(REGION_BYTES))
    run = Run(file, tmp_path, 0, 77, Blocks(("--bs=4k",), 1000))
    run.start()
    until(lambda: any(file.read_bytes()), "fio writing")
    run.trigger()
    assert run.wait().errno == 0
    written = next(start for start in range(0, REGION_BYTES, 4096) if any(file.read_bytes()[start : start + 4096]))
    assert run.verify() > 0
    with opened(file) as fd:
        os.pwrite(fd, bytes(4096), written)
    with pytest.raises(AssertionError, match="bad magic header"):
        run.verify()
