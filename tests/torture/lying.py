"""The store that lies (store.py), as a test has it: it is lost and comes back in every way such a store has."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.mounted.daemon import HANG_S, ROOT, unmount
from tests.mounted.storage import stopped

WINDOW_BYTES = 1 << 20


class Lying:
    """`bricks` is what the store keeps, `path` where it shows it. Made by `lying`."""

    def __init__(self, bricks: Path, path: Path, window_bytes: int) -> None:
        self.bricks, self.path, self._window_bytes = bricks, path, window_bytes
        self._process: subprocess.Popen[str] | None = None

    def mount(self) -> None:
        assert self._process is None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.store", self.bricks, self.path, str(self._window_bytes)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._hear("ready")
        self.path.stat()

    # The brick: this process goes on, and says it has what it cannot keep.

    def lose_brick(self) -> None:
        self._tell("lose")

    def return_brick(self) -> None:
        self._tell("return")

    def fail(self, number: str, operations: Sequence[str], *, one_in: int = 1) -> None:
        """These operations answer that errno from now on."""
        self._tell(f"fail {number} {','.join(operations)} {one_in}")

    def heal(self) -> None:
        self._tell("heal")

    @property
    def pending_bytes(self) -> int:
        """What it has acknowledged, and would lose."""
        return int(self._ask("pending"))

    # The process.

    def kill(self) -> None:
        """What it has acknowledged and no fsync has confirmed is gone. The mount stays, and answers ENOTCONN."""
        assert self._process is not None
        self._process.kill()
        self._ended()

    def crash(self, seed: int) -> None:
        """As `kill`, but any part of it was kept, in any order, torn within writes."""
        assert self._process is not None
        assert self._process.stdin is not None
        print("crash", seed, file=self._process.stdin, flush=True)
        self._ended()

    def remount(self) -> None:
        """What was open on the old mount stays dead; what is opened now works."""
        unmount(self.path)
        self.mount()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Inside, whoever asks the store waits."""
        assert self._process is not None
        with stopped(self._process):
            yield

    def close(self) -> None:
        unmount(self.path)
        if self._process is not None:
            self.kill()

    def _ended(self) -> None:
        assert self._process is not None
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait(HANG_S)
        self._process = None

    def _tell(self, command: str) -> None:
        assert self._ask(command) == "done"

    def _ask(self, command: str) -> str:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(command, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def _hear(self, word: str) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == word


@contextmanager
def lying(place: Path, window_bytes: int = WINDOW_BYTES) -> Iterator[Lying]:
    """Mounted at `place`/store, kept in `place`/bricks; both are made."""
    bricks, path = place / "bricks", place / "store"
    bricks.mkdir()
    path.mkdir()
    running = Lying(bricks, path, window_bytes)
    try:
        running.mount()
        yield running
    finally:
        running.close()
