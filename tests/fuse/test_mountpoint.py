"""The mount table, and what may be done with a mountpoint: on tables of our own, so that each state can be had."""

import errno
import os
from pathlib import Path

import pytest

from ploopfs.errors import MountError
from ploopfs.fuse import mountpoint
from ploopfs.fuse.mountpoint import Mount, State, inspect_mountpoint, parse_mountinfo, ploopfs_mounts, replace_stale

TABLE = rb"""22 1 0:20 / / rw,relatime - ext4 /dev/root rw
30 22 0:41 / /mnt/a\040b\134c rw,nosuid,nodev shared:9 master:2 - fuse.ploopfs ploopfs rw,user_id=0
31 22 0:41 /sys /srv/sys rw - fuse.ploopfs ploopfs rw
32 22 0:42 / /mnt/tab\011\012 rw shared:9 - fuse.ploopfs ploopfs rw
33 22 0:43 / /mnt/other rw - fuse.sshfs sshfs - rw
"""


def test_the_table_is_read_with_its_escapes_and_optional_fields() -> None:
    assert list(parse_mountinfo(TABLE)) == [
        Mount("/", "/", "ext4"),
        Mount("/", "/mnt/a b\\c", "fuse.ploopfs"),
        Mount("/sys", "/srv/sys", "fuse.ploopfs"),
        Mount("/", "/mnt/tab\t\n", "fuse.ploopfs"),
        Mount("/", "/mnt/other", "fuse.sshfs"),
    ]


def test_bind_mounts_of_a_part_are_no_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "_mounts", lambda: list(parse_mountinfo(TABLE)))
    assert ploopfs_mounts() == ["/mnt/a b\\c", "/mnt/tab\t\n"]


def table(monkeypatch: pytest.MonkeyPatch, *mounts: tuple[Path, str]) -> None:
    monkeypatch.setattr(mountpoint, "_mounts", lambda: [Mount("/", str(path), fstype) for path, fstype in mounts])


def dead(monkeypatch: pytest.MonkeyPatch, path: Path, number: int = errno.ENOTCONN) -> None:
    living = os.stat

    def stat(asked: str) -> os.stat_result:
        if asked == str(path):
            raise OSError(number, os.strerror(number))
        return living(asked)

    monkeypatch.setattr(os, "stat", stat)


def test_the_visible_mount_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table(monkeypatch, (tmp_path, "tmpfs"), (tmp_path, "fuse.ploopfs"))
    assert inspect_mountpoint(str(tmp_path)) is State.SERVING
    table(monkeypatch, (tmp_path, "fuse.ploopfs"), (tmp_path, "tmpfs"))
    assert inspect_mountpoint(str(tmp_path)) is State.OTHER_MOUNT


def test_a_dead_mount_of_something_else_is_not_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dead(monkeypatch, tmp_path)
    table(monkeypatch, (tmp_path, "fuse.sshfs"))
    assert inspect_mountpoint(str(tmp_path)) is State.OTHER_MOUNT
    with pytest.raises(MountError, match="mount of something else"):
        replace_stale(str(tmp_path))


def test_a_mount_that_was_cut_off_is_stale_like_one_whose_server_died(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dead(monkeypatch, tmp_path, errno.ECONNABORTED)
    table(monkeypatch, (tmp_path, "fuse.ploopfs"))
    assert inspect_mountpoint(str(tmp_path)) is State.STALE


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EACCES])
def test_a_path_that_cannot_be_looked_at_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    dead(monkeypatch, tmp_path, number)
    table(monkeypatch)
    with pytest.raises(MountError, match="cannot be looked at"):
        inspect_mountpoint(str(tmp_path))


def test_a_symbolic_link_to_a_mountpoint_is_that_mountpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir()
    link.symlink_to(target)
    table(monkeypatch, (target, "fuse.ploopfs"))
    assert inspect_mountpoint(str(link)) is State.SERVING


def test_a_mount_that_does_not_go_away_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command fails by itself: nothing is mounted there."""
    dead(monkeypatch, tmp_path)
    table(monkeypatch, (tmp_path, "fuse.ploopfs"))
    with pytest.raises(MountError, match="the dead mount cannot be removed"):
        replace_stale(str(tmp_path))


def test_a_path_below_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert inspect_mountpoint(str(tmp_path / "file/below")) is State.NOT_A_DIRECTORY


def test_nobody_breaks_the_table_by_the_name_of_what_he_mounts() -> None:
    """The kernel leaves these as they are; who takes one for an end of a line or of a field reads another mount."""
    table = b"40 22 0:50 / /tmp/a\r\x0b\x0c\x85 - b rw - tmpfs x rw\n" + TABLE
    evil, *others = parse_mountinfo(table)
    assert evil.mountpoint == os.fsdecode(b"/tmp/a\r\x0b\x0c\x85")
    assert others == list(parse_mountinfo(TABLE))


def test_a_line_of_another_shape_is_passed_over() -> None:
    assert list(parse_mountinfo(b"\n1 2 3\n" + TABLE + b"40 22 0:50 / /a\\777 rw - x y z\n"))[:-1] == list(
        parse_mountinfo(TABLE)
    )
