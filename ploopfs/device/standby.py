"""The standby machine of one request queue: one state, four events, one total table.

Everything that decides when a queue enters or leaves standby is in this file. The queue bits of the specification map
to the state so that an impossible pair cannot be written: QUEUE_FLAG_STANDBY_EN is `state is not NOT_SUPPORTED`,
QUEUE_FLAG_STANDBY is `state is ON`. Knows nothing of requests, stacks or the tree."""

import errno
import logging
import time
from dataclasses import dataclass
from enum import Enum, auto

from ploopfs.device.events import DeviceEvents, Events, Fact
from ploopfs.device.signal import Signal
from ploopfs.errors import BackendError

log = logging.getLogger(__name__)

STANDBY_ERRNOS = frozenset({errno.EBUSY, errno.ENOTCONN, errno.EIO})
"""The storage's answers that mean standby: the lease was stolen, the mount is gone, the store failed."""


def tells_of_loss(error: BackendError) -> bool:
    """Whether the storage was gone, or has failed to take something. EIO of a read is a bad sector."""
    return error.errno in STANDBY_ERRNOS and (error.errno, error.operation) != (errno.EIO, "read")


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


class StandbyKey:
    """The global static key `ploop_standby_check`: in while the target subsystem is loaded. `changed` fires when it is
    put in or taken out."""

    __slots__ = ("_enabled", "changed")

    def __init__(self, enabled: bool = False) -> None:
        self._enabled = enabled
        self.changed = Signal()

    @property
    def enabled(self) -> bool:
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        if enabled is not self._enabled:
            self._enabled = enabled
            self.changed.fire()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a queue is in standby: the errno and the operation that met it, in bytes of the file, on which delta.

    `level` is None for a file that is no delta of the stack in force.
    """

    errno: int
    operation: str
    file: str
    offset: int = 0
    length: int = 0
    level: int | None = None

    @classmethod
    def of(cls, error: BackendError, level: int | None) -> "Reason":
        return cls(
            errno=error.errno,
            operation=error.operation,
            file=error.path,
            offset=error.offset,
            length=error.length,
            level=level,
        )

    @property
    def facts(self) -> dict[str, Fact]:
        """In the order in which they are shown; the file comes last, since its name may hold blanks."""
        return {
            "errno": errno.errorcode.get(self.errno, str(self.errno)),
            "operation": self.operation.replace(" ", "_"),
            "offset": self.offset,
            "length": self.length,
            "level": self.level,
            "file": self.file,
        }

    def __str__(self) -> str:
        return " ".join(f"{name}={'-' if value is None else value}" for name, value in self.facts.items())


class Standby:
    """The machine of one queue, with the log line of each transition and the two fuses.

    `changed` fires on every change of state. `since_s` is the wall-clock time of the last change. `entered` is how
    often standby was entered.
    """

    def __init__(self, device_name: str, key: StandbyKey, events: DeviceEvents | None = None) -> None:
        self.state = State.NOT_SUPPORTED
        self.reason: Reason | None = None
        self.since_s = time.time()
        self._since_ns = time.monotonic_ns()
        self.changed = Signal()
        self.entered = 0
        self._ended_ns = 0
        self._name = device_name
        self._key = key
        self._events = events or DeviceEvents(Events(), device_name)
        self._warned: set[str] = set()

    @property
    def seconds(self) -> float:
        """For how long the queue has been in standby, all times together."""
        present_ns = time.monotonic_ns() - self._since_ns if self.state is State.ON else 0
        return (self._ended_ns + present_ns) / 1e9

    @property
    def armed(self) -> bool:
        """Both fuses are in: the global key and STANDBY_EN. Otherwise nothing on the queue is touched or checked."""
        return self._key.enabled and self.state is not State.NOT_SUPPORTED

    @property
    def refuses(self) -> bool:
        """The check at the start of every request."""
        return self.state is State.ON and self._key.enabled

    def means_standby(self, storage_errno: int) -> bool:
        """Whether a request that ended with this errno means standby, the fuses being as they are."""
        return storage_errno in STANDBY_ERRNOS and self.armed

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
            log.info("%s: reason: %s", self._name, reason)
        self._apply(Event.STORAGE_LOST)
        return True

    def recovered(self) -> None:
        was_on = self.state is State.ON
        self._apply(Event.RECOVERED)
        if was_on:
            log.info("%s left the standby mode", self._name)

    def _apply(self, event: Event) -> None:
        before, after = self.state, TRANSITIONS[self.state, event]
        if after is before:
            return
        now_ns = time.monotonic_ns()
        was_in_it_ns = now_ns - self._since_ns
        if before is State.ON:
            self._ended_ns += was_in_it_ns
        self.entered += after is State.ON
        self.state, self.since_s, self._since_ns = after, time.time(), now_ns
        if after is not State.ON:
            self.reason = None
        self._report(before, was_in_it_ns / 1e9)
        self.changed.fire()

    def _report(self, before: State, was_in_it_s: float) -> None:
        match before, self.state:
            case State.OFF, State.ON:
                self._events.emit("standby_on", **(self.reason.facts if self.reason else {}))
            case State.ON, _:
                self._events.emit("standby_off", seconds=round(was_in_it_s, 3))
            case State.NOT_SUPPORTED, _:
                self._events.emit("attached")
        if self.state is State.NOT_SUPPORTED:
            self._events.emit("detached")

    def _warn_once(self, inconsistency: str) -> None:
        """An inconsistent use of key and bits is only reported, never corrected (two fuses, SEED)."""
        if inconsistency not in self._warned:
            self._warned.add(inconsistency)
            log.warning("%s: %s", self._name, inconsistency)
            self._events.emit("warning", text=inconsistency)
