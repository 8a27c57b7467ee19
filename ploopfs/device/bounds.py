"""How much one device's request queue may hold, and for how long. Knows nothing of queues."""

from dataclasses import dataclass

from ploopfs import bounds


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many requests a queue holds (waiting and in flight), and how long a request or a quiesce may wait."""

    requests: int = bounds.REQUESTS
    park_timeout_s: float = bounds.PARK_TIMEOUT_S
    quiesce_timeout_s: float = bounds.QUIESCE_TIMEOUT_S
    held_requests: int = bounds.HELD_REQUESTS
    held_bytes: int = bounds.HELD_MIB * bounds.MIB
    unflushed_bytes: int = bounds.UNFLUSHED_MIB * bounds.MIB


DEFAULT_BOUNDS = Bounds()
