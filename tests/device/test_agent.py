"""The recovery agent on storage in memory, on a clock of the test's own: when it acts, when it does not, how often."""

import errno
import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.agent_state import AgentState
from ploopfs.device.attending import run_agents
from ploopfs.device.flavour import VZ7
from ploopfs.device.recovery import Command, Manual, Patience, Recovery, Reopen, Replace
from ploopfs.device.standby import State
from ploopfs.engine.inject.grammar import execute
from ploopfs.errors import BadValue, Busy
from tests.device.outage import IMPATIENT, FakeProgram, Outage, agent_at_work, passes
from tests.device.rig import CLUSTER, CONTENT, NEW, TOP, Asked, Rig, errno_of, image, rig_of, three_deltas

pytestmark = pytest.mark.expects_warnings

SECTORS = CLUSTER // 512


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    return autojump_clock


# --- probes -------------------------------------------------------------------------------------------------------


async def test_a_device_comes_back_when_its_storage_has_answered_three_probes_in_a_row(
    rig: Rig, clock: MockClock
) -> None:
    async with agent_at_work(rig, clock) as outage:
        lost = await outage.begin(errno.ENOTCONN)
        await passes(2.5)
        assert outage.agent.state is AgentState.PROBING
        rig.faults.remove(lost)
        await outage.wait_until(AgentState.IDLE)
        # Probes at 0, 1 and 2 failed; those at 3, 4 and 5 did not.
        assert outage.times_of("attempt") == [5]
        assert outage.facts_of("probe", "healthy") == [False, True]
        assert outage.times_of("probe") == [0, 3]
        assert outage.facts_of("result", "result") == ["ok"]
    assert (rig.state, rig.queue.generation, outage.agent.attempts) == (State.OFF, 2, 1)
    assert await rig.content() == CONTENT


async def test_a_single_failed_probe_starts_the_count_anew(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=Patience(healthy_probes=4, probe_interval_s=10)) as outage:
        lost = await outage.begin(errno.EIO)
        rig.faults.remove(lost)
        await passes(25)  # probes at 0, 10 and 20 were good
        rig.lose(errno.EIO, "fsync", count=1)
        await outage.wait_until(AgentState.IDLE)
        assert outage.facts_of("probe", "healthy") == [True, False, True]
        assert outage.times_of("attempt") == [70]


@pytest.mark.parametrize("operation", ["open", "read", "write", "fsync"])
async def test_each_operation_of_a_probe_counts(rig: Rig, clock: MockClock, operation: str) -> None:
    async with agent_at_work(rig, clock, patience=Patience(healthy_probes=1)) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        rule = rig.lose(errno.ETIMEDOUT, operation)
        await passes(60)
        assert outage.agent.attempts == 0
        rig.faults.remove(rule)
        await outage.wait_until(AgentState.IDLE)
        assert rig.state is State.OFF


async def test_a_lower_delta_on_a_storage_of_its_own_must_answer_too(rig: Rig, clock: MockClock) -> None:
    base = "/store/base.hds"
    async with agent_at_work(rig, clock, patience=Patience(healthy_probes=1)) as outage:
        rule = rig.lose(errno.EIO, path=base)
        assert await errno_of(rig.device.read(0, 512)) == errno.EIO
        await passes(60)
        assert (rig.state, outage.agent.attempts) == (State.ON, 0)
        rig.faults.remove(rule)
        await outage.wait_until(AgentState.IDLE)
        assert await rig.content() == CONTENT


async def test_the_range_that_failed_is_read_again_so_that_one_bad_sector_does_not_make_the_device_flap(
    rig: Rig, clock: MockClock
) -> None:
    async with agent_at_work(rig, clock) as outage:
        execute(rig.device.injector, f"add,op=READ,errno=EIO,start={2 * SECTORS + 1},nr_sectors=1")
        assert await errno_of(rig.device.read(2 * CLUSTER + 512, 512)) == errno.EIO
        await passes(300)
        assert (rig.queue.generation, outage.agent.attempts) == (1, 0)
        execute(rig.device.injector, "removeall")
        await outage.wait_until(AgentState.IDLE)
        assert rig.queue.generation == 2


async def test_another_image_in_the_top_s_place_is_not_trusted(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=Patience(healthy_probes=1)) as outage:
        rig.faults.remove(await outage.begin(errno.ENOTCONN))
        known = rig.store.images.pop(TOP)
        await passes(10)
        assert outage.facts_of("probe", "error") == [f"{TOP}: open: ENOENT (No such file or directory)"]
        rig.store.put(TOP, b"something else")
        await passes(10)
        assert outage.facts_of("probe", "error")[1:] == [f"{TOP}: the header is not the one that was opened"]
        rig.store.images[TOP] = known
        await outage.wait_until(AgentState.IDLE)


async def test_the_image_that_is_to_take_the_top_s_place_is_what_is_probed(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, Replace(NEW)) as outage:
        await outage.begin(errno.ENOTCONN)  # and the old top's storage stays dead
        await passes(9.5)
        rig.copy(TOP, NEW)
        await outage.wait_until(AgentState.IDLE)
        assert outage.times_of("attempt") == [12]
        assert (rig.device.stack.top.path, await rig.content()) == (NEW, CONTENT)


async def test_a_device_that_is_never_written_needs_no_storage_that_can_be(clock: MockClock) -> None:
    rig = await rig_of(three_deltas(), read_only=True)
    async with agent_at_work(rig, clock) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        rig.lose(errno.EROFS, "write", "fsync")
        await outage.wait_until(AgentState.IDLE)
        assert rig.state is State.OFF


async def test_a_probe_that_hangs_is_given_up_and_the_storage_is_not_trusted(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=Patience(probe_timeout_s=4)) as outage:
        rig.faults.remove(await outage.begin(errno.ENOTCONN))
        released = rig.hang("read")
        await passes(98)
        assert outage.facts_of("probe", "error") == ["the storage did not answer within 4 s"]
        assert outage.times_of("probe") == [4]
        released.set()
        await outage.wait_until(AgentState.IDLE)
        assert len(outage.times_of("attempt")) == 1


async def test_without_probes_the_first_attempt_is_made_at_once(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=IMPATIENT) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        await outage.wait_until(AgentState.IDLE)
        assert outage.times_of("attempt") == [0]
        assert outage.times_of("probe") == []


# --- back-off and limits ------------------------------------------------------------------------------------------


async def test_failed_attempts_come_ever_more_slowly_up_to_a_bound(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=Patience(probe=False, backoff_s=1, backoff_max_s=5)) as outage:
        lost = await outage.begin(errno.ENOTCONN)
        await passes(20)
        assert outage.times_of("attempt") == [0, 1, 3, 7, 12, 17]
        assert outage.agent.state is AgentState.WAITING
        assert outage.agent.next_at_s == pytest.approx(outage.started_s + 22)
        rig.faults.remove(lost)
        await outage.wait_until(AgentState.IDLE)
        assert outage.facts_of("result", "result") == ["failed"] * 6 + ["ok"]
        assert outage.agent.next_at_s is None


async def test_a_long_outage_ends_in_no_number_too_large(rig: Rig, clock: MockClock) -> None:
    assert Patience().backoff_after_s(1) == 1
    assert Patience().backoff_after_s(100_000) == 60
    async with agent_at_work(rig, clock, patience=Patience(probe=False, backoff_s=1, backoff_max_s=1)) as outage:
        await outage.begin(errno.ENOTCONN)
        await passes(1500.5)
        assert outage.agent.attempts == 1501


async def test_the_probes_are_asked_again_before_each_attempt(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=Patience(backoff_s=10)) as outage:
        rig.faults.remove(await outage.begin(errno.ENOTCONN))
        refused = rig.lose(errno.EBUSY, "lock", path=TOP)
        await passes(13)
        assert outage.times_of("attempt") == [2]
        rig.faults.remove(refused)
        await outage.wait_until(AgentState.IDLE)
        assert outage.times_of("attempt") == [2, 14]


async def test_after_the_last_attempt_it_gives_up_until_the_next_standby(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=Patience(probe=False, attempts=3)) as outage:
        lost = await outage.begin(errno.ENOTCONN)
        await outage.wait_until(AgentState.GAVE_UP)
        assert outage.times_of("attempt") == [0, 1, 3]
        assert outage.facts_of("gave_up", "attempts") == [3]
        rig.faults.remove(lost)
        await passes(1000)
        assert (rig.state, outage.agent.state) == (State.ON, AgentState.GAVE_UP)

        await rig.device.reopen()
        assert outage.agent.state is AgentState.IDLE
        rig.faults.remove(await outage.begin(errno.EIO))
        await outage.wait_until(AgentState.IDLE)
        assert (rig.state, outage.agent.attempts) == (State.OFF, 1)


async def test_a_storage_that_goes_and_returns_again_and_again_is_one_outage_with_a_growing_back_off(
    rig: Rig, clock: MockClock
) -> None:
    patience = Patience(probe=False, backoff_s=1, settle_s=60, attempts=4)
    async with agent_at_work(rig, clock, patience=patience) as outage:
        started_s = trio.current_time()
        attempts = []
        for _ in range(4):
            rig.faults.remove(await outage.begin(errno.EIO))
            await outage.wait_until(AgentState.IDLE)
            attempts.append(trio.current_time() - started_s)
        assert attempts == [0, 1, 3, 7]
        rig.faults.remove(await rig.enter_standby(errno.EIO))
        assert outage.agent.state is AgentState.GAVE_UP


async def test_a_recovery_that_lasted_is_forgotten(rig: Rig, clock: MockClock) -> None:
    patience = Patience(probe=False, attempts=1, settle_s=60)
    async with agent_at_work(rig, clock, patience=patience) as outage:
        for _ in range(3):
            rig.faults.remove(await outage.begin(errno.EIO))
            await outage.wait_until(AgentState.IDLE)
            assert outage.now_s == 0
            await passes(60)
        assert outage.times_of("gave_up") == []


async def test_a_lease_that_another_process_holds_is_waited_for(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock) as outage:
        rig.faults.remove(await outage.begin(errno.EBUSY))
        await rig.device.stack.top.file.unlock()
        thief = await rig.store.open(TOP, writable=True)
        await thief.lock()
        await passes(200)
        assert (rig.state, outage.agent.attempts > 4) == (State.ON, True)
        assert "another open file holds its lock" in str(outage.facts_of("result", "error")[-1])
        await thief.aclose()
        await outage.wait_until(AgentState.IDLE)
        assert rig.state is State.OFF


# --- an operator --------------------------------------------------------------------------------------------------


async def test_now_skips_the_back_off_and_the_time_between_probes(rig: Rig, clock: MockClock) -> None:
    patience = Patience(backoff_s=1000, backoff_max_s=1000, probe_interval_s=100, healthy_probes=2)
    async with agent_at_work(rig, clock, patience=patience) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        refused = rig.lose(errno.EBUSY, "lock", path=TOP)
        await wait_all_tasks_blocked()
        outage.agent.hurry()
        await outage.wait_until(AgentState.WAITING)
        assert outage.now_s == 0
        rig.faults.remove(refused)
        outage.agent.hurry()
        await outage.wait_until(AgentState.IDLE)
        assert outage.now_s == 100


async def test_now_makes_one_that_gave_up_try_anew(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=Patience(probe=False, attempts=2)) as outage:
        lost = await outage.begin(errno.EIO)
        await outage.wait_until(AgentState.GAVE_UP)
        outage.agent.hurry()
        await outage.wait_until(AgentState.GAVE_UP)
        assert outage.facts_of("attempt", "attempt") == [1, 2, 1, 2]
        rig.faults.remove(lost)
        outage.agent.hurry()
        await outage.wait_until(AgentState.IDLE)
        assert rig.state is State.OFF
        with pytest.raises(BadValue):
            outage.agent.hurry()


async def test_a_replacement_by_hand_wins_and_the_agent_begins_with_the_next_standby(
    rig: Rig, clock: MockClock
) -> None:
    async with agent_at_work(rig, clock) as outage:
        await outage.begin(errno.ENOTCONN)
        await passes(5)
        rig.copy(TOP, NEW)
        await rig.device.replace_top(NEW)
        assert outage.agent.state is AgentState.IDLE
        await passes(1000)
        assert (outage.times_of("attempt"), rig.device.stack.top.path) == ([], NEW)

        assert await errno_of(rig.device.read(2 * CLUSTER, 512)) == 0
        lost = rig.lose(errno.EIO, path=NEW)
        assert await errno_of(rig.device.read(2 * CLUSTER, 512)) == errno.EIO
        rig.faults.remove(lost)
        await outage.wait_until(AgentState.IDLE)
        assert (len(outage.times_of("attempt")), rig.queue.generation) == (1, 3)


async def test_an_operator_does_not_wait_for_an_attempt_under_way(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=Patience(probe=False, attempts=1)) as outage:
        hung = rig.faults.on(TOP, rig.faults.pause("open"))
        await outage.begin(errno.EIO)
        await wait_all_tasks_blocked()
        assert outage.agent.state is AgentState.RECOVERING
        rig.copy(TOP, NEW)
        await outage.agent.wait_given_way()
        await rig.device.replace_top(NEW)
        assert (rig.state, rig.device.stack.top.path, outage.agent.state) == (State.OFF, NEW, AgentState.IDLE)
        assert (outage.now_s, outage.facts_of("result", "result")) == (0, ["cancelled"])
        rig.faults.remove(hung)


async def test_what_was_recovered_by_hand_counts_as_an_outage_of_its_own(rig: Rig, clock: MockClock) -> None:
    patience = Patience(probe=False, attempts=1, settle_s=60, backoff_s=5)
    async with agent_at_work(rig, clock, patience=patience) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        await outage.wait_until(AgentState.IDLE)
        rig.faults.remove(await outage.begin(errno.EIO))
        assert outage.agent.state is AgentState.GAVE_UP
        await rig.device.reopen()
        rig.faults.remove(await outage.begin(errno.EIO))
        await outage.wait_until(AgentState.IDLE)
        assert (rig.state, rig.queue.generation, outage.now_s) == (State.OFF, 4, 0)


async def test_an_attempt_that_finds_somebody_else_at_work_is_not_counted(
    rig: Rig, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy() -> None:
        await trio.lowlevel.checkpoint()
        raise Busy("another operation holds the queue quiesced")

    async with agent_at_work(rig, clock, patience=Patience(probe=False, attempts=1)) as outage:
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(rig.device, "reopen", busy)
            rig.faults.remove(await outage.begin(errno.EIO))
            await passes(2.5)
        assert outage.facts_of("result", "result") == ["stood_back"] * 3
        assert outage.times_of("attempt") == [0, 1, 2]
        await outage.wait_until(AgentState.IDLE)
        assert (rig.state, outage.agent.attempts) == (State.OFF, 1)


async def test_while_a_replacement_by_hand_is_under_way_nothing_is_attempted(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=Patience(healthy_probes=1)) as outage, trio.open_nursery() as nursery:
        lost = await outage.begin(errno.EIO)
        rig.copy(TOP, NEW)
        released = rig.hang("read", path=NEW)
        by_hand = Asked(nursery, rig.device.replace_top(NEW))
        await wait_all_tasks_blocked()
        rig.faults.remove(lost)
        await passes(10)
        assert not by_hand.ended
        assert (outage.agent.attempts, outage.times_of("attempt")) == (0, [])
        assert outage.agent.state in (AgentState.WAITING, AgentState.PROBING)
        assert rig.device.last_error == ""
        released.set()
        await outage.wait_until(AgentState.IDLE)
        await wait_all_tasks_blocked()
        assert (by_hand.errno, rig.device.stack.top.path, rig.queue.generation) == (0, NEW, 2)


async def test_a_failed_replacement_by_hand_leaves_the_outage_to_the_agent(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock) as outage:
        lost = await outage.begin(errno.ENOTCONN)
        assert await errno_of(rig.device.replace_top("/no/such/image")) == errno.ENOENT
        rig.faults.remove(lost)
        await outage.wait_until(AgentState.IDLE)
        assert rig.state is State.OFF


async def test_a_suspended_queue_is_left_alone(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        await rig.queue.suspend()
        await passes(100)
        assert (rig.queue.generation, outage.times_of("attempt")) == (1, [])
        rig.queue.resume()
        await outage.wait_until(AgentState.IDLE)
        assert (rig.state, outage.agent.attempts) == (State.OFF, 1)


async def test_a_pause_holds_until_resume(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock) as outage:
        lost = await outage.begin(errno.ENOTCONN)
        await passes(5)
        outage.agent.pause()
        rig.faults.remove(lost)
        await passes(10_000)
        assert (rig.state, outage.agent.state, outage.agent.attempts) == (State.ON, AgentState.PAUSED, 0)
        outage.agent.resume()
        assert (outage.agent.state, rig.state) == (AgentState.PROBING, State.ON)
        await outage.wait_until(AgentState.IDLE)
        assert (rig.state, outage.agent.attempts) == (State.OFF, 1)
        outage.agent.pause()
        rig.faults.remove(await rig.enter_standby(errno.EIO))
        await passes(10_000)
        assert (rig.state, outage.agent.attempts) == (State.ON, 1)
        await rig.device.reopen()
        outage.agent.resume()
        assert outage.agent.state is AgentState.IDLE
        assert [len(outage.times_of(event)) for event in ("paused", "resumed")] == [2, 2]
        assert outage.facts_of("resumed", "state") == ["probing", "idle"]


async def test_a_pause_ends_the_attempt_under_way_and_the_operator_can_act_at_once(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=IMPATIENT) as outage:
        released = rig.hang("open")
        await outage.begin(errno.ENOTCONN)
        await outage.wait_until(AgentState.RECOVERING)
        await wait_all_tasks_blocked()
        rig.copy(TOP, NEW)
        assert await errno_of(rig.device.replace_top(NEW)) == errno.EBUSY
        outage.agent.pause()
        await wait_all_tasks_blocked()
        assert outage.facts_of("result", "result") == ["cancelled"]
        assert (rig.state, rig.queue.is_stopped) == (State.ON, False)
        await rig.device.replace_top(NEW)
        released.set()
        assert await rig.content() == CONTENT
        assert outage.agent.state is AgentState.PAUSED


async def test_another_policy_starts_the_outage_anew(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=Patience(probe=False, attempts=1)) as outage:
        await outage.begin(errno.ENOTCONN)
        await outage.wait_until(AgentState.GAVE_UP)
        rig.copy(TOP, NEW)
        outage.agent.set_policy(Replace(NEW))
        await outage.wait_until(AgentState.IDLE)
        assert (rig.device.stack.top.path, outage.agent.attempts) == (NEW, 1)
        assert outage.facts_of("policy", "policy") == [f"replace {NEW}"]
        outage.agent.set_policy(Manual())
        rig.faults.remove(rig.lose(errno.EIO))
        assert outage.agent.state is AgentState.MANUAL


async def test_a_device_that_nobody_has_promised_to_recover_any_more_is_left_alone(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock) as outage:
        await outage.begin(errno.ENOTCONN)
        await passes(5)
        rig.queue.standby.detach()
        assert (rig.state, outage.agent.state) == (State.NOT_SUPPORTED, AgentState.IDLE)
        await passes(100)
        assert outage.times_of("attempt") == []


# --- a command ----------------------------------------------------------------------------------------------------

FIX = Command(("/bin/fix", "-v"))


async def test_a_command_recovers_the_device_and_is_told_what_happened(
    rig: Rig, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    program = FakeProgram(rig, seconds=7, output="one\ntwo\n")
    async with agent_at_work(rig, clock, FIX) as outage:
        outage.agent.environment = {"PLOOPFS_MOUNT": "/mnt"}
        rig.faults.remove(await outage.begin(errno.ENOTCONN))
        await outage.wait_until(AgentState.IDLE)
        assert outage.times_of("attempt") == [0], "a command need not wait for a storage that it may have to bring back"
        assert outage.facts_of("result", "result") == ["ok"]
        assert outage.facts_of("result", "seconds") == [7]
    [(arguments, environment)] = program.calls
    assert arguments == FIX.arguments
    assert float(environment["PLOOPFS_SINCE"]) > 0
    assert environment == {
        "PLOOPFS_MOUNT": "/mnt",
        "PLOOPFS_DEVICE": "ploop0",
        "PLOOPFS_TOP": TOP,
        "PLOOPFS_GENERATION": "1",
        "PLOOPFS_ATTEMPT": "1",
        "PLOOPFS_SINCE": environment["PLOOPFS_SINCE"],
        "PLOOPFS_REASON_ERRNO": "ENOTCONN",
        "PLOOPFS_REASON_OPERATION": "read",
        "PLOOPFS_REASON_FILE": TOP,
        "PLOOPFS_REASON_LEVEL": "2",
        "PLOOPFS_REASON_OFFSET": environment["PLOOPFS_REASON_OFFSET"],
        "PLOOPFS_REASON_LENGTH": "512",
    }
    assert "ploop0: /bin/fix: one" in caplog.text
    assert "ploop0: /bin/fix: two" in caplog.text


@pytest.mark.parametrize(
    ("code", "recovers", "result", "error"),
    [
        (0, True, "ok", ""),
        (3, True, "ok", "/bin/fix exited with 3"),
        (0, False, "failed", "/bin/fix exited with 0, and the device is still in standby"),
        (3, False, "failed", "/bin/fix exited with 3"),
        (-9, False, "failed", "/bin/fix was ended by signal 9"),
    ],
)
async def test_whether_the_device_left_standby_decides_and_the_exit_code_is_told(
    rig: Rig, clock: MockClock, code: int, recovers: bool, result: str, error: str
) -> None:
    FakeProgram(rig, code=code, recovers=recovers)
    async with agent_at_work(rig, clock, FIX) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        await passes(0.5)
        assert (outage.facts_of("result", "result"), outage.facts_of("result", "error")) == ([result], [error])
        assert rig.state is (State.OFF if recovers else State.ON)


async def test_a_command_that_takes_too_long_has_failed_and_is_run_again(rig: Rig, clock: MockClock) -> None:
    program = FakeProgram(rig, seconds=1000)
    async with agent_at_work(rig, clock, FIX, Patience(command_timeout_s=30)) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        await passes(50)
        assert outage.facts_of("result", "error") == ["/bin/fix was ended at its time limit"]
        program.seconds = 1
        await outage.wait_until(AgentState.IDLE)
        assert [environment["PLOOPFS_ATTEMPT"] for _, environment in program.calls] == ["1", "2", "3"]
        assert outage.times_of("attempt") == [0, 31, 63]


async def test_a_command_is_ended_by_a_pause_but_not_when_it_has_recovered_the_device_already(
    rig: Rig, clock: MockClock
) -> None:
    program = FakeProgram(rig, seconds=10, recovers=False)
    async with agent_at_work(rig, clock, FIX) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        await passes(1)
        outage.agent.pause()
        await wait_all_tasks_blocked()
        assert program.was_cancelled
        program.was_cancelled = False
        outage.agent.resume()
        await passes(1)
        await rig.device.reopen()
        assert (outage.agent.state, rig.state) == (AgentState.RECOVERING, State.OFF)
        outage.agent.pause()
        await passes(10)
        assert not program.was_cancelled
        assert outage.facts_of("result", "result") == ["cancelled", "ok"]
        assert (outage.agent.state, rig.state) == (AgentState.PAUSED, State.OFF)


async def test_a_device_lost_again_while_its_command_still_ran_is_the_same_outage(rig: Rig, clock: MockClock) -> None:
    FakeProgram(rig, seconds=10, recovers=False)
    async with agent_at_work(rig, clock, FIX) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        await passes(1)
        await rig.device.reopen()
        rig.faults.remove(await rig.enter_standby(errno.EBUSY))
        assert (outage.agent.state, rig.state) == (AgentState.RECOVERING, State.ON)
        await passes(9.5)
        assert (outage.agent.state, rig.state) == (AgentState.WAITING, State.ON)
        await passes(1)
        assert outage.facts_of("attempt", "attempt") == [1, 2]


async def test_a_device_that_is_let_go_while_a_command_runs_in_vain_is_not_tried_again(
    rig: Rig, clock: MockClock
) -> None:
    program = FakeProgram(rig, seconds=10, recovers=False, code=3)
    async with agent_at_work(rig, clock, FIX) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        await passes(1)
        rig.queue.standby.detach()
        await passes(100)
        assert (outage.agent.state, len(program.calls)) == (AgentState.IDLE, 1)
        assert outage.facts_of("result", "result") == ["failed"]


async def test_a_bug_in_an_attempt_is_logged_and_pauses_the_agent_alone(
    rig: Rig, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    FakeProgram(rig, bug=True)
    async with agent_at_work(rig, clock, FIX) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        await outage.wait_until(AgentState.PAUSED)
        assert "ZeroDivisionError" in caplog.text
        await rig.device.reopen()
        assert await rig.content() == CONTENT


# --- its life -----------------------------------------------------------------------------------------------------


async def test_the_agents_of_a_registry_come_and_go_with_their_devices(rig: Rig, clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_agents, rig.registry, lambda device: {"PLOOPFS_MOUNT": f"/mnt/{device.name}"})
        await wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        rig.store.put("/other.hds", image({}).build())
        second = await rig.registry.add("ploop1", flavour=VZ7, image="/other.hds", files=rig.store)
        second.agent.configure(Recovery(Reopen()))
        await wait_all_tasks_blocked()
        assert second.agent.environment == {"PLOOPFS_MOUNT": "/mnt/ploop1"}
        assert trio.lowlevel.current_statistics().tasks_living == tasks + 1

        rig.device.agent.configure(Recovery(Reopen()))
        rig.faults.remove(await rig.enter_standby(errno.EIO))
        await Outage(rig, clock).wait_until(AgentState.IDLE)
        assert rig.state is State.OFF

        await rig.registry.aclose()
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == tasks - 1
        nursery.cancel_scope.cancel()


async def test_an_agent_that_starts_when_its_device_is_in_standby_already_recovers_it(
    rig: Rig, clock: MockClock
) -> None:
    rig.faults.remove(await rig.enter_standby(errno.EIO))
    async with agent_at_work(rig, clock) as outage:
        await outage.wait_until(AgentState.PROBING)
        await outage.wait_until(AgentState.IDLE)
        assert rig.state is State.OFF


async def test_a_device_that_is_closed_ends_the_attempt_under_way_first(rig: Rig, clock: MockClock) -> None:
    async with agent_at_work(rig, clock, patience=IMPATIENT) as outage:
        rig.hang("open")
        await outage.begin(errno.ENOTCONN)
        await outage.wait_until(AgentState.RECOVERING)
        await wait_all_tasks_blocked()
        assert not await rig.device.aclose()
        assert outage.facts_of("result", "result") == ["cancelled"]
        assert not rig.queue.is_stopped
