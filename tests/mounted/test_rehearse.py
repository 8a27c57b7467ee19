"""Rehearsals on real mounts: every shipped scenario is green, a wrong one is not, and nothing is left behind."""

import json
import os
import signal
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from ploopfs.cli.exits import Exit
from ploopfs.fuse.mountpoint import mountpoints_below
from tests.mounted.daemon import PLOOPFS, ROOT, Daemon, device, ploopfs, serving, unmount
from tests.mounted.disks import Disk, make_disk, sums

pytestmark = pytest.mark.real

SHIPPED = sorted((ROOT / "config/scenarios").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", os.fspath(place))
    yield
    mounted = mountpoints_below(os.fspath(place))
    for path in mounted:
        unmount(Path(path))
    assert (mounted, list(place.iterdir())) == ([], [])


def rehearsed(place: Path, *steps: str, devices: str = "[{}]", options: tuple[str | Path, ...] = ()) -> "Told":
    path = place / "scenario.yaml"
    listed = "".join(f"  - {step}\n" for step in steps)
    path.write_text(f"name: a test\ndevices: {devices}\nsteps:\n{listed}")
    return Told(ploopfs("rehearse", path, "--json", *options))


class Told:
    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        self.code, self.err = done.returncode, done.stderr
        self.report = json.loads(done.stdout) if done.stdout else {}

    @property
    def outcomes(self) -> list[str]:
        return [step["outcome"] for step in self.report["steps"]]

    @property
    def failure(self) -> str:
        """Of the one step that failed."""
        assert self.code == Exit.UNMET, self.err
        [failed] = [step for step in self.report["steps"] if step["outcome"] == "failed"]
        return str(failed["detail"])


def test_scenarios_are_shipped() -> None:
    assert len(SHIPPED) >= 7


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_scenario_is_green(path: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    done = ploopfs("rehearse", path, "--junit", report)
    assert done.returncode == 0, done.stdout
    assert "FAILED" not in done.stdout
    [suite] = ET.parse(report).getroot()
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "0")
    assert int(suite.get("tests") or 0) == done.stdout.count("  ok  ") > 5


# --- a wrong scenario ---------------------------------------------------------------------------------------------


def test_an_expectation_that_is_not_met_fails_the_rehearsal_and_skips_what_follows(tmp_path: Path) -> None:
    told = rehearsed(
        tmp_path,
        "inject: {op: WRITE, errno: EIO}",
        "write: {errno: EIO}",
        "expect: {standby: off, within_s: 0.1}",
        "verify: disk",
        options=("--junit", tmp_path / "report.xml"),
    )
    assert (told.code, told.report["passed"]) == (7, False)
    assert told.outcomes == ["passed", "passed", "failed", "skipped"]
    assert told.failure.startswith("queue/standby still reads 'on' after 0.1 s\n")
    assert "ploop0 ploopfs/standby_reason: errno=EIO operation=write" in told.failure
    assert "ploop0 fault rule 1: WRITE EIO, 1 hits" in told.failure
    assert "log: " in told.failure
    assert [event["event"] for event in told.report["events"]].count("standby_on") == 1
    [suite] = ET.parse(tmp_path / "report.xml").getroot()
    assert (suite.get("failures"), suite.get("skipped")) == ("1", "1")


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("write: {errno: EBUSY}", "the write ended with success, expected EBUSY"),
        ("read: {count: 3, errno: EIO}", "read 1 of 3 ended with success, expected EIO"),
        ("expect: {event: standby_on, within_s: 0.1}", "no such event within 0.1 s; those that came: none"),
        ("expect: {attribute: ploopfs/nothing, is: 1}", "[Errno 2] No such file or directory:"),
        ("expect: {load_errors: none}", "no load runs on ploop0"),
        ("load: stop", "no load runs on ploop0"),
        ("inject: {op: ERASE, errno: EIO}", "ploop0: op is 'ERASE', expected one of READ, WRITE"),
        ("inject: {level: 5, errno: EIO}", "ploop0: level is 5, expected 0 to 2: the levels of the stack"),
        ("act: {store: ploopfs/reopen, value: 2}", "the write ended with EINVAL (reopen: reopen takes 1, not '2\\n')"),
        ("act: {store: ploopfs/reopen, value: 1, errno: EIO}", "the write ended with success, expected EIO"),
        ("act: {command: 'echo so; exit 3'}", "the command exited with 3, expected 0: so"),
        ("act: {command: 'true', exit: 1}", "the command exited with 0, expected 1: no output"),
        ("recover: {command: 'sleep 100 & sleep 100', timeout_s: 0.2}", "the command did not end within 0.2 s"),
    ],
)
def test_a_step_that_goes_wrong_says_what_was_found(tmp_path: Path, step: str, says: str) -> None:
    assert rehearsed(tmp_path, step).failure.startswith(says)


@pytest.mark.parametrize(
    "expected",
    ["{event: standby_on, facts: [errno=EBUSY], within_s: 0.1}", "{event: standby_off, within_s: 0.1}"],
)
def test_another_event_or_one_with_other_facts_does_not_do(tmp_path: Path, expected: str) -> None:
    told = rehearsed(tmp_path, "inject: {op: WRITE, errno: EIO}", "write: {errno: EIO}", f"expect: {expected}")
    assert told.failure.startswith("no such event within 0.1 s; those that came: fault_rules, standby_on")


def test_an_event_is_found_once_and_in_order(tmp_path: Path) -> None:
    on = "expect: {event: standby_on, within_s: 0.1}"
    told = rehearsed(tmp_path, "inject: {op: WRITE, errno: EIO}", "write: {errno: EIO}", on, on)
    assert told.outcomes == ["passed", "passed", "passed", "failed"]
    assert told.failure.startswith("no such event within 0.1 s; those that came: none")


def test_data_that_were_acknowledged_and_changed_are_found_on_the_disk(tmp_path: Path) -> None:
    told = rehearsed(
        tmp_path,
        "write: 30",
        "act: {command: 'head -c 64M /dev/zero | dd of=$PLOOPFS_DISK bs=1M conv=notrunc 2>/dev/null'}",
        "verify: disk",
    )
    assert told.outcomes == ["passed", "passed", "failed"]
    assert "are not those that were acknowledged" in told.failure


def test_an_image_that_was_not_closed_is_found(tmp_path: Path) -> None:
    told = rehearsed(tmp_path, "inject: {op: FLUSH, errno: EIO}", "flush: {errno: EIO}", "verify: images")
    assert told.outcomes == ["passed", "passed", "failed"]
    assert told.failure.startswith("the daemon exited with 6: an image was not closed")


def test_a_lower_image_that_somebody_writes_to_is_found(tmp_path: Path) -> None:
    told = rehearsed(tmp_path, "act: {command: 'touch $PLOOPFS_SCRATCH/ploop0/level0.hds'}", "verify: images")
    assert told.failure.startswith("ploop0: a file below its top was changed: ")


def test_a_request_that_hangs_is_left_behind_and_so_is_nothing_else(tmp_path: Path) -> None:
    told = rehearsed(tmp_path, "inject: {op: READ, hang: true}", "read: {timeout_s: 0.2}")
    assert told.failure.startswith("1 requests did not end within 0.2 s")


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("steps: 5", Exit.CONFIG, ":1: steps: is 5, expected a list of 1 to 1000 steps"),
        (None, Exit.CONFIG, ": cannot be read: No such file or directory"),
        ("name: x\ndevices: [{image: nowhere}]\nsteps: [verify: disk]", Exit.FAILED, "nowhere: stat: ENOENT"),
    ],
)
def test_a_scenario_that_cannot_be_played_is_no_failed_rehearsal(
    tmp_path: Path, text: str | None, code: Exit, says: str
) -> None:
    path = tmp_path / "scenario.yaml"
    if text is not None:
        path.write_text(text)
    done = ploopfs("rehearse", path)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_a_scenario_is_played_on_either_flavour(tmp_path: Path) -> None:
    text = (ROOT / "config/scenarios/lease-stolen.yaml").read_text()
    path = tmp_path / "vz9.yaml"
    path.write_text(text.replace("steps:", "devices: [{name: dm-0, flavour: vz9}]\nsteps:", 1))
    done = ploopfs("rehearse", path)
    assert done.returncode == 0, done.stdout
    assert "expect dm-0 queue/standby reads 'on'" in done.stdout


# --- a recovery of the user's own ---------------------------------------------------------------------------------

RECOVERY = """#!/bin/sh
set -eu
[ "$(cat "$PLOOPFS_SYSFS/queue/standby")" = on ]
[ "$PLOOPFS_DEVICE" = ploop0 ] && [ "$PLOOPFS_DISK" = "$PLOOPFS_MOUNT/dev/ploop0" ]
echo "$PLOOPFS_IMAGE" > "$PLOOPFS_SYSFS/ploopfs/replace_delta"
"""


def test_a_command_of_the_user_s_stands_in_for_every_recovery(tmp_path: Path) -> None:
    script = tmp_path / "recover.sh"
    script.write_text(RECOVERY)
    script.chmod(0o755)
    scenario = ROOT / "config/scenarios/lease-stolen.yaml"
    done = ploopfs("rehearse", scenario, "--command", os.fspath(script))
    assert done.returncode == 0, done.stdout
    assert f"recover: {os.fspath(script)[:40]}" in done.stdout  # a long path is cut
    failed = ploopfs("rehearse", scenario, "--command", "exit 5")
    assert failed.returncode == Exit.UNMET
    assert "the command exited with 5, expected 0: no output" in failed.stdout


def test_a_command_finds_the_verbs_in_its_path(tmp_path: Path) -> None:
    told = rehearsed(
        tmp_path,
        "inject: {op: WRITE, errno: ENOTCONN, count: 1}",
        "write: {errno: ENOTCONN}",
        "recover: {command: 'ploopfs reopen -m $PLOOPFS_MOUNT $PLOOPFS_DEVICE'}",
        "expect: {standby: off}",
    )
    assert told.code == 0, told.report


# --- whose images -------------------------------------------------------------------------------------------------


def test_images_of_the_user_are_read_and_never_written(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", depth=2)
    before = sums(disk.deltas)
    told = rehearsed(
        tmp_path,
        "write: 50",
        "inject: {level: 0, op: READ, errno: EIO, count: 1}",
        "read: 1",
        "remove: all",
        "verify: disk",
        "verify: images",
        devices=f"[{{image: {disk.directory}, depth: 1}}]",
    )
    assert told.code == 0, told.report
    assert sums(disk.deltas) == before


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Daemon, Disk]]:
    disk = make_disk(tmp_path / "disk", depth=3)
    with serving(tmp_path, device(disk.directory)) as daemon:
        yield daemon, disk


STANDING_BY = ("inject: {op: READ, errno: EIO, name: r}", "read: {errno: EIO}", "expect: {standby: on}")


def test_on_an_existing_mount_the_rehearsal_takes_its_rules_away_and_leaves_the_rest(
    tmp_path: Path, mounted: tuple[Daemon, Disk]
) -> None:
    daemon, disk = mounted
    ploopfs("inject", "-m", daemon.mountpoint, "ploop0", "--op", "LOCK", "--delay-ms", "1")
    told = rehearsed(
        tmp_path,
        "inject: {op: OPEN, errno: EIO}",
        "act: {store: ploopfs/reopen, value: 1, errno: EIO}",
        "verify: images",
        options=("--mount", daemon.mountpoint),
    )
    assert told.code == 0, told.report
    assert told.outcomes == ["passed", "passed", "skipped"]
    assert told.report["steps"][2]["detail"] == "the mount existed before, and stays"
    rules = ploopfs("inject", "-m", daemon.mountpoint, "ploop0", "--list").stdout
    assert rules.startswith("1: LOCK delay_ms=1, ")
    assert rules.count("\n") == 1
    assert daemon.disk().read_bytes() == disk.content


@pytest.mark.parametrize("step", ["write: 1", "load: start"])
def test_an_existing_disk_is_not_overwritten_without_being_told_to(
    tmp_path: Path, mounted: tuple[Daemon, Disk], step: str
) -> None:
    daemon, disk = mounted
    told = rehearsed(tmp_path, "flush: 1", step, options=("--mount", daemon.mountpoint))
    assert told.code == Exit.FAILED
    assert f":5: writes to the disks of {daemon.mountpoint}, expected --overwrite" in told.err
    assert daemon.disk().read_bytes() == disk.content
    told = rehearsed(tmp_path, step, "verify: disk", options=("--mount", daemon.mountpoint, "--overwrite"))
    assert told.code == 0, told.report


def test_a_device_that_the_mount_does_not_have_is_told(tmp_path: Path, mounted: tuple[Daemon, Disk]) -> None:
    options = ("--mount", mounted[0].mountpoint)
    told = rehearsed(tmp_path, "verify: disk", devices="[{name: ploop7}]", options=options)
    assert told.code == Exit.FAILED
    assert "ploop7: no such device in" in told.err


# --- what stays ---------------------------------------------------------------------------------------------------


def test_what_is_kept_can_be_played_with_and_cleaned_up_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text("name: kept\nsteps: [write: 5]\n")
    done = ploopfs("rehearse", path, "--keep")
    assert done.returncode == 0, done.stdout
    _, _, clean_up = done.stdout.strip().splitlines()[-1].partition("to clean up: ")
    end, remove = clean_up.split("; ")
    mountpoint = Path(end.split()[-1])
    assert (mountpoint / "sys/block/ploop0/queue/standby").read_text() == "off\n"
    assert (Path(remove.split()[-1]) / "log").exists()
    command = [*PLOOPFS, *end.split()[1:]]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    subprocess.run(remove.split(), check=True)


def test_a_report_that_cannot_be_written_is_told_before_anything_is_played(tmp_path: Path) -> None:
    done = ploopfs("rehearse", SHIPPED[0], "--junit", tmp_path / "nowhere/report.xml")
    assert (done.returncode, done.stdout) == (Exit.FAILED, "")
    assert "nowhere/report.xml" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_rehearsal_that_is_ended_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text("name: long\nsteps: [{write: 1}, {act: {command: sleep 60}}]\n")
    report = tmp_path / "report.xml"
    interruptible = ["env", "--default-signal=INT", *PLOOPFS, "rehearse", str(path), "--junit", str(report)]
    rehearsal = subprocess.Popen(interruptible, stdout=subprocess.PIPE)
    assert rehearsal.stdout is not None
    while b"write ploop0" not in rehearsal.stdout.readline():
        assert rehearsal.poll() is None
    rehearsal.send_signal(number)
    rehearsal.communicate(timeout=60)
    assert rehearsal.returncode == 128 + number
    assert not report.exists(), "an empty report would pass for one"
