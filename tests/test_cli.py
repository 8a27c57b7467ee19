"""The command: its help, its exit codes, its JSON; images made and looked at, and the verbs that drive a mounted tree.

Verbs run in this process, through `main`. A daemon is a process of its own.
"""

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ploopfs import __version__
from ploopfs.cli import check
from ploopfs.cli.exits import MEANING, Exit
from ploopfs.cli.main import main
from ploopfs.fuse.mountpoint import ploopfs_mounts
from tests.mounted.daemon import PLOOPFS, ROOT, Daemon, device, errno_of, opened, serving, until
from tests.mounted.disks import Disk, make_disk
from tests.mounted.storage import Bindfs, store
from tests.realparts import need

VERBS = (
    *("mount", "umount", "list", "status", "why", "watch", "wait", "metrics", "replace", "reopen", "reload"),
    *("exec", "create", "snapshot", "resize", "check", "info", "inject", "rehearse"),
)
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Told:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the verb says
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> "Run":
    """Help is as wide as the terminal, here as an ordinary one."""
    monkeypatch.setenv("COLUMNS", "80")
    return Run(capsys)


@dataclass(frozen=True, slots=True)
class Run:
    """`run(verb, ...)`; argparse leaves by SystemExit, which is the exit code too."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str | Path) -> Told:
        self.capsys.readouterr()
        try:
            code = main([os.fspath(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        said = self.capsys.readouterr()
        return Told(code, said.out, said.err)


# Help and usage


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_the_exit_codes(run: Run, verb: str) -> None:
    told = run(verb, "--help")
    assert told.code == Exit.OK
    [example] = re.findall(r"^example:\n  (.*)$", told.out, re.MULTILINE)
    assert shlex.split(example)[:2] == ["ploopfs", verb]
    for code, meaning in {"check": check.MEANING}.get(verb, MEANING).items():
        assert f"  {int(code)}  {meaning}" in told.out


def test_the_help_lists_every_verb_and_every_exit_code_has_a_meaning(run: Run) -> None:
    told = run("--help")
    assert told.code == Exit.OK
    assert set(re.findall(r"^    ([a-z]+)  ", told.out, re.MULTILINE)) == set(VERBS)
    assert set(MEANING) == set(Exit)


def test_the_version_is_told(run: Run) -> None:
    assert run("--version") == Told(Exit.OK, f"ploopfs {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("no-such-verb",),
        ("mount", "config.yaml"),
        ("mount", "config.yaml", "mnt", "-o", "nonsense"),
        ("create", "0", "disk"),
        ("create", "10X", "disk"),
        ("create", "1G", "disk", "--cluster-size", "48K"),
        ("create", "1G", "disk", "--cluster-size", "16K"),
        ("create", "1G", "disk", "--format-version", "3"),
        ("wait", "ploop0"),
        ("wait", "ploop0", "--for", "maybe"),
        ("wait", "ploop0", "--event", "nonsense"),
        ("wait", "ploop0", "--for", "on", "--event", "held"),
        ("watch", "--last", "many"),
        ("replace", "ploop0", "/x", "--verify", "some"),
        ("exec", "mnt"),
        ("info",),
        ("check",),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_usage(run: Run, arguments: tuple[str, ...]) -> None:
    told = run(*arguments)
    assert (told.code, told.out) == (Exit.USAGE, "")
    assert told.err.startswith("usage: ploopfs")


# Images


def test_create_makes_a_disk_that_info_describes(run: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    descriptor = f"{disk}/DiskDescriptor.xml"
    assert run("create", "100M", disk, "--cluster-size", "64K") == Told(Exit.OK, f"{descriptor}\n", "")
    expected = [
        {
            "path": f"{disk}/root.hds",
            "format": "ploop1",
            "version": 2,
            "cluster_bytes": 65536,
            "size_bytes": 100 * MIB,
            "file_bytes": 65536,
            "allocated_clusters": 0,
            "in_use": False,
            "check": 0,
            "problems": [],
        }
    ]
    for paths in ([disk], [descriptor], [f"{disk}/root.hds"]):
        assert run("info", "--json", *paths).json == expected
    told = run("info", disk)
    assert told.out.splitlines() == [
        f"level 0: {disk}/root.hds",
        "  ploop version 2, closed, original check exits 0",
        f"  disk {100 * MIB} bytes, cluster 65536, 0 clusters allocated",
    ]


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [("4096", 2 * MIB), ("0x1000", 2 * MIB), ("2m", 2 * MIB), ("3000K", 3 * MIB), ("1G", 1024 * MIB)],
)
def test_a_size_is_sectors_or_has_a_unit_and_is_rounded_up_to_clusters(
    run: Run, tmp_path: Path, size: str, size_bytes: int
) -> None:
    assert run("create", size, tmp_path / "disk").code == Exit.OK
    assert run("info", "--json", tmp_path / "disk").json[0]["size_bytes"] == size_bytes


def test_a_path_with_a_suffix_is_one_image_file(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "top.hds"
    assert run("create", "64M", image, "--format-version", "1", "--json").json == {"image": str(image)}
    assert run("info", "--json", image).json[0]["version"] == 1
    assert os.listdir(tmp_path) == ["top.hds"]


def test_create_with_json_names_the_descriptor(run: Run, tmp_path: Path) -> None:
    descriptor = tmp_path / "disk" / "DiskDescriptor.xml"
    assert run("create", "--json", "64M", descriptor).json == {"descriptor": str(descriptor)}


@pytest.mark.parametrize("name", ["disk", "top.hds"])
def test_what_exists_is_not_created_again(run: Run, tmp_path: Path, name: str) -> None:
    assert run("create", "64M", tmp_path / name).code == Exit.OK
    told = run("create", "64M", tmp_path / name)
    assert (told.code, told.out) == (Exit.FAILED, "")
    assert told.err.startswith(f"ploopfs: {tmp_path / name}")
    assert "exists" in told.err


def test_a_snapshot_puts_an_empty_delta_on_a_disk(run: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    run("create", "64M", disk)
    first = run("snapshot", "--json", disk).json
    second = run("snapshot", disk / "DiskDescriptor.xml").out.split()
    assert [layer["path"] for layer in run("info", "--json", disk).json] == [
        str(disk / "root.hds"),
        first["top"],
        second[1],
    ]
    assert first["snapshot"].startswith("{")
    assert first["snapshot"] != second[0]
    assert [line.split(":")[0] for line in run("info", disk).out.splitlines()[::3]] == ["level 2", "level 1", "level 0"]


def test_a_snapshot_is_of_a_disk_and_not_of_an_image(run: Run, tmp_path: Path) -> None:
    run("create", "64M", tmp_path / "top.hds")
    told = run("snapshot", tmp_path / "top.hds")
    assert told.code == Exit.FAILED
    assert "a snapshot is taken of a disk" in told.err


def test_an_image_that_nobody_uses_grows(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "top.hds"
    run("create", "--cluster-size", "32K", "64M", image)
    assert run("resize", "--json", "1G", image).json == {"image": str(image), "size": str(1 << 30)}
    [layer] = run("info", "--json", image).json
    assert (layer["size_bytes"], layer["in_use"], layer["check"]) == (1 << 30, False, 0)
    for size, wrong in (("64M", "online shrink is not supported"), ("1048577K", "a multiple of the cluster")):
        told = run("resize", size, image)
        assert told.code == Exit.FAILED
        assert wrong in told.err
    assert image.read_bytes()[44:48] == bytes(4)


@pytest.mark.expects_warnings
def test_an_image_that_was_not_closed_does_not_grow_before_it_is_checked(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "top.hds"
    run("create", "64M", image)
    marked = bytearray(image.read_bytes())
    marked[44:48] = b"Ynot"
    image.write_bytes(marked)
    told = run("resize", "1G", image)
    assert (told.code, f"`ploopfs check -r {image}`" in told.err) == (Exit.FAILED, True)
    assert image.read_bytes() == marked
    assert run("check", "-r", image).code == Exit.OK
    assert run("resize", "1G", image).code == Exit.OK


def test_info_of_what_is_no_image_names_file_field_and_value(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.hds").write_bytes(b"no image" * 1000)
    assert "text.hds: m_Sig is " in run("info", tmp_path / "text.hds").err
    told = run("info", tmp_path / "none.hds")
    assert told.code == Exit.FAILED
    assert f"ploopfs: {tmp_path}/none.hds: " in told.err
    assert "No such file or directory" in told.err


def test_info_shows_a_raw_base(run: Run, tmp_path: Path) -> None:
    with open(tmp_path / "base.raw", "wb") as base:
        base.truncate(64 * MIB)
    run("create", "64M", tmp_path / "top.hds")
    layers = run("info", "--json", f"raw@{tmp_path}/base.raw", tmp_path / "top.hds").json
    assert [layer["format"] for layer in layers] == ["raw", "ploop1"]
    assert layers[0]["size_bytes"] == layers[0]["file_bytes"] == 64 * MIB


# A mounted tree


@dataclass(frozen=True, slots=True)
class Scene:
    """A disk of two deltas on a store, and a read-only one beside it."""

    bindfs: Bindfs
    disk: Disk
    daemon: Daemon

    @property
    def mount(self) -> tuple[str, str]:
        return "--mount", str(self.daemon.mountpoint)

    @property
    def top(self) -> Path:
        return self.bindfs.path / self.disk.top.relative_to(self.bindfs.bricks)

    def lose_the_store(self) -> None:
        self.bindfs.kill()
        with opened(self.daemon.disk()) as fd:
            assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    need(commands=("bindfs",), fuse=True, root=True)
    place = tmp_path_factory.mktemp("cli")
    with store(place) as bindfs:
        disk, other = make_disk(bindfs.bricks / "disk", depth=2), make_disk(place / "other")
        others = device(other.directory, "ploop11", standby=False, read_only=True)
        with serving(place, device(bindfs.path / "disk"), others) as daemon:
            yield Scene(bindfs, disk, daemon)


@pytest.fixture
def lost(scene: Scene) -> Iterator[Scene]:
    """The store is lost in a test and back after it."""
    scene.lose_the_store()
    yield scene
    if scene.daemon.value("queue/standby") == "on":
        scene.bindfs.remount()
        scene.daemon.store("ploopfs/reopen", "1")


@pytest.mark.real
def test_status_shows_every_device(scene: Scene, run: Run) -> None:
    first, second = run("status", "--json", *scene.mount).json
    assert first == {
        "device": "ploop0",
        "mountpoint": str(scene.daemon.mountpoint),
        "disk": str(scene.daemon.disk()),
        "size_bytes": 64 * MIB,
        "read_only": False,
        "standby": "off",
        "since_s": None,
        "reason": "",
        "generation": int(scene.daemon.value("ploopfs/generation")),
        "aborted": False,
        "suspended": False,
        "parked": 0,
        "last_error": scene.daemon.value("ploopfs/last_error"),
        "deltas": [str(scene.bindfs.path / "disk" / delta.name) for delta in scene.disk.deltas],
        "on_standby": "fail",
        "hold_timeout_ms": 300_000,
        "held": 0,
        "held_bytes": 0,
        "unflushed_bytes": int(scene.daemon.value("ploopfs/unflushed_bytes")),
        "recovery": first["recovery"],
        "agent": first["agent"],
        "data_plane": "own",
        "connection": "attached",
    }
    assert (second["device"], second["standby"], second["read_only"]) == ("ploop11", "not supported", True)
    heads, *rows = run("status", *scene.mount).out.splitlines()
    assert heads.split() == ["DEVICE", "STANDBY", "SINCE", "HELD", "SIZE", "ACCESS", "WHY"]
    assert [row.split() for row in rows] == [
        ["ploop0", "off", "-", "0", "64M", "read-write"],
        ["ploop11", "not", "supported", "-", "0", "64M", "read-only"],
    ]
    assert run("status", "ploop11", *scene.mount).out.splitlines()[1] == rows[1]


@pytest.mark.real
def test_list_finds_every_tree_by_itself(scene: Scene, run: Run) -> None:
    found = [one for one in run("list", "--json").json if one["mountpoint"] == str(scene.daemon.mountpoint)]
    assert [one["device"] for one in found] == ["ploop0", "ploop11"]
    table = run("list").out.splitlines()
    assert table[0].split() == ["DEVICE", "SIZE", "STANDBY", "DISK"]
    assert ["ploop0", "64M", "off", str(scene.daemon.disk())] in [line.split() for line in table]


@pytest.mark.real
def test_status_of_a_device_in_standby_says_since_when_and_why(lost: Scene, run: Run) -> None:
    [status] = run("status", "ploop0", "--json", *lost.mount).json
    assert status["standby"] == "on"
    assert status["reason"].startswith("errno=ENOTCONN operation=write ")
    assert f"{status['since_s']:.3f}" == lost.daemon.value("ploopfs/standby_since")
    [_, row] = run("status", "ploop0", *lost.mount).out.splitlines()
    assert row.split()[:2] == ["ploop0", "on"]
    assert row.endswith(f"  ENOTCONN on write of {lost.top}")


@pytest.mark.real
def test_reopen_ends_standby_once_the_store_is_back(lost: Scene, run: Run) -> None:
    told = run("reopen", "ploop0", *lost.mount)
    assert (told.code, "ENOTCONN" in told.err) == (Exit.FAILED, True)
    lost.bindfs.remount()
    assert run("reopen", "ploop0", *lost.mount) == Told(Exit.OK, "", "")
    assert lost.daemon.value("queue/standby") == "off"


@pytest.mark.real
def test_replace_takes_a_relative_path_and_ends_standby(lost: Scene, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lost.bindfs.remount()
    monkeypatch.chdir(lost.top.parent)
    assert run("replace", "ploop0", lost.top.name, *lost.mount) == Told(Exit.OK, "", "")
    assert lost.daemon.value("queue/standby") == "off"
    assert lost.daemon.value("pdelta/1/image") == str(lost.top)


@pytest.mark.real
def test_a_refused_replace_says_why(lost: Scene, run: Run, tmp_path: Path) -> None:
    told = run("replace", "ploop0", tmp_path / "none.hds", *lost.mount)
    assert told.code == Exit.FAILED
    assert told.err == f"ploopfs: replace_delta {tmp_path}/none.hds: {tmp_path}/none.hds: open: ENOENT " + (
        "(No such file or directory)\n"
    )
    assert lost.daemon.value("queue/standby") == "on"


@pytest.mark.real
def test_wait_returns_at_once_in_the_state_and_gives_up_in_another(scene: Scene, run: Run) -> None:
    assert run("wait", "ploop0", "--for", "off", *scene.mount) == Told(Exit.OK, "", "")
    assert run("wait", "ploop11", "--for", "not supported", *scene.mount).code == Exit.OK
    told = run("wait", "ploop0", "--for", "on", "--timeout", "0.01", *scene.mount)
    assert told == Told(Exit.TIMEOUT, "", "ploopfs: ploop0 is still 'off' after 0.01 s\n")


@pytest.mark.real
def test_wait_is_woken_by_the_outage_and_by_the_recovery(scene: Scene) -> None:
    def waiting(state: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([*PLOOPFS, "wait", "ploop0", "--for", state, "--timeout", "60", *scene.mount], cwd=ROOT)

    with waiting("on") as waiter:
        scene.lose_the_store()
        assert waiter.wait() == Exit.OK
    with waiting("off") as waiter:
        scene.bindfs.remount()
        scene.daemon.store("ploopfs/reopen", "1")
        assert waiter.wait() == Exit.OK


@pytest.mark.real
def test_wait_ends_with_the_daemon(run: Run, tmp_path: Path) -> None:
    need(fuse=True, root=True)
    with serving(tmp_path, device(make_disk(tmp_path / "disk").directory)) as daemon:
        command = [*PLOOPFS, "wait", "ploop0", "--for", "on", "--mount", str(daemon.mountpoint)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as waiter:
            descriptors = Path(f"/proc/{waiter.pid}/fd")
            watched = str(daemon.attribute("queue/standby").resolve())
            until(lambda: watched in [_target(link) for link in descriptors.iterdir()], "the attribute is open")
            daemon.process.kill()
            _, told = waiter.communicate()
        assert (waiter.returncode, told) == (Exit.FAILED, "ploopfs: Transport endpoint is not connected\n")
        assert run("status", "--mount", daemon.mountpoint).code == Exit.NO_MOUNT


def _target(link: Path) -> str:
    """Empty if it was closed meanwhile."""
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


@pytest.mark.real
@pytest.mark.parametrize("verb", [("status",), ("reopen",), ("wait", "--for", "on"), ("replace", "/x")], ids=" ".join)
@pytest.mark.parametrize("name", ["ploop7", "..", "ploop0/queue"])
def test_a_device_that_is_none_is_refused(scene: Scene, run: Run, verb: tuple[str, ...], name: str) -> None:
    told = run(verb[0], name, *verb[1:], *scene.mount)
    assert (told.code, told.out) == (Exit.FAILED, "")
    assert "there: ploop0, ploop11" in told.err or "is not a device name" in told.err


@pytest.mark.real
@pytest.mark.parametrize(
    "verb",
    [("status", "--mount"), ("reopen", "ploop0", "--mount"), ("wait", "ploop0", "--for", "on", "--mount"), ("umount",)],
    ids=" ".join,
)
def test_where_no_tree_is_mounted_the_exit_code_says_so(
    scene: Scene, run: Run, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    told = run(*verb, tmp_path)
    assert told.code == Exit.NO_MOUNT
    assert told.err == f"ploopfs: {tmp_path}: no running ploopfs there: an empty directory\n"
    assert run(*verb, scene.bindfs.path).err.endswith(": is a mount of something else\n")


@pytest.mark.real
def test_of_two_trees_one_must_be_named(scene: Scene, run: Run, tmp_path: Path) -> None:
    with serving(tmp_path) as second:
        told = run("status")
        assert told.code == Exit.NO_MOUNT
        assert "--mount is needed unless exactly one ploopfs is mounted" in told.err
        assert str(second.mountpoint) in told.err
        assert str(scene.daemon.mountpoint) in told.err
        assert second.end() == Exit.OK


@pytest.mark.real
def test_a_mounted_disk_takes_no_snapshot_and_info_shows_it_in_use(scene: Scene, run: Run) -> None:
    directory = scene.bindfs.path / "disk"
    told = run("snapshot", directory)
    assert (told.code, "cannot be opened for writing: its write lock is held by " in told.err) == (Exit.FAILED, True)
    assert [layer["in_use"] for layer in run("info", "--json", directory).json] == [False, True]


@pytest.mark.real
def test_a_tree_is_unmounted_and_its_images_are_closed(run: Run, tmp_path: Path) -> None:
    need(fuse=True, root=True)
    disk = make_disk(tmp_path / "disk")
    with serving(tmp_path, device(disk.directory)) as daemon:
        assert run("info", "--json", disk.directory).json[0]["in_use"] is True
        assert run("umount", daemon.mountpoint) == Told(Exit.OK, "", "")
        assert run("info", "--json", disk.directory).json[0]["in_use"] is False
        assert daemon.wait() == Exit.OK


@pytest.mark.parametrize("timeout", ["-1", "nan", "inf", "1e300", "soon"])
def test_a_time_that_nobody_can_wait_for_is_refused(timeout: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["wait", "ploop0", "--for", "off", "--timeout", timeout])
    assert raised.value.code == Exit.USAGE
    assert "is not a number of seconds" in capsys.readouterr().err


@pytest.mark.real
def test_a_tree_whose_daemon_died_is_in_nobodys_way(
    scene: Scene, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as second:
        ours = {str(scene.daemon.mountpoint), str(second.mountpoint)}  # others may be mounted on the machine
        monkeypatch.setattr("ploopfs.cli.tree.ploopfs_mounts", lambda: [at for at in ploopfs_mounts() if at in ours])
        second.process.send_signal(signal.SIGKILL)
        second.process.wait()
        assert run("status").code == Exit.OK
