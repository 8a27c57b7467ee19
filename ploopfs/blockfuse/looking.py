"""How long a connection looks for the next request before it waits for it.

Knows neither who looks nor how.
"""

from ploopfs.bounds import MIB, POLL_DEEP_US, POLL_MIB_US, POLL_TURN_US, POLL_US

_POLL_NS, _DEEP_NS, _MIB_NS, _TURN_NS = (1000 * us for us in (POLL_US, POLL_DEEP_US, POLL_MIB_US, POLL_TURN_US))


def look_ns(moved_bytes: int) -> int:
    """Of whoever has just had so many bytes moved: with many he takes longer to ask again. 12 to 18 % more writes of
    1 MiB, and 6 % more reads, than with the same time for all."""
    return _POLL_NS + moved_bytes * _MIB_NS // MIB


def deep_look_ns(moved_bytes: int) -> int:
    """Likewise, of a writer who has several requests under way: he has all their answers to look at before he asks
    again. A quarter less CPU time for an allocating write of 4 KiB at depth 16, 8 % for one in place."""
    return look_ns(moved_bytes) - _POLL_NS + _DEEP_NS


def is_soon(waited_ns: int, moved_bytes: int, *, had_writes: bool) -> bool:
    """Whether who has asked again after so long makes no pause. With writes under way it is the storage that took the
    time: with the same measure for all there were 20 % fewer writes of 4 KiB at depth 16."""
    return waited_ns < 2 * (_TURN_NS if had_writes else look_ns(moved_bytes))
