"""Deliberate bugs: each breaks one promise of the product, and the simulator must find it.

Each is a patch of one function, in force inside `broken`.
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from ploopfs.device.device import Device
from ploopfs.device.queue import RequestQueue
from ploopfs.device.standby import Standby
from ploopfs.device.stillness import Stillness
from ploopfs.device.unflushed import Unflushed
from ploopfs.device.waiting import Ticket
from ploopfs.engine.delta import Delta
from ploopfs.engine.writer import Writer
from ploopfs.image.allocator import Allocator
from ploopfs.image.plan import Barrier
from tests.storm.run import TEMPERATE, Climate

Patch = tuple[object, str, Any]
_queue_quiesced, _queue_judge, _queue_verdict = RequestQueue.quiesced, RequestQueue.judge, RequestQueue._verdict
_writer_step, _delta_settle, _standby_lost, _allocate, _unflushed_flushed = (
    Writer._step,
    Delta.settle,
    Standby.storage_lost,
    Allocator.allocate,
    Unflushed.flushed,
)


async def _nothing(*_arguments: object) -> None:
    return None


@contextlib.asynccontextmanager
async def _clear_early(queue: RequestQueue) -> Any:  # noqa: ANN401 -- as the patched one
    async with _queue_quiesced(queue):
        queue.standby.recovered()
        yield


def _judge_as_current(queue: RequestQueue, op: Any, error: Any, _generation: int) -> Any:  # noqa: ANN401
    return _queue_judge(queue, op, error, queue.generation)


async def _step_without_barrier(writer: Writer, step: Any, data: bytes) -> None:  # noqa: ANN401
    if not isinstance(step, Barrier):
        await _writer_step(writer, step, data)


async def _sync_again(delta: Delta) -> None:
    await delta.file.sync()


async def _flush_believing(device: Device, stack: Any) -> None:  # noqa: ANN401
    mark = device.unflushed.mark()
    await stack.flush()
    device.unflushed.flushed(mark)


async def _settle_unsynced(delta: Delta) -> None:
    with mock.patch.object(delta, "sync", _nothing):  # of this one: others settle at the same time
        await _delta_settle(delta)


def _flushed_all(unflushed: Unflushed, _mark: int) -> None:
    _unflushed_flushed(unflushed, unflushed.mark())


def _reads_pass(queue: RequestQueue, ticket: Ticket) -> Any:  # noqa: ANN401
    return _queue_verdict(queue, ticket) if ticket.op.is_write else None


def _unbounded(ticket: Ticket, _deadline_s: float) -> None:
    ticket._deadline_s = ticket._scope.deadline = math.inf


def _lost_and_logged(standby: Standby, reason: Any) -> bool:  # noqa: ANN401
    if standby.armed and reason.errno in {5, 16, 107}:
        logging.getLogger("ploopfs").info("%s was switched into the standby mode", standby._name)
    return _standby_lost(standby, reason)


def _allocate_and_keep(allocator: Allocator) -> tuple[int, bool]:
    cluster, may_be_old = _allocate(allocator)
    allocator.release(cluster)
    return cluster, may_be_old


def _aim_past_the_gate(device: Device, offset: int, data: bytes) -> Any:  # noqa: ANN401
    return device.stack.aim(device._in_stack(offset), data) if len(data) <= device.size_bytes - offset else None


@dataclass(frozen=True, slots=True)
class Bug:
    """`patches` say what is put in the place of what; the bug shows soon in its `climate`."""

    patches: tuple[Patch, ...]
    climate: Climate = TEMPERATE


_POWER_LOSSES = Climate((90, 0, 2, 6, 0))
_UNATTENDED = Climate((85, 4, 8, 3, 0), frozenset({"reopen"}), frozenset({"flakiness"}), attached=0, agents=0)
_RESTARTS = Climate((84, 8, 8, 0, 0), frozenset({"reopen"}), frozenset({"restart"}), attached=1)
_LATE_ANSWERS = Climate(
    (80, 12, 8, 0, 0), frozenset({"reopen"}), frozenset({"slowness", "hang", "restart"}), attached=1
)

BROKEN: dict[str, Bug] = {
    "skip the replay": Bug(((Unflushed, "replay", _nothing),), _RESTARTS),
    "clear standby early": Bug(((RequestQueue, "quiesced", _clear_early),)),
    "judge a stale generation": Bug(
        ((Stillness, "_wait_drained", _nothing), (RequestQueue, "judge", _judge_as_current)), _LATE_ANSWERS
    ),
    "skip the barrier": Bug(((Writer, "_step", _step_without_barrier),), _POWER_LOSSES),
    "believe the next fsync": Bug(
        ((Delta, "sync", _sync_again), (Device, "_flush_stack", _flush_believing)), _UNATTENDED
    ),
    "clear the mark unflushed": Bug(((Delta, "settle", _settle_unsynced),)),
    "forget what came during a flush": Bug(((Unflushed, "flushed", _flushed_all),), _RESTARTS),
    "serve reads in standby": Bug(((RequestQueue, "_verdict", _reads_pass),)),
    "write past the gate": Bug(((Device, "_aim", _aim_past_the_gate),)),
    "wait without a bound": Bug(((Ticket, "bound", _unbounded),)),
    "allocate a used cluster": Bug(((Allocator, "allocate", _allocate_and_keep),)),
    "log a transition twice": Bug(((Standby, "storage_lost", _lost_and_logged),)),
}


@contextlib.contextmanager
def broken(name: str | None) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for owner, attribute, replacement in BROKEN[name].patches if name else ():
            stack.enter_context(mock.patch.object(owner, attribute, replacement))
        yield
