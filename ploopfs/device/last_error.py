"""Why the last control operation of a device failed, in words: what an errno cannot say.

Knows nothing of operations. Invariant: the text is that of the innermost place that explained the failure.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ploopfs.errors import PloopError


class LastError:
    """`text` is empty while the last operation did not fail."""

    def __init__(self) -> None:
        self.text = ""
        self._explained: PloopError | None = None

    @contextmanager
    def explaining(self, operation: str) -> Iterator[None]:
        """Around one operation: its failure is kept as `operation: why`, its success forgets the one before."""
        try:
            yield
        except PloopError as error:
            if error is not self._explained:
                self.text, self._explained = f"{operation}: {error}", error
            raise
        self.text, self._explained = "", None
