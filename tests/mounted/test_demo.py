"""The README's first command, as a new user runs it."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.realparts import need

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]


def test_the_demo_tells_its_story_and_loses_nothing() -> None:
    need(commands=("bindfs", "qemu-img", "lsblk"), fuse=True, root=True)
    done = subprocess.run([ROOT / "tools/demo"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    states = re.findall(r"queue/standby\n(.*)\n", done.stdout)
    assert states == ["off", "on", "on", "off"]
    assert re.search(r"^[0-9]+ acknowledged blocks, 0 lost$", done.stdout, re.MULTILINE)
    assert re.search(r"^writer: [0-9]+ writes acknowledged, [1-9][0-9]* refused", done.stdout, re.MULTILINE)


def test_the_demo_refuses_what_it_does_not_know() -> None:
    done = subprocess.run([ROOT / "tools/demo", "--no-such"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: tools/demo" in done.stderr
