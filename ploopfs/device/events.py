"""What happened to the devices of one daemon: numbered records in a bounded ring.

Everybody who changes something reports it here, and nobody waits for who reads. Knows nothing of files or formats.
Invariants: sequence numbers grow by one, and the ring holds the last `capacity` records without a gap. Events and their
facts are listed in EVENTS, so that a script can rely on the names.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ploopfs.bounds import MAX_EVENTS, MAX_FACT_CHARACTERS
from ploopfs.device.signal import Signal

Fact = str | int | float | bool | None

EVENTS = {
    "standby_on": "the queue was switched into standby; the facts of the reason",
    "standby_off": "the queue left standby; `seconds` it was in it",
    "attached": "STANDBY_EN was set",
    "detached": "STANDBY_EN was cleared",
    "warning": "an inconsistent use of key and bits (`text`); each once",
    "aborted": "vz7's aborted state changed (`aborted`)",
    "replace_begin": "an operation that puts another stack in force started; `operation`, `level`, `path`",
    "replace_end": "it ended; the same, `result` (ok or an errno's name), `error` in words, `generation`",
    "held": "the first request began to wait in standby; its `operation`",
    "released": "standby is over and nobody is held any more; `requests` that were let go and did not fail before",
    "hold_timeout": "a held request waited for too long and failed; its `operation`, `timeout_ms`",
    "hold_refused": "the bounds of held requests were reached, and requests are refused (once per standby); `held`, "
    "`bytes`, `text`",
    "device_added": "a device came; `flavour`, `image`, `bytes`",
    "device_removed": "a device went; `clean`",
    "module_loaded": "a module was loaded (`module`)",
    "module_unloaded": "a module was unloaded (`module`)",
}
"""Every event with its meaning; `emit` refuses others. Packages above add theirs with `declare`."""

FIXED = ("seq", "time", "device", "event")
"""The keys of every line, in their order; no fact bears such a name."""


def declare(event: str, meaning: str) -> str:
    """Make an event known; the result is its name."""
    EVENTS[event] = meaning
    return event


@dataclass(frozen=True, slots=True)
class Record:
    """One event; `device` is empty if it is of no single device. `time_s` is wall-clock time."""

    sequence: int
    time_s: float
    device: str
    event: str
    facts: dict[str, Fact]

    def as_json(self) -> str:
        """One line without its newline; the fixed keys come first."""
        values = (self.sequence, round(self.time_s, 6), self.device, self.event)
        return json.dumps(dict(zip(FIXED, values, strict=True)) | self.facts)


class Events:
    """`changed` fires after each record. `next_sequence` is the number that the next record gets."""

    def __init__(self, *, capacity: int = MAX_EVENTS) -> None:
        self.changed = Signal()
        self.next_sequence = 1
        self._capacity = capacity
        self._ring: list[Record] = []

    @property
    def first_sequence(self) -> int:
        """The oldest record still held, or the next one if there is none."""
        return self.next_sequence - len(self._ring)

    def emit(self, device: str, event: str, **facts: Fact) -> None:
        assert event in EVENTS, event
        assert facts.keys().isdisjoint(FIXED), facts
        record = Record(self.next_sequence, time.time(), device, event, {key: _cut(facts[key]) for key in facts})
        if len(self._ring) < self._capacity:
            self._ring.append(record)
        else:
            self._ring[self._place(record.sequence)] = record
        self.next_sequence += 1
        self.changed.fire()

    def record(self, sequence: int) -> Record:
        """A record that is still held: `first_sequence` <= `sequence` < `next_sequence`."""
        record = self._ring[self._place(sequence)]
        assert record.sequence == sequence, (record.sequence, sequence)
        return record

    def since(self, sequence: int) -> Iterator[Record]:
        """The records from `sequence` on that are still held."""
        return map(self.record, range(max(sequence, self.first_sequence), self.next_sequence))

    def _place(self, sequence: int) -> int:
        return (sequence - 1) % self._capacity


def _cut(fact: Fact) -> Fact:
    """A table or a path that somebody wrote is part of an error, and the ring keeps thousands of records."""
    if isinstance(fact, str) and len(fact) > MAX_FACT_CHARACTERS:
        return f"{fact[:MAX_FACT_CHARACTERS]}..."
    return fact


class DeviceEvents:
    """The events of one device, without its name at every call."""

    __slots__ = ("_device", "_events")

    def __init__(self, events: Events, device: str) -> None:
        self._events, self._device = events, device

    def emit(self, event: str, **facts: Fact) -> None:
        self._events.emit(self._device, event, **facts)
