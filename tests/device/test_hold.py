"""`on_standby=hold`: who waits for recovery, in which order they are let go, what bounds them."""

import errno
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.bounds import PACE
from ploopfs.device import queue as queue_module
from ploopfs.device.bounds import Bounds
from ploopfs.device.standby import STANDBY_ERRNOS, Reason, State
from ploopfs.device.stats import Op
from ploopfs.device.waiting import Kind, OnStandby, Ticket
from ploopfs.errors import (
    DeviceAborted,
    HeldFailed,
    HoldFull,
    HoldTimeout,
    InStandby,
    ParkTimeout,
    PloopError,
    QueueFull,
    RequestFailed,
    ShuttingDown,
)
from tests.device.gate import Gate, after, gate_of
from tests.device.rig import Asked, backend_error

pytestmark = pytest.mark.expects_warnings

each_op = pytest.mark.parametrize("op", Op)


async def quiesce(gate: Gate, until: trio.Event) -> None:
    async with gate.queue.quiesced():
        await until.wait()


def count_calls_of_verdict(gate: Gate) -> list[int]:
    """How often the gate looks at a request, from now on."""
    count, verdict = [0], gate.queue._verdict

    def counting(ticket: Ticket) -> Kind | PloopError | None:
        count[0] += 1
        return verdict(ticket)

    gate.queue._verdict = counting  # type: ignore[method-assign]
    return count


def errors_of(asked: list[Asked]) -> list[type[Exception] | None]:
    return [type(each.error) if each.error else None for each in asked]


# --- who waits ----------------------------------------------------------------------------------------------------


@each_op
async def test_a_request_that_arrives_in_standby_waits_for_recovery(op: Op) -> None:
    async with gate_of() as gate:
        first = await gate.enter_standby()
        [asked] = await gate.asked_one_by_one("asked", op=op, length=4096)
        assert not asked.ended
        assert gate.counts == (2, 4096 if op is Op.WRITE else 0, 0, 0)
        assert gate.issued == ["first"]
        await gate.recover()
        await wait_all_tasks_blocked()
        assert (first.value, asked.value) == ("first", "asked")


@each_op
@pytest.mark.parametrize("number", sorted(STANDBY_ERRNOS), ids=errno.errorcode.get)
async def test_a_request_that_met_the_error_itself_is_issued_anew_on_the_recovered_stack(op: Op, number: int) -> None:
    async with gate_of() as gate:
        gate.outage = number
        [asked] = await gate.asked_one_by_one("asked", op=op)
        assert (asked.ended, gate.rig.state) == (False, State.ON)
        await gate.recover()
        await wait_all_tasks_blocked()
        assert asked.value == "asked"
    assert (gate.issued, gate.generations) == (["asked", "asked"], [1, 2])
    assert gate.queue.stats.by_op[op].ios == 1


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
async def test_an_error_that_does_not_mean_standby_is_not_held(number: int) -> None:
    async with gate_of() as gate:
        gate.outage = number
        [asked] = await gate.asked_one_by_one("asked")
        assert asked.errno == number


async def test_with_a_fuse_out_nobody_is_held() -> None:
    async with gate_of(armed=False) as gate:
        gate.outage = errno.ENOTCONN
        [asked] = await gate.asked_one_by_one("asked")
        assert asked.errno == errno.ENOTCONN


async def test_a_late_error_of_an_older_generation_is_issued_anew_at_once() -> None:
    async with gate_of() as gate:
        hangs = gate.hangs = trio.Event()
        [asked] = await gate.asked_one_by_one("asked")
        gate.queue.swap(gate.queue.stack)
        again = gate.hangs = trio.Event()
        gate.outage = errno.ENOTCONN
        hangs.set()
        await wait_all_tasks_blocked()
        assert (gate.issued, gate.generations) == (["asked", "asked"], [1, 2])
        gate.outage = 0
        again.set()
        await wait_all_tasks_blocked()
        assert (asked.value, gate.rig.state) == ("asked", State.OFF)


# --- order --------------------------------------------------------------------------------------------------------


async def test_requests_are_let_go_in_the_order_in_which_they_came() -> None:
    async with gate_of() as gate:
        await gate.enter_standby()
        await gate.asked_one_by_one(*"abcdef")
        await gate.recover()
        await wait_all_tasks_blocked()
    assert gate.issued == ["first", "first", *"abcdef"]


async def test_one_that_failed_late_keeps_the_place_that_it_had_when_it_came() -> None:
    async with gate_of() as gate:
        hangs = gate.hangs = trio.Event()
        await gate.asked_one_by_one("early")
        gate.hangs = None
        await gate.enter_standby()
        await gate.asked_one_by_one("late")
        hangs.set()
        await wait_all_tasks_blocked()
        assert gate.counts == (3, 0, 0, 0)
        await gate.recover()
        await wait_all_tasks_blocked()
    assert gate.issued == ["early", "first", "early", "first", "late"]


async def test_one_outage_after_another_changes_nobodys_place() -> None:
    async with gate_of() as gate:
        await gate.enter_standby()
        await gate.asked_one_by_one(*"abc")
        for _ in range(3):
            await gate.recover()
            gate.outage = errno.EBUSY
            await wait_all_tasks_blocked()
            assert gate.counts[0] == 4
        await gate.recover()
        await wait_all_tasks_blocked()
        assert [asked.value for asked in gate.asked] == ["first", *"abc"]
    assert gate.issued[-4:] == ["first", *"abc"]


async def test_one_that_was_issued_anew_without_a_wait_still_has_its_place_when_it_fails_again() -> None:
    async with gate_of() as gate:
        hangs = gate.hangs = trio.Event()
        await gate.asked_one_by_one("early")
        gate.queue.swap(gate.queue.stack)
        later = gate.hangs = trio.Event()
        await gate.asked_one_by_one("late")
        gate.outage = errno.ENOTCONN
        hangs.set()
        await wait_all_tasks_blocked()
        assert gate.issued == ["early", "late", "early"]
        later.set()
        await wait_all_tasks_blocked()
        gate.hangs = None
        await gate.recover()
        await wait_all_tasks_blocked()
    assert gate.issued[3:] == ["early", "late"]


async def test_who_was_let_go_lets_one_pass_that_came_back_with_an_older_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_module, "PACE", 1)
    async with gate_of() as gate:
        await gate.enter_standby()
        await gate.asked_one_by_one(*"bc")
        hangs = gate.hangs = trio.Event()
        await gate.recover()
        await wait_all_tasks_blocked()
        assert gate.issued == ["first", "first"]
        # Its error is a late one, after which nobody has to wait: b is let go and the first one comes back at once.
        gate.queue.swap(gate.queue.stack)
        again = gate.hangs = trio.Event()
        gate.outage = errno.ENOTCONN
        hangs.set()
        await wait_all_tasks_blocked()
        gate.outage = 0
        again.set()
        await wait_all_tasks_blocked()
    assert gate.issued[2:] == ["first", *"bc"]


async def test_who_comes_while_others_are_let_go_is_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "PACE", 1)
    async with gate_of() as gate:
        await gate.enter_standby()
        await gate.asked_one_by_one(*"abc")
        hangs = gate.hangs = trio.Event()
        await gate.recover()
        await gate.asked_one_by_one("new")
        assert gate.counts == (3, 0, 1, 1)
        gate.hangs = None
        hangs.set()
        await wait_all_tasks_blocked()
    assert gate.issued == ["first", "first", *"abc", "new"]


# --- pace ---------------------------------------------------------------------------------------------------------


async def test_no_more_than_the_pace_are_in_flight_while_others_wait() -> None:
    async with gate_of() as gate:
        await gate.enter_standby()
        await gate.asked_one_by_one(*map(str, range(3 * PACE)))
        hangs = gate.hangs = trio.Event()
        await gate.recover()
        for number in range(1, 3 * PACE + 2):
            await wait_all_tasks_blocked()
            assert gate.queue.stats.in_flight <= PACE
            assert len(gate.issued) == 1 + min(3 * PACE + 1, PACE * number)
            if gate.counts[0] == 0:
                break
            gate.hangs, ended = trio.Event(), hangs
            hangs = gate.hangs
            ended.set()
        gate.hangs = None
        hangs.set()
        await wait_all_tasks_blocked()
        assert not any(asked.errno for asked in gate.asked)


async def test_who_was_never_stopped_is_not_held_up_by_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "PACE", 2)
    async with gate_of() as gate:
        await gate.enter_standby()
        await gate.asked_one_by_one("a", "b")
        hangs = gate.hangs = trio.Event()
        await gate.recover()
        await gate.asked_one_by_one(*"wxyz")
        assert gate.counts == (1, 0, 4, 2)
        gate.hangs = trio.Event()
        hangs.set()
        await wait_all_tasks_blocked()
        assert gate.issued == ["first", "first", "a", "b", *"wxyz"]
        assert gate.counts == (0, 0, 0, 5)
        hangs, gate.hangs = gate.hangs, None
        hangs.set()


async def test_who_waits_behind_others_when_the_queue_is_quiesced_is_stopped_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_module, "PACE", 1)
    async with gate_of() as gate, trio.open_nursery() as nursery:
        await gate.enter_standby()
        await gate.asked_one_by_one("a")
        hangs = gate.hangs = trio.Event()
        await gate.recover()
        await gate.asked_one_by_one("b")
        quiesced = Asked(nursery, quiesce(gate, trio.Event()))
        await wait_all_tasks_blocked()
        quiesced.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        gate.hangs = trio.Event()
        hangs.set()
        await wait_all_tasks_blocked()
        assert (gate.issued[2:], gate.queue.stats.in_flight) == (["a"], 1)
        hangs, gate.hangs = gate.hangs, None
        hangs.set()
        await wait_all_tasks_blocked()
        assert gate.issued[2:] == ["a", "b"]


# --- bounds -------------------------------------------------------------------------------------------------------


async def test_with_the_bound_on_their_number_reached_further_requests_are_refused() -> None:
    async with gate_of(bounds=Bounds(held_requests=3)) as gate:
        await gate.enter_standby()
        asked = await gate.asked_one_by_one(*"abcd")
        assert errors_of(asked[2:]) == [HoldFull, HoldFull]
        assert [each.errno for each in asked[2:]] == [errno.EIO] * 2
        assert gate.counts == (3, 0, 0, 0)
        await gate.recover()
        await wait_all_tasks_blocked()
        assert [each.value for each in asked[:2]] == ["a", "b"]


async def test_the_bound_on_bytes_counts_the_data_of_writes_only() -> None:
    async with gate_of(bounds=Bounds(held_bytes=1000)) as gate:
        await gate.enter_standby()
        await gate.asked_one_by_one("read", "discard", op=Op.DISCARD, length=1 << 30)
        fits, too_large, smaller = [
            (await gate.asked_one_by_one(str(length), op=Op.WRITE, length=length))[0] for length in (600, 401, 400)
        ]
        assert (fits.ended, type(too_large.error), smaller.ended) == (False, HoldFull, False)
        assert gate.counts == (5, 1000, 0, 0)
        await gate.recover()


async def test_one_that_met_the_error_and_finds_no_room_fails_with_its_own_errno() -> None:
    async with gate_of(bounds=Bounds(held_requests=1)) as gate:
        hangs = gate.hangs = trio.Event()
        asked = await gate.asked_one_by_one("a", "b", "c")
        gate.outage = errno.EBUSY
        hangs.set()
        await wait_all_tasks_blocked()
        failed = [each for each in asked if each.ended]
        assert errors_of(failed) == [RequestFailed, RequestFailed]
        assert [each.errno for each in failed] == [errno.EBUSY] * 2
        gate.hangs = None
        await gate.recover()


async def test_a_held_request_counts_in_the_queue() -> None:
    async with gate_of(bounds=Bounds(requests=2)) as gate:
        await gate.enter_standby()
        held, refused = await gate.asked_one_by_one("held", "refused")
        assert (held.ended, type(refused.error)) == (False, QueueFull)
        await gate.recover()


async def test_a_request_held_for_too_long_fails_with_eio_at_the_timeout(mock_clock: MockClock) -> None:
    async with gate_of(timeout_ms=1500) as gate:
        first = await gate.enter_standby()
        await after(mock_clock, 1)
        [later] = await gate.asked_one_by_one("later")
        await after(mock_clock, 0.499)
        assert not first.ended
        await after(mock_clock, 0.001)
        assert (errors_of([first]), first.errno, later.ended) == ([HoldTimeout], errno.EIO, False)
        await after(mock_clock, 1)
        assert (errors_of([later]), gate.rig.state) == ([HoldTimeout], State.ON)


async def test_the_bound_on_time_counts_from_when_a_request_was_held_first(mock_clock: MockClock) -> None:
    async with gate_of(timeout_ms=10_000) as gate:
        first = await gate.enter_standby()
        for _ in range(3):
            await after(mock_clock, 3)
            await gate.recover()
            gate.outage = errno.EIO
            await wait_all_tasks_blocked()
        assert (first.ended, gate.issued) == (False, ["first"] * 4)
        await after(mock_clock, 0.999)
        assert not first.ended
        await after(mock_clock, 0.001)
        assert errors_of([first]) == [HoldTimeout]


@pytest.mark.parametrize(("later_ms", "fails_after_s"), [(1000, 0), (2000, 0), (5000, 3), (60_000, 58)])
async def test_a_changed_timeout_counts_from_when_the_held_ones_came(
    mock_clock: MockClock, later_ms: int, fails_after_s: float
) -> None:
    async with gate_of(timeout_ms=30_000) as gate:
        first = await gate.enter_standby()
        await after(mock_clock, 2)
        gate.queue.set_hold_timeout(later_ms)
        if fails_after_s:
            await after(mock_clock, fails_after_s - 0.001)
            assert not first.ended
            await after(mock_clock, 0.001)
        await wait_all_tasks_blocked()
        assert errors_of([first]) == [HoldTimeout]


async def test_a_changed_timeout_is_nothing_to_those_who_are_only_parked(mock_clock: MockClock) -> None:
    async with gate_of(bounds=Bounds(park_timeout_s=10)) as gate:
        await gate.queue.suspend()
        [parked] = await gate.asked_one_by_one("parked")
        await after(mock_clock, 6)
        gate.queue.set_hold_timeout(1)
        await after(mock_clock, 4)
        assert errors_of([parked]) == [ParkTimeout]
        gate.queue.resume()


async def test_who_is_held_is_not_forgotten_when_recovery_leaves_it_waiting(mock_clock: MockClock) -> None:
    """Paced behind a store that hangs: then the bound on parked requests counts, from there on."""
    async with gate_of(bounds=Bounds(park_timeout_s=10), timeout_ms=5000) as gate:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(queue_module, "PACE", 1)
            await gate.enter_standby()
            [second] = await gate.asked_one_by_one("second")
            await after(mock_clock, 4)
            hangs = gate.hangs = trio.Event()
            await gate.recover()
            await after(mock_clock, 9.999)
            assert (second.ended, gate.counts) == (False, (1, 0, 0, 1))
            await after(mock_clock, 0.001)
            assert errors_of([second]) == [ParkTimeout]
            hangs.set()


# --- refused by hand, by a change of the policy, by the end -------------------------------------------------------


async def test_fail_held_fails_every_held_request_with_eio_and_says_how_many() -> None:
    async with gate_of() as gate:
        await gate.enter_standby()
        await gate.asked_one_by_one("a", "b")
        assert gate.queue.fail_held() == 3
        assert gate.queue.fail_held() == 0
        assert gate.counts == (0, 0, 0, 0)
        await wait_all_tasks_blocked()
        assert errors_of(gate.asked) == [HeldFailed] * 3
        assert [asked.errno for asked in gate.asked] == [errno.EIO] * 3
        [held] = await gate.asked_one_by_one("held")
        assert not held.ended
        await gate.recover()


async def test_fail_held_leaves_alone_who_is_only_parked() -> None:
    async with gate_of() as gate:
        await gate.queue.suspend()
        [parked] = await gate.asked_one_by_one("parked")
        assert gate.queue.fail_held() == 0
        gate.queue.resume()
        await wait_all_tasks_blocked()
        assert parked.value == "parked"


async def test_who_is_held_when_the_policy_becomes_fail_is_refused_at_once() -> None:
    async with gate_of() as gate:
        await gate.enter_standby()
        await gate.asked_one_by_one("a")
        gate.queue.set_on_standby(OnStandby.FAIL)
        await wait_all_tasks_blocked()
        assert errors_of(gate.asked) == [InStandby] * 2


async def test_when_the_policy_becomes_hold_in_standby_the_next_request_waits() -> None:
    async with gate_of(on_standby=OnStandby.FAIL) as gate:
        first = await gate.enter_standby()
        [refused] = await gate.asked_one_by_one("refused")
        gate.queue.set_on_standby(OnStandby.HOLD)
        [held] = await gate.asked_one_by_one("held")
        assert (first.errno, errors_of([refused]), held.ended) == (errno.ENOTCONN, [InStandby], False)
        await gate.recover()


async def test_a_request_in_flight_obeys_the_policy_that_is_in_force_when_it_fails() -> None:
    async with gate_of() as gate:
        hangs = gate.hangs = trio.Event()
        [asked] = await gate.asked_one_by_one("asked")
        gate.queue.set_on_standby(OnStandby.FAIL)
        gate.outage = errno.ENOTCONN
        hangs.set()
        await wait_all_tasks_blocked()
        assert asked.errno == errno.ENOTCONN


async def test_at_the_end_nobody_waits_for_recovery_and_nobody_will() -> None:
    async with gate_of() as gate:
        await gate.enter_standby()
        await gate.asked_one_by_one("held")
        gate.queue.close_gate()
        await gate.asked_one_by_one("late")
        assert errors_of(gate.asked) == [ShuttingDown] * 3
        assert [asked.errno for asked in gate.asked] == [errno.EIO] * 3


async def test_at_the_end_nobody_waits_for_a_resume_and_nobody_will() -> None:
    async with gate_of() as gate:
        await gate.queue.suspend()
        await gate.asked_one_by_one("parked")
        gate.queue.close_gate()
        await gate.asked_one_by_one("late")
        assert errors_of(gate.asked) == [ShuttingDown] * 2


async def test_at_the_end_a_key_that_is_put_in_again_is_noticed_by_who_is_parked() -> None:
    async with gate_of() as gate:
        await gate.enter_standby()
        gate.rig.registry.key.enabled = False
        async with gate.queue.quiesced():
            [parked] = await gate.asked_one_by_one("parked")
            gate.queue.close_gate()
            await wait_all_tasks_blocked()
            assert not parked.ended
            gate.rig.registry.key.enabled = True
            await wait_all_tasks_blocked()
            assert errors_of([parked]) == [ShuttingDown]


async def test_an_error_that_is_met_at_the_end_is_not_held() -> None:
    async with gate_of() as gate:
        hangs = gate.hangs = trio.Event()
        [asked] = await gate.asked_one_by_one("asked")
        gate.queue.close_gate()
        gate.outage = errno.EBUSY
        hangs.set()
        await wait_all_tasks_blocked()
        assert asked.errno == errno.EBUSY


async def test_a_device_that_is_closed_holds_nobody() -> None:
    async with gate_of() as gate:
        first = await gate.enter_standby()
        assert not await gate.rig.device.aclose()
        await wait_all_tasks_blocked()
        assert errors_of([first]) == [ShuttingDown]


# --- the two fuses ------------------------------------------------------------------------------------------------


def take_the_key_out(gate: Gate) -> None:
    gate.rig.registry.key.enabled = False


def take_en_out(gate: Gate) -> None:
    gate.queue.standby.detach()


@pytest.mark.parametrize("take_out", [take_the_key_out, take_en_out])
async def test_with_a_fuse_taken_out_who_is_held_goes_on_and_meets_plain_errors(
    take_out: Callable[[Gate], None],
) -> None:
    async with gate_of() as gate:
        await gate.enter_standby(errno.EBUSY)
        await gate.asked_one_by_one("read", op=Op.READ)
        await gate.asked_one_by_one("write", op=Op.WRITE)
        take_out(gate)
        await wait_all_tasks_blocked()
        # The first plain error aborts the device, as in vz7, and an aborted device refuses what writes.
        assert errors_of(gate.asked) == [RequestFailed, RequestFailed, DeviceAborted]


async def test_the_key_put_in_again_holds_who_comes_then() -> None:
    async with gate_of() as gate:
        gate.queue.standby.storage_lost(Reason.of(backend_error(errno.EIO), 0))
        gate.rig.registry.key.enabled = False
        [passed] = await gate.asked_one_by_one("passed")
        gate.rig.registry.key.enabled = True
        [held] = await gate.asked_one_by_one("held")
        assert (passed.value, held.ended) == ("passed", False)
        await gate.recover()


async def test_a_closed_device_no_longer_listens_to_the_key() -> None:
    async with gate_of() as gate:
        key = gate.rig.registry.key
        assert len(key.changed._listeners) == 1
        await gate.rig.device.aclose()
        assert not key.changed._listeners


# --- beside quiesce, suspend and the aborted state ----------------------------------------------------------------


@pytest.mark.parametrize("on_standby", OnStandby)
async def test_standby_that_comes_while_requests_are_parked_holds_or_refuses_them(on_standby: OnStandby) -> None:
    async with gate_of(on_standby=on_standby) as gate:
        released = trio.Event()
        quiesced = Asked(gate._nursery, quiesce(gate, released))
        await wait_all_tasks_blocked()
        [parked] = await gate.asked_one_by_one("parked", op=Op.WRITE)
        assert gate.counts == (0, 0, 1, 0)
        gate.queue.judge(Op.READ, backend_error(errno.EIO), gate.queue.generation)
        await wait_all_tasks_blocked()
        if on_standby is OnStandby.FAIL:
            assert errors_of([parked]) == [InStandby]
        else:
            assert (parked.ended, gate.counts) == (False, (1, 512, 0, 0))
        released.set()
        await wait_all_tasks_blocked()
        assert quiesced.ended
        await gate.recover()


async def test_of_parked_requests_that_become_held_the_newest_beyond_the_bounds_are_refused() -> None:
    async with gate_of(bounds=Bounds(held_requests=2)) as gate:
        await gate.queue.suspend()
        asked = await gate.asked_one_by_one(*"abcd")
        gate.queue.judge(Op.READ, backend_error(errno.EIO), gate.queue.generation)
        gate.queue.resume()
        await wait_all_tasks_blocked()
        assert errors_of(asked[2:]) == [HoldFull, HoldFull]
        assert gate.counts == (2, 0, 0, 0)
        await gate.recover()
        await wait_all_tasks_blocked()
        assert [each.value for each in asked[:2]] == ["a", "b"]


async def test_a_request_that_met_the_storage_and_finds_no_room_to_be_held_is_counted_as_ended() -> None:
    async with gate_of(bounds=Bounds(held_requests=1)) as gate:
        gate.hangs, gate.outage = trio.Event(), errno.EIO
        first, second = await gate.asked_one_by_one("first", "second")
        gate.hangs.set()
        await wait_all_tasks_blocked()
        [refused] = [each for each in (first, second) if each.ended]
        assert isinstance(refused.error, RequestFailed)
        assert gate.queue.stats.by_op[Op.READ].ios == 1
        await gate.recover()
        await wait_all_tasks_blocked()
        assert gate.queue.stats.by_op[Op.READ].ios == 2


async def test_a_request_of_our_own_that_was_parked_is_not_held_behind_others() -> None:
    async with gate_of() as gate:
        await gate.queue.suspend()
        gate.queue.judge(Op.READ, backend_error(errno.EIO), gate.queue.generation)
        [users] = await gate.asked_one_by_one("a user's")
        ours = gate.ask("ours", may_be_held=False)
        await wait_all_tasks_blocked()
        gate.queue.resume()
        await wait_all_tasks_blocked()
        assert (users.ended, errors_of([ours])) == (False, [InStandby])
        await gate.recover()


async def test_a_request_of_our_own_that_meets_the_outage_is_not_held() -> None:
    async with gate_of() as gate:
        gate.outage = errno.EIO
        ours = gate.ask("ours", may_be_held=False)
        await wait_all_tasks_blocked()
        assert (gate.rig.state, ours.errno) == (State.ON, errno.EIO)
        await gate.recover()


@pytest.mark.parametrize("on_standby", OnStandby)
async def test_suspended_comes_first_and_parks_even_in_standby(on_standby: OnStandby) -> None:
    async with gate_of(on_standby=on_standby) as gate:
        await gate.queue.suspend()
        gate.queue.judge(Op.READ, backend_error(errno.EIO), gate.queue.generation)
        [parked] = await gate.asked_one_by_one("parked")
        assert (parked.ended, gate.counts) == (False, (0, 0, 1, 0))
        gate.queue.resume()
        await wait_all_tasks_blocked()
        if on_standby is OnStandby.FAIL:
            assert errors_of([parked]) == [InStandby]
        else:
            assert (parked.ended, gate.counts) == (False, (1, 0, 0, 0))
        await gate.recover()


async def test_who_is_held_is_parked_while_the_queue_is_suspended_and_not_refused_by_the_policy() -> None:
    async with gate_of() as gate:
        first = await gate.enter_standby()
        await gate.queue.suspend()
        gate.queue.set_on_standby(OnStandby.FAIL)
        await wait_all_tasks_blocked()
        assert not first.ended
        gate.queue.set_on_standby(OnStandby.HOLD)
        gate.queue.resume()
        await gate.recover()
        await wait_all_tasks_blocked()
        assert first.value == "first"


async def test_what_writes_is_refused_when_a_device_is_aborted_while_it_waits_and_what_reads_is_not() -> None:
    async with gate_of() as gate:
        await gate.queue.suspend()
        asked = [(await gate.asked_one_by_one(op.value, op=op))[0] for op in Op]
        gate.queue.set_aborted(True)
        assert not any(each.ended for each in asked)
        gate.queue.resume()
        await wait_all_tasks_blocked()
        assert errors_of(asked) == [DeviceAborted if op.is_write else None for op in Op]


# --- cancelled ----------------------------------------------------------------------------------------------------


async def test_a_held_request_that_is_cancelled_leaves_and_nobody_is_stuck_behind_it() -> None:
    async with gate_of() as gate:
        first = await gate.enter_standby()
        a, b = await gate.asked_one_by_one("a", "b", op=Op.WRITE)
        first.cancel_scope.cancel()
        a.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert gate.counts == (1, 512, 0, 0)
        await gate.recover()
        await wait_all_tasks_blocked()
        assert b.value == "b"
    assert gate.issued == ["first", "b"]


async def test_a_request_that_is_cancelled_just_when_it_is_let_go_lets_the_next_one_go() -> None:
    async with gate_of() as gate:
        await gate.queue.suspend()
        a, b = await gate.asked_one_by_one("a", "b")
        gate.queue.resume()
        a.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert (a.value, b.value) == (None, "b")


# --- events -------------------------------------------------------------------------------------------------------


async def test_an_outage_is_told_once_whoever_waits_in_it() -> None:
    async with gate_of() as gate:
        await gate.enter_standby()
        await gate.asked_one_by_one("a", "b", op=Op.WRITE)
        assert gate.events() == [("held", {"operation": "read"})]
        await gate.recover()
        await wait_all_tasks_blocked()
        assert gate.events()[1:] == [("released", {"requests": 3})]
        await gate.asked_one_by_one("c")
        assert len(gate.events()) == 2


async def test_parked_requests_that_become_held_are_told_of_too() -> None:
    async with gate_of(bounds=Bounds(held_requests=2)) as gate:
        await gate.queue.suspend()
        await gate.asked_one_by_one(*"abcd", op=Op.FLUSH)
        gate.queue.judge(Op.READ, backend_error(errno.EIO), gate.queue.generation)
        assert gate.events() == []
        gate.queue.resume()
        await gate.recover()
        await wait_all_tasks_blocked()
    assert gate.events() == [
        ("hold_refused", {"held": 2, "bytes": 0, "text": "2 requests are already held in standby"}),
        ("held", {"operation": "flush"}),
        ("released", {"requests": 2}),
    ]


async def test_reached_bounds_are_told_once_per_standby() -> None:
    async with gate_of(bounds=Bounds(held_requests=1)) as gate:
        for outage in (1, 2):
            await gate.enter_standby()
            await gate.asked_one_by_one("a", "b")
            await gate.recover()
            await wait_all_tasks_blocked()
            assert [event for event, _facts in gate.events()] == ["held", "hold_refused", "released"] * outage


async def test_a_timeout_is_told_for_each_request_and_the_end_of_standby_still_tells_that_it_is_over(
    mock_clock: MockClock,
) -> None:
    async with gate_of(timeout_ms=1000) as gate:
        await gate.enter_standby()
        await after(mock_clock, 0.5)
        await gate.asked_one_by_one("w", op=Op.WRITE)
        await after(mock_clock, 0.5)
        await after(mock_clock, 0.5)
        await gate.asked_one_by_one("later")
        assert gate.events() == [
            ("held", {"operation": "read"}),
            ("hold_timeout", {"operation": "read", "timeout_ms": 1000}),
            ("hold_timeout", {"operation": "write", "timeout_ms": 1000}),
        ]
        await after(mock_clock, 1)
        await gate.recover()
        assert gate.events()[3:] == [
            ("hold_timeout", {"operation": "read", "timeout_ms": 1000}),
            ("released", {"requests": 0}),
        ]


async def test_standby_that_comes_back_before_all_were_let_go_goes_on_with_the_same_story(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_module, "PACE", 1)
    async with gate_of() as gate:
        await gate.enter_standby()
        await gate.asked_one_by_one("a", "b")
        await gate.recover()
        gate.outage = errno.EIO
        await wait_all_tasks_blocked()
        assert gate.counts[0] == 3
        await gate.recover()
        await wait_all_tasks_blocked()
    # The first request was let go twice.
    assert gate.events() == [("held", {"operation": "read"}), ("released", {"requests": 4})]
    assert [event for event, _ in gate.events("standby_on", "standby_off")] == ["standby_on", "standby_off"] * 2


# --- many ---------------------------------------------------------------------------------------------------------


async def test_of_5000_readers_as_many_wait_as_the_bounds_allow_and_the_others_are_refused_at_once() -> None:
    async with gate_of() as gate:
        await gate.enter_standby()
        readers = [gate.ask(str(number)) for number in range(5000)]
        await wait_all_tasks_blocked()
        assert gate.counts == (512, 0, 0, 0)
        refused = [each for each in readers if each.ended]
        assert set(errors_of(refused)) == {HoldFull}
        assert len(refused) == 5000 - 511
        await gate.recover()
        await wait_all_tasks_blocked()
        assert sum(each.value is not None for each in readers) == 511
        assert len(gate.issued) == 2 + 511


@pytest.mark.parametrize("way", ["let go", "failed by hand", "refused", "timed out", "ended"])
async def test_5000_held_readers_are_gone_in_steps_that_grow_with_their_number_and_not_its_square(
    way: str, mock_clock: MockClock
) -> None:
    bounds = Bounds(requests=10_000, held_requests=10_000)
    async with gate_of(bounds=bounds, timeout_ms=1000) as gate:
        await gate.enter_standby()
        asked = [gate.ask(str(number)) for number in range(5000)]
        await wait_all_tasks_blocked()
        assert gate.counts == (5001, 0, 0, 0)
        looked_at = count_calls_of_verdict(gate)
        match way:
            case "let go":
                await gate.recover()
            case "failed by hand":
                assert gate.queue.fail_held() == 5001
            case "refused":
                gate.queue.set_on_standby(OnStandby.FAIL)
            case "timed out":
                mock_clock.jump(1)
            case "ended":
                gate.queue.close_gate()
        await wait_all_tasks_blocked()
        assert all(each.ended for each in asked)
        assert looked_at[0] < 5 * 5001
