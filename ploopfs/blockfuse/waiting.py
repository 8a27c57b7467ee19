"""Requests of a connection that wait, each for a task that serves it, and who of them does not wait any more.

Somebody who was told to end gets EINTR for what was certainly not done, or can do no harm when it is done late: a read,
a flush. A write that the storage has is waited for, as by a block device, since it could land on what is written after
it. Of how many there may be the request queue of the device is the bound. Invariant: a request is answered once.
"""

import errno
from collections.abc import Callable, Sized
from typing import TypeVar

import trio

from ploopfs.blockfuse.ending import is_leaving, is_told_to_end, process_of
from ploopfs.device.stats import Op

T = TypeVar("T")

_LOOK_AGAIN_S = 0.1
"""The kernel tells of the first signal alone: whether the one to end has come since, we must see for ourselves."""

_LOOKS_AT_OTHERS = 10
"""Nor does it tell of any signal to who has not waited for his request, such as a virtual machine, and waits for it now
because he was killed: every so many looks. Of a thread that has ended before its request is read nothing is known, and
it may be one of a process, or a worker of a loop device, that lives: to fail it would be an error of the disk."""

_MAY_BE_LATE = frozenset({Op.READ, Op.FLUSH})


class Pending:
    """`unique` names the request, `pid` the thread that has asked, of a `process` that it may be gone before. `task` is
    None until it runs."""

    __slots__ = ("is_answered", "is_interrupted", "looks", "op", "pid", "process", "task", "unique")

    def __init__(self, unique: int, pid: int, process: int, op: Op) -> None:
        self.unique, self.pid, self.process, self.op = unique, pid, process, op
        self.task: trio.lowlevel.Task | None = None
        self.is_answered = self.is_interrupted = False
        self.looks = 0


class WaitingRequests:
    """`interrupt` fails what a task waits with at the gate, if it does; `fail` answers a request with an errno."""

    def __init__(
        self, interrupt: Callable[[trio.lowlevel.Task, Op], bool], fail: Callable[[int, int], None]
    ) -> None:
        self._fail_at_gate, self._fail = interrupt, fail
        self._pending: dict[int, Pending] = {}
        self._is_watched = False
        self._processes = _Remembered(process_of)

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, nursery: trio.Nursery, unique: int, pid: int, op: Op) -> Pending:
        pending = self._pending[unique] = Pending(unique, pid, self._processes[pid], op)
        if not self._is_watched:
            self._is_watched = True
            nursery.start_soon(self._watch)
        return pending

    def remove(self, pending: Pending) -> None:
        del self._pending[pending.unique]

    def interrupt(self, unique: int) -> None:
        """The interrupt came after its request, which either waits or was answered."""
        pending = self._pending.get(unique)
        if pending is not None:
            pending.is_interrupted = True
            if is_told_to_end(pending.pid):
                self._give_up(pending)

    async def wait_given_up(self, others: Sized = ()) -> None:
        """Nobody hears the answers any more: let everybody go who is not in the storage, and wait for the rest; and
        for `others`, any of whom may yet come to wait."""
        while self._pending or others:
            for pending in tuple(self._pending.values()):
                self._give_up(pending)
            await trio.sleep(_LOOK_AGAIN_S)

    async def _watch(self) -> None:
        while self._pending:
            await trio.sleep(_LOOK_AGAIN_S)
            leaving = _Remembered(is_leaving)
            # Who waits for nothing any more may end, and his number be given to another.
            for gone in self._processes.keys() - {pending.pid for pending in self._pending.values()}:
                del self._processes[gone]
            for pending in tuple(self._pending.values()):
                pending.looks += 1
                if not pending.looks % _LOOKS_AT_OTHERS and leaving[pending.process]:
                    self._give_up(pending)
                if pending.is_interrupted and is_told_to_end(pending.pid):
                    self._give_up(pending)
        self._is_watched = False

    def _give_up(self, pending: Pending) -> None:
        """Whoever waits at the gate is failed there, and so he is if he comes there later."""
        if pending.task is None or self._fail_at_gate(pending.task, pending.op):
            return
        if pending.op in _MAY_BE_LATE and not pending.is_answered:
            pending.is_answered = True
            self._fail(pending.unique, errno.EINTR)


class _Remembered(dict[int, T]):
    """Many requests are of one thread: what is asked of that is asked once."""

    def __init__(self, ask: Callable[[int], T]) -> None:
        super().__init__()
        self._ask = ask

    def __missing__(self, number: int) -> T:
        self[number] = self._ask(number)
        return self[number]
