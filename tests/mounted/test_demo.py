"""The README's first command, as a new user runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S, device, serving, until
from tests.mounted.disks import make_disk
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


def test_its_writer_repeats_a_flush_that_was_refused(tmp_path: Path) -> None:
    """The store may die in one as well as in a write."""
    disk, journal = make_disk(tmp_path / "disk"), tmp_path / "journal"
    with serving(tmp_path, device(disk.directory)) as daemon:
        rules = daemon.mountpoint / "sys/kernel/debug/ploopfs/ploop0/error_injection"
        rules.write_text("add,op=FLUSH,errno=ENOTCONN,count=1\n")
        standby = daemon.attribute("queue/standby")
        demo_writer = [sys.executable, os.fspath(ROOT / "tools/demo-writer.py")]
        command = [*demo_writer, "write", os.fspath(daemon.disk()), os.fspath(standby), os.fspath(journal)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        until(lambda: standby.read_text() == "on\n", "its flush is refused")
        daemon.store("ploopfs/reopen", "1")
        subprocess.run([*demo_writer, "wait-lines", journal, "200"], check=True)
        writer.terminate()
        told, _ = writer.communicate(timeout=HANG_S)
        assert (writer.returncode, told.splitlines()[0]) == (0, "writer: flush after block 64: EIO")
        assert ", 1 refused and repeated" in told
        assert subprocess.run([*demo_writer, "verify", daemon.disk(), journal], check=False).returncode == 0


def test_the_demo_ends_when_nobody_writes_any_more(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("0 1\n")
    script = (
        "import runpy, sys; writer = runpy.run_path(sys.argv[1]); wait = writer['wait_lines'];"
        "wait.__globals__['PATIENCE_S'] = 0; wait(sys.argv[2], 2)"
    )
    command = [sys.executable, "-c", script, f"{ROOT}/tools/demo-writer.py", f"{tmp_path}/journal"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    told = f"demo: {tmp_path}/journal still has 1 lines after 0 s, expected 2: nobody writes\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_the_demo_refuses_what_it_does_not_know() -> None:
    done = subprocess.run([ROOT / "tools/demo", "--no-such"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: tools/demo" in done.stderr
