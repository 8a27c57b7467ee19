"""A daemon of somebody without root: fusermount3 mounts over his disks, or the tree serves them."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from ploopfs.cli.exits import Exit
from ploopfs.cli.main import main
from ploopfs.cli.namespace import MS_BIND, enter, mount
from tests.mounted.daemon import device, opened, write_config
from tests.mounted.disks import MIB, assert_closed, make_disk
from tests.mounted.other_user import NOBODY, as_user, become
from tests.realparts import need

pytestmark = pytest.mark.real

HELPER_SAYS = "fusermount3 mounts over nothing that its user may not write to"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the user, and one for what his machine has."""
    need(commands=("fusermount3",))
    # A user without root may not load what is not loaded yet: these are of the daemon alone.
    import ploopfs.fuse.mount  # noqa: PLC0415
    import ploopfs.sysfs.metrics  # noqa: F401, PLC0415

    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)
        (place / "mnt").mkdir()
        (place / "machine").mkdir()
        yield place


def on_a_desktop(place: str, options: Sequence[str]) -> dict[str, Any]:
    """What a user sees where he may open /dev/fuse, and where fuse.conf lets him let others in."""
    machine = f"{place}/machine"
    enter()
    mount("tmpfs", machine, fstype="tmpfs")
    os.mknod(f"{machine}/fuse", 0o020666, os.makedev(10, 229))
    os.chmod(f"{machine}/fuse", 0o666)
    Path(f"{machine}/fuse.conf").write_text("user_allow_other\nmount_max = 100000\n")
    mount(f"{machine}/fuse", "/dev/fuse", flags=MS_BIND)
    mount(f"{machine}/fuse.conf", "/etc/fuse.conf", flags=MS_BIND)
    become(NOBODY)
    return as_he_sees_it(Path(place), options)


def as_he_sees_it(place: Path, options: Sequence[str]) -> dict[str, Any]:
    mnt = place / "mnt"
    begun = in_a_child("mount", "-d", "--log-file", f"{place}/log", *options, f"{place}/config.yaml", f"{mnt}")
    seen: dict[str, Any] = {"begun": begun, "mounts": mounts(mnt)}
    try:
        seen["planes"] = [value(mnt, f"ploop{number}", "data_plane") for number in range(2)]
        seen["told"] = events(mnt)
        seen["states"] = states(mnt) if options else []
        with opened(mnt / "dev/ploop0") as fd:
            os.pwrite(fd, b"as written", 0)
            os.fsync(fd)
            said = StringIO()
            with redirect_stderr(said):
                seen["refused"] = [main(["umount", f"{mnt}"]), said.getvalue()]
        seen["content"] = (mnt / "dev/ploop0").read_bytes()[:10].decode()
    finally:
        code = main(["umount", f"{mnt}"])
    return seen | {"after": [mounts(mnt), code]}


def in_a_child(*arguments: str) -> int:
    """For what does not return."""
    child = os.fork()
    if not child:
        os._exit(main(arguments))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def mounts(mnt: Path) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        lines = [line.split() for line in table]
    return [" ".join(line[line.index("-") + 1 :][:2]) for line in lines if Path(line[4]).is_relative_to(mnt)]


def value(mnt: Path, name: str, attribute: str) -> str:
    return (mnt / "sys/block" / name / "ploopfs" / attribute).read_text().strip()


def states(mnt: Path) -> list[str]:
    found = []
    for word in ("abort", "attach", "detach", "attach"):
        with opened(mnt / "sys/block/ploop0/ploopfs/connection", os.O_WRONLY) as fd:
            os.write(fd, word.encode())
        found.append(value(mnt, "ploop0", "connection"))
    return found


def events(mnt: Path) -> list[str]:
    records = [json.loads(line) for line in (mnt / "sys/fs/ploopfs/events").read_text().splitlines()]
    return [f"{one['device']} {one['state']}: {one['text']}" for one in records if one["event"] == "connection"]


@pytest.mark.parametrize("option", ["allow_other", ""])
def test_a_user_without_root_is_helped_by_fusermount3_or_served_by_the_tree(place: Path, option: str) -> None:
    disks = [make_disk(place / name, size_bytes=4 * MIB) for name in ("disk", "other")]
    write_config(place, device(disks[0].directory), device(disks[1].directory, "ploop1", read_only=True))
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", place], check=True)
    seen = as_user(os.geteuid(), on_a_desktop, os.fspath(place), ["-o", option] if option else [])
    if option:
        assert seen["mounts"] == ["fuse.ploopfs ploopfs", "fuse.ploopfs-disk ploop0"]
        assert (seen["planes"], seen["told"]) == (["own", "pyfuse3"], [f"ploop1 detached: {HELPER_SAYS}"])
        assert seen["states"] == ["aborted", "attached", "detached", "attached"]
        busy = f"ploopfs: {place}/mnt: ploop0: connection: its mount is busy, it is open (1 times)\n"
        assert seen["refused"] == [Exit.NO_MOUNT, busy]
    else:
        assert (seen["mounts"], seen["planes"]) == (["fuse.ploopfs ploopfs"], ["pyfuse3", "pyfuse3"])
        assert [told.endswith("without root it takes -o allow_other") for told in seen["told"]] == [True, True]
    assert (seen["begun"], seen["content"], seen["after"]) == (Exit.OK, "as written", [[], Exit.OK])
    for disk in disks:
        assert_closed(disk.top)
