"""A file system on the disk, through a loop device: what is copied to it is there after ploopfs was mounted again."""

import hashlib
import os
from pathlib import Path
from random import Random

import pytest

from tests.mounted.blocks import looped, mounted, run
from tests.mounted.daemon import device, serving
from tests.mounted.disks import assert_closed, make_disk, sums
from tests.realparts import need

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True)
def _loop_parts() -> None:
    need(commands=("losetup", "mkfs.ext4", "e2fsck", "cp"), loop=True, file_systems=("ext4",))


def make_tree(place: Path) -> Path:
    """Empty and large files, deep directories, links, holes."""
    random, place = Random(5), place / "tree"
    for number in range(60):
        directory = place / f"d{number % 4}" / f"e{number % 7}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").write_bytes(random.randbytes(random.choice((0, 1, 511, 4096, 70_000, 300_000))))
    (place / "link").symlink_to("d0/e0/f0")
    os.link(place / "d1" / "e1" / "f1", place / "second name")
    with open(place / "hole", "wb") as file:
        file.seek(1_000_000)
        file.write(b"end")
    return place


def listing(tree: Path) -> dict[str, str]:
    """Every path, and what it is."""
    found: dict[str, str] = {}
    for path in sorted(tree.rglob("*")):
        kind = f"{path.lstat().st_mode:o} "
        if path.is_symlink():
            kind += os.readlink(path)
        elif path.is_file():
            kind += hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(tree))] = kind
    return found


@pytest.mark.parametrize("direct_io", [True, False], ids=["direct-io", "buffered"])
def test_a_tree_survives_umount_and_mount(tmp_path: Path, direct_io: bool) -> None:
    disk, tree = make_disk(tmp_path / "disk", depth=2), make_tree(tmp_path)
    with serving(tmp_path, device(disk.directory)) as daemon:
        with looped(daemon.disk(), direct_io=direct_io) as loop:
            run("mkfs.ext4", "-q", "-F", loop)
            with mounted(loop, tmp_path / "fs") as place:
                run("cp", "-a", tree, place)
            run("e2fsck", "-f", "-n", loop)
        assert daemon.end() == 0
    assert_closed(disk.top)
    with serving(tmp_path, device(disk.directory)) as daemon:
        run("e2fsck", "-f", "-n", daemon.disk())
        with looped(daemon.disk(), direct_io=direct_io) as loop, mounted(loop, tmp_path / "fs") as place:
            assert listing(place / tree.name) == listing(tree)
        assert daemon.end() == 0
    assert sums(disk.deltas[:-1]) == disk.lower_sums


def test_a_file_system_is_made_on_the_disk_itself(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk")
    with serving(tmp_path, device(disk.directory)) as daemon:
        run("mkfs.ext4", "-q", "-F", daemon.disk())
        run("e2fsck", "-f", "-n", daemon.disk())
        with looped(daemon.disk(), direct_io=True) as loop, mounted(loop, tmp_path / "fs") as place:
            (place / "file").write_text("content")
        run("e2fsck", "-f", "-n", daemon.disk())
        assert daemon.end() == 0
    assert_closed(disk.top)


def test_a_file_system_survives_a_store_that_is_replaced_between_two_mounts(tmp_path: Path) -> None:
    """The loop device stays; only the top under it changes its place."""
    disk, tree = make_disk(tmp_path / "disk", depth=2), make_tree(tmp_path)
    with serving(tmp_path, device(disk.directory)) as daemon:
        with looped(daemon.disk(), direct_io=True) as loop:
            run("mkfs.ext4", "-q", "-F", loop)
            with mounted(loop, tmp_path / "fs") as place:
                run("cp", "-a", tree, place)
            daemon.store("ploopfs/reopen", "1")
            assert daemon.value("ploopfs/generation") == "2"
            with mounted(loop, tmp_path / "fs") as place:
                assert listing(place / tree.name) == listing(tree)
        assert daemon.end() == 0
    assert_closed(disk.top)
