"""What is kept for a recovery is flushed in the background, and who writes waits for that only where it is full."""

import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.attending import run_flushers
from ploopfs.device.bounds import Bounds
from ploopfs.device.device import Device
from ploopfs.device.flavour import VZ7, VZ9, Flavour
from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.device.unflushed import CHANGE_BYTES, Unflushed
from ploopfs.device.waiting import OnStandby
from ploopfs.errors import StorageTimeout
from tests.device.ready import ReadyFiles
from tests.device.rig import CLUSTER, NEW, TOP, Asked, Rig, errno_of, image, rig_of, three_deltas
from tests.device.test_soon import DATA, Soon

WRITES = 8
"""So many writes of DATA fill what may be kept; half of them make a flush due."""
QUIESCE_TIMEOUT_S = 4


async def rig_for(nursery: trio.Nursery, *, flavour: Flavour = VZ7, armed: bool = True) -> Rig:
    bounds = Bounds(unflushed_bytes=WRITES * (len(DATA) + CHANGE_BYTES), quiesce_timeout_s=QUIESCE_TIMEOUT_S)
    name = "dm-0" if flavour.mapped else "ploop0"
    rig = await rig_of(three_deltas(), storage=ReadyFiles, bounds=bounds, armed=armed, flavour=flavour, name=name)
    nursery.start_soon(run_flushers, rig.registry)
    await wait_all_tasks_blocked()
    return rig


@pytest.fixture
async def rig(nursery: trio.Nursery) -> AsyncIterator[Rig]:
    yield await rig_for(nursery)
    nursery.cancel_scope.cancel()


async def write(rig: Rig, count: int) -> None:
    for _ in range(count):
        await rig.device.write(2 * CLUSTER, DATA)
    await wait_all_tasks_blocked()


async def flush_begun(rig: Rig) -> trio.Event:
    """Half of what may be kept is, and a flush is under way that the storage answers when the event is set."""
    released = rig.hang("fsync", count=1)
    await write(rig, WRITES // 2)
    assert rig.device.flusher.in_flight == 1
    return released


def kept(rig: Rig) -> int:
    return len(rig.device.unflushed)


def fsyncs(rig: Rig) -> int:
    return rig.faults.log.count(("fsync", TOP))


def flushes(rig: Rig) -> int:
    return rig.device.stats.by_op[Op.FLUSH].ios


# --- when it is flushed -------------------------------------------------------------------------------------------


async def test_what_is_kept_is_flushed_from_half_of_the_bound_on_and_not_before(rig: Rig) -> None:
    await write(rig, WRITES // 2 - 1)
    assert (kept(rig), flushes(rig)) == (WRITES // 2 - 1, 0)
    await write(rig, 1)
    assert (kept(rig), rig.device.unflushed.memory_bytes, flushes(rig)) == (0, 0, 1)
    assert not rig.device.stack.is_unconfirmed


async def test_nobody_waits_for_it_before_the_bound(rig: Rig) -> None:
    before = fsyncs(rig)
    released = await flush_begun(rig)
    await write(rig, WRITES // 2 - 1)
    assert (kept(rig), fsyncs(rig) - before) == (WRITES - 1, 1)
    released.set()
    await wait_all_tasks_blocked()
    assert kept(rig) == WRITES // 2 - 1, "what came during the flush is not confirmed by it"


CHANGES: dict[str, Callable[[Device], Awaitable[object]]] = {
    "write": lambda device: device.write(2 * CLUSTER, DATA),
    "discard": lambda device: device.discard(2 * CLUSTER, CLUSTER),
    "zeroes": lambda device: device.write_zeroes(2 * CLUSTER, CLUSTER, unmap=True),
}


@pytest.mark.parametrize("kind", [*CHANGES, "soon"])
async def test_at_the_bound_a_change_waits_for_the_flush_under_way_and_for_no_other(
    rig: Rig, nursery: trio.Nursery, kind: str
) -> None:
    before = fsyncs(rig)
    released = await flush_begun(rig)
    await write(rig, WRITES // 2 - 1)
    for _ in range(3):
        await rig.device.discard(2 * CLUSTER, CLUSTER)
    assert not rig.device.unflushed.is_full
    last = Soon(rig, nursery) if kind == "soon" else Asked(nursery, CHANGES[kind](rig.device))
    await wait_all_tasks_blocked()
    assert (rig.device.unflushed.is_full, last.ended) == (True, False)
    # Half of it and more is left then, which the next one takes: it is not answered.
    rig.hang("fsync")
    released.set()
    await wait_all_tasks_blocked()
    assert (last.errno, kept(rig), flushes(rig), fsyncs(rig) - before) == (0, WRITES // 2 + 3, 1, 2)


async def test_when_as_much_as_half_has_come_meanwhile_the_next_one_begins_at_once(
    rig: Rig, nursery: trio.Nursery
) -> None:
    before = fsyncs(rig)
    released = await flush_begun(rig)
    await write(rig, WRITES // 2 - 1)
    Soon(rig, nursery)
    await wait_all_tasks_blocked()
    released.set()
    await wait_all_tasks_blocked()
    assert (kept(rig), flushes(rig), fsyncs(rig) - before) == (0, 2, 2)


async def test_discards_and_zeroes_count_for_it_though_they_hold_no_data(rig: Rig) -> None:
    due = -(-rig.device.unflushed.due_bytes // CHANGE_BYTES)
    for number in range(1, due):
        await CHANGES["discard" if number % 2 else "zeroes"](rig.device)
    await wait_all_tasks_blocked()
    assert (kept(rig), flushes(rig)) == (due - 1, 0)
    await rig.device.discard(2 * CLUSTER, CLUSTER)
    await wait_all_tasks_blocked()
    assert (kept(rig), flushes(rig)) == (0, 1)


async def test_it_is_counted_as_a_flush_that_no_user_has_asked_for(rig: Rig) -> None:
    counters = rig.device.counters
    await write(rig, WRITES // 2)
    assert (flushes(rig), counters.bio_flush_in, counters.bio_flush_out) == (1, 0, 1)


async def test_it_is_passed_on_where_flushes_are_not(rig: Rig) -> None:
    rig.device.tune.pass_flushes = 0
    await write(rig, WRITES // 2)
    assert (kept(rig), rig.device.counters.bio_flush_out) == (0, 1)


async def test_with_a_fuse_out_there_is_none(nursery: trio.Nursery) -> None:
    rig = await rig_for(nursery, armed=False)
    await write(rig, 3 * WRITES)
    assert (kept(rig), flushes(rig)) == (0, 0)
    nursery.cancel_scope.cancel()


async def test_whoever_is_told_that_one_is_due_is_told_once_and_again_when_less_is_kept() -> None:
    unflushed, told = Unflushed(8 * (10 + CHANGE_BYTES)), list[int]()
    unflushed.due.subscribe(lambda: told.append(len(unflushed)))
    unflushed.wrote(0, bytes(10))
    first = unflushed.mark()
    for _ in range(5):
        unflushed.wrote(0, bytes(10))
    assert told == [4]
    unflushed.flushed(first)
    second = unflushed.mark()
    unflushed.wrote(0, bytes(10))
    assert (told, len(unflushed)) == ([4], 6), "it still is"
    unflushed.flushed(second)
    assert (len(unflushed), unflushed.data_bytes, unflushed.memory_bytes) == (1, 10, 10 + CHANGE_BYTES)
    for _ in range(6):
        unflushed.wrote(0, bytes(10))
    assert told == [4, 4]


# --- beside the flushes of others ---------------------------------------------------------------------------------


async def test_users_who_flush_meanwhile_share_the_next_fsync(rig: Rig, nursery: trio.Nursery) -> None:
    before = fsyncs(rig)
    released = await flush_begun(rig)
    users = [Asked(nursery, rig.device.flush()) for _ in range(3)]
    await wait_all_tasks_blocked()
    assert fsyncs(rig) - before == 1
    released.set()
    await wait_all_tasks_blocked()
    assert ([user.errno for user in users], fsyncs(rig) - before) == ([0, 0, 0], 2)


async def test_it_waits_for_the_fsync_of_a_user_that_is_under_way_and_shares_the_next(
    rig: Rig, nursery: trio.Nursery
) -> None:
    before = fsyncs(rig)
    released = rig.hang("fsync", count=1)
    first = Asked(nursery, rig.device.flush())
    await write(rig, WRITES // 2)
    second = Asked(nursery, rig.device.flush())
    await wait_all_tasks_blocked()
    assert (rig.device.flusher.in_flight, fsyncs(rig) - before) == (1, 1)
    released.set()
    await wait_all_tasks_blocked()
    assert (first.errno, second.errno, kept(rig), fsyncs(rig) - before) == (0, 0, 0, 2)


async def test_what_is_given_up_during_it_stays_given_up(rig: Rig) -> None:
    released = await flush_begun(rig)
    rig.device.unflushed.give_up()
    await write(rig, 1)
    released.set()
    await wait_all_tasks_blocked()
    assert kept(rig) == 1


async def test_a_write_at_the_bound_that_is_given_up_during_it_fails(rig: Rig, nursery: trio.Nursery) -> None:
    released = await flush_begun(rig)
    await write(rig, WRITES // 2 - 1)
    last = Soon(rig, nursery)
    await wait_all_tasks_blocked()
    rig.device.unflushed.give_up()
    released.set()
    await wait_all_tasks_blocked()
    assert last.errno == errno.EIO


async def test_a_target_that_lets_go_during_it_drops_what_is_kept(rig: Rig) -> None:
    released = await flush_begun(rig)
    rig.queue.standby.detach()
    assert kept(rig) == 0
    released.set()
    await wait_all_tasks_blocked()
    assert (kept(rig), rig.queue.loss, rig.device.stats.in_flight) == (0, None, 0)


# --- a gate that is shut ------------------------------------------------------------------------------------------


async def test_while_the_queue_is_suspended_none_waits_and_it_begins_with_the_resume(
    rig: Rig, nursery: trio.Nursery
) -> None:
    await write(rig, WRITES // 2 - 1)
    released = rig.hang("write", count=1)
    last, suspending = Soon(rig, nursery), Asked(nursery, rig.queue.suspend())
    await wait_all_tasks_blocked()
    released.set()
    await wait_all_tasks_blocked()
    assert (last.errno, suspending.errno, rig.device.unflushed.is_due) == (0, 0, True)
    assert (len(rig.queue.room), rig.device.flusher.in_flight, flushes(rig)) == (0, 0, 0)
    rig.queue.resume()
    await wait_all_tasks_blocked()
    assert (kept(rig), flushes(rig)) == (0, 1)


async def test_while_the_queue_is_quiesced_none_waits_and_it_begins_with_the_next_write(
    rig: Rig, nursery: trio.Nursery
) -> None:
    await write(rig, WRITES // 2 - 1)
    released = rig.hang("write", count=1)
    last, may_go_on = Soon(rig, nursery), trio.Event()

    async def quiesce() -> None:
        async with rig.queue.quiesced():
            await may_go_on.wait()

    quiesced = Asked(nursery, quiesce())
    await wait_all_tasks_blocked()
    released.set()
    await wait_all_tasks_blocked()
    assert (last.errno, rig.device.unflushed.is_due) == (0, True)
    assert (len(rig.queue.room), rig.device.flusher.in_flight, flushes(rig)) == (0, 0, 0)
    may_go_on.set()
    await wait_all_tasks_blocked()
    assert (quiesced.errno, flushes(rig)) == (0, 0)
    await write(rig, 1)
    assert (kept(rig), flushes(rig)) == (0, 1)


@pytest.mark.parametrize("operation", ["replace", "reopen", "suspend"])
async def test_what_needs_the_queue_still_waits_for_one_under_way_as_for_any_request(
    rig: Rig, nursery: trio.Nursery, operation: str
) -> None:
    rig.store.put(NEW, three_deltas()[TOP])
    operations: dict[str, Callable[[], Awaitable[None]]] = {
        "replace": lambda: rig.device.replace(NEW),
        "reopen": rig.device.reopen,
        "suspend": rig.queue.suspend,
    }
    released = await flush_begun(rig)
    waiting = Asked(nursery, operations[operation]())
    await wait_all_tasks_blocked()
    assert (waiting.ended, rig.device.flusher.in_flight) == (False, 1)
    released.set()
    await wait_all_tasks_blocked()
    assert (waiting.errno, kept(rig), rig.queue.aborted) == (0, 0, False)


async def test_on_an_aborted_device_there_is_none(rig: Rig, nursery: trio.Nursery) -> None:
    await write(rig, WRITES // 2 - 1)
    released = rig.hang("write", count=1)
    last = Soon(rig, nursery)
    await wait_all_tasks_blocked()
    rig.queue.set_aborted(True)
    released.set()
    await wait_all_tasks_blocked()
    assert (last.errno, rig.device.unflushed.is_due, flushes(rig)) == (0, True, 0)
    rig.queue.set_aborted(False)
    await wait_all_tasks_blocked()
    assert (kept(rig), flushes(rig)) == (0, 1)


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
@pytest.mark.parametrize("flavour", [VZ7, VZ9], ids=["vz7", "vz9"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.EBUSY])
async def test_one_that_fails_means_standby_as_any_flush_and_after_recovery_it_goes_on(
    nursery: trio.Nursery, number: int, flavour: Flavour
) -> None:
    rig = await rig_for(nursery, flavour=flavour)
    rule = rig.lose(number, "fsync", count=1)
    await write(rig, WRITES // 2)
    assert (rig.state, kept(rig), rig.device.stats.errors) == (State.ON, WRITES // 2, {(number, "fsync"): 1})
    rig.faults.remove(rule)
    await rig.device.reopen()
    assert (rig.state, kept(rig)) == (State.OFF, 0)
    before = flushes(rig)
    await write(rig, WRITES // 2)
    assert (kept(rig), flushes(rig) - before) == (0, 1)
    nursery.cancel_scope.cancel()


async def test_one_that_fails_without_a_loss_is_told_once_and_begins_anew_when_less_is_kept(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    """A storage that is full may have room again. Whoever writes at the bound finds out."""
    rig = await rig_for(nursery, flavour=VZ9)
    await rig.device.write(4 * CLUSTER, DATA)
    rig.device.stack.top.uncertain_slots.add(4)  # as after a write of the map that failed: the next flush repeats it
    rule = rig.lose(errno.ENOSPC, "write")
    caplog.set_level(logging.INFO)
    await write_elsewhere(rig, WRITES // 2 - 1)
    rig.faults.remove(rule)
    assert (rig.state, rig.queue.loss, flushes(rig)) == (State.OFF, None, 1)
    await write(rig, WRITES // 2 - 1)
    assert (kept(rig), flushes(rig)) == (WRITES - 1, 1)
    assert [record.message for record in caplog.records if "in the background" in record.message] == [
        f"dm-0: a flush in the background failed: {TOP}: write 24 bytes at 64: ENOSPC (No space left on device)"
    ]
    await write(rig, 1)
    assert (kept(rig), flushes(rig)) == (0, 2)
    await write(rig, WRITES // 2)
    assert (kept(rig), flushes(rig)) == (0, 3)
    nursery.cancel_scope.cancel()


async def write_elsewhere(rig: Rig, count: int) -> None:
    """Without the storage, which is full."""
    for _ in range(count):
        rig.device.unflushed.wrote(2 * CLUSTER, DATA)
    await wait_all_tasks_blocked()


@pytest.mark.expects_warnings
async def test_a_bug_in_one_is_logged_and_the_next_one_comes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(rig.device.stack, "flush", lambda: 1 // 0)
        await write(rig, WRITES // 2)
    assert ("ZeroDivisionError" in caplog.text, rig.device.stats.in_flight) == (True, 0)
    await rig.device.flush()
    await write(rig, WRITES // 2)
    assert (kept(rig), flushes(rig)) == (0, 3)


@pytest.mark.expects_warnings
async def test_of_a_storage_that_is_lost_and_was_let_go_none_is_asked_for(rig: Rig) -> None:
    """It takes writes and reads again, but nobody believes its flushes; what is kept waits for a recovery."""
    await write(rig, 1)
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    rig.queue.standby.detach()
    before = fsyncs(rig)
    await write(rig, WRITES // 2 + 1)
    assert (kept(rig), fsyncs(rig) - before, rig.queue.aborted) == (WRITES // 2 + 2, 0, False)


# --- standby ------------------------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
@pytest.mark.parametrize("operation", ["replace", "reopen"])
async def test_a_recovery_does_not_wait_for_one_that_hangs(rig: Rig, autojump_clock: MockClock, operation: str) -> None:
    await flush_begun(rig)
    rig.copy(TOP, NEW)
    rule = rig.lose(errno.ENOTCONN, "read")
    assert await errno_of(rig.device.read(2 * CLUSTER, 9)) == errno.ENOTCONN
    rig.faults.remove(rule)
    began_s = autojump_clock.current_time()
    await (rig.device.replace(NEW) if operation == "replace" else rig.device.reopen())
    assert (rig.state, kept(rig), autojump_clock.current_time() - began_s < QUIESCE_TIMEOUT_S) == (State.OFF, 0, True)
    assert bytes(await rig.device.read(2 * CLUSTER, len(DATA))) == DATA


@pytest.mark.expects_warnings
async def test_a_flush_and_a_write_beside_one_that_is_given_up_are_held_as_any_and_done_after_recovery(
    rig: Rig, nursery: trio.Nursery
) -> None:
    rig.queue.set_on_standby(OnStandby.HOLD)
    await flush_begun(rig)
    flush = Asked(nursery, rig.device.flush())
    allocating = Asked(nursery, rig.device.write(0, DATA))  # the data of its copy are flushed before its map is written
    await wait_all_tasks_blocked()
    rule = rig.lose(errno.ENOTCONN, "read")
    read = Asked(nursery, rig.device.read(2 * CLUSTER, 9))
    await wait_all_tasks_blocked()
    assert (rig.state, rig.queue.room.held, rig.device.stats.in_flight) == (State.ON, 3, 0)
    rig.faults.remove(rule)
    await rig.device.reopen()
    await wait_all_tasks_blocked()
    assert (flush.errno, allocating.errno, read.errno) == (0, 0, 0)
    assert bytes(await rig.device.read(0, len(DATA))) == DATA


@pytest.mark.expects_warnings
async def test_who_waits_at_the_bound_for_one_that_is_given_up_is_held_and_has_his_answer_after_recovery(
    rig: Rig, nursery: trio.Nursery
) -> None:
    rig.queue.set_on_standby(OnStandby.HOLD)
    await flush_begun(rig)
    await write(rig, WRITES // 2 - 1)
    last = Soon(rig, nursery)
    rule = rig.lose(errno.ENOTCONN, "read")
    Asked(nursery, rig.device.read(2 * CLUSTER, 9))
    await wait_all_tasks_blocked()
    assert (rig.state, last.ended, kept(rig)) == (State.ON, False, WRITES)
    rig.faults.remove(rule)
    await rig.device.reopen()
    await wait_all_tasks_blocked()
    assert (last.errno, kept(rig)) == (0, 0)


# --- its end ------------------------------------------------------------------------------------------------------


async def test_a_device_that_is_being_flushed_is_not_busy_for_that_and_is_removed_when_it_is(
    rig: Rig, nursery: trio.Nursery
) -> None:
    released = await flush_begun(rig)
    rig.device.check_idle()
    removal = Asked(nursery, rig.registry.remove("ploop0", let_go=rig.scst.detach))
    await wait_all_tasks_blocked()
    assert not removal.ended
    released.set()
    await wait_all_tasks_blocked()
    assert (removal.errno, removal.value, rig.is_marked(TOP)) == (0, True, False)


async def test_one_that_hangs_keeps_a_device_from_being_removed_and_leaves_it_as_it_was(
    rig: Rig, autojump_clock: MockClock
) -> None:
    released = await flush_begun(rig)
    began_s = autojump_clock.current_time()
    with pytest.raises(StorageTimeout):
        await rig.registry.remove("ploop0", limit_s=1)
    assert autojump_clock.current_time() - began_s == pytest.approx(1)
    released.set()
    await wait_all_tasks_blocked()
    assert (kept(rig), rig.device.queue.loss) == (0, None)
    assert await errno_of(rig.device.flush()) == 0


async def test_a_daemon_that_ends_lets_the_one_under_way_end_and_closes_the_image(
    rig: Rig, nursery: trio.Nursery
) -> None:
    released = await flush_begun(rig)
    rig.registry.close_gates()
    ending = Asked(nursery, rig.registry.aclose())
    await wait_all_tasks_blocked()
    assert not ending.ended
    released.set()
    await wait_all_tasks_blocked()
    assert (ending.value, rig.is_marked(TOP)) == (True, False)


@pytest.mark.expects_warnings
async def test_one_that_hangs_at_the_end_costs_no_more_than_the_deadline_and_the_image_stays_marked(
    rig: Rig, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await flush_begun(rig)
    began_s = autojump_clock.current_time()
    assert await rig.registry.aclose(deadline_s=5) is False
    assert autojump_clock.current_time() - began_s == pytest.approx(5)
    assert rig.is_marked(TOP)
    assert f"{TOP} did not answer within 5 s; it stays marked in use" in caplog.text
    await wait_all_tasks_blocked()
    assert rig.device.stats.in_flight == 0
    assert not rig.store.images[TOP].writers, "it is closed, and its lock gone"


async def test_the_flushers_of_a_registry_come_and_go_with_their_devices(rig: Rig) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    rig.store.put("/other.hds", image({}).build())
    other = await rig.registry.add("ploop1", flavour=VZ7, image="/other.hds", files=rig.store)
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == tasks + 1
    await other.flusher.aclose()
    await other.flusher.aclose()
    assert await rig.registry.remove("ploop1")
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_another_device_that_goes_meanwhile_leaves_the_one_under_way_alone(
    rig: Rig, nursery: trio.Nursery
) -> None:
    """Also of a device that is being closed, and is none of its registry any more."""
    rig.store.put("/other.hds", image({}).build())
    await rig.registry.add("ploop1", flavour=VZ7, image="/other.hds", files=rig.store)
    released = await flush_begun(rig)
    removal = Asked(nursery, rig.registry.aclose())
    await wait_all_tasks_blocked()
    assert ("ploop1" in rig.registry.devices, removal.ended) == (False, False)
    released.set()
    await wait_all_tasks_blocked()
    assert (removal.value, rig.is_marked(TOP)) == (True, False)


# --- room ahead ---------------------------------------------------------------------------------------------------


async def want_room(rig: Rig) -> None:
    """As who has allocated for a while; then there is a write, which says that it is wanted."""
    assert rig.device.stack.room is not None
    rig.device.stack.room.look()
    assert rig.device.stack.room.is_wanted
    rig.device.flusher.look()
    await wait_all_tasks_blocked()


async def test_room_for_new_clusters_is_made_when_it_is_wanted(rig: Rig) -> None:
    before = len(rig.store.bytes_of(TOP))
    await want_room(rig)
    assert len(rig.store.bytes_of(TOP)) > before
    assert rig.device.stack.top.durable_size == len(rig.store.bytes_of(TOP))
    assert (rig.device.stats.in_flight, rig.device.flusher.in_flight) == (0, 0)


@pytest.mark.expects_warnings
@pytest.mark.parametrize("operation", ["truncate", "fsync"])
async def test_what_a_lost_storage_says_to_that_is_judged_as_it_may_say_so_once(rig: Rig, operation: str) -> None:
    await write(rig, 1)
    rig.lose(errno.ENOTCONN, operation, count=1)
    await want_room(rig)
    assert (rig.state, kept(rig)) == (State.ON, 1)
    assert rig.device.stats.in_flight == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
async def test_where_there_is_no_room_nothing_is_lost_and_nothing_follows(rig: Rig, number: int) -> None:
    rig.lose(number, "truncate", count=1)
    await want_room(rig)
    assert (rig.state, rig.queue.loss, rig.queue.aborted) == (State.OFF, None, False)
    await rig.device.write(5 * CLUSTER, DATA)
