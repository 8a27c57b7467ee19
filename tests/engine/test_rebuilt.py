"""A stack made again over deltas that are open: the maps of lower levels come from their files, free space from the
top."""

import errno

import pytest

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.loading import open_delta
from ploopfs.engine.opening import StackSpec, open_stack, rebuilt
from ploopfs.errors import BackendError, BadImage, ImageMismatch
from ploopfs.image.header import V1
from ploopfs.testing.images import ImageBuilder
from tests.engine.rig import BASE, CLUSTER, NEW, OLD, TOP, Rig

MIDDLE, OTHER = "/memory/middle.hds", "/memory/other.hds"
DISK = 8 * CLUSTER


@pytest.fixture
def three() -> Rig:
    """Base, middle and top own the clusters 0 to 2, with 3 in all of them, and `OTHER` is another middle."""
    rig = Rig(paths=(BASE, MIDDLE, TOP))
    rig.put(BASE, {0: b"b" * CLUSTER, 3: b"B" * CLUSTER})
    rig.put(MIDDLE, {1: b"m" * CLUSTER, 3: b"M" * CLUSTER})
    rig.put(TOP, {2: b"t" * CLUSTER, 3: b"T" * CLUSTER})
    rig.put(OTHER, {4: b"x" * CLUSTER, 0: b"X" * CLUSTER})
    return rig


async def test_a_stack_over_the_same_deltas_is_the_same_disk(three: Rig) -> None:
    stack = await three.open()
    await stack.write(5 * CLUSTER, NEW)
    again = await rebuilt(stack.deltas, stack.size_bytes, three.counters)
    assert again.map == stack.map
    assert again.lower == stack.lower
    assert again.deltas == stack.deltas
    assert await again.read(0, DISK) == await stack.read(0, DISK)


async def test_under_another_lower_level_the_clusters_of_the_others_come_to_light(three: Rig) -> None:
    stack = await three.open()
    before = bytes(await stack.read(0, DISK))
    other = await open_delta(three.memory, ImageSpec(OTHER), writable=False)
    base, middle, top = stack.deltas
    again = await rebuilt((base, other, top), stack.size_bytes, three.counters)
    expected = b"X" * CLUSTER + bytes(CLUSTER) + b"t" * CLUSTER + b"T" * CLUSTER + b"x" * CLUSTER + bytes(3 * CLUSTER)
    assert await again.read(0, DISK) == expected
    assert [delta.bat is None for delta in again.deltas] == [True, True, False]
    assert await stack.read(0, DISK) == before  # whoever still has the old stack still has the old disk
    await middle.aclose(clean=False)


async def test_the_disk_keeps_its_size_under_a_top_that_is_larger(three: Rig) -> None:
    three.memory.put(TOP, ImageBuilder(disk_clusters=12, clusters={1: OLD, 11: OLD}).build())
    stack = await three.open()
    again = await rebuilt(stack.deltas, DISK, three.counters)
    assert (again.size_bytes, len(again.map)) == (DISK, 8)
    assert await again.read(CLUSTER, CLUSTER) == OLD


async def test_a_raw_image_alone_keeps_its_cluster() -> None:
    rig = Rig()
    rig.memory.put("/raw", OLD * 4)
    spec = StackSpec((ImageSpec("/raw", raw=True),), cluster_sectors=128)
    stack = await open_stack(rig.memory, spec, read_only=False, counters=Counters())
    again = await rebuilt(stack.deltas, stack.size_bytes, rig.counters, cluster_sectors=128)
    assert (again.map, again.cluster_bytes) == (stack.map, 65536)


async def test_a_raw_base_is_a_lower_level_like_any_other() -> None:
    rig = Rig()
    rig.memory.put("/raw", OLD + b"end")
    rig.put(TOP, {0: b"t" * CLUSTER})
    spec = StackSpec((ImageSpec("/raw", raw=True), ImageSpec(TOP)))
    stack = await open_stack(rig.memory, spec, read_only=False, counters=Counters())
    again = await rebuilt(stack.deltas, stack.size_bytes, rig.counters)
    assert again.map == stack.map
    assert await again.read(CLUSTER, 8) == b"end" + bytes(5)


# --- what is refused, with nothing changed ----------------------------------------------------------------------------


async def test_a_lower_file_that_is_not_the_one_that_was_opened_is_refused(three: Rig) -> None:
    stack = await three.open()
    image = three.memory.images[MIDDLE].data
    kept = image[:]
    image += bytes(CLUSTER)
    with pytest.raises(ImageMismatch, match=f"{MIDDLE}: the file has {4 * CLUSTER} bytes, expected {3 * CLUSTER}"):
        await rebuilt(stack.deltas, stack.size_bytes, three.counters)
    image[:] = kept
    image[20] ^= 1  # m_Heads
    with pytest.raises(ImageMismatch, match=f"{MIDDLE}: the header is not the one"):
        await rebuilt(stack.deltas, stack.size_bytes, three.counters)
    image[:] = kept
    image[64:68] = (99).to_bytes(4, "little")
    with pytest.raises(BadImage, match=f"{MIDDLE}: BAT entry 0 is 99"):
        await rebuilt(stack.deltas, stack.size_bytes, three.counters)


async def test_an_image_that_does_not_fit_is_refused_and_keeps_its_map(three: Rig) -> None:
    stack = await three.open()
    three.memory.put(OTHER, ImageBuilder(disk_clusters=8, version=V1).build())
    other = await open_delta(three.memory, ImageSpec(OTHER), writable=False)
    with pytest.raises(BadImage, match=f"{OTHER}: m_Sig is version 1"):
        await rebuilt((other, *stack.deltas[1:]), stack.size_bytes, three.counters)
    assert other.bat is not None


async def test_a_storage_error_is_raised_as_it_is_and_the_old_stack_serves_on(three: Rig) -> None:
    stack = await three.open()
    before = bytes(await stack.read(0, DISK))
    rule = three.faults.on(MIDDLE, three.faults.fail(errno.ENOTCONN, "read"))
    with pytest.raises(BackendError) as raised:
        await rebuilt(stack.deltas, stack.size_bytes, three.counters)
    assert (raised.value.errno, raised.value.path) == (errno.ENOTCONN, MIDDLE)
    three.faults.remove(rule)
    await stack.write(6 * CLUSTER, NEW)
    assert await stack.read(0, 6 * CLUSTER) == before[: 6 * CLUSTER]


# --- free space belongs to the open file ------------------------------------------------------------------------------


async def test_a_cluster_that_a_failed_write_may_yet_reach_is_not_given_away_by_the_next_stack(alone: Rig) -> None:
    stack = await alone.open()
    alone.faults.fail(errno.EIO, "write", count=1)
    with pytest.raises(BackendError):
        await stack.write(0, NEW)  # to cluster 2 of the file
    again = await rebuilt(stack.deltas, stack.size_bytes, alone.counters)
    await again.write(0, NEW)
    assert alone.entry(0) == 3
