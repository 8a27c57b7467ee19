"""What was acknowledged and not flushed: kept, bounded, written again, and never written over what came later."""

import errno
import sys
from collections.abc import Awaitable, Callable
from itertools import combinations
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device import unflushed as unflushed_module
from ploopfs.device.bounds import Bounds
from ploopfs.device.standby import State
from ploopfs.device.unflushed import CHANGE_BYTES, WORTH_WRITEBACK_BYTES, Change, Unflushed, _last_changes
from ploopfs.device.waiting import OnStandby
from ploopfs.engine.file import Buffer
from ploopfs.engine.inject.rule import Rule as Delay
from tests.device.rig import (
    BASE,
    CLUSTER,
    DISK_BYTES,
    NEW,
    TOP,
    Asked,
    Rig,
    errno_of,
    image,
    rig_of,
    three_deltas,
)

pytestmark = pytest.mark.expects_warnings

ALONE = {TOP: image({0: b"a", 1: b"b", 2: b"c"}).build()}


def kept(rig: Rig) -> list[tuple[int, int, Buffer | None]]:
    return [(change.offset, change.length, change.data) for change in rig.device.unflushed]


async def lose_and_reopen(rig: Rig) -> None:
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    await rig.device.reopen()
    assert rig.state is State.OFF


# --- what is kept -------------------------------------------------------------------------------------------------


async def test_an_acknowledged_write_is_kept_until_a_flush_has_succeeded(rig: Rig) -> None:
    await rig.device.write(10, b"one")
    await rig.device.write(20, b"three")
    assert kept(rig) == [(10, 3, b"one"), (20, 5, b"three")]
    assert rig.device.unflushed.data_bytes == 8
    await rig.device.flush()
    assert kept(rig) == []
    assert rig.device.unflushed.data_bytes == 0


def test_memory_for_all_of_the_bound_is_expected_once_when_a_part_of_it_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 10 + CHANGE_BYTES
    unflushed, expected, due = Unflushed(256 * size), list[tuple[int, int]](), list[int]()
    monkeypatch.setattr(unflushed_module, "expect", lambda length: expected.append((len(unflushed), length)))
    unflushed.due.subscribe(lambda: due.append(len(unflushed)))
    for _ in range(3):
        unflushed.wrote(0, bytes(10))
    unflushed.forget()
    unflushed.tell_again()
    assert expected == []
    for _ in range(200):
        unflushed.wrote(0, bytes(10))
    assert (expected, due) == ([(4, 256 * size)], [128])
    unflushed.forget()
    for _ in range(200):
        unflushed.wrote(0, bytes(10))
    assert (len(expected), due) == (1, [128, 128])


def test_memory_is_expected_though_the_first_of_it_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    unflushed, told = Unflushed(100), list[str]()
    monkeypatch.setattr(unflushed_module, "expect", lambda length: told.append(f"expect {length}"))
    unflushed.due.subscribe(lambda: told.append("due"))
    unflushed.wrote(0, bytes(10))
    unflushed.wrote(0, bytes(10))
    assert told == ["expect 100", "due"]


async def test_with_each_eighth_of_the_bound_in_large_writes_the_storage_is_asked_to_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = WORTH_WRITEBACK_BYTES
    rig = await rig_of(three_deltas(), bounds=Bounds(unflushed_bytes=16 * large))
    asked: list[int] = []
    top, unflushed = rig.device.stack.top.file, rig.device.unflushed
    monkeypatch.setattr(top, "start_writeback", lambda: asked.append(unflushed.data_bytes))
    for _ in range(7):
        await rig.device.write(2 * CLUSTER, bytes(large))
    assert asked == [2 * large, 4 * large, 6 * large]
    rig.registry.key.enabled = False
    for _ in range(4):
        await rig.device.write(2 * CLUSTER, bytes(large))
    assert len(asked) == 3


async def test_of_small_writes_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = await rig_of(three_deltas(), bounds=Bounds(unflushed_bytes=16 * WORTH_WRITEBACK_BYTES))
    monkeypatch.setattr(rig.device.stack.top.file, "start_writeback", lambda: pytest.fail("it was asked"))
    for _ in range(15):
        await rig.device.write(2 * CLUSTER, bytes(WORTH_WRITEBACK_BYTES - 1))
    assert rig.device.unflushed.data_bytes == 15 * (WORTH_WRITEBACK_BYTES - 1)


async def test_a_write_that_failed_is_not_kept(rig: Rig) -> None:
    rig.lose(errno.ENOSPC, "write")
    assert await errno_of(rig.device.write(2 * CLUSTER, b"x")) == errno.ENOSPC
    assert kept(rig) == []


async def test_of_a_discard_the_clusters_that_became_zero_are_kept_and_no_others(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"x")
    await rig.device.flush()
    await rig.device.discard(0, DISK_BYTES)
    assert kept(rig) == [(2 * CLUSTER, 2 * CLUSTER, None)]
    await rig.device.discard(2 * CLUSTER + 1, CLUSTER)
    assert len(kept(rig)) == 1


async def test_what_is_forgotten_while_it_is_written_again_keeps_nobody_in_standby(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"x")
    await rig.device.flush()
    for slot in (2, 3):
        await rig.device.discard(slot * CLUSTER, CLUSTER)
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    healed = rig.hang("punch hole", count=1)
    async with trio.open_nursery() as nursery:
        asked = Asked(nursery, rig.device.reopen())
        await wait_all_tasks_blocked()
        assert not asked.ended
        rig.device.unflushed.forget()
        healed.set()
    assert (asked.errno, rig.state, kept(rig)) == (0, State.OFF, [])


async def test_a_flush_that_failed_confirms_nothing(rig: Rig) -> None:
    await rig.device.write(0, b"x")
    rule = rig.lose(errno.ENOSPC, "fsync")
    assert await errno_of(rig.device.flush()) == errno.EIO
    rig.faults.remove(rule)
    assert len(kept(rig)) == 1


async def test_a_flush_confirms_only_what_was_acknowledged_before_it_started(rig: Rig) -> None:
    await rig.device.write(2 * CLUSTER, b"before")
    healed = rig.hang("fsync")
    async with trio.open_nursery() as nursery:
        Asked(nursery, rig.device.flush())
        await wait_all_tasks_blocked()
        await rig.device.write(2 * CLUSTER, b"meanwhile")
        healed.set()
    assert kept(rig) == [(2 * CLUSTER, 9, b"meanwhile")]


async def test_fua_confirms_itself_and_all_that_came_before(rig: Rig) -> None:
    await rig.device.write(0, b"before")
    await rig.device.write(2 * CLUSTER, b"fua", fua=True)
    assert kept(rig) == []


async def test_without_pass_fuas_a_write_is_kept_as_any_other(rig: Rig) -> None:
    rig.device.tune.pass_fuas = 0
    await rig.device.write(2 * CLUSTER, b"fua", fua=True)
    assert kept(rig) == [(2 * CLUSTER, 3, b"fua")]


async def test_a_fua_whose_fsync_fails_confirms_nothing_and_is_kept_as_what_may_have_been_done(rig: Rig) -> None:
    await rig.device.write(2 * CLUSTER, b"before")
    rule = rig.lose(errno.ENOSPC, "fsync")
    assert await errno_of(rig.device.write(2 * CLUSTER, b"fua", fua=True)) == errno.EIO
    rig.faults.remove(rule)
    assert kept(rig) == [(2 * CLUSTER, 6, b"before"), (2 * CLUSTER, 3, b"fua")]


async def test_a_copy_that_lacks_the_cluster_of_a_fua_that_failed_is_still_ours(rig: Rig) -> None:
    rig.copy(TOP, NEW)
    rig.lose(errno.EIO, "fsync", skip=1)
    # The first fsync is the barrier between data and map, the second one is the flush.
    assert await errno_of(rig.device.write(4 * CLUSTER, b"fua", fua=True)) == errno.EIO
    assert rig.state is State.ON
    await rig.device.replace(NEW)
    assert rig.queue.standby.state is State.OFF


async def test_a_flush_that_is_not_passed_on_confirms_nothing(rig: Rig) -> None:
    rig.device.tune.pass_flushes = 0
    await rig.device.write(2 * CLUSTER, b"x")
    await rig.device.flush()
    assert len(kept(rig)) == 1
    assert rig.device.counters.bio_flush_skip == 1


@pytest.mark.parametrize("change", [lambda d: d.write(2 * CLUSTER, b"x"), lambda d: d.discard(2 * CLUSTER, CLUSTER)])
@pytest.mark.parametrize("fuse", ["the key", "STANDBY_EN"])
async def test_with_a_fuse_out_nothing_is_kept(
    rig: Rig, fuse: str, change: Callable[[object], Awaitable[object]]
) -> None:
    if fuse == "the key":
        rig.registry.key.enabled = False
    else:
        rig.queue.standby.detach()
    await change(rig.device)
    assert kept(rig) == []


async def test_a_target_that_lets_go_of_the_device_drops_what_is_kept(rig: Rig) -> None:
    await rig.device.write(0, b"x")
    rig.queue.standby.detach()
    assert kept(rig) == []
    assert rig.device.unflushed.data_bytes == 0


async def test_what_is_kept_are_the_very_bytes_that_were_written_and_no_copies(rig: Rig) -> None:
    data = bytes(3 * CLUSTER)
    references = sys.getrefcount(data)
    await rig.device.write(2 * CLUSTER, data)
    [change] = rig.device.unflushed
    assert change.data is data
    del change
    assert sys.getrefcount(data) == references + 1


async def test_by_default_64_mib_are_kept_per_device(rig: Rig) -> None:
    assert rig.device.unflushed.limit_bytes == Bounds().unflushed_bytes == 64 << 20


async def test_a_device_without_standby_en_calls_nothing_to_keep_what_it_writes_and_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = await rig_of(three_deltas(), armed=False)
    for method in ("wrote", "discarded", "slots", "replay"):
        monkeypatch.setattr(Unflushed, method, None)
    data = bytes(CLUSTER)
    references = sys.getrefcount(data)
    for slot in range(6):
        await rig.device.write(slot * CLUSTER, data)
    await rig.device.discard(2 * CLUSTER, CLUSTER)
    await rig.device.flush()
    assert (kept(rig), sys.getrefcount(data)) == ([], references)


async def test_what_was_written_before_standby_en_came_in_is_not_kept_and_what_comes_then_is() -> None:
    """Nobody had promised to recover the device then. A flush of the first write would confirm both."""
    rig = await rig_of(three_deltas(), armed=False)
    await rig.device.write(2 * CLUSTER, b"before")
    rig.scst.load()
    rig.scst.attach(rig.device)
    await rig.device.write(2 * CLUSTER, b"then")
    assert kept(rig) == [(2 * CLUSTER, 4, b"then")]
    assert rig.device.counters.bio_flush_out == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.EBUSY])
async def test_on_a_device_without_standby_en_a_failed_flush_stays_failed_until_reopen(number: int) -> None:
    rig = await rig_of(three_deltas(), armed=False)
    await rig.device.write(2 * CLUSTER, b"x")
    rule = rig.lose(number, "fsync", count=1)
    assert await errno_of(rig.device.flush()) == errno.EIO
    assert rule.spent, "the storage answers well from now on"
    rig.queue.set_aborted(False)
    for _ in range(3):
        assert await errno_of(rig.device.flush()) == errno.EIO
        rig.queue.set_aborted(False)
    await rig.device.reopen()
    await rig.device.write(2 * CLUSTER, b"x")
    await rig.device.flush()


LOSSES = [
    (errno.ENOTCONN, "read"), (errno.EBUSY, "read"), (errno.EIO, "write"), (errno.ENOTCONN, "write"),
    (errno.EBUSY, "write"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "operation"), LOSSES)
async def test_on_a_device_without_standby_en_a_store_that_was_gone_is_not_believed_by_a_flush_until_reopen(
    number: int, operation: str
) -> None:
    """It may be back without what it had acknowledged, and its next fsync says nothing of that."""
    rig = await rig_of(three_deltas(), armed=False)
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    rig.lose(number, operation, count=1)
    request = rig.device.read(2 * CLUSTER, 5) if operation == "read" else rig.device.write(2 * CLUSTER, b"other")
    assert await errno_of(request) == number
    rig.queue.set_aborted(False)
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    for _ in range(2):
        assert await errno_of(rig.device.flush()) == errno.EIO
        rig.queue.set_aborted(False)
    await rig.device.reopen()
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    await rig.device.flush()


@pytest.mark.parametrize(("number", "operation"), [*LOSSES, (errno.EIO, "read")])
async def test_a_store_that_was_gone_when_nothing_was_unconfirmed_serves_on(number: int, operation: str) -> None:
    rig = await rig_of(three_deltas(), armed=False)
    await rig.device.write(2 * CLUSTER, b"confirmed")
    await rig.device.flush()
    rig.lose(number, operation, count=1)
    request = rig.device.read(2 * CLUSTER, 5) if operation == "read" else rig.device.write(2 * CLUSTER, b"other")
    assert await errno_of(request) == number
    rig.queue.set_aborted(False)
    await rig.device.write(2 * CLUSTER, b"then")
    await rig.device.flush()


async def test_a_bad_sector_of_a_device_without_standby_en_says_nothing_of_what_was_written() -> None:
    rig = await rig_of(three_deltas(), armed=False)
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    rig.lose(errno.EIO, "read", count=1)
    assert await errno_of(rig.device.read(2 * CLUSTER, 5)) == errno.EIO
    rig.queue.set_aborted(False)
    await rig.device.flush()


async def test_a_lower_delta_that_was_gone_says_nothing_of_what_was_written() -> None:
    rig = await rig_of(three_deltas(), armed=False)
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    rig.lose(errno.ENOTCONN, "read", count=1, path=BASE)
    assert await errno_of(rig.device.read(0, 5)) == errno.ENOTCONN
    rig.queue.set_aborted(False)
    await rig.device.flush()


# --- bounded ------------------------------------------------------------------------------------------------------


async def bounded(limit_bytes: int) -> Rig:
    return await rig_of(three_deltas(), bounds=Bounds(unflushed_bytes=limit_bytes))


async def test_at_the_bound_the_write_that_reaches_it_is_flushed() -> None:
    rig = await bounded(3 * (100 + CHANGE_BYTES))
    for count in (1, 2):
        await rig.device.write(2 * CLUSTER, bytes(100))
        assert (len(kept(rig)), rig.device.counters.bio_flush_out) == (count, 0)
    await rig.device.write(2 * CLUSTER, bytes(100))
    assert (len(kept(rig)), rig.device.counters.bio_flush_out) == (0, 1)


async def test_discards_count_though_they_hold_no_data() -> None:
    rig = await bounded(2 * CHANGE_BYTES)
    await rig.device.discard(2 * CLUSTER, CLUSTER)
    assert len(kept(rig)) == 1
    await rig.device.discard(2 * CLUSTER, CLUSTER)
    assert (len(kept(rig)), rig.device.counters.bio_flush_out) == (0, 1)


async def test_at_the_bound_the_flush_is_passed_on_even_where_flushes_are_not() -> None:
    rig = await bounded(CHANGE_BYTES)
    rig.device.tune.pass_flushes = 0
    await rig.device.write(2 * CLUSTER, b"x")
    assert (len(kept(rig)), rig.device.counters.bio_flush_out) == (0, 1)


async def test_with_a_fuse_out_no_bound_is_ever_reached() -> None:
    rig = await rig_of(three_deltas(), armed=False, bounds=Bounds(unflushed_bytes=1))
    await rig.device.write(2 * CLUSTER, b"x")
    assert rig.device.counters.bio_flush_out == 0


async def test_when_the_flush_at_the_bound_fails_so_does_the_write_and_what_was_acknowledged_stays() -> None:
    rig = await bounded(2 * CHANGE_BYTES)
    await rig.device.write(2 * CLUSTER, b"x")
    rig.lose(errno.EBUSY, "fsync")
    assert await errno_of(rig.device.write(2 * CLUSTER, b"y")) == errno.EIO
    assert rig.state is State.ON
    assert kept(rig)[0] == (2 * CLUSTER, 1, b"x")


async def test_what_is_given_up_before_the_flush_at_the_bound_was_not_acknowledged_and_fails() -> None:
    rig = await bounded(2 * CHANGE_BYTES)
    rig.queue.set_on_standby(OnStandby.HOLD)
    await rig.device.write(2 * CLUSTER, b"x")
    rule = rig.lose(errno.ENOTCONN, "fsync")
    async with trio.open_nursery() as nursery:
        write = Asked(nursery, rig.device.write(2 * CLUSTER, b"y"))
        await wait_all_tasks_blocked()
        assert (rig.state, write.ended) == (State.ON, False)
        rig.device.unflushed.give_up()
        rig.faults.remove(rule)
        await rig.device.reopen()
    assert write.errno == errno.EIO


# --- written again ------------------------------------------------------------------------------------------------


async def test_after_recovery_it_is_on_stable_storage_and_nothing_is_kept(rig: Rig) -> None:
    await rig.device.write(2 * CLUSTER, b"x")
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    rig.faults.log.clear()
    await rig.device.reopen()
    operations = [operation for operation, path in rig.faults.log if path == TOP]
    assert operations[-2:] == ["write", "fsync"]
    assert kept(rig) == []


async def test_nothing_is_written_again_when_nothing_was_kept(rig: Rig) -> None:
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    rig.faults.log.clear()
    await rig.device.reopen()
    assert len(rig.changes_of(TOP)) == 1, "the mark alone"


@pytest.mark.parametrize("images", [three_deltas(), ALONE], ids=["three deltas", "alone"])
async def test_a_discard_that_had_no_effect_does_not_destroy_what_was_written_after_it(
    images: dict[str, bytes],
) -> None:
    rig = await rig_of(images)
    for slot in (0, 4):
        await rig.device.discard(slot * CLUSTER, CLUSTER)
        await rig.device.write(slot * CLUSTER + 5, b"x")
    before = await rig.content()
    await lose_and_reopen(rig)
    assert await rig.content() == before


async def test_what_was_discarded_is_zero_on_an_image_that_never_had_the_cluster(rig: Rig) -> None:
    """The new top has nothing there, so the base would show."""
    await rig.device.write(0, b"x")
    await rig.device.discard(0, CLUSTER)
    before = await rig.content()
    assert not any(before[:CLUSTER])
    rig.store.put(NEW, image({2: b"t"}).build())
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    rig.device.unflushed._changes.popleft()
    await rig.device.replace(NEW)
    assert await rig.content() == before


async def test_what_was_written_with_a_fuse_out_is_not_overwritten_by_what_was_kept_before(rig: Rig) -> None:
    await rig.device.write(2 * CLUSTER, b"kept")
    rig.registry.key.enabled = False
    await rig.device.write(2 * CLUSTER, b"late")
    rig.registry.key.enabled = True
    await lose_and_reopen(rig)
    assert (await rig.content())[2 * CLUSTER :].startswith(b"late")


async def test_what_is_written_after_the_target_let_go_of_a_lost_device_does_not_drop_what_waits_for_recovery(
    rig: Rig,
) -> None:
    """The storage takes it and has forgotten what came before, which nobody but us has any more."""
    forgotten = rig.store.bytes_of(TOP)
    await rig.device.write(0, b"kept")
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    rig.queue.standby.detach()
    await rig.device.write(2, b"late")
    await rig.device.discard(2 * CLUSTER, CLUSTER)
    assert kept(rig) == [(0, 4, b"kept"), (2, 4, b"late"), (2 * CLUSTER, CLUSTER, None)]
    rig.store.put(TOP, forgotten)
    rig.queue.standby.attach()
    await rig.device.reopen()
    assert (await rig.content()).startswith(b"kelatea")
    assert kept(rig) == []


async def test_a_discard_makes_nothing_zero_that_lies_between_the_clusters_that_it_made_zero(rig: Rig) -> None:
    await rig.device.write(0, b"w" * CLUSTER)
    await rig.device.discard(0, 3 * CLUSTER)
    discarded = await rig.content()
    assert discarded[CLUSTER] != 0
    await lose_and_reopen(rig)
    assert await rig.content() == discarded


async def test_what_was_discarded_with_a_fuse_out_does_not_come_back(rig: Rig) -> None:
    await rig.device.write(2 * CLUSTER, b"kept")
    rig.registry.key.enabled = False
    await rig.device.discard(2 * CLUSTER, CLUSTER)
    rig.registry.key.enabled = True
    await lose_and_reopen(rig)
    assert (await rig.content())[2 * CLUSTER : 3 * CLUSTER] == bytes(CLUSTER)


@pytest.mark.parametrize(("delay_s", "number"), [(9, 0), (11, errno.ETIMEDOUT)])
async def test_the_bound_on_a_recovery_is_on_each_step_of_what_is_written_again(
    autojump_clock: MockClock, delay_s: float, number: int
) -> None:
    rig = await rig_of(three_deltas(), bounds=Bounds(quiesce_timeout_s=10))
    for at in range(5):
        await rig.device.write(2 * CLUSTER + 2 * at, bytes([at]))
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    # The first write is the mark's.
    rig.device.injector.add(Delay(frozenset({"write"}), delay_s=delay_s, skip=1))
    started_s = autojump_clock.current_time()
    assert await errno_of(rig.device.reopen()) == number
    if number:
        assert (rig.state, len(kept(rig))) == (State.ON, 5)
    else:
        assert (rig.state, kept(rig)) == (State.OFF, [])
        assert autojump_clock.current_time() - started_s == 5 * delay_s


async def test_what_is_written_again_never_puts_an_older_byte_where_the_storage_had_a_newer_one() -> None:
    """Though the device is lost again, or its daemon dies, half-way through the recovery."""
    at = 2 * CLUSTER
    rig = await rig_of(three_deltas(), bounds=Bounds(quiesce_timeout_s=10))
    await rig.device.write(at, b"older" * 100)
    await rig.device.write(at + 100, b"newer" * 10)
    await rig.device.write(at + CLUSTER - 3, b"across")
    await rig.device.discard(at, CLUSTER)
    await rig.device.write(at + 120, b"last")
    await rig.device.write(at + CLUSTER + 1, b"end")
    acknowledged = await rig.content()
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    for cut in range(20):
        fault = rig.lose(errno.EIO, "write", "punch hole", skip=1 + cut)  # the first write is the mark's
        number = await errno_of(rig.device.reopen())
        rig.faults.remove(fault)
        left = await rig_of({path: rig.store.bytes_of(path) for path in three_deltas()})
        assert await left.content() == acknowledged, f"cut off after {cut} changes"
        if not number:
            break
    assert cut >= 2


async def test_of_what_is_written_again_each_byte_is_as_the_last_of_many_changes_left_it() -> None:
    random = Random(8)
    for _ in range(30):
        rig = await rig_of(three_deltas())
        for _ in range(12):
            offset, length = random.randrange(DISK_BYTES), random.choice((1, 300, CLUSTER, 2 * CLUSTER))
            if random.random() < 0.3:
                await rig.device.discard(offset - offset % CLUSTER, length)
            else:
                await rig.device.write(offset, random.randbytes(length))
        before = await rig.content()
        unflushed = rig.device.unflushed
        last = _last_changes(tuple(unflushed), sorted(unflushed.slots(CLUSTER)), CLUSTER)
        changes = [change for change in last if change.data is not None]
        assert all(not set(span(one)) & set(span(other)) for one, other in combinations(changes, 2))
        await lose_and_reopen(rig)
        assert await rig.content() == before


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_is_what_was_acknowledged_after_the_last_mark_that_was_flushed(seed: int) -> None:
    random, unflushed, number = Random(seed), Unflushed(1 << 30), 0
    expected: list[tuple[int, bytes]] = []
    marks: list[tuple[int, int]] = []
    for _ in range(60):
        match random.randrange(5):
            case 0 | 1:
                number += 1
                data = bytes(random.randrange(1, 9))
                unflushed.wrote(number, data)
                expected.append((number, data))
            case 2:
                marks.append((unflushed.mark(), number))
            case 3 if marks:
                mark, last = random.choice(marks)
                unflushed.flushed(mark)
                expected = [each for each in expected if each[0] > last]
            case 4 if random.random() < 0.1:
                unflushed.forget()
                expected = []
        assert [(change.offset, change.data) for change in unflushed] == expected
        assert (len(unflushed), bool(unflushed)) == (len(expected), bool(expected))
        assert unflushed.data_bytes == sum(len(data) for _, data in expected)
        assert unflushed.memory_bytes == unflushed.data_bytes + len(expected) * CHANGE_BYTES


def span(change: Change) -> range:
    return range(change.offset, change.offset + change.length)


async def test_a_flush_whose_answer_nobody_waited_for_is_not_believed_the_next_time(
    autojump_clock: MockClock,  # noqa: ARG001 -- the clock of this test
) -> None:
    """If that fsync fails, the next one says nothing of it."""
    rig = await rig_of(three_deltas())
    await rig.device.write(2 * CLUSTER, b"x")
    released = rig.hang("fsync", count=1)
    with trio.move_on_after(1):
        await rig.device.flush()
    released.set()
    assert await errno_of(rig.device.flush()) == errno.EIO
    assert len(kept(rig)) == 1
    await rig.device.reopen()
    assert kept(rig) == []
    await rig.device.flush()
