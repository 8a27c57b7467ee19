"""watch, wait and why beside a daemon whose storage is lost and comes back: what a person sees, and a script."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ploopfs.cli.exits import Exit
from tests.mounted.daemon import (
    HANG_S,
    PLOOPFS,
    ROOT,
    Daemon,
    Lines,
    device,
    is_polling,
    opened,
    ploopfs,
    serving,
    until,
)
from tests.mounted.disks import CLUSTER_BYTES, Disk, make_disk
from tests.mounted.storage import Bindfs
from tests.realparts import need

pytestmark = pytest.mark.real


class Scene:
    """ploop0 holds in standby and lies on a store; ploop1 lies on no store."""

    def __init__(self, bindfs: Bindfs, disk: Disk, daemon: Daemon) -> None:
        self.bindfs, self.disk, self.daemon = bindfs, disk, daemon

    @property
    def top(self) -> Path:
        return self.bindfs.path / self.disk.top.relative_to(self.bindfs.bricks)

    def verb(self, name: str, *arguments: str) -> list[str]:
        return [*PLOOPFS, name, *arguments, "--mount", str(self.daemon.mountpoint)]

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return ploopfs(name, *arguments, "--mount", str(self.daemon.mountpoint))

    @contextmanager
    def lost_store(self) -> Iterator[None]:
        """Inside, the store is lost and one write is held; then both come to their end, unless they have."""
        written: list[int] = []

        def write() -> None:
            with opened(self.daemon.disk()) as fd:
                written.append(os.pwrite(fd, bytes(CLUSTER_BYTES), 0))

        self.bindfs.kill()
        writer = threading.Thread(target=write)
        writer.start()
        try:
            until(lambda: self.daemon.value("ploopfs/held") == "1", "a write is held")
            yield
        finally:
            if self.daemon.value("queue/standby") == "on":
                self.bindfs.remount()
                self.daemon.store("ploopfs/reopen", "1")
            writer.join(HANG_S)
        assert written == [CLUSTER_BYTES]


@pytest.fixture
def scene(tmp_path: Path, bindfs: Bindfs) -> Iterator[Scene]:
    disk = make_disk(bindfs.bricks / "disk", depth=2)
    other = make_disk(tmp_path / "other")
    devices = device(bindfs.path / "disk", on_standby="hold"), device(other.directory, "ploop1")
    with serving(tmp_path, *devices) as daemon:
        yield Scene(bindfs, disk, daemon)


@contextmanager
def running(command: list[str]) -> Iterator[tuple["subprocess.Popen[str]", Lines]]:
    # Who starts the tests in the background has them ignore SIGINT, and all that they start.
    interruptible = ["env", "--default-signal=INT", *command]
    process = subprocess.Popen(interruptible, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    lines = Lines(process.stdout)
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait(HANG_S)
        lines.wait_end()
        assert process.stderr
        process.stderr.close()


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# watch

AT_START = ["device_added", "attached", "scst_device_added"]
"""What happens to a device of the configuration before anything is asked of it."""


def test_watch_follows_an_outage_to_its_end(scene: Scene) -> None:
    with running(scene.verb("watch", "ploop0", "--json")) as (process, lines):
        lines.wait_for('"attached"')
        with scene.lost_store():
            lines.wait_for('"held"')
        lines.wait_for('"replace_end"')
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG_S) == 128 + signal.SIGINT
        seen = records(lines.wait_end())
    assert [one["event"] for one in seen][: len(AT_START)] == AT_START
    of_the_outage = [one["event"] for one in seen[len(AT_START) :]]
    assert of_the_outage == ["standby_on", "held", "replace_begin", "standby_off", "released", "replace_end"]
    assert [one["seq"] for one in seen] == sorted({one["seq"] for one in seen})
    assert {one["device"] for one in seen} == {"ploop0"}
    lost = next(one for one in seen if one["event"] == "standby_on")
    assert (lost["errno"], lost["file"], lost["level"]) == ("ENOTCONN", str(scene.top), 1)


def test_watch_begins_with_the_last_events_and_may_end_there(scene: Scene) -> None:
    done = scene.run("watch", "--no-follow")
    assert (done.returncode, done.stderr) == (0, "")
    shown = [line.split()[1:3] for line in done.stdout.splitlines()]
    assert [words for words in shown if words[0].startswith("ploop")] == [
        [name, event] for name in ("ploop0", "ploop1") for event in AT_START
    ]
    assert len(scene.run("watch", "--no-follow", "--last", "all", "ploop1").stdout.splitlines()) == len(AT_START)
    assert len(scene.run("watch", "--no-follow", "--last", "1").stdout.splitlines()) == 1
    assert scene.run("watch", "--no-follow", "--last", "0").stdout == ""


def test_watch_ends_with_its_reader(scene: Scene) -> None:
    command = f"{shlex.join(scene.verb('watch'))} | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=True)
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


def test_watch_ends_with_the_daemon(scene: Scene) -> None:
    with running(scene.verb("watch")) as (process, lines):
        lines.wait_for("ploop1")
        scene.daemon.process.kill()
        assert process.wait(HANG_S) == Exit.FAILED
        assert process.stderr
        assert process.stderr.read() == "ploopfs: Transport endpoint is not connected\n"


def test_watch_without_standard_output_says_so_in_one_line(scene: Scene) -> None:
    shell = f"{shlex.join(map(str, scene.verb('watch', '--no-follow')))} >&-"
    done = subprocess.run(["sh", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stderr) == (Exit.FAILED, "ploopfs: Bad file descriptor\n")


@pytest.mark.parametrize("arguments", [("--for", "on"), ("--event", "held")], ids=" ".join)
def test_wait_that_is_interrupted_says_so_by_its_exit_code_and_nothing_else(
    scene: Scene, arguments: tuple[str, ...]
) -> None:
    with running(scene.verb("wait", "ploop0", *arguments)) as (process, _):
        until(lambda: is_polling(Path(f"/proc/{process.pid}")), "it waits")
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG_S) == 128 + signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_watch_of_no_device_is_refused(scene: Scene) -> None:
    done = scene.run("watch", "ploop7")
    assert (done.returncode, done.stdout) == (Exit.FAILED, "")
    assert "(there: ploop0, ploop1)" in done.stderr


# wait


def test_wait_is_woken_by_a_held_request_and_by_an_event(scene: Scene) -> None:
    def listens(process: "subprocess.Popen[str]", file: str) -> bool:
        """The file is open, and all that was in it before has been read."""
        place = Path(f"/proc/{process.pid}")
        return any(_target(link).endswith(file) for link in (place / "fd").iterdir()) and is_polling(place)

    held = scene.verb("wait", "ploop0", "--for", "held", "--timeout", str(HANG_S))
    event = scene.verb("wait", "ploop0", "--event", "standby_on", "--json", "--timeout", str(HANG_S))
    with running(held) as (for_held, _), running(event) as (for_event, lines):
        until(lambda: listens(for_held, "ploopfs/held") and listens(for_event, "ploopfs/events"), "both listen")
        with scene.lost_store():
            assert for_held.wait(HANG_S) == Exit.OK
            assert for_event.wait(HANG_S) == Exit.OK
            [record] = records(lines.wait_end())
    assert (record["event"], record["device"]) == ("standby_on", "ploop0")


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--for", "held"), "ploopfs: ploop0 is still '0' after 0.01 s\n"),
        (("--event", "standby_on"), "ploopfs: ploop0: no standby_on within 0.01 s\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wait_gives_up_in_time(scene: Scene, arguments: tuple[str, ...], message: str) -> None:
    done = scene.run("wait", "ploop0", *arguments, "--timeout", "0.01")
    assert (done.returncode, done.stdout, done.stderr) == (Exit.TIMEOUT, "", message)


# why and status


def test_why_tells_of_the_first_error_and_its_steps_lead_out(scene: Scene) -> None:
    with scene.lost_store():
        screen = scene.run("why", "ploop0").stdout
        assert re.match(r"ploop0 is in standby since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(\d+ s\)\n", screen)
        assert "  first error   ENOTCONN (Transport endpoint is not connected) on write" in screen
        assert f"  file          {scene.top} (level 1, the top)\n" in screen
        assert "  requests      1 held, with 64K of data, each for at most 5 min 0 s\n" in screen
        facts = json.loads(scene.run("why", "ploop0", "--json").stdout)
        assert facts["status"]["standby"] == "on"
        assert facts["events"][-1]["event"] == "held"
        look, reopen, *_ = (shlex.split(step["command"]) for step in facts["next"])
        found = subprocess.run(look, capture_output=True, text=True, check=False)
        assert "Transport endpoint is not connected" in found.stderr
        scene.bindfs.remount()
        assert subprocess.run(look, capture_output=True, check=False).returncode == 0
        assert reopen[:3] == ["ploopfs", "reopen", "ploop0"]
        assert scene.run(*reopen[1:3]).returncode == Exit.OK
        assert scene.daemon.value("queue/standby") == "off"
    screen = scene.run("why", "ploop0").stdout
    assert screen.startswith("ploop0 is not in standby\n")
    assert screen.endswith("nothing to do\n")


def test_why_says_that_nobody_promised_recovery(tmp_path: Path) -> None:
    need(fuse=True, root=True)
    disk, other = make_disk(tmp_path / "disk"), make_disk(tmp_path / "other")
    devices = device(disk.directory, standby=False), device(other.directory, "ploop1", read_only=True)
    with serving(tmp_path, *devices, loaded=False) as daemon:

        def why(name: str) -> str:
            return ploopfs("why", name, "--mount", daemon.mountpoint).stdout

        assert why("ploop0").startswith("ploop0 does not support standby\n")
        assert "not attached to a target (STANDBY_EN is out)" in why("ploop0")
        assert "no target subsystem is loaded (ploop_standby_check is out)" in why("ploop1")


@pytest.mark.expects_warnings
def test_status_on_a_terminal_is_in_colour(scene: Scene) -> None:
    with scene.lost_store():
        shown = on_terminal(scene.verb("status"))
    assert re.search(r"ploop0  \033\[31mon *\033\[0m", shown)
    assert re.search(r"ploop1  \033\[32moff *\033\[0m", shown)
    assert "ENOTCONN on write" in shown


def on_terminal(command: list[str]) -> str:
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    subprocess.run(command, cwd=ROOT, stdout=theirs, env=environment, check=True, timeout=HANG_S)
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 4096):
            shown += data
    except OSError:
        # A terminal without a program on its other side has no end of file.
        pass
    finally:
        os.close(ours)
    return shown.decode()
