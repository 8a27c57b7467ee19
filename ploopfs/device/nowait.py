"""The gate for requests that wait for nothing: everything that they need is at hand, or they are not for here.

Such a request begins and ends between two turns of the others: it sees one stack, nobody sees it in flight, and it
costs no turn of its own. Knows nothing of what it does. Invariant: the gate decides as for any request (queue.py), and
whoever gets no answer here has changed nothing that is counted."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ploopfs.device.queue import RequestQueue
from ploopfs.device.stats import Op
from ploopfs.engine.stack import Stack

T = TypeVar("T")

Written = Callable[[Callable[[], Awaitable[None]] | None], None]
"""Hears once how a write has ended, in the event loop: None, it is acknowledged; else when this has been awaited, or it
is refused with what that raises. It raises nothing and waits for nothing, and hears of success as `Answered` does."""


def run_nowait(
    queue: RequestQueue, op: Op, length_bytes: int, work: Callable[[Stack, int, int], T], offset: int
) -> T | None:
    """As `RequestQueue.run`; None where that would wait or refuse, or the work answers None: then it is for that."""
    if not queue.is_free:
        return None
    started_ns = time.monotonic_ns()
    result = work(queue.stack, offset, length_bytes)
    if result is not None:
        queue.stats.passed(op, length_bytes, started_ns)
    return result
