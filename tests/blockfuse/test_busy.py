"""Who writes without a pause is served by a thread, on real files. The kernel here has its next request out as soon as
the last one is answered, or as many as it is to have, and a storage hangs when the test says so."""

import errno
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
import trio

from ploopfs.blockfuse import busy as busy_module
from ploopfs.blockfuse import connection as connection_module
from ploopfs.blockfuse import looking as looking_module
from ploopfs.blockfuse.busy import Busy
from ploopfs.blockfuse.connection import Connection
from ploopfs.blockfuse.writes import Rest
from ploopfs.bounds import MIB, POLL_DEEP_US, POLL_US, STAND_IN_US
from ploopfs.device.bounds import Bounds
from ploopfs.device.device import Device
from ploopfs.device.flavour import VZ7
from ploopfs.device.registry import Registry
from ploopfs.device.soon import Written
from ploopfs.device.standby import State
from ploopfs.device.stats import DiskStats, Op
from ploopfs.device.turn import Turn
from ploopfs.device.unflushed import CHANGE_BYTES
from ploopfs.engine import made_write
from ploopfs.engine import stand_in as stand_in_module
from ploopfs.engine.file import Buffer
from ploopfs.engine.inject.grammar import execute
from ploopfs.engine.made_write import Made
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.ring import Ring, hear
from ploopfs.engine.ring_write import Reply
from ploopfs.engine.stand_in import StandIn
from tests.blockfuse import kernel as fuse
from tests.blockfuse.kernel import U32, U64, Kernel, packed, transfer
from tests.blockfuse.test_replies import real
from tests.device.rig import CLUSTER, DISK_BYTES, cluster_of
from tests.engine.test_ring import PATIENCE_S, until
from tests.realparts import need

CONTENT = b"".join(map(cluster_of, (b"o", b"\0", b"t", b"\0", b"\0", b"\0")))
BLOCK = 4096
HOUR_NS = 3600 * 10**9
_LOOKING = connection_module, busy_module, stand_in_module
Request = tuple[int, bytes]
"""Its opcode and its body."""


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """An entry for each write that a thread made, and whether the event loop still waited for it."""
    need(io_uring=True)
    entries: list[bool] = []
    really = StandIn.make

    def make(stand_in: StandIn, unanswered: list[Made] | None = None) -> bool:
        entries.append(really(stand_in, unanswered))
        return entries[-1]

    monkeypatch.setattr(StandIn, "make", make)
    monkeypatch.setattr(busy_module, "STAND_IN_US", PATIENCE_S * 1_000_000)
    return entries


def device_of(kernel: Kernel) -> Device:
    device = kernel.connection._device
    assert isinstance(device, Device)
    return device


def write(offset: int, data: bytes) -> Request:
    return fuse.WRITE, transfer(1, offset, len(data)) + data


def read(offset: int, length: int) -> Request:
    return fuse.READ, transfer(1, offset, length)


def fsync() -> Request:
    return fuse.FSYNC, packed((U64, 1), (U32, 0), (U32, 0))


class Asker:
    """Has so many requests out `at_a_time`, and sends the next one as soon as the connection looks at the clock after
    it has answered; who looks, the event loop or a thread, has it to himself."""

    def __init__(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, at_a_time: int = 1) -> None:
        self._kernel, self._at_a_time = kernel, at_a_time
        self.now_ns = self._seen = 0
        self._requests: Iterator[tuple[int, Request]] = iter(())
        self.waiting: set[int] = set()
        self._patch = monkeypatch.setattr
        for module in _LOOKING:
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic_ns=self._look))

    def _look(self) -> int:
        self.now_ns += 1000
        if not self._kernel.has_hung_up:
            self.go_on()
        return self.now_ns

    def go_on(self) -> None:
        """Send what may be sent."""
        if self._kernel.took_all() > self._seen:
            self.waiting -= {answer.unique for answer in self._kernel.answers[self._seen :]}
            self._seen = len(self._kernel.answers)
        while len(self.waiting) < self._at_a_time and (numbered := next(self._requests, None)) is not None:
            number, (opcode, body) = numbered
            assert self._kernel.sent(fuse.request(opcode, body, unique=number))
            self.waiting.add(number)

    async def ask(self, requests: Sequence[Request]) -> list[fuse.Answer]:
        """One answer to each, in the order in which they were asked."""
        self.begin(requests)
        await self.wait_answered()
        return sorted(self._kernel.answers)

    def begin(self, requests: Iterable[Request]) -> None:
        self._kernel.took_all()
        self._kernel.answers.clear()
        self._seen = 0
        self._requests = ((2 * number, request) for number, request in enumerate(requests, 1))
        self.go_on()

    def stop(self) -> None:
        """No more requests, and nobody looks for answers but who waits for them."""
        self._requests = iter(())
        for module in _LOOKING:
            self._patch(module, "time", time)

    async def wait_answered(self) -> None:
        await self.go_on_until(lambda: not self.waiting)

    async def go_on_until(self, is_true: Callable[[], object]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not is_true():
                await trio.lowlevel.checkpoint()
                self.go_on()


class Ask(Protocol):
    def __call__(self, kernel: Kernel, /, *, at_a_time: int = 1) -> Asker: ...


@pytest.fixture
def asks(monkeypatch: pytest.MonkeyPatch) -> Ask:
    return partial(Asker, monkeypatch=monkeypatch)


def blocks(count: int, at: int = 0) -> list[Request]:
    """Writes to clusters that the top has, each with other data."""
    offsets = [2 * CLUSTER + (at + number * BLOCK) % CLUSTER for number in range(count)]
    return [write(offset, b"%8d" % number * 512) for number, offset in enumerate(offsets)]


async def test_he_is_served_by_a_thread_after_some_writes_and_the_thread_ends_with_his_last(
    tmp_path: Path, asks: Ask, made: list[bool]
) -> None:
    async with real(tmp_path) as kernel:
        answers = await asks(kernel).ask(blocks(100))
        assert [answer.number(width=U32) for answer in answers] == [BLOCK] * 100
        assert made == [True] * len(made)
        assert 100 > len(made) > 60
        expected = b"".join(b"%8d" % number * 512 for number in range(96, 100)) + b"".join(
            b"%8d" % number * 512 for number in range(92, 96)
        )
        assert bytes(await device_of(kernel).read(2 * CLUSTER, CLUSTER)) == expected
        assert device_of(kernel).stats.stat_columns()[4] == 100
        assert device_of(kernel).stats.in_flight == 0
        await kernel.settled()
        assert kernel.connection._busy._stand_in is None
        assert len(device_of(kernel).unflushed) == 100


@pytest.mark.parametrize(("at_a_time", "looked_us"), [(1, POLL_US), (6, POLL_DEEP_US)])
async def test_who_has_several_requests_under_way_is_looked_for_longer(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch, at_a_time: int, looked_us: int
) -> None:
    wrote_ns: list[int] = []
    looked_ns: list[int] = []
    really_serve, really_wrote = Busy._serve_by, Turn.wrote

    def wrote(turn: Turn, *arguments: Any) -> None:  # noqa: ANN401
        wrote_ns.append(asker.now_ns)
        really_wrote(turn, *arguments)

    def serve_by(busy: Busy, stand_in: StandIn) -> bool | None:
        is_quick = really_serve(busy, stand_in)
        if is_quick is False and wrote_ns:
            looked_ns.append(asker.now_ns - wrote_ns[-1])
        return is_quick

    monkeypatch.setattr(Turn, "wrote", wrote)
    monkeypatch.setattr(Busy, "_serve_by", serve_by)
    async with real(tmp_path) as kernel:
        asker = asks(kernel, at_a_time=at_a_time)
        await asker.ask(blocks(100))
        assert made
        await until(lambda: looked_ns)
        assert looked_us * 1000 <= looked_ns[0] < looked_us * 1000 + 20_000


async def test_who_asks_while_the_thread_ends_goes_on_with_it(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [2002, 2004, 2006]
    made_late: list[int] = []
    really = Busy.serve

    async def serve(busy: Busy) -> bool:
        is_quick = await really(busy)
        if not is_quick and late:
            made_late.append(len(made))
            opcode, body = blocks(1)[0]
            assert kernel.sent(fuse.request(opcode, body, unique=late.pop(0)))
        return is_quick

    monkeypatch.setattr(Busy, "serve", serve)
    async with real(tmp_path) as kernel:
        await asks(kernel).ask(blocks(100))
        await until(lambda: 2006 in {answer.unique for answer in kernel.answers})
        assert len(made) == made_late[0] + 3
        assert {answer.errno for answer in kernel.answers} == {0}


async def test_what_all_who_stand_in_have_in_common_is_there_before_anybody_is_busy(tmp_path: Path) -> None:
    """Else who looks for what operations leave behind would find it, whenever a disk happened to be busy first."""
    with pytest.raises(LookupError):
        stand_in_module._PLACE.get()
    async with real(tmp_path):
        place = stand_in_module._PLACE.get()
        assert stand_in_module._place_of_loop() is place


async def test_without_a_ring_nobody_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[bool]
) -> None:
    async with real(tmp_path) as kernel:
        ring = kernel.connection._busy.ring
        assert ring is not None
        monkeypatch.setattr(ring, "can_link", False)
        await Asker(kernel, monkeypatch).ask(blocks(100))
        kernel.connection._busy.ring = None
        await Asker(kernel, monkeypatch).ask(blocks(100))
        assert made == []


@pytest.mark.parametrize("at_a_time", [2, 4, 16, 40])
async def test_of_several_at_a_time_he_makes_all_and_sends_their_answers_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[bool], at_a_time: int
) -> None:
    together: list[int] = []
    really = Busy._answer

    def answer(busy: Busy) -> None:
        together.append(len(busy._unanswered))
        really(busy)

    monkeypatch.setattr(Busy, "_answer", answer)
    async with real(tmp_path) as kernel:
        device = device_of(kernel)
        answers = await Asker(kernel, monkeypatch, at_a_time).ask(blocks(400))
        assert [answer.number(width=U32) for answer in answers] == [BLOCK] * 400
        assert len(made) > 250
        assert max(together) == min(at_a_time, busy_module._TOGETHER)
        assert sum(together) > 200
        assert device.stats.stat_columns()[4] == 400
        assert device.stats.in_flight == 0
        assert len(device.unflushed) == 400
        last = {change.offset: change.data for change in device.unflushed}
        for offset, data in last.items():
            assert bytes(await device.read(offset, BLOCK)) == data, "what was noted last was not written last"


async def test_of_several_at_a_time_he_reads_the_next_one_without_a_look_whether_it_is_there(
    tmp_path: Path, asks: Ask, made: list[bool]
) -> None:
    class Asked:
        def poll(self, timeout_ms: int) -> list[tuple[int, int]]:
            looked_with.append(len(busy._unanswered))
            return really.poll(timeout_ms)

    looked_with: list[int] = []
    async with real(tmp_path) as kernel:
        busy = kernel.connection._busy
        really, busy._asked = busy._asked, Asked()  # type: ignore[assignment]
        answers = await asks(kernel, at_a_time=4).ask(blocks(100))
        assert [answer.errno for answer in answers] == [0] * 100
        assert made
        assert set(looked_with) == {0}


async def test_whose_writes_are_large_is_looked_for_longer_by_the_thread_too(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking_module, "_MIB_NS", 1_000_000 * MIB // BLOCK)
    async with real(tmp_path) as kernel:
        asker = asks(kernel)
        await asker.ask(blocks(100))
        assert made
        asked_ns = asker.now_ns
        await kernel.settled()
        assert 1_000_000 < asker.now_ns - asked_ns < 2_000_000


async def test_who_goes_on_with_nothing_but_reads_is_the_loops_again(
    tmp_path: Path, asks: Ask, made: list[bool]
) -> None:
    async with real(tmp_path) as kernel:
        asker = asks(kernel, at_a_time=4)
        await asker.ask(blocks(100))
        assert made
        assert kernel.connection._busy.is_due
        answers = await asker.ask([read(0, 512)] * (busy_module._ONLY_READS + 8))
        assert {answer.body for answer in answers} == {b"o" * 512}
        assert not kernel.connection._busy.is_due
        assert kernel.connection._busy._reads == 0, "the next read would be one too many"


@pytest.mark.parametrize("ends", [Connection.end, Connection.close])
async def test_a_connection_that_is_to_end_is_served_by_no_thread_any_more(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch, ends: Callable[[Connection], None]
) -> None:
    """Though somebody goes on asking."""
    monkeypatch.setattr(stand_in_module, "LENT_US", PATIENCE_S * 1_000_000)
    async with real(tmp_path) as kernel:
        asker = asks(kernel)
        asker.begin(itertools.cycle(blocks(50)))
        await asker.go_on_until(lambda: made)
        ends(kernel.connection)
        count = len(made)
        await until(lambda: kernel.connection._is_over)
        assert len(made) == count
        asker.stop()


async def test_nothing_is_made_by_a_thread_before_the_ring_has_told_of_what_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[bool]
) -> None:
    """Else a write that came later would be noted before it, and a replay would have the older one last."""
    async with real(tmp_path) as kernel:
        really, is_held = Ring.deliver, True
        monkeypatch.setattr(Ring, "deliver", lambda ring: not is_held and really(ring))
        answers = await Asker(kernel, monkeypatch, at_a_time=4).ask(blocks(100))
        assert [answer.errno for answer in answers] == [0] * 100
        assert made == []
        assert len(kernel.connection._writes) == 100
        is_held = False
        hear()
        await until(lambda: not kernel.connection._writes)
        await Asker(kernel, monkeypatch, at_a_time=4).ask(blocks(100))
        assert made


async def test_a_thread_begins_nothing_for_the_ring_that_somebody_else_would_have_to_hand_over(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody does when the connection ends just then, and a close would wait for ever. What may have to wait for a
    flush no thread makes."""
    gathering: list[int] = []
    really = Ring.gather

    def gather(ring: Ring) -> None:
        gathering.append(threading.get_ident())
        really(ring)

    monkeypatch.setattr(Ring, "gather", gather)
    bounds = Bounds(unflushed_bytes=24 * (BLOCK + CHANGE_BYTES))
    async with real(tmp_path, bounds=bounds) as kernel:
        await asks(kernel).ask(blocks(200))
        assert made
        assert set(gathering) == {threading.get_ident()}


async def test_who_waits_for_another_request_meanwhile_is_not_served_by_a_thread(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with real(tmp_path) as kernel:
        device, released = device_of(kernel), trio.Event()

        async def flush() -> None:
            await released.wait()

        monkeypatch.setattr(device, "flush", flush)
        unique = await kernel.ask(*fsync())
        await kernel.settled()
        assert [answer.errno for answer in await asks(kernel).ask(blocks(100))] == [0] * 100
        assert made == []
        released.set()
        monkeypatch.undo()
        assert (await kernel.answer(unique)).errno == 0


def story(seed: int) -> tuple[list[Request], list[bytes | None], bytes]:
    """Requests of all kinds, what each reads, and what the disk has in the end."""
    random, disk = Random(seed), bytearray(CONTENT)
    requests: list[Request] = []
    bodies: list[bytes | None] = []
    for _each in range(300):
        length = random.choice((512, BLOCK, 3 * BLOCK))
        offset = random.randrange(0, DISK_BYTES - length, 512)
        kind, body = random.choices(("write", "read", "fsync", "getattr"), (20, 4, 1, 1))[0], None
        if kind == "write":
            data = random.randbytes(8) * (length // 8) if random.random() < 0.9 else bytes(length)
            requests.append(write(offset, data))
            disk[offset : offset + length] = data
        elif kind == "read":
            requests.append(read(offset, length))
            body = bytes(disk[offset : offset + length])
        else:
            requests.append(fsync() if kind == "fsync" else (fuse.GETATTR, bytes(16)))
        bodies.append(body)
    return requests, bodies, bytes(disk)


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_he_asks_for_the_answers_are_the_same_and_so_is_the_disk_when_it_is_opened_again(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(busy_module, "_BUSY", 1 + seed % 3)
    requests, bodies, content = story(seed)
    bounds = Bounds(unflushed_bytes=64 << 10) if seed % 2 else Bounds()
    async with real(tmp_path, bounds=bounds) as kernel:
        answers = await asks(kernel).ask(requests)
        for number, (answer, body) in enumerate(zip(answers, bodies, strict=True)):
            is_same = body is None or answer.body == body
            assert (answer.errno, is_same) == (0, True), number
        assert len(made) > 40
        assert device_of(kernel).unflushed.memory_bytes <= bounds.unflushed_bytes
    registry = Registry()
    device = await registry.add("ploop0", flavour=VZ7, image=[str(tmp_path / "ploop0.hds")], files=OsFiles())
    is_same = bytes(await device.read(0, DISK_BYTES)) == content
    assert is_same
    await registry.remove("ploop0")


@pytest.mark.expects_warnings
async def test_a_write_that_fails_is_judged_as_any_and_the_next_one_is_refused(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with real(tmp_path) as kernel:
        asker = asks(kernel)
        await asker.ask(blocks(50))
        assert made
        with monkeypatch.context() as patched:
            patched.setattr(made_write, "_written", lambda *_write: -errno.EBUSY)
            answers = await asker.ask(blocks(30))
        failed = [answer.errno for answer in answers]
        first = failed.index(errno.EBUSY)
        assert failed == [0] * first + [errno.EBUSY] + [errno.EIO] * (29 - first)
        assert device_of(kernel).queue.standby.state is State.ON
        assert device_of(kernel).stats.errors == {(errno.EBUSY, "write"): 1}
        device_of(kernel).unflushed.give_up()  # or nobody may remove it


@pytest.mark.expects_warnings
async def test_no_thread_stays_when_the_last_thing_that_it_did_goes_on_in_a_task(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked then, and the connection sleeps."""
    really, has_failed = made_write._written, False

    def written(fd: int, data: bytes, offset: int) -> int:
        nonlocal has_failed
        has_failed = len(made) > 20
        return -errno.EBUSY if has_failed else really(fd, data, offset)

    monkeypatch.setattr(made_write, "_written", written)
    async with real(tmp_path) as kernel:
        goes_on, released = kernel.connection._end_write, trio.Event()

        async def end_write(rest: Rest, length: int) -> bytes:
            await released.wait()
            return await goes_on(rest, length)

        monkeypatch.setattr(kernel.connection, "_end_write", end_write)
        asker = asks(kernel)
        asker.begin(itertools.takewhile(lambda _request: not has_failed, itertools.cycle(blocks(50))))
        await asker.go_on_until(lambda: kernel.connection._waiting)
        await kernel.settled()
        assert kernel.connection._busy._stand_in is None
        released.set()
        await asker.wait_answered()
        assert kernel.answers[-1].errno == errno.EBUSY
        device_of(kernel).unflushed.give_up()  # or nobody may remove it


async def test_at_the_bound_of_what_is_kept_he_waits_for_a_flush_as_everybody(
    tmp_path: Path, asks: Ask, made: list[bool]
) -> None:
    bounds = Bounds(unflushed_bytes=8 * (BLOCK + CHANGE_BYTES))
    async with real(tmp_path, bounds=bounds) as kernel:
        answers = await asks(kernel).ask(blocks(200))
        assert [answer.errno for answer in answers] == [0] * 200
        assert device_of(kernel).unflushed.memory_bytes < bounds.unflushed_bytes
        assert device_of(kernel).counters.bio_flush_out > 10
        assert made


class Hanging:
    """From a write of a thread on for which it `begins`, each waits for `released`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, begins: Callable[[], bool]) -> None:
        self.released, self._really, self._begins = threading.Event(), made_write._written, begins
        self._has_begun = False
        monkeypatch.setattr(made_write, "_written", self._written)
        monkeypatch.setattr(busy_module, "STAND_IN_US", STAND_IN_US)

    def _written(self, fd: int, data: bytes, offset: int) -> int:
        self._has_begun = self._has_begun or self._begins()
        if self._has_begun:
            assert self.released.wait(PATIENCE_S)
        return self._really(fd, data, offset)


@asynccontextmanager
async def left_behind(
    tmp_path: Path,
    asks: Ask,
    made: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    *,
    at_a_time: int = 1,
    unanswered: int = 0,
) -> AsyncIterator[tuple[Kernel, Asker, Hanging]]:
    """A connection that goes on without the thread that it was served by, which hangs in a write, with so many
    `unanswered` before it."""
    async with real(tmp_path) as kernel:
        asker = asks(kernel, at_a_time=at_a_time)
        await asker.ask(blocks(100))
        assert made
        hanging = Hanging(monkeypatch, lambda: len(kernel.connection._busy._unanswered) >= unanswered)
        asker.begin(itertools.cycle(blocks(50, CLUSTER // 2)))  # not every thread begins in time
        ring = kernel.connection._ring
        assert ring is not None
        await asker.go_on_until(lambda: ring.left_behind)
        asker.stop()
        try:
            yield kernel, asker, hanging
        finally:
            hanging.released.set()
            await until(lambda: not ring.left_behind)
            if not kernel.connection.is_closed:
                kernel.took_all()


async def test_a_storage_that_hangs_keeps_nobody_waiting_but_who_writes_to_it(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with left_behind(tmp_path, asks, made, monkeypatch) as (kernel, asker, hanging):
        assert len(asker.waiting) == 1
        assert device_of(kernel).stats.in_flight == 1
        async with real(tmp_path, "ploop1") as other:
            assert [answer.errno for answer in await asks(other).ask(blocks(10))] == [0] * 10
        unique = await kernel.ask(*read(0, 512))
        assert (await kernel.answer(unique)).body == b"o" * 512
        assert len(asker.waiting) == 1
        hanging.released.set()
        await asker.wait_answered()
        assert {answer.errno for answer in kernel.answers} == {0}
        await until(lambda: not device_of(kernel).stats.in_flight)
        await until(lambda: False in made)


async def test_whose_writes_were_made_before_the_one_that_hangs_have_their_answers(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who asks for more of what can be had has it."""
    hung = left_behind(tmp_path, asks, made, monkeypatch, at_a_time=6, unanswered=3)
    async with hung as (kernel, asker, hanging):
        await kernel.settled()
        assert kernel.connection._busy._unanswered == []
        await asker.go_on_until(lambda: len(asker.waiting) <= 1)
        await until(lambda: device_of(kernel).stats.in_flight <= 1)
        assert (len(asker.waiting), device_of(kernel).stats.in_flight) == (1, 1)
        hanging.released.set()
        await asker.wait_answered()
        assert {answer.errno for answer in kernel.answers} == {0}
        await until(lambda: not device_of(kernel).stats.in_flight)


async def test_what_a_thread_has_made_before_it_hangs_is_kept_and_counted(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = left_behind(tmp_path, asks, made, monkeypatch, at_a_time=6, unanswered=3)
    async with hung as (kernel, asker, _hanging):
        device = device_of(kernel)
        await asker.go_on_until(lambda: len(asker.waiting) <= 1)
        await until(lambda: device.stats.in_flight <= 1)
        acknowledged = 100 + len(kernel.answers)
        assert (len(device.unflushed), device.stats.by_op[Op.WRITE].ios) == (acknowledged, acknowledged)


def unrecorded_by(monkeypatch: pytest.MonkeyPatch) -> list[Turn]:
    """An entry for each write that was made in a turn and is not recorded yet."""
    wrote: list[Turn] = []
    really_wrote, really_passed = Turn.wrote, DiskStats.passed

    def note(turn: Turn, *arguments: Any) -> None:  # noqa: ANN401
        wrote.append(turn)
        really_wrote(turn, *arguments)

    def passed(stats: DiskStats, op: Op, length: int, durations_ns: Sequence[int]) -> None:
        if op is Op.WRITE:
            del wrote[-len(durations_ns) :]
        really_passed(stats, op, length, durations_ns)

    monkeypatch.setattr(Turn, "wrote", note)
    monkeypatch.setattr(DiskStats, "passed", passed)
    return wrote


async def test_what_a_thread_has_made_is_recorded_when_it_ends_and_before_anybody_else_can_look(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote = unrecorded_by(monkeypatch)
    unrecorded: list[int] = []
    really = Busy._serve

    def serve(busy: Busy) -> bool | None:
        try:
            return really(busy)
        finally:
            unrecorded.append(len(wrote))

    monkeypatch.setattr(Busy, "_serve", serve)
    async with real(tmp_path) as kernel:
        await asks(kernel).ask(blocks(60))  # or it would be recorded for being a long turn
        await until(lambda: unrecorded)
        assert made
        assert set(unrecorded) == {0}


async def test_what_a_thread_has_made_before_it_hangs_is_recorded_before_that_is_begun(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote = unrecorded_by(monkeypatch)
    unrecorded: list[int] = []
    really_soon = Device.write_soon

    def write_soon(device: Device, offset: int, data: Buffer, written: Written, reply: Reply, *rest: Any) -> bool:  # noqa: ANN401
        if reply.maker is not None:
            unrecorded.append(len(wrote))
        return really_soon(device, offset, data, written, reply, *rest)

    monkeypatch.setattr(Device, "write_soon", write_soon)
    async with left_behind(tmp_path, asks, made, monkeypatch, at_a_time=6, unanswered=3):
        assert unrecorded == [0]


async def test_what_is_written_to_it_meanwhile_is_the_kernels_to_write(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with left_behind(tmp_path, asks, made, monkeypatch) as (kernel, _asker, _hanging):
        made.clear()
        for number in range(3 * busy_module._BUSY):
            assert (await kernel.call(*write(number * 512, b"k" * 512))).errno == 0
        assert made == []


async def test_an_answer_of_who_was_left_behind_goes_nowhere_when_the_connection_has_ended(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with left_behind(tmp_path, asks, made, monkeypatch) as (kernel, _asker, hanging):
        fd = kernel.connection._fd
        kernel.connection.close()
        assert Path(f"/proc/self/fd/{fd}").readlink() == Path("/dev/null")
        assert device_of(kernel).stats.in_flight == 1
        hanging.released.set()
        await until(lambda: not device_of(kernel).stats.in_flight)
        await until(lambda: not kernel.connection._writes)
        await until(lambda: not Path(f"/proc/self/fd/{fd}").exists())


async def test_what_a_thread_has_yet_to_write_when_it_hangs_is_nobodys_to_change(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes it from where the request was read."""
    async with left_behind(tmp_path, asks, made, monkeypatch) as (kernel, asker, hanging):
        others = cluster_of(b"x")
        assert (await kernel.call(*write(0, others))).errno == 0
        await until(lambda: device_of(kernel).stats.in_flight == 1)
        hanging.released.set()
        await asker.wait_answered()
        await until(lambda: not device_of(kernel).stats.in_flight)
        (*_before, last) = device_of(kernel).unflushed
        assert last.data != others
        assert bytes(await device_of(kernel).read(last.offset, last.length)) == last.data


async def test_the_time_that_a_thread_takes_for_a_write_is_counted(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with real(tmp_path) as kernel:
        asker = asks(kernel)
        await asker.ask(blocks(50))
        writes = device_of(kernel).stats.by_op[Op.WRITE]
        assert writes.duration_ns < 50 * HOUR_NS
        monkeypatch.setattr(made_write, "time", SimpleNamespace(monotonic_ns=lambda: time.monotonic_ns() - HOUR_NS))
        made.clear()
        await asker.ask(blocks(30))
        assert made
        assert len(made) * HOUR_NS <= writes.duration_ns < (len(made) + 1) * HOUR_NS


@pytest.mark.expects_warnings
async def test_a_bug_that_a_thread_meets_before_it_writes_costs_an_eio(
    tmp_path: Path, asks: Ask, made: list[bool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_arguments: object) -> None:
        raise ZeroDivisionError

    async with real(tmp_path) as kernel:
        asker = asks(kernel)
        await asker.ask(blocks(50))
        made.clear()
        with monkeypatch.context() as patched:
            patched.setattr(device_of(kernel).stack, "aims", bug)
            answers = await asker.ask(blocks(3))
        assert [answer.errno for answer in answers] == [errno.EIO] * 3
        assert "ZeroDivisionError" in caplog.text
        assert made == []
        assert [answer.errno for answer in await asker.ask(blocks(50))] == [0] * 50
        assert made
        assert device_of(kernel).stats.in_flight == 0


async def test_a_rule_of_injection_meets_what_a_thread_would_write(tmp_path: Path, asks: Ask, made: list[bool]) -> None:
    async with real(tmp_path) as kernel:
        asker = asks(kernel)
        await asker.ask(blocks(50))
        made.clear()
        execute(device_of(kernel).injector, "add,op=WRITE,errno=ENOSPC")
        assert [answer.errno for answer in await asker.ask(blocks(3))] == [errno.ENOSPC] * 3
        assert made == []
        execute(device_of(kernel).injector, "removeall")
