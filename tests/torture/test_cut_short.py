"""A deletion that the failure of its disk has cut short is no damage, and everything else is."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.mounted.blocks import EXT4, looped, mounted, run
from tests.mounted.daemon import errno_of, opened
from tests.mounted.flavours import VZ9
from tests.realparts import need
from tests.torture import cut_short
from tests.torture.files import SMALLEST_BLOCK_BYTES
from tests.torture.filesystem import Mounted, mount_again
from tests.torture.scene import Scene, scene
from tests.torture.setting import COMMANDS, Setting

CONTENT = b"c" * 150_000

PASSES = """\
Pass 1: Checking inodes, blocks, and sizes
{first}
Pass 2: Checking directory structure
Pass 3: Checking directory connectivity
Pass 4: Checking reference counts
Pass 5: Checking group summary information
{last}

/dev/loop0: ********** WARNING: Filesystem still has errors **********

/dev/loop0: 36/16384 files (5.6% non-contiguous), 10522/65536 blocks
e2fsck 1.47.0 (5-Feb-2023)
"""
DELETED, TRUNCATED = "Deleted inode 27 has zero dtime", "Inode 27, i_size is 100, should be 150528"
TAKEN, TAKEN_INODE = "Block bitmap differences:  -(9985--10131)", "Inode bitmap differences:  -27 -(30--31)"


def said(first: str, *last: str) -> str:
    return PASSES.format(first=f"{first}.  Fix? no\n", last="\n".join(f"{line}\nFix? no\n" for line in last))


@pytest.mark.parametrize("found", [said(DELETED, TAKEN, TAKEN_INODE), said(TRUNCATED), said(DELETED)])
def test_what_was_cut_short_is_taken_and_nobody_has_it(found: str) -> None:
    assert cut_short.is_only_cut_short(found)


@pytest.mark.parametrize(
    "found",
    [
        said(DELETED, "Block bitmap differences:  +(9985--10131)"),
        said(DELETED, TAKEN, "Inode bitmap differences:  -27 +28"),
        said("Inode 27, i_size is 160000, should be 150528"),
        said("Inode 27 has an invalid extent", TAKEN),
        said(DELETED, "Free blocks count wrong for group #1 (1, counted=2)."),
        said(DELETED, "Directories count wrong for group #0 (5, counted=4)."),
        "e2fsck: Bad magic number in super-block while trying to open /dev/loop0\n",
    ],
)
def test_all_else_is_damage(found: str) -> None:
    assert not cut_short.is_only_cut_short(found)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Scene]:
    need(commands=(*COMMANDS, "dumpe2fs", "e2fsck"), loop=True, file_systems=("ext4",))
    with scene(tmp_path, replace(Setting(VZ9, "fail", depth=2), size_bytes=EXT4.disk_bytes)) as running:
        yield running
        running.adopt()


@pytest.mark.real
def test_a_file_deleted_and_still_held_when_its_disk_fails_is_given_back(running: Scene) -> None:
    """ext4 has it in its list, and throws that away with the error which its journal has met."""
    fs = Mounted(EXT4, running, direct_io=False)
    fs.make()
    with ExitStack() as undo:
        undo.callback(fs.detach)
        fs.attach()
        held = fs.place / "held"
        with opened(held, os.O_RDWR | os.O_CREAT) as fd, opened(fs.place, os.O_RDONLY) as directory:
            os.write(fd, CONTENT)
            os.fsync(fd)
            held.unlink()
            os.fsync(directory)
            running.store.kill()
            (fs.place / "lost").mkdir()
            assert errno_of(os.fsync, directory) == "EIO"
            running.wait_standby()
            running.store.remount()
            running.recover(Random(1))
        fs.unmount()
        fs.mount()
        fs.unmount()
        with pytest.raises(AssertionError, match="Deleted inode 12 has zero dtime"):
            run(*EXT4.check, fs.block)
        fs.check()
        run(*EXT4.check, fs.block)
        fs.mount()
        mount_again(fs)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """With a file system on it, that has one file and has recorded an error."""
    need(commands=("losetup", "mkfs.ext4", "dumpe2fs", "e2fsck", "debugfs"), loop=True, file_systems=("ext4",))
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, EXT4.disk_bytes)
    run(*EXT4.make, image)
    with looped(image, direct_io=False) as loop:
        with mounted(loop, tmp_path / "fs") as place:
            (place / "file").write_bytes(CONTENT)
        changed(loop, "set_super_value state 3")
        yield loop


def changed(loop: Path, how: str) -> None:
    run("debugfs", "-w", "-R", how, loop)


@pytest.mark.real
def test_of_a_truncation_cut_short_the_file_gets_the_blocks_back(tmp_path: Path, loop: Path) -> None:
    changed(loop, "set_inode_field <12> size 100")
    cut_short.check(EXT4, loop)
    with mounted(loop, tmp_path / "fs") as place:
        assert (place / "file").read_bytes() == CONTENT + bytes(-len(CONTENT) % SMALLEST_BLOCK_BYTES)


@pytest.mark.real
def test_a_wrong_bitmap_is_damage_even_with_an_error_recorded(loop: Path) -> None:
    cut_short.check(EXT4, loop)
    changed(loop, "freei <12>")
    with pytest.raises(AssertionError, match=r"Inode bitmap differences: +\+12"):
        cut_short.check(EXT4, loop)


@pytest.mark.real
def test_without_an_error_recorded_nothing_is_cut_short(loop: Path) -> None:
    changed(loop, "set_super_value state 1")
    changed(loop, "set_inode_field <12> size 100")
    with pytest.raises(AssertionError, match="i_size is 100"):
        cut_short.check(EXT4, loop)
