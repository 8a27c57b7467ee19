"""The events of a mounted tree as a client reads them: `watch`, and `wait --event`.

Knows the format of the records and nothing of what they mean, but which of them are bad news.
"""

import argparse
import json
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ploopfs.bounds import MAX_RECORD_BYTES
from ploopfs.cli.exits import Exit
from ploopfs.cli.text import Colour, painted, say
from ploopfs.cli.tree import Tree
from ploopfs.errors import BadTree

EVENTS = "sys/fs/ploopfs/events"
READ_BYTES = 1 << 16
LAST_SECOND = 1e11
"""A time that every calendar can show."""
FIXED = ("seq", "time", "device", "event")
GAP = "gap"

_FACT = (str, int, float, type(None))
_OF_A_RECORD: dict[str, tuple[type, ...]] = {"time": (int, float), "device": (str,), "event": (str,)}
_OF_A_GAP: dict[str, tuple[type, ...]] = {"lost": (int,)}

COLOURS = {
    "standby_on": Colour.RED,
    "hold_timeout": Colour.RED,
    "hold_refused": Colour.RED,
    "agent_gave_up": Colour.RED,
    "gap": Colour.YELLOW,
    "warning": Colour.YELLOW,
    "aborted": Colour.YELLOW,
    "held": Colour.YELLOW,
    "standby_off": Colour.GREEN,
    "released": Colour.GREEN,
}


@dataclass(frozen=True, slots=True)
class Record:
    """One line: as it is, and what it says. A gap is a record without a device, of all of them."""

    line: str
    values: dict[str, Any]

    @property
    def event(self) -> str:
        return str(self.values["event"])

    def is_of(self, device: str | None) -> bool:
        return device is None or self.event == GAP or self.values["device"] == device


def _record(line: str) -> Record:
    """Raises BadTree for a line that is no record."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not all(isinstance(value, _FACT) for value in values.values()):
        raise BadTree(EVENTS, line, "an object with a name and a fact in each place")
    needed = _OF_A_GAP if values.get("event") == GAP else _OF_A_RECORD
    if not all(isinstance(values.get(name), kind) for name, kind in needed.items()):
        raise BadTree(EVENTS, line, f"an object with {', '.join(needed)}")
    if not 0 <= values.get("time", 0) < LAST_SECOND:
        raise BadTree(EVENTS, line, "a time in seconds")
    return Record(line, values)


class EventFile:
    """An open file of the events: at first every record that is still held can be read, then each that comes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""

    def read(self) -> Iterator[Record]:
        """What there is to read now."""
        while data := os.read(self._fd, READ_BYTES):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                yield _record(line.decode("utf-8", "surrogateescape"))
            if len(self._rest) > MAX_RECORD_BYTES:
                raise BadTree(EVENTS, "endless", f"records of at most {MAX_RECORD_BYTES} bytes")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until there is something to read; false if the time ran out."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(None if timeout_s is None else max(0, timeout_s) * 1000))

    def wait_for_either(self, output_fd: int) -> bool:
        """Until there is something to read; false if nobody is left who reads `output_fd`."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(output_fd, 0)
        return output_fd not in dict(poller.poll())


@contextmanager
def opened_events(tree: Tree) -> Iterator[EventFile]:
    fd = os.open(os.path.join(tree.mountpoint, EVENTS), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield EventFile(fd)
    finally:
        os.close(fd)


def watch(arguments: argparse.Namespace) -> int:
    """Print what happens, until interrupted."""
    tree, device = Tree.find(arguments.mount), arguments.device
    if device is not None:
        tree.check_device(device)
    # As every other filter does whose reader goes away.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    with opened_events(tree) as events:
        for record in deque((one for one in events.read() if one.is_of(device)), maxlen=arguments.last):
            _print(record, arguments.json)
        sys.stdout.flush()
        while not arguments.no_follow and events.wait_for_either(sys.stdout.fileno()):
            for record in events.read():
                if record.is_of(device):
                    _print(record, arguments.json)
            sys.stdout.flush()
    return Exit.OK


def wait_event(
    tree: Tree,
    device: str | None,
    names: Collection[str],
    timeout_s: float | None,
    *,
    after: str | None = None,
    listening: Callable[[], None] = lambda: None,
) -> Record | None:
    """The first such event from now on, or from the first event `after` on; None if the time ran out. `listening` is
    called when none can be missed."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with opened_events(tree) as events:
        deque(events.read(), maxlen=0)
        listening()
        while True:
            left_s = None if deadline is None else deadline - time.monotonic()
            if not events.wait(left_s):
                return None
            for record in events.read():
                if after is None and record.event in names and record.is_of(device):
                    return record
                if record.event == after:
                    after = None


def recent(tree: Tree, device: str, count: int) -> list[Record]:
    """The last events of a device."""
    with opened_events(tree) as events:
        return list(deque((one for one in events.read() if one.is_of(device)), maxlen=count))


def as_text(record: Record) -> str:
    """One line: when, whose, what, and the facts as `name=value`, in colour."""
    values = record.values
    if record.event == GAP:
        return painted(f"... {values['lost']} events were overwritten before they were read", Colour.YELLOW)
    seconds = float(values["time"])
    when = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{int(seconds % 1 * 1000):03d}"
    facts = " ".join(f"{name}={_shown(value)}" for name, value in values.items() if name not in FIXED)
    what = painted(f"{record.event:<14}", _colour(record))
    return f"{painted(when, Colour.DIM)}  {values['device'] or '-':<8}  {what}  {facts}".rstrip()


def _colour(record: Record) -> Colour | None:
    """An operation is as good as its result."""
    if "result" in record.values:
        return Colour.GREEN if record.values["result"] == "ok" else Colour.RED
    return COLOURS.get(record.event)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    return json.dumps(text) if not text or " " in text or "\n" in text else text


def _print(record: Record, as_json: bool) -> None:
    say(record.line if as_json else as_text(record))
