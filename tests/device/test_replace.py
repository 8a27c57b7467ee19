"""Replacing the top: what is accepted, what it changes, and what outlives it."""

import errno
import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.flavour import VZ9
from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.engine.inject.filter import FilteredFile
from ploopfs.errors import Busy, ImageNotClosed, QuiesceTimeout
from ploopfs.image.header import HEADER_BYTES, IN_USE, V1
from ploopfs.testing.files import MemoryFile
from tests.device.rig import (
    BASE,
    CLUSTER,
    CONTENT,
    DISK_BYTES,
    MIDDLE,
    NEW,
    REQUESTS,
    STACK,
    TOP,
    Asked,
    Rig,
    cluster_of,
    errno_of,
    image,
    rig_of,
    three_deltas,
)

REPLACED = CONTENT[: 2 * CLUSTER] + cluster_of(b"n") + CONTENT[3 * CLUSTER :]
"""What the disk reads as with `new_top` in the place of the top."""


def new_top() -> bytes:
    return image({2: b"n"}).build()


def is_closed(file: object) -> bool:
    while isinstance(file, FilteredFile):
        file = file._inner
    assert isinstance(file, MemoryFile)
    return file.closed


# --- a healthy device ---------------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
async def test_the_new_top_is_served_and_marked_and_the_old_one_is_settled(rig: Rig) -> None:
    rig.store.put(NEW, new_top())
    await rig.device.write(3 * CLUSTER, b"w" * CLUSTER)
    await rig.device.replace_top(NEW)
    assert await rig.content() == REPLACED
    assert (rig.is_marked(NEW), rig.is_marked(TOP)) == (True, False)
    assert (rig.queue.generation, rig.state, rig.device.last_error) == (2, State.OFF, "")
    settled = await rig_of({path: rig.store.bytes_of(path) for path in STACK})
    assert await settled.content() == CONTENT[: 3 * CLUSTER] + cluster_of(b"w") + CONTENT[4 * CLUSTER :]


async def test_what_is_written_after_a_replacement_is_in_the_new_image_alone(rig: Rig) -> None:
    rig.store.put(NEW, new_top())
    await rig.device.replace_top(NEW)
    old = rig.store.bytes_of(TOP)
    await rig.device.write(0, b"after")
    await rig.device.flush()
    assert await rig.device.aclose()
    assert rig.store.bytes_of(TOP) == old
    assert not rig.is_marked(NEW)
    again = await rig_of({path: rig.store.bytes_of(path) for path in (BASE, MIDDLE, NEW)})
    assert (await again.content())[:5] == b"after"


async def test_lower_deltas_stay_open_and_byte_identical_and_only_the_top_is_closed(rig: Rig) -> None:
    rig.store.put(NEW, new_top())
    lower = [rig.store.bytes_of(path) for path in (BASE, MIDDLE)]
    before = rig.device.stack
    await rig.device.replace_top(NEW)
    after = rig.device.stack
    assert after.deltas[:-1] == before.deltas[:-1]
    assert after.lower is before.lower
    assert [is_closed(delta.file) for delta in before.deltas] == [False, False, True]
    assert not is_closed(after.top.file)
    assert [rig.store.bytes_of(path) for path in (BASE, MIDDLE)] == lower
    assert rig.changes_of(BASE) == rig.changes_of(MIDDLE) == []


async def test_handles_statistics_and_counters_outlive_a_replacement(rig: Rig) -> None:
    rig.store.put(NEW, new_top())
    rig.device.opened()
    await rig.device.read(0, 512)
    standby, stats, counters = rig.queue.standby, rig.device.stats, rig.device.counters
    bios, diskseq = counters.bio_in, rig.device.diskseq
    await rig.device.replace_top(NEW)
    await rig.device.read(0, 512)
    assert (rig.device.open_count, rig.device.diskseq, counters.bio_in) == (1, diskseq, bios + 1)
    assert rig.device.stats is stats
    assert rig.queue.standby is standby
    assert rig.device.counters is counters
    assert stats.by_op[Op.READ].ios == 2


async def test_a_bigger_image_is_accepted_and_the_disk_keeps_its_size(rig: Rig) -> None:
    rig.store.put(NEW, image({2: b"n", 7: b"z"}, disk_clusters=8).build())
    await rig.device.replace_top(NEW)
    assert rig.device.size_bytes == DISK_BYTES
    assert await rig.device.read(DISK_BYTES - 512, 4096) == bytes(512)
    await rig.device.write(5 * CLUSTER, b"e" * CLUSTER)
    assert await rig.content() == REPLACED[: 5 * CLUSTER] + cluster_of(b"e")
    assert await errno_of(rig.device.write(DISK_BYTES, b"x")) == errno.ENOSPC
    assert await rig.device.aclose()
    bigger = await rig_of({NEW: rig.store.bytes_of(NEW)})
    assert (await bigger.device.read(7 * CLUSTER, CLUSTER)) == cluster_of(b"z")


@pytest.mark.expects_warnings
async def test_a_bigger_image_can_give_way_to_one_of_the_disks_own_size(rig: Rig) -> None:
    rig.store.put(NEW, image({}, disk_clusters=8).build())
    await rig.device.replace_top(NEW)
    await rig.device.replace_top(TOP)
    assert await rig.content() == CONTENT
    assert rig.queue.generation == 3


async def test_a_longer_raw_image_may_replace_a_raw_one() -> None:
    rig = await rig_of({TOP: b"o" * 4096}, stack=[f"raw@{TOP}"])
    rig.store.put(NEW, b"n" * 8192)
    await rig.device.replace_top(NEW)
    assert await rig.device.read(0, 8192) == b"n" * 4096
    await rig.device.write(4095, b"w")
    assert rig.store.bytes_of(NEW) == b"n" * 4095 + b"w" + b"n" * 4096


async def test_version_1_images_replace_each_other() -> None:
    rig = await rig_of({TOP: image({0: b"o"}, version=V1).build()})
    rig.store.put(NEW, image({0: b"n"}, version=V1).build())
    await rig.device.replace_top(NEW)
    await rig.device.write(CLUSTER, b"w")
    assert await rig.device.aclose()
    again = await rig_of({NEW: rig.store.bytes_of(NEW)})
    assert await again.device.read(CLUSTER - 1, 2) == b"nw"


async def test_a_read_only_device_changes_neither_image() -> None:
    rig = await rig_of(three_deltas(), read_only=True)
    rig.store.put(NEW, new_top())
    await rig.device.replace_top(NEW)
    assert await rig.content() == REPLACED
    assert await rig.device.aclose()
    assert (rig.store.bytes_of(TOP), rig.store.bytes_of(NEW)) == (three_deltas()[TOP], new_top())


@pytest.mark.expects_warnings
async def test_clusters_that_the_new_image_lacks_are_warned_about_with_their_number(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.store.put(NEW, image({}).build())
    await rig.device.write(3 * CLUSTER, b"w")
    await rig.device.replace_top(NEW)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"ploop0: 2 map entries of the old top are not in {NEW}"
    ]


async def test_a_healthy_top_may_be_replaced_by_itself(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"w")
    await rig.device.replace_top(TOP)
    assert (await rig.content())[: 3 * CLUSTER + 1] == CONTENT[: 3 * CLUSTER] + b"w"
    assert rig.is_marked(TOP)
    assert len(rig.store.images[TOP].writers) == 1


async def test_an_aborted_device_is_replaced_without_a_write_to_the_old_image_and_serves_again(rig: Rig) -> None:
    rig.store.put(NEW, new_top())
    rig.queue.set_aborted(True)
    since = len(rig.faults.log)
    await rig.device.replace_top(NEW)
    assert rig.changes_of(TOP, since) == []
    assert rig.is_marked(TOP)
    assert not rig.queue.aborted
    await rig.device.write(0, b"w")


# --- a device in standby ------------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
async def test_in_standby_the_old_image_is_never_written_again(rig: Rig) -> None:
    await rig.device.write(2 * CLUSTER, b"w")
    rig.copy(TOP, NEW)
    rig.faults.remove(await rig.enter_standby(errno.EBUSY))
    old, since = rig.store.bytes_of(TOP), len(rig.faults.log)
    await rig.device.replace_top(NEW)
    await rig.device.write(0, b"w" * DISK_BYTES)
    await rig.device.flush()
    assert await rig.device.aclose()
    assert rig.changes_of(TOP, since) == []
    assert rig.store.bytes_of(TOP) == old
    assert rig.is_marked(TOP)


@pytest.mark.expects_warnings
async def test_a_replacement_leaves_standby_and_tells_who_watches(rig: Rig) -> None:
    rig.store.put(NEW, new_top())
    await rig.enter_standby(errno.ENOTCONN)
    states: list[State] = []
    rig.queue.standby.changed.subscribe(lambda: states.append(rig.state))
    await rig.device.replace_top(NEW)
    assert states == [State.OFF]
    assert rig.queue.standby.reason is None
    assert await rig.content() == REPLACED


@pytest.mark.expects_warnings
async def test_a_copy_of_our_live_top_is_accepted_in_standby_and_refused_while_healthy(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"w")
    rig.copy(TOP, NEW)
    with pytest.raises(ImageNotClosed):
        await rig.device.replace_top(NEW)
    assert rig.is_marked(TOP)
    await rig.enter_standby(errno.ENOTCONN)
    await rig.device.replace_top(NEW)
    assert (await rig.content())[: 3 * CLUSTER + 1] == CONTENT[: 3 * CLUSTER] + b"w"


@pytest.mark.expects_warnings
async def test_a_copy_that_lacks_a_flushed_cluster_is_none_of_ours(rig: Rig) -> None:
    rig.copy(TOP, NEW)
    await rig.device.write(3 * CLUSTER, b"w")
    await rig.device.flush()
    await rig.enter_standby(errno.ENOTCONN)
    assert await errno_of(rig.device.replace_top(NEW)) == errno.EBUSY
    assert rig.state is State.ON


@pytest.mark.expects_warnings
async def test_what_a_copy_lacks_and_no_flush_has_confirmed_is_written_to_it_again(rig: Rig) -> None:
    rig.copy(TOP, NEW)
    await rig.device.write(3 * CLUSTER, b"w")
    assert rig.device.unflushed.data_bytes == 1
    await rig.enter_standby(errno.ENOTCONN)
    await rig.device.replace_top(NEW)
    assert (await rig.content())[: 3 * CLUSTER + 1] == CONTENT[: 3 * CLUSTER] + b"w"
    assert rig.device.unflushed.data_bytes == 0


@pytest.mark.expects_warnings
async def test_a_marked_image_whose_header_differs_from_ours_in_one_byte_is_none_of_ours(rig: Rig) -> None:
    rig.copy(TOP, NEW)
    heads = 20
    rig.store.images[NEW].data[heads] ^= 1
    await rig.enter_standby(errno.ENOTCONN)
    assert await errno_of(rig.device.replace_top(NEW)) == errno.EBUSY
    assert rig.state is State.ON


@pytest.mark.expects_warnings
@pytest.mark.parametrize("lost", [False, True], ids=["healthy", "standby"])
async def test_an_image_that_somebody_else_marked_is_refused(rig: Rig, lost: bool) -> None:
    rig.store.put(NEW, image({1: b"x", 2: b"y"}, in_use=IN_USE).build())
    if lost:
        await rig.enter_standby(errno.ENOTCONN)
    assert await errno_of(rig.device.replace_top(NEW)) == errno.EBUSY
    assert rig.state is (State.ON if lost else State.OFF)


@pytest.mark.expects_warnings
async def test_after_an_outage_the_lower_deltas_are_opened_again(rig: Rig) -> None:
    rig.store.put(NEW, new_top())
    before = rig.device.stack
    await rig.enter_standby(errno.ENOTCONN)
    await rig.device.replace_top(NEW)
    assert all(is_closed(delta.file) for delta in before.deltas)
    assert not any(is_closed(delta.file) for delta in rig.device.stack.deltas)
    assert [len(rig.store.images[path].readers) for path in (BASE, MIDDLE)] == [1, 1]
    assert rig.device.stack.lower is before.lower
    assert await rig.content() == REPLACED


async def test_with_a_fuse_out_a_lower_delta_whose_store_was_gone_is_opened_again_too() -> None:
    """Nothing on the queue tells of it: the request failed, and that was all."""
    rig = await rig_of(three_deltas(), name="dm-0", flavour=VZ9, armed=False)
    before = rig.device.stack.deltas
    await rig.device.reopen()
    assert rig.device.stack.deltas[:-1] == before[:-1]
    rig.lose(errno.ENOTCONN, "read", path=BASE, count=1)
    assert await errno_of(rig.device.read(0, 512)) == errno.EIO
    await rig.device.reopen()
    assert not set(rig.device.stack.deltas) & set(before)
    assert await rig.content() == CONTENT


@pytest.mark.expects_warnings
@pytest.mark.parametrize("now", ["gone", "another image", "one of another size", "one with another header"])
async def test_a_lower_delta_that_cannot_be_opened_again_stays_and_is_warned_about(
    rig: Rig, now: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig.store.put(NEW, new_top())
    old = rig.device.stack.deltas[1]
    before = rig.store.bytes_of(MIDDLE)
    match now:
        case "gone":
            rig.lose(errno.ENOENT, "open", path=MIDDLE)
        case "another image":
            rig.store.put(MIDDLE, image({1: b"x"}, cluster_sectors=128).build())
        case "one of another size":
            rig.store.put(MIDDLE, before + bytes(CLUSTER))
        case _:
            rig.store.put(MIDDLE, before[: HEADER_BYTES - 1] + b"x" + before[HEADER_BYTES:])
    await rig.enter_standby(errno.ENOTCONN)
    await rig.device.replace_top(NEW)
    assert rig.device.stack.deltas[1] is old
    assert any("level 1 is not opened again" in record.getMessage() for record in caplog.records)
    assert await rig.content() == REPLACED


@pytest.mark.expects_warnings
async def test_what_the_old_top_has_on_stable_storage_is_not_written_to_what_took_its_place(rig: Rig) -> None:
    rig.store.put(NEW, new_top())
    await rig.device.write(3 * CLUSTER, b"of the old one")
    await rig.device.replace_top(NEW)
    assert len(rig.device.unflushed) == 0
    rule = rig.lose(errno.ENOTCONN, path=NEW)
    assert await errno_of(rig.device.read(2 * CLUSTER, 1)) == errno.ENOTCONN
    rig.faults.remove(rule)
    await rig.device.reopen()
    assert await rig.content() == REPLACED


# --- reopen -------------------------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
@pytest.mark.parametrize("number", [errno.EBUSY, errno.ENOTCONN, errno.EIO], ids=errno.errorcode.get)
async def test_reopen_takes_the_same_image_again_though_the_lock_is_ours(rig: Rig, number: int) -> None:
    await rig.device.write(3 * CLUSTER, b"w" * CLUSTER)
    rig.faults.remove(await rig.enter_standby(number))
    await rig.device.reopen()
    assert rig.state is State.OFF
    assert await rig.content() == CONTENT[: 3 * CLUSTER] + cluster_of(b"w") + CONTENT[4 * CLUSTER :]
    assert len(rig.store.images[TOP].writers) == 1
    assert rig.is_marked(TOP)
    assert await rig.device.aclose()
    assert not rig.is_marked(TOP)


@pytest.mark.expects_warnings
async def test_reopen_takes_the_same_path_on_another_mount(rig: Rig) -> None:
    """After a lost mount the same bytes are another file: other inode, and nobody holds its lock."""
    await rig.device.write(3 * CLUSTER, b"w")
    await rig.enter_standby(errno.ENOTCONN)
    rig.faults.rules.clear()
    dead = rig.store.images[TOP]
    rig.copy(TOP, TOP)
    await rig.device.reopen()
    assert rig.device.stack.top.inode != dead.inode
    assert await rig.device.read(3 * CLUSTER, 1) == b"w"


async def test_reopen_of_a_healthy_device_settles_and_marks_again(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"w")
    await rig.device.reopen()
    assert (rig.queue.generation, rig.is_marked(TOP)) == (2, True)
    assert await rig.device.read(3 * CLUSTER, 1) == b"w"


@pytest.mark.expects_warnings
async def test_a_failed_fsync_stays_failed_until_the_image_is_opened_again(rig: Rig) -> None:
    rig.lose(errno.EIO, "fsync", count=1)
    assert await errno_of(rig.device.flush()) == errno.EIO
    rig.queue.standby.recovered()
    assert await errno_of(rig.device.flush()) == errno.EIO
    await rig.device.reopen()
    await rig.device.flush()


@pytest.mark.expects_warnings
async def test_a_full_storage_that_failed_an_fsync_is_recovered_by_reopen(rig: Rig) -> None:
    rig.lose(errno.ENOSPC, "fsync", count=1)
    assert await errno_of(rig.device.flush()) == errno.EIO
    await rig.device.reopen()
    await rig.device.flush()
    assert not rig.queue.aborted


@pytest.mark.expects_warnings
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ETIMEDOUT])
async def test_a_failed_fsync_that_nothing_else_remembers_does_not_keep_the_image_from_being_opened_again(
    rig: Rig, number: int
) -> None:
    """Neither in standby nor, like a mapped device, ever aborted: the old top can still not be settled."""
    await rig.device.write(3 * CLUSTER, b"w" * CLUSTER)
    rig.lose(number, "fsync", count=1)
    assert await errno_of(rig.device.flush()) == errno.EIO
    rig.queue.set_aborted(False)
    await rig.device.reopen()
    await rig.device.flush()
    assert await rig.device.read(3 * CLUSTER, 1) == b"w"
    assert await rig.device.aclose()
    assert not rig.is_marked(TOP)


@pytest.mark.expects_warnings
async def test_a_failed_fsync_does_not_keep_a_mapped_device_from_opening_its_image_again() -> None:
    rig = await rig_of(three_deltas(), stack=STACK, armed=False, name="dm-0", flavour=VZ9)
    await rig.device.write(3 * CLUSTER, b"w")
    rig.lose(errno.EIO, "fsync", count=1)
    assert await errno_of(rig.device.flush()) == errno.EIO
    assert not rig.queue.aborted
    await rig.device.reopen()
    await rig.device.flush()
    assert await rig.device.read(3 * CLUSTER, 1) == b"w"


@pytest.mark.expects_warnings
@pytest.mark.parametrize("operation", ["write", "fsync"])
@pytest.mark.parametrize("after", [False, True], ids=["before it happened", "after it happened"])
@pytest.mark.parametrize("at", range(3))
async def test_a_storage_lost_while_the_old_top_is_settled_is_recovered_by_reopen(
    rig: Rig, operation: str, after: bool, at: int
) -> None:
    await rig.device.write(3 * CLUSTER, b"w")
    rule = rig.faults.on(TOP, rig.faults.fail(errno.ENOTCONN, operation, skip=at, after=after))
    if await errno_of(rig.device.reopen()):
        assert rig.state is State.ON
        rig.faults.remove(rule)
        await rig.device.reopen()
    rig.faults.rules.clear()
    assert await rig.device.read(3 * CLUSTER, 1) == b"w"
    assert rig.is_marked(TOP)
    assert await rig.device.aclose()


# --- requests meanwhile -------------------------------------------------------------------------------------------


async def test_requests_parked_during_a_replacement_are_served_by_the_new_top(rig: Rig) -> None:
    rig.store.put(NEW, new_top())
    opened = rig.hang("open", path=NEW)
    async with trio.open_nursery() as nursery:
        replaced = Asked(nursery, rig.device.replace_top(NEW))
        await wait_all_tasks_blocked()
        reads = [Asked(nursery, rig.device.read(2 * CLUSTER, 1)) for _ in range(3)]
        write = Asked(nursery, rig.device.write(2 * CLUSTER + 1, b"w"))
        await wait_all_tasks_blocked()
        assert (rig.queue.parked, replaced.ended) == (4, False)
        opened.set()
    assert [read.value for read in reads] == [b"n"] * 3
    assert write.errno == 0
    assert await rig.device.read(2 * CLUSTER, 3) == b"nwn"


async def test_a_read_under_way_cannot_mix_two_images(rig: Rig) -> None:
    rig.store.put(NEW, new_top())
    healed = rig.hang("read", count=1)
    async with trio.open_nursery() as nursery:
        read = Asked(nursery, rig.device.read(0, DISK_BYTES))
        await wait_all_tasks_blocked()
        replaced = Asked(nursery, rig.device.replace_top(NEW))
        await wait_all_tasks_blocked()
        assert (replaced.ended, rig.queue.generation) == (False, 1)
        healed.set()
    assert read.value == CONTENT
    assert await rig.content() == REPLACED


@pytest.mark.expects_warnings
async def test_a_write_under_way_is_in_the_image_that_it_was_planned_for(rig: Rig) -> None:
    rig.store.put(NEW, new_top())
    healed = rig.hang("write", count=1)
    async with trio.open_nursery() as nursery:
        write = Asked(nursery, rig.device.write(4 * CLUSTER, b"w"))
        await wait_all_tasks_blocked()
        replaced = Asked(nursery, rig.device.replace_top(NEW))
        await wait_all_tasks_blocked()
        assert not replaced.ended
        healed.set()
    assert (write.errno, replaced.errno) == (0, 0)
    assert await rig.content() == REPLACED
    settled = await rig_of({path: rig.store.bytes_of(path) for path in STACK})
    assert await settled.device.read(4 * CLUSTER, 1) == b"w"


@pytest.mark.expects_warnings
async def test_while_a_request_hangs_a_replacement_gives_up_and_requests_go_on(autojump_clock: MockClock) -> None:
    rig = await rig_of(three_deltas(), bounds=Bounds(quiesce_timeout_s=5))
    rig.store.put(NEW, new_top())
    healed = rig.hang("read", count=1)
    started_s = autojump_clock.current_time()
    async with trio.open_nursery() as nursery:
        hung = Asked(nursery, REQUESTS[Op.READ](rig.device))
        await wait_all_tasks_blocked()
        with trio.fail_after(60), pytest.raises(QuiesceTimeout) as timeout:
            await rig.device.replace_top(NEW)
        assert timeout.value.errno == errno.EBUSY
        assert autojump_clock.current_time() - started_s == 5
        assert "in flight" in rig.device.last_error
        assert await rig.content() == CONTENT
        assert (rig.queue.generation, rig.is_marked(NEW), rig.is_marked(TOP)) == (1, False, True)
        healed.set()
    assert hung.errno == 0
    await rig.device.replace_top(NEW)
    assert rig.device.last_error == ""


@pytest.mark.expects_warnings
async def test_of_two_replacements_at_once_the_second_is_told_busy(rig: Rig) -> None:
    rig.store.put(NEW, new_top())
    opened = rig.hang("open", path=NEW)
    async with trio.open_nursery() as nursery:
        first = Asked(nursery, rig.device.replace_top(NEW))
        await wait_all_tasks_blocked()
        with pytest.raises(Busy) as refusal:
            await rig.device.reopen()
        assert refusal.value.errno == errno.EBUSY
        opened.set()
    assert first.errno == 0
    assert rig.queue.generation == 2
    assert await rig.content() == REPLACED
