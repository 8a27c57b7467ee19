"""Writes in flight that no task waits for: the gate, the end of each, and what waits for them, as for any request."""

import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.device import Device
from ploopfs.device.flavour import VZ7, VZ9, Flavour
from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.device.unflushed import CHANGE_BYTES
from ploopfs.device.waiting import OnStandby
from ploopfs.engine.failing import error_disk
from ploopfs.engine.file import Buffer
from ploopfs.engine.inject.grammar import execute
from ploopfs.engine.tracking import next_tracked, start_tracking
from ploopfs.errors import Busy, NothingTracked, QuiesceTimeout
from tests.device.ready import ReadyFiles
from tests.device.rig import CLUSTER, DISK_BYTES, NEW, TOP, Asked, Rig, errno_of, rig_of, three_deltas
from tests.device.test_nowait import HOLE, IN_TOP, counted

DATA = b"w" * 512


class Soon:
    """One such write; what it is to await runs in a task, as a connection does it. `errno` is how it ended."""

    def __init__(self, rig: Rig, nursery: trio.Nursery, offset: int = IN_TOP, data: Buffer = DATA) -> None:
        self.ends = 0
        self.goes_on: Asked | None = None
        self._nursery = nursery
        self.is_begun = rig.device.write_soon(offset, data, self._written)

    def _written(self, rest: Callable[[], Awaitable[None]] | None) -> None:
        self.ends += 1
        if rest is not None:
            self.goes_on = Asked(self._nursery, rest())

    @property
    def ended(self) -> bool:
        assert self.ends < 2
        return self.ends == 1 and (self.goes_on is None or self.goes_on.ended)

    @property
    def errno(self) -> int:
        assert self.ended
        return self.goes_on.errno if self.goes_on else 0


@pytest.fixture
async def rig() -> Rig:
    return await rig_of(three_deltas(), storage=ReadyFiles)


async def written(rig: Rig, nursery: trio.Nursery, offset: int = IN_TOP, data: Buffer = DATA) -> Soon:
    """When nothing more happens by itself."""
    soon = Soon(rig, nursery, offset, data)
    assert soon.is_begun
    await wait_all_tasks_blocked()
    return soon


async def hung(rig: Rig, nursery: trio.Nursery) -> tuple[Soon, trio.Event]:
    """One that the storage does not answer before the event is set."""
    released = rig.hang("write", count=1)
    soon = await written(rig, nursery)
    assert not soon.ends
    return soon, released


# --- how it ends --------------------------------------------------------------------------------------------------


async def test_a_write_in_place_is_on_the_storage_and_is_kept_until_it_is_flushed(
    rig: Rig, nursery: trio.Nursery
) -> None:
    data = bytearray(b"new")
    assert (await written(rig, nursery, IN_TOP + 5, data)).errno == 0
    assert bytes(await rig.device.read(IN_TOP + 4, 5)) == b"tnewt"
    [kept] = rig.device.unflushed
    assert (kept.offset, kept.data) == (IN_TOP + 5, b"new")
    assert kept.data is data, "no copy is made"
    assert rig.device.stack.is_unconfirmed
    await rig.device.flush()
    assert not rig.device.stack.is_unconfirmed


async def test_it_is_not_acknowledged_and_not_kept_before_it_has_ended(rig: Rig, nursery: trio.Nursery) -> None:
    soon, released = await hung(rig, nursery)
    assert (len(rig.device.unflushed), rig.device.stack.is_unconfirmed) == (0, True)
    released.set()
    await wait_all_tasks_blocked()
    assert (soon.errno, len(rig.device.unflushed)) == (0, 1)


async def test_with_a_fuse_out_it_makes_what_was_kept_obsolete(rig: Rig, nursery: trio.Nursery) -> None:
    await rig.device.write(IN_TOP, b"kept")
    rig.registry.key.enabled = False
    assert len(rig.device.unflushed) == 1
    assert (await written(rig, nursery)).errno == 0
    assert len(rig.device.unflushed) == 0


async def test_it_is_counted_as_any_write(rig: Rig, nursery: trio.Nursery) -> None:
    """Both devices see the same requests."""
    slow = await rig_of(three_deltas(), storage=ReadyFiles)
    await written(rig, nursery)
    await slow.device.write(IN_TOP, DATA)
    assert counted(rig) == counted(slow)


async def test_it_is_in_flight_until_it_has_ended(rig: Rig, nursery: trio.Nursery) -> None:
    _soon, released = await hung(rig, nursery)
    assert rig.device.stats.inflight_columns() == (0, 1)
    assert rig.device.stats.by_op[Op.WRITE].ios == 0
    with pytest.raises(Busy, match="in flight"):
        rig.device.check_idle()
    released.set()
    await wait_all_tasks_blocked()
    assert rig.device.stats.inflight_columns() == (0, 0)
    rig.device.check_idle()


async def test_a_tracked_cluster_is_told_of_when_it_has_ended(rig: Rig, nursery: trio.Nursery) -> None:
    start_tracking(rig.device.stack)
    assert [next_tracked(rig.device.stack) for _ in range(2)] == [0, 1]
    _soon, released = await hung(rig, nursery)
    with pytest.raises(NothingTracked):
        next_tracked(rig.device.stack)
    released.set()
    await wait_all_tasks_blocked()
    assert next_tracked(rig.device.stack) == 1


# --- what is in the way: then it is left for `write`, and nothing was begun ---------------------------------------


async def untouched(rig: Rig, offset: int = IN_TOP, data: Buffer = DATA) -> None:
    before, stored, kept = counted(rig), rig.store.bytes_of(TOP), len(rig.device.unflushed)

    def never(_rest: object) -> None:
        raise AssertionError("it was told of what was not begun")

    assert rig.device.write_soon(offset, data, never) is False
    await wait_all_tasks_blocked()
    assert counted(rig) == before
    is_same = rig.store.bytes_of(TOP) == stored
    assert is_same
    assert len(rig.device.unflushed) == kept


@pytest.mark.expects_warnings
async def test_in_standby_none_is_begun(rig: Rig) -> None:
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    await untouched(rig)


async def test_nor_while_the_queue_is_quiesced_suspended_aborted_or_closing(rig: Rig, nursery: trio.Nursery) -> None:
    async with rig.queue.quiesced():
        await untouched(rig)
    await rig.queue.suspend()
    await untouched(rig)
    rig.queue.resume()
    rig.queue.set_aborted(True)
    await untouched(rig)
    rig.queue.set_aborted(False)
    assert (await written(rig, nursery)).errno == 0
    rig.queue.close_gate()
    await untouched(rig)


async def test_none_overtakes_who_waits(rig: Rig) -> None:
    async with trio.open_nursery() as nursery:
        async with rig.queue.quiesced():
            asked = Asked(nursery, rig.device.read(IN_TOP, 1))
            await wait_all_tasks_blocked()
        assert rig.queue.parked == 1
        assert not Soon(rig, nursery).is_begun
    assert asked.ended


async def test_nor_is_it_more_than_the_queue_takes(nursery: trio.Nursery) -> None:
    rig = await rig_of(three_deltas(), storage=ReadyFiles, bounds=Bounds(requests=1))
    soon, released = await hung(rig, nursery)
    await untouched(rig)
    assert await errno_of(rig.device.read(IN_TOP, 1)) == errno.EIO
    released.set()
    await wait_all_tasks_blocked()
    assert soon.errno == 0
    assert (await written(rig, nursery)).errno == 0


async def test_a_fault_rule_sees_every_write(rig: Rig, nursery: trio.Nursery) -> None:
    execute(rig.device.injector, "add,op=WRITE,errno=ENOSPC")
    await untouched(rig)
    assert await errno_of(rig.device.write(IN_TOP, DATA)) == errno.ENOSPC
    rig.device.injector.remove_all()
    assert (await written(rig, nursery)).errno == 0


@pytest.mark.parametrize("start", [HOLE, 0, HOLE - 2], ids=["a hole", "of a lower level", "half of each"])
async def test_one_that_needs_a_cluster_is_left(rig: Rig, start: int) -> None:
    await untouched(rig, start)


async def test_so_is_one_of_two_clusters_or_that_does_not_fit_or_is_refused(rig: Rig) -> None:
    await rig.device.write(HOLE, DATA)  # both are in the top now
    await untouched(rig, HOLE - 2)
    await untouched(rig, DISK_BYTES - 2)
    await untouched(rig, DISK_BYTES + 9)
    await untouched(rig, data=b"")
    await untouched(await rig_of(three_deltas(), storage=ReadyFiles, read_only=True))


async def test_an_error_target_begins_none() -> None:
    assert not error_disk(size_bytes=DISK_BYTES, cluster_bytes=CLUSTER).write_soon(0, b"x", lambda _error: None)


@pytest.mark.parametrize("broken", ["stack", "top", "file"])
async def test_a_bug_on_the_way_leaves_nothing_in_flight(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def bug(*_arguments: object) -> bool:
        raise RuntimeError("a bug")

    stack = rig.device.stack
    owner: Any = {"stack": stack, "top": stack.top, "file": stack.top.file}[broken]
    with monkeypatch.context() as patched:
        patched.setattr(owner, "write_soon", bug)
        with pytest.raises(RuntimeError):
            rig.device.write_soon(IN_TOP, DATA, lambda _rest: None)
    assert rig.device.stats.in_flight == 0
    await rig.device.write(IN_TOP, DATA)
    await rig.device.flush()  # which waits for what is in flight beside it
    assert not rig.device.stack.is_unconfirmed


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    ("flavour", "number", "answered"),
    [
        (VZ7, errno.ENOTCONN, errno.ENOTCONN),
        (VZ7, errno.EBUSY, errno.EBUSY),
        (VZ9, errno.ENOTCONN, errno.EIO),
        (VZ9, errno.EBUSY, errno.EBUSY),
    ],
)
async def test_one_that_fails_is_judged_as_any_request(
    nursery: trio.Nursery, flavour: Flavour, number: int, answered: int
) -> None:
    name = "dm-0" if flavour.mapped else "ploop0"
    rig = await rig_of(three_deltas(), storage=ReadyFiles, flavour=flavour, name=name)
    rig.lose(number, "write")
    soon = await written(rig, nursery)
    assert (soon.errno, rig.state) == (answered, State.ON)
    assert rig.device.stats.errors == {(number, "write"): 1}
    assert (rig.device.stats.in_flight, rig.device.stats.by_op[Op.WRITE].ios) == (0, 1)
    assert len(rig.device.unflushed) == 0
    assert rig.device.stack.top.doubtful_clusters


async def test_an_error_that_excludes_a_loss_changes_nothing(rig: Rig, nursery: trio.Nursery) -> None:
    rig.lose(errno.ENOSPC, "write", count=1)
    full: list[str] = []
    rig.queue.storage_full.subscribe(lambda: full.append("told"))
    soon = await written(rig, nursery)
    assert (soon.errno, rig.state, rig.queue.loss, full) == (errno.ENOSPC, State.OFF, None, ["told"])
    assert rig.device.stack.top.doubtful_clusters == set()
    assert (await written(rig, nursery)).errno == 0
    await rig.device.flush()


@pytest.mark.expects_warnings
async def test_with_both_fuses_out_an_error_aborts_the_device(nursery: trio.Nursery) -> None:
    rig = await rig_of(three_deltas(), storage=ReadyFiles, armed=False)
    rig.lose(errno.EIO, "write")
    assert (await written(rig, nursery)).errno == errno.EIO
    assert (rig.queue.aborted, rig.queue.loss is not None) == (True, False)


@pytest.mark.expects_warnings
async def test_one_that_is_held_is_written_again_after_recovery_and_counted_once(
    rig: Rig, nursery: trio.Nursery
) -> None:
    rig.queue.set_on_standby(OnStandby.HOLD)
    rule = rig.lose(errno.ENOTCONN)
    soon = await written(rig, nursery)
    assert (soon.ends, soon.ended, rig.queue.room.held, rig.device.stats.in_flight) == (1, False, 1, 0)
    assert rig.queue.room.held_bytes == len(DATA)
    rig.faults.remove(rule)
    rig.copy(TOP, NEW)
    await rig.device.replace(NEW)
    await wait_all_tasks_blocked()
    assert soon.errno == 0
    assert bytes(await rig.device.read(IN_TOP, 513)) == DATA + b"t"
    assert rig.store.bytes_of(TOP).count(DATA) == 0
    assert rig.device.stats.by_op[Op.WRITE].ios == 1
    assert (rig.device.counters.bio_in, rig.device.counters.bio_out) == (2, 2)


@pytest.mark.expects_warnings
async def test_one_that_is_held_keeps_the_place_that_it_had_when_it_came(rig: Rig, nursery: trio.Nursery) -> None:
    rig.queue.set_on_standby(OnStandby.HOLD)
    soon, released = await hung(rig, nursery)
    rig.lose(errno.ENOTCONN)
    later = Asked(nursery, rig.device.read(IN_TOP, 4))
    await wait_all_tasks_blocked()
    rig.faults.rules[0].errno = errno.ENOTCONN
    released.set()
    await wait_all_tasks_blocked()
    assert [ticket.op for ticket in rig.queue.room._tickets] == [Op.WRITE, Op.READ]
    rig.faults.rules.clear()
    await rig.device.reopen()
    await wait_all_tasks_blocked()
    assert (soon.errno, later.errno) == (0, 0)


@pytest.mark.expects_warnings
async def test_a_held_one_fails_with_what_the_storage_answered_when_there_is_no_room(nursery: trio.Nursery) -> None:
    rig = await rig_of(three_deltas(), storage=ReadyFiles, bounds=Bounds(held_requests=1))
    rig.queue.set_on_standby(OnStandby.HOLD)
    released = rig.hang("write", count=2)
    both = [Soon(rig, nursery) for _ in range(2)]
    await wait_all_tasks_blocked()
    rig.faults.rules[0].errno = errno.EBUSY
    released.set()
    await wait_all_tasks_blocked()
    assert (sorted(each.ended for each in both), rig.queue.room.held) == ([False, True], 1)
    assert [each.errno for each in both if each.ended] == [errno.EBUSY]
    rig.queue.fail_held()
    await wait_all_tasks_blocked()
    assert sorted(each.errno for each in both) == [errno.EIO, errno.EBUSY]
    assert rig.device.stats.in_flight == 0


async def test_a_late_error_of_an_old_generation_changes_nothing(rig: Rig, nursery: trio.Nursery) -> None:
    soon, released = await hung(rig, nursery)
    rig.faults.rules[0].errno = errno.ENOTCONN
    rig.queue.swap(rig.device.stack)
    released.set()
    await wait_all_tasks_blocked()
    assert soon.errno == errno.ENOTCONN
    assert (rig.state, rig.queue.aborted, rig.queue.loss) == (State.OFF, False, None)


# --- the bound on what no flush has confirmed ---------------------------------------------------------------------


async def bounded(changes: int) -> Rig:
    """So many writes of DATA fill what may be kept."""
    limit = changes * (len(DATA) + CHANGE_BYTES)
    return await rig_of(three_deltas(), storage=ReadyFiles, bounds=Bounds(unflushed_bytes=limit))


async def test_who_fills_what_may_be_kept_is_answered_after_the_flush(nursery: trio.Nursery) -> None:
    rig = await bounded(2)
    released = rig.hang("fsync", count=1)
    first, second = [await written(rig, nursery) for _ in range(2)]
    assert (first.errno, second.ends, second.ended) == (0, 1, False)
    released.set()
    await wait_all_tasks_blocked()
    assert (second.errno, len(rig.device.unflushed), rig.device.stack.is_unconfirmed) == (0, 0, False)
    assert rig.faults.log[-1] == ("fsync", TOP)
    assert (rig.device.counters.bio_in, rig.device.counters.bio_out) == (2, 2)


async def test_two_that_fill_it_together_are_both_answered_after_a_flush(nursery: trio.Nursery) -> None:
    rig = await bounded(2)
    released = rig.hang("write", "fsync")
    both = [Soon(rig, nursery) for _ in range(3)]
    await wait_all_tasks_blocked()
    rig.faults.rules.clear()
    fsyncs = rig.hang("fsync")
    released.set()
    await wait_all_tasks_blocked()
    assert sorted(each.ended for each in both) == [False, False, True]
    fsyncs.set()
    await wait_all_tasks_blocked()
    assert [each.errno for each in both] == [0, 0, 0]
    assert len(rig.device.unflushed) == 0


@pytest.mark.expects_warnings
async def test_when_that_flush_fails_so_does_the_write_and_what_was_acknowledged_stays(nursery: trio.Nursery) -> None:
    rig = await bounded(2)
    rig.lose(errno.EBUSY, "fsync")
    first, second = [await written(rig, nursery) for _ in range(2)]
    assert (first.errno, second.errno, rig.state) == (0, errno.EIO, State.ON)
    assert len(rig.device.unflushed) == 2
    assert rig.device.stats.in_flight == 0


# --- who waits for it ---------------------------------------------------------------------------------------------


async def quiesce(device: Device) -> None:
    async with device.queue.quiesced():
        assert device.stats.in_flight == 0


OPERATIONS: dict[str, Callable[[Device], Awaitable[None]]] = {
    "quiesce": quiesce,
    "suspend": lambda device: device.queue.suspend(),
    "replace": lambda device: device.replace(NEW),
    "reopen": lambda device: device.reopen(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_what_needs_the_queue_still_waits_for_it(rig: Rig, nursery: trio.Nursery, operation: str) -> None:
    rig.store.put(NEW, three_deltas()[TOP])
    soon, released = await hung(rig, nursery)
    waiting = Asked(nursery, OPERATIONS[operation](rig.device))
    await wait_all_tasks_blocked()
    assert not waiting.ended
    released.set()
    await wait_all_tasks_blocked()
    assert waiting.ended
    assert (waiting.error, soon.errno) == (None, 0)


@pytest.mark.expects_warnings
async def test_one_that_hangs_makes_a_quiesce_give_up_and_requests_go_on(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    rig = await rig_of(three_deltas(), storage=ReadyFiles, bounds=Bounds(quiesce_timeout_s=3))
    soon, released = await hung(rig, nursery)
    with pytest.raises(QuiesceTimeout):
        await rig.device.reopen()
    assert await rig.device.read(IN_TOP, 1) == b"t"
    released.set()
    await wait_all_tasks_blocked()
    assert soon.errno == 0


@pytest.mark.expects_warnings
@pytest.mark.parametrize(("number", "flushed"), [(None, 0), (errno.ENOSPC, 0), (errno.ENOTCONN, errno.EIO)])
async def test_a_flush_is_not_believed_before_it_has_ended_well(
    rig: Rig, nursery: trio.Nursery, number: int | None, flushed: int
) -> None:
    _soon, released = await hung(rig, nursery)
    flush = Asked(nursery, rig.device.flush())
    await wait_all_tasks_blocked()
    assert not flush.ended
    rig.faults.rules[0].errno = number
    released.set()
    await wait_all_tasks_blocked()
    assert flush.errno == flushed


async def test_what_it_writes_to_is_given_to_nobody_before_it_has_ended(rig: Rig, nursery: trio.Nursery) -> None:
    soon, released = await hung(rig, nursery)
    free: list[str] = []
    rig.device.stack._epochs.retire(lambda: free.append("now"))
    await wait_all_tasks_blocked()
    assert free == []
    released.set()
    await wait_all_tasks_blocked()
    assert (soon.errno, free) == (0, ["now"])


async def test_a_cluster_that_is_discarded_under_it_is_not_free_before_it_has_ended(nursery: trio.Nursery) -> None:
    rig = await rig_of({TOP: three_deltas()[TOP]}, storage=ReadyFiles)
    soon, released = await hung(rig, nursery)
    cluster = rig.device.stack.map.clusters[2]
    discard = Asked(nursery, rig.device.discard(IN_TOP, CLUSTER))
    allocate = Asked(nursery, rig.device.write(HOLE, b"n" * CLUSTER))
    await wait_all_tasks_blocked()
    released.set()
    await wait_all_tasks_blocked()
    assert (soon.errno, discard.errno, allocate.errno) == (0, 0, 0)
    assert rig.device.stack.map.clusters[3] != cluster
    is_new = bytes(await rig.device.read(HOLE, CLUSTER)) == b"n" * CLUSTER
    assert is_new
    assert bytes(await rig.device.read(IN_TOP, 512)) == bytes(512)
