"""The gate for requests that wait for nothing: everything that they need is at hand, or they are not for here.

Such a request begins and ends between two turns of the others: it sees one stack, nobody sees it in flight, and it
costs no turn of its own. Knows nothing of what it does. Invariant: the gate decides as for any request (queue.py), and
whoever gets no answer here has changed nothing that is counted."""

import time
from collections.abc import Awaitable, Callable

from ploopfs.device.queue import RequestQueue
from ploopfs.device.stats import Op
from ploopfs.engine.file import Buffer

Written = Callable[[Callable[[], Awaitable[None]] | None], None]
"""Hears once how a write has ended, in the event loop: None, it is acknowledged; else when this has been awaited, or it
is refused with what that raises. It raises nothing and waits for nothing, and hears of success as `Answered` does."""


def read_nowait(queue: RequestQueue, start: int, length: int) -> Buffer | None:
    """Of the stack in force; None where `RequestQueue.run` would wait or refuse, or the stack has to wait."""
    if not queue.is_free:
        return None
    started_ns = time.monotonic_ns()
    data = queue.stack.read_nowait(start, length) if length else b""
    if data is not None:
        queue.stats.passed(Op.READ, length, started_ns)
    return data
