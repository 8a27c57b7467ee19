"""A command that works on images is told to end, or is killed, while their store hangs or is slow: it ends at once, and
nothing half-made looks whole."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S, PLOOPFS, ROOT, until
from tests.mounted.disks import make_disk
from tests.mounted.storage import Bindfs, waits_for_store

pytestmark = pytest.mark.real

AT_ONCE_S = 10
"""The grace is one second; the rest is for a machine that is busy."""


def interrupted(bindfs: Bindfs, *arguments: str, number: signal.Signals = signal.SIGINT) -> int:
    """The exit code of a command that was interrupted while it waited for the store."""
    command = ["env", "--default-signal=INT,HUP", *PLOOPFS, *arguments]
    with bindfs.stopped():
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            until(lambda: waits_for_store(process.pid), "it asks the store")
            process.send_signal(number)
            return process.wait(AT_ONCE_S)
        finally:
            process.kill()
            process.wait(HANG_S)


STUBBORN = """
import os
import signal
import sys
import threading
import trio
from ploopfs.cli import main

number, kind, where = getattr(signal, sys.argv.pop(1)), sys.argv.pop(1), int(sys.argv.pop(1))
sync, syncs = os.fsync, []

def fsync(fd):
    syncs.append(fd)
    if len(syncs) == where:
        os.kill(os.getpid(), number)
        if kind == "hangs":
            threading.Event().wait()
        try:
            while True:
                trio.from_thread.check_cancelled()
        except trio.Cancelled:
            pass
    sync(fd)

os.fsync = fsync
sys.exit(main.main())
"""
"""The store takes so long for one fsync that a signal comes meanwhile, and then answers, or never does."""

KILLED = """
import os
import signal
import sys
from ploopfs.cli import main

setattr(os, sys.argv.pop(1), lambda *_: os.kill(os.getpid(), signal.SIGKILL))
sys.exit(main.main())
"""

LOST = """
import os
import signal
import sys
import threading
from ploopfs.cli import main

def rename(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()

os.rename = rename
sys.exit(main.main())
"""
"""The store never says whether it has put the descriptor in its place."""

MAKING: dict[str, list[int]] = {"image.hds": [1], "disk": [2, 3, 4], "snapshot": [1, 2, 3]}
"""What is made, and in which of its fsyncs something is unfinished. After the last one all of it is there."""


def made_with(place: Path, what: str, number: str, kind: str, where: int) -> "subprocess.CompletedProcess[str]":
    verb = ("snapshot", str(place / "disk")) if what == "snapshot" else ("create", "64M", str(place / what))
    command = ["env", f"--default-signal={number.removeprefix('SIG')}", sys.executable, "-c", STUBBORN]
    command += [number, kind, str(where), *verb]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)


def files_of(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("what", "number"), [("image.hds", "SIGINT"), ("disk", "SIGTERM"), ("snapshot", "SIGHUP")])
def test_what_is_being_made_is_gone_again_when_the_store_answers_after_all(
    tmp_path: Path, what: str, number: str
) -> None:
    if what == "snapshot":
        make_disk(tmp_path / "disk")
    before = files_of(tmp_path)
    for where in MAKING[what]:
        done = made_with(tmp_path, what, number, "slow", where)
        assert (done.returncode, done.stdout, done.stderr) == (128 + getattr(signal, number), "", "")
        assert files_of(tmp_path) == before
    done = made_with(tmp_path, what, number, "slow", MAKING[what][-1] + 1)
    assert (done.returncode, done.stderr) == (0, ""), "it was done when that was asked"
    assert len(files_of(tmp_path)) > len(before)


@pytest.mark.parametrize(("what", "where"), [("image.hds", 1), ("disk", 3), ("snapshot", 3)])
def test_what_cannot_be_taken_away_is_named(tmp_path: Path, what: str, where: int) -> None:
    if what == "snapshot":
        make_disk(tmp_path / "disk")
    before = files_of(tmp_path)
    done = made_with(tmp_path, what, "SIGTERM", "hangs", where)
    named, _, told = done.stderr.partition(": left behind unfinished, or may be soon: to be removed\n")
    assert (done.returncode, told) == (128 + signal.SIGTERM, "")
    left = [path for path in files_of(tmp_path) if path not in before]
    assert sorted(named.removeprefix("ploopfs: ").split(", ")) == sorted(left)
    for path in left:
        os.unlink(path)
    assert files_of(tmp_path) == before


def ploopfs(*arguments: str) -> int:
    return subprocess.run([*PLOOPFS, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode


@pytest.mark.parametrize(
    ("verb", "number"),
    [
        (("snapshot",), signal.SIGINT),
        (("resize", "128M"), signal.SIGTERM),
        (("check",), signal.SIGHUP),
        (("check", "-r"), signal.SIGTERM),
        (("info",), signal.SIGINT),
    ],
)
def test_it_ends_at_once_and_the_disk_is_what_it_was(
    bindfs: Bindfs, verb: Sequence[str], number: signal.Signals
) -> None:
    disk = make_disk(bindfs.bricks / "disk")
    place = bindfs.path / "disk"
    before = {path.name: path.read_bytes() for path in disk.directory.iterdir()}
    path = place / disk.top.name if verb[0] == "resize" else place
    assert interrupted(bindfs, *verb, os.fspath(path), number=number) == 128 + number
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


def test_what_a_descriptor_may_name_is_to_be_removed_by_nobody_who_has_not_looked(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk")
    before = files_of(tmp_path)
    command = [sys.executable, "-c", LOST, "snapshot", str(tmp_path / "disk")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    left = [path for path in files_of(tmp_path) if path not in before]
    descriptor = disk.directory / "DiskDescriptor.xml"
    [image] = [path for path in left if path != f"{descriptor}.tmp"]
    told = f"ploopfs: {image}, {descriptor}.tmp: left behind, to be removed unless {descriptor} names them\n"
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, told)


@pytest.mark.parametrize(("what", "step"), [("image.hds", "ftruncate"), ("disk", "rename")])
def test_the_next_create_says_what_to_do_about_what_one_that_was_killed_has_left(
    tmp_path: Path, what: str, step: str, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / what
    command = [sys.executable, "-c", KILLED, step, "create", "64M", str(place)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    [image] = tmp_path.rglob("*.hds")
    assert (ploopfs("check", os.fspath(image)) == 0) is (step == "rename")
    capfd.readouterr()
    assert ploopfs("create", "64M", os.fspath(place)) == 1
    told = capfd.readouterr().err
    assert told.startswith(f"ploopfs: {image}: exists, ")
    assert re.search(r"as a `create` that was killed leaves (it|one): remove it\n$", told)
    image.unlink()
    assert ploopfs("create", "64M", os.fspath(place)) == 0
