"""Threads that wait for a storage: how many, in which order, what becomes of who gives up, how answers come back."""

import threading
from collections.abc import Callable
from contextvars import ContextVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.engine.workers import Lane, Workers

HANG_S = 60
"""Only a failing test waits that long."""


class Storage:
    """Work that hangs until it is let go; `began` and `ended` name it in order."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.ended: list[str] = []
        self._arrived = threading.Semaphore(0)
        self._go: dict[str, threading.Event] = {}

    def work(self, name: str) -> Callable[[], str]:
        self._go[name] = threading.Event()

        def wait() -> str:
            self.began.append(name)
            self._arrived.release()
            assert self._go[name].wait(HANG_S)
            self.ended.append(name)
            return name

        return wait

    def let_go(self, *names: str) -> None:
        for name in names:
            self._go[name].set()

    async def wait_arrivals(self, count: int) -> None:
        def arrived() -> bool:
            return all(self._arrived.acquire(timeout=HANG_S) for _ in range(count))

        assert await trio.to_thread.run_sync(arrived)

    def has_arrived(self) -> bool:
        return self._arrived.acquire(blocking=False)


class Caller:
    """One that waits for its work; `answers` are those of all callers, in order."""

    def __init__(self, nursery: trio.Nursery, workers: Workers, answers: list[str]) -> None:
        self._nursery, self._workers, self._answers = nursery, workers, answers

    def ask(self, work: Callable[[], str], lane: Lane | None = None) -> trio.CancelScope:
        scope = trio.CancelScope()
        self._nursery.start_soon(self._ask, work, lane, scope)
        return scope

    async def _ask(self, work: Callable[[], str], lane: Lane | None, scope: trio.CancelScope) -> None:
        with scope:
            self._answers.append(await self._workers.run(work, lane))


def no_answers() -> list[str]:
    return []


def is_idle(workers: Workers) -> bool:
    return (workers._busy, len(workers._waiting), len(workers._ended)) == (0, 0, 0)


async def test_work_returns_or_raises_to_who_asked_and_sees_his_context() -> None:
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("mine")
    workers = Workers(2)
    assert await workers.run(variable.get) == "mine"
    with pytest.raises(ZeroDivisionError):
        await workers.run(lambda: str(1 // 0))
    assert await workers.run(threading.get_ident) != threading.get_ident()
    assert is_idle(workers)


async def test_who_is_cancelled_already_does_not_begin() -> None:
    storage, workers = Storage(), Workers(2)
    with trio.CancelScope() as scope:
        scope.cancel()
        await workers.run(storage.work("never"))
    assert scope.cancelled_caught
    assert (storage.began, is_idle(workers)) == ([], True)


async def test_what_comes_when_every_thread_waits_is_done_in_the_order_in_which_it_came() -> None:
    storage, workers, answers = Storage(), Workers(2), no_answers()
    async with trio.open_nursery() as nursery:
        caller = Caller(nursery, workers, answers)
        for name in "abcde":
            caller.ask(storage.work(name))
            await wait_all_tasks_blocked()
        await storage.wait_arrivals(2)
        assert sorted(storage.began) == ["a", "b"]
        for name in "abc":
            storage.let_go(name)
            await storage.wait_arrivals(1)
        assert storage.began[2:] == ["c", "d", "e"]
        storage.let_go("d", "e")
    assert is_idle(workers)


async def test_of_one_lane_one_is_done_at_a_time_while_others_are_done_beside_it() -> None:
    storage, workers, answers, lane = Storage(), Workers(9), no_answers(), Lane()
    async with trio.open_nursery() as nursery:
        caller = Caller(nursery, workers, answers)
        for name in "ab":
            caller.ask(storage.work(name), lane)
            await wait_all_tasks_blocked()
        caller.ask(storage.work("x"))
        caller.ask(storage.work("y"), Lane())
        await storage.wait_arrivals(3)
        assert sorted(storage.began) == ["a", "x", "y"]
        assert not storage.has_arrived()
        storage.let_go(*"axy")
        await storage.wait_arrivals(1)
        storage.let_go("b")
    assert storage.began[-1] == "b"
    assert is_idle(workers)


async def test_an_answer_comes_though_the_next_of_its_lane_hangs() -> None:
    storage, workers, answers, lane = Storage(), Workers(2), no_answers(), Lane()
    async with trio.open_nursery() as nursery:
        caller = Caller(nursery, workers, answers)
        for name in "ab":
            caller.ask(storage.work(name), lane)
            await wait_all_tasks_blocked()
        storage.let_go("a")
        await storage.wait_arrivals(2)
        await wait_all_tasks_blocked()  # whoever was told of the answer has it
        first = list(answers)
        storage.let_go("b")
    assert first == ["a"]


async def test_a_lane_with_much_to_do_leaves_a_thread_to_who_waits_longer() -> None:
    storage, workers, answers, lane = Storage(), Workers(1), no_answers(), Lane()
    async with trio.open_nursery() as nursery:
        caller = Caller(nursery, workers, answers)
        for name, of in (("a", lane), ("b", lane), ("x", None), ("c", lane)):
            caller.ask(storage.work(name), of)
            await wait_all_tasks_blocked()
        storage.let_go(*"abcx")
    assert storage.began == ["a", "x", "b", "c"]
    assert is_idle(workers)


@pytest.mark.parametrize("shares_a_lane", [True, False])
async def test_who_gives_up_before_his_work_began_leaves_nothing_of_it(shares_a_lane: bool) -> None:
    storage, workers, answers = Storage(), Workers(1), no_answers()
    lane = Lane() if shares_a_lane else None
    async with trio.open_nursery() as nursery:
        caller = Caller(nursery, workers, answers)
        caller.ask(storage.work("a"), lane)
        await storage.wait_arrivals(1)
        scope = caller.ask(storage.work("given up"), lane)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert not workers._waiting
        assert lane is None or not lane.jobs
        caller.ask(storage.work("b"), lane)
        await wait_all_tasks_blocked()
        storage.let_go("a", "b")
    assert (sorted(answers), storage.began) == (["a", "b"], ["a", "b"])
    assert is_idle(workers)


async def test_what_stays_is_done_though_who_asked_for_it_gave_up_before_it_began() -> None:
    storage, workers = Storage(), Workers(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.run, storage.work("hangs"))
        await storage.wait_arrivals(1)
        work = storage.work("stays")
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancelled_when_blocked, scope)
            await workers.run(work, stays=True)
        assert scope.cancelled_caught
        storage.let_go("hangs", "stays")
        await storage.wait_arrivals(1)
    assert storage.began == ["hangs", "stays"]


async def _cancelled_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_a_lane_that_waits_for_a_thread_is_served_again_after_all_of_it_was_given_up() -> None:
    storage, workers, answers, lane = Storage(), Workers(1), no_answers(), Lane()
    async with trio.open_nursery() as nursery:
        caller = Caller(nursery, workers, answers)
        caller.ask(storage.work("a"))
        await storage.wait_arrivals(1)
        scope = caller.ask(storage.work("given up"), lane)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert not lane.is_served
        caller.ask(storage.work("b"), lane)
        await wait_all_tasks_blocked()
        storage.let_go("a", "b")
    assert sorted(answers) == ["a", "b"]


async def test_who_gives_up_what_is_under_way_goes_on_and_nobody_hears_its_answer() -> None:
    storage, workers, answers = Storage(), Workers(1), no_answers()
    async with trio.open_nursery() as nursery:
        scope = Caller(nursery, workers, answers).ask(storage.work("a"))
        await storage.wait_arrivals(1)
        scope.cancel()
    assert storage.ended == []
    assert workers._busy == 1
    storage.let_go("a")
    assert await workers.run(lambda: "next") == "next"
    assert (answers, storage.ended) == ([], ["a"])
    assert is_idle(workers)


async def test_answers_that_are_there_together_come_by_one_wake_up() -> None:
    storage, workers, answers, lane = Storage(), Workers(2), no_answers(), Lane()
    wake_ups: list[int] = []
    deliver = workers._deliver

    def counted() -> None:
        wake_ups.append(len(workers._ended))
        deliver()

    workers._deliver = counted  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        caller = Caller(nursery, workers, answers)
        for name in "abcd":
            caller.ask(storage.work(name), lane)
        await storage.wait_arrivals(1)
        storage.let_go(*"abcd")
        while len(storage.ended) < 4:  # the loop looks at nothing meanwhile
            pass
    assert sorted(answers) == [*"abcd"]
    assert sum(wake_ups) == 4
    assert len(wake_ups) <= 2, "the last may have been on its way"


def test_a_loop_that_is_over_hears_no_answer_and_the_next_one_hears_its_own() -> None:
    storage, workers = Storage(), Workers(2)

    async def give_up() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.run, storage.work("a"))
            await storage.wait_arrivals(1)
            nursery.cancel_scope.cancel()

    async def ask() -> str:
        return await workers.run(lambda: "b")

    trio.run(give_up)
    storage.let_go("a")
    assert trio.run(ask) == "b"
    assert trio.run(ask) == "b"


async def test_a_clock_that_jumps_waits_for_no_thread(autojump_clock: MockClock) -> None:
    storage, workers = Storage(), Workers(1)
    with trio.move_on_after(5) as patience:
        await workers.run(storage.work("a"))
    assert patience.cancelled_caught
    assert trio.current_time() == pytest.approx(autojump_clock.current_time())
    storage.let_go("a")
    assert await workers.run(lambda: "b") == "b"
