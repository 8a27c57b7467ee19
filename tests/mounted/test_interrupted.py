"""Ctrl-C in a command that works on images, while their store hangs: it ends at once, and nothing half-made looks
whole."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S, PLOOPFS, ROOT, until
from tests.mounted.disks import make_disk
from tests.mounted.storage import Bindfs

pytestmark = pytest.mark.real

AT_ONCE_S = 10
"""The grace is one second; the rest is for a machine that is busy."""


def is_asking_the_store(process: "subprocess.Popen[bytes]") -> bool:
    """Some thread of it waits in the kernel for a FUSE server."""
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        try:
            if "fuse" in (task / "stack").read_text() or "fuse" in (task / "wchan").read_text():
                return True
        except OSError:
            continue
    return False


def interrupted(bindfs: Bindfs, *arguments: str) -> int:
    """The exit code of a command that was interrupted while it waited for the store."""
    command = ["env", "--default-signal=INT", *PLOOPFS, *arguments]
    with bindfs.stopped():
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            until(lambda: is_asking_the_store(process), "it asks the store")
            process.send_signal(signal.SIGINT)
            return process.wait(AT_ONCE_S)
        finally:
            process.kill()
            process.wait(HANG_S)


def ploopfs(*arguments: str) -> int:
    return subprocess.run([*PLOOPFS, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode


@pytest.mark.parametrize(
    "verb", [("snapshot",), ("resize", "128M"), ("check",), ("check", "-r"), ("info",)], ids=" ".join
)
def test_it_ends_at_once_with_130_and_the_disk_is_what_it_was(bindfs: Bindfs, verb: Sequence[str]) -> None:
    disk = make_disk(bindfs.bricks / "disk")
    place = bindfs.path / "disk"
    before = {path.name: path.read_bytes() for path in disk.directory.iterdir()}
    path = place / disk.top.name if verb[0] == "resize" else place
    assert interrupted(bindfs, *verb, os.fspath(path)) == 130
    assert all((disk.directory / name).read_bytes() == content for name, content in before.items())
    assert ploopfs("check", os.fspath(place)) == 0


@pytest.mark.parametrize("path", ["disk", "image.hds"])
def test_a_disk_that_was_not_made_is_no_disk_and_can_be_made_then(bindfs: Bindfs, path: str) -> None:
    place = bindfs.path / path
    bindfs.path.stat()
    assert interrupted(bindfs, "create", "64M", os.fspath(place)) == 130
    assert ploopfs("check", os.fspath(place)) != 0
    for left in bindfs.bricks.rglob("*.hds"):
        left.unlink()
    assert ploopfs("create", "64M", os.fspath(place)) == 0
    assert ploopfs("check", os.fspath(place)) == 0
