"""The README's first command, as a new user runs it."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S
from tests.realparts import need

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]


def test_the_demo_tells_its_story_and_loses_nothing() -> None:
    need(commands=("bindfs", "qemu-img", "lsblk"), fuse=True, root=True)
    code, told = run_demo()
    assert code == 0, told
    states = re.findall(r"queue/standby\n(.*)\n", told)
    assert states == ["off", "on", "on", "off"]
    assert re.search(r"^[0-9]+ acknowledged blocks, 0 lost$", told, re.MULTILINE)
    assert re.search(r"^writer: [0-9]+ writes acknowledged, [1-9][0-9]* refused", told, re.MULTILINE)


def run_demo() -> tuple[int, str]:
    """One that takes too long is asked to end, so that it takes its mounts and processes with it."""
    demo = subprocess.Popen([ROOT / "tools/demo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        told, _ = demo.communicate(timeout=5 * HANG_S)
    except subprocess.TimeoutExpired:
        demo.terminate()
        told, _ = demo.communicate(timeout=HANG_S)
    return demo.returncode, told


def test_the_demo_refuses_what_it_does_not_know() -> None:
    done = subprocess.run([ROOT / "tools/demo", "--no-such"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: tools/demo" in done.stderr
