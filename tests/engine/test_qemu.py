"""QEMU both ways: what we write QEMU reads, what QEMU writes we read, and neither opens what the other one writes."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from ploopfs.engine.counters import Counters
from ploopfs.engine.create import create_image
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.stack import Stack
from ploopfs.errors import ImageLocked
from ploopfs.image.header import V1, V2, Version
from ploopfs.testing.images import ImageBuilder
from tests.engine import qemu
from tests.engine.disk import Change, Disk, Shape, draw_change, draw_disjoint
from tests.engine.model import CLUSTER_BYTES
from tests.engine.places import OsPlace
from tests.realparts import need

pytestmark = [pytest.mark.real, pytest.mark.slow]
need(commands=("qemu-img", "qemu-io"))

SHAPES = {
    "v2 alone": Shape(clusters=8, depth=1, version=V2),
    "v1 alone": Shape(clusters=8, depth=1, version=V1),
    "v2 on two": Shape(clusters=6, depth=3, version=V2),
    "v1 on two": Shape(clusters=7, depth=3, version=V1),
    "v2 on raw": Shape(clusters=8, depth=2, raw_base=True, raw_short_bytes=CLUSTER_BYTES + 512),
    "four on raw": Shape(clusters=5, depth=5, raw_base=True),
}


async def open_files(*paths: str, read_only: bool = False) -> Stack:
    spec = StackSpec(tuple(ImageSpec(path) for path in paths))
    return await open_stack(OsFiles(), spec, read_only=read_only, counters=Counters())


def assert_qemu_agrees(disk: Disk, scratch: Path) -> None:
    for spec in disk.specs:
        if not spec.raw and spec.path not in disk.frozen:
            assert qemu.check(spec.path)[0] == 0, qemu.check(spec.path)
    assert qemu.content(disk.specs, scratch) == bytes(disk.model.content)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("seed", range(2))
async def test_qemu_reads_and_approves_of_what_a_random_life_leaves(tmp_path: Path, seed: int, shape: Shape) -> None:
    random = Random(seed)
    disk = Disk(OsPlace(tmp_path), shape, random)
    await disk.open()
    for _ in range(40):
        await disk.run(draw_change(len(disk.model), random))
    await disk.run_together(draw_disjoint(len(disk.model), 12, random))
    if len(disk.specs) < 5:
        await disk.snapshot()
        for _ in range(15):
            await disk.run(draw_change(len(disk.model), random))
    await disk.close()
    assert_qemu_agrees(disk, tmp_path)


@pytest.mark.parametrize("clusters", [12, 8177], ids=["map-in-place", "map-moves-data"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
async def test_qemu_reads_and_approves_of_a_disk_that_grew_while_it_was_written(
    tmp_path: Path, shape: Shape, clusters: int
) -> None:
    random = Random(11)
    disk = Disk(OsPlace(tmp_path), shape, random)
    await disk.open()
    for size in (9, clusters):
        for _ in range(15):
            await disk.run(draw_change(len(disk.model), random))
        await disk.grow(size)
    await disk.run(Change("write", len(disk.model) - 512, 512, b"e" * 512))
    await disk.verify()
    await disk.close()
    assert qemu.check(disk.top_path)[0] == 0, qemu.check(disk.top_path)
    start, size = qemu.start_of(disk.specs, tmp_path, len(disk.model))
    assert size == disk.clusters * CLUSTER_BYTES
    assert start == disk.model.content


@pytest.mark.parametrize("shape", [shape for shape in SHAPES.values() if shape.depth > 1], ids=str)
async def test_qemu_reads_and_approves_of_a_disk_whose_levels_were_merged_while_it_was_written(
    tmp_path: Path, shape: Shape
) -> None:
    random = Random(13)
    disk = Disk(OsPlace(tmp_path), shape, random)
    await disk.open()
    while len(disk.specs) > 1:
        drawn = draw_disjoint(len(disk.model), 12, random)
        await disk.merge([change for change in drawn if change.kind == "write"])
        await disk.verify()
        await disk.close()
        assert_qemu_agrees(disk, tmp_path)
        await disk.open()
    await disk.close()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
async def test_qemu_and_we_take_turns_at_writing_one_stack(tmp_path: Path, shape: Shape) -> None:
    random = Random(7)
    # QEMU 7.2 takes the cluster behind the last used one for empty, so what was leaked there would shine through.
    disk = Disk(OsPlace(tmp_path), replace(shape, leaks=False), random)
    for turn in range(4):
        if turn % 2:
            await disk.open()
            await disk.verify()
            for _ in range(10):
                await disk.run(draw_change(len(disk.model), random))
            await disk.close()
            continue
        commands = []
        for _ in range(6):
            offset, pattern = random.randrange(len(disk.model) // 512) * 512, random.randrange(1, 256)
            length = min(random.choice((512, 4096, CLUSTER_BYTES, 3 * CLUSTER_BYTES)), len(disk.model) - offset)
            commands.append(f"write -P {pattern} {offset} {length}")
            disk.run_model(Change("write", offset, length, bytes([pattern]) * length))
        done = qemu.io(disk.specs, *commands)
        assert done.stdout.count("wrote ") == len(commands), done.stdout + done.stderr
    assert_qemu_agrees(disk, tmp_path)


@pytest.mark.parametrize("cluster_bytes", [32768, 65536, 1 << 20])
async def test_an_image_that_qemu_made_is_read_and_written(tmp_path: Path, cluster_bytes: int) -> None:
    path = str(tmp_path / "made.hds")
    made = qemu.run("qemu-img", "create", "-f", "parallels", "-o", f"cluster_size={cluster_bytes}", path, "8M")
    assert made.returncode == 0, made.stderr
    specs = (ImageSpec(path),)
    expected = bytearray(8 << 20)
    for offset, length, pattern in ((0, 512, 17), (3 << 20, 70000 // 512 * 512, 34), ((8 << 20) - 4096, 4096, 51)):
        assert "wrote" in qemu.io(specs, f"write -P {pattern} {offset} {length}").stdout
        expected[offset : offset + length] = bytes([pattern]) * length
    stack = await open_files(path)
    assert (stack.size_bytes, stack.cluster_bytes) == (8 << 20, cluster_bytes)
    assert await stack.read(0, 8 << 20) == expected
    await stack.write((5 << 20) + 700, b"ours" * 500)
    expected[(5 << 20) + 700 : (5 << 20) + 2700] = b"ours" * 500
    await stack.aclose(clean=True)
    assert qemu.check(path)[0] == 0
    assert qemu.content(specs, tmp_path) == bytes(expected)


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("cluster_sectors", [64, 2048, 131072])
def test_qemu_finds_nothing_wrong_with_an_image_we_create(
    tmp_path: Path, version: Version, cluster_sectors: int
) -> None:
    path, theirs = str(tmp_path / "fresh.hds"), str(tmp_path / "theirs.hds")
    header = create_image(path, size_sectors=1 << 20, cluster_sectors=cluster_sectors, version=version)
    size = f"cluster_size={header.cluster_bytes}"
    made = qemu.run("qemu-img", "create", "-f", "parallels", "-o", size, theirs, str(header.size_bytes))
    assert made.returncode == 0, made.stderr
    # An empty image whose map is longer than a cluster is a leak to qemu-img check, its own one too.
    assert qemu.check(path) == qemu.check(theirs)
    assert (qemu.check(path)[0] == 0) is (header.first_cluster == 1)
    told = qemu.run("qemu-img", "info", "-f", "parallels", path).stdout
    assert f"({header.size_bytes} bytes)" in told


# --- locks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Base and top."""
    paths = str(tmp_path / "base.hds"), str(tmp_path / "top.hds")
    for path in paths:
        Path(path).write_bytes(ImageBuilder(clusters={0: b"x" * CLUSTER_BYTES}).build())
    return paths


async def test_qemu_opens_neither_top_nor_base_while_we_write(pair: tuple[str, str]) -> None:
    base, top = pair
    stack = await open_files(base, top)
    for path in pair:
        refused = qemu.io((ImageSpec(path),), "write -P 1 0 512")
        assert refused.returncode == 1
        assert 'Failed to get "write" lock' in refused.stderr
    reading = qemu.run("qemu-img", "convert", "-f", "parallels", "-O", "raw", top, f"{top}.raw")
    assert (reading.returncode, "lock" in reading.stderr) == (1, True)
    assert qemu.run("qemu-img", "convert", "-f", "parallels", "-O", "raw", base, f"{base}.raw").returncode == 0
    await stack.aclose(clean=True)
    assert "wrote 512/512" in qemu.io((ImageSpec(base), ImageSpec(top)), "write -P 1 0 512").stdout


async def test_qemu_may_read_beside_a_reader_and_nobody_may_write(pair: tuple[str, str], tmp_path: Path) -> None:
    base, top = pair
    stack = await open_files(base, top, read_only=True)
    assert len(qemu.content((ImageSpec(base), ImageSpec(top)), tmp_path)) == 4 * CLUSTER_BYTES
    assert "lock" in qemu.io((ImageSpec(base),), "write -P 1 0 512").stderr
    await stack.aclose(clean=True)


async def test_an_image_that_qemu_writes_is_locked_for_us(pair: tuple[str, str]) -> None:
    base, top = pair
    with qemu.holding((ImageSpec(top),)):
        for read_only in (False, True):
            with pytest.raises(ImageLocked, match=top):
                await open_files(base, top, read_only=read_only)
    with qemu.holding((ImageSpec(base),)):
        for read_only in (False, True):
            with pytest.raises(ImageLocked, match=base):
                await open_files(base, top, read_only=read_only)
    await (await open_files(base, top)).aclose(clean=True)


async def test_a_stack_that_qemu_only_reads_is_open_for_readers(pair: tuple[str, str]) -> None:
    base, top = pair
    with qemu.holding((ImageSpec(base), ImageSpec(top)), read_only=True):
        await (await open_files(base, top, read_only=True)).aclose(clean=True)
        with pytest.raises(ImageLocked, match=top):
            await open_files(base, top)


async def test_two_of_our_own_exclude_each_other_through_any_name_of_the_file(pair: tuple[str, str]) -> None:
    base, top = pair
    Path(f"{top}.link").hardlink_to(top)
    stack = await open_files(base, top)
    with pytest.raises(ImageLocked, match=r"top\.hds\.link"):
        await open_files(base, f"{top}.link")
    await stack.aclose(clean=True)
