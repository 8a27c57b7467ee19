"""Bounds on what a device waits for and tells, each reached."""

import errno

import pytest
import trio
from trio.testing import MockClock

from ploopfs.bounds import LOGGED_LINES, MESSAGE_TIMEOUT_S, VERIFY_TIMEOUT_S
from ploopfs.device.agent_state import AgentState
from ploopfs.device.messages import answer
from ploopfs.device.recovery import Command
from ploopfs.device.verify import Verify
from tests.device.mapped import mapped_rig, mapper_of
from tests.device.outage import FakeProgram, agent_at_work
from tests.device.rig import CONTENT, DISK_BYTES, MIDDLE, NEW, TOP, errno_of, image, rig_of, three_deltas


@pytest.mark.expects_warnings
async def test_a_comparison_of_all_data_is_given_up_at_its_bound_and_nothing_has_changed(
    autojump_clock: MockClock,
) -> None:
    assert autojump_clock.autojump_threshold == 0
    rig = await rig_of(three_deltas(), armed=False)
    rig.store.put(NEW, image({2: b"t"}).build())
    rig.hang("read", path=NEW, skip=1)  # after header and map
    assert await errno_of(rig.device.replace(NEW, verify=Verify.FULL)) == errno.ETIMEDOUT
    assert VERIFY_TIMEOUT_S <= trio.current_time() < VERIFY_TIMEOUT_S + 100
    assert (rig.device.stack.top.path, await rig.content()) == (TOP, CONTENT)


@pytest.mark.expects_warnings
async def test_a_message_that_moves_clusters_is_given_up_at_its_bound(autojump_clock: MockClock) -> None:
    assert autojump_clock.autojump_threshold == 0
    rig = await mapped_rig(armed=False)
    rig.hang("read", path=MIDDLE)
    assert await errno_of(answer(mapper_of(rig), f"resize {2 * DISK_BYTES // 512}")) == errno.ETIMEDOUT
    assert MESSAGE_TIMEOUT_S <= trio.current_time() < MESSAGE_TIMEOUT_S + 100
    assert rig.device.size_bytes == DISK_BYTES


@pytest.mark.expects_warnings
async def test_of_what_a_recovery_command_says_the_last_lines_are_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig = await rig_of(three_deltas())
    FakeProgram(rig, output="".join(f"line {number}\n" for number in range(100)))
    async with agent_at_work(rig, autojump_clock, Command(("/bin/fix",))) as outage:
        rig.faults.remove(await outage.begin(errno.EIO))
        await outage.wait_until(AgentState.IDLE)
    said = [record.getMessage() for record in caplog.records if "/bin/fix: line " in record.getMessage()]
    assert said == [f"ploop0: /bin/fix: line {number}" for number in range(100 - LOGGED_LINES, 100)]
