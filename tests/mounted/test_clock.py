"""The wall clock of the daemon jumps, forwards and back: no wait gets longer or shorter, only what is shown changes."""

import glob
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mounted.daemon import HANG_S, HOLD_MS, PLOOPFS, Daemon, device, errno_of, opened, ploopfs, serving, until
from tests.mounted.disks import assert_closed, make_disk
from tests.realparts import need

pytestmark = pytest.mark.real

LIBRARY = "/usr/lib/*/faketime/libfaketimeMT.so.1"
DAY_S = 24 * 3600
JUMPS = ("+400d", "-400d", "+0d")


@dataclass(frozen=True, slots=True)
class Scene:
    daemon: Daemon
    offset: Path

    def jump(self, offset: str) -> None:
        """From here on the wall clock is so much off."""
        self.offset.with_suffix(".new").write_text(offset)
        self.offset.with_suffix(".new").rename(self.offset)

    def lose(self) -> None:
        with opened(self.daemon.mountpoint / "sys/kernel/debug/ploopfs/ploop0/error_injection", os.O_WRONLY) as inject:
            os.write(inject, b"add,op=WRITE,errno=EBUSY")

    def recover(self) -> None:
        with opened(self.daemon.mountpoint / "sys/kernel/debug/ploopfs/ploop0/error_injection", os.O_WRONLY) as inject:
            os.write(inject, b"removeall")
        self.daemon.store("ploopfs/reopen", "1")

    def since_s(self) -> float:
        return float(self.daemon.value("ploopfs/standby_since"))


@contextmanager
def scene_of(place: Path, **others: Any) -> Iterator[Scene]:  # noqa: ANN401 - as `device` takes them
    need(files=(LIBRARY,))
    disk, offset = make_disk(place / "disk"), place / "offset"
    offset.write_text("+0d")
    faked = ["env", f"LD_PRELOAD={glob.glob(LIBRARY)[0]}", f"FAKETIME_TIMESTAMP_FILE={offset}", "FAKETIME_NO_CACHE=1"]
    faked.append("FAKETIME_DONT_FAKE_MONOTONIC=1")
    with serving(place, device(disk.directory, **others), command=[*faked, *PLOOPFS]) as daemon:
        yield Scene(daemon, offset)
        assert daemon.end() == 0
    assert_closed(disk.top)


def test_a_held_request_waits_as_long_as_it_should_whatever_the_clock_says(tmp_path: Path) -> None:
    with (
        scene_of(tmp_path, on_standby="hold", hold_timeout_ms=HOLD_MS) as scene,
        opened(scene.daemon.disk()) as fd,
        ThreadPoolExecutor(1) as thread,
    ):
        scene.lose()
        writing = thread.submit(os.pwrite, fd, b"held", 0)
        until(lambda: scene.daemon.value("ploopfs/held") == "1", "the writer is held")
        for jump in JUMPS:
            scene.jump(jump)
            assert scene.daemon.value("ploopfs/held") == "1"
            assert not writing.done()
        scene.recover()
        assert writing.result(HANG_S) == 4


@pytest.mark.parametrize("jump", JUMPS[:2])
def test_a_hold_timeout_comes_in_its_time_whatever_the_clock_says(tmp_path: Path, jump: str) -> None:
    with (
        scene_of(tmp_path, on_standby="hold", hold_timeout_ms=1000) as scene,
        opened(scene.daemon.disk()) as fd,
        ThreadPoolExecutor(1) as thread,
    ):
        scene.lose()
        started_s = time.monotonic()
        writing = thread.submit(errno_of, os.pwrite, fd, b"held", 0)
        until(lambda: scene.daemon.value("ploopfs/held") == "1" or writing.done(), "the writer is held")
        scene.jump(jump)
        assert writing.result(HANG_S) == "EIO"
        assert 1 <= time.monotonic() - started_s < HANG_S / 2
        scene.recover()


def test_the_agent_recovers_in_its_time_whatever_the_clock_says(tmp_path: Path) -> None:
    slow: dict[str, object] = {"reopen": True, "backoff_s": 0.5, "backoff_max_s": 0.5, "probe": False, "settle_s": 0}
    with scene_of(tmp_path, recovery=slow) as scene, opened(scene.daemon.disk()) as fd:
        scene.lose()
        assert errno_of(os.pwrite, fd, b"x", 0) == "EBUSY"
        scene.jump(JUMPS[1])
        with opened(scene.daemon.mountpoint / "sys/kernel/debug/ploopfs/ploop0/error_injection", os.O_WRONLY) as inject:
            os.write(inject, b"removeall")
        until(lambda: scene.daemon.value("queue/standby") == "off", "the agent has recovered it")


def test_standby_since_is_the_time_of_its_moment_and_durations_are_true(tmp_path: Path) -> None:
    with scene_of(tmp_path) as scene, opened(scene.daemon.disk()) as fd:
        scene.lose()
        scene.jump("+400d")
        assert errno_of(os.pwrite, fd, b"x", 0) == "EBUSY"
        since_s = scene.since_s()
        assert since_s - time.time() == pytest.approx(400 * DAY_S, abs=HANG_S)
        scene.jump("-400d")
        assert scene.since_s() == since_s, "what was noted stays as it was noted"
        told = ploopfs("status", "-m", scene.daemon.mountpoint)
        assert (told.returncode, "  0 s  " in told.stdout) == (0, True), told.stdout
        scene.recover()
        assert errno_of(os.pwrite, fd, b"x", 0) == "success"
        records = scene.daemon.events()
        assert [one["seq"] for one in records] == list(range(1, len(records) + 1))
        [off] = [one for one in records if one["event"] == "standby_off"]
        assert 0 <= off["seconds"] < HANG_S
        assert off["time"] < since_s - 700 * DAY_S
        families = json.loads(ploopfs("metrics", "--json", "-m", scene.daemon.mountpoint).stdout)
        [seconds] = [one for one in families if one["name"] == "ploopfs_standby_seconds"]
        assert [0 <= sample["value"] < HANG_S for sample in seconds["samples"]] == [True] * len(seconds["samples"])
