"""A storage that is lost, or fails, between the first step of an operation and its last: nothing acknowledged is gone.

Operations wait until the requests in flight have ended, and such a request may be the one that finds the storage lost.
"""

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.device import Device
from ploopfs.device.flavour import VZ7, VZ9, Flavour
from ploopfs.device.messages import answer
from ploopfs.device.registry import Registry
from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.device.waiting import HoldPolicy, Kind, OnStandby, Ticket, WaitingRoom
from ploopfs.errors import HoldFull
from ploopfs.scst.module import Scst
from ploopfs.testing.faulty import Faults, FaultyFiles
from ploopfs.testing.forgetful import ForgetfulFiles
from tests.device.mapped import line, mapped_rig, mapper_of
from tests.device.rig import BASE, CLUSTER, MIDDLE, NEW, STACK, TOP, Asked, Rig, errno_of, image, three_deltas

pytestmark = pytest.mark.expects_warnings

NEW_STACK = (BASE, MIDDLE, NEW)

OPERATIONS: dict[str, Callable[[Rig], Awaitable[object]]] = {
    "resize": lambda rig: answer(mapper_of(rig), f"resize {20000 * CLUSTER // 512}"),
    "update_delta_index": lambda rig: answer(mapper_of(rig), "update_delta_index 0 0:1"),
    "suspend": lambda rig: mapper_of(rig).suspend(),
    "resume": lambda rig: mapper_of(rig).resume(),
}


async def lose_while_draining(rig: Rig, nursery: trio.Nursery, call: Awaitable[object]) -> Asked:
    """The last request in flight finds the lease of the storage stolen; from then on everything works again."""
    rule = rig.faults.on(BASE, rig.faults.pause("read", count=1))
    rule.errno = errno.EBUSY
    read = Asked(nursery, rig.device.read(0, 512))
    await wait_all_tasks_blocked()
    asked = Asked(nursery, call)
    await wait_all_tasks_blocked()
    assert not asked.ended
    assert rule.released is not None
    rule.released.set()
    await wait_all_tasks_blocked()
    assert (read.errno, rig.state) == (errno.EBUSY, State.ON)
    return asked


@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_operation_that_waited_for_the_request_which_met_the_loss_does_nothing(
    name: str, nursery: trio.Nursery
) -> None:
    rig = await mapped_rig()
    mapper = mapper_of(rig)
    await rig.device.write(3 * CLUSTER, b"acknowledged")
    if name == "resume":
        rig.store.put(NEW, image({2: b"t"}).build())
        await mapper.load(line(*NEW_STACK))
    since = len(rig.faults.log)
    asked = await lose_while_draining(rig, nursery, OPERATIONS[name](rig))
    assert asked.errno in (errno.EIO, errno.EBUSY)
    assert (rig.changes_of(TOP, since), rig.queue.generation, len(rig.device.unflushed)) == ([], 1, 1)
    assert rig.queue.loss is not None
    await mapper.clear()
    rig.copy(TOP, NEW)
    await mapper.load(line(*NEW_STACK))
    await mapper.resume()
    assert await rig.device.read(3 * CLUSTER, 12) == b"acknowledged"


async def forgetful(name: str, flavour: Flavour) -> tuple[ForgetfulFiles, Faults, Device]:
    """A device of three deltas, attached, on a store that crashes when it is told to; `faults` come before it."""
    store, faults, registry = ForgetfulFiles(), Faults(), Registry()
    for path, content in three_deltas().items():
        store.put(path, content)
    device = await registry.add(name, flavour=flavour, image=list(STACK), files=FaultyFiles(store, faults))
    scst = Scst(registry)
    scst.load()
    scst.attach(device)
    return store, faults, device


@pytest.mark.parametrize("fua", [False, True], ids=["flush", "fua"])
@pytest.mark.parametrize("on_standby", OnStandby)
async def test_a_flush_that_ends_after_the_loss_is_not_believed(
    fua: bool, on_standby: OnStandby, nursery: trio.Nursery
) -> None:
    store, faults, device = await forgetful("ploop0", VZ7)
    device.queue.set_on_standby(on_standby)
    await device.write(2 * CLUSTER, b"acknowledged")
    hung = faults.on(TOP, faults.pause("fsync", count=1))
    flush = Asked(nursery, device.write(2 * CLUSTER + 500, b"x", fua=True) if fua else device.flush())
    await wait_all_tasks_blocked()
    store.crash()  # the next operation is told of it, and no other
    read = Asked(nursery, device.read(2 * CLUSTER, 512))
    await wait_all_tasks_blocked()
    assert hung.released is not None
    hung.released.set()
    await wait_all_tasks_blocked()
    assert flush.ended is read.ended is (on_standby is OnStandby.FAIL)
    await device.reopen()
    await wait_all_tasks_blocked()
    assert await device.read(2 * CLUSTER, 12) == b"acknowledged"
    assert flush.errno == (errno.EIO if on_standby is OnStandby.FAIL else 0)


@pytest.mark.parametrize("kind", ["flush", "fua", "barrier"])
async def test_whatever_an_fsync_fails_with_after_the_loss_it_is_held_as_what_has_met_the_loss(
    rig: Rig, nursery: trio.Nursery, kind: str
) -> None:
    rig.queue.set_on_standby(OnStandby.HOLD)
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "flush": rig.device.flush,
        "fua": lambda: rig.device.write(2 * CLUSTER, b"new", fua=True),
        "barrier": lambda: rig.device.write(0, b"new"),
    }
    fsync = rig.faults.on(TOP, rig.faults.pause("fsync", count=1))
    fsync.errno = errno.ETIMEDOUT
    asked = Asked(nursery, calls[kind]())
    await wait_all_tasks_blocked()
    loss = rig.lose(errno.ENOTCONN, "read")
    Asked(nursery, rig.device.read(2 * CLUSTER, 9))
    await wait_all_tasks_blocked()
    assert fsync.released is not None
    fsync.released.set()
    await wait_all_tasks_blocked()
    assert (rig.state, asked.ended, rig.queue.room.held) == (State.ON, False, 2)
    assert rig.device.stats.errors == {(errno.ENOTCONN, "read"): 1, (errno.ENOTCONN, "fsync"): 1}
    rig.faults.remove(loss)
    await rig.device.reopen()
    await wait_all_tasks_blocked()
    assert asked.errno == 0


async def test_a_store_that_is_gone_is_told_of_by_its_own_errno_though_something_was_given_up_before(
    nursery: trio.Nursery,
) -> None:
    rig = await mapped_rig()
    write = rig.faults.on(TOP, rig.faults.pause("write", count=1))
    write.errno = errno.ETIMEDOUT
    given_up = Asked(nursery, rig.device.write(2 * CLUSTER, b"given up"))
    await wait_all_tasks_blocked()
    beside = Asked(nursery, rig.device.flush())
    await wait_all_tasks_blocked()
    assert write.released is not None
    write.released.set()
    await wait_all_tasks_blocked()
    assert (given_up.errno, beside.errno, rig.state) == (errno.ETIMEDOUT, errno.ETIMEDOUT, State.OFF)
    rig.lose(errno.ENOTCONN, "fsync")
    assert await errno_of(rig.device.flush()) == errno.EIO
    assert rig.state is State.ON
    assert rig.queue.standby.reason is not None
    assert (rig.queue.standby.reason.errno, rig.queue.loss) == (errno.ENOTCONN, rig.queue.standby.reason)


async def test_a_store_that_is_gone_is_told_of_by_its_own_errno_though_a_flush_was_given_up_before(
    nursery: trio.Nursery,
) -> None:
    rig = await mapped_rig()
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    answered = rig.hang("fsync", count=1)
    flush = Asked(nursery, rig.device.flush())
    await wait_all_tasks_blocked()
    flush.cancel_scope.cancel()
    answered.set()
    await wait_all_tasks_blocked()
    assert (await errno_of(rig.device.flush()), rig.state) == (errno.ETIMEDOUT, State.OFF)
    rig.lose(errno.ENOTCONN, "write")
    assert await errno_of(rig.device.write(2 * CLUSTER, b"lost")) == errno.EIO
    assert rig.state is State.ON
    assert rig.queue.standby.reason is not None
    assert (rig.queue.standby.reason.errno, rig.queue.loss) == (errno.ENOTCONN, rig.queue.standby.reason)
    assert await errno_of(rig.queue.stack.flush()) == errno.ENOTCONN


async def test_a_second_load_of_the_same_images_that_fails_leaves_nothing_older_in_them() -> None:
    rig = await mapped_rig()
    await rig.device.write(2 * CLUSTER, b"older")
    await rig.device.write(2 * CLUSTER, b"newer")
    await rig.enter_standby(errno.EBUSY)
    rig.copy(TOP, NEW)
    mapper = mapper_of(rig)
    await mapper.load(line(*NEW_STACK))
    rig.lose(errno.EIO, "write", path=NEW, skip=2, count=1)
    await errno_of(mapper.load(line(*NEW_STACK)))
    await mapper.resume()
    assert await rig.device.read(2 * CLUSTER, 5) == b"newer"


async def test_clearing_aborted_while_a_delta_is_replaced_loses_no_replay(rig: Rig, nursery: trio.Nursery) -> None:
    rig.copy(TOP, NEW)
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    rig.lose(errno.ETIMEDOUT, "write", count=1)
    assert await errno_of(rig.device.write(2 * CLUSTER + 1000, b"x")) == errno.ETIMEDOUT
    assert rig.queue.aborted
    go_on = rig.hang("open", path=NEW)
    replace = Asked(nursery, rig.device.replace_top(NEW))
    await wait_all_tasks_blocked()
    rig.queue.set_aborted(False)
    go_on.set()
    await wait_all_tasks_blocked()
    assert replace.errno == 0
    assert await rig.device.read(2 * CLUSTER, 12) == b"acknowledged"


@pytest.mark.parametrize(("armed", "number"), [(True, errno.ETIMEDOUT), (False, errno.EIO)])
@pytest.mark.parametrize(("operation", "skip"), [("write", 0), ("fsync", 2)], ids=["header", "its fsync"])
async def test_nobody_writes_without_a_mark_after_a_settle_whose_answer_was_lost(
    armed: bool, number: int, operation: str, skip: int
) -> None:
    rig = await mapped_rig(armed=armed)
    rig.copy(TOP, NEW)
    rig.faults.on(TOP, rig.faults.fail(number, operation, skip=skip, count=1, after=True))
    # A top that is known as lost from then on is replaced all the same.
    assert await errno_of(rig.device.replace_top(NEW)) in (0, number)
    assert await errno_of(rig.device.write(2 * CLUSTER, b"w")) or rig.is_marked(rig.device.stack.top.path)


async def test_nobody_writes_to_an_image_that_a_late_truncation_may_cut(autojump_clock: MockClock) -> None:
    rig = await mapped_rig({TOP: image({0: b"a", 1: b"b", 2: b"c"}).build()}, bounds=Bounds(quiesce_timeout_s=5))
    await rig.device.discard(2 * CLUSTER, CLUSTER)
    await rig.device.flush()
    rig.copy(TOP, NEW)
    rig.hang("truncate")
    assert await errno_of(rig.device.replace_top(NEW)) == errno.ETIMEDOUT
    assert autojump_clock.current_time() >= 5
    assert await errno_of(rig.device.write(4 * CLUSTER, b"w")) == errno.EIO


async def test_who_comes_back_while_the_queue_is_suspended_is_held_within_the_bounds_too() -> None:
    room = WaitingRoom(HoldPolicy(requests=1), park_timeout_s=300)
    first, second = Ticket(Op.READ, 1, 0), Ticket(Op.READ, 2, 0)
    room.enter(first, Kind.HELD)
    room.leave(first)
    room.enter(second, Kind.HELD)
    room.wait_as(Kind.PARKED)
    with pytest.raises(HoldFull):
        room.enter(first, Kind.PARKED)
    assert room.held == 1


async def test_nobody_writes_to_an_image_that_was_given_up_while_it_grew(autojump_clock: MockClock) -> None:
    rig = await mapped_rig()
    rig.hang("write", count=1)
    assert await errno_of(answer(mapper_of(rig), f"resize {20000 * CLUSTER // 512}")) == errno.ETIMEDOUT
    assert autojump_clock.current_time() >= 3600
    assert await errno_of(rig.device.write(2 * CLUSTER, b"w")) == errno.EIO


@pytest.mark.parametrize("mapped", [False, True], ids=["vz7", "vz9"])
async def test_what_was_given_up_and_happens_late_reaches_nothing_that_is_written_by_then(
    mapped: bool, rig: Rig, autojump_clock: MockClock
) -> None:
    rig = await mapped_rig() if mapped else rig
    rig.copy(TOP, NEW)
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    late = rig.faults.on(TOP, rig.faults.pause("write", count=1, late=True))
    assert await errno_of(rig.device.replace_top(NEW)) == errno.ETIMEDOUT
    assert autojump_clock.current_time() >= 30
    assert await errno_of(rig.device.reopen()) == errno.ETIMEDOUT
    assert "may yet happen" in rig.device.last_error
    assert await errno_of(rig.device.write(2 * CLUSTER, b"refused")) == errno.EIO
    assert late.released is not None
    late.released.set()
    await wait_all_tasks_blocked()
    assert not rig.is_marked(TOP), "it was the header of the closed image"
    await rig.device.reopen()
    assert rig.is_marked(TOP)
    assert await rig.device.read(2 * CLUSTER, 12) == b"acknowledged"


async def test_nobody_writes_to_an_image_whose_lock_somebody_else_took_during_a_reopen(rig: Rig) -> None:
    taken = rig.hang("lock", count=1)
    async with trio.open_nursery() as nursery:
        reopen = Asked(nursery, rig.device.reopen())
        await wait_all_tasks_blocked()
        other = await rig.store.open(TOP, writable=True)
        await other.lock()
        since = len(rig.faults.log)
        taken.set()
    assert reopen.errno == errno.EBUSY
    assert await errno_of(rig.device.write(2 * CLUSTER, b"w")) == errno.EIO
    assert rig.changes_of(TOP, since) == []


@pytest.mark.parametrize("on_standby", OnStandby)
async def test_a_barrier_that_ends_after_the_loss_is_not_believed_and_no_entry_names_what_is_gone(
    on_standby: OnStandby, nursery: trio.Nursery
) -> None:
    store, faults, device = await forgetful("ploop0", VZ7)
    device.queue.set_on_standby(on_standby)
    hung = faults.on(TOP, faults.pause("fsync", count=1))
    write = Asked(nursery, device.write(3 * CLUSTER, b"new"))
    await wait_all_tasks_blocked()
    store.crash()
    read = Asked(nursery, device.read(2 * CLUSTER, 512))
    await wait_all_tasks_blocked()
    assert hung.released is not None
    hung.released.set()
    await wait_all_tasks_blocked()
    assert write.ended is read.ended is (on_standby is OnStandby.FAIL)
    await device.reopen()
    await wait_all_tasks_blocked()
    assert write.errno == (errno.EIO if on_standby is OnStandby.FAIL else 0)
    assert await device.read(3 * CLUSTER, 3) == (b"\0\0\0" if on_standby is OnStandby.FAIL else b"new")


@pytest.mark.parametrize("survives", [False, True], ids=["nothing survives", "all survives"])
@pytest.mark.parametrize("copied", [False, True], ids=["the image", "a copy"])
async def test_wherever_in_a_resize_the_store_is_lost_a_table_recovers_the_device(survives: bool, copied: bool) -> None:
    crash = 0
    while await _resize_lost_before(crash, survives=survives, copied=copied):
        crash += 1
    assert crash > 10


async def _resize_lost_before(crash: int, *, survives: bool, copied: bool) -> bool:
    """Before that operation of the storage; whether there was one."""
    store, _faults, device = await forgetful("dm-0", VZ9)
    store.survives = lambda: survives
    mapper = device.mapper
    assert mapper is not None
    await device.write(2 * CLUSTER, b"acknowledged")
    await device.flush()
    store.crash_at = {store.operations + 1 + crash}
    failed = await errno_of(answer(mapper, f"resize {20000 * CLUSTER // 512}"))
    if not store.crashes:
        return False
    if not device.queue.is_lost:  # it was told in an operation that is tried again, or on another file
        assert await errno_of(device.flush()) or not failed
    if device.queue.is_lost:
        top = TOP
        if copied:
            top = NEW
            store.put(NEW, store.bytes_of(TOP))
        await mapper.load(line(BASE, MIDDLE, top))
        await mapper.resume()
    assert await device.read(2 * CLUSTER, 12) == b"acknowledged"
    await device.flush()
    return True


async def test_a_store_that_tells_of_its_loss_when_the_lock_is_handed_over_is_lost() -> None:
    store, _faults, device = await forgetful("dm-0", VZ9)
    mapper = device.mapper
    assert mapper is not None
    await device.write(2 * CLUSTER, b"acknowledged")
    store.crash()
    assert await errno_of(mapper.load(line(*STACK))) == errno.ENOTCONN
    assert device.queue.standby.state is State.ON
    await mapper.load(line(*STACK))
    await mapper.resume()
    assert await device.read(2 * CLUSTER, 12) == b"acknowledged"


@pytest.mark.parametrize("work", [lambda rig: rig.device.reopen(), lambda rig: rig.device.replace_top(TOP)])
async def test_a_top_that_was_settled_is_not_marked_again_when_its_storage_tells_of_its_loss(
    rig: Rig, work: Callable[[Rig], Awaitable[None]]
) -> None:
    """Nobody writes through it any more, and who stole its lease may have it by now."""
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    rig.faults.on(TOP, rig.faults.fail(errno.EBUSY, "unlock", count=1))
    assert await errno_of(work(rig)) == errno.EBUSY
    assert rig.queue.standby.state is State.ON
    told = [operation for operation, path in rig.faults.log if path == TOP].index("unlock")
    after = [operation for operation, path in rig.faults.log if path == TOP][told + 1 :]
    assert not {"write", "truncate", "punch hole", "fsync"} & set(after)
    await rig.device.reopen()
    assert (await rig.content())[2 * CLUSTER :].startswith(b"acknowledged")


async def test_a_store_that_tells_of_its_loss_when_the_lock_is_taken_back_is_lost(nursery: trio.Nursery) -> None:
    store, faults, device = await forgetful("dm-0", VZ9)
    mapper = device.mapper
    assert mapper is not None
    await device.write(3 * CLUSTER, b"acknowledged")
    hung = faults.on(TOP, faults.pause("read", count=1))
    load = Asked(nursery, mapper.load(line(*STACK)))
    await wait_all_tasks_blocked()
    flush = Asked(nursery, device.flush())
    store.crash()
    assert hung.released is not None
    hung.released.set()
    await wait_all_tasks_blocked()
    assert (load.errno, flush.errno, device.queue.standby.state) == (errno.ENOTCONN, errno.EIO, State.ON)
    await mapper.load(line(*STACK))
    await mapper.resume()
    assert await device.read(3 * CLUSTER, 12) == b"acknowledged"
