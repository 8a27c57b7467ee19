"""A counted change: what a notifying attribute watches.

Knows nothing of who listens. Invariant: `version` only grows, and grows before anybody is called.
"""

from collections.abc import Callable


class Signal:
    """`version` starts at 1, so that an observer who has seen nothing (0) always finds a change, as in kernfs."""

    __slots__ = ("_listeners", "version")

    def __init__(self) -> None:
        self.version = 1
        self._listeners: dict[object, Callable[[], None]] = {}

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each change until the returned function is called (once or more often)."""
        key = object()
        self._listeners[key] = listener
        return lambda: self._listeners.pop(key, None) and None

    def fire(self) -> None:
        self.version += 1
        for listener in tuple(self._listeners.values()):
            listener()
