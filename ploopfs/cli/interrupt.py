"""How a command that works on images ends on a signal: in order where that is possible at once, at once in any case.

Who waits for a storage that hangs comes back for no signal but the last one, and to close an image properly it would
have to answer. Knows nothing of images. Invariant: what `run` returns was done, whatever was pressed meanwhile.
"""

import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from ploopfs.bounds import INTERRUPT_GRACE_MS
from ploopfs.cli.exits import ENDING
from ploopfs.cli.logs import tell

T = TypeVar("T")

_TOLD_S = 0.5
"""For a message that nobody may read."""


def run(work: Callable[[], Awaitable[T]], left: Callable[[], str] = str) -> T:
    """`trio.run`. Raises KeyboardInterrupt with the signal's number when one has ended it; if that takes longer than
    INTERRUPT_GRACE_MS the process ends without, and says what is `left` then, unless that is nothing."""
    numbers = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    return trio.run(_until_interrupted, work, numbers, left) if numbers else trio.run(work)


def run_sync(work: Callable[[], T], left: Callable[[], str] = str) -> T:
    """The same of what blocks: done in another thread, which is let finish unless it hangs. It may ask
    `trio.from_thread.check_cancelled` whether it should."""
    return run(lambda: trio.to_thread.run_sync(work), left)


async def _until_interrupted(
    work: Callable[[], Awaitable[T]], numbers: list[signal.Signals], left: Callable[[], str]
) -> T:
    results: list[T] = []
    came: list[int] = []
    ended = threading.Event()
    try:
        with trio.open_signal_receiver(*numbers) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end, signals, came, partial(_end_at_once, ended, left), nursery.cancel_scope)
                results.append(await work())
                nursery.cancel_scope.cancel()
    finally:
        ended.set()
    if not results:
        raise KeyboardInterrupt(came[0])
    return results[0]


async def _end(
    signals: AsyncIterator[int], came: list[int], end_at_once: Callable[[int], None], scope: trio.CancelScope
) -> None:
    async for number in signals:
        came.append(number)
        threading.Thread(target=end_at_once, args=(number,), daemon=True).start()
        scope.cancel()
        return


def _end_at_once(ended: threading.Event, left: Callable[[], str], number: int) -> None:
    """In a thread of its own: the others may wait for the storage."""
    if ended.wait(INTERRUPT_GRACE_MS / 1000):
        return
    if text := left():
        tell(f"ploopfs: {text}").join(_TOLD_S)
    os._exit(128 + number)
