"""In which order things reach the file, and what an error at each of these steps leaves behind."""

import errno
import hashlib
import struct

import pytest

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.errors import BackendError, StorageTimeout, TruncatedImage
from ploopfs.image.check import Verdict
from ploopfs.image.extension import EXTENSION_MAGIC
from ploopfs.image.header import CLOSED, CLOSED_V21, IN_USE, MUTABLE_START, Header
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.engine.disk import verdict
from tests.engine.journal import JournalFile, JournalFiles
from tests.engine.rig import BASE, CLUSTER, NEW, OLD, TOP, Rig, data_writes, map_writes

# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [1, 2], ids=["copy-up", "allocation"])
async def test_data_are_synced_before_the_map_names_them_and_the_map_is_written_before_the_answer(
    chain: Rig, slot: int
) -> None:
    stack = await chain.open()
    chain.journal.entries.clear()
    await stack.write(slot * CLUSTER + 512, NEW)
    answered = chain.journal.note("answered")
    (data,), (named,) = data_writes(chain.journal), map_writes(chain.journal)
    (synced,) = chain.journal.of("fsync")
    assert data.ended_before(synced)
    assert synced.ended_before(named)
    assert named.ended_before(answered)
    assert data.length == (CLUSTER if slot == 1 else len(NEW))


async def test_a_copy_is_on_its_way_to_the_storage_before_a_sync_is_asked_for(
    chain: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = await chain.open()
    monkeypatch.setattr(JournalFile, "start_writeback", lambda _file: chain.journal.note("writeback"))
    await stack.write(CLUSTER + 512, NEW)
    (data,), (begun,) = data_writes(chain.journal), chain.journal.of("writeback")
    assert data.ended_before(begun)
    assert begun.ended_before(chain.journal.of("fsync")[-1])
    await stack.write(CLUSTER + 512, NEW)
    assert len(chain.journal.of("writeback")) == 1, "of copies alone"


async def test_fua_is_answered_after_a_sync_that_follows_the_map(chain: Rig) -> None:
    stack = await chain.open()
    await stack.write(0, NEW, fua=True)
    answered = chain.journal.note("answered")
    last = chain.journal.of("fsync")[-1]
    assert map_writes(chain.journal)[-1].ended_before(last)
    assert last.ended_before(answered)


async def test_a_write_in_place_touches_no_map_and_syncs_nothing(alone: Rig) -> None:
    stack = await alone.open()
    alone.journal.entries.clear()
    await stack.write(3 * CLUSTER + 100, NEW)
    assert [entry.operation for entry in alone.journal.entries] == ["write"]


async def test_zeroes_to_a_cluster_that_nobody_has_touch_nothing_unless_they_are_asked_for(chain: Rig) -> None:
    stack = await chain.open()
    chain.journal.entries.clear()
    await stack.write(2 * CLUSTER, bytes(CLUSTER))
    assert chain.journal.entries == []
    await stack.write(2 * CLUSTER, bytes(CLUSTER), check_zeros=False)
    assert len(data_writes(chain.journal)) == 1
    await stack.write(CLUSTER, bytes(512))
    assert await stack.read(CLUSTER, CLUSTER) == bytes(512) + OLD[512:]


async def test_a_cluster_is_given_back_only_after_the_cleared_entry_is_durable(alone: Rig) -> None:
    stack = await alone.open()
    alone.journal.entries.clear()
    await stack.discard(3 * CLUSTER, CLUSTER)
    (cleared,), (synced,), (punched,) = (alone.journal.of(name) for name in ("write", "fsync", "punch hole"))
    assert cleared.ended_before(synced)
    assert synced.ended_before(punched)
    assert alone.entry(3) == 0


async def test_a_discard_above_lower_deltas_keeps_its_cluster_and_its_entry(chain: Rig) -> None:
    stack = await chain.open()
    await stack.write(CLUSTER, NEW)
    entry = chain.entry(1)
    await stack.discard(CLUSTER, CLUSTER)
    assert (chain.entry(1), await stack.read(CLUSTER, CLUSTER)) == (entry, bytes(CLUSTER))
    await stack.discard(CLUSTER + 1, 2 * CLUSTER)
    assert len(chain.journal.of("punch hole")) == 1


# --- the mark ---------------------------------------------------------------------------------------------------------


async def test_the_mark_is_durable_before_the_first_change(alone: Rig) -> None:
    stack = await alone.open()
    await stack.write(0, NEW)
    marked, *changes = alone.journal.of("write", "truncate", "punch hole")
    synced, *_ = alone.journal.of("fsync")
    assert (marked.offset, marked.data[:4]) == (MUTABLE_START, IN_USE.to_bytes(4, "little"))
    assert marked.ended_before(synced)
    assert synced.ended_before(changes[0])


async def test_a_clean_close_syncs_everything_before_it_clears_the_mark(alone: Rig) -> None:
    stack = await alone.open()
    await stack.write(0, NEW)
    await stack.discard(0, CLUSTER)
    await stack.aclose(clean=True)
    *changes, cleared = alone.journal.of("write", "truncate", "punch hole")
    before, after = alone.journal.of("fsync")[-2:]
    assert (changes[-1].operation, changes[-1].offset) == ("truncate", 2 * CLUSTER)
    assert all(change.ended_before(before) for change in changes)
    assert before.ended_before(cleared)
    assert cleared.ended_before(after)
    assert (alone.header.in_use, verdict(alone.top).verdict) == (CLOSED, Verdict.CLEAN)


async def test_a_raw_top_has_no_mark_and_is_synced_before_it_is_closed_all_the_same(alone: Rig) -> None:
    alone.memory.put("/raw", OLD)
    spec = StackSpec((ImageSpec("/raw", raw=True),))
    stack = await open_stack(
        JournalFiles(alone.memory, alone.journal), spec, read_only=False, counters=alone.counters
    )
    await stack.write(0, NEW)
    await stack.aclose(clean=True)
    assert [entry.operation for entry in alone.journal.entries][-1] == "fsync"


async def test_a_close_that_is_not_clean_writes_nothing(alone: Rig) -> None:
    stack = await alone.open()
    await stack.write(0, NEW)
    alone.journal.entries.clear()
    await stack.aclose(clean=False)
    assert alone.journal.entries == []
    assert verdict(alone.top).verdict is Verdict.NOT_CLOSED


async def test_a_read_only_stack_writes_nothing_at_all(chain: Rig) -> None:
    before = chain.top
    files = JournalFiles(chain.memory, chain.journal)
    spec = StackSpec((ImageSpec(BASE), ImageSpec(TOP)))
    stack = await open_stack(files, spec, read_only=True, counters=Counters())
    assert stack.read_only
    await stack.flush()
    await stack.aclose(clean=True)
    assert {entry.operation for entry in chain.journal.entries} == {"stat", "read"}
    assert chain.top == before


async def test_a_failed_sync_stays_failed_and_asks_the_file_no_more(alone: Rig) -> None:
    stack = await alone.open()
    await stack.write(3 * CLUSTER, NEW)
    alone.faults.fail(errno.EIO, "fsync", count=1)
    for _ in range(3):
        with pytest.raises(BackendError) as raised:
            await stack.flush()
        assert (raised.value.errno, raised.value.operation) == (errno.EIO, "fsync")
    asked = [operation for operation, _path in alone.faults.log if operation == "fsync"]
    assert len(asked) == 2  # that of the mark, and the one that failed
    with pytest.raises(BackendError):
        await stack.aclose(clean=True)
    assert alone.header.in_use == IN_USE


async def test_a_sync_that_fails_again_and_again_holds_on_to_no_tracebacks(alone: Rig) -> None:
    stack = await alone.open()
    alone.faults.fail(errno.EIO, "fsync", count=1)
    depths = []
    for _ in range(20):
        with pytest.raises(BackendError) as raised:
            await stack.flush()
        depths.append(len(raised.traceback))
    assert depths[1:] == depths[1:2] * 19


@pytest.mark.parametrize("operation", ["fsync", "write", "truncate"])
async def test_an_error_while_closing_leaves_the_mark(alone: Rig, operation: str) -> None:
    stack = await alone.open()
    await stack.write(0, NEW)
    await stack.discard(0, CLUSTER)
    alone.faults.fail(errno.EIO, operation)
    with pytest.raises(BackendError):
        await stack.aclose(clean=True)
    assert alone.header.in_use == IN_USE
    assert not alone.memory.images[TOP].writers, "it is closed all the same, and its lock with it"


async def test_a_mark_that_cannot_be_written_opens_nothing_and_holds_no_lock(alone: Rig) -> None:
    rule = alone.faults.fail(errno.EIO, "fsync")
    with pytest.raises(BackendError):
        await alone.open()
    alone.faults.remove(rule)
    image = alone.memory.images[TOP]
    assert (image.writers, image.readers) == (set(), set())


# --- errors at each step ----------------------------------------------------------------------------------------------

STEPS = {
    "copy-up": (1, ("truncate", "read", "write", "fsync", "write")),
    "allocation": (2, ("truncate", "write", "fsync", "write")),
}
"""The cluster of the disk, and what the storage is asked to do for a write to it."""


@pytest.mark.parametrize("after", [False, True], ids=["refused", "done-but-denied"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize(("kind", "step"), [(kind, step) for kind in STEPS for step in range(len(STEPS[kind][1]))])
async def test_an_error_at_any_step_leaves_the_old_data_and_a_second_try_succeeds(
    chain: Rig, kind: str, step: int, number: int, after: bool
) -> None:
    slot, steps = STEPS[kind]
    stack = await chain.open()
    old = bytes(await stack.read(slot * CLUSTER, CLUSTER))
    levels, clusters = bytes(stack.map.levels), stack.map.clusters[:]
    asked = len(chain.faults.log)
    chain.faults.fail(number, skip=step, count=1, after=after)
    if (number, steps[step]) == (errno.ENOSPC, "truncate"):
        # Not as long as it might be, nor as it must be.
        steps, step = ("truncate", *steps), step + 1
        chain.faults.fail(number, count=1, after=after)
    with pytest.raises(BackendError) as raised:
        await stack.write(slot * CLUSTER + 100, NEW)
    assert (raised.value.errno, raised.value.operation) == (number, steps[step])
    assert [operation for operation, _path in chain.faults.log[asked:]] == list(steps[: step + 1])
    assert (bytes(stack.map.levels), stack.map.clusters) == (levels, clusters)
    assert await stack.read(slot * CLUSTER, CLUSTER) == old
    if steps[step] == "fsync":
        with pytest.raises(BackendError):
            await stack.write(slot * CLUSTER + 100, NEW)
        return
    await stack.write(slot * CLUSTER + 100, NEW)
    new = old[:100] + NEW + old[100 + len(NEW) :]
    assert await stack.read(slot * CLUSTER, CLUSTER) == new
    await stack.aclose(clean=True)
    assert verdict(chain.top).verdict is Verdict.CLEAN
    assert await (await chain.open()).read(slot * CLUSTER, CLUSTER) == new


@pytest.mark.parametrize(("number", "reused"), [(errno.ENOSPC, True), (errno.EIO, False)], ids=["ENOSPC", "EIO"])
async def test_only_an_error_that_excludes_late_bytes_frees_the_cluster(alone: Rig, number: int, reused: bool) -> None:
    stack = await alone.open()
    alone.faults.fail(number, "write", count=1)
    with pytest.raises(BackendError):
        await stack.write(0, NEW)
    await stack.write(CLUSTER, NEW)
    assert (alone.entry(1) == 2) is reused
    assert await stack.read(CLUSTER, CLUSTER) == NEW + bytes(CLUSTER - len(NEW))


async def test_enospc_for_the_map_itself_frees_no_cluster_that_the_file_may_name(alone: Rig) -> None:
    stack = await alone.open()
    alone.faults.fail(errno.ENOSPC, "write", skip=1, count=1, after=True)
    with pytest.raises(BackendError):
        await stack.write(0, NEW)
    named = alone.entry(0)
    assert named == 2
    await stack.write(CLUSTER, NEW)
    assert alone.entry(1) != named


async def test_a_map_entry_of_which_nobody_knows_is_written_again_before_the_mark_is_cleared(alone: Rig) -> None:
    stack = await alone.open()
    alone.faults.fail(errno.EIO, "write", skip=1, count=1, after=True)
    with pytest.raises(BackendError):
        await stack.write(0, NEW)
    assert alone.entry(0) != 0
    await stack.aclose(clean=True)
    assert alone.entry(0) == 0
    assert verdict(alone.top).verdict is Verdict.CLEAN
    rewritten, truncated = map_writes(alone.journal)[-1], alone.journal.of("truncate")[-1]
    assert any(rewritten.ended_before(sync) and sync.ended_before(truncated) for sync in alone.journal.of("fsync"))


async def test_a_write_to_a_cluster_whose_discard_failed_halfway_is_acknowledged_when_the_map_names_it_again(
    alone: Rig,
) -> None:
    """Whoever is killed then, or opens the image again, would lose it."""
    stack = await alone.open()
    rule = alone.faults.fail(errno.EIO, "write", count=1, after=True)
    with pytest.raises(BackendError):
        await stack.discard(3 * CLUSTER, CLUSTER)
    assert alone.entry(3) == 0
    alone.faults.remove(rule)
    assert stack.aim(3 * CLUSTER, NEW) is None
    await stack.write(3 * CLUSTER, NEW)
    assert alone.entry(3) == 1
    assert stack.aim(3 * CLUSTER, NEW)
    await stack.discard(3 * CLUSTER, CLUSTER)
    assert (alone.entry(3), await stack.read(3 * CLUSTER, CLUSTER)) == (0, bytes(CLUSTER))


async def test_a_write_to_a_cluster_whose_discard_failed_halfway_fails_while_the_map_cannot_name_it(alone: Rig) -> None:
    stack = await alone.open()
    alone.faults.fail(errno.EIO, "write", count=1, after=True)
    with pytest.raises(BackendError):
        await stack.discard(3 * CLUSTER, CLUSTER)
    alone.faults.fail(errno.EIO, "write", count=1)
    with pytest.raises(BackendError):
        await stack.write(3 * CLUSTER, NEW)
    assert await stack.read(3 * CLUSTER, CLUSTER) == OLD
    await stack.write(3 * CLUSTER, NEW)
    assert alone.entry(3) == 1


async def test_a_flush_vouches_for_the_map_of_a_cluster_whose_discard_failed_halfway(alone: Rig) -> None:
    stack = await alone.open()
    alone.faults.fail(errno.EIO, "write", count=1, after=True)
    with pytest.raises(BackendError):
        await stack.discard(3 * CLUSTER, CLUSTER)
    assert alone.entry(3) == 0  # the file has lost it, and memory has not
    stack.top.uncertain_slots.clear()  # as if the write had not seen to it
    await stack.write(3 * CLUSTER, NEW)
    stack.top.uncertain_slots.add(3)
    await stack.flush()
    assert alone.entry(3) == 1
    last = alone.journal.of("fsync")[-1]
    assert map_writes(alone.journal)[-1].ended_before(last)


async def test_a_storage_that_cannot_punch_is_written_zeroes_where_old_bytes_would_show(alone: Rig) -> None:
    stack = await alone.open()
    alone.faults.fail(errno.EOPNOTSUPP, "punch hole")
    await stack.discard(3 * CLUSTER, CLUSTER)
    await stack.write(5 * CLUSTER + 100, NEW)
    assert alone.entry(5) == 1
    assert await stack.read(5 * CLUSTER, CLUSTER) == bytes(100) + NEW + bytes(CLUSTER - 100 - len(NEW))


async def test_a_hole_that_failed_where_old_bytes_would_show_fails_the_write_since_it_may_yet_come(alone: Rig) -> None:
    stack = await alone.open()
    await stack.discard(3 * CLUSTER, CLUSTER)
    alone.faults.fail(errno.EIO, "punch hole")
    with pytest.raises(BackendError, match="punch hole"):
        await stack.write(5 * CLUSTER + 100, NEW)
    assert alone.entry(5) == 0


@pytest.mark.parametrize("name", ["write", "punch hole", "fsync"])
async def test_a_discard_that_fails_frees_nothing_for_others(alone: Rig, name: str) -> None:
    stack = await alone.open()
    rule = alone.faults.fail(errno.EIO, name, count=1)
    with pytest.raises(BackendError):
        await stack.discard(3 * CLUSTER, CLUSTER)
    alone.faults.remove(rule)
    if name == "fsync":
        return
    await stack.write(0, NEW)
    assert alone.entry(0) == 2


async def test_a_file_with_an_operation_that_was_given_up_is_not_closed_cleanly(alone: Rig) -> None:
    stack = await alone.open()
    await stack.write(0, NEW)
    stack.top.file.abandoned = True
    alone.journal.entries.clear()
    with pytest.raises(StorageTimeout, match=TOP):
        await stack.aclose(clean=True)
    assert alone.journal.entries == []
    assert alone.header.in_use == IN_USE


# --- somebody shortens a file under us --------------------------------------------------------------------------------


async def test_a_file_that_somebody_has_cut_is_an_error_and_not_zeroes(chain: Rig) -> None:
    stack = await chain.open()
    await stack.write(0, NEW)
    for path, slot in ((BASE, 1), (TOP, 0)):
        del chain.memory.images[path].data[CLUSTER + 1000 :]
        with pytest.raises(TruncatedImage, match=f"{path}: ends at {CLUSTER + 1000}"):
            await stack.read(slot * CLUSTER, CLUSTER)
        assert len(await stack.read(slot * CLUSTER, 1000)) == 1000


async def test_a_raw_base_that_somebody_has_cut_is_an_error_and_not_zeroes() -> None:
    memory = MemoryFiles()
    memory.put("/raw", OLD * 2)
    memory.put(TOP, ImageBuilder(disk_clusters=4).build())
    spec = StackSpec((ImageSpec("/raw", raw=True), ImageSpec(TOP)))
    stack = await open_stack(memory, spec, read_only=True, counters=Counters())
    assert await stack.read(0, 4 * CLUSTER) == OLD * 2 + bytes(2 * CLUSTER)
    del memory.images["/raw"].data[CLUSTER:]
    with pytest.raises(TruncatedImage, match="/raw"):
        await stack.read(CLUSTER, CLUSTER)


async def test_what_an_interrupted_growth_left_out_of_a_marked_image_reads_as_zeroes() -> None:
    memory = MemoryFiles()
    memory.put(TOP, ImageBuilder(clusters={0: OLD}, in_use=IN_USE).build()[:-1000])
    spec = StackSpec((ImageSpec(TOP),))
    for read_only in (True, False):
        stack = await open_stack(memory, spec, read_only=read_only, counters=Counters())
        assert await stack.read(0, CLUSTER) == OLD[:-1000] + bytes(1000)
        await stack.aclose(clean=True)


# --- the format extension ---------------------------------------------------------------------------------------------


@pytest.fixture
def extended() -> Rig:
    """An image closed by v2.1 software, with an extension that holds nothing."""
    rig = Rig()
    rig.put(TOP, {3: OLD})
    image = bytearray(rig.top)
    sectors = len(image) // 512
    header = Header.parse(rig.top, TOP).changed(in_use=CLOSED_V21, flags=1, extension_sectors=sectors)
    image[:64] = header.raw
    sections = bytes(CLUSTER - 24)
    image += struct.pack("<Q16s", EXTENSION_MAGIC, hashlib.md5(sections, usedforsecurity=False).digest()) + sections
    rig.memory.put(TOP, bytes(image))
    assert verdict(rig.top).verdict is Verdict.CLEAN
    return rig


async def test_an_extension_outlives_an_open_without_a_change(extended: Rig) -> None:
    before = extended.top
    stack = await extended.open()
    assert await stack.read(3 * CLUSTER, CLUSTER) == OLD
    await stack.flush()
    await stack.aclose(clean=True)
    assert extended.top == before


@pytest.mark.parametrize("change", ["write", "zeroes", "discard"])
async def test_an_extension_goes_with_the_first_change(extended: Rig, change: str) -> None:
    stack = await extended.open()
    match change:
        case "write":
            await stack.write(0, OLD)
        case "zeroes":
            await stack.write(0, bytes(512))
        case "discard":
            await stack.discard(3 * CLUSTER, CLUSTER)
    await stack.aclose(clean=True)
    assert (extended.header.in_use, extended.header.extension_sectors) == (CLOSED, 0)
    assert verdict(extended.top).verdict is Verdict.CLEAN
    assert len(extended.top) == {"write": 3, "zeroes": 2, "discard": 1}[change] * CLUSTER


async def test_an_extension_goes_with_a_copy_up_too(extended: Rig) -> None:
    extended.put(BASE, {1: OLD})
    extended.paths = (BASE, TOP)
    stack = await extended.open()
    await stack.copy_up(1, 0)
    await stack.aclose(clean=True)
    assert (extended.header.in_use, extended.header.extension_sectors) == (CLOSED, 0)


async def test_an_image_with_an_extension_is_no_broken_one_when_we_die_without_a_change(extended: Rig) -> None:
    stack = await extended.open()
    await stack.aclose(clean=False)
    assert verdict(extended.top).verdict is Verdict.NOT_CLOSED
