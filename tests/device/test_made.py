"""What a thread has made in its turn, and answered before anything was noted of it, is in the end as any write."""

import errno
import time
from dataclasses import dataclass

import pytest
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.stats import Op
from ploopfs.device.turn import Turn
from ploopfs.device.unflushed import CHANGE_BYTES
from ploopfs.engine.file import File
from ploopfs.engine.ring_write import Ended, Pieces, Reply, Write
from ploopfs.engine.tracking import next_tracked, start_tracking
from ploopfs.errors import RequestFailed
from tests.device.ready import ReadyFile, ReadyFiles
from tests.device.rig import CLUSTER, DISK_BYTES, Rig, rig_of, three_deltas
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
        turn = self.begin_turn()
        await self.make(turn, offset, data)
        turn.settle()

    def begin_turn(self) -> Turn:
        turn = self.rig.device.begin_turn()
        assert turn is not None
        return turn

    async def make(self, turn: Turn, offset: int, data: bytes) -> None:
        pieces = turn.aim(offset, data)
        assert pieces is not None
        for at, piece in pieces:
            await self.rig.device.stack.top.file.write(at, piece)
        turn.wrote(offset, data, pieces, time.monotonic_ns())

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


class ThreadsFile(ReadyFile):
    def thread_fd(self) -> int:
        return -1  # `Writer.make` does it


class ThreadsFiles(ReadyFiles):
    def wrap(self, file: File) -> ThreadsFile:
        return ThreadsFile(file, self.faults)


async def writer(bounds: Bounds | None = None) -> Writer:
    rig = await rig_of(three_deltas(), storage=ThreadsFiles, bounds=bounds)
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


SOME = [(IN_TOP + 5, DATA), (HOLE, DATA), (IN_TOP, b"newer" * 9), (HOLE + 512, b"x"), (IN_TOP + 5, b"newest")]


async def test_a_turn_of_them_is_noted_as_one_after_the_other() -> None:
    made, other = await writer(), await writer()
    turn = made.begin_turn()
    for offset, data in SOME:
        await made.make(turn, offset, data)
    turn.settle()
    for offset, data in SOME:
        await other.write(offset, data, made=False)
    assert made.noted() == other.noted()
    turn.settle()
    assert made.noted() == other.noted()


@pytest.mark.parametrize(("length", "count"), [(1, 64), (CLUSTER, -(-(1 << 20) // CLUSTER))])
async def test_a_long_turn_is_noted_before_its_end(length: int, count: int) -> None:
    """A flush may be due, and whoever is to begin it is not to wait for the end."""
    made = await writer()
    turn = made.begin_turn()
    for _ in range(count - 1):
        await made.make(turn, IN_TOP, bytes(length))
    assert not made.rig.device.unflushed
    await made.make(turn, IN_TOP, bytes(length))
    assert made.rig.device.unflushed.data_bytes == count * length
    assert made.rig.device.stats.by_op[Op.WRITE].ios == count


async def test_what_was_made_in_a_turn_leaves_less_room_in_it() -> None:
    made = await writer(Bounds(unflushed_bytes=3 * (len(DATA) + CHANGE_BYTES)))
    turn = made.begin_turn()
    for _ in range(2):
        await made.make(turn, IN_TOP, DATA)
    assert turn.aim(IN_TOP, DATA) is None
    assert turn.aim(IN_TOP, DATA[1:]) is not None
    turn.settle()
    assert not made.rig.device.unflushed.is_full
    assert turn.aim(IN_TOP, DATA) is None


async def test_a_turn_goes_no_further_than_the_device() -> None:
    made = await writer()
    turn = made.begin_turn()
    assert turn.aim(DISK_BYTES - 1, DATA) is None
    assert turn.aim(DISK_BYTES, DATA) is None
    assert turn.aim(IN_TOP, b"") is None


@pytest.mark.expects_warnings
async def test_there_is_no_turn_with_a_gate_that_is_not_open() -> None:
    made = await writer()
    device = made.rig.device
    await device.queue.suspend()
    assert device.begin_turn() is None
    device.queue.resume()
    assert device.begin_turn() is not None
    made.rig.lose(errno.EBUSY, "write")
    with pytest.raises(RequestFailed):
        await device.write(IN_TOP, DATA)
    assert device.begin_turn() is None


async def test_nothing_that_is_read_only_is_for_a_thread_to_write() -> None:
    rig = await rig_of(three_deltas(), storage=ThreadsFiles, read_only=True)
    turn = rig.device.begin_turn()
    assert turn is not None
    assert turn.aim(IN_TOP, DATA) is None


@dataclass(frozen=True, slots=True)
class Maker:
    since_ns: int

    def begin(self, fd: int, pieces: Pieces, ended: Ended, reply: Reply) -> Write:  # noqa: ARG002 -- as Maker has it
        raise AssertionError("these files make it themselves")


async def test_it_takes_the_time_from_when_it_was_begun_and_so_does_one_that_hangs() -> None:
    made = await writer()
    device, writes = made.rig.device, made.rig.device.stats.by_op[Op.WRITE]
    turn, since_ns = made.begin_turn(), time.monotonic_ns() - HOUR_NS
    pieces = turn.aim(IN_TOP, DATA)
    assert pieces is not None
    turn.wrote(IN_TOP, DATA, pieces, since_ns)
    await made.make(turn, IN_TOP, DATA)
    turn.settle()
    assert (writes.buckets[0], writes.buckets[-1]) == (1, 1)
    assert 2 * HOUR_NS > writes.duration_ns >= HOUR_NS
    reply = Reply(-1, b"", lambda _result: None, Maker(since_ns))
    assert device.write_soon(IN_TOP, DATA, lambda _rest: None, reply, pieces)
    await wait_all_tasks_blocked()
    assert 3 * HOUR_NS > writes.duration_ns >= 2 * HOUR_NS
