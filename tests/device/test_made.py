"""A write that a thread has made, and answered, before anything was noted of it, is in the end as any other."""

import time
from dataclasses import dataclass

import pytest
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.stats import Op
from ploopfs.engine.ring_write import Ended, Pieces, Reply, Write
from ploopfs.engine.tracking import next_tracked, start_tracking
from tests.device.ready import ReadyFiles
from tests.device.rig import CLUSTER, Rig, rig_of, three_deltas
from tests.device.test_nowait import HOLE, IN_TOP, counted

DATA = b"w" * 512
WHOLE = b"W" * CLUSTER
HOUR_NS = 3600 * 10**9


@dataclass(frozen=True, slots=True)
class Writer:
    """Of its own device; `made` is what the thread does, without its answer."""

    rig: Rig

    async def write(self, offset: int, data: bytes, *, made: bool) -> None:
        device = self.rig.device
        if not made:
            await device.write(offset, data)
            return
        pieces = device.aim(offset, data)
        assert pieces is not None
        for at, piece in pieces:
            await device.stack.top.file.write(at, piece)
        device.wrote(offset, data, pieces, time.monotonic_ns())

    def noted(self) -> tuple[object, ...]:
        """All that there is to note of it, but for when."""
        device, stack = self.rig.device, self.rig.device.stack
        top = stack.top
        return (
            counted(self.rig),
            [(change.offset, change.length, bytes(change.data or b"")) for change in device.unflushed],
            (stack.is_unconfirmed, set(top.unconfirmed_slots), top.allocator.end_cluster, stack.allocated_bytes),
            (bytes(stack.map.levels), list(stack.map.clusters), top.bat and list(top.bat.clusters)),
            (dict(stack._writer.claims.clusters), device.stats.in_flight, stack.counters.bio_alloc),
        )


async def writer() -> Writer:
    rig = await rig_of(three_deltas(), storage=ReadyFiles)
    assert rig.device.stack.room is not None
    await rig.device.stack.room.make()
    return Writer(rig)


@pytest.mark.parametrize(("offset", "data"), [(IN_TOP + 5, DATA), (HOLE, DATA), (HOLE, WHOLE)])
async def test_it_is_noted_as_any_write_and_so_is_what_follows(offset: int, data: bytes) -> None:
    made, other = await writer(), await writer()
    await made.write(offset, data, made=True)
    await other.write(offset, data, made=False)
    assert made.noted() == other.noted()
    for each in (made, other):
        assert bytes(await each.rig.device.read(offset, len(data))) == data
        await each.rig.device.flush()
    assert made.noted() == other.noted()
    assert not made.rig.device.stack.is_unconfirmed
    assert not made.rig.device.unflushed


async def test_with_a_fuse_out_it_makes_what_was_kept_obsolete() -> None:
    made = await writer()
    await made.rig.device.write(IN_TOP, b"kept")
    made.rig.registry.key.enabled = False
    await made.write(IN_TOP, DATA, made=True)
    assert not made.rig.device.unflushed


async def test_a_tracked_cluster_is_told_of() -> None:
    made = await writer()
    start_tracking(made.rig.device.stack)
    told = [next_tracked(made.rig.device.stack) for _ in range(2)]
    await made.write(IN_TOP, DATA, made=True)
    assert next_tracked(made.rig.device.stack) == told[1]


@dataclass(frozen=True, slots=True)
class Maker:
    since_ns: int

    def begin(self, fd: int, pieces: Pieces, ended: Ended, reply: Reply) -> Write:  # noqa: ARG002 -- as Maker has it
        raise AssertionError("these files make it themselves")


async def test_it_takes_the_time_from_when_it_was_begun_and_so_does_one_that_hangs() -> None:
    made = await writer()
    device, writes = made.rig.device, made.rig.device.stats.by_op[Op.WRITE]
    pieces, since_ns = device.aim(IN_TOP, DATA), time.monotonic_ns() - HOUR_NS
    assert pieces is not None
    device.wrote(IN_TOP, DATA, pieces, since_ns)
    assert 2 * HOUR_NS > writes.duration_ns >= HOUR_NS
    reply = Reply(-1, b"", lambda _result: None, Maker(since_ns))
    assert device.write_soon(IN_TOP, DATA, lambda _rest: None, reply, pieces)
    await wait_all_tasks_blocked()
    assert 3 * HOUR_NS > writes.duration_ns >= 2 * HOUR_NS
