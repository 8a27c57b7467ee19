"""A dirty bitmap is kept where the image is not changed, and goes where it is (image-format.md 4); QEMU's opinion is
asked each time."""

from pathlib import Path

import pytest

from ploopfs.engine.counters import Counters
from ploopfs.engine.create import create_disk, snapshot_disk
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.grow import grown
from ploopfs.engine.merge import copied_up, without_level
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.stack import Stack
from ploopfs.image.check import Verdict
from ploopfs.image.header import CLOSED, V2, Header
from ploopfs.testing.images import ImageBuilder
from tests.engine import qemu
from tests.engine.bitmaps import UUID, with_bitmap
from tests.engine.disk import verdict
from tests.realparts import need

pytestmark = pytest.mark.real

CLUSTER = 32768
DIRTY = {UUID: 2 * 65536}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Two clusters of data, one of bits (0 and 2 are set), the extension."""
    need(commands=("qemu-storage-daemon", "qemu-img"))
    path = tmp_path / "top.hds"
    path.write_bytes(with_bitmap(ImageBuilder(6, clusters={0: b"0" * CLUSTER, 3: b"3" * CLUSTER}).build(), [b"\x05"]))
    assert verdict(path.read_bytes()).verdict is Verdict.CLEAN
    assert qemu.bitmaps(str(path)) == DIRTY
    return path


async def opened(*paths: Path, read_only: bool = False) -> Stack:
    spec = StackSpec(tuple(ImageSpec(str(path)) for path in paths))
    return await open_stack(OsFiles(), spec, read_only=read_only, counters=Counters())


def assert_dropped(path: Path) -> None:
    """Nothing names it any more, and its clusters are no leak."""
    header = Header.parse(path.read_bytes(), str(path))
    assert (header.in_use, header.extension_sectors) == (CLOSED, 0)
    assert verdict(path.read_bytes()).verdict is Verdict.CLEAN
    assert qemu.bitmaps(str(path)) == {}
    assert qemu.check(str(path))[0] == 0


@pytest.mark.parametrize("read_only", [True, False])
async def test_it_outlives_an_opening_without_a_change(image: Path, read_only: bool) -> None:
    before = image.read_bytes()
    stack = await opened(image, read_only=read_only)
    assert await stack.read(0, CLUSTER) == b"0" * CLUSTER
    await stack.flush()
    await stack.aclose(clean=True)
    assert image.read_bytes() == before


async def test_it_goes_with_the_first_write(image: Path) -> None:
    stack = await opened(image)
    await stack.write(3 * CLUSTER + 512, b"w")
    await stack.aclose(clean=True)
    assert_dropped(image)


async def test_it_goes_when_the_disk_grows(image: Path) -> None:
    stack = await grown(await opened(image), 20000 * 64)
    assert await stack.read(3 * CLUSTER, CLUSTER) == b"3" * CLUSTER
    await stack.aclose(clean=True)
    assert_dropped(image)


async def test_it_goes_when_the_process_dies_with_the_image_open(image: Path) -> None:
    """The mark takes the extension's name away: beside a mark it would make the image a broken one."""
    await (await opened(image)).aclose(clean=False)
    stack = await opened(image)
    await stack.aclose(clean=True)
    assert_dropped(image)
    assert image.stat().st_size == 3 * CLUSTER


async def test_a_lower_delta_keeps_its_own_below_a_top_that_is_written_and_merged(image: Path, tmp_path: Path) -> None:
    before, top = image.read_bytes(), tmp_path / "upper.hds"
    top.write_bytes(ImageBuilder(6).build())
    stack = await opened(image, top)
    await stack.write(0, b"w" * CLUSTER)
    copied = await copied_up(stack)
    merged = without_level(stack, copied)
    await copied.dropped.aclose(clean=False)
    await merged.aclose(clean=True)
    assert image.read_bytes() == before
    assert qemu.bitmaps(str(top)) == {}


def test_a_snapshot_leaves_it_to_the_frozen_delta_and_a_new_image_has_none(tmp_path: Path) -> None:
    need(commands=("qemu-storage-daemon",))
    descriptor = create_disk(str(tmp_path), size_sectors=6 * 64, cluster_sectors=64, version=V2)
    base = tmp_path / "root.hds"
    assert qemu.bitmaps(str(base)) == {}
    base.write_bytes(with_bitmap(base.read_bytes(), [b"\x05"]))
    before = base.read_bytes()
    _guid, top = snapshot_disk(descriptor)
    assert (base.read_bytes(), qemu.bitmaps(str(base))) == (before, DIRTY)
    assert qemu.bitmaps(top) == {}
