"""The daemon is killed under the users of a disk: what they were told is written is there."""

from pathlib import Path
from random import Random

import pytest

from tests.engine.killing import Disk, Model
from tests.mounted.killing import kill_daemon
from tests.realparts import need

pytestmark = pytest.mark.real

TIMES = 3


def test_no_write_that_a_user_was_told_of_is_missing_after_a_daemon_was_killed(tmp_path: Path) -> None:
    need(fuse=True, commands=("qemu-img",))
    disk, model, random = Disk(tmp_path / "disk"), Model(), Random(1)
    for time in range(TIMES):
        kill_daemon(tmp_path, disk, model, random)
        disk.examine(model, closes=time == TIMES - 1)
    assert model.marked == TIMES, "a daemon that is killed clears no mark"
