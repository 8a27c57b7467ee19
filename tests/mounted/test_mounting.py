"""Mounting a file system over one file, as root and through fusermount3. Nobody serves it: no test asks it anything."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ploopfs.blockfuse import mounting
from ploopfs.blockfuse.mounting import Mounted, escaped, is_mounted, mount_over, unmount
from ploopfs.errors import Busy, MountError, PermissionDenied
from tests.mounted.daemon import opened
from tests.mounted.daemon import unmount as unmount_all
from tests.mounted.other_user import NOBODY, as_user

pytestmark = pytest.mark.real

FUSE_INIT = 26
REQUEST_BYTES = (1 << 20) + 4096
"""The kernel gives no request to who has no room for the largest."""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "a,disk,with,commas"
    file.touch()
    yield file
    unmount_all(file)


@pytest.fixture(params=["mount(2)", "fusermount3"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fusermount3":
        monkeypatch.setattr(mounting, "_mount_ourselves", lambda *_, **__: None)
        monkeypatch.setattr(mounting, "_umount", lambda *_, **__: 1)  # EPERM
    return str(request.param)


def over(file: Path) -> Mounted:
    return mount_over(str(file), source="ploop0", allow_other=True)


def line_of(number: int) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        [line] = [line.split() for line in table if line.split()[0] == str(number)]
    return line


@pytest.mark.usefixtures("way")
def test_what_is_mounted_is_a_connection_that_is_known_by_its_number_and_goes_again(file: Path) -> None:
    mounted = over(file)
    fields = line_of(mounted.number)
    assert fields[fields.index("-") + 1 :][:2] == ["fuse.ploopfs-disk", "ploop0"]
    assert {"nosuid", "nodev"} <= set(fields[5].split(","))
    assert {"user_id=0", "group_id=0", "default_permissions", "allow_other"} <= set(fields[-1].split(","))
    assert (os.get_blocking(mounted.fd), os.get_inheritable(mounted.fd)) == (False, False)
    request = os.read(mounted.fd, REQUEST_BYTES)
    assert int.from_bytes(request[4:8], "little") == FUSE_INIT
    assert is_mounted(str(file), mounted.number)
    assert not is_mounted(f"{file}x", mounted.number), "its number is somebody else's by now"
    unmount(str(file), mounted.number)
    assert not is_mounted(str(file), mounted.number)
    with pytest.raises(OSError, match="No such device"):
        os.read(mounted.fd, REQUEST_BYTES)
    os.close(mounted.fd)
    unmount(str(file), mounted.number)


@pytest.mark.usefixtures("way")
def test_what_is_in_use_stays_unless_it_goes_lazily(file: Path) -> None:
    mounted = over(file)
    with opened(file, os.O_PATH):
        with pytest.raises(Busy, match="busy"):
            unmount(str(file), mounted.number)
        assert is_mounted(str(file), mounted.number)
        unmount(str(file), mounted.number, lazily=True)
        assert not is_mounted(str(file), mounted.number)
    os.close(mounted.fd)


def test_nothing_is_unmounted_but_what_was_mounted_here(file: Path, tmp_path: Path) -> None:
    mounted = over(file)
    (tmp_path / "other").touch()
    subprocess.run(["mount", "--bind", tmp_path / "other", file], check=True)
    for lazily in (False, True):
        unmount(str(file), mounted.number, lazily=lazily)
    assert is_mounted(str(file), mounted.number)
    assert file.stat().st_ino == (tmp_path / "other").stat().st_ino
    subprocess.run(["umount", file], check=True)
    unmount(str(file), mounted.number + 1000)
    assert is_mounted(str(file), mounted.number)
    os.close(mounted.fd)
    unmount(str(file), mounted.number)
    unmount(str(tmp_path / "never there"), mounted.number)


def test_a_file_that_is_not_there_is_not_mounted_over(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="No such file"):
        over(tmp_path / "none")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, r"mount\(2\): Operation not permitted, and fusermount3 is missing"),
        ("exit 0", "has mounted and sent no descriptor"),
        ("echo 'fusermount3: no' >&2; exit 1", "fusermount3: no"),
        ("exit 3", "fusermount3: exit code 3"),
    ],
)
def test_what_the_helper_cannot_do_is_told(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, says: str
) -> None:
    monkeypatch.setattr(mounting, "_mount_ourselves", lambda *_, **__: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "fusermount3").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "fusermount3").chmod(0o755)
    with pytest.raises(MountError, match=says):
        over(file)


def test_a_descriptor_that_somebody_else_sends_is_not_taken(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is in /proc/net/unix for everybody to see."""
    monkeypatch.setattr(mounting, "_mount_ourselves", lambda *_, **__: None)
    run = mounting._run_with_socket

    def run_after_a_stranger(address: bytes, command: list[str]) -> "subprocess.CompletedProcess[str]":
        child = os.fork()
        if not child:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
                stranger.connect(address)
                socket.send_fds(stranger, [b"x"], [os.open(os.devnull, os.O_RDWR)])
            os._exit(0)
        os.waitpid(child, 0)
        return run(address, command)

    monkeypatch.setattr(mounting, "_run_with_socket", run_after_a_stranger)
    mounted = over(file)
    assert os.readlink(f"/proc/self/fd/{mounted.fd}") == "/dev/fuse"
    os.close(mounted.fd)
    unmount(str(file), mounted.number)


def refusal(file: str) -> str:
    try:
        mounting._mount_by_helper(file, "ploop0", allow_other=True)
    except PermissionDenied as error:
        return str(error)
    return "mounted"


def test_the_helper_is_not_asked_for_what_its_user_may_not_write_to(file: Path) -> None:
    """It opens the file for writing; what is read-only keeps no other disk from being tried."""
    assert as_user(NOBODY, refusal, str(file)) == "fusermount3 mounts over nothing that its user may not write to"


@pytest.mark.parametrize(
    ("name", "text"), [("ploop0", "ploop0"), ("a,b", "a\\,b"), ("a\\", "a\\\\"), ("\\,", "\\\\\\,")]
)
def test_a_name_is_one_option_whatever_it_holds(name: str, text: str) -> None:
    assert escaped(name) == text
