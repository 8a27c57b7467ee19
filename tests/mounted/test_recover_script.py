"""tools/recover.sh under dash: a script of cat, echo and sleep sees an outage and ends it."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S, HOLD_MS, ROOT, Lines, errno_of, opened, serving
from tests.mounted.disks import assert_closed, by_qemu, make_disk
from tests.mounted.flavours import KINDS, Kind, Served, name_of
from tests.mounted.storage import Bindfs
from tests.mounted.writer import Writer
from tests.realparts import need

pytestmark = pytest.mark.real

SCRIPT = ROOT / "tools" / "recover.sh"


@pytest.fixture(autouse=True)
def _dash() -> None:
    need(commands=("dash",))


def script(*arguments: str | Path, tries: int = 60, path: str | None = None) -> subprocess.Popen[str]:
    environment = {"PATH": path or "/usr/bin:/bin", "RECOVER_TRIES": str(tries)}
    return subprocess.Popen(
        [shutil.which("dash") or "dash", SCRIPT, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def watching(place: Path, *arguments: str | Path) -> Iterator[Lines]:
    """The script with no more programs than it says that it needs, in a hurry; it ends by itself, and with success."""
    programs = place / "bin"
    programs.mkdir()
    (programs / "cat").symlink_to(shutil.which("cat") or "cat")
    (programs / "sleep").write_text(f"#!/bin/sh\nexec {shutil.which('sleep')} 0.05\n")
    (programs / "sleep").chmod(0o755)
    process = script(*arguments, path=str(programs))
    assert process.stdout is not None
    lines = Lines(process.stdout)
    try:
        yield lines
        assert process.wait(HANG_S) == 0, lines.text
    finally:
        process.kill()
        process.wait(HANG_S)
        lines.wait_end()


def copied_elsewhere(place: Path, top: Path) -> Path:
    copy = place / "copy of the top.hds"
    shutil.copyfile(top, copy)
    return copy


def where_it_is(_place: Path, top: Path) -> Path:
    return top


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("new_top", [where_it_is, copied_elsewhere], ids=name_of)
def test_the_script_waits_for_standby_and_recovers_when_the_store_is_back(
    tmp_path: Path, bindfs: Bindfs, kind: Kind, new_top: Callable[[Path, Path], Path]
) -> None:
    disk = make_disk(bindfs.bricks / "disk", depth=2)
    with serving(tmp_path, kind.configured(bindfs.path / "disk", on_standby="hold", hold_timeout_ms=HOLD_MS)) as daemon:
        served = kind.of(daemon)
        given = [] if new_top is where_it_is else [tmp_path / "copy of the top.hds"]
        with (
            watching(tmp_path, daemon.mountpoint, kind.device, *given) as lines,
            opened(served.disk) as fd,
            ThreadPoolExecutor(1) as thread,
        ):
            lines.wait_for(f"recover: {kind.device}: standby is off")
            writer = Writer(fd, disk)
            writer.write(40)
            bindfs.kill()
            writing = thread.submit(writer.write, 40)
            lines.wait_for(f"recover: {kind.device}: in standby: errno=ENOTCONN operation=")
            lines.wait_for(f"recover: {kind.device}: not yet: {'replace_delta' if given else 'reopen'} ")
            bindfs.remount()
            top = new_top(tmp_path, disk.top)  # not before: the lower delta would be missing still
            lines.wait_for(f"recover: {kind.device}: standby is off, generation 2")
            writing.result()
            writer.assert_all_there()
        assert daemon.end() == 0
    assert_closed(top)
    assert by_qemu([*disk.deltas[:-1], top], tmp_path / "raw") == disk.content


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=HANG_S)
    return process.returncode, said


@pytest.fixture
def dead(tmp_path: Path, bindfs: Bindfs) -> Iterator[Served]:
    """A device whose store is dead and stays so; another that never stands by."""
    make_disk(bindfs.bricks / "disk")
    other = make_disk(tmp_path / "other")
    devices = KINDS[0].configured(bindfs.path / "disk"), KINDS[1].configured(other.directory, standby=False)
    with serving(tmp_path, *devices) as daemon:
        served = KINDS[0].of(daemon)
        bindfs.kill()
        with opened(served.disk) as fd:
            assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"
        yield served


def test_the_script_gives_up_after_so_many_tries_and_says_so(dead: Served) -> None:
    code, said = end_of(script(dead.daemon.mountpoint, dead.name, tries=1))
    assert code == 1
    assert f"not yet: reopen {dead.value('pdelta/0/image')}: " in said
    assert said.endswith(f"recover: {dead.name}: standby is on, generation 1\n")


def test_the_script_does_not_wait_for_a_device_that_has_no_standby_or_is_not_there(dead: Served) -> None:
    other = KINDS[1].device
    assert end_of(script(dead.daemon.mountpoint, other)) == (1, f"recover: {other}: standby is not supported\n")
    code, said = end_of(script(dead.daemon.mountpoint, "ploop7"))
    assert (code, "No such file or directory" in said) == (1, True)


def test_the_script_explains_itself() -> None:
    code, said = end_of(script("--help"))
    assert (code, said.startswith("usage: recover.sh MNT DEVICE [PATH]\n")) == (0, True)
    assert end_of(script("only-one")) == (2, said)
    assert end_of(script()) == (2, said)


def test_the_script_fits_on_a_screen() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 40
