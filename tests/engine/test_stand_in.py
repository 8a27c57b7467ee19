"""A thread in the event loop's place: real threads, a real ring and file; a storage hangs when the test says so."""

import errno
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked as until_asleep

from ploopfs.bounds import LEFT_BEHIND, POLL_TURN_US
from ploopfs.engine import made_write
from ploopfs.engine import stand_in as stand_in_module
from ploopfs.engine.left_to_loop import leave_to_loop
from ploopfs.engine.made_write import Made
from ploopfs.engine.ring import Ring, hear, ring_of_loop
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.engine.stand_in import StandIn
from tests.engine.test_ring import PATIENCE_S, fd, path, ring, until
from tests.realparts import need

__all__ = ["fd", "path", "ring"]
SOON_S = 0.001


@pytest.fixture(autouse=True)
def _needs() -> None:
    need(io_uring=True)


@pytest.fixture
async def stand_in(ring: Ring) -> StandIn:
    return StandIn(ring)


def content_of(fd: int) -> bytes:
    """Zeroes are what nobody has written."""
    return os.pread(fd, 1 << 16, 0).rstrip(b"\0")


class Storage:
    """After so many writes that pass, one hangs until it is `released`, and then it is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, passes: int = 0) -> None:
        self.hangs, self.released = threading.Event(), threading.Semaphore(0)
        self._really, self._passes = made_write._written, passes
        monkeypatch.setattr(made_write, "_written", self._written)

    def _written(self, fd: int, data: bytes, offset: int) -> int:
        if self._passes:
            self._passes -= 1
        else:
            self.hangs.set()
            assert self.released.acquire(timeout=PATIENCE_S)
        return self._really(fd, data, offset)

    async def lend(self, stand_in: StandIn, work: Callable[[], bool | None]) -> bool | None:
        """The loop's patience is over when the storage hangs, and not before."""
        stand_in._answered = Patience(stand_in._answered, self.hangs)  # type: ignore[assignment]
        self.hangs.clear()
        with trio.fail_after(PATIENCE_S):
            return await stand_in.lend(work, PATIENCE_S)


class Patience:
    """A lock that is not waited for any longer when something has happened."""

    def __init__(self, lock: threading.Lock, happened: threading.Event) -> None:
        self._lock, self._happened = lock, happened
        self.release = lock.release

    def acquire(self, *, blocking: bool = True, timeout: float = -1) -> bool:
        if not blocking:
            return self._lock.acquire(blocking=False)
        assert timeout == PATIENCE_S
        while not self._lock.acquire(timeout=SOON_S):
            if self._happened.is_set():
                return False
        return True


class Story:
    """One write with its reply, as `StandIn.lend` takes it; what was `told` of it, and by whom."""

    def __init__(self, stand_in: StandIn, fd: int, pieces: Pieces = ((0, b"first"), (5, b"second"))) -> None:
        self.told: list[tuple[object, ...]] = []
        self.by_of: dict[object, int] = {}
        self._stand_in, self._fd = stand_in, fd
        self._start, end = os.pipe()
        os.set_blocking(self._start, False)
        self.where = fd, pieces, end
        self.made = Made(*self.where, b"done", lambda _made: self._tell("noted", self.replied()), self._enter)
        self.reply = Reply(end, b"done", lambda result: self._tell("sent", result), self.made)
        self.loop = threading.get_ident()

    def _tell(self, *what: object) -> None:
        self.told.append(what)
        self.by_of[what[0]] = threading.get_ident()

    @property
    def by(self) -> set[int]:
        return set(self.by_of.values())

    def _enter(self, made: Made, hangs: bool) -> None:
        self._tell("hangs" if hangs else "failed", self.replied())
        made.begin(self._fd, made.pieces, lambda *results: self._tell("ended", *results), self.reply)

    def __call__(self, unanswered: list[Made] | None = None) -> bool:
        """In the thread."""
        self._stand_in.begin(self.made)
        assert self._stand_in.has_begun
        return self._stand_in.make(unanswered)

    def replied(self) -> bytes:
        try:
            return os.read(self._start, 100)
        except BlockingIOError:
            return b""

    def wait_replied(self) -> None:
        """It blocks."""
        os.set_blocking(self._start, True)
        assert self.replied() == b"done"

    def close(self) -> None:
        os.close(self._start)
        os.close(self.reply.fd)


WHOLE = [("ended", 2, 6), ("sent", 4)]


@pytest.fixture
def story(stand_in: StandIn, fd: int) -> Iterator[Story]:
    story = Story(stand_in, fd)
    yield story
    story.close()


async def test_it_works_in_the_loops_place_and_the_result_is_the_works(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop wakes for it."""
    threads, results = [], iter((True, False, True))
    monkeypatch.setattr(stand_in_module, "LENT_US", 2 * PATIENCE_S * 1_000_000)

    def work() -> bool:
        threads.append(threading.get_ident())
        return next(results)

    with trio.fail_after(PATIENCE_S):
        assert [await stand_in.lend(work, PATIENCE_S) for _each in range(3)] == [True, False, True]
        await trio.lowlevel.checkpoint()
    stand_in.end()
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


class Turns:
    """The work of one who stands in: what `until_ns` was in each turn, and its name in the `order` of all. It goes on
    until the `last` one."""

    def __init__(self, stand_in: StandIn, name: str = "", order: list[str] | None = None, last: int = 3) -> None:
        self._stand_in, self._name, self._last = stand_in, name, last
        self._order = [] if order is None else order
        self.until_ns: list[float] = []

    def __call__(self) -> bool | None:
        self.until_ns.append(self._stand_in.until_ns)
        self._order.append(self._name)
        return True if len(self.until_ns) >= self._last else None

    async def lend(self) -> None:
        with trio.fail_after(PATIENCE_S):
            assert await self._stand_in.lend(self, PATIENCE_S)
        self._stand_in.end()


async def test_while_the_loop_sleeps_it_works_without_an_end_and_when_the_loop_wakes_for_no_longer_than_a_turn(
    stand_in: StandIn,
) -> None:
    token, woken, until_ns = trio.lowlevel.current_trio_token(), trio.Event(), []
    began_ns = time.monotonic_ns()

    def work() -> bool | None:
        until_ns.append(stand_in.until_ns)
        if len(until_ns) > 1:
            return True
        token.run_sync_soon(woken.set)  # somebody has something for the loop
        while stand_in.until_ns == math.inf:
            assert time.monotonic_ns() < began_ns + PATIENCE_S * 10**9
        until_ns.append(stand_in.until_ns)
        return None

    assert await stand_in.lend(work, PATIENCE_S)
    assert woken.is_set()
    assert until_ns[0] == math.inf
    assert until_ns[1] - began_ns >= POLL_TURN_US * 1000
    assert until_ns[1] <= time.monotonic_ns() + POLL_TURN_US * 1000
    stand_in.end()


async def test_of_a_loop_that_always_has_something_to_do_it_has_every_other_turn(stand_in: StandIn) -> None:
    turns, steps = Turns(stand_in), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.lend)
        while len(turns.until_ns) < 3:
            steps.append(len(turns.until_ns))
            await trio.lowlevel.checkpoint()
    assert math.inf not in turns.until_ns
    assert sorted(set(steps)) == [0, 1, 2], "the loop had none in between"
    assert len(steps) < 10


async def test_several_have_turns_one_after_the_other_though_the_loop_sleeps(ring: Ring) -> None:
    order: list[str] = []
    one, other = (Turns(StandIn(ring), name, order, last) for name, last in (("one", 4), ("other", 8)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.lend)
        nursery.start_soon(other.lend)
    assert order[:8] in (["one", "other"] * 4, ["other", "one"] * 4)
    assert math.inf not in one.until_ns
    assert other.until_ns[-1] == math.inf, "it has the place to itself in the end"


async def test_it_is_lent_for_a_while_and_whoever_is_recalled_has_no_more_turns(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = Turns(stand_in, last=1_000_000)
    monkeypatch.setattr(stand_in_module, "LENT_US", PATIENCE_S * 1_000_000)

    async def recall() -> None:
        await until(lambda: len(turns.until_ns) > 3)
        stand_in.recall()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(recall)
        with trio.fail_after(PATIENCE_S / 2):
            assert await stand_in.lend(turns, PATIENCE_S) is None
    count = len(turns.until_ns)
    await until_asleep()
    assert len(turns.until_ns) == count
    monkeypatch.setattr(stand_in_module, "LENT_US", 1)
    assert await stand_in.lend(turns, PATIENCE_S) is None
    stand_in.end()


async def test_what_is_left_to_the_loop_does_not_wait_for_the_end_of_the_work(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    turns = Turns(stand_in, last=1_000_000)
    monkeypatch.setattr(stand_in_module, "LENT_US", PATIENCE_S * 1_000_000)

    def work() -> bool | None:
        leave_to_loop(lambda: done.append(threading.get_ident()))
        return turns()

    with trio.fail_after(PATIENCE_S / 2):
        assert await stand_in.lend(work, PATIENCE_S) is None
    assert (done, len(turns.until_ns)) == ([threading.get_ident()], 1)
    stand_in.end()


async def test_whoever_is_cancelled_has_no_more_turns(stand_in: StandIn) -> None:
    turns = Turns(stand_in, last=1_000_000)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stand_in.lend, turns, PATIENCE_S)
            await until(lambda: turns.until_ns)
            scope.cancel()
    assert scope.cancelled_caught
    count = len(turns.until_ns)
    await until_asleep()
    assert len(turns.until_ns) == count
    stand_in.end()


async def test_its_turn_counts_from_when_the_thread_begins_which_may_be_late(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def monotonic_ns() -> int:
        threads.append(threading.get_ident())
        return time.monotonic_ns()

    monkeypatch.setattr(stand_in_module, "time", SimpleNamespace(monotonic_ns=monotonic_ns))
    assert await stand_in.lend(Turns(stand_in), PATIENCE_S)
    assert threads
    assert threading.get_ident() not in threads
    stand_in.end()


async def test_a_loop_that_lends_its_place_to_nobody_is_not_watched(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching: list[object] = []
    for name, note in (("add", watching.append), ("remove", watching.remove)):
        really = getattr(trio.lowlevel, f"{name}_instrument")
        monkeypatch.setattr(
            trio.lowlevel, f"{name}_instrument", lambda place, note=note, really=really: (note(place), really(place))
        )
    seen: list[int] = []

    def work() -> bool:
        seen.append(len(watching))
        return True

    stand_ins = [StandIn(ring), StandIn(ring)]
    async with trio.open_nursery() as nursery:
        for stand_in in stand_ins:
            nursery.start_soon(stand_in.lend, work, PATIENCE_S)
    for stand_in in stand_ins:
        stand_in.end()
    assert (seen, watching) == ([1, 1], [])


async def test_what_only_the_loop_can_do_is_done_by_it_when_the_turn_has_ended_and_in_order(stand_in: StandIn) -> None:
    done: list[object] = []
    event = trio.Event()

    async def wait(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await event.wait()
        done.append("woken")

    def work() -> bool:
        leave_to_loop(event.set)
        leave_to_loop(lambda: done.append(threading.get_ident()))
        done.append(stand_in.has_left)
        return True

    async with trio.open_nursery() as nursery:
        await nursery.start(wait)
        assert await stand_in.lend(work, PATIENCE_S)
        assert done == [True, threading.get_ident()]
        assert not stand_in.has_left
        leave_to_loop(lambda: done.append("here it is done now"))
        assert done[2:] == ["here it is done now"]
    assert done[3:] == ["woken"]
    stand_in.end()


async def test_a_write_is_made_and_answered_and_then_noted_before_the_turn_ends(
    story: Story, stand_in: StandIn, fd: int
) -> None:
    assert await stand_in.lend(story, PATIENCE_S)
    assert (story.told, content_of(fd)) == ([("noted", b"done")], b"firstsecond"), "it was answered before"
    assert story.loop not in story.by
    assert not stand_in.has_begun
    stand_in.end()


async def test_one_whose_answer_is_to_be_sent_with_others_is_noted_and_not_answered(
    story: Story, stand_in: StandIn, fd: int
) -> None:
    unanswered: list[Made] = []
    assert await stand_in.lend(partial(story, unanswered), PATIENCE_S)
    assert (story.told, story.replied(), content_of(fd)) == ([("noted", b"")], b"", b"firstsecond")
    assert unanswered == [story.made]
    assert story.made.answer == b"done"
    stand_in.end()


async def test_one_that_fails_has_no_answer_with_others(
    story: Story, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    unanswered: list[Made] = []
    monkeypatch.setattr(made_write, "_written", lambda *_write: -errno.EBUSY)
    assert await stand_in.lend(partial(story, unanswered), PATIENCE_S)
    assert story.told == [("failed", b""), ("ended", 0, -errno.EBUSY), ("sent", -errno.ECANCELED)]
    assert (unanswered, story.replied()) == ([], b"")
    stand_in.end()


async def test_one_that_hangs_is_answered_by_itself_whatever_it_was_to_be_sent_with(
    ring: Ring, stand_in: StandIn, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    unanswered: list[Made] = []
    storage = Storage(monkeypatch, passes=1)
    assert not await storage.lend(stand_in, partial(story, unanswered))
    storage.released.release()
    await until(lambda: story.told == [("hangs", b""), *WHOLE])
    assert (unanswered, story.replied(), ring.left_behind) == ([], b"done", [])


@pytest.mark.parametrize(
    ("failing", "told", "content"),
    [(0, (0, -errno.EBUSY), b""), (1, (1, -errno.EBUSY), b"first")],
    ids=["the first piece", "the second piece"],
)
async def test_after_a_piece_that_fails_nothing_more_is_done_nor_answered_and_the_loop_tells_of_it(
    story: Story,
    stand_in: StandIn,
    fd: int,
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
    told: tuple[int, int],
    content: bytes,
) -> None:
    really, calls = made_write._written, iter(range(2))
    monkeypatch.setattr(
        made_write, "_written", lambda *write: -errno.EBUSY if next(calls) == failing else really(*write)
    )
    assert await stand_in.lend(story, PATIENCE_S)
    assert story.told == [("failed", b""), ("ended", *told), ("sent", -errno.ECANCELED)]
    assert (story.replied(), content_of(fd)) == (b"", content)
    assert story.by_of["ended"] == story.by_of["sent"] == story.loop
    stand_in.end()


async def test_a_short_write_is_no_success(stand_in: StandIn, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_write, "_written", lambda _fd, data, _offset: len(data) - 1)
    assert await stand_in.lend(story, PATIENCE_S)
    assert story.told == [("failed", b""), ("ended", 0, 4), ("sent", -errno.ECANCELED)]
    stand_in.end()


async def test_an_answer_that_nobody_takes_is_told_as_such(stand_in: StandIn, story: Story, fd: int) -> None:
    nobody = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nobody, story._start)
    os.close(nobody)
    assert await stand_in.lend(story, PATIENCE_S)
    assert (story.told[1:], content_of(fd)) == ([("ended", 2, 6), ("sent", -errno.EPIPE)], b"firstsecond")
    assert story.by_of["ended"] == story.by_of["sent"] == story.loop
    stand_in.end()


async def test_the_loop_goes_on_without_who_hangs_and_hears_of_the_write_when_it_has_ended(
    ring: Ring, stand_in: StandIn, story: Story, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(monkeypatch, passes=1)
    assert not await storage.lend(stand_in, story)
    assert stand_in.is_left_behind
    [made] = ring.left_behind
    assert made.write is not None
    assert (story.told, made.write.is_under_way(), story.replied()) == ([("hangs", b"")], True, b"")
    stand_in.end()  # is nothing any more
    storage.released.release()
    await until(lambda: story.told == [("hangs", b""), *WHOLE])
    assert (ring.left_behind, story.by) == ([], {story.loop})
    assert (content_of(fd), story.replied()) == (b"firstsecond", b"done")


@pytest.mark.expects_warnings
async def test_a_bug_in_what_is_noted_or_begins_is_logged_and_there_is_nothing_to_tell_of(
    ring: Ring, stand_in: StandIn, story: Story, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_arguments: object) -> None:
        raise ZeroDivisionError

    story.made._notes = bug
    assert await stand_in.lend(story, PATIENCE_S)
    assert (story.told, story.replied(), stand_in.has_begun) == ([], b"done", False)
    assert "ZeroDivisionError" in caplog.text
    storage = Storage(monkeypatch)
    caplog.clear()
    story.made = Made(*story.where, b"done", bug, bug)
    assert not await storage.lend(stand_in, story)
    for _piece in range(2):
        storage.released.release()
    await until(lambda: not ring.left_behind)
    assert story.told == []
    assert "ZeroDivisionError" in caplog.text


async def test_of_what_is_acknowledged_by_who_was_left_behind_hears_who_looks(
    ring: Ring, stand_in: StandIn, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(monkeypatch)
    assert not await storage.lend(stand_in, story)
    for _piece in range(2):
        storage.released.release()
    story.wait_replied()  # no turn of the event loop: nobody here is told by himself
    assert story.told == [("hangs", b"")]
    hear()
    assert story.told[1] == WHOLE[0]
    await until(lambda: story.told[1:] == WHOLE)
    assert not ring.left_behind


async def test_who_was_left_behind_before_it_began_never_begins(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[Callable[[], None]] = []
    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", lambda serve, *_others: threads.append(serve))
    stand_in, worked = StandIn(ring), []
    assert not await stand_in.lend(lambda: bool(worked.append("worked")), SOON_S)  # type: ignore[func-returns-value]
    assert stand_in.is_left_behind
    assert ring.left_behind == []
    threads[0]()
    assert worked == []


@pytest.mark.expects_warnings
async def test_a_bug_in_the_work_is_logged_and_ends_the_turn(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    def bug() -> bool:
        raise ZeroDivisionError

    assert not await stand_in.lend(bug, PATIENCE_S)
    assert "ZeroDivisionError" in caplog.text
    assert await stand_in.lend(lambda: True, PATIENCE_S)
    stand_in.end()


@pytest.mark.expects_warnings
async def test_a_bug_in_what_is_left_to_the_loop_is_logged_and_the_rest_is_done(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[bool] = []

    def bug() -> None:
        raise ZeroDivisionError

    def work() -> bool:
        leave_to_loop(bug)
        leave_to_loop(lambda: done.append(True))
        return True

    assert await stand_in.lend(work, PATIENCE_S)
    assert "ZeroDivisionError" in caplog.text
    assert done == [True]
    stand_in.end()


async def test_while_so_many_hang_nobody_stands_in_any_more(
    ring: Ring, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, stories = Storage(monkeypatch), []
    for _each in range(LEFT_BEHIND):
        assert StandIn.may_begin(ring)
        stand_in = StandIn(ring)
        stories.append(Story(stand_in, fd, ((0, b"x"),)))
        assert not await storage.lend(stand_in, stories[-1])
    assert not StandIn.may_begin(ring)
    storage.released.release()
    await until(lambda: StandIn.may_begin(ring))
    for _each in range(LEFT_BEHIND - 1):
        storage.released.release()
    await until(lambda: not ring.left_behind)
    assert all(story.told == [("hangs", b""), ("ended", 1, 1), ("sent", 4)] for story in stories)
    for story in stories:
        story.close()


def test_the_end_of_the_loop_waits_for_nobody_who_was_left_behind(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(monkeypatch, passes=1)
    stories: list[Story] = []

    async def leave() -> None:
        ring = ring_of_loop()
        assert ring is not None
        stand_in = StandIn(ring)
        stories.append(Story(stand_in, fd))
        assert not await storage.lend(stand_in, stories[0])

    trio.run(leave)
    storage.released.release()
    stories[0].wait_replied()
    assert content_of(fd) == b"firstsecond"
    assert stories[0].told == [("hangs", b"")]
    stories[0].close()
