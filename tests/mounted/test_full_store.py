"""A store that is full is sound: ENOSPC is not standby, nothing is lost, and with space again the writes go on."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.mounted.blocks import looped, mounted, run
from tests.mounted.daemon import opened, serving, unmount
from tests.mounted.disks import MIB, assert_closed, by_qemu, make_disk
from tests.mounted.flavours import KINDS, Kind, name_of
from tests.mounted.writer import Writer
from tests.realparts import need

pytestmark = pytest.mark.real

STORE_BYTES = 16 * MIB
DISK_BYTES = 32 * MIB
SPARE_BYTES = 4 * MIB
MOST_WRITES = 5000


@contextmanager
def tmpfs(place: Path) -> Iterator[Path]:
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={STORE_BYTES}", "tmpfs", place)
    try:
        yield place
    finally:
        unmount(place)


@contextmanager
def ext4(place: Path) -> Iterator[Path]:
    """Which promises space before it has it, and gives it on the way to the disk."""
    need(commands=("losetup", "mkfs.ext4"), loop=True, file_systems=("ext4",))
    file = place.with_suffix(".ext4")
    with file.open("wb") as empty:
        empty.truncate(STORE_BYTES)
    run("mkfs.ext4", "-q", "-F", file)
    with looped(file, direct_io=False) as loop, mounted(loop, place):
        yield place


def fill(writer: Writer) -> str:
    """Write until it does not go on; why not."""
    for _ in range(MOST_WRITES):
        said = writer.errno_of_write()
        if said != "success":
            return said
        writer.write(0)
    return "success"


@pytest.mark.parametrize("policy", ["fail", "hold"])
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("small", [tmpfs, ext4], ids=name_of)
def test_a_full_store_is_no_outage(
    tmp_path: Path, kind: Kind, small: Callable[[Path], AbstractContextManager[Path]], policy: str
) -> None:
    with small(tmp_path / "store") as store:
        disk = make_disk(store / "disk", depth=2, size_bytes=DISK_BYTES)
        spare = store / "spare"
        spare.write_bytes(bytes(SPARE_BYTES))
        with serving(tmp_path, kind.configured(store / "disk", on_standby=policy)) as daemon:
            served = kind.of(daemon)
            with opened(served.disk) as fd:
                writer = Writer(fd, disk)
                assert fill(writer) == "ENOSPC"
                assert [writer.errno_of_write() for _ in range(3)] == ["ENOSPC"] * 3
                assert [served.value("queue/standby"), served.value("ploopfs/held")] == ["off", "0"]
                os.fsync(fd)
                writer.assert_all_there()
                spare.unlink()
                writer.write(20)
                writer.assert_all_there()
            assert daemon.end() == 0
            assert "WARNING" not in daemon.log
        assert_closed(disk.top)
        assert by_qemu(disk.deltas, tmp_path / "raw") == disk.content
