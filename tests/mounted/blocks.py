"""Loop devices over a disk, and file systems on them; whatever a test did, none is left behind."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mounted.daemon import errno_of, opened, until
from tests.mounted.disks import MIB


@dataclass(frozen=True, slots=True)
class FileSystem:
    """`check` changes nothing, and fails where something is wrong. `counters` are those of /sys/fs."""

    name: str
    make: tuple[str, ...]
    check: tuple[str, ...]
    disk_bytes: int
    counters: tuple[str, ...] = ()

    def complaints(self, block: Path) -> int:
        """How much it has noticed, as far as it counts."""
        return sum(int(Path(f"/sys/fs/{self.name}/{block.name}/{counter}").read_text()) for counter in self.counters)


EXT4 = FileSystem(
    "ext4", ("mkfs.ext4", "-q", "-F"), ("e2fsck", "-f", "-n"), 64 * MIB, ("errors_count", "warning_count")
)
XFS = FileSystem("xfs", ("mkfs.xfs", "-q", "-f", "-K"), ("xfs_repair", "-n", "-f"), 320 * MIB)


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@contextmanager
def looped(disk: Path, *, direct_io: bool) -> Iterator[Path]:
    loop = run("losetup", f"--direct-io={'on' if direct_io else 'off'}", "--find", "--show", disk)
    try:
        assert run("losetup", "--list", "--noheadings", "--output", "DIO", loop) == str(int(direct_io))
        yield Path(loop)
    finally:
        run("losetup", "--detach", loop)


@contextmanager
def mounted(block: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run("mount", block, place)
    try:
        yield place
    finally:
        unmount_block(block, place)


def unmount_block(block: Path, place: Path) -> None:
    """Everywhere: whoever has made a mount namespace meanwhile has it mounted there until that is gone, and only then
    the file system writes its last."""
    run("umount", place)
    until(lambda: errno_of(_claim, block) != "EBUSY", f"{block} is mounted nowhere")


def _claim(block: Path) -> None:
    """As a file system does that is mounted, from its first read to its last write."""
    with opened(block, os.O_RDONLY | os.O_EXCL):
        pass
