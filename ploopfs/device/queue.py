"""The request queue of one device: its gate, and how to hold everybody behind it.

Every operation on a disk passes `request(...)`, one context manager, which holds the check at the start and the check
at the end of the specification; nothing else mentions standby. The queue outlives its stack: standby, statistics and
waiting requests stay when a top is replaced. Lock protocol: `quiesced` is entered by one task at a time; inside it no
request is in flight, new ones wait (or are refused in standby), and `swap` may be called."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType

import trio

from ploopfs.device.flavour import Flavour
from ploopfs.device.signal import Signal
from ploopfs.device.standby import Reason, Standby, StandbyKey
from ploopfs.device.stats import DiskStats, Op
from ploopfs.engine.stack import Stack
from ploopfs.errors import (
    BackendError,
    Busy,
    DeviceAborted,
    InStandby,
    ParkTimeout,
    PloopError,
    QueueFull,
    QuiesceTimeout,
    RequestFailed,
    TruncatedImage,
)

_NO_FAULT = frozenset({errno.ENOSPC, errno.EOPNOTSUPP})
"""Answers of a sound storage, which is full or cannot make holes: they change nothing on the queue."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many requests a queue holds (waiting and in flight), and how long a request or a quiesce may wait."""

    requests: int = 1024
    park_timeout_s: float = 30
    quiesce_timeout_s: float = 30


DEFAULT_BOUNDS = Bounds()


class RequestQueue:
    """`changed` fires when `aborted` or `generation` changes; `standby.changed` when the standby state does."""

    def __init__(
        self, device_name: str, flavour: Flavour, key: StandbyKey, stack: Stack, bounds: Bounds = DEFAULT_BOUNDS
    ) -> None:
        self.standby = Standby(device_name, key)
        self.stats = DiskStats()
        self.changed = Signal()
        self.stack = stack
        self.generation = 1
        self.aborted = False
        self.parked = 0
        self.bounds = bounds
        self._flavour = flavour
        self._released: trio.Event | None = None
        self._drained = trio.Event()

    def request(self, op: Op, length_bytes: int = 0) -> "Passage":
        """`async with queue.request(...) as stack`: pass the gate, and execute on the stack of the present
        generation."""
        return Passage(self, op, length_bytes)

    def set_aborted(self, aborted: bool) -> None:
        if aborted != self.aborted:
            self.aborted = aborted
            self.changed.fire()

    @asynccontextmanager
    async def quiesced(self) -> AsyncIterator[None]:
        """Inside, no request is in flight. Raises Busy if somebody else quiesces, QuiesceTimeout if requests do not
        end."""
        if self._released is not None:
            raise Busy("another operation holds the queue quiesced")
        self._released = trio.Event()
        try:
            await self._wait_drained()
            yield
        finally:
            self._released.set()
            self._released = None

    def swap(self, stack: Stack) -> None:
        """The commit point of a replaced top: one step, without a wait, inside `quiesced`."""
        self.stack = stack
        self.generation += 1
        self.aborted = False
        self.standby.recovered()
        self.changed.fire()

    def judge(self, op: Op, error: PloopError, generation: int) -> RequestFailed:
        """The check at the end of a failed request: does it mean standby, or vz7's aborted state, and what does its
        caller see?

        A late error of a replaced stack (an older generation) changes nothing here.
        """
        # Whoever asked for it: an fsync that failed is a failed flush, in a write's barrier or behind its FUA too.
        failed = Op.FLUSH if isinstance(error, BackendError) and error.operation == "fsync" else op
        request_errno = self._flavour.request_errno(failed, error.errno)
        if generation == self.generation and request_errno not in _NO_FAULT:
            means_standby = isinstance(error, BackendError) and self.standby.storage_lost(self._reason(error))
            if not means_standby and self._flavour.aborts:
                self.set_aborted(True)
        return RequestFailed(request_errno, str(error))

    def _reason(self, error: BackendError) -> Reason:
        level = self.stack.level_of(error.path)
        return Reason(error.errno, str(error) if level is None else f"{error}, level {level}")

    async def _wait_drained(self) -> None:
        with trio.move_on_after(self.bounds.quiesce_timeout_s) as timeout:
            while self.stats.in_flight:
                self._drained = trio.Event()
                await self._drained.wait()
        if timeout.cancelled_caught:
            raise QuiesceTimeout(
                f"{self.stats.in_flight} requests in flight did not end within {self.bounds.quiesce_timeout_s} s"
            )

    async def _wait_released(self) -> None:
        """Wait while the queue is quiesced, as requests of the kernel do between quiesce and relax; bounded."""
        self.parked += 1
        try:
            with trio.move_on_after(self.bounds.park_timeout_s) as timeout:
                while self._released is not None:
                    await self._released.wait()
        finally:
            self.parked -= 1
        if timeout.cancelled_caught:
            raise ParkTimeout(f"the queue stayed quiesced for more than {self.bounds.park_timeout_s} s")

    async def _admit(self, op: Op) -> None:
        """The check at the start of every request. Standby is asked first and again after waiting: it refuses at
        once."""
        if self.stats.in_flight + self.parked >= self.bounds.requests:
            raise QueueFull(f"{self.bounds.requests} requests are already in the queue")
        self._refuse(op)
        if self._released is not None:
            await self._wait_released()
            self._refuse(op)

    def _refuse(self, op: Op) -> None:
        if self.standby.refuses:
            raise InStandby("the device is in standby")
        if self.aborted and op.is_write:
            raise DeviceAborted("the device is aborted")


class Passage:
    """One request on its way through the gate: counted in, stamped with the generation, judged if it fails, counted
    out."""

    __slots__ = ("_generation", "_length_bytes", "_op", "_queue", "_started_ns")

    def __init__(self, queue: RequestQueue, op: Op, length_bytes: int) -> None:
        self._queue, self._op, self._length_bytes = queue, op, length_bytes
        self._generation = self._started_ns = 0

    async def __aenter__(self) -> Stack:
        queue = self._queue
        await queue._admit(self._op)
        self._generation = queue.generation
        self._started_ns = queue.stats.start(self._op)
        return queue.stack

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        queue = self._queue
        queue.stats.finish(self._op, self._length_bytes, self._started_ns)
        if not queue.stats.in_flight:
            queue._drained.set()
        if isinstance(error, BackendError | TruncatedImage):
            raise queue.judge(self._op, error, self._generation) from error
