"""What one open descriptor of the events does: it reads on from where it is, and never waits.

Like /dev/kmsg: it starts with the oldest record that is still held; nothing more to read is an end of file, and later
reads go on. Knows nothing of FUSE. Invariant: every record is read once by each descriptor, or counted in a gap.
"""

import json
import select

from ploopfs.device.events import Events

READABLE = select.POLLIN | select.POLLRDNORM


class OpenStream:
    """One open file; offsets mean nothing to it."""

    __slots__ = ("_events", "_next", "_rest")

    def __init__(self, events: Events) -> None:
        self._events = events
        self._next = events.first_sequence
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Whole lines, as many as fit; a record that alone is longer is continued by the next read."""
        taken, self._rest = bytearray(self._rest), b""
        while len(taken) < size and (text := self._next_line()):
            if taken and len(taken) + len(text) > size:
                self._rest = text
                break
            taken += text
        if len(taken) > size:
            self._rest = bytes(taken[size:])
        return bytes(taken[:size])

    def poll(self) -> int:
        """READABLE while there is something to read."""
        return READABLE if self._rest or self._next < self._events.next_sequence else 0

    def _next_line(self) -> bytes:
        first = self._events.first_sequence
        if self._next < first:
            text = json.dumps({"seq": first - 1, "event": "gap", "lost": first - self._next})
            self._next = first
        elif self._next < self._events.next_sequence:
            text = self._events.record(self._next).as_json()
            self._next += 1
        else:
            return b""
        return f"{text}\n".encode("utf-8", "surrogateescape")
