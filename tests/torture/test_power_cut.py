"""What a flush has confirmed survives a real power cut, and so does an image that is only being used."""

from pathlib import Path
from random import Random

import pytest

from tests.realparts import need
from tests.torture.power_cut import torture
from tests.torture.setting import COMMANDS

pytestmark = pytest.mark.real

CUTS = 20


def test_whenever_the_power_is_cut_what_was_flushed_is_there(tmp_path: Path) -> None:
    need(commands=(*COMMANDS, "qemu-img"), loop=True, file_systems=("ext4",))
    report = torture(tmp_path, Random(3), troubles=CUTS)
    assert report.troubles.total() == CUTS
    assert min(report.troubles[what] for what in ("power cut", "power cut after a snapshot")) > 0
    assert min(report.calls[what] for what in ("write", "zeroes", "flush")) > 0
