"""`merge` of a running disk: what level top-1 has goes up into the top, then that level goes (kernel-ploop.md 2.5).

Two parts. `copied_up` runs beside the requests: a copy is a write of no bytes, and meets theirs in the writer's claims.
`without_level` makes the stack that lacks the level, while no request is in flight. The stored kernel copies whatever
the top lacks; here, as it is meant, clusters of level top-1 alone are copied, and deeper ones stay where they are.
Knows nothing of queues."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import inf

import trio

from ploopfs.engine.delta import Delta
from ploopfs.engine.opening import lower_map
from ploopfs.engine.stack import Stack
from ploopfs.errors import Busy, Interrupted, NoSuchEntry, PloopError, ReadOnly
from ploopfs.image.map import Map

COPIES_AT_ONCE = 16
"""Each has one cluster in memory. The kernel has up to 64."""

Work = Callable[[Stack], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class CopiedUp:
    """The top has all that `dropped` has, on stable storage; `lower` is the map of `below`, the levels under it."""

    below: tuple[Delta, ...]
    dropped: Delta
    lower: Map


async def copied_up(
    stack: Stack, through: Callable[[Work], Awaitable[None]] | None = None, *, limit_s: float = inf
) -> CopiedUp:
    """Copy every cluster that level top-1 owns to the top, and flush it.

    `through` runs a piece of work on the stack in force: a device passes its queue, so that each copy is counted as a
    request in flight, and waits or fails where a request would. Raises NoSuchEntry for fewer than two deltas, ReadOnly,
    Busy if another stack has come into force meanwhile, Interrupted when `limit_s` is over, and the first error of a
    copy; in each case when the copies under way have ended. Nothing is undone: what was copied is the top's. To bound
    it use `limit_s`: cancelled from outside, a copy would be given up half-way, and the file with it."""
    if len(stack.deltas) < 2:
        raise NoSuchEntry(f"{stack.top.path}: there is no delta below it to merge")
    if stack.read_only:
        raise ReadOnly(f"{stack.top.path} is open for reading only")
    *below, dropped = stack.deltas[:-1]
    lower = await lower_map(below, stack.cluster_bytes, len(stack.map))

    async def run(work: Work) -> None:
        async def on(in_force: Stack) -> None:
            if in_force is not stack:
                raise Busy("another stack came into force while level top-1 was merged")
            await work(in_force)

        await (on(stack) if through is None else through(on))

    await _copy_all(stack, run, trio.current_time() + limit_s)
    await run(Stack.flush)
    return CopiedUp(tuple(below), dropped, lower)


async def _copy_all(stack: Stack, run: Callable[[Work], Awaitable[None]], deadline: float) -> None:
    level = stack.map.top_level - 1
    slots = iter(stack.map.owned_by(level))
    errors: list[PloopError] = []

    async def copy_some() -> None:
        for slot in slots:
            if errors:
                return
            try:
                if trio.current_time() >= deadline:
                    raise Interrupted("the time for merging level top-1 is over")
                await run(partial(Stack.copy_up, slot=int(slot), level=level))
            except PloopError as error:
                errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(COPIES_AT_ONCE):
            nursery.start_soon(copy_some)
    if errors:
        raise errors[0]


def without_level(stack: Stack, copied: CopiedUp) -> Stack:
    """The stack without level top-1, whose index the top takes; `copied.dropped` is to be closed when it is in force.

    In one step, without a wait, and nothing is written. Raises Busy if the stack is not the one that was copied in, or
    if the level still has a cluster."""
    owned = stack.map.owned_by(stack.map.top_level - 1)
    if stack.deltas[:-1] != (*copied.below, copied.dropped) or len(stack.map) != len(copied.lower) or len(owned):
        raise Busy("the stack has changed since level top-1 was merged")
    deltas = (*copied.below, stack.top)
    return stack.successor(deltas, lower=copied.lower)
