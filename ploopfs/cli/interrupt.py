"""How a command that works on images ends on Ctrl-C: in order where that is possible at once, and at once in any case.

Who waits for a storage that hangs comes back for no signal but the last one, and to close an image properly it would
have to answer. Knows nothing of images. Invariant: what `run` returns was done, whatever was pressed meanwhile.
"""

import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import trio

from ploopfs.bounds import INTERRUPT_GRACE_MS

T = TypeVar("T")


def run(work: Callable[[], Awaitable[T]]) -> T:
    """`trio.run`. Raises KeyboardInterrupt when an interrupt has ended it; the process ends without if that takes
    longer than INTERRUPT_GRACE_MS."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return trio.run(work)
    return trio.run(_until_interrupted, work)


def run_sync(work: Callable[[], T]) -> T:
    """The same of what blocks: done in another thread, which is let finish unless it hangs."""
    return run(lambda: trio.to_thread.run_sync(work))


async def _until_interrupted(work: Callable[[], Awaitable[T]]) -> T:
    grace = threading.Timer(INTERRUPT_GRACE_MS / 1000, os._exit, (128 + signal.SIGINT,))
    grace.daemon = True
    results: list[T] = []
    try:
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end, signals, grace, nursery.cancel_scope)
                results.append(await work())
                nursery.cancel_scope.cancel()
    finally:
        grace.cancel()
    if not results:
        raise KeyboardInterrupt
    return results[0]


async def _end(signals: AsyncIterator[int], grace: threading.Timer, scope: trio.CancelScope) -> None:
    async for _number in signals:
        grace.start()
        scope.cancel()
        return
