"""What only an event loop can do, asked for by a thread that stands in for it (stand_in.py).

To wake a task needs the loop that runs it. Knows nothing of what is done. Invariant: what is left to a loop is done by
it, in the order in which it was left.
"""

import threading
from collections.abc import Callable


class _Thread(threading.local):
    """`left` is None in a thread that stands in for nobody."""

    left: list[Callable[[], object]] | None = None


THREAD = _Thread()


def leave_to_loop(call: Callable[[], object]) -> None:
    """It is done now, but in a thread that stands in: there it is when its turn has ended."""
    if THREAD.left is None:
        call()
    else:
        THREAD.left.append(call)
