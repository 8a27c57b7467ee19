"""Disks whose map is longer than a cluster, and stacks as deep as they may be: the same rules, at the same cost."""

from pathlib import Path

import pytest

from ploopfs.engine.counters import Counters
from ploopfs.engine.create import create_image
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.os_file import OsFiles
from ploopfs.image.check import Verdict
from ploopfs.image.header import V1, V2, Version
from ploopfs.image.plan import plan_read
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.engine.disk import verdict
from tests.engine.journal import Journal, JournalFiles

CLUSTER = 32768
TIB_SECTORS = 1 << 31


@pytest.mark.parametrize(
    ("size_sectors", "cluster_sectors", "version", "first_cluster"),
    [
        (TIB_SECTORS * 2, 2048, V2, 9),
        (TIB_SECTORS * 2 - 2048, 2048, V1, 9),
        (20000 * 64, 64, V2, 3),
        (8177 * 64, 64, V2, 2),
        (8176 * 64, 64, V1, 1),
    ],
    ids=["2 TiB v2", "2 TiB less a cluster v1", "20000 small clusters", "one more than fits", "just as many as fit"],
)
async def test_a_disk_with_a_long_map_is_written_at_its_end_and_read_again(
    tmp_path: Path, size_sectors: int, cluster_sectors: int, version: Version, first_cluster: int
) -> None:
    path = str(tmp_path / "large.hds")
    header = create_image(path, size_sectors=size_sectors, cluster_sectors=cluster_sectors, version=version)
    assert (header.first_cluster, Path(path).stat().st_size) == (first_cluster, header.bat_area_bytes)
    spec = StackSpec((ImageSpec(path),))
    size_bytes = size_sectors * 512
    stack = await open_stack(OsFiles(), spec, read_only=False, counters=Counters())
    assert stack.size_bytes == size_bytes
    places = [0, size_bytes // 2 + 1000, size_bytes - cluster_sectors * 512 - 100, size_bytes - 5]
    for number, offset in enumerate(places):
        await stack.write(offset, bytes([number + 1]) * min(200, size_bytes - offset))
    await stack.aclose(clean=True)

    stack = await open_stack(OsFiles(), spec, read_only=True, counters=Counters())
    for number, offset in enumerate(places):
        data = await stack.read(offset, min(200, size_bytes - offset))
        assert data == bytes([number + 1]) * len(data)
    assert await stack.read(size_bytes - 105, 100) == bytes(100)
    await stack.aclose(clean=True)
    clusters = (Path(path).stat().st_size - header.bat_area_bytes) / header.cluster_bytes
    assert clusters == 4
    with open(path, "rb") as image:
        area = image.read(header.bat_area_bytes)
    # Only the map is judged, not four clusters of data.
    assert verdict(area + bytes(4 * header.cluster_bytes)).verdict is Verdict.CLEAN


def deep(depth: int) -> tuple[MemoryFiles, StackSpec]:
    """`depth` images over each other, each with one cluster of its own number and a share in cluster 0."""
    files = MemoryFiles()
    for level in range(depth):
        content = bytes([level + 1]) * CLUSTER
        files.put(f"{level}", ImageBuilder(disk_clusters=130, clusters={0: content, level + 1: content}).build())
    return files, StackSpec(tuple(ImageSpec(f"{level}") for level in range(depth)))


async def test_a_base_with_126_deltas_is_read_and_written() -> None:
    files, spec = deep(127)
    stack = await open_stack(files, spec, read_only=False, counters=Counters())
    assert len(stack.deltas) == 127
    # The entries of the lower deltas are in the merged map, and nowhere a second time.
    assert [delta.bat is None for delta in stack.deltas] == [True] * 126 + [False]
    for level in range(127):
        assert await stack.read((level + 1) * CLUSTER + 7, 100) == bytes([level + 1]) * 100
    assert await stack.read(0, CLUSTER) == bytes([127]) * CLUSTER
    assert await stack.read(128 * CLUSTER, 2 * CLUSTER) == bytes(2 * CLUSTER)
    await stack.write(CLUSTER + 5, b"new")
    assert await stack.read(CLUSTER, 10) == b"\1" * 5 + b"new" + b"\1" * 2
    await stack.aclose(clean=True)
    assert verdict(files.bytes_of("126")).verdict is Verdict.CLEAN


async def cost_of_reads(depth: int) -> list[tuple[int, list[tuple[str, int]]]]:
    """Plan segments and file operations of some reads from a base, a hole and both, below `depth` - 1 upper deltas."""
    files = MemoryFiles()
    files.put("0", ImageBuilder(disk_clusters=200, clusters=dict.fromkeys((0, 1, 3), b"b" * CLUSTER)).build())
    for level in range(1, depth):
        files.put(f"{level}", ImageBuilder(disk_clusters=200, clusters={10 + level: b"u" * CLUSTER}).build())
    journal = Journal()
    spec = StackSpec(tuple(ImageSpec(f"{level}") for level in range(depth)))
    stack = await open_stack(JournalFiles(files, journal), spec, read_only=True, counters=Counters())
    costs = []
    for offset, length in ((10, 4096), (0, 2 * CLUSTER), (CLUSTER, 3 * CLUSTER), (5 * CLUSTER, CLUSTER)):
        journal.entries.clear()
        assert len(await stack.read(offset, length)) == length
        asked = [(entry.operation, entry.length) for entry in journal.entries]
        costs.append((len(plan_read(stack.map, offset, length)), asked))
    return costs


async def test_a_read_costs_the_same_at_depth_1_and_at_depth_100() -> None:
    expected = [
        (1, [("read", 4096)]),
        (1, [("read", 2 * CLUSTER)]),
        (3, [("read", CLUSTER), ("read", CLUSTER)]),
        (1, []),
    ]
    assert await cost_of_reads(1) == expected
    assert await cost_of_reads(100) == expected
