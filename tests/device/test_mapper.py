"""Tables of a healthy device: load, clear, suspend and resume, and that each is all or nothing."""

import errno
import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.standby import State
from ploopfs.errors import Busy, NoResume, PloopError, QuiesceTimeout
from ploopfs.image.header import IN_USE, V1
from ploopfs.testing.images import ImageBuilder
from tests.device.mapped import SECTORS, line, mapped_rig, mapper_of, reload
from tests.device.rig import (
    BASE,
    CLUSTER,
    CONTENT,
    DISK_BYTES,
    MIDDLE,
    NEW,
    STACK,
    TOP,
    Asked,
    Rig,
    cluster_of,
    errno_of,
    image,
    rig_of,
)

REPLACED = CONTENT[: 2 * CLUSTER] + cluster_of(b"n") + CONTENT[3 * CLUSTER :]


@pytest.fixture
async def rig() -> Rig:
    return await mapped_rig()


def put_new(rig: Rig, **fields: object) -> None:
    rig.store.put(NEW, image({2: b"n"}, **fields).build())


def writers(rig: Rig, path: str) -> int:
    """How many open files hold the image's lock for writing."""
    return len(rig.store.images[path].writers)


def readers(rig: Rig, path: str) -> int:
    return len(rig.store.images[path].readers)


async def content_after(rig: Rig, *paths: str) -> bytes:
    """What the images hold after a clean end: nothing may be left marked, or be broken."""
    assert await rig.device.aclose()
    assert not rig.is_marked(paths[-1])
    again = await rig_of({path: rig.store.bytes_of(path) for path in paths})
    return await again.content()


# --- what it is ---------------------------------------------------------------------------------------------------


async def test_a_device_that_was_opened_has_a_table_with_its_images(rig: Rig) -> None:
    mapper = mapper_of(rig)
    assert (mapper.name, mapper.uuid, mapper.suspended) == ("ploop0", "", False)
    assert mapper.active.table.line == line(*STACK)
    assert mapper.active.status == f"0 {SECTORS} ploop 3 v2 64 o"
    assert (mapper.inactive_table, mapper.inactive_status) == (None, None)


# --- load and resume ----------------------------------------------------------------------------------------------


async def test_a_loaded_table_waits_beside_the_one_in_force(rig: Rig) -> None:
    put_new(rig)
    mapper = mapper_of(rig)
    await mapper.load(line(BASE, MIDDLE, NEW, options="falloc_new_clu"))
    assert mapper.active.table.line == line(*STACK)
    assert mapper.inactive_table is not None
    assert mapper.inactive_table.line == line(BASE, MIDDLE, NEW, options="falloc_new_clu")
    assert mapper.inactive_status == f"0 {SECTORS} ploop 3 v2 64 f"
    assert await rig.content() == CONTENT
    assert (rig.is_marked(TOP), rig.is_marked(NEW), rig.queue.generation) == (True, True, 1)


async def test_a_resume_puts_it_in_force_and_settles_the_old_top(rig: Rig) -> None:
    put_new(rig)
    await rig.device.write(3 * CLUSTER, b"old")
    await reload(rig, BASE, MIDDLE, NEW)
    assert await rig.content() == REPLACED
    assert (rig.is_marked(TOP), rig.is_marked(NEW), rig.queue.generation) == (False, True, 2)
    assert mapper_of(rig).active.table.line == line(BASE, MIDDLE, NEW)
    assert mapper_of(rig).inactive_table is None
    assert [writers(rig, path) for path in (TOP, NEW)] == [0, 1]
    old = await rig_of({path: rig.store.bytes_of(path) for path in STACK})
    assert (await old.content())[3 * CLUSTER : 3 * CLUSTER + 3] == b"old"
    await rig.device.write(4 * CLUSTER, b"new")
    assert (await content_after(rig, BASE, MIDDLE, NEW))[4 * CLUSTER : 4 * CLUSTER + 3] == b"new"


async def test_the_same_images_may_be_loaded_while_they_are_written(rig: Rig) -> None:
    mapper = mapper_of(rig)
    await mapper.load(line(*STACK))
    await rig.device.write(3 * CLUSTER, b"between")
    await mapper.resume()
    await rig.device.write(4 * CLUSTER, b"after")
    assert rig.is_marked(TOP)
    expected = bytearray(CONTENT)
    expected[3 * CLUSTER : 3 * CLUSTER + 7], expected[4 * CLUSTER : 4 * CLUSTER + 5] = b"between", b"after"
    assert await rig.content() == expected
    assert [writers(rig, TOP), readers(rig, BASE), readers(rig, MIDDLE)] == [1, 1, 1]
    assert await content_after(rig, *STACK) == expected


async def test_loading_the_same_images_writes_nothing_before_the_resume(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"w")
    since = len(rig.faults.log)
    await mapper_of(rig).load(line(*STACK))
    assert [rig.changes_of(path, since) for path in STACK] == [[], [], []]


async def test_the_map_of_an_image_that_is_written_is_read_while_nobody_writes(
    rig: Rig, nursery: trio.Nursery
) -> None:
    released = rig.hang("read", path=TOP)
    load = Asked(nursery, mapper_of(rig).load(line(*STACK)))
    await wait_all_tasks_blocked()
    write = Asked(nursery, rig.device.write(3 * CLUSTER, b"w"))
    await wait_all_tasks_blocked()
    assert (load.ended, write.ended) == (False, False)
    released.set()
    await wait_all_tasks_blocked()
    assert (load.errno, write.errno) == (0, 0)


async def test_a_load_of_other_images_holds_nobody_up(rig: Rig, nursery: trio.Nursery) -> None:
    put_new(rig)
    released = rig.hang("read", path=NEW)
    load = Asked(nursery, mapper_of(rig).load(line(BASE, MIDDLE, NEW)))
    await wait_all_tasks_blocked()
    await rig.device.write(3 * CLUSTER, b"w")
    assert not load.ended
    released.set()
    await wait_all_tasks_blocked()
    assert load.errno == 0


async def test_a_snapshot_is_a_table_with_one_more_image(rig: Rig) -> None:
    rig.store.put(NEW, image({}).build())
    mapper = mapper_of(rig)
    await mapper.load(line(*STACK, NEW))
    await rig.device.write(3 * CLUSTER, b"below")
    await mapper.resume()
    lower = rig.store.bytes_of(TOP)
    assert not rig.is_marked(TOP)
    await rig.device.write(3 * CLUSTER + 5, b"above")
    assert (await rig.device.read(3 * CLUSTER, 10)) == b"belowabove"
    await rig.device.flush()
    assert rig.store.bytes_of(TOP) == lower
    assert [writers(rig, TOP), readers(rig, TOP)] == [0, 1]
    assert (await content_after(rig, *STACK, NEW))[3 * CLUSTER : 3 * CLUSTER + 10] == b"belowabove"


async def test_requests_that_come_while_a_table_is_swapped_wait_for_it(rig: Rig, nursery: trio.Nursery) -> None:
    put_new(rig)
    mapper = mapper_of(rig)
    await mapper.suspend()
    await mapper.load(line(BASE, MIDDLE, NEW))
    read = Asked(nursery, rig.device.read(2 * CLUSTER, CLUSTER))
    await wait_all_tasks_blocked()
    assert not read.ended
    await mapper.resume()
    await wait_all_tasks_blocked()
    assert read.value == cluster_of(b"n")


async def test_handles_and_statistics_outlive_a_table(rig: Rig) -> None:
    put_new(rig)
    rig.device.opened()
    stats, standby = rig.device.stats, rig.queue.standby
    await rig.device.read(0, 512)
    reads = rig.device.counters.bio_in
    await reload(rig, BASE, MIDDLE, NEW)
    assert (rig.device.open_count, rig.device.counters.bio_in) == (1, reads)
    assert rig.device.stats is stats
    assert rig.queue.standby is standby


# --- sizes and windows --------------------------------------------------------------------------------------------


async def test_the_device_gets_the_size_of_its_table(rig: Rig) -> None:
    rig.store.put(NEW, image({7: b"z"}, disk_clusters=8).build())
    mapper = mapper_of(rig)
    await mapper.load(line(BASE, MIDDLE, NEW, sectors=8 * 64))
    assert rig.device.size_bytes == DISK_BYTES
    await mapper.resume()
    assert rig.device.size_bytes == 8 * CLUSTER
    assert await rig.device.read(7 * CLUSTER, CLUSTER) == cluster_of(b"z")
    await rig.device.write(7 * CLUSTER, b"w")
    await mapper.load(line(BASE, MIDDLE, NEW, sectors=100))
    await mapper.resume()
    assert rig.device.size_bytes == 51200
    assert await errno_of(rig.device.write(51200, b"x")) == errno.ENOSPC
    await mapper.load(line(BASE, MIDDLE, NEW, sectors=8 * 64))
    await mapper.resume()
    assert (await rig.device.read(7 * CLUSTER, 2)) == b"wz"


async def test_requests_past_the_end_of_the_shorter_table_that_they_waited_for(rig: Rig, nursery: trio.Nursery) -> None:
    mapper = mapper_of(rig)
    await mapper.suspend()
    read = Asked(nursery, rig.device.read(CLUSTER - 100, 4096))
    write = Asked(nursery, rig.device.write(5 * CLUSTER, b"w"))
    discard = Asked(nursery, rig.device.discard(0, DISK_BYTES))
    await wait_all_tasks_blocked()
    await mapper.load(line(*STACK, sectors=64))
    await mapper.resume()
    await wait_all_tasks_blocked()
    assert (read.value, write.errno, discard.errno) == (b"a" * 100, errno.ENOSPC, 0)


@pytest.mark.expects_warnings
async def test_off_moves_the_device_within_the_disk_of_its_images(rig: Rig) -> None:
    mapper = mapper_of(rig)
    await mapper.load(line(*STACK, sectors=128, options="off=64"))
    await mapper.resume()
    assert mapper.active.status == "0 128 ploop 3 v2 64 o off=64"
    assert rig.device.size_bytes == 2 * CLUSTER
    assert await rig.device.read(0, 4 * CLUSTER) == cluster_of(b"m") + cluster_of(b"t")
    await rig.device.write(0, b"w")
    await rig.device.discard(CLUSTER, CLUSTER)
    await mapper.load(line(*STACK))
    await mapper.resume()
    assert (await rig.content())[: 3 * CLUSTER] == cluster_of(b"a") + b"w" + cluster_of(b"m")[1:] + bytes(CLUSTER)
    assert await errno_of(mapper.load(line(*STACK, options="off=1"))) == errno.EBADSLT


async def test_a_read_only_table_makes_the_device_read_only_and_the_next_one_writable(rig: Rig) -> None:
    mapper = mapper_of(rig)
    await mapper.load(f"ro {line(*STACK)}")
    await mapper.resume()
    assert rig.device.read_only
    assert await errno_of(rig.device.write(0, b"x")) == errno.EROFS
    assert not rig.is_marked(TOP)
    assert await rig.content() == CONTENT
    await mapper.load(mapper.active.table.line)
    await mapper.resume()
    assert rig.device.read_only
    await reload(rig, *STACK)
    assert rig.is_marked(TOP)
    await rig.device.write(0, b"x")


async def test_a_device_that_is_configured_read_only_stays_so() -> None:
    rig = await mapped_rig(read_only=True)
    put_new(rig)
    await reload(rig, BASE, MIDDLE, NEW)
    assert await errno_of(rig.device.write(0, b"x")) == errno.EROFS
    assert not rig.is_marked(NEW)


# --- a load that is refused ---------------------------------------------------------------------------------------


REFUSED = [
    ({NEW: image({}, in_use=IN_USE)}, line(BASE, MIDDLE, NEW), errno.EBUSY),
    ({NEW: image({}, version=V1)}, line(BASE, MIDDLE, NEW), errno.EOPNOTSUPP),
    ({NEW: image({}, disk_clusters=5)}, line(BASE, MIDDLE, NEW), errno.EBADSLT),
    ({NEW: image({}, cluster_sectors=128)}, line(BASE, MIDDLE, NEW), errno.EINVAL),
    ({NEW: image({}, version=V1)}, line(NEW, MIDDLE, TOP), errno.EPROTO),
    ({}, line(BASE, MIDDLE, "/nowhere"), errno.ENOENT),
    ({}, line("/nowhere", MIDDLE, TOP), errno.ENOENT),
    ({}, line(TOP, TOP), errno.EBUSY),
    ({}, "0 8 linear /x 0", errno.EINVAL),
]


@pytest.mark.expects_warnings
@pytest.mark.parametrize(("images", "table", "number"), REFUSED, ids=[str(at) for at in range(len(REFUSED))])
async def test_a_load_that_is_refused_changes_nothing(
    rig: Rig, images: dict[str, ImageBuilder], table: str, number: int
) -> None:
    for path, builder in images.items():
        rig.store.put(path, builder.build())
    before = {path: rig.store.bytes_of(path) for path in (*STACK, *images)}
    mapper = mapper_of(rig)
    assert await errno_of(mapper.load(table)) == number
    assert {path: rig.store.bytes_of(path) for path in before} == before
    assert (mapper.inactive_table, rig.queue.generation) == (None, 1)
    assert [writers(rig, TOP), readers(rig, BASE), readers(rig, MIDDLE)] == [1, 1, 1]
    await rig.device.write(3 * CLUSTER, b"w")
    assert await rig.device.aclose()


@pytest.mark.expects_warnings
async def test_a_refused_load_leaves_the_table_that_was_loaded_before(rig: Rig) -> None:
    put_new(rig)
    mapper = mapper_of(rig)
    await mapper.load(line(BASE, MIDDLE, NEW))
    assert await errno_of(mapper.load(line(BASE, "/nowhere", NEW))) == errno.ENOENT
    assert mapper.inactive_table is not None
    assert [writers(rig, NEW), readers(rig, BASE)] == [1, 1]
    await mapper.resume()
    assert await rig.content() == REPLACED


@pytest.mark.expects_warnings
async def test_a_refused_load_gives_locks_back_to_the_table_that_waits(rig: Rig) -> None:
    mapper = mapper_of(rig)
    await mapper.load(line(*STACK))
    assert await errno_of(mapper.load(line("/nowhere", MIDDLE, TOP))) == errno.ENOENT
    await mapper.resume()
    assert [writers(rig, TOP), readers(rig, BASE), readers(rig, MIDDLE)] == [1, 1, 1]


@pytest.mark.expects_warnings
async def test_an_image_that_is_named_twice_is_refused_in_words(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    assert await errno_of(mapper_of(rig).load(line(TOP, TOP))) == errno.EBUSY
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"dm-0: load: {TOP}: the table names this image twice"
    ]


async def test_a_lower_delta_may_bear_a_mark(rig: Rig) -> None:
    rig.store.put("/base2", image({0: b"x"}, in_use=IN_USE).build())
    await reload(rig, "/base2", MIDDLE, TOP)
    assert await rig.device.read(0, 1) == b"x"


# --- another load, and clear --------------------------------------------------------------------------------------


async def test_a_second_load_takes_the_place_of_the_first(rig: Rig) -> None:
    put_new(rig)
    first = rig.store.bytes_of(NEW)
    mapper = mapper_of(rig)
    await mapper.load(line(BASE, MIDDLE, NEW))
    await mapper.load(line(*STACK))
    assert rig.store.bytes_of(NEW) == first
    assert writers(rig, NEW) == 0
    await mapper.load(line(BASE, MIDDLE, NEW))
    await mapper.load(line(BASE, MIDDLE, NEW))
    assert (rig.is_marked(NEW), writers(rig, NEW), writers(rig, TOP)) == (True, 1, 1)
    await mapper.resume()
    assert await rig.content() == REPLACED
    await rig.device.write(0, b"w")
    assert (await content_after(rig, BASE, MIDDLE, NEW))[:1] == b"w"


@pytest.mark.parametrize("paths", [(BASE, MIDDLE, NEW), STACK, (*STACK, NEW)], ids=["other top", "same", "snapshot"])
async def test_clear_gives_back_what_the_load_had_taken(rig: Rig, paths: tuple[str, ...]) -> None:
    put_new(rig)
    before = rig.store.bytes_of(NEW)
    mapper = mapper_of(rig)
    await mapper.load(line(*paths))
    await mapper.clear()
    assert mapper.inactive_table is None
    assert rig.store.bytes_of(NEW) == before
    assert [writers(rig, TOP), readers(rig, BASE), readers(rig, MIDDLE), writers(rig, NEW)] == [1, 1, 1, 0]
    await rig.device.write(3 * CLUSTER, b"w")
    await mapper.resume()
    assert rig.queue.generation == 1
    assert (await content_after(rig, *STACK))[3 * CLUSTER : 3 * CLUSTER + 1] == b"w"


async def test_clear_without_a_table_is_a_success(rig: Rig) -> None:
    await mapper_of(rig).clear()


async def test_a_device_that_ends_closes_the_table_that_waits(rig: Rig) -> None:
    put_new(rig)
    before = rig.store.bytes_of(NEW)
    await mapper_of(rig).load(line(BASE, MIDDLE, NEW))
    assert await content_after(rig, *STACK) == CONTENT
    assert rig.store.bytes_of(NEW) == before


# --- suspend ------------------------------------------------------------------------------------------------------


async def test_suspend_waits_for_what_is_in_flight_and_parks_what_comes(rig: Rig, nursery: trio.Nursery) -> None:
    released = rig.hang("read")
    reads = [Asked(nursery, rig.device.read(2 * CLUSTER, 512))]
    await wait_all_tasks_blocked()
    suspend = Asked(nursery, mapper_of(rig).suspend())
    await wait_all_tasks_blocked()
    reads.append(Asked(nursery, rig.device.read(2 * CLUSTER, 512)))
    await wait_all_tasks_blocked()
    assert (suspend.ended, mapper_of(rig).suspended) == (False, False)
    released.set()
    await wait_all_tasks_blocked()
    assert (suspend.ended, mapper_of(rig).suspended) == (True, True)
    assert [read.ended for read in reads] == [True, False]
    await mapper_of(rig).resume()
    await wait_all_tasks_blocked()
    assert [read.value for read in reads] == [b"t" * 512] * 2


async def test_suspend_flushes_unless_told_not_to(rig: Rig) -> None:
    mapper = mapper_of(rig)
    await rig.device.write(2 * CLUSTER, b"w")
    since = len(rig.faults.log)
    await mapper.suspend(flush=False)
    await mapper.resume()
    assert ("fsync", TOP) not in rig.faults.log[since:]
    await mapper.suspend()
    assert ("fsync", TOP) in rig.faults.log[since:]
    assert not rig.device.unflushed


async def test_suspending_twice_is_suspending_once(rig: Rig) -> None:
    mapper = mapper_of(rig)
    await mapper.suspend()
    await mapper.suspend()
    await mapper.resume()
    assert await rig.content() == CONTENT
    await mapper.resume()


@pytest.mark.expects_warnings
async def test_a_suspend_whose_flush_fails_leaves_the_device_as_it_was(rig: Rig) -> None:
    await rig.device.write(2 * CLUSTER, b"w")
    rig.lose(errno.EIO, "fsync")
    assert await errno_of(mapper_of(rig).suspend()) == errno.EIO
    assert (mapper_of(rig).suspended, rig.queue.suspended, rig.state) == (False, False, State.ON)


async def test_a_suspend_that_requests_do_not_let_happen_leaves_the_device_as_it_was(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    rig = await mapped_rig(bounds=Bounds(quiesce_timeout_s=5))
    released = rig.hang("read")
    read = Asked(nursery, rig.device.read(2 * CLUSTER, 512))
    await wait_all_tasks_blocked()
    started = autojump_clock.current_time()
    with pytest.raises(QuiesceTimeout):
        await mapper_of(rig).suspend()
    assert autojump_clock.current_time() - started == 5
    assert not mapper_of(rig).suspended
    released.set()
    await wait_all_tasks_blocked()
    assert read.value == b"t" * 512
    assert await rig.content() == CONTENT


async def test_noresume_forbids_to_resume_until_it_is_taken_back(rig: Rig) -> None:
    mapper = mapper_of(rig)
    mapper.active.set_noresume(True)
    assert mapper.active.status.endswith(" n")
    await mapper.resume()  # nothing is suspended, so there is nothing to forbid
    await mapper.suspend()
    with pytest.raises(NoResume):
        await mapper.resume()
    assert mapper.suspended
    mapper.active.set_noresume(False)
    await mapper.resume()
    assert await rig.content() == CONTENT


# --- a resume that fails ------------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
@pytest.mark.parametrize("suspended", [False, True])
async def test_a_resume_that_cannot_settle_the_old_top_leaves_it_in_force(rig: Rig, suspended: bool) -> None:
    put_new(rig)
    mapper = mapper_of(rig)
    await mapper.load(line(BASE, MIDDLE, NEW))
    if suspended:
        await mapper.suspend()
    await rig.device.write(2 * CLUSTER, b"w") if not suspended else None
    rig.lose(errno.EIO, "fsync")
    assert await errno_of(mapper.resume()) == errno.EIO
    assert (rig.queue.generation, rig.state, mapper.suspended) == (1, State.ON, suspended)
    with pytest.raises(Busy):
        await mapper.resume()
    await mapper.load(line(BASE, MIDDLE, NEW))
    await mapper.resume()
    assert (rig.queue.generation, rig.state, rig.is_marked(TOP)) == (2, State.OFF, True)


@pytest.mark.expects_warnings
async def test_where_nobody_promised_recovery_a_dead_store_does_not_keep_the_device() -> None:
    rig = await mapped_rig(armed=False)
    put_new(rig)
    await rig.device.write(2 * CLUSTER, b"w")
    rig.lose(errno.ENOTCONN)
    await reload(rig, BASE, MIDDLE, NEW)
    assert await rig.content() == REPLACED
    assert rig.is_marked(TOP)


@pytest.mark.expects_warnings
async def test_what_was_given_up_could_still_reach_an_image_that_both_tables_have(autojump_clock: MockClock) -> None:
    rig = await mapped_rig(armed=False, bounds=Bounds(quiesce_timeout_s=5))
    await rig.device.write(2 * CLUSTER, b"w")
    mapper = mapper_of(rig)
    await mapper.load(line(*STACK))
    released = rig.hang("fsync")
    started = autojump_clock.current_time()
    assert await errno_of(mapper.resume()) == errno.ETIMEDOUT
    assert autojump_clock.current_time() - started >= 5
    released.set()
    assert await errno_of(mapper.resume()) == errno.EBUSY, "nobody knows what the store still does"
    assert rig.queue.generation == 1
    assert (await rig.content())[2 * CLUSTER : 2 * CLUSTER + 1] == b"w"
    put_new(rig)
    await reload(rig, BASE, MIDDLE, NEW)
    assert await rig.content() == REPLACED


@pytest.mark.expects_warnings
async def test_a_resume_that_cannot_read_the_shared_top_again_puts_the_mark_back(rig: Rig) -> None:
    mapper = mapper_of(rig)
    await mapper.load(line(*STACK))
    rule = rig.lose(errno.EACCES, "stat")
    assert await errno_of(mapper.resume()) == errno.EACCES
    assert (rig.is_marked(TOP), rig.queue.generation) == (True, 1)
    rig.faults.remove(rule)
    await rig.device.write(3 * CLUSTER, b"w")
    await mapper.resume()
    assert (await content_after(rig, *STACK))[3 * CLUSTER : 3 * CLUSTER + 1] == b"w"


# --- one at a time ------------------------------------------------------------------------------------------------


async def test_operations_come_one_at_a_time(rig: Rig, nursery: trio.Nursery) -> None:
    put_new(rig)
    mapper = mapper_of(rig)
    released = rig.hang("open", path=NEW)
    load = Asked(nursery, mapper.load(line(BASE, MIDDLE, NEW)))
    await wait_all_tasks_blocked()
    for other in (mapper.clear, mapper.suspend, mapper.resume, rig.device.reopen, lambda: mapper.load(line(*STACK))):
        assert await errno_of(other()) == errno.EBUSY
    assert await rig.content() == CONTENT
    released.set()
    await wait_all_tasks_blocked()
    assert load.errno == 0


async def test_nothing_is_replaced_while_a_table_waits_that_would_not_have_it(rig: Rig) -> None:
    put_new(rig)
    mapper = mapper_of(rig)
    await mapper.load(line(*STACK))
    for replace in (rig.device.reopen, lambda: rig.device.replace_top(NEW)):
        with pytest.raises(PloopError, match="an inactive table is loaded"):
            await replace()
    await mapper.clear()
    await rig.device.replace_top(NEW)
    assert mapper.active.table.line == line(BASE, MIDDLE, NEW)
    await rig.device.reopen()
    assert mapper.active.table.line == line(BASE, MIDDLE, NEW)


@pytest.mark.expects_warnings
async def test_what_a_load_and_a_resume_did_is_among_the_events(rig: Rig) -> None:
    put_new(rig)
    first = rig.registry.events.next_sequence
    mapper = mapper_of(rig)
    await mapper.suspend()
    await mapper.load(line(BASE, MIDDLE, NEW))
    await mapper.resume()
    assert await errno_of(mapper.load(line("/nowhere"))) == errno.ENOENT
    await mapper.load("0 8 error")
    await mapper.clear()
    told = [
        (record.event, record.facts.get("path"), record.facts.get("result"))
        for record in rig.registry.events.since(first)
    ]
    assert told == [
        ("suspended", None, None),
        ("replace_begin", NEW, None),
        ("replace_end", NEW, "ok"),
        ("resumed", None, None),
        ("replace_begin", "/nowhere", None),
        ("replace_end", "/nowhere", "ENOENT"),
        ("replace_begin", "error", None),
        ("replace_end", "error", "ok"),
        ("table_cleared", None, None),
    ]
    assert rig.device.replace_results == {("load", "ok"): 2, ("load", "ENOENT"): 1}


async def test_who_watches_is_told_of_each_change(rig: Rig) -> None:
    put_new(rig)
    mapper = mapper_of(rig)
    version = mapper.changed.version
    operations = (mapper.load(line(BASE, MIDDLE, NEW)), mapper.suspend(), mapper.resume(), mapper.load("0 8 error"))
    for operation in (*operations, mapper.clear()):
        await operation
        assert mapper.changed.version > version
        version = mapper.changed.version


async def test_a_table_on_whose_top_something_was_given_up_is_loaded_again_and_not_resumed(
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    """Its mark may yet be written, and what the storage says to that nobody hears: a flush behind it could be a lie."""
    rig = await mapped_rig()
    mapper = mapper_of(rig)
    await mapper.load(line(*STACK))
    rig.faults.on(TOP, rig.faults.pause("write", count=1)).skip = 1  # the first one clears the old mark
    assert await errno_of(mapper.resume()) == errno.ETIMEDOUT
    rig.faults.rules.clear()
    assert await errno_of(mapper.resume()) == errno.EBUSY
    await rig.device.write(2 * CLUSTER, b"w")
    await mapper.load(line(*STACK))
    await mapper.resume()
    assert await rig.device.aclose()
