"""The process of the engine is killed while it writes to real files: no write that was acknowledged is missing."""

from pathlib import Path
from random import Random

import pytest

from tests.engine.killing import CLUSTER, Disk, Model, killer
from tests.realparts import need

TIMES = 30


@pytest.mark.real
@pytest.mark.slow
def test_no_acknowledged_write_is_missing_wherever_the_engine_is_killed(tmp_path: Path) -> None:
    need(commands=("qemu-img",))
    disk, model = Disk(tmp_path / "disk"), Model()
    with killer(Random(1)) as one:
        for time in range(TIMES):
            one.kill(disk, model)
            disk.examine(model, closes=time % 10 == 9)
    assert model.kills == TIMES
    assert model.operations > TIMES
    assert 0 < model.marked <= TIMES


def test_the_comparison_sees_an_acknowledged_write_that_is_missing() -> None:
    model = Model(bytearray(2 * CLUSTER))
    for line in ("begins 1 write 100 50", "begins 2 write 200 50", "done 1"):
        model.hears(line, seed=7)
    model.may_be_bytes = len(model.content)
    found = bytes(model.content)
    with pytest.raises(AssertionError, match="50 acknowledged bytes are not there, the first at 100"):
        model.compare(bytes(100) + bytes(50) + found[150:])
    model.compare(found)
    assert not model.under_way


def test_who_is_interrupted_while_a_victim_lives_leaves_none(tmp_path: Path) -> None:
    class Interrupted(Model):
        def hears(self, line: str, seed: int) -> None:  # noqa: ARG002 -- as Model has it
            raise KeyboardInterrupt

    disk = Disk(tmp_path / "disk")
    with pytest.raises(KeyboardInterrupt), killer(Random(1)) as one:
        one.kill(disk, Interrupted())
