"""One connection over a device on storage in memory, with a socket for the kernel: who is answered what, and when."""

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from trio.testing import MockClock

from ploopfs.blockfuse import connection as connection_module
from ploopfs.blockfuse import waiting
from ploopfs.blockfuse.buffers import Buffers
from ploopfs.blockfuse.connection import Connection
from ploopfs.blockfuse.front import Front
from ploopfs.bounds import MAX_TRANSFER_BYTES
from ploopfs.device.bounds import Bounds
from ploopfs.device.stats import Op
from ploopfs.device.waiting import OnStandby
from ploopfs.errors import MountError
from ploopfs.sysfs.nodes import Disk
from ploopfs.testing.faulty import FaultyFiles
from tests.blockfuse import kernel as fuse
from tests.blockfuse.kernel import U32, U64, Kernel, connected, packed, read_into, transfer
from tests.device.ready import ReadyFiles
from tests.device.rig import CLUSTER, CONTENT, DISK_BYTES, TOP, Rig, image, rig_of, three_deltas

OF_TOP = 2 * CLUSTER
"""Where the disk is in the top."""


@dataclass(slots=True)
class Told:
    """Which threads have been told to end; asked instead of /proc."""

    threads: set[int]

    def __call__(self, thread: int) -> bool:
        return thread in self.threads


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told(set())
    monkeypatch.setattr(waiting, "is_told_to_end", told)
    return told


@asynccontextmanager
async def serving(rig: Rig) -> AsyncIterator[tuple[Kernel, int]]:
    """The kernel, and an open file of the disk."""
    async with connected(rig.device) as kernel:
        yield kernel, await kernel.open()


def write(fh: int, offset: int, data: bytes) -> bytes:
    return transfer(fh, offset, len(data)) + data


@pytest.fixture
async def rig() -> Rig:
    return await rig_of(three_deltas())


@pytest.fixture
async def ready() -> Rig:
    """Its storage has everything at hand."""
    return await rig_of(three_deltas(), storage=ReadyFiles)


@pytest.mark.parametrize("storage", [ReadyFiles, FaultyFiles])
async def test_a_read_is_answered_with_the_bytes_of_the_disk(storage: type[FaultyFiles]) -> None:
    async with serving(await rig_of(three_deltas(), storage=storage)) as (kernel, fh):
        for offset in range(0, DISK_BYTES, CLUSTER):
            answer = await kernel.call(fuse.READ, transfer(fh, offset, 512))
            assert (answer.errno, answer.body) == (0, CONTENT[offset : offset + 512])


async def test_what_is_at_hand_is_answered_in_the_order_in_which_it_was_asked_for(ready: Rig) -> None:
    async with serving(ready) as (kernel, fh):
        uniques = [
            await kernel.ask(fuse.READ, transfer(fh, 0, 512)),
            await kernel.ask(fuse.LSEEK, fuse.lseek(fh, 0, os.SEEK_HOLE)),
            await kernel.ask(fuse.READ, transfer(fh, OF_TOP, 512)),
            await kernel.ask(fuse.GETATTR, bytes(16)),
        ]
        await kernel.answer(uniques[-1])
        assert [answer.unique for answer in kernel.answers[-4:]] == uniques
        assert kernel.answers[-2].body == b"t" * 512


@pytest.mark.parametrize("storage", [ReadyFiles, FaultyFiles])
async def test_a_read_at_the_end_is_short_and_past_it_empty(storage: type[FaultyFiles]) -> None:
    async with serving(await rig_of(three_deltas(), storage=storage)) as (kernel, fh):
        assert len((await kernel.call(fuse.READ, transfer(fh, DISK_BYTES - 100, 512))).body) == 100
        for offset in (DISK_BYTES, 1 << 62, (1 << 64) - 1):
            answer = await kernel.call(fuse.READ, transfer(fh, offset, 512))
            assert (answer.errno, answer.body) == (0, b"")


async def test_a_read_that_waits_holds_up_nobody(rig: Rig) -> None:
    async with serving(rig) as (kernel, fh):
        released = rig.hang("read", count=1)
        late = await kernel.ask(fuse.READ, transfer(fh, OF_TOP, 512))
        assert await kernel.settled() == kernel.answers[:2]
        in_time = await kernel.call(fuse.READ, transfer(fh, 0, 512))
        assert in_time.body == CONTENT[:512]
        released.set()
        assert (await kernel.answer(late)).body == CONTENT[OF_TOP : OF_TOP + 512]


@pytest.mark.parametrize("storage", [ReadyFiles, FaultyFiles])
async def test_a_write_is_answered_with_what_was_written_and_is_read(storage: type[FaultyFiles]) -> None:
    async with serving(await rig_of(three_deltas(), storage=storage)) as (kernel, fh):
        assert (await kernel.call(fuse.WRITE, write(fh, OF_TOP, b"w" * 512))).number(width=U32) == 512
        assert (await kernel.call(fuse.READ, transfer(fh, OF_TOP, 513))).body == b"w" * 512 + b"t"
        assert (await kernel.call(fuse.WRITE, write(fh, DISK_BYTES - 1, b"ab"))).number(width=U32) == 1
        assert (await kernel.call(fuse.WRITE, write(fh, DISK_BYTES, b"a"))).errno == errno.ENOSPC


@pytest.mark.parametrize("size", [1, MAX_TRANSFER_BYTES // 2, MAX_TRANSFER_BYTES // 2 + 1, MAX_TRANSFER_BYTES])
async def test_what_a_write_holds_stays_as_it_was_while_it_waits(size: int) -> None:
    """The buffer into which requests are read is used for the next one."""
    clusters = 4 * MAX_TRANSFER_BYTES // CLUSTER
    builder = image(dict.fromkeys(range(clusters), b"o"))
    builder.disk_clusters = clusters
    rig = await rig_of({TOP: builder.build()})
    async with serving(rig) as (kernel, fh):
        released = rig.hang("write")
        asked = [
            await kernel.ask(fuse.WRITE, write(fh, number * MAX_TRANSFER_BYTES, bytes([65 + number]) * size))
            for number in range(3)
        ]
        await kernel.settled()
        for _ in range(3):
            await kernel.call(fuse.FLUSH, b"\xff" * MAX_TRANSFER_BYTES)
        released.set()
        for number, unique in enumerate(asked):
            assert (await kernel.answer(unique)).number(width=U32) == size
            content = await rig.device.read(number * MAX_TRANSFER_BYTES, MAX_TRANSFER_BYTES)
            is_same = bytes(content) == bytes([65 + number]) * size + b"o" * (MAX_TRANSFER_BYTES - size)
            assert is_same, number


async def test_the_buffer_of_a_large_write_is_nobodys_to_write_to_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be kept for a replay, and the storage may yet read it."""
    buffers = Buffers()
    read_into(buffers, monkeypatch)
    clusters = MAX_TRANSFER_BYTES // CLUSTER
    builder = image(dict.fromkeys(range(clusters), b"o"))
    builder.disk_clusters = clusters
    rig = await rig_of({TOP: builder.build()})
    async with serving(rig) as (kernel, fh):
        for number in range(5):
            content = bytes([65 + number]) * MAX_TRANSFER_BYTES
            assert (await kernel.call(fuse.WRITE, write(fh, 0, content))).errno == 0
        kept = [bytes(change.data or b"") for change in rig.device.unflushed]
        assert [(len(each), each[:1], each[-1:]) for each in kept] == [
            (MAX_TRANSFER_BYTES, bytes([65 + number]), bytes([65 + number])) for number in range(5)
        ]


async def test_two_connections_do_not_mix_their_requests(rig: Rig) -> None:
    other = await rig_of(three_deltas())
    async with serving(rig) as (first, _), serving(other) as (second, _):
        released = [each.hang("write") for each in (rig, other)]
        large = b"f" * DISK_BYTES, b"s" * DISK_BYTES
        uniques = [
            await kernel.ask(fuse.WRITE, write(1, 0, data)) for kernel, data in zip((first, second), large, strict=True)
        ]
        await first.settled()
        for event in released:
            event.set()
        for kernel, unique in zip((first, second), uniques, strict=True):
            assert (await kernel.answer(unique)).errno == 0
    for each, data in zip((rig, other), large, strict=True):
        is_same = await each.content() == data
        assert is_same, data[:1]


@pytest.mark.parametrize("flags", [0, os.O_DSYNC, os.O_SYNC])
async def test_a_write_to_a_file_opened_for_that_is_durable_when_it_is_answered(rig: Rig, flags: int) -> None:
    async with connected(rig.device) as kernel:
        fh = await kernel.open(os.O_RDWR | flags)
        await rig.device.write(OF_TOP, b"first")  # which marks the image
        since = len(rig.faults.log)
        assert (await kernel.call(fuse.WRITE, write(fh, OF_TOP, b"w" * 512))).errno == 0
        assert (("fsync", TOP) in rig.faults.log[since:]) == bool(flags)


@pytest.mark.expects_warnings
async def test_a_flush_flushes_and_fails_as_the_device_does(rig: Rig) -> None:
    body = packed((U64, 1), (U32, 0), (U32, 0))
    async with serving(rig) as (kernel, _):
        await kernel.call(fuse.WRITE, write(1, OF_TOP, b"w"))
        assert (await kernel.call(fuse.FSYNC, body)).errno == 0
        rig.lose(errno.EBUSY, "fsync")
        await kernel.call(fuse.WRITE, write(1, OF_TOP, b"w"))
        assert (await kernel.call(fuse.FSYNC, body)).errno == errno.EIO


@pytest.mark.expects_warnings
@pytest.mark.parametrize(("number", "answered"), [(errno.ENOTCONN, errno.ENOTCONN), (524, errno.EIO)])
async def test_an_errno_that_the_kernel_does_not_take_becomes_eio(rig: Rig, number: int, answered: int) -> None:
    async with serving(rig) as (kernel, fh):
        rig.lose(number, "read")
        assert (await kernel.call(fuse.READ, transfer(fh, OF_TOP, 512))).errno == answered


@pytest.mark.expects_warnings
@pytest.mark.parametrize("method", ["read", "write", "flush", "write_zeroes", "seek_hole"])
async def test_a_bug_costs_one_request_an_eio(
    rig: Rig, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("a bug")

    requests = {
        "read": (fuse.READ, transfer(1, 0, 512)),
        "write": (fuse.WRITE, write(1, OF_TOP, b"w")),
        "flush": (fuse.FSYNC, packed((U64, 1), (U64, 0))),
        "write_zeroes": (fuse.FALLOCATE, fuse.fallocate(1, 0, 512, 3)),
        "seek_hole": (fuse.LSEEK, fuse.lseek(1, 0, os.SEEK_HOLE)),
    }
    async with serving(rig) as (kernel, _):
        with monkeypatch.context() as patch:
            for name in (method, f"{method}_nowait", f"{method}_soon"):
                if hasattr(rig.device, name):
                    patch.setattr(rig.device, name, bug)
            assert (await kernel.call(*requests[method])).errno == errno.EIO
            assert "a bug" in caplog.text
        assert (await kernel.call(*requests[method])).errno == 0


@pytest.mark.expects_warnings
async def test_what_is_no_request_is_answered_with_eio_and_the_next_one_is_served(rig: Rig) -> None:
    async with serving(rig) as (kernel, fh):
        await kernel.send(b"x" * 39)
        await kernel.send(fuse.request(fuse.READ, b"short", unique=100))
        assert (await kernel.answer(100)).errno == errno.EIO
        assert (await kernel.call(fuse.READ, transfer(fh, 0, 1))).body == b"a"


@pytest.mark.parametrize("opcode", [fuse.FLUSH, fuse.POLL, fuse.ACCESS, fuse.GETXATTR, fuse.LOOKUP, 9999])
async def test_what_the_kernel_does_by_itself_is_left_to_it(rig: Rig, opcode: int) -> None:
    async with serving(rig) as (kernel, _):
        assert (await kernel.call(opcode, bytes(24))).errno == errno.ENOSYS


async def test_requests_for_a_file_that_is_not_open_are_refused(rig: Rig) -> None:
    async with serving(rig) as (kernel, fh):
        for opcode, body in (
            (fuse.WRITE, write(fh + 1, 0, b"w")),
            (fuse.FSYNC, packed((U64, fh + 1), (U64, 0))),
            (fuse.FALLOCATE, fuse.fallocate(fh + 1, 0, 512, 3)),
            (fuse.LSEEK, fuse.lseek(fh + 1, 0, os.SEEK_HOLE)),
            (fuse.IOCTL, fuse.ioctl(fh + 1, 0x1261)),
            (fuse.RELEASE, packed((U64, fh + 1), (U64, 0), (U64, 0))),
        ):
            assert (await kernel.call(opcode, body)).errno == errno.EBADF
        assert (await rig.device.read(0, 1)) == b"a"


async def test_a_disk_is_open_until_it_is_released_or_the_connection_ends(rig: Rig) -> None:
    async with connected(rig.device) as kernel:
        first, _ = await kernel.open(), await kernel.open(os.O_RDONLY)
        assert rig.device.open_count == 2
        released = packed((U64, first), (U64, 0), (U64, 0))
        assert (await kernel.call(fuse.RELEASE, released)).errno == 0
        assert rig.device.open_count == 1
        assert (await kernel.call(fuse.RELEASE, released)).errno == errno.EBADF
        assert rig.device.open_count == 1
    assert rig.device.open_count == 0


async def test_a_removed_device_is_not_opened(rig: Rig) -> None:
    async with connected(rig.device, Disk(rig.device, lambda: True)) as kernel:
        assert (await kernel.call(fuse.OPEN, packed((U32, 0), (U32, 0)))).errno == errno.ENODEV


async def test_a_read_only_device_is_opened_for_reading_alone() -> None:
    rig = await rig_of(three_deltas(), read_only=True)
    async with connected(rig.device) as kernel:
        for flags in (os.O_WRONLY, os.O_RDWR):
            assert (await kernel.call(fuse.OPEN, packed((U32, flags), (U32, 0)))).errno == errno.EACCES
        assert await kernel.open(os.O_RDONLY)


async def test_others_leave_files_to_the_owner(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ploopfs.sysfs.opendisk.MAX_OPEN_FILES", 3)
    monkeypatch.setattr("ploopfs.sysfs.opendisk.MAX_OTHERS_FILES", 2)
    body = packed((U32, 0), (U32, 0))
    async with connected(rig.device) as kernel:
        answers = [(await kernel.call(fuse.OPEN, body, uid=uid)).errno for uid in (1000, 1000, 1000, 0, 0)]
    assert answers == [0, 0, errno.ENFILE, 0, errno.ENFILE]


# Waiting, and not waiting any more


async def passed(seconds: float) -> None:
    with trio.move_on_after(seconds):
        await trio.sleep_forever()


async def set_after(seconds: float, event: trio.Event) -> None:
    await passed(seconds)
    event.set()


async def held(rig: Rig, kernel: Kernel, opcode: int, body: bytes) -> int:
    """A request that waits in standby for the recovery of the device."""
    rig.queue.set_on_standby(OnStandby.HOLD)
    if not rig.queue.standby.refuses:
        rig.lose(errno.EBUSY)
        first = await kernel.ask(fuse.READ, transfer(1, OF_TOP, 512), pid=1)
        await kernel.settled()
        assert rig.queue.room.held == 1
        rig.queue.fail_held()
        assert (await kernel.answer(first)).errno == errno.EIO
    before = rig.queue.room.held
    unique = await kernel.ask(opcode, body)
    await kernel.settled()
    assert rig.queue.room.held == before + 1
    return unique


REQUESTS = {
    "read": (fuse.READ, transfer(1, OF_TOP, 512)),
    "write": (fuse.WRITE, write(1, OF_TOP, b"w" * 512)),
    "flush": (fuse.FSYNC, packed((U64, 1), (U64, 0))),
    "punch": (fuse.FALLOCATE, fuse.fallocate(1, 0, CLUSTER, 3)),
    "large write": (fuse.WRITE, write(1, 0, b"w" * DISK_BYTES)),
}


@pytest.mark.expects_warnings
@pytest.mark.parametrize("name", REQUESTS)
async def test_who_is_held_and_told_to_end_gets_eintr_at_once(rig: Rig, told: Told, name: str) -> None:
    async with serving(rig) as (kernel, _):
        unique = await held(rig, kernel, *REQUESTS[name])
        told.threads.add(fuse.PID)
        await kernel.interrupt(unique)
        assert (await kernel.answer(unique)).errno == errno.EINTR
        assert rig.queue.room.held == 0
        assert rig.device.stats.in_flight == 0


@pytest.mark.expects_warnings
async def test_any_other_signal_leaves_him_held_until_he_is_told_to_end(
    rig: Rig,
    told: Told,
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    async with serving(rig) as (kernel, _):
        unique = await held(rig, kernel, *REQUESTS["read"])
        await kernel.interrupt(unique)
        await passed(10)
        assert rig.queue.room.held == 1
        told.threads.add(fuse.PID)
        with trio.fail_after(0.2):
            assert (await kernel.answer(unique)).errno == errno.EINTR


@pytest.mark.expects_warnings
async def test_who_is_held_after_an_interrupt_that_meant_nothing_is_served_after_recovery(rig: Rig, told: Told) -> None:
    async with serving(rig) as (kernel, _):
        unique = await held(rig, kernel, *REQUESTS["write"])
        await kernel.interrupt(unique)
        rig.faults.rules.clear()
        await rig.device.reopen()
        assert (await kernel.answer(unique)).errno == 0
        assert (await kernel.call(*REQUESTS["read"])).body == b"w" * 512
        assert not told.threads


@pytest.mark.expects_warnings
async def test_a_write_that_the_storage_had_before_it_was_held_is_not_said_to_be_undone(rig: Rig, told: Told) -> None:
    told.threads.add(fuse.PID)
    rig.queue.set_on_standby(OnStandby.HOLD)
    async with serving(rig) as (kernel, _):
        rig.lose(errno.EBUSY, "write")
        unique = await kernel.ask(*REQUESTS["write"])
        await kernel.settled()
        assert rig.queue.room.held == 1
        await kernel.interrupt(unique)
        assert (await kernel.answer(unique)).errno == errno.EIO


@pytest.mark.parametrize("name", ["read", "flush"])
async def test_what_can_do_no_harm_later_is_not_waited_for_in_the_storage(rig: Rig, told: Told, name: str) -> None:
    told.threads.add(fuse.PID)
    async with serving(rig) as (kernel, _):
        await kernel.call(*REQUESTS["write"])
        released = rig.hang("read", "fsync")
        unique = await kernel.ask(*REQUESTS[name])
        await kernel.settled()
        await kernel.interrupt(unique)
        assert (await kernel.answer(unique)).errno == errno.EINTR
        assert rig.device.stats.in_flight == 1
        released.set()
        await kernel.settled()
        assert rig.device.stats.in_flight == 0


@pytest.mark.expects_warnings
async def test_who_was_answered_is_not_held_when_the_storage_fails_his_read(
    rig: Rig,
    told: Told,
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    told.threads.add(fuse.PID)
    rig.queue.set_on_standby(OnStandby.HOLD)
    async with serving(rig) as (kernel, _):
        released = rig.hang("read", count=1)
        unique = await kernel.ask(*REQUESTS["read"])
        await kernel.settled()
        await kernel.interrupt(unique)
        assert (await kernel.answer(unique)).errno == errno.EINTR
        rig.lose(errno.EBUSY)
        released.set()
        await kernel.settled()
        await passed(1)
        assert (rig.queue.room.held, rig.device.stats.in_flight) == (0, 0)


@pytest.mark.parametrize("name", ["write", "punch"])
async def test_a_change_that_the_storage_has_is_waited_for_whoever_is_told_to_end(
    rig: Rig,
    told: Told,
    name: str,
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    """It could land on what is written after it."""
    told.threads.add(fuse.PID)
    async with serving(rig) as (kernel, _):
        await rig.device.write(0, b"w" * CLUSTER)
        released = rig.hang("write", "punch hole", "fsync")
        unique = await kernel.ask(*REQUESTS[name])
        await kernel.interrupt(unique)
        await passed(10)
        assert unique not in [answer.unique for answer in kernel.answers]
        released.set()
        assert (await kernel.answer(unique)).errno == 0
        if name == "write":
            assert (await kernel.call(*REQUESTS["read"])).body == b"w" * 512


@pytest.mark.expects_warnings
async def test_who_was_killed_while_he_had_not_waited_is_let_go_though_the_kernel_does_not_tell(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    leaving: set[int] = set()
    monkeypatch.setattr(waiting, "process_of", {fuse.PID: 815, 1: 1}.__getitem__)
    monkeypatch.setattr(waiting, "is_leaving", leaving.__contains__)
    async with serving(rig) as (kernel, _):
        unique = await held(rig, kernel, *REQUESTS["write"])
        await passed(10)
        assert rig.queue.room.held == 1
        leaving.add(815)
        with trio.fail_after(1.1):
            assert (await kernel.answer(unique)).errno == errno.EINTR
        assert rig.queue.room.held == 0


@pytest.mark.expects_warnings
async def test_what_a_thread_has_asked_for_that_was_gone_when_it_was_read_stays_held_as_its_process_may_live(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    """A worker of a loop device, say: whoever has mounted that is not to see an error of the disk."""
    monkeypatch.setattr(waiting, "process_of", lambda _pid: 0)
    async with serving(rig) as (kernel, _):
        unique = await held(rig, kernel, *REQUESTS["write"])
        await passed(10)
        assert rig.queue.room.held == 1
        rig.faults.rules.clear()
        await rig.device.reopen()
        assert (await kernel.answer(unique)).errno == 0


async def test_of_who_waits_for_nothing_any_more_nothing_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    asked: list[int] = []

    def process_of(pid: int) -> int:
        asked.append(pid)
        return pid

    monkeypatch.setattr(waiting, "process_of", process_of)
    requests = waiting.WaitingRequests(lambda _task, _op: False, lambda _unique, _number: None)
    async with trio.open_nursery() as nursery:
        first, *others = (requests.add(nursery, number, number % 3, Op.READ) for number in range(6))
        assert asked == [0, 1, 2], "each is asked for once"
        for pending in others:
            requests.remove(pending)
        await passed(0.2)
        assert set(requests._processes) == {0}
        requests.remove(first)
    assert not requests._processes


async def test_an_interrupt_of_what_was_answered_means_nothing(ready: Rig, told: Told) -> None:
    told.threads.add(fuse.PID)
    async with serving(ready) as (kernel, _):
        unique = await kernel.ask(*REQUESTS["read"])
        await kernel.interrupt(unique)
        await kernel.interrupt(9998)
        assert (await kernel.answer(unique)).errno == 0
        assert len(await kernel.settled()) == 3


@pytest.mark.expects_warnings
async def test_when_the_disk_is_unmounted_nobody_is_held_any_longer_and_the_storage_is_waited_for(
    rig: Rig,
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    async with trio.open_nursery() as nursery, serving(rig) as (kernel, _):
        released = rig.hang("write", count=1)
        await kernel.ask(*REQUESTS["write"])
        await held(rig, kernel, *REQUESTS["read"])
        began = trio.current_time()
        nursery.start_soon(set_after, 5, released)
    assert trio.current_time() - began == pytest.approx(5, abs=0.2)
    assert (rig.queue.room.held, rig.device.stats.in_flight, rig.device.open_count) == (0, 0, 0)


@pytest.mark.parametrize(("bound", "value"), [("BURST_REQUESTS", 4), ("BURST_BYTES", 4 * 512)])
async def test_a_busy_disk_leaves_others_their_turn(
    ready: Rig, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(connection_module, bound, value)
    turns, bursts = 0, 32

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with serving(ready) as (kernel, fh), trio.open_nursery() as nursery:
        for number in range(4 * bursts):
            assert kernel.sent(fuse.request(fuse.READ, transfer(fh, 0, 512), unique=1000 + number))
        nursery.start_soon(other)
        await kernel.answer(1000 + 4 * bursts - 1)
        assert turns >= bursts - 4
        nursery.cancel_scope.cancel()


async def test_more_requests_than_the_queue_takes_fail_and_the_others_wait() -> None:
    rig = await rig_of(three_deltas(), bounds=Bounds(requests=40))
    async with serving(rig) as (kernel, _):
        released = rig.hang("read")
        uniques = [await kernel.ask(*REQUESTS["read"]) for _ in range(50)]
        refused = [answer for answer in await kernel.settled() if answer.errno]
        assert [answer.errno for answer in refused] == [errno.EIO] * 10
        released.set()
        assert [(await kernel.answer(unique)).errno for unique in uniques].count(0) == 40


async def test_a_kernel_that_is_too_old_is_refused_with_the_reason(rig: Rig) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    kernel = Kernel(ours)
    unique = await kernel.ask(fuse.INIT, fuse.init(minor=27))
    with pytest.raises(MountError, match=r"^the kernel speaks FUSE 7\.27, at least 7\.28 is needed$"):
        await Connection(theirs.detach(), Front(Disk(rig.device))).run()
    assert (await kernel.answer(unique)).errno == errno.EBUSY
    kernel.hang_up()


async def test_what_is_cancelled_closes_and_gives_back_what_was_open(rig: Rig) -> None:
    async with serving(rig) as (kernel, _), trio.open_nursery():
        rig.hang("read")
        await kernel.ask(*REQUESTS["read"])
        await kernel.settled()
        kernel.scope.cancel()
    assert rig.device.open_count == 0
