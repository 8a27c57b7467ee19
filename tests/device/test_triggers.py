"""The check at the end of a request: what means standby, what vz7's aborted state, and what the caller gets."""

import errno
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
import trio

from ploopfs.device.device import Device
from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.engine.stack import Stack
from ploopfs.errors import (
    BeyondEnd,
    Busy,
    ParkTimeout,
    PloopError,
    QueueFull,
    ReadOnly,
    RequestFailed,
    StorageTimeout,
    TruncatedImage,
)
from tests.device.rig import (
    BASE,
    CLUSTER,
    DISK_BYTES,
    MIDDLE,
    REQUESTS,
    TOP,
    Rig,
    backend_error,
    errno_of,
    image,
    rig_of,
)

pytestmark = pytest.mark.expects_warnings

TRIGGERS = (errno.EBUSY, errno.ENOTCONN, errno.EIO)
NO_TRIGGERS = (errno.ETIMEDOUT, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.EDQUOT)
PLAIN = (errno.ENOSPC, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Meeting:
    """A request, and the storage operation in it that fails: the first on `path`, or one that comes later."""

    name: str
    request: Callable[[Device], Awaitable[object]]
    operation: str
    path: str = TOP
    skip: int = 0


MEETINGS = (
    Meeting("a read of the base", lambda d: d.read(0, 512), "read", BASE),
    Meeting("a read of a middle delta", lambda d: d.read(CLUSTER, 512), "read", MIDDLE),
    Meeting("a read of the top", lambda d: d.read(2 * CLUSTER, 512), "read"),
    Meeting("a read across levels", lambda d: d.read(0, DISK_BYTES), "read", MIDDLE),
    Meeting("a write in place", lambda d: d.write(2 * CLUSTER, b"w"), "write"),
    Meeting("the copy of a lower cluster", lambda d: d.write(0, b"w"), "read", BASE),
    Meeting("the growth of the top", lambda d: d.write(3 * CLUSTER, b"w"), "truncate"),
    Meeting("the data of a new cluster", lambda d: d.write(3 * CLUSTER, b"w"), "write"),
    Meeting("the map of a new cluster", lambda d: d.write(3 * CLUSTER, b"w"), "write", skip=1),
    Meeting("the barrier before the map", lambda d: d.write(3 * CLUSTER, b"w"), "fsync"),
    Meeting("a forced write", lambda d: d.write(2 * CLUSTER, b"w", fua=True), "fsync"),
    Meeting("a flush", lambda d: d.flush(), "fsync"),
    Meeting("a discard", lambda d: d.discard(2 * CLUSTER, CLUSTER), "punch hole"),
)
each_meeting = pytest.mark.parametrize("meeting", MEETINGS, ids=lambda meeting: meeting.name)


def errno_for_caller(meeting: Meeting, number: int) -> int:
    """vz7's rule: as it is, and EIO for whatever an fsync said."""
    return errno.EIO if meeting.operation == "fsync" else number


async def failing(
    rig: Rig, op: Op, error: Exception, meanwhile: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
) -> None:
    """A request that ends with `error`."""

    async def work(_stack: Stack) -> None:
        await meanwhile()
        raise error

    await rig.queue.run(op, 0, work)


async def meet(rig: Rig, meeting: Meeting, number: int) -> None:
    """The request fails by its own error, which is not that of the gate."""
    rule = rig.lose(number, meeting.operation, path=meeting.path, skip=meeting.skip)
    with pytest.raises(RequestFailed) as failure:
        await meeting.request(rig.device)
    assert failure.value.errno == errno_for_caller(meeting, number)
    assert str(failure.value).startswith(f"{meeting.path}: {meeting.operation}")
    rig.faults.remove(rule)


@each_meeting
@pytest.mark.parametrize("number", TRIGGERS, ids=errno.errorcode.get)
async def test_the_device_goes_to_standby_and_is_not_aborted(rig: Rig, meeting: Meeting, number: int) -> None:
    await meet(rig, meeting, number)
    assert rig.state is State.ON
    assert not rig.queue.aborted
    reason = rig.queue.standby.reason
    assert reason is not None
    assert (reason.errno, reason.operation, reason.file) == (number, meeting.operation, meeting.path)
    assert reason.level == (BASE, MIDDLE, TOP).index(meeting.path)
    assert str(reason).startswith(f"errno={errno.errorcode[number]} operation={meeting.operation.replace(' ', '_')} ")
    assert str(reason).endswith(f" level={reason.level} file={meeting.path}")


@each_meeting
@pytest.mark.parametrize("number", NO_TRIGGERS, ids=errno.errorcode.get)
async def test_other_answers_abort_the_device_as_in_vz7(rig: Rig, meeting: Meeting, number: int) -> None:
    await meet(rig, meeting, number)
    assert rig.state is State.OFF
    assert rig.queue.aborted


@pytest.mark.parametrize("number", PLAIN, ids=errno.errorcode.get)
@pytest.mark.parametrize("meeting", [m for m in MEETINGS if m.operation != "fsync"], ids=lambda meeting: meeting.name)
async def test_a_storage_that_is_full_or_makes_no_holes_changes_nothing(
    rig: Rig, meeting: Meeting, number: int
) -> None:
    await meet(rig, meeting, number)
    assert (rig.state, rig.queue.aborted) == (State.OFF, False)


async def test_an_fsync_that_met_a_full_storage_aborts_since_later_flushes_cannot_succeed(rig: Rig) -> None:
    await meet(rig, MEETINGS[-2], errno.ENOSPC)
    assert (rig.state, rig.queue.aborted) == (State.OFF, True)


@each_meeting
@pytest.mark.parametrize("number", TRIGGERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("fuse", ["key", "EN", "both"])
async def test_with_a_fuse_out_an_error_is_a_plain_error_and_aborts(
    unarmed: Rig, meeting: Meeting, number: int, fuse: str
) -> None:
    if fuse == "key":
        unarmed.scst.attach(unarmed.device)
    elif fuse == "EN":
        unarmed.scst.load()
    before = unarmed.state
    await meet(unarmed, meeting, number)
    assert unarmed.state is before
    assert unarmed.queue.standby.reason is None
    assert unarmed.queue.aborted


@each_meeting
async def test_with_a_fuse_out_a_healed_storage_serves_on_and_only_a_failed_fsync_stays_failed(
    unarmed: Rig, meeting: Meeting
) -> None:
    await meet(unarmed, meeting, errno.EIO)
    unarmed.queue.set_aborted(False)
    assert await errno_of(meeting.request(unarmed.device)) == (errno.EIO if meeting.operation == "fsync" else 0)


OUR_OWN = (
    TruncatedImage("short"),
    QueueFull("full"),
    ParkTimeout("waited"),
    BeyondEnd("past the end"),
    ReadOnly("read-only"),
    StorageTimeout("hung"),
    Busy("busy"),
)


@pytest.mark.parametrize("error", OUR_OWN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("op", Op)
async def test_an_error_of_our_own_making_never_means_standby(rig: Rig, op: Op, error: PloopError) -> None:
    assert await errno_of(failing(rig, op, error)) == error.errno
    assert rig.state is State.OFF


async def test_a_file_that_somebody_shortened_is_eio_and_aborts_without_standby(rig: Rig) -> None:
    del rig.store.images[BASE].data[-CLUSTER:]
    assert await errno_of(rig.device.read(0, DISK_BYTES)) == 0
    del rig.store.images[BASE].data[-2 * CLUSTER :]
    assert await errno_of(rig.device.read(0, 512)) == errno.EIO
    assert (rig.state, rig.queue.aborted) == (State.OFF, True)


async def test_an_exception_that_is_no_expected_failure_passes_as_it_is(rig: Rig) -> None:
    with pytest.raises(ZeroDivisionError):
        await failing(rig, Op.READ, ZeroDivisionError())
    assert (rig.state, rig.queue.aborted, rig.device.stats.in_flight) == (State.OFF, False, 0)


async def test_a_map_that_is_full_refuses_one_write_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ploopfs.image.allocator.MAX_ENTRY", 0)
    rig = await rig_of({TOP: image({}).build()})
    assert await errno_of(rig.device.write(0, b"w")) == errno.E2BIG
    assert (rig.state, rig.queue.aborted) == (State.OFF, False)


async def test_the_switch_is_logged_once_however_many_requests_fail(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    errors = [backend_error(errno.ENOTCONN), backend_error(errno.EIO), backend_error(errno.EBUSY)]
    for error in errors:
        rig.queue.judge(Op.READ, error, rig.queue.generation)
    switched = [record for record in caplog.records if "standby mode" in record.getMessage()]
    assert [(record.getMessage(), record.levelno) for record in switched] == [
        ("ploop0 was switched into the standby mode", logging.WARNING)
    ]
    assert rig.queue.standby.reason is not None
    assert rig.queue.standby.reason.errno == errno.ENOTCONN


@pytest.mark.parametrize("number", [*TRIGGERS, *NO_TRIGGERS], ids=errno.errorcode.get)
async def test_a_late_error_of_a_replaced_top_changes_nothing(rig: Rig, number: int) -> None:
    async def replaced_meanwhile() -> None:
        rig.queue.swap(rig.device.stack)

    assert await errno_of(failing(rig, Op.READ, backend_error(number), replaced_meanwhile)) == number
    assert (rig.state, rig.queue.aborted) == (State.OFF, False)


async def test_a_request_that_succeeds_after_the_switch_keeps_its_result(rig: Rig) -> None:
    async def work(stack: Stack) -> bytes:
        await rig.enter_standby(errno.EIO)
        return bytes(await stack.read(0, 512))

    assert await rig.queue.run(Op.READ, 512, work) == b"a" * 512
    assert rig.state is State.ON


@pytest.mark.parametrize("op", Op)
async def test_a_request_that_fails_in_standby_gets_its_own_errno_too(rig: Rig, op: Op) -> None:
    async def lost_meanwhile() -> None:
        await rig.enter_standby(errno.ENOTCONN)

    expected = errno.EIO if op is Op.FLUSH else errno.EBUSY
    assert await errno_of(failing(rig, op, backend_error(errno.EBUSY), lost_meanwhile)) == expected
    assert not rig.queue.aborted


async def test_every_request_reaches_the_top_in_these_tests(rig: Rig) -> None:
    for request in REQUESTS.values():
        rig.faults.log.clear()
        await request(rig.device)
        assert {path for _, path in rig.faults.log} == {TOP}
