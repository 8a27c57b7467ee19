"""What a daemon under a soak tells of its own insides: it is the real command, with one signal that answers by a line.

`begin` runs in the daemon before anything else, `ask` in whoever measures it. Knows nothing of what is done to the
daemon. Invariant: answering leaves nothing behind that a later answer would count.
"""

import gc
import json
import os
import select
import signal
import sys
import threading
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from types import FrameType

SIGNAL = signal.SIGUSR1
IDLE_THREAD_S = 0.2
"""Instead of 10: a worker thread without work ends so soon, and who measures does not wait for long."""
RING_EVENTS = 64
"""Instead of 4096: the ring is full before the first measure, and then an event more is an event less."""
TRACED_LINES = 25

DAEMON = """
import sys
from tests.soak.inside import begin
begin(int(sys.argv.pop(1)), traced=sys.argv.pop(1) == "traced")
from ploopfs.cli import main
sys.exit(main.main())
"""


@dataclass(frozen=True, slots=True)
class Inside:
    """`objects` counts those that the collector knows, by type; `blocks` is every block of Python's allocator.
    `inodes`, `files` and `directories` are the tables of the mount. `traced` are the lines that hold the most memory,
    in bytes, where that is traced."""

    objects: dict[str, int]
    blocks: int
    threads: list[str]
    tasks: int
    inodes: int
    files: int
    directories: int
    traced: dict[str, int]


def begin(fd: int, *, traced: bool) -> None:
    """Answer each SIGNAL with a line on `fd`."""
    import trio._core._thread_cache  # noqa: PLC0415

    from ploopfs.device.events import Events  # noqa: PLC0415

    setattr(trio._core._thread_cache, "IDLE_TIMEOUT", IDLE_THREAD_S)  # noqa: B010 - of another type there
    assert Events.__init__.__kwdefaults__ is not None
    Events.__init__.__kwdefaults__["capacity"] = RING_EVENTS
    if traced:
        tracemalloc.start(1)
    signal.signal(SIGNAL, lambda _number, _frame: _answer(fd, _frame))


def _answer(fd: int, _frame: FrameType | None) -> None:
    _sweep()
    gc.collect()
    blocks = sys.getallocatedblocks()
    line = json.dumps(_describe(blocks)).encode() + b"\n"
    while line:
        line = line[os.write(fd, line) :]


def _describe(blocks: int) -> dict[str, object]:
    import trio  # noqa: PLC0415

    everything = gc.get_objects()
    operations = next((each for each in everything if type(each).__qualname__ == "Operations"), None)
    objects = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in everything)
    traced: dict[str, int] = {}
    if tracemalloc.is_tracing():
        statistics = tracemalloc.take_snapshot().statistics("lineno")[:TRACED_LINES]
        traced = {f"{one.traceback[0].filename}:{one.traceback[0].lineno}": one.size for one in statistics}
    return {
        "objects": dict(objects),
        "blocks": blocks,
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "inodes": len(operations._inodes) if operations else 0,
        "files": len(operations._files) if operations else 0,
        "directories": len(operations._directories) if operations else 0,
        "traced": traced,
    }


def _sweep() -> None:
    """Nodes that left the tree are swept when their number has doubled; here now, so that it does not matter when."""
    for each in gc.get_objects():
        if type(each).__qualname__ == "Inodes":
            each._sweep()


class Asked:
    """The other end: `answers` is what the daemon writes to."""

    def __init__(self, pid: int, answers: int) -> None:
        self._pid, self._answers, self._rest = pid, answers, b""

    def ask(self, timeout_s: float) -> Inside:
        os.kill(self._pid, SIGNAL)
        poller = select.poll()
        poller.register(self._answers, select.POLLIN)
        while b"\n" not in self._rest:
            assert poller.poll(timeout_s * 1000), f"the daemon did not answer within {timeout_s} s"
            data = os.read(self._answers, 1 << 16)
            assert data, "the daemon has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return Inside(**json.loads(line))
