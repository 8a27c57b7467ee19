"""The top and the delta below it change places: when they may, and that the disk stays what it was."""

import errno

import pytest

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import Delta, ImageSpec
from ploopfs.engine.flip import check_flip, flipped
from ploopfs.engine.loading import load_delta, open_delta
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.stack import Stack
from ploopfs.errors import AlreadyExists, BadImage, NoSuchEntry, PermissionDenied, ReadOnly, WrongLevel
from ploopfs.image.check import Verdict
from ploopfs.testing.images import ImageBuilder
from tests.engine.disk import verdict
from tests.engine.rig import BASE, CLUSTER, NEW, OLD, TOP, Rig

LOWEST = "/memory/lowest.hds"
DISK = 8 * CLUSTER


@pytest.fixture
def three() -> Rig:
    """Lowest, base and top; the base lacks what the top has, as user space has made sure."""
    rig = Rig(paths=(LOWEST, BASE, TOP))
    rig.put(LOWEST, dict.fromkeys(range(6), b"l" * CLUSTER))
    rig.put(BASE, dict.fromkeys((1, 2), b"b" * CLUSTER))
    rig.put(TOP, dict.fromkeys((3, 4), b"t" * CLUSTER))
    return rig


async def open_in_their_new_places(rig: Rig, stack: Stack) -> tuple[Delta, Delta]:
    """(upper, lower), as a device does it: the old top is settled, and each lock passes to the new open file."""
    await stack.top.settle()
    await stack.top.file.unlock()
    await stack.deltas[-2].file.unlock()
    upper = await load_delta(await rig.memory.open(stack.deltas[-2].path, writable=True), raw=False)
    file = await rig.memory.open(stack.top.path, writable=False)
    await file.lock()
    return upper, stack.top.through(file)


async def test_the_disk_is_the_same_and_what_is_written_goes_to_the_other_file(three: Rig) -> None:
    stack = await three.open()
    await stack.write(6 * CLUSTER, NEW)
    before = bytes(await stack.read(0, DISK))
    upper, lower = await open_in_their_new_places(three, stack)
    old_top = three.top
    after = await flipped(stack, upper=upper, lower=lower)
    await upper.mark_in_use()
    assert [delta.path for delta in after.deltas] == [LOWEST, TOP, BASE]
    assert {delta.path for delta in stack.dropped_by(after)} == {BASE, TOP}
    assert await after.read(0, DISK) == before
    await after.write(3 * CLUSTER, NEW)
    await after.aclose(clean=True)
    assert three.top == old_top
    assert verdict(three.memory.bytes_of(BASE)).verdict is Verdict.CLEAN
    three.paths = (LOWEST, TOP, BASE)
    again = await three.open()
    assert again.map == after.map
    expected = before[: 3 * CLUSTER] + NEW + before[3 * CLUSTER + len(NEW) :]
    assert await again.read(0, DISK) == expected


async def test_a_cluster_that_both_have_is_refused(three: Rig) -> None:
    stack = await three.open()
    await stack.write(2 * CLUSTER, NEW)
    upper, lower = await open_in_their_new_places(three, stack)
    with pytest.raises(AlreadyExists, match=f"1 clusters are both in {BASE} and in {TOP}, the first is 2"):
        await flipped(stack, upper=upper, lower=lower)


async def test_an_image_that_is_open_for_reading_cannot_become_the_top(three: Rig) -> None:
    stack = await three.open()
    reading = await open_delta(three.memory, ImageSpec(BASE), writable=False)
    with pytest.raises(PermissionDenied) as raised:
        await flipped(stack, upper=reading, lower=stack.top)
    assert raised.value.errno == errno.EACCES


async def test_a_smaller_image_cannot_become_the_top(three: Rig) -> None:
    three.paths = (BASE, TOP)
    three.memory.put(BASE, ImageBuilder(disk_clusters=7, clusters={1: OLD}).build())
    stack = await three.open()
    upper, lower = await open_in_their_new_places(three, stack)
    with pytest.raises(BadImage, match=f"{TOP}: m_SizeInSectors is 512, expected at most 448"):
        await flipped(stack, upper=upper, lower=lower)


async def test_stacks_that_cannot_be_flipped_are_told_why(three: Rig, alone: Rig) -> None:
    with pytest.raises(NoSuchEntry):
        check_flip(await alone.open())
    three.memory.put("/raw", OLD)
    raw_base = StackSpec((ImageSpec("/raw", raw=True), ImageSpec(BASE)))
    with pytest.raises(WrongLevel, match="/raw") as raised:
        check_flip(await open_stack(three.memory, raw_base, read_only=False, counters=Counters()))
    assert raised.value.errno == errno.EBADSLT
    with pytest.raises(ReadOnly):
        check_flip(await open_stack(three.memory, StackSpec((ImageSpec(TOP),)), read_only=True, counters=Counters()))
