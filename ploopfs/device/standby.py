"""The standby machine of one request queue: one state, four events, one total table.

Everything that decides when a queue enters or leaves standby is in this file. The queue bits of the specification map
to the state so that an impossible pair cannot be written: QUEUE_FLAG_STANDBY_EN is `state is not NOT_SUPPORTED`,
QUEUE_FLAG_STANDBY is `state is ON`. Knows nothing of requests, stacks or the tree."""

import errno
import logging
import time
from dataclasses import dataclass
from enum import Enum, auto

from ploopfs.device.signal import Signal

log = logging.getLogger(__name__)

STANDBY_ERRNOS = frozenset({errno.EBUSY, errno.ENOTCONN, errno.EIO})
"""The storage's answers that mean standby: the lease was stolen, the mount is gone, the store failed."""


class State(Enum):
    """The value is the text of `queue/standby`."""

    NOT_SUPPORTED = "not supported"
    """STANDBY_EN is out: nobody has promised to recover this device."""
    OFF = "off"
    """STANDBY_EN is in; the queue processes requests."""
    ON = "on"
    """STANDBY_EN and STANDBY are in; every request is refused until the top delta has been replaced."""


class Event(Enum):
    """What can happen to the machine."""

    ATTACHED = auto()
    """A target took the device and promises to clear standby (sets STANDBY_EN)."""
    DETACHED = auto()
    """The target let go of the device (clears STANDBY_EN)."""
    STORAGE_LOST = auto()
    """A request of the current generation ended with one of STANDBY_ERRNOS, with the global key in."""
    RECOVERED = auto()
    """The top delta was replaced."""


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.NOT_SUPPORTED, Event.ATTACHED): State.OFF,
    (State.NOT_SUPPORTED, Event.DETACHED): State.NOT_SUPPORTED,
    (State.NOT_SUPPORTED, Event.STORAGE_LOST): State.NOT_SUPPORTED,
    (State.NOT_SUPPORTED, Event.RECOVERED): State.NOT_SUPPORTED,
    (State.OFF, Event.ATTACHED): State.OFF,
    (State.OFF, Event.DETACHED): State.NOT_SUPPORTED,
    (State.OFF, Event.STORAGE_LOST): State.ON,
    (State.OFF, Event.RECOVERED): State.OFF,
    (State.ON, Event.ATTACHED): State.ON,
    # Both bits are cleared: nobody is left who promised to clear STANDBY, and a later attach must not show a stale
    # `on`.
    (State.ON, Event.DETACHED): State.NOT_SUPPORTED,
    (State.ON, Event.STORAGE_LOST): State.ON,
    (State.ON, Event.RECOVERED): State.OFF,
}


@dataclass(slots=True)
class StandbyKey:
    """The global static key `ploop_standby_check`: in while the target subsystem is loaded."""

    enabled: bool = False


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a queue is in standby: the errno and the operation that met it."""

    errno: int
    text: str


class Standby:
    """The machine of one queue, with the log line of each transition and the two fuses.

    `changed` fires on every change of state. `since_s` is the wall-clock time of the last change.
    """

    def __init__(self, device_name: str, key: StandbyKey) -> None:
        self.state = State.NOT_SUPPORTED
        self.reason: Reason | None = None
        self.since_s = time.time()
        self.changed = Signal()
        self._name = device_name
        self._key = key
        self._warned: set[str] = set()

    @property
    def armed(self) -> bool:
        """Both fuses are in: the global key and STANDBY_EN. Otherwise nothing on the queue is touched or checked."""
        return self._key.enabled and self.state is not State.NOT_SUPPORTED

    @property
    def refuses(self) -> bool:
        """The check at the start of every request."""
        return self.state is State.ON and self._key.enabled

    def attach(self) -> None:
        self._apply(Event.ATTACHED)
        if not self._key.enabled:
            self._warn_once("STANDBY_EN is set while ploop_standby_check is disabled")

    def detach(self) -> None:
        if self.state is State.ON:
            self._warn_once("STANDBY_EN was cleared in standby mode; STANDBY is cleared with it")
        self._apply(Event.DETACHED)

    def storage_lost(self, reason: Reason) -> bool:
        """The check at the end of a failed request; true if the queue is now (or was already) in standby."""
        if reason.errno not in STANDBY_ERRNOS:
            return False
        if not self.armed:
            if self.state is not State.NOT_SUPPORTED:
                self._warn_once("STANDBY_EN is set while ploop_standby_check is disabled")
            return False
        if self.state is State.OFF:
            self.reason = reason
            log.warning("%s was switched into the standby mode", self._name)
            log.info("%s: reason: %s", self._name, reason.text)
        self._apply(Event.STORAGE_LOST)
        return True

    def recovered(self) -> None:
        was_on = self.state is State.ON
        self._apply(Event.RECOVERED)
        if was_on:
            log.info("%s left the standby mode", self._name)

    def _apply(self, event: Event) -> None:
        after = TRANSITIONS[self.state, event]
        if after is self.state:
            return
        self.state = after
        self.since_s = time.time()
        if after is not State.ON:
            self.reason = None
        self.changed.fire()

    def _warn_once(self, inconsistency: str) -> None:
        """An inconsistent use of key and bits is only reported, never corrected (two fuses, SEED)."""
        if inconsistency not in self._warned:
            self._warned.add(inconsistency)
            log.warning("%s: %s", self._name, inconsistency)
