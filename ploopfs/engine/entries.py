"""Entries of the map that are written by themselves, each four bytes, and not with the whole page that they are in.

So who allocates waits for nobody else's. Knows nothing of what they name. Invariant: no whole page is made while one is
on its way, as it would not have it.
"""

import trio

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import Delta
from ploopfs.image.map import Map


class Entries:
    """Of the top's map. None may be `begun` while a page is made or written."""

    def __init__(self, top: Delta, stack_map: Map, counters: Counters) -> None:
        self._top, self._map, self._counters = top, stack_map, counters
        self._under_way = 0
        self._none = trio.lowlevel.ParkingLot()

    def begun(self) -> None:
        self._under_way += 1

    def ended(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._none.unpark_all()

    def take(self, slot: int, cluster: int) -> None:
        """Into memory: the file has it."""
        self._map.assign(slot, cluster)
        self.took({slot: cluster})

    def took(self, entries: dict[int, int]) -> None:
        """Likewise, each written by itself, where the map in memory has them."""
        self._counters.map_single_writes += len(entries)
        self._top.take_entries(entries)

    async def write(self, slot: int, cluster: int) -> None:
        """After a failure it is uncertain what the file has."""
        assert self._top.bat is not None
        self.begun()
        try:
            await self._top.write(*self._top.bat.entry(slot, cluster))
        except BaseException:
            self._top.uncertain_slots.add(slot)
            raise
        else:
            self.take(slot, cluster)
        finally:
            self.ended()

    async def wait_none(self) -> None:
        while self._under_way:
            await self._none.park()
