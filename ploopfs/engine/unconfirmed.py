"""Is something acknowledged, or about to be, that no sync has confirmed yet? A sync vouches for what ended before it.

Sync and tiny: two additions per change. Knows nothing of data or clusters.
"""


class Unconfirmed:
    """Every change has `begun`, then `ended` or `failed`; `mark` before a sync, `confirmed` when it has succeeded."""

    __slots__ = ("_begun", "_confirmed", "_ended")

    def __init__(self) -> None:
        self._begun = self._ended = self._confirmed = 0

    def __bool__(self) -> bool:
        return self._begun > self._confirmed

    def begun(self) -> None:
        self._begun += 1

    def ended(self) -> None:
        self._ended += 1

    def made(self, count: int) -> None:
        """So many, which nobody could see before they had ended."""
        self._begun += count
        self._ended += count

    def failed(self) -> None:
        """Nobody was told that it is done."""
        self._begun -= 1

    def mark(self) -> int:
        return self._ended

    def confirmed(self, mark: int) -> None:
        self._confirmed = max(self._confirmed, mark)
