"""Writes of a connection that no task waits for, and who asks for one thing after the other."""

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.blockfuse import connection as connection_module
from ploopfs.blockfuse import looking as looking_module
from ploopfs.blockfuse import replies, waiting
from ploopfs.blockfuse.buffers import Buffers
from ploopfs.bounds import MAX_TRANSFER_BYTES, POLL_TURN_US, POLL_US
from ploopfs.device.waiting import OnStandby
from tests.blockfuse import kernel as fuse
from tests.blockfuse.kernel import U32, U64, Kernel, connected, packed, read_into, transfer
from tests.device.ready import ReadyFiles
from tests.device.rig import CLUSTER, CONTENT, TOP, Rig, image, rig_of, three_deltas

OF_TOP = 2 * CLUSTER
DATA = b"w" * 512


@pytest.fixture
async def rig() -> Rig:
    """Its storage has everything at hand, and takes writes without a task."""
    return await rig_of(three_deltas(), storage=ReadyFiles)


@asynccontextmanager
async def serving(rig: Rig) -> AsyncIterator[Kernel]:
    """A file of the disk is open as 1."""
    async with connected(rig.device) as kernel:
        assert await kernel.open() == 1
        yield kernel


def write(data: bytes = DATA) -> bytes:
    return transfer(1, OF_TOP, len(data)) + data


async def hung(rig: Rig, kernel: Kernel) -> tuple[int, trio.Event]:
    """A write that the storage does not answer before the event is set, and for which there is no task."""
    released = rig.hang("write", count=1)
    unique = await kernel.ask(fuse.WRITE, write())
    await kernel.settled()
    assert list(kernel.connection._writes) == [unique]
    assert not kernel.connection._waiting
    return unique, released


async def test_a_write_is_answered_when_it_has_ended_and_not_before(rig: Rig) -> None:
    async with serving(rig) as kernel:
        unique, released = await hung(rig, kernel)
        assert unique not in [answer.unique for answer in kernel.answers]
        released.set()
        assert (await kernel.answer(unique)).number(width=U32) == len(DATA)
        assert (await kernel.call(fuse.READ, transfer(1, OF_TOP, 513))).body == DATA + b"t"


@pytest.mark.expects_warnings
async def test_one_that_fails_is_answered_with_the_errno_of_its_device(rig: Rig) -> None:
    async with serving(rig) as kernel:
        rig.lose(errno.EBUSY, "write")
        assert (await kernel.call(fuse.WRITE, write())).errno == errno.EBUSY
        assert not kernel.connection._writes


@pytest.mark.parametrize("ends_by", ["unmounting", "the end of the daemon", "the end of the file"])
async def test_the_end_of_the_connection_waits_for_it_with_the_file_open(rig: Rig, ends_by: str) -> None:
    async with trio.open_nursery() as nursery:
        ended, go_on = trio.Event(), trio.Event()
        released: list[trio.Event] = []

        async def serve() -> None:
            async with serving(rig) as kernel:
                unique, event = await hung(rig, kernel)
                released.append(event)
                if ends_by == "the end of the file":
                    await kernel.call(fuse.RELEASE, packed((U64, 1), (U64, 0), (U64, 0)))
                go_on.set()
                if ends_by == "the end of the daemon":
                    kernel.connection.end()
                    assert (await kernel.answer(unique)).errno == 0
            ended.set()

        nursery.start_soon(serve)
        await go_on.wait()
        with trio.move_on_after(0.3):  # longer than who is held is looked at
            await ended.wait()
        assert not ended.is_set()
        assert rig.device.open_count == (ends_by != "the end of the file")
        assert rig.device.stats.in_flight == 1
        released[0].set()
    assert (rig.device.open_count, rig.device.stats.in_flight) == (0, 0)
    assert bytes(await rig.device.read(OF_TOP, 512)) == DATA


@pytest.mark.expects_warnings
async def test_one_that_fails_when_the_disk_is_unmounted_is_not_held(
    rig: Rig,
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    rig.queue.set_on_standby(OnStandby.HOLD)
    async with trio.open_nursery() as nursery:
        async with serving(rig) as kernel:
            _unique, released = await hung(rig, kernel)
            rig.faults.rules[0].errno = errno.EBUSY

            async def release() -> None:
                await trio.testing.wait_all_tasks_blocked(0.01)
                released.set()

            nursery.start_soon(release)
        assert (rig.queue.room.held, rig.device.stats.in_flight, rig.device.open_count) == (0, 0, 0)
    assert rig.queue.standby.refuses


async def test_one_that_ends_badly_after_its_connection_was_cancelled_is_nobodys(rig: Rig) -> None:
    async with serving(rig) as kernel:
        _unique, released = await hung(rig, kernel)
        rig.faults.rules[0].errno = errno.ENOTCONN
        kernel.scope.cancel()
        await wait_all_tasks_blocked()
        assert rig.device.open_count == 0
        released.set()
        await wait_all_tasks_blocked()
        assert not kernel.connection._writes


@pytest.mark.expects_warnings
async def test_who_was_told_to_end_before_his_write_failed_is_not_held(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    monkeypatch.setattr(waiting, "is_told_to_end", lambda thread: thread == fuse.PID)
    rig.queue.set_on_standby(OnStandby.HOLD)
    async with serving(rig) as kernel:
        unique, released = await hung(rig, kernel)
        await kernel.interrupt(unique)
        await kernel.settled()
        rig.faults.rules[0].errno = errno.EBUSY
        released.set()
        with trio.fail_after(0.5):
            assert (await kernel.answer(unique)).errno == errno.EIO, "the storage has had it"
        assert rig.queue.room.held == 0


@pytest.mark.expects_warnings
async def test_a_bug_when_it_begins_or_ends_costs_one_eio(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_arguments: object) -> bool:
        raise RuntimeError("a bug")

    async with serving(rig) as kernel:
        for owner, name in ((rig.device, "write_soon"), (rig.device.unflushed, "wrote_together"), (replies, "written")):
            caplog.clear()
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, bug)
                assert (await kernel.call(fuse.WRITE, write())).errno == errno.EIO
            assert "a bug" in caplog.text
            assert (await kernel.call(fuse.WRITE, write())).errno == 0
            assert not kernel.connection._writes
            assert rig.device.stats.in_flight == 0


# --- where the data of a large one are ----------------------------------------------------------------------------


LARGE = b"l" * MAX_TRANSFER_BYTES


async def large_rig() -> Rig:
    clusters = MAX_TRANSFER_BYTES // CLUSTER
    builder = image(dict.fromkeys(range(clusters), b"o"))
    builder.disk_clusters = clusters
    return await rig_of({TOP: builder.build()}, storage=ReadyFiles)


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> Buffers:
    buffers = Buffers()
    read_into(buffers, monkeypatch)
    return buffers


async def test_a_buffer_is_not_used_again_whether_the_write_that_it_holds_has_ended_or_was_given_up(
    buffers: Buffers,
) -> None:
    """The storage may yet read it, and so may a replay."""
    rig = await large_rig()
    seen: list[memoryview] = []
    async with serving(rig) as kernel:
        for number in range(4):
            seen.append(buffers.current)
            content = bytes([number]) * MAX_TRANSFER_BYTES
            assert (await kernel.call(fuse.WRITE, transfer(1, 0, len(content)) + content)).errno == 0
        rig.hang("write")
        seen.append(buffers.current)
        await kernel.ask(fuse.WRITE, transfer(1, 0, len(LARGE)) + LARGE)
        await kernel.settled()
        kernel.scope.cancel()
        await wait_all_tasks_blocked()
        seen.append(buffers.current)
    assert len({id(each.obj) for each in seen}) == len(seen)
    for number, each in enumerate(seen[:4]):
        is_same = bytes(each[-10:]) == bytes([number]) * 10 or bytes([number]) * 10 in bytes(each)
        assert is_same, number


async def test_a_small_one_is_copied_so_that_what_is_kept_holds_no_whole_buffer(rig: Rig, buffers: Buffers) -> None:
    async with serving(rig) as kernel:
        before = buffers.current
        assert (await kernel.call(fuse.WRITE, write())).errno == 0
        assert buffers.current is before
    [kept] = rig.device.unflushed
    assert type(kept.data) is bytes


# --- who asks for one thing after the other -----------------------------------------------------------------------

TICK_NS = 10_000


class Asker:
    """Has his next request out as soon as the connection looks at the clock after it has answered the last one."""

    def __init__(self, kernel: Kernel, count: int) -> None:
        self.now_ns = 0
        self._kernel, self._numbers = kernel, iter(range(count))
        self._seen = -1

    def look(self) -> int:
        self.now_ns += TICK_NS
        if not self._kernel.has_hung_up and (answers := self._kernel.took_all()) > self._seen:
            self._seen = answers
            number = next(self._numbers, None)
            if number is not None:
                read = fuse.request(fuse.READ, transfer(1, 512 * number, 512), unique=2000 + number)
                assert self._kernel.sent(read)
        return self.now_ns

    async def turns_of_others(self, last: int) -> int:
        """How often they had one until this many were answered."""
        turns = 0
        while all(answer.unique != 2000 + last - 1 for answer in self._kernel.answers):
            await trio.lowlevel.checkpoint()
            self._kernel.took_all()
            turns += 1
        return turns


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernel, int], Asker]:
    def asking(kernel: Kernel, count: int) -> Asker:
        asker = Asker(kernel, count)
        monkeypatch.setattr(connection_module, "time", SimpleNamespace(monotonic_ns=asker.look))
        return asker

    return asking


Asking = Callable[[Kernel, int], Asker]
REQUESTS = 200


@pytest.mark.parametrize("poll_us", [0, 100])
async def test_who_asks_for_one_thing_after_the_other_gets_the_same_answers(
    rig: Rig, asking: Asking, monkeypatch: pytest.MonkeyPatch, poll_us: int
) -> None:
    monkeypatch.setattr(looking_module, "_POLL_NS", poll_us * 1000)
    async with serving(rig) as kernel:
        asker = asking(kernel, REQUESTS)
        await kernel.ask(fuse.GETATTR, bytes(16))
        await asker.turns_of_others(REQUESTS)
        bodies = [answer.body for answer in kernel.answers if 2000 <= answer.unique < 2000 + REQUESTS]
        is_same = bodies == [CONTENT[512 * number : 512 * number + 512] for number in range(REQUESTS)]
        assert is_same


async def test_he_is_served_without_the_event_loop_in_between_and_others_have_their_turn_now_and_then(
    rig: Rig, asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_TURN_NS", 20 * TICK_NS)
    async with serving(rig) as kernel:
        asker = asking(kernel, REQUESTS)
        await kernel.ask(fuse.GETATTR, bytes(16))
        turns = await asker.turns_of_others(REQUESTS)
    assert REQUESTS // 25 <= turns <= REQUESTS // 4


async def test_who_waits_in_a_task_has_his_turn_as_if_nobody_were_quick(rig: Rig, asking: Asking) -> None:
    async with serving(rig) as kernel:
        released = rig.hang("read")
        await kernel.ask(fuse.READ, transfer(1, OF_TOP, 512))
        await kernel.settled()
        asker = asking(kernel, 2 * CLUSTER // 512)
        await kernel.ask(fuse.GETATTR, bytes(16))
        assert await asker.turns_of_others(2 * CLUSTER // 512) >= CLUSTER // 512
        released.set()


async def test_who_takes_longer_is_not_polled_for(rig: Rig, asking: Asking) -> None:
    """Until the next one who is quick."""
    async with serving(rig) as kernel:
        asker = asking(kernel, 1)
        await kernel.ask(fuse.GETATTR, bytes(16))
        await kernel.settled()
        looked_ns = asker.now_ns
        await wait_all_tasks_blocked()
        assert asker.now_ns == looked_ns
        asker.now_ns += 10**9
        await kernel.ask(fuse.GETATTR, bytes(16))
        await kernel.settled()
        assert asker.now_ns - looked_ns - 10**9 <= 4 * TICK_NS


@pytest.mark.parametrize(("waited_us", "is_polled_for"), [(POLL_TURN_US, True), (3 * POLL_TURN_US, False)])
async def test_whose_write_is_under_way_has_made_no_pause_if_he_asks_again_soon(
    rig: Rig, asking: Asking, waited_us: int, is_polled_for: bool
) -> None:
    async with serving(rig) as kernel:
        asker = asking(kernel, 0)
        _unique, released = await hung(rig, kernel)
        asker.now_ns += 10**9
        await kernel.ask(fuse.GETATTR, bytes(16))
        await kernel.settled()
        asker.now_ns += waited_us * 1000
        before_ns = asker.now_ns
        await kernel.ask(fuse.GETATTR, bytes(16))
        await kernel.settled()
        assert (asker.now_ns - before_ns > POLL_US * 1000) == is_polled_for
        released.set()


@pytest.mark.parametrize("length", [512, 8192])
async def test_who_has_much_moved_is_looked_for_longer(
    rig: Rig, asking: Asking, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(looking_module, "_MIB_NS", 10 * TICK_NS * 1024)
    wanted_ns = POLL_US * 1000 + length * 10 * TICK_NS // 1024
    async with serving(rig) as kernel:
        asker = asking(kernel, 0)
        await kernel.ask(fuse.READ, transfer(1, 0, length))
        await kernel.settled()
        assert wanted_ns < asker.now_ns < wanted_ns + 10 * TICK_NS
