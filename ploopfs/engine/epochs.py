"""When may something that old requests could still use be reused? After every request that was in flight then has
ended.

Sync and tiny: two dictionary operations per request. Knows nothing of clusters.
"""

from collections import deque
from collections.abc import Callable


class Epochs:
    """Requests `enter` and `leave`; `retire` calls back once all requests that had entered by then have left."""

    __slots__ = ("_active", "_current", "_retired")

    def __init__(self) -> None:
        self._current = 0
        self._active: dict[int, int] = {}
        self._retired: deque[tuple[int, Callable[[], None]]] = deque()

    def enter(self) -> int:
        epoch = self._current
        self._active[epoch] = self._active.get(epoch, 0) + 1
        return epoch

    def leave(self, epoch: int) -> None:
        count = self._active[epoch] - 1
        if count:
            self._active[epoch] = count
            return
        del self._active[epoch]
        if self._retired:
            self._settle()

    def retire(self, callback: Callable[[], None]) -> None:
        self._retired.append((self._current, callback))
        self._current += 1
        self._settle()

    def _settle(self) -> None:
        oldest = min(self._active, default=self._current)
        while self._retired and self._retired[0][0] < oldest:
            self._retired.popleft()[1]()
