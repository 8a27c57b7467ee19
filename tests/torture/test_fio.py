"""fio's own verification of what it was acknowledged, across outages and the daemon's ends."""

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.mounted.daemon import opened, until
from tests.mounted.disks import MIB
from tests.mounted.flavours import VZ7, VZ9
from tests.mounted.planes import TREE
from tests.realparts import need
from tests.torture.fio import REGION_BYTES, Blocks, Run, torture
from tests.torture.setting import BINDFS, COMMANDS, Setting

pytestmark = pytest.mark.real


SETTINGS = (
    Setting(VZ7, "hold", depth=2, store=BINDFS, plane=TREE, agent=True),
    Setting(VZ9, "fail", depth=2, window_bytes=MIB),
)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_fio_verifies_all_that_was_acknowledged(tmp_path: Path, setting: Setting) -> None:
    need(commands=("fio", *COMMANDS), loop=True, file_systems=("ext4",))
    report = torture(tmp_path, setting, Random(1), runs=2)
    assert report.calls["fio runs"] == 2
    assert report.calls["fio writes verified"] > 0


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Run]:
    """On a plain file, and ended in the midst."""
    need(commands=("fio",))
    file = tmp_path / "file"
    file.write_bytes(bytes(REGION_BYTES))
    run = Run(file, tmp_path, 0, 77, Blocks(("--bs=4k",), 1000))
    run.start()
    try:
        until(lambda: any(file.read_bytes()), "fio writing")
        run.trigger()
        assert run.wait().errno == 0
        assert run.verify() > 0
        yield run
    finally:
        run.stop()


def test_a_block_that_is_lost_is_told(plain: Run) -> None:
    content = plain.disk.read_bytes()
    written = next(start for start in range(0, REGION_BYTES, 4096) if any(content[start : start + 4096]))
    with opened(plain.disk) as fd:
        os.pwrite(fd, bytes(4096), written)
    with pytest.raises(AssertionError, match="bad magic header"):
        plain.verify()


def test_a_run_whose_state_is_of_no_use_is_told(plain: Run) -> None:
    """fio then verifies nothing, and says of the job that it has met no error."""
    state = plain.state.read_bytes()
    for useless in (state[:-1] + b"!", state[:100], b""):
        plain.state.write_bytes(useless)
        with pytest.raises(AssertionError, match=r"exit code 1: .*state"):
            plain.verify()
    plain.state.unlink()
    with pytest.raises(AssertionError, match=r"exit code 1: .*state"):
        plain.verify()
