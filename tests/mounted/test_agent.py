"""The recovery agent for real: the store dies, comes back or is brought back, and nobody writes a control file."""

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest

from ploopfs.engine import lock
from ploopfs.engine.probe import SCRATCH_PREFIX, ProbedImage, probe
from ploopfs.errors import BackendError
from tests.mounted.agents import QUICK, REOPEN
from tests.mounted.daemon import Daemon, device, errno_of, opened, serving, unmount, until
from tests.mounted.disks import BLOCK_BYTES, Disk, assert_closed, is_marked, make_disk, sums
from tests.mounted.storage import Bindfs
from tests.mounted.writer import Writer

pytestmark = pytest.mark.real

HANG_NOTICED_S = 0.5


@dataclass(frozen=True, slots=True)
class Scene:
    """A stack of two deltas on a store; `disk` names its files behind the store's back."""

    bindfs: Bindfs
    disk: Disk
    daemon: Daemon

    @property
    def top(self) -> Path:
        return self.bindfs.path / self.disk.top.relative_to(self.bindfs.bricks)

    def events(self, event: str) -> list[dict[str, object]]:
        lines = (self.daemon.mountpoint / "sys/fs/ploopfs/events").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == event]

    def verdicts(self) -> list[object]:
        """Of the probes, each until the next other one: what a sick store says may change, as while it is mounted."""
        return [healthy for healthy, _ in groupby(record["healthy"] for record in self.events("agent_probe"))]

    def has_probed(self, verdicts: int) -> bool:
        return len(self.verdicts()) == verdicts

    def lose(self, writer: Writer) -> None:
        self.bindfs.kill()
        assert writer.errno_of_write() == "ENOTCONN"
        assert self.daemon.value("queue/standby") == "on"

    def wait_off(self) -> None:
        until(lambda: self.daemon.value("queue/standby") == "off", "the device is back")

    def assert_nothing_left_behind(self) -> None:
        """No scratch file, neither in the store nor on the mountpoint that it was away from."""
        unmount(self.bindfs.path)
        for place in (self.bindfs.bricks, self.bindfs.path):
            names = [name for _, _, files in os.walk(place) for name in files]
            assert not [name for name in names if name.startswith((SCRATCH_PREFIX, ".fuse_hidden"))]
        assert os.listdir(self.bindfs.path) == []


@contextmanager
def scene_of(
    place: Path, bindfs: Bindfs, recovery: dict[str, object], *, on_standby: str = "fail"
) -> Iterator[Scene]:
    disk = make_disk(bindfs.bricks / "disk", depth=2)
    with serving(place, device(bindfs.path / "disk", recovery=recovery, on_standby=on_standby)) as daemon:
        yield Scene(bindfs, disk, daemon)


@pytest.fixture
def scene(tmp_path: Path, bindfs: Bindfs) -> Iterator[Scene]:
    with scene_of(tmp_path, bindfs, REOPEN) as scene:
        yield scene


def test_a_device_comes_back_with_its_store_again_and_again_with_nobody_at_work(scene: Scene) -> None:
    daemon = scene.daemon
    assert [daemon.value(f"ploopfs/{name}") for name in ("recovery", "agent")] == ["reopen", "idle"]
    with opened(daemon.disk()) as fd:
        writer = Writer(fd, scene.disk)
        for outage in range(1, 4):
            writer.write(50)
            scene.lose(writer)
            assert daemon.value("ploopfs/agent") == "probing"
            until(partial(scene.has_probed, 2 * outage - 1), "a failed probe")
            scene.bindfs.remount()
            scene.wait_off()
            assert daemon.value("ploopfs/generation") == str(1 + outage)
        writer.write(50)
        writer.assert_all_there()
    assert scene.verdicts() == [False, True] * 3
    until(lambda: [record["result"] for record in scene.events("agent_result")] == ["ok"] * 3, "three results")
    assert daemon.end() == 0
    scene.assert_nothing_left_behind()
    assert_closed(scene.disk.top)
    assert sums(scene.disk.deltas[:-1]) == scene.disk.lower_sums


def test_a_mountpoint_without_its_mount_gets_no_file_and_no_trust(scene: Scene) -> None:
    with opened(scene.daemon.disk()) as fd:
        writer = Writer(fd, scene.disk)
        scene.lose(writer)
        unmount(scene.bindfs.path)
        (scene.bindfs.path / "disk").mkdir()
        missing = "ENOENT (No such file or directory)"
        until(lambda: missing in str(scene.events("agent_probe")[-1:]), "a probe of the bare mountpoint")
        until(lambda: scene.daemon.value("ploopfs/agent_next_s") != "", "the next probe is waited for")
        assert os.listdir(scene.bindfs.path / "disk") == []
        (scene.bindfs.path / "disk").rmdir()
        scene.bindfs.mount()
        scene.wait_off()
        writer.write(10)
        writer.assert_all_there()
    assert scene.events("agent_attempt")[0]["attempt"] == 1
    assert scene.daemon.end() == 0
    scene.assert_nothing_left_behind()


def test_a_store_that_dies_under_the_open_file_of_a_probe_fails_the_probe_and_nothing_else(
    bindfs: Bindfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bindfs.bricks / "top.hds").write_bytes(bytes(BLOCK_BYTES))
    read = os.pread

    def dying(fd: int, length: int, offset: int) -> bytes:
        bindfs.kill()
        return read(fd, length, offset)

    monkeypatch.setattr(os, "pread", dying)
    with pytest.raises(BackendError, match=r"top\.hds: read 4096 bytes at 0: ENOTCONN"):
        probe([ProbedImage(path=str(bindfs.path / "top.hds"))], SCRATCH_PREFIX)


def test_held_requests_never_see_the_outage(tmp_path: Path, bindfs: Bindfs) -> None:
    with (
        scene_of(tmp_path, bindfs, REOPEN, on_standby="hold") as scene,
        opened(scene.daemon.disk()) as fd,
        ThreadPoolExecutor(1) as thread,
    ):
        writer = Writer(fd, scene.disk)
        writer.write(50)
        scene.bindfs.kill()
        writing = thread.submit(writer.write, 50)
        until(lambda: scene.daemon.value("ploopfs/held") == "1", "a held write")
        scene.bindfs.remount()
        writing.result()
        writer.assert_all_there()
        assert scene.daemon.value("queue/standby") == "off"


def test_a_store_that_comes_back_but_hangs_is_waited_for_and_the_tree_answers(tmp_path: Path, bindfs: Bindfs) -> None:
    recovery = REOPEN | {"probe_timeout_s": HANG_NOTICED_S}
    with scene_of(tmp_path, bindfs, recovery) as scene:
        with opened(scene.daemon.disk()) as fd:
            writer = Writer(fd, scene.disk)
            scene.lose(writer)
            scene.daemon.store("ploopfs/agent", "pause")
            scene.bindfs.remount()
            with scene.bindfs.stopped():
                scene.daemon.store("ploopfs/agent", "resume")
                hangs = "the storage did not answer within 0.5 s"
                until(lambda: hangs in str(scene.events("agent_probe")[-1:]), "a probe that was given up")
                assert scene.daemon.value("queue/standby") == "on"
                assert scene.daemon.value("ploopfs/agent") == "probing"
            scene.wait_off()
            writer.write(10)
            writer.assert_all_there()
        assert [record["result"] for record in scene.events("agent_result")][-1:] == ["ok"]
        assert scene.daemon.end() == 0
        scene.assert_nothing_left_behind()


def test_a_paused_agent_leaves_the_device_to_its_operator(scene: Scene) -> None:
    with opened(scene.daemon.disk()) as fd:
        writer = Writer(fd, scene.disk)
        scene.daemon.store("ploopfs/agent", "pause")
        scene.lose(writer)
        scene.bindfs.remount()
        assert errno_of(scene.daemon.store, "ploopfs/agent", "now") == "EINVAL"
        assert "this one is paused" in scene.daemon.value("ploopfs/last_error")
        scene.daemon.store("ploopfs/reopen", "1")
        assert scene.daemon.value("queue/standby") == "off"
        scene.daemon.store("ploopfs/agent", "resume")
        assert scene.daemon.value("ploopfs/agent") == "idle"
        writer.write(10)
    assert [scene.events(f"agent_{event}") for event in ("attempt", "result", "probe")] == [[], [], []]


def test_a_replacement_by_hand_does_not_wait_for_an_attempt_that_hangs(tmp_path: Path, bindfs: Bindfs) -> None:
    copy = tmp_path / "copy.hds"
    with scene_of(tmp_path, bindfs, {**REOPEN, "probe": False}) as scene, opened(scene.daemon.disk()) as fd:
        writer = Writer(fd, scene.disk)
        writer.write(10)
        faults = scene.daemon.mountpoint / "sys/kernel/debug/ploopfs/ploop0/error_injection"
        faults.write_text("add,op=OPEN,hang,count=1")
        faults.write_text("add,op=WRITE,errno=EIO,count=1")
        assert writer.errno_of_write() == "EIO"
        until(lambda: scene.daemon.value("ploopfs/agent") == "recovering", "an attempt is under way")
        copy.write_bytes(scene.disk.top.read_bytes())
        scene.daemon.store("ploopfs/replace_delta", str(copy))
        assert scene.daemon.value("queue/standby") == "off"
        assert scene.daemon.value("ploopfs/agent") == "idle"
        assert [record["result"] for record in scene.events("agent_result")] == ["cancelled"]
        faults.write_text("removeall")
        writer.assert_all_there()


def test_a_lease_that_another_process_holds_is_waited_for(scene: Scene) -> None:
    with opened(scene.daemon.disk()) as fd:
        writer = Writer(fd, scene.disk)
        scene.lose(writer)
        scene.daemon.store("ploopfs/agent", "pause")
        scene.bindfs.remount()
        with opened(scene.top) as thief:
            lock.claim(thief, str(scene.top), writable=True)
            scene.daemon.store("ploopfs/agent", "resume")
            until(lambda: len(scene.events("agent_result")) >= 3, "three attempts")
            assert {record["result"] for record in scene.events("agent_result")} == {"failed"}
            assert f"(pid {os.getpid()})" in str(scene.events("agent_result")[0]["error"])
            assert scene.daemon.value("queue/standby") == "on"
        scene.wait_off()
        writer.write(10)
        writer.assert_all_there()


def test_another_place_of_the_image_can_be_named_while_the_daemon_runs(scene: Scene, tmp_path: Path) -> None:
    copy = tmp_path / "copy.hds"
    with opened(scene.daemon.disk()) as fd:
        writer = Writer(fd, scene.disk)
        writer.write(50)
        os.fsync(fd)
        scene.lose(writer)
        scene.daemon.store("ploopfs/recovery", f"replace {copy}")
        scene.bindfs.remount()  # for the lower delta
        until(lambda: "copy.hds: open: ENOENT" in str(scene.events("agent_probe")[-1:]), "a probe of what is not there")
        copy.with_suffix(".new").write_bytes(scene.disk.top.read_bytes())
        copy.with_suffix(".new").rename(copy)
        scene.wait_off()
        assert scene.daemon.value("pdelta/1/image") == str(copy)
        writer.write(10)
        writer.assert_all_there()
    assert scene.daemon.end() == 0
    assert_closed(copy)
    assert is_marked(scene.disk.top)


# --- a program of the user's --------------------------------------------------------------------------------------

SCRIPT = """#!/bin/sh
set -e
env | grep ^PLOOPFS_ | sort > "$1/facts"
echo "store: $2"
[ "$(cat "$PLOOPFS_SYSFS/queue/standby")" = on ]
umount -l "$2"
bindfs "$3" "$2"
echo 1 > "$PLOOPFS_SYSFS/ploopfs/reopen"
"""


def program(place: Path, text: str) -> Path:
    path = place / "recover.sh"
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_shell_script_brings_the_store_back_and_writes_to_this_very_tree(tmp_path: Path, bindfs: Bindfs) -> None:
    script = program(tmp_path, SCRIPT)
    command = [str(script), str(tmp_path), str(bindfs.path), str(bindfs.bricks)]
    with scene_of(tmp_path, bindfs, {"command": command, **QUICK}) as scene:
        with opened(scene.daemon.disk()) as fd:
            writer = Writer(fd, scene.disk)
            writer.write(50)
            scene.lose(writer)
            scene.wait_off()
            writer.write(50)
            writer.assert_all_there()
        facts = dict(line.split("=", 1) for line in (tmp_path / "facts").read_text().splitlines())
        assert facts["PLOOPFS_MOUNT"] == str(scene.daemon.mountpoint)
        assert facts["PLOOPFS_SYSFS"] == str(scene.daemon.attribute(""))
        assert facts["PLOOPFS_DISK"] == str(scene.daemon.disk())
        assert facts["PLOOPFS_REASON_ERRNO"] == "ENOTCONN"
        assert facts["PLOOPFS_REASON_FILE"] == facts["PLOOPFS_TOP"] == str(scene.top)
        assert facts["PLOOPFS_REASON_LEVEL"] == "1"
        assert [facts[f"PLOOPFS_{name}"] for name in ("DEVICE", "GENERATION", "ATTEMPT")] == ["ploop0", "1", "1"]
        scene.daemon.wait_for_line(f"{script}: store: {bindfs.path}")
        assert scene.daemon.end() == 0
        assert_closed(scene.disk.top)


def test_a_script_that_fails_is_run_again(tmp_path: Path, bindfs: Bindfs) -> None:
    script = program(tmp_path, f'#!/bin/sh\n[ "$PLOOPFS_ATTEMPT" -lt 3 ] && exit 7\n{SCRIPT.partition("set -e")[2]}')
    command = [str(script), str(tmp_path), str(bindfs.path), str(bindfs.bricks)]
    with scene_of(tmp_path, bindfs, {"command": command, **QUICK}) as scene, opened(scene.daemon.disk()) as fd:
        scene.lose(Writer(fd, scene.disk))
        scene.wait_off()
        until(lambda: len(scene.events("agent_result")) == 3, "three results")
        assert [record["result"] for record in scene.events("agent_result")] == ["failed", "failed", "ok"]
        assert scene.events("agent_result")[0]["error"] == f"{script} exited with 7"


def test_a_daemon_that_ends_takes_the_script_that_it_runs_with_it(tmp_path: Path, bindfs: Bindfs) -> None:
    script = program(tmp_path, '#!/bin/sh\necho $$ > "$1/pid.new"; mv "$1/pid.new" "$1/pid"; sleep 1000\n')
    with scene_of(tmp_path, bindfs, {"command": [str(script), str(tmp_path)]}) as scene:
        with opened(scene.daemon.disk()) as fd:
            scene.lose(Writer(fd, scene.disk))
            until((tmp_path / "pid").exists, "the script runs")
            assert scene.daemon.value("ploopfs/agent") == "recovering"
        running = (tmp_path / "pid").read_text().strip()
        assert scene.daemon.end() != 0, "the image could not be closed"
        assert subprocess.run(["ps", "-p", running], capture_output=True, check=False).returncode == 1


def test_a_script_on_a_store_that_hangs_holds_up_nobody(tmp_path: Path, bindfs: Bindfs) -> None:
    healthy = make_disk(tmp_path / "healthy", seed=2)
    bricks = bindfs.bricks / "bin"
    bricks.mkdir()
    program(bricks, "#!/bin/sh\nexit 0\n")
    disk = make_disk(bindfs.bricks / "disk", depth=2)
    recovery = {"command": [str(bindfs.path / "bin/recover.sh")], "command_timeout_s": 1, **QUICK}
    with (
        serving(
            tmp_path, device(bindfs.path / "disk", recovery=recovery), device(healthy.directory, "ploop1")
        ) as daemon,
        opened(daemon.disk()) as fd,
        opened(daemon.disk("ploop1")) as neighbour,
    ):
        scene = Scene(bindfs, disk, daemon)
        daemon.store("ploopfs/agent", "pause")
        scene.lose(Writer(fd, disk))
        bindfs.remount()
        with bindfs.stopped():
            daemon.store("ploopfs/agent", "resume")
            until(lambda: scene.events("agent_attempt") != [], "the script is started")
            assert os.pread(neighbour, BLOCK_BYTES, 0) == healthy.content[:BLOCK_BYTES]
            assert daemon.value("queue/standby") == "on"
            until(lambda: "its time limit" in str(scene.events("agent_result")[-1:]), "the script is given up")
        daemon.store("ploopfs/recovery", "reopen")
        scene.wait_off()
