"""A daemon that nobody with privileges runs: fusermount3 mounts it, and its disk is lost and comes back."""

import ctypes
import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ploopfs.cli.exits import Exit
from ploopfs.cli.main import main
from ploopfs.fuse import mount
from ploopfs.sysfs import metrics
from tests.mounted.daemon import device, errno_of, opened, until, write_config
from tests.mounted.other_user import NOBODY, as_user, become
from tests.realparts import need

pytestmark = pytest.mark.real

IMPORTED_HERE = (mount, metrics)
"""By a daemon as late as possible, when this user may not read the files of its interpreter any more."""

_CLONE_NEWNS = 0x20000
SYSFS = "mnt/sys/block/ploop0"
SAID = b"as nobody in particular"


@pytest.fixture
def place() -> Iterator[Path]:
    """Of the other user alone."""
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, NOBODY, NOBODY)
        yield Path(directory)


def with_fuse(place: str) -> dict[str, object]:
    """In a mount name space of its own, in which everybody may open /dev/fuse, as udev has it everywhere else."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    node = os.path.join(place, "fuse")
    os.mknod(node, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    os.chmod(node, 0o666)
    for command in (["mount", "--make-rprivate", "/"], ["mount", "--bind", node, "/dev/fuse"]):
        subprocess.run(command, check=True)
    become(NOBODY)
    return served(place)


def served(place: str) -> dict[str, object]:
    """All of it as the user that this process has become; what was seen."""
    root, seen = Path(place), dict[str, object]()
    disk = root / "disk"
    seen["create"] = main(["create", "8M", os.fspath(disk)])
    mountpoint = root / "mnt"
    mountpoint.mkdir()
    config = write_config(root, device(disk))
    daemon = os.fork()
    if not daemon:
        os._exit(main(["mount", "--log-file", os.fspath(root / "log"), os.fspath(config), os.fspath(mountpoint)]))
    try:
        until((mountpoint / "sys").is_dir, "the tree")
        with opened(mountpoint / "dev/ploop0") as fd:
            os.pwrite(fd, SAID, 12345)
            with opened(mountpoint / "sys/kernel/debug/ploopfs/ploop0/error_injection", os.O_WRONLY) as rules:
                os.write(rules, b"add,errno=ENOTCONN")
                seen["lost"] = errno_of(os.pwrite, fd, b"x", 0)
                seen["standby"] = (root / SYSFS / "queue/standby").read_text()
                os.write(rules, b"removeall")
            (root / SYSFS / "ploopfs/reopen").write_text("1")
            seen["then"] = (root / SYSFS / "queue/standby").read_text()
            seen["read"] = os.pread(fd, len(SAID), 12345).decode()
            os.fsync(fd)
        seen["umount"] = main(["umount", os.fspath(mountpoint)])
        _, status = os.waitpid(daemon, 0)
        daemon = 0
        seen["mount"] = os.waitstatus_to_exitcode(status)
    finally:
        if daemon:
            os.kill(daemon, signal.SIGKILL)
            os.waitpid(daemon, 0)
    seen["check"] = main(["check", os.fspath(disk)])
    return seen


def test_a_user_without_privileges_makes_mounts_loses_recovers_and_unmounts_a_disk(place: Path) -> None:
    need(commands=("fusermount3",))
    assert as_user(os.geteuid(), with_fuse, os.fspath(place)) == {
        "create": Exit.OK,
        "lost": "ENOTCONN",
        "standby": "on\n",
        "then": "off\n",
        "read": SAID.decode(),
        "umount": Exit.OK,
        "mount": Exit.OK,
        "check": 0,
    }
