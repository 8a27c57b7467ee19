"""What the events say of the requests that standby delays: when it began, when it was over, when there was no room.

Knows nothing of why somebody waits. Invariant: every `held` is followed by one `released` before the next, and
`hold_refused` comes at most once per standby.
"""

from ploopfs.device.events import DeviceEvents
from ploopfs.device.waiting import Ticket, WaitingRoom
from ploopfs.errors import HoldFull


class HoldReport:
    """Of one queue. One story goes from the first request that waits in standby to the last that is let go out of it,
    however often standby comes back in between."""

    def __init__(self, events: DeviceEvents) -> None:
        self._events = events
        self._is_under_way = False
        self._passed = 0
        self._reported_full = False

    def new_standby(self) -> None:
        self._reported_full = False

    def began(self, room: WaitingRoom) -> None:
        """To be called when somebody may have begun to be held."""
        if room.held and not self._is_under_way:
            assert room.oldest is not None
            self._is_under_way, self._passed = True, 0
            self._events.emit("held", operation=room.oldest.op.value)

    def passed(self, ticket: Ticket) -> None:
        """It was let go."""
        if ticket.held_since_s is not None:
            self._passed += 1

    def ended(self, room: WaitingRoom, *, in_standby: bool) -> None:
        """To be called when that may be so."""
        if self._is_under_way and not room.held and not in_standby:
            self._is_under_way = False
            self._events.emit("released", requests=self._passed)

    def refused(self, room: WaitingRoom, error: HoldFull) -> None:
        if not self._reported_full:
            self._reported_full = True
            self._events.emit("hold_refused", held=room.held, bytes=room.held_bytes, text=str(error))
