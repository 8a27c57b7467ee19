"""Tables and standby: it is left when a table is loaded, and nothing of a lost device is ever written again."""

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.messages import answer
from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.device.waiting import OnStandby
from ploopfs.image.header import IN_USE
from tests.device.mapped import SECTORS, line, mapped_rig, mapper_of, reload
from tests.device.rig import (
    BASE,
    CLUSTER,
    CONTENT,
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
)

pytestmark = pytest.mark.expects_warnings

NEW_STACK = (BASE, MIDDLE, NEW)


@pytest.fixture
async def rig() -> Rig:
    return await mapped_rig()


async def lost_copy(rig: Rig) -> None:
    """The top is lost, and NEW is what the store had of it then."""
    await rig.enter_standby(errno.EBUSY)
    rig.copy(TOP, NEW)


def states_of(rig: Rig) -> list[str]:
    """Every change of `queue/standby` from now on."""
    states: list[str] = []
    rig.queue.standby.changed.subscribe(lambda: states.append(rig.state.value))
    return states


# --- the recovery that the specification describes ----------------------------------------------------------------


async def test_standby_is_left_at_the_load_and_not_at_the_resume(rig: Rig, nursery: trio.Nursery) -> None:
    await rig.device.write(3 * CLUSTER, b"acknowledged")
    await lost_copy(rig)
    states, mapper = states_of(rig), mapper_of(rig)
    await mapper.suspend(flush=False)
    assert states == []
    await mapper.load(line(*NEW_STACK))
    assert states == ["off"]
    read = Asked(nursery, rig.device.read(3 * CLUSTER, 12))
    await wait_all_tasks_blocked()
    assert not read.ended
    await mapper.resume()
    await wait_all_tasks_blocked()
    assert (read.value, states, rig.queue.generation) == (b"acknowledged", ["off"], 2)


async def test_the_lost_image_is_not_written_to_again(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"w")
    await lost_copy(rig)
    rig.faults.rules.clear()
    old, since = rig.store.bytes_of(TOP), len(rig.faults.log)
    await reload(rig, *NEW_STACK)
    await rig.device.write(4 * CLUSTER, b"w")
    assert await rig.device.aclose()
    assert rig.changes_of(TOP, since) == []
    assert rig.store.bytes_of(TOP) == old
    assert rig.is_marked(TOP)
    assert not rig.is_marked(NEW)


async def test_unflushed_writes_are_in_the_new_image_before_standby_clears(rig: Rig) -> None:
    rig.copy(TOP, NEW)
    await rig.device.write(3 * CLUSTER, b"acknowledged")
    await rig.device.discard(2 * CLUSTER, CLUSTER)
    await rig.enter_standby(errno.EIO)
    seen: list[bytes] = []
    rig.queue.standby.changed.subscribe(lambda: seen.append(rig.store.bytes_of(NEW)))
    mapper = mapper_of(rig)
    await mapper.load(line(*NEW_STACK))
    assert b"acknowledged" in seen[0]
    assert rig.device.unflushed, "they are kept until the new table is in force"
    await mapper.resume()
    assert not rig.device.unflushed
    assert await rig.device.read(3 * CLUSTER, 12) == b"acknowledged"
    assert await rig.device.read(2 * CLUSTER, CLUSTER) == bytes(CLUSTER)


async def test_the_same_image_recovers_when_its_store_has_come_back(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"w")
    rule = await rig.enter_standby(errno.EIO)
    rig.faults.remove(rule)
    await reload(rig, *STACK)
    await rig.device.write(4 * CLUSTER, b"v")
    assert await rig.device.aclose()
    again = await rig_of({path: rig.store.bytes_of(path) for path in STACK})
    content = await again.content()
    assert (content[3 * CLUSTER : 3 * CLUSTER + 1], content[4 * CLUSTER : 4 * CLUSTER + 1]) == (b"w", b"v")


async def test_without_a_suspend_requests_wait_from_the_load_to_the_resume(rig: Rig, nursery: trio.Nursery) -> None:
    await lost_copy(rig)
    mapper = mapper_of(rig)
    await mapper.load(line(*NEW_STACK))
    write = Asked(nursery, rig.device.write(3 * CLUSTER, b"w"))
    await wait_all_tasks_blocked()
    assert (write.ended, mapper.suspended, rig.state) == (False, False, State.OFF)
    await mapper.resume()
    await wait_all_tasks_blocked()
    assert write.errno == 0
    assert await rig.device.read(3 * CLUSTER, 1) == b"w"


async def test_held_requests_go_to_the_new_table(rig: Rig, nursery: trio.Nursery) -> None:
    rig.queue.set_on_standby(OnStandby.HOLD)
    rig.copy(TOP, NEW)
    rule = rig.lose(errno.EIO)
    requests = [Asked(nursery, rig.device.write(3 * CLUSTER, b"w")), Asked(nursery, rig.device.read(0, 1))]
    await wait_all_tasks_blocked()
    assert rig.state is State.ON
    rig.faults.remove(rule)
    await reload(rig, *NEW_STACK)
    await wait_all_tasks_blocked()
    assert [request.errno for request in requests] == [0, 0]
    assert await rig.device.read(3 * CLUSTER, 1) == b"w"


# --- refused ------------------------------------------------------------------------------------------------------


async def test_a_refused_load_leaves_standby_and_the_table_as_they_were(rig: Rig, nursery: trio.Nursery) -> None:
    rig.store.put(NEW, image({}, in_use=IN_USE).build())
    await rig.enter_standby(errno.EBUSY)
    mapper = mapper_of(rig)
    for table in (line(*NEW_STACK), line(BASE, MIDDLE, "/nowhere")):
        assert await errno_of(mapper.load(table)) in (errno.EBUSY, errno.ENOENT)
        assert (rig.state, mapper.active.table.line, mapper.inactive_table) == (State.ON, line(*STACK), None)
        refused = Asked(nursery, rig.device.read(0, 1))
        await wait_all_tasks_blocked()
        assert refused.errno == errno.EIO, "refused at once, and not parked"


async def test_a_copy_that_lacks_what_was_flushed_is_refused(rig: Rig) -> None:
    rig.copy(TOP, NEW)
    await rig.device.write(3 * CLUSTER, b"w")
    await rig.device.flush()
    await rig.enter_standby(errno.EIO)
    assert await errno_of(mapper_of(rig).load(line(*NEW_STACK))) == errno.EBUSY
    assert rig.state is State.ON


async def test_a_replay_that_fails_leaves_standby_and_can_be_tried_again(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"w")
    await lost_copy(rig)
    rule = rig.lose(errno.ENOSPC, "write", path=NEW, skip=1)
    mapper = mapper_of(rig)
    assert await errno_of(mapper.load(line(*NEW_STACK))) == errno.ENOSPC
    assert (rig.state, mapper.inactive_table) == (State.ON, None)
    rig.faults.remove(rule)
    await reload(rig, *NEW_STACK)
    assert await rig.device.read(3 * CLUSTER, 1) == b"w"


async def test_a_table_too_short_or_read_only_for_the_replay_is_refused(rig: Rig) -> None:
    await rig.device.write(5 * CLUSTER, b"w")
    await lost_copy(rig)
    mapper = mapper_of(rig)
    assert await errno_of(mapper.load(line(*NEW_STACK, sectors=SECTORS - 64))) == errno.EBADSLT
    assert await errno_of(mapper.load(f"ro {line(*NEW_STACK)}")) == errno.EROFS
    assert rig.state is State.ON


async def test_suspending_with_a_flush_is_refused_in_standby(rig: Rig) -> None:
    await rig.device.write(2 * CLUSTER, b"w")
    rig.faults.remove(await rig.enter_standby(errno.EIO))
    since = len(rig.faults.log)
    assert await errno_of(mapper_of(rig).suspend()) == errno.EIO
    assert not mapper_of(rig).suspended
    assert ("fsync", TOP) not in rig.faults.log[since:]


async def test_in_standby_no_message_changes_the_stack(rig: Rig) -> None:
    rig.faults.remove(await rig.enter_standby(errno.EIO))
    since = len(rig.faults.log)
    for message in (f"resize {SECTORS + 64}", "merge", "notify_merged_forward 0"):
        assert await errno_of(answer(mapper_of(rig), message)) == errno.EIO
    assert await answer(mapper_of(rig), "get_img_name 2") == f"{TOP}\n"
    assert rig.faults.log[since:] == []


async def test_a_store_that_hangs_under_requests_lets_no_table_be_loaded(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    rig = await mapped_rig(bounds=Bounds(quiesce_timeout_s=5))
    released = rig.hang("write")
    write = Asked(nursery, rig.device.write(2 * CLUSTER, b"late"))
    await wait_all_tasks_blocked()
    rig.lose(errno.EIO, "read")
    assert await errno_of(REQUESTS[Op.READ](rig.device)) == errno.EIO
    rig.copy(TOP, NEW)
    started = autojump_clock.current_time()
    assert await errno_of(mapper_of(rig).load(line(*NEW_STACK))) == errno.EBUSY
    assert autojump_clock.current_time() - started == 5
    assert (rig.state, rig.queue.suspended) == (State.ON, False)
    released.set()
    await wait_all_tasks_blocked()
    assert write.ended
    await mapper_of(rig).load(line(*NEW_STACK))


# --- what becomes of a table that is not resumed ------------------------------------------------------------------


async def test_clear_brings_standby_back_and_the_old_images_stay_untouched(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"w")
    await lost_copy(rig)
    rig.faults.rules.clear()
    states, since, mapper = states_of(rig), len(rig.faults.log), mapper_of(rig)
    await mapper.load(line(*NEW_STACK))
    await mapper.clear()
    assert states == ["off", "on"]
    assert await errno_of(rig.device.write(0, b"x")) == errno.EIO
    assert not rig.is_marked(NEW)
    assert rig.changes_of(TOP, since) == []
    await reload(rig, *NEW_STACK)
    assert await rig.device.read(3 * CLUSTER, 1) == b"w"


@pytest.mark.parametrize("is_armed", [True, False], ids=["both fuses", "a fuse out"])
async def test_a_lost_image_that_was_loaded_again_and_cleared_keeps_its_mark(is_armed: bool) -> None:
    """With a fuse out nobody has kept what was acknowledged, and it may be missing there."""
    rig = await mapped_rig(armed=is_armed)
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    rig.lose(errno.ENOTCONN, "write", count=1)
    assert await errno_of(rig.device.write(2 * CLUSTER, b"x")) == errno.EIO
    mapper = mapper_of(rig)
    for _ in range(2):
        await mapper.load(line(*STACK))
        await mapper.clear()
        assert rig.is_marked(TOP)
    await reload(rig, *STACK)
    await rig.device.write(2 * CLUSTER, b"then")
    assert await rig.device.aclose()
    assert not rig.is_marked(TOP)


async def test_a_device_that_was_cleared_and_detached_still_does_not_use_the_lost_images(rig: Rig) -> None:
    await lost_copy(rig)
    rig.faults.rules.clear()
    since, mapper = len(rig.faults.log), mapper_of(rig)
    await mapper.load(line(*NEW_STACK))
    await mapper.clear()
    rig.queue.standby.detach()
    assert await errno_of(rig.device.write(2 * CLUSTER, b"x")) == errno.EBUSY
    assert await errno_of(rig.device.read(2 * CLUSTER, 1)) == errno.EBUSY
    await rig.device.replace_top(NEW)
    assert await rig.content() == CONTENT
    assert rig.changes_of(TOP, since) == []


async def test_an_error_table_in_the_place_of_one_that_recovers_brings_standby_back(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"acknowledged")
    await lost_copy(rig)
    mapper = mapper_of(rig)
    await mapper.load(line(*NEW_STACK))
    await mapper.load(f"0 {SECTORS} error")
    states = [rig.state.value]
    await mapper.resume()
    states.append(rig.state.value)
    await reload(rig, *NEW_STACK)
    assert [*states, rig.state.value] == ["on", "on", "off"]
    assert await rig.device.read(3 * CLUSTER, 12) == b"acknowledged"


async def test_a_target_that_lets_go_while_a_table_is_loaded_leaves_a_device_that_is_lost(
    rig: Rig, nursery: trio.Nursery
) -> None:
    await lost_copy(rig)
    rig.faults.rules.clear()
    since, released = len(rig.faults.log), rig.hang("open", path=NEW)
    mapper = mapper_of(rig)
    load = Asked(nursery, mapper.load(line(*NEW_STACK)))
    await wait_all_tasks_blocked()
    rig.queue.standby.detach()
    released.set()
    await wait_all_tasks_blocked()
    assert (load.errno, rig.state) == (0, State.NOT_SUPPORTED)
    await mapper.resume()
    await rig.device.write(2 * CLUSTER, b"w")
    assert rig.changes_of(TOP, since) == []


async def test_a_device_that_was_let_go_in_standby_gets_its_next_table_all_the_same(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"acknowledged")
    await lost_copy(rig)
    rig.queue.standby.detach()
    since = len(rig.faults.log)
    await reload(rig, *NEW_STACK)
    assert await rig.device.read(3 * CLUSTER, 12) == b"acknowledged"
    assert rig.changes_of(TOP, since) == []


async def load_the_same(rig: Rig) -> None:
    await reload(rig, *STACK)


async def reopen(rig: Rig) -> None:
    await rig.device.reopen()


@pytest.mark.parametrize("armed", [True, False], ids=["armed", "a fuse out"])
@pytest.mark.parametrize("recover", [load_the_same, reopen])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EBUSY])
async def test_after_a_failed_fsync_the_image_is_not_believed_before_it_is_opened_again(
    armed: bool, recover: Callable[[Rig], Awaitable[None]], number: int
) -> None:
    """Whether its errno means standby or not; the top cannot be settled any more, and need not be."""
    rig = await mapped_rig(armed=armed)
    await rig.device.write(3 * CLUSTER, b"w")
    rig.lose(number, "fsync", count=1)
    assert [await errno_of(rig.device.flush()), await errno_of(rig.device.flush()) != 0] == [number, True]
    await recover(rig)
    await rig.device.flush()
    assert await rig.device.read(3 * CLUSTER, 1) == b"w"
    assert await rig.device.aclose()
    assert not rig.is_marked(TOP)


async def test_a_reopen_recovers_after_a_clear(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"w")
    rule = await rig.enter_standby(errno.EIO)
    rig.faults.remove(rule)
    mapper = mapper_of(rig)
    await mapper.load(line(*STACK))
    await mapper.clear()
    await rig.device.reopen()
    assert rig.state is State.OFF
    assert await rig.device.read(3 * CLUSTER, 1) == b"w"
    await rig.device.write(4 * CLUSTER, b"w")


async def test_a_device_that_ends_before_the_resume_leaves_the_lost_image_alone(rig: Rig) -> None:
    await rig.device.write(3 * CLUSTER, b"w")
    await lost_copy(rig)
    rig.faults.rules.clear()
    since = len(rig.faults.log)
    await mapper_of(rig).load(line(*NEW_STACK))
    assert not await rig.device.aclose()
    assert rig.changes_of(TOP, since) == []
    assert (rig.is_marked(TOP), rig.is_marked(NEW)) == (True, False)


async def test_a_second_load_repeats_what_no_flush_has_confirmed(rig: Rig) -> None:
    other = "/third/top.hds"
    rig.copy(TOP, NEW)
    rig.copy(TOP, other)
    await rig.device.write(3 * CLUSTER, b"acknowledged")
    await rig.enter_standby(errno.EIO)
    mapper = mapper_of(rig)
    await mapper.load(line(*NEW_STACK))
    await mapper.load(line(BASE, MIDDLE, other))
    assert (rig.is_marked(NEW), rig.is_marked(other)) == (False, True)
    await mapper.load(line(BASE, MIDDLE, other))
    await mapper.resume()
    assert await rig.device.read(3 * CLUSTER, 12) == b"acknowledged"
    assert await rig.device.aclose()
    again = await rig_of({path: rig.store.bytes_of(path) for path in (BASE, MIDDLE, other)})
    assert (await again.content())[3 * CLUSTER : 3 * CLUSTER + 12] == b"acknowledged"


async def test_a_table_that_was_loaded_before_the_loss_cannot_be_resumed(rig: Rig) -> None:
    rig.store.put(NEW, image({2: b"n"}).build())
    mapper = mapper_of(rig)
    await mapper.load(line(*NEW_STACK))
    await rig.device.write(3 * CLUSTER, b"w")
    await rig.enter_standby(errno.EIO)
    assert await errno_of(mapper.resume()) == errno.EBUSY
    assert rig.state is State.ON
    await mapper.load(line(*NEW_STACK))
    await mapper.resume()
    assert await rig.device.read(2 * CLUSTER, 2 * CLUSTER) == cluster_of(b"n") + b"w" + bytes(CLUSTER - 1)


@pytest.mark.expects_warnings
async def test_a_table_that_cannot_be_resumed_any_more_does_not_keep_the_device_from_recovering(rig: Rig) -> None:
    rig.store.put(NEW, image({2: b"n"}).build())
    mapper = mapper_of(rig)
    await mapper.load(line(*NEW_STACK))
    await rig.device.write(3 * CLUSTER, b"w")
    rule = await rig.enter_standby(errno.EIO)
    rig.faults.remove(rule)
    await rig.device.reopen()
    assert (rig.queue.standby.state, mapper.inactive_table) == (State.OFF, None)
    assert not rig.is_marked(NEW)
    assert (await rig.device.read(3 * CLUSTER, 1)) == b"w"


# --- the error target ---------------------------------------------------------------------------------------------


async def test_on_an_error_target_every_request_fails_and_nothing_stands_by(rig: Rig) -> None:
    mapper = mapper_of(rig)
    await mapper.load(f"0 {SECTORS} error")
    await mapper.resume()
    assert mapper.active.status == mapper.active.table.line == f"0 {SECTORS} error"
    for request in REQUESTS.values():
        assert await errno_of(request(rig.device)) == errno.EIO
    assert rig.state is State.OFF
    assert not rig.is_marked(TOP)
    for operation in (rig.device.reopen, lambda: rig.device.replace_top(TOP)):
        assert await errno_of(operation()) == errno.ENOENT
    await mapper.suspend()
    await mapper.load(line(*STACK))
    await mapper.resume()
    assert await rig.content() == CONTENT
    assert await rig.device.aclose()


async def test_a_device_on_an_error_target_ends_cleanly(rig: Rig) -> None:
    mapper = mapper_of(rig)
    await mapper.load("0 2097152 error")
    await mapper.resume()
    assert rig.device.size_bytes == 1 << 30
    assert await rig.device.aclose()


async def test_a_lost_device_can_be_degraded_and_its_held_requests_fail(rig: Rig, nursery: trio.Nursery) -> None:
    rig.queue.set_on_standby(OnStandby.HOLD)
    await rig.device.write(3 * CLUSTER, b"acknowledged")
    rig.lose(errno.EIO)
    held = Asked(nursery, rig.device.read(2 * CLUSTER, 1))
    await wait_all_tasks_blocked()
    mapper = mapper_of(rig)
    await mapper.load(f"0 {SECTORS} error")
    assert (rig.state, held.ended) == (State.ON, False)
    await mapper.resume()
    await wait_all_tasks_blocked()
    assert held.errno == errno.EIO
    assert await errno_of(rig.device.read(0, 1)) == errno.EIO

    rig.faults.rules.clear()
    await reload(rig, *STACK)
    assert rig.state is State.OFF
    assert await rig.device.read(3 * CLUSTER, 12) == b"acknowledged"


# --- the storage has no room --------------------------------------------------------------------------------------


async def test_a_full_storage_is_an_event_of_the_device(rig: Rig) -> None:
    mapper = mapper_of(rig)
    rig.lose(errno.ENOSPC, "truncate", "write", count=2)
    assert await errno_of(rig.device.write(3 * CLUSTER, b"w")) == errno.ENOSPC
    assert (mapper.active.event_nr, mapper.active.status) == (1, f"0 {SECTORS} ploop 3 v2 64 s")
    assert (mapper.active.take_event(), mapper.active.take_event()) == (True, False)
    assert mapper.active.status.endswith(" o")


async def test_an_image_of_ours_that_the_outage_cut_off_while_it_grew_is_loaded_and_closed_whole() -> None:
    rig = await mapped_rig()
    await rig.device.write(4 * CLUSTER, b"acknowledged")
    rig.faults.remove(await rig.enter_standby(errno.EBUSY))
    # Of a later growth that nobody has acknowledged.
    rig.store.images[TOP].data.extend(bytes(1000))
    await reload(rig, *STACK)
    assert await rig.device.read(4 * CLUSTER, 12) == b"acknowledged"
    assert await rig.device.aclose()
    assert len(rig.store.bytes_of(TOP)) % CLUSTER == 0


async def test_one_that_is_not_ours_must_have_whole_clusters() -> None:
    rig = await mapped_rig()
    rig.store.put(NEW, image({2: b"t"}).build() + bytes(1000))
    await rig.enter_standby(errno.EBUSY)
    assert await errno_of(mapper_of(rig).load(line(*STACK[:-1], NEW))) == errno.EINVAL


@pytest.mark.parametrize("is_armed", [True, False])
async def test_an_error_target_heals_nothing_and_what_was_acknowledged_comes_back_with_the_images(
    rig: Rig, is_armed: bool
) -> None:
    """Also if the target lets go of the device meanwhile."""
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    fault = rig.lose(errno.EIO)
    assert await errno_of(rig.device.flush()) == errno.EIO
    mapper = mapper_of(rig)
    await mapper.load(f"0 {SECTORS} error")
    await mapper.resume()
    rig.faults.remove(fault)
    if not is_armed:
        rig.queue.standby.detach()
    stored = rig.store.bytes_of(TOP)
    rig.store.put(TOP, stored.replace(b"acknowledged", b"forgotten..."))
    assert mapper.is_lost
    await mapper.suspend()
    await reload(rig, *STACK)
    assert await rig.device.read(2 * CLUSTER, 12) == b"acknowledged"
    assert not rig.device.unflushed
    assert not mapper.is_lost


async def test_an_error_target_in_the_place_of_a_lost_table_stands_by_again_when_what_recovers_it_is_cleared(
    rig: Rig,
) -> None:
    fault = await rig.enter_standby(errno.EBUSY)
    mapper = mapper_of(rig)
    await mapper.load(f"0 {SECTORS} error")
    await mapper.resume()
    rig.faults.remove(fault)
    states = states_of(rig)
    await mapper.load(line(*STACK))
    await mapper.clear()
    assert states == ["off", "on"]


async def test_a_table_with_the_image_of_a_top_that_cannot_be_flushed_is_opened_again_before_it_takes_over(
    rig: Rig,
) -> None:
    """It was opened before: what the failed fsync has left in the page cache would be taken for what is stored."""
    rig.queue.standby.detach()
    mapper = mapper_of(rig)
    await rig.device.write(3 * CLUSTER, b"x")
    await mapper.load(line(*STACK))
    fault = rig.lose(errno.EIO, "fsync", count=1)
    assert await errno_of(mapper.resume()) == errno.EIO
    rig.faults.remove(fault)
    assert await errno_of(mapper.resume()) == errno.EBUSY
    opened = [entry for entry in rig.faults.log if entry == ("open", TOP)]
    await reload(rig, *STACK)
    assert rig.faults.log.count(("open", TOP)) == len(opened) + 1
    assert await rig.device.read(3 * CLUSTER, 1) == b"x"
