"""Requests that are answered without a turn of their own: only if everything is at hand and nothing is in the way."""

import errno
from collections.abc import Awaitable, Callable
from itertools import starmap

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.device import Device
from ploopfs.device.standby import State
from ploopfs.device.stats import Op
from ploopfs.engine.failing import error_disk
from ploopfs.engine.file import Buffer, File
from ploopfs.engine.inject.grammar import execute
from ploopfs.engine.stack import Stack
from ploopfs.engine.tracking import next_tracked, start_tracking
from ploopfs.errors import BackendError, InStandby, NothingTracked
from ploopfs.testing.faulty import Faults, FaultyFile, FaultyFiles
from tests.device.rig import (
    CLUSTER,
    CONTENT,
    DISK_BYTES,
    TOP,
    Asked,
    Rig,
    errno_of,
    rig_of,
    three_deltas,
)

IN_TOP = 2 * CLUSTER
HOLE = 3 * CLUSTER


class ReadyFile(FaultyFile):
    """Answers at once what no rule takes; a rule's errno is an answer, and its wait is none."""

    def read_nowait(self, offset: int, length: int) -> bytearray | None:
        return self._inner.read_nowait(offset, length) if self._answers("read") else None

    def write_nowait(self, offset: int, data: Buffer) -> int:
        return self._inner.write_nowait(offset, data) if self._answers("write") else 0

    def _answers(self, name: str) -> bool:
        assert isinstance(self._judge, Faults)
        for rule in self._judge.rules:
            if name in rule.operations and rule.path in (None, self.path):
                if rule.errno is not None:
                    raise BackendError(rule.errno, name, self.path)
                return False
        return True


class ReadyFiles(FaultyFiles):
    def wrap(self, file: File) -> ReadyFile:
        return ReadyFile(file, self.faults)


NOWAIT: dict[Op, Callable[[Device], object]] = {
    Op.READ: lambda device: device.read_nowait(IN_TOP, 512),
    Op.WRITE: lambda device: device.write_nowait(IN_TOP, b"w" * 512),
}
"""One request of each kind that the storage could answer at once."""

each_op = pytest.mark.parametrize("op", NOWAIT)


@pytest.fixture
async def rig() -> Rig:
    return await rig_of(three_deltas(), storage=ReadyFiles)


def counted(rig: Rig) -> tuple[object, ...]:
    stats, counters = rig.device.stats, rig.device.counters
    by_op = [(each.ios, each.length_bytes, each.in_flight, sum(each.buckets)) for each in stats.by_op.values()]
    return by_op, stats.in_flight, counters.bio_in, counters.bio_out, counters.bio_rzero, counters.bio_splits


# --- what is answered ---------------------------------------------------------------------------------------------


async def test_a_read_that_is_at_hand_is_what_a_read_gives(rig: Rig) -> None:
    ranges = [(0, DISK_BYTES), (10, 0), (CLUSTER - 3, 7), (HOLE, 9), (DISK_BYTES - 2, 9), (DISK_BYTES, 5)]
    assert list(starmap(rig.device.read_nowait, ranges)) == [CONTENT[at : at + length] for at, length in ranges]


async def test_a_write_in_place_is_on_the_storage_and_is_kept_until_it_is_flushed(rig: Rig) -> None:
    data = bytearray(b"new")
    assert rig.device.write_nowait(IN_TOP + 5, data) == 3
    data[:] = b"xxx"  # the caller's own again
    assert bytes(await rig.device.read(IN_TOP + 4, 5)) == b"tnewt"
    assert [(each.offset, each.data) for each in rig.device.unflushed._changes] == [(IN_TOP + 5, b"new")]
    assert rig.device.stack.is_unconfirmed
    await rig.device.flush()
    assert not rig.device.stack.is_unconfirmed


async def test_with_a_fuse_out_a_write_makes_what_was_kept_obsolete() -> None:
    rig = await rig_of(three_deltas(), storage=ReadyFiles)
    await rig.device.write(IN_TOP, b"kept")
    rig.registry.key.enabled = False
    assert len(rig.device.unflushed) == 1
    assert rig.device.write_nowait(IN_TOP, b"newer") == 5
    assert len(rig.device.unflushed) == 0


@pytest.mark.parametrize("length", [0, 512, 2 * CLUSTER])
async def test_it_is_counted_as_if_it_had_waited(length: int) -> None:
    """Both devices see the same requests."""
    quick, slow = [await rig_of(three_deltas(), storage=ReadyFiles) for _ in range(2)]
    assert quick.device.read_nowait(IN_TOP, length) is not None
    await slow.device.read(IN_TOP, length)
    if length:
        quick.device.write_nowait(IN_TOP, b"w" * 512)
        await slow.device.write(IN_TOP, b"w" * 512)
    assert counted(quick) == counted(slow)


async def test_a_disk_that_answers_at_once_is_busy_meanwhile(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = iter(range(0, 1000 * 10**6, 10**6))
    monkeypatch.setattr("time.monotonic_ns", lambda: next(now_ns))
    for _ in range(3):
        rig.device.read_nowait(HOLE, 512)
    _in_flight, busy_ms, queue_ms = rig.device.stats.stat_columns()[8:11]
    assert (busy_ms, queue_ms) == (3, 3)


async def test_a_tracked_cluster_is_told_of(rig: Rig) -> None:
    start_tracking(rig.device.stack)
    assert [next_tracked(rig.device.stack) for _ in range(2)] == [0, 1]
    with pytest.raises(NothingTracked):
        next_tracked(rig.device.stack)
    rig.device.write_nowait(IN_TOP, b"again")
    assert next_tracked(rig.device.stack) == 1


# --- what is in the way -------------------------------------------------------------------------------------------


async def untouched(rig: Rig, op: Op, call: Callable[[Device], object] | None = None) -> None:
    """It gets no answer, nothing is counted, and nothing has changed."""
    before, stored, kept = counted(rig), rig.store.bytes_of(TOP), len(rig.device.unflushed)
    assert (call or NOWAIT[op])(rig.device) is None
    assert counted(rig) == before
    assert rig.store.bytes_of(TOP) == stored
    assert len(rig.device.unflushed) == kept


@pytest.mark.expects_warnings
@each_op
async def test_in_standby_nobody_is_answered(rig: Rig, op: Op) -> None:
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    await untouched(rig, op)
    with pytest.raises(InStandby):
        await rig.device.read(IN_TOP, 1)


@each_op
async def test_nor_while_the_queue_is_quiesced_suspended_aborted_or_closing(rig: Rig, op: Op) -> None:
    async with rig.queue.quiesced():
        await untouched(rig, op)
    await rig.queue.suspend()
    await untouched(rig, op)
    rig.queue.resume()
    rig.queue.set_aborted(True)
    await untouched(rig, op)
    rig.queue.set_aborted(False)
    assert NOWAIT[op](rig.device) is not None
    rig.queue.close_gate()
    await untouched(rig, op)


@each_op
async def test_nobody_overtakes_who_waits(rig: Rig, op: Op) -> None:
    async with trio.open_nursery() as nursery:
        async with rig.queue.quiesced():
            asked = Asked(nursery, rig.device.read(IN_TOP, 1))
            await wait_all_tasks_blocked()
        assert rig.queue.parked == 1
        await untouched(rig, op)
    assert asked.ended
    assert NOWAIT[op](rig.device) is not None


@each_op
async def test_nor_is_it_more_than_the_queue_takes(op: Op) -> None:
    rig = await rig_of(three_deltas(), storage=ReadyFiles, bounds=Bounds(requests=1))
    released = rig.hang("fsync")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.device.flush)
        await wait_all_tasks_blocked()
        await untouched(rig, op)
        released.set()
    assert NOWAIT[op](rig.device) is not None


@pytest.mark.expects_warnings
@each_op
async def test_an_error_of_the_storage_is_left_for_who_waits(rig: Rig, op: Op) -> None:
    rig.lose(errno.ENOTCONN, op.value)
    await untouched(rig, op)
    assert not rig.queue.standby.refuses
    assert rig.device.stats.errors == {}
    request: Awaitable[object] = (
        rig.device.read(IN_TOP, 512) if op is Op.READ else rig.device.write(IN_TOP, b"w" * 512)
    )
    assert await errno_of(request) == errno.ENOTCONN
    assert rig.state is State.ON


@each_op
async def test_a_fault_rule_sees_every_request(op: Op) -> None:
    rig = await rig_of(three_deltas(), storage=ReadyFiles)
    assert NOWAIT[op](rig.device) is not None
    execute(rig.device.injector, f"add,op={op.name},errno=ENOSPC")
    await untouched(rig, op)
    rig.device.injector.remove_all()
    assert NOWAIT[op](rig.device) is not None


@pytest.mark.parametrize("start", [HOLE, 0, HOLE - 2], ids=["a hole", "of a lower level", "half of each"])
async def test_a_write_that_needs_a_cluster_is_left_for_who_waits(rig: Rig, start: int) -> None:
    await untouched(rig, Op.WRITE, lambda device: device.write_nowait(start, b"data"))


async def test_so_is_one_that_is_forced_or_does_not_fit_or_is_refused(rig: Rig) -> None:
    await untouched(rig, Op.WRITE, lambda device: device.write_nowait(IN_TOP, b"data", fua=True))
    await untouched(rig, Op.WRITE, lambda device: device.write_nowait(DISK_BYTES - 2, b"data"))
    await untouched(rig, Op.WRITE, lambda device: device.write_nowait(DISK_BYTES + 9, b"data"))
    await untouched(rig, Op.WRITE, lambda device: device.write_nowait(IN_TOP, b""))
    read_only = await rig_of(three_deltas(), storage=ReadyFiles, read_only=True)
    await untouched(read_only, Op.WRITE)


async def test_who_fills_what_may_be_kept_is_left_for_who_waits_for_the_flush() -> None:
    rig = await rig_of(three_deltas(), storage=ReadyFiles, bounds=Bounds(unflushed_bytes=3000))
    room = [rig.device.write_nowait(IN_TOP, b"w" * 1024) for _ in range(3)]
    assert room == [1024, 1024, None]
    await rig.device.write(IN_TOP, b"w" * 1024)
    assert len(rig.device.unflushed) == 0
    assert rig.faults.log[-1] == ("fsync", TOP)


async def test_a_storage_that_takes_nothing_without_waiting_is_asked_now_and_then(rig: Rig) -> None:
    released = rig.hang("write")
    top, asked = rig.device.stack.top, []
    really = top.write_nowait

    def counted(offset: int, data: Buffer) -> int:
        asked.append(offset)
        return really(offset, data)

    top.write_nowait = counted  # type: ignore[method-assign]
    for _ in range(16 + 640):
        assert rig.device.write_nowait(IN_TOP, b"w") is None
    assert len(asked) == 16 + 10
    rig.faults.rules.clear()
    released.set()
    tries = 1
    while rig.device.write_nowait(IN_TOP, b"w") is None:
        tries += 1
    assert tries <= 64
    assert [rig.device.write_nowait(IN_TOP, b"w") for _ in range(5)] == [1] * 5


async def test_an_error_target_has_nothing_at_hand() -> None:
    disk: Stack = error_disk(size_bytes=DISK_BYTES, cluster_bytes=CLUSTER)
    assert disk.read_nowait(0, 1) is None
    assert disk.write_nowait(0, b"x") is False
