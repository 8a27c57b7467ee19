"""Fault rules on a device: the gate sees what a real store answers, and recovery opens its files through them too."""

import errno

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.engine.inject.grammar import execute
from tests.device.rig import CLUSTER, CONTENT, NEW, REQUESTS, TOP, Asked, Rig, errno_of, image

pytestmark = pytest.mark.expects_warnings

SECTORS = CLUSTER // 512


def rule(rig: Rig, command: str) -> None:
    execute(rig.device.injector, command)


@pytest.mark.parametrize("name", ["EBUSY", "ENOTCONN", "EIO"])
@pytest.mark.parametrize("op", [Op.READ, Op.WRITE, Op.FLUSH])
async def test_a_fault_that_means_standby_switches_the_queue_with_its_facts(rig: Rig, name: str, op: Op) -> None:
    rule(rig, f"add,op={op.name},errno={name},level=2")
    expected = errno.EIO if op is Op.FLUSH else getattr(errno, name)
    assert await errno_of(REQUESTS[op](rig.device)) == expected
    assert rig.state is State.ON
    reason = rig.queue.standby.reason
    assert reason is not None
    assert (reason.errno, reason.level, reason.file) == (getattr(errno, name), 2, TOP)
    assert await errno_of(rig.device.read(0, 1)) == errno.EIO, "a level that has no fault is refused as well"


async def test_a_full_store_is_no_standby(rig: Rig) -> None:
    rule(rig, "add,op=WRITE,status=NOSPC")
    assert await errno_of(REQUESTS[Op.WRITE](rig.device)) == errno.ENOSPC
    assert (rig.state, rig.queue.aborted) == (State.OFF, False)


async def test_a_lower_level_can_fail_alone(rig: Rig) -> None:
    rule(rig, "add,op=READ,errno=EIO,level=0")
    assert await rig.device.read(CLUSTER, 2 * CLUSTER) == CONTENT[CLUSTER : 3 * CLUSTER]
    assert await errno_of(rig.device.read(0, 512)) == errno.EIO
    reason = rig.queue.standby.reason
    assert reason is not None
    assert reason.level == 0


async def test_only_the_request_for_the_bad_sector_fails(unarmed: Rig) -> None:
    rule(unarmed, f"add,op=READ,status=MEDIUM,start={2 * SECTORS + 1},nr_sectors=1")
    assert await unarmed.device.read(2 * CLUSTER, 512) == b"t" * 512
    assert await errno_of(unarmed.device.read(2 * CLUSTER + 1000, 24)) == errno.ENODATA


# --- recovery goes through the rules ------------------------------------------------------------------------------


async def test_recovery_fails_while_the_fault_is_there_and_succeeds_without_it(rig: Rig) -> None:
    rule(rig, "add,errno=ENOTCONN")
    assert await errno_of(rig.device.read(2 * CLUSTER, 1)) == errno.ENOTCONN
    assert await errno_of(rig.device.reopen()) == errno.ENOTCONN
    states = [rig.state]
    rule(rig, "removeall")
    await rig.device.reopen()
    assert [*states, rig.state] == [State.ON, State.OFF]
    assert await rig.content() == CONTENT


@pytest.mark.parametrize(
    ("command", "blamed"),
    [("op=OPEN", "open"), ("op=LOCK,level=2", "lock"), ("op=STAT,level=2", "stat"), ("op=READ,level=2", "read")],
)
async def test_a_new_top_meets_the_faults_when_it_is_opened_and_read(rig: Rig, command: str, blamed: str) -> None:
    rig.store.put(NEW, image({2: b"n"}).build())
    rule(rig, f"add,{command},errno=EBUSY")
    before = rig.device.stack
    assert await errno_of(rig.device.replace_top(NEW)) == errno.EBUSY
    assert f"{NEW}: {blamed}" in rig.device.last_error
    assert rig.device.stack is before


async def test_a_rule_for_a_level_stays_with_the_level_when_its_image_is_replaced(rig: Rig) -> None:
    rig.store.put(NEW, image({2: b"n"}).build())
    await rig.device.replace_top(NEW)
    rule(rig, "add,op=READ,errno=EIO,level=2,count=1")
    assert await errno_of(rig.device.read(2 * CLUSTER, 1)) == errno.EIO
    [shown] = rig.device.injector.rules
    assert shown.last is not None
    assert shown.last.level == 2


async def test_a_store_that_hangs_delays_nobody_who_needs_no_store(rig: Rig) -> None:
    rule(rig, "add,op=READ,hang,level=2")
    async with trio.open_nursery() as nursery:
        hung = Asked(nursery, rig.device.read(2 * CLUSTER, 1))
        await wait_all_tasks_blocked()
        assert await rig.device.read(0, 1) == b"a"
        assert (hung.ended, rig.device.stats.in_flight) == (False, 1)
        rule(rig, "removeall")
    assert hung.value == b"t"
    assert rig.state is State.OFF
