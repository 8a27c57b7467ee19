"""New clusters at the end of the file: what must be durable before the map names one, and how far the file is ahead."""

import errno
from contextlib import nullcontext
from hashlib import sha256

import pytest

from ploopfs.bounds import MIB
from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.errors import BackendError
from ploopfs.image.check import Verdict
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.engine.bitmaps import with_bitmap
from tests.engine.disk import verdict
from tests.engine.journal import Journal
from tests.engine.rig import BASE, CLUSTER, NEW, OLD, TOP, Rig, map_writes


def assert_ends_are_durable(journal: Journal) -> None:
    """Before each write of the map there was an fsync after the file had become as long as it is."""
    for named in map_writes(journal):
        grown = [each for each in journal.of("truncate") if each.ended_before(named)]
        if grown:
            syncs = [each for each in journal.of("fsync") if grown[-1].ended_before(each) and each.ended_before(named)]
            assert syncs, f"the map was written at {named.offset} before the file's end was durable"


async def test_clusters_that_nobody_had_are_named_with_one_sync_for_each_time_that_the_file_became_longer(
    alone: Rig,
) -> None:
    stack = await alone.open()
    alone.journal.entries.clear()
    for slot in (0, 1, 2, 4, 5, 6, 7):
        await stack.write(slot * CLUSTER, NEW)
    assert len(map_writes(alone.journal)) == 7
    # One for the map, and the disk has eight.
    assert [entry.offset for entry in alone.journal.of("truncate")] == [9 * CLUSTER]
    assert len(alone.journal.of("fsync")) == 1
    assert_ends_are_durable(alone.journal)
    await stack.aclose(clean=True)
    assert verdict(alone.top).verdict is Verdict.CLEAN
    assert len(alone.top) == 9 * CLUSTER


async def test_a_copy_of_a_lower_cluster_is_durable_before_it_is_named_though_the_file_is_long_enough() -> None:
    rig = Rig(paths=(BASE, TOP))
    rig.put(BASE, dict.fromkeys(range(8), OLD))
    rig.put(TOP, {})
    stack = await rig.open()
    rig.journal.entries.clear()
    for slot in range(4):
        await stack.write(slot * CLUSTER, NEW if slot % 2 else NEW * 8)  # a part, and a whole cluster
    syncs, names = rig.journal.of("fsync"), map_writes(rig.journal)
    assert [synced.ended_before(named) for synced, named in zip(syncs, names, strict=True)] == [True] * 4


async def test_so_is_what_goes_where_the_file_had_something_else(alone: Rig) -> None:
    stack = await alone.open()
    await stack.write(0, NEW)
    await stack.discard(0, CLUSTER)
    alone.journal.entries.clear()
    await stack.write(5 * CLUSTER, NEW)
    (synced,), (named,) = alone.journal.of("fsync"), map_writes(alone.journal)
    assert synced.ended_before(named)
    assert alone.journal.of("truncate") == []


async def test_after_a_loss_the_file_may_be_shorter_than_anybody_knows(alone: Rig) -> None:
    stack = await alone.open()
    await stack.write(0, NEW)
    stack.note_loss(BackendError(errno.ENOTCONN, "read", TOP))
    alone.journal.entries.clear()
    for slot in (1, 2):
        await stack.write(slot * CLUSTER, NEW)
    assert len(alone.journal.of("fsync")) == 2
    assert alone.journal.of("truncate") == []


async def test_so_it_is_after_a_close_that_was_cut_short(alone: Rig) -> None:
    stack = await alone.open()
    await stack.write(0, NEW)
    alone.faults.fail(errno.ENOSPC, "write", count=1)
    with pytest.raises(BackendError):
        await stack.top.settle()
    assert len(alone.top) == 3 * CLUSTER
    alone.journal.entries.clear()
    await stack.write(CLUSTER, NEW)
    assert len(alone.journal.of("truncate")) == len(alone.journal.of("fsync")) == 1
    assert_ends_are_durable(alone.journal)


@pytest.mark.parametrize("answer", [errno.EFBIG, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
async def test_a_file_that_may_not_become_so_long_is_made_as_long_as_it_must_be(alone: Rig, answer: int) -> None:
    stack = await alone.open()
    refusal = alone.faults.fail(answer, "truncate", count=1)
    await stack.write(0, NEW)
    assert refusal.hits == 1
    assert len(alone.top) == 3 * CLUSTER
    assert await stack.read(0, len(NEW)) == NEW


async def test_the_file_is_ahead_by_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ploopfs.engine.room.GROW_AHEAD_MIB", 1)
    memory = MemoryFiles()
    memory.put(TOP, ImageBuilder(disk_clusters=99, clusters=dict.fromkeys(range(48), b"x")).build())
    spec = StackSpec((ImageSpec(TOP),))
    stack = await open_stack(memory, spec, read_only=False, counters=Counters())
    before = len(memory.bytes_of(TOP))
    assert before > MIB
    await stack.write(60 * CLUSTER, NEW)
    assert len(memory.bytes_of(TOP)) == before + CLUSTER + MIB


@pytest.mark.parametrize("extension", [False, True], ids=["plain", "with a bitmap"])
@pytest.mark.parametrize("answer", ["success", "an error", "an error after it has happened"])
async def test_an_image_that_was_made_longer_and_not_changed_is_closed_as_it_was_found(
    alone: Rig, answer: str, extension: bool
) -> None:
    before = with_bitmap(alone.top, [b"\x05"]) if extension else alone.top
    alone.memory.put(TOP, before)
    stack = await alone.open()
    assert stack.room is not None
    if answer != "success":
        alone.faults.fail(errno.EIO, "truncate", count=1, after="after" in answer)
    with nullcontext() if answer == "success" else pytest.raises(BackendError):
        await stack.room.make()
    assert (len(alone.top) > len(before)) is (answer != "an error")
    assert alone.header.is_marked_in_use
    await stack.aclose(clean=True)
    assert not alone.header.is_marked_in_use
    assert (len(alone.top), sha256(alone.top).digest()) == (len(before), sha256(before).digest())
    assert verdict(alone.top).verdict is Verdict.CLEAN
