"""What pyfuse3 takes for trio: its tasks look for the next request before they sleep.

pyfuse3 finds its event loop in a global of its module, and its own `pyfuse3.asyncio` puts another one there, as `mount`
puts this. All but its tasks, their lock and their wait for a request is trio's. Knows nothing of requests. Invariants:
one task at a time waits for a request or takes one, and nothing else waits for one; the event loop gets its turn after
TREE_TURN_US at the latest.

Whoever reads an attribute sends four requests or more, each when the one before is answered. With trio's own lock each
takes three turns of the event loop, with one of epoll_wait and of epoll_ctl in them, and then the kernel has to wake a
CPU that has just gone idle: opening, reading and closing an attribute took 2.3 times as long.
"""

import os
import select
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType

import trio

from ploopfs.bounds import TREE_POLL_US, TREE_TURN_US

_POLL_NS, _TURN_NS = TREE_POLL_US * 1000, TREE_TURN_US * 1000


class Turn:
    """How long requests may be served without the event loop."""

    __slots__ = ("ends_ns",)

    def __init__(self) -> None:
        self.ends_ns = 0

    def begin(self) -> None:
        """To be called when the event loop has just run."""
        self.ends_ns = time.monotonic_ns() + _TURN_NS

    @property
    def is_over(self) -> bool:
        return time.monotonic_ns() >= self.ends_ns


class Reading:
    """pyfuse3's lock around the wait for a request. Where it is free, it is taken without a turn of the event loop: a
    task that comes back from a request which needed no wait goes on with the next one, and the others sleep on."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._is_held = self._is_one_woken = False
        self._sleeping = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        # Here and not in the wait: pyfuse3 looks in between whether the session was terminated.
        if self._turn.is_over:
            await trio.lowlevel.checkpoint()
            self._turn.begin()
        while self._is_held:
            await self._sleeping.park()
            self._is_one_woken = False
        self._is_held = True

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """One of the others is woken. It finds the lock free if this task waits in its request, else it sleeps on."""
        self._is_held = False
        if self._sleeping and not self._is_one_woken:
            self._sleeping.unpark()
            self._is_one_woken = True


class LowLevel:
    """`trio.lowlevel`, but for its `wait_readable`. `is_needed`: somebody waits in a task, who needs the event loop."""

    def __init__(self, turn: Turn, is_needed: Callable[[], bool]) -> None:
        self._turn, self._is_needed = turn, is_needed
        self._is_quick = False
        self._poll, self._fd = select.poll(), -1

    def __getattr__(self, name: str) -> object:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        if fd != self._fd:
            os.set_blocking(fd, False)
            self._poll, self._fd = select.poll(), fd
            self._poll.register(fd, select.POLLIN)
        if self._is_there():
            return
        since_ns = time.monotonic_ns()
        await trio.lowlevel.wait_readable(fd)
        self._is_quick = time.monotonic_ns() - since_ns < 2 * _POLL_NS
        self._turn.begin()

    def _is_there(self) -> bool:
        """Whether there is a request, now or soon. Who has asked quickly before is looked for a little longer."""
        if self._poll.poll(0):
            return True
        if not self._is_quick or self._is_needed():
            return False
        until_ns = time.monotonic_ns() + _POLL_NS
        while time.monotonic_ns() < until_ns:
            if self._poll.poll(0):
                return True
        self._is_quick = False
        return False


class Tasks:
    """The nursery of pyfuse3's tasks. Who is killed takes back what he has asked for, perhaps after a task was told of
    it: reading would wait for the next request, with all of the process. The descriptor is therefore one that does not
    wait, and as pyfuse3 takes its answer for the end, the task begins again. Each time the buffer of a request is lost,
    which is 1 MiB, of which a page or two were used."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, serve: Callable[..., Awaitable[None]], *arguments: object, name: str) -> None:
        self._nursery.start_soon(self._serve, serve, *arguments, name=name)

    async def _serve(self, serve: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """pyfuse3 goes on counting a task that has failed."""
        while True:
            try:
                return await serve(*arguments)
            except BlockingIOError:
                pass


class EventLoop:
    """The module `trio`, as far as pyfuse3 looks into it."""

    def __init__(self, is_needed: Callable[[], bool]) -> None:
        turn = Turn()
        self.Lock = partial(Reading, turn)
        self.lowlevel = LowLevel(turn, is_needed)

    @asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[Tasks]:
        async with trio.open_nursery() as nursery:
            yield Tasks(nursery)

    def __getattr__(self, name: str) -> object:
        return getattr(trio, name)
