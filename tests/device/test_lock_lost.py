"""An image's lock on its way from one open file of ours to another: nobody gets in meanwhile, and if somebody does we
stop writing it."""

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.agent_state import AgentState
from ploopfs.device.messages import answer
from ploopfs.device.standby import State
from ploopfs.engine.checking import examine
from ploopfs.engine.repair import carry_out, plan_for
from ploopfs.errors import ImageLocked
from ploopfs.image.header import HEADER_BYTES, Header
from tests.device.mapped import line, mapped_rig, mapper_of
from tests.device.outage import IMPATIENT, agent_at_work, passes
from tests.device.rig import BASE, CLUSTER, MIDDLE, NEW, STACK, TOP, Asked, Rig, errno_of, image

pytestmark = pytest.mark.expects_warnings


async def replaced_by_itself(rig: Rig) -> None:
    await rig.device.replace_top(TOP)


async def reopened(rig: Rig) -> None:
    await rig.device.reopen()


async def loaded(rig: Rig) -> None:
    await mapper_of(rig).load(line(*STACK))


async def loaded_under_a_new_top(rig: Rig) -> None:
    rig.store.put(NEW, image({}).build())
    await mapper_of(rig).load(line(*STACK, NEW))


async def flipped(rig: Rig) -> None:
    await mapper_of(rig).suspend()
    await answer(mapper_of(rig), "set_noresume 1")
    await answer(mapper_of(rig), "flip_upper_deltas")


REASON = f"errno=EBUSY operation=lock offset=0 length=0 level=2 file={TOP}"
HAND_OVERS = (replaced_by_itself, reopened, loaded, loaded_under_a_new_top, flipped)


async def steal_during(rig: Rig, path: str, call: Awaitable[object]) -> Asked:
    """Somebody else has the image as soon as nobody of us holds its lock."""
    taken = rig.hang("lock", path=path, count=1)
    async with trio.open_nursery() as nursery:
        asked = Asked(nursery, call)
        await wait_all_tasks_blocked()
        thief = await rig.store.open(path, writable=True)
        await thief.lock()
        taken.set()
    return asked


@pytest.mark.parametrize("hand_over", HAND_OVERS)
async def test_a_device_that_could_not_get_its_lock_back_writes_no_more(
    hand_over: Callable[[Rig], Awaitable[None]],
) -> None:
    rig = await mapped_rig()
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    asked = await steal_during(rig, TOP, hand_over(rig))
    assert (asked.errno, rig.queue.aborted) == (errno.EBUSY, True)
    mapper_of(rig).queue.resume()
    since = len(rig.faults.log)
    assert await errno_of(rig.device.write(2 * CLUSTER, b"w")) == errno.EIO
    assert not await rig.device.aclose()
    assert rig.changes_of(TOP, since) == []


@pytest.mark.parametrize("hand_over", [replaced_by_itself, reopened, loaded, flipped])
async def test_nor_one_that_does_not_know_in_time_whether_it_has_its_lock_back(
    hand_over: Callable[[Rig], Awaitable[None]],
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    rig = await mapped_rig()
    rig.faults.on(TOP, rig.faults.fail(errno.EDEADLK, "lock", count=1))
    rig.hang("lock", path=TOP)
    assert await errno_of(hand_over(rig)) == errno.EDEADLK
    assert rig.queue.aborted
    mapper_of(rig).queue.resume()
    since = len(rig.faults.log)
    assert await errno_of(rig.device.write(2 * CLUSTER, b"w")) == errno.EIO
    assert not await rig.device.aclose()
    assert rig.changes_of(TOP, since) == []


async def test_nor_one_whose_lock_was_taken_when_its_loaded_table_was_cleared() -> None:
    rig = await mapped_rig()
    await mapper_of(rig).load(line(*STACK))
    asked = await steal_during(rig, TOP, mapper_of(rig).clear())
    assert (asked.errno, rig.queue.aborted) == (0, True)
    assert await errno_of(rig.device.write(2 * CLUSTER, b"w")) == errno.EIO


async def cleared(rig: Rig) -> None:
    await mapper_of(rig).load(line(*STACK))
    rig.faults.on(TOP, taken := rig.faults.pause("lock", count=1))
    async with trio.open_nursery() as nursery:
        asked = Asked(nursery, mapper_of(rig).clear())
        await wait_all_tasks_blocked()
        await (await rig.store.open(TOP, writable=True)).lock()
        assert taken.released is not None
        taken.released.set()
    assert not asked.error


async def replaced_by_a_second_table(rig: Rig) -> None:
    """The lock of the image is then the first table's, and lost by that."""
    await mapper_of(rig).load(line(*STACK))
    asked = await steal_during(rig, TOP, mapper_of(rig).load(line(*STACK)))
    assert asked.errno == errno.EBUSY


def stolen_from(hand_over: Callable[[Rig], Awaitable[None]]) -> Callable[[Rig], Awaitable[None]]:
    async def steal(rig: Rig) -> None:
        assert (await steal_during(rig, TOP, hand_over(rig))).errno == errno.EBUSY

    return steal


THEFTS = [*map(stolen_from, HAND_OVERS), cleared, replaced_by_a_second_table]
NAMES = [*(hand_over.__name__ for hand_over in HAND_OVERS), "cleared", "replaced by a second table"]


@pytest.mark.parametrize("steal", THEFTS, ids=NAMES)
async def test_a_device_that_somebody_has_promised_to_recover_stands_by_when_its_lock_is_lost(
    steal: Callable[[Rig], Awaitable[None]],
) -> None:
    """Who has the lock has the lease. Nobody else stands by: a target that is not there would not bring it back."""
    for armed in (True, False):
        rig = await mapped_rig(armed=armed)
        await rig.device.write(2 * CLUSTER, b"acknowledged")
        await steal(rig)
        assert (rig.state, rig.queue.aborted) == (State.ON if armed else State.NOT_SUPPORTED, True)
        reason = rig.queue.standby.reason
        assert (str(reason) if reason else "") == (REASON if armed else "")


@pytest.mark.parametrize("steal", THEFTS, ids=NAMES)
async def test_whose_lock_was_lost_is_recovered_by_its_agent_when_that_is_to_be_had_again(
    steal: Callable[[Rig], Awaitable[None]], autojump_clock: MockClock
) -> None:
    rig = await mapped_rig()
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    async with agent_at_work(rig, autojump_clock, patience=IMPATIENT) as outage:
        await steal(rig)
        mapper_of(rig).queue.resume()
        await passes(10)
        assert (rig.state, "holds its lock" in rig.device.last_error) == (State.ON, True)
        rig.store.images[TOP].writers.clear()
        await outage.wait_until(AgentState.IDLE)
    assert (rig.state, rig.queue.aborted, rig.is_marked(TOP)) == (State.OFF, False, True)
    assert await rig.device.read(2 * CLUSTER, 12) == b"acknowledged"
    await rig.device.write(2 * CLUSTER, b"again")
    assert await rig.device.aclose()


@pytest.mark.parametrize("steal", THEFTS, ids=NAMES)
async def test_a_target_that_lets_go_of_it_gives_nobody_the_lock(steal: Callable[[Rig], Awaitable[None]]) -> None:
    rig = await mapped_rig()
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    await steal(rig)
    mapper_of(rig).queue.resume()
    rig.queue.standby.detach()
    since = len(rig.faults.log)
    assert await errno_of(rig.device.write(2 * CLUSTER, b"w")) == errno.EIO
    assert rig.changes_of(TOP, since) == []


@pytest.mark.parametrize("steal", THEFTS, ids=NAMES)
async def test_a_table_that_is_loaded_recovers_it_too(steal: Callable[[Rig], Awaitable[None]]) -> None:
    rig = await mapped_rig()
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    await steal(rig)
    assert await errno_of(mapper_of(rig).load(line(*STACK))) == errno.EBUSY
    assert (rig.state, rig.queue.aborted) == (State.ON, True)
    rig.store.images[TOP].writers.clear()
    await mapper_of(rig).load(line(*STACK))
    assert (rig.state, rig.queue.suspended) == (State.OFF, True)
    await mapper_of(rig).resume()
    assert (rig.state, rig.queue.aborted, rig.is_marked(TOP)) == (State.OFF, False, True)
    assert await rig.device.read(2 * CLUSTER, 12) == b"acknowledged"
    await rig.device.write(2 * CLUSTER, b"again")
    assert await rig.device.aclose()


@pytest.mark.parametrize("steal", THEFTS, ids=NAMES)
async def test_whose_lock_was_lost_before_anybody_promised_to_recover_it_stands_by_as_soon_as_somebody_does(
    steal: Callable[[Rig], Awaitable[None]], autojump_clock: MockClock
) -> None:
    rig = await mapped_rig(armed=False)
    async with agent_at_work(rig, autojump_clock, patience=IMPATIENT) as outage:
        await steal(rig)
        mapper_of(rig).queue.resume()
        rig.store.images[TOP].writers.clear()
        rig.scst.load()
        await passes(10)
        assert (rig.state, rig.queue.aborted) == (State.NOT_SUPPORTED, True)
        rig.scst.attach(rig.device)
        assert (rig.state, str(rig.queue.standby.reason)) == (State.ON, REASON)
        await outage.wait_until(AgentState.IDLE)
    assert (rig.state, rig.queue.aborted) == (State.OFF, False)
    await rig.device.write(2 * CLUSTER, b"again")
    assert await rig.device.aclose()


@pytest.mark.parametrize("is_held", [True, False], ids=["somebody has it", "nobody has it any more"])
@pytest.mark.parametrize("armed", [True, False])
@pytest.mark.parametrize("steal", THEFTS, ids=NAMES)
async def test_aborted_is_not_cleared_by_hand_where_the_lock_was_lost(
    steal: Callable[[Rig], Awaitable[None]], armed: bool, is_held: bool
) -> None:
    """Whoever has had it may have changed the image, and our map of it is that of before."""
    rig = await mapped_rig(armed=armed)
    await steal(rig)
    mapper_of(rig).queue.resume()
    if not is_held:
        rig.store.images[TOP].writers.clear()
    since = len(rig.faults.log)
    with pytest.raises(ImageLocked, match=rf"{TOP}: its lock was lost, .*: reopen the image"):
        await rig.device.set_aborted(False)
    assert rig.queue.aborted
    assert await errno_of(rig.device.write(2 * CLUSTER, b"w")) != 0
    assert rig.changes_of(TOP, since) == []
    if not is_held:
        await mapper_of(rig).clear()
        await rig.device.reopen()
        await rig.device.write(2 * CLUSTER, b"w")


async def test_a_lower_delta_whose_lock_was_taken_stops_nobody() -> None:
    """It is only read, and the map that was read before still says where its clusters are."""
    rig = await mapped_rig()
    asked = await steal_during(rig, MIDDLE, loaded(rig))
    assert (asked.errno, rig.queue.aborted) == (errno.EBUSY, False)
    await rig.device.write(2 * CLUSTER, b"w")


async def test_a_loaded_table_whose_lock_was_taken_is_neither_resumed_nor_written_when_it_goes() -> None:
    rig = await mapped_rig()
    rig.store.put(NEW, image({2: b"n"}).build())
    mapper, table = mapper_of(rig), line(BASE, MIDDLE, NEW)
    await mapper.load(table)
    assert rig.is_marked(NEW)
    asked = await steal_during(rig, NEW, mapper.load(table))
    assert (asked.errno, rig.queue.aborted) == (errno.EBUSY, False)
    since = len(rig.faults.log)
    assert await errno_of(mapper.resume()) == errno.EBUSY
    await mapper.clear()
    assert rig.changes_of(NEW, since) == []
    await rig.device.write(2 * CLUSTER, b"w")


async def test_nor_is_its_mark_believed_to_be_ours_afterwards() -> None:
    rig = await mapped_rig()
    rig.store.put(NEW, image({2: b"n"}).build())
    mapper, table = mapper_of(rig), line(BASE, MIDDLE, NEW)
    await mapper.load(table)
    await steal_during(rig, NEW, mapper.load(table))
    rig.store.images[NEW].writers.clear()
    assert await errno_of(mapper.load(table)) == errno.EBUSY


async def is_open_to_a_reader(rig: Rig, path: str) -> bool:
    reader = await rig.store.open(path, writable=False)
    try:
        return not await errno_of(reader.lock())
    finally:
        await reader.aclose()


@pytest.mark.parametrize("times", [1, 2])
async def test_an_image_that_is_written_is_nobody_elses_to_read_until_a_table_that_only_reads_it_is_in_force(
    times: int,
) -> None:
    rig = await mapped_rig()
    rig.store.put(NEW, image({}).build())
    mapper = mapper_of(rig)
    for _ in range(times):
        await mapper.load(line(*STACK, NEW))
    await rig.device.write(2 * CLUSTER, b"w")
    assert not await is_open_to_a_reader(rig, TOP)
    await mapper.resume()
    assert await is_open_to_a_reader(rig, TOP)
    assert not await is_open_to_a_reader(rig, NEW)


async def test_nor_is_it_when_such_a_table_is_cleared_or_refused() -> None:
    rig = await mapped_rig()
    rig.store.put(NEW, image({}).build())
    mapper = mapper_of(rig)
    await mapper.load(line(*STACK, NEW))
    assert await errno_of(mapper.load(line(MIDDLE, MIDDLE, TOP, NEW))) == errno.EBUSY
    assert not await is_open_to_a_reader(rig, TOP)
    await mapper.clear()
    assert not await is_open_to_a_reader(rig, TOP)


async def test_a_lock_that_cannot_be_weakened_after_the_table_came_into_force_is_told_and_no_more() -> None:
    rig = await mapped_rig()
    rig.store.put(NEW, image({}).build())
    await mapper_of(rig).load(line(*STACK, NEW))
    rig.lose(errno.EIO, "lock", path=TOP)
    await mapper_of(rig).resume()
    await rig.device.write(2 * CLUSTER, b"w")
    assert not await is_open_to_a_reader(rig, TOP)


@pytest.mark.parametrize("operation", ["unlock", "stat", "read"])
async def test_a_top_of_which_only_an_unlock_or_a_look_was_given_up_is_closed_cleanly(
    autojump_clock: MockClock, operation: str  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    """It changes nothing that the image holds."""
    rig = await mapped_rig()
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    rig.hang(operation, path=TOP, count=1)
    assert await errno_of(rig.device.reopen()) == errno.ETIMEDOUT
    assert rig.store.images[TOP].writers
    await rig.device.write(2 * CLUSTER, b"again")
    assert await rig.device.aclose()
    assert not rig.is_marked(TOP)


async def test_a_top_that_got_a_mark_while_nobody_had_its_lock_is_opened_again_after_a_repair(
    autojump_clock: MockClock  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    """Ours, written late, or a stranger's: the message says what leads on, and nothing acknowledged is lost."""
    rig = await mapped_rig()
    await rig.device.write(2 * CLUSTER, b"acknowledged")
    await steal_during(rig, TOP, rig.device.reopen())
    image_of_top = rig.store.images[TOP]
    image_of_top.writers.clear()
    assert not rig.is_marked(TOP)
    header = Header.parse(rig.store.bytes_of(TOP)[:HEADER_BYTES], TOP).marked_in_use()
    image_of_top.data[:HEADER_BYTES] = header.raw
    assert await errno_of(rig.device.reopen()) == errno.EBUSY
    assert f"`ploopfs check -r {TOP}` would repair" in rig.device.last_error
    assert not image_of_top.writers, "the repair can have the lock"
    file = await rig.store.open(TOP, writable=True)
    await file.lock()
    plan = plan_for(await examine(file))
    assert plan is not None
    await carry_out(file, plan)
    await file.aclose()
    await rig.device.reopen()
    assert await rig.device.read(2 * CLUSTER, 12) == b"acknowledged"
    await rig.device.write(2 * CLUSTER, b"again")
    assert await rig.device.aclose()
