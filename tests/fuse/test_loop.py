"""How pyfuse3's tasks wait for requests, with pyfuse3's part and the kernel's played here, on a clock that counts."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.bounds import TREE_POLL_US
from ploopfs.fuse import loop as loop_module
from ploopfs.fuse.loop import EventLoop, Reading, Tasks
from tests.fuse.mounting import HANG_S, mounted
from tests.realparts import need

TICK_NS = 1000
TASKS = 4
REQUESTS = 200


class Caller:
    """A pipe of requests: `left` more of them, each so many looks at the clock after the one before was taken. If it
    `takes_back`, the next is gone when it is read."""

    def __init__(self) -> None:
        self.reading, self._writing = os.pipe()
        self.now_ns, self.left, self.gap = 0, 0, 2
        self.taken = self.taken_ns = self.reading_tasks = 0
        self.takes_back = False
        self._at_ns: int | None = None

    def ask(self, requests: int = 1) -> None:
        self.left = requests - 1
        os.write(self._writing, b"r")

    def monotonic_ns(self) -> int:
        self.now_ns += TICK_NS
        if self._at_ns is not None and self.now_ns >= self._at_ns:
            self._at_ns = None
            self.ask(self.left)
        return self.now_ns

    def take(self) -> None:
        if self.takes_back:
            self.takes_back = False
            os.read(self.reading, 1)
        assert not os.get_blocking(self.reading), "reading would wait"
        assert os.read(self.reading, 1) == b"r"
        self.taken += 1
        self.taken_ns = self.now_ns
        if self.left:
            self._at_ns = self.now_ns + self.gap * TICK_NS

    def close(self) -> None:
        os.close(self.reading)
        os.close(self._writing)


@pytest.fixture
def caller(monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    caller = Caller()
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic_ns=caller.monotonic_ns))
    yield caller
    caller.close()


def serve(
    nursery: trio.Nursery,
    caller: Caller,
    handle: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint_if_cancelled,
    is_needed: Callable[[], bool] = bool,
) -> None:
    """As pyfuse3 does it, with `TASKS` tasks."""
    loop = EventLoop(is_needed)
    lock: Reading = loop.Lock()

    async def serve_one_after_the_other() -> None:
        while True:
            async with lock:
                caller.reading_tasks += 1
                assert caller.reading_tasks == 1
                try:
                    await loop.lowlevel.wait_readable(caller.reading)
                finally:
                    caller.reading_tasks -= 1
            caller.take()
            await handle()

    tasks = Tasks(nursery)
    for number in range(TASKS):
        tasks.start_soon(serve_one_after_the_other, name=str(number))


async def turns_of_others(caller: Caller, requests: int) -> int:
    """How often the event loop comes round until so many requests were taken."""
    turns = 0
    while caller.taken < requests:
        assert turns < 20 * REQUESTS, f"{caller.taken} were taken"
        await trio.lowlevel.checkpoint()
        turns += 1
    return turns


async def test_a_quick_caller_is_served_without_the_event_loop_and_others_have_their_turn_now_and_then(
    nursery: trio.Nursery, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_TURN_NS", 100 * TICK_NS)
    serve(nursery, caller)
    caller.ask(REQUESTS)
    turns = await turns_of_others(caller, REQUESTS)
    assert REQUESTS // 50 <= turns <= REQUESTS // 4


async def test_who_asks_without_waiting_for_answers_is_served_in_one_go_too(
    nursery: trio.Nursery, caller: Caller
) -> None:
    serve(nursery, caller)
    for _ in range(20):
        caller.ask()
    assert await turns_of_others(caller, 20) < 10


async def test_who_takes_longer_than_the_bound_is_not_looked_for_and_costs_nothing(
    nursery: trio.Nursery, caller: Caller
) -> None:
    serve(nursery, caller)
    caller.ask(3)
    await turns_of_others(caller, 3)
    await wait_all_tasks_blocked()
    looked_ns = caller.now_ns
    caller.now_ns += 10**9
    caller.ask()
    await wait_all_tasks_blocked()
    assert caller.taken == 4
    assert caller.now_ns - looked_ns - 10**9 <= 10 * TICK_NS, "he was looked for"


async def test_a_look_is_no_longer_than_the_bound(nursery: trio.Nursery, caller: Caller) -> None:
    serve(nursery, caller)
    caller.gap = 4
    caller.ask(3)
    await turns_of_others(caller, 3)
    await wait_all_tasks_blocked()
    looked_ns = caller.now_ns - caller.taken_ns
    assert abs(looked_ns - 1000 * TREE_POLL_US) <= 10 * TICK_NS


async def test_where_a_request_waits_in_a_task_the_event_loop_comes_round_as_if_nobody_were_quick(
    nursery: trio.Nursery, caller: Caller
) -> None:
    serve(nursery, caller, is_needed=lambda: True)
    caller.ask(REQUESTS)

    async def keep_asking() -> None:
        """The clock of the caller goes on though nobody looks at it."""
        while True:
            caller.monotonic_ns()
            await trio.lowlevel.checkpoint()

    nursery.start_soon(keep_asking)
    assert await turns_of_others(caller, REQUESTS) >= REQUESTS


async def test_while_requests_wait_other_tasks_take_the_next_ones(nursery: trio.Nursery, caller: Caller) -> None:
    gate = trio.Event()
    serve(nursery, caller, gate.wait)
    for number in range(TASKS):
        caller.ask()
        await wait_all_tasks_blocked()
        assert caller.taken == number + 1
    caller.ask()
    await wait_all_tasks_blocked()
    assert caller.taken == TASKS, "there is no further task"
    gate.set()
    await wait_all_tasks_blocked()
    assert caller.taken == TASKS + 1


async def test_a_task_whose_request_was_taken_back_waits_for_the_next_one(
    nursery: trio.Nursery, caller: Caller
) -> None:
    serve(nursery, caller)
    for _ in range(2 * TASKS):
        caller.takes_back = True
        caller.ask()
        await wait_all_tasks_blocked()
    assert (caller.taken, caller.reading_tasks) == (0, 1)
    caller.ask()
    await wait_all_tasks_blocked()
    assert caller.taken == 1


async def test_any_other_failure_of_a_task_ends_all_of_them() -> None:
    async def fail() -> None:
        raise OSError(errno.ENOMEM, "it is one")

    async def serve_two() -> None:
        async with EventLoop(bool).open_nursery() as tasks:
            tasks.start_soon(trio.sleep_forever, name="waits")
            tasks.start_soon(fail, name="fails")

    with pytest.raises(ExceptionGroup) as ended:
        await serve_two()
    assert [getattr(error, "errno", None) for error in ended.value.exceptions] == [errno.ENOMEM]


async def test_a_task_that_is_cancelled_while_it_sleeps_takes_nobodys_place(nursery: trio.Nursery) -> None:
    lock: Reading = EventLoop(bool).Lock()
    entered: list[int] = []
    scopes = [trio.CancelScope() for _ in range(3)]

    async def enter(number: int) -> None:
        with scopes[number]:
            async with lock:
                entered.append(number)

    async with lock:
        for number in range(3):
            nursery.start_soon(enter, number)
            await wait_all_tasks_blocked()
        scopes[0].cancel()
        await wait_all_tasks_blocked()
    scopes[1].cancel()  # it is woken already
    await wait_all_tasks_blocked()
    assert 2 in entered
    assert 0 not in entered


async def test_a_session_that_was_terminated_wakes_every_task(nursery: trio.Nursery, caller: Caller) -> None:
    """pyfuse3 looks after it has got the lock whether that is so, and waits without a further look."""
    loop = EventLoop(bool)
    lock: Reading = loop.Lock()
    ended = []

    async def serve_until_terminated(number: int) -> None:
        with pytest.raises(trio.ClosedResourceError):
            async with lock:
                await loop.lowlevel.wait_readable(caller.reading)
        ended.append(number)

    for number in range(TASKS):
        nursery.start_soon(serve_until_terminated, number)
        await wait_all_tasks_blocked()
    for _ in range(TASKS):
        trio.lowlevel.notify_closing(caller.reading)
        await wait_all_tasks_blocked()
    assert sorted(ended) == list(range(TASKS))


def test_all_else_is_trios() -> None:
    loop = EventLoop(bool)
    assert loop.ClosedResourceError is trio.ClosedResourceError
    assert loop.lowlevel.current_task is trio.lowlevel.current_task


@pytest.mark.real
def test_pyfuse3_waits_for_each_request_through_this(tmp_path: Path) -> None:
    need(fuse=True)
    with mounted(tmp_path) as toy:
        before = int((toy.path / "waits").read_text())
        for _ in range(10):
            os.stat(toy.path)
        assert int((toy.path / "waits").read_text()) >= before + 10


ENDLESS = "import os, sys\nwhile True:\n    os.stat(sys.argv[1])\n"


@pytest.mark.real
def test_a_request_that_is_taken_back_before_it_is_read_holds_up_nobody(tmp_path: Path) -> None:
    """Its caller is killed, and nobody asks for anything afterwards."""
    need(fuse=True)
    with mounted(tmp_path) as toy:
        for _ in range(3):
            with (
                (toy.path / "victim").open("w") as victim,
                subprocess.Popen([sys.executable, "-c", ENDLESS, toy.path / "counter"]) as caller,
            ):
                victim.write(str(caller.pid))
                victim.flush()
                assert caller.wait(HANG_S) == -signal.SIGKILL
                assert toy.said() == "taken back\n"
        assert (toy.path / "counter").read_text() == "1\n"
        assert toy.end() == 0
