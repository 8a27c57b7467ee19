"""The machine of a recovery agent: one state, twelve events, one total table.

Everything that decides what an agent does next is in this file; how it does that is in agent.py. Knows nothing of
devices, storage or time.
"""

from enum import Enum, auto


class AgentState(Enum):
    """The value is the text of `ploopfs/agent`."""

    MANUAL = "manual"
    """The policy is that an operator recovers the device."""
    IDLE = "idle"
    """The device is not in standby."""
    PROBING = "probing"
    """It is, and the storage is asked until it is trusted again."""
    WAITING = "waiting"
    """An attempt has failed, or an operator is at work; the next probes come later."""
    RECOVERING = "recovering"
    """An attempt is under way."""
    GAVE_UP = "gave_up"
    """All attempts have failed; nothing happens until the next standby, unless an operator asks for it."""
    PAUSED = "paused"
    """An operator wants nothing to be done until he says `resume`."""


class AgentEvent(Enum):
    """What can happen to the machine."""

    LOST = auto()
    """The device went to standby."""
    RELAPSED = auto()
    """It did so soon after a recovery by the agent: the same outage goes on."""
    ENDED = auto()
    """The device left standby, or lost STANDBY_EN, by whosesoever doing."""
    HEALTHY = auto()
    """The storage is trusted again, or need not be asked."""
    DONE = auto()
    """The attempt ended, and the device has left standby."""
    FAILED = auto()
    """The attempt ended in vain."""
    EXHAUSTED = auto()
    """No attempt is left."""
    STOOD_BACK = auto()
    """Somebody else holds the queue, so nothing was attempted."""
    DUE = auto()
    """The time of waiting is over, or an operator said `now`."""
    PAUSE = auto()
    RESUME = auto()
    ARM = auto()
    """The policy became another one than `manual`."""
    DISARM = auto()
    """The policy became `manual`."""


_M, _I, _P, _W = AgentState.MANUAL, AgentState.IDLE, AgentState.PROBING, AgentState.WAITING
_R, _G, _Z = AgentState.RECOVERING, AgentState.GAVE_UP, AgentState.PAUSED

_COLUMNS = (_M, _I, _P, _W, _R, _G, _Z)
_ROWS: dict[AgentEvent, tuple[AgentState, ...]] = {
    #                      _M  _I  _P  _W  _R  _G  _Z
    AgentEvent.LOST:       (_M, _P, _P, _W, _R, _G, _Z),
    AgentEvent.RELAPSED:   (_M, _W, _P, _W, _R, _G, _Z),
    # An attempt under way is let finish: it closes what it has replaced, and a command may have more to do.
    AgentEvent.ENDED:      (_M, _I, _I, _I, _R, _I, _Z),
    AgentEvent.HEALTHY:    (_M, _I, _R, _W, _R, _G, _Z),
    AgentEvent.DONE:       (_M, _I, _P, _W, _I, _G, _Z),
    AgentEvent.FAILED:     (_M, _I, _P, _W, _W, _G, _Z),
    AgentEvent.EXHAUSTED:  (_M, _G, _P, _W, _G, _G, _Z),
    AgentEvent.STOOD_BACK: (_M, _I, _P, _W, _W, _G, _Z),
    AgentEvent.DUE:        (_M, _I, _P, _P, _R, _P, _Z),
    AgentEvent.PAUSE:      (_Z, _Z, _Z, _Z, _Z, _Z, _Z),
    # Where the device is by then is looked at afterwards.
    AgentEvent.RESUME:     (_M, _I, _P, _W, _R, _G, _I),
    AgentEvent.ARM:        (_I, _I, _I, _I, _I, _I, _Z),
    AgentEvent.DISARM:     (_M, _M, _M, _M, _M, _M, _Z),
}  # fmt: skip

TRANSITIONS: dict[tuple[AgentState, AgentEvent], AgentState] = {
    (before, event): after
    for event, row in _ROWS.items()
    for before, after in zip(_COLUMNS, row, strict=True)
}
