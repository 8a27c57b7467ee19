"""Clusters of a disk that are being allocated or freed: who needs to do either waits for who has begun, and plans anew.

Knows nothing of what is done with them. Invariant: a cluster of the disk has one claim at a time, so between planning
and claiming nothing is awaited.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import trio


class Claims:
    """`clusters` is what each is about to have in the file, or has had: the map does not name it yet, or any more."""

    def __init__(self) -> None:
        self.clusters: dict[int, int] = {}
        self._waited_for: dict[int, trio.Event] = {}

    def take(self, slot: int, cluster: int) -> None:
        self.clusters[slot] = cluster

    def drop(self, slot: int) -> None:
        del self.clusters[slot]
        if self._waited_for and slot in self._waited_for:
            self._waited_for.pop(slot).set()

    @contextmanager
    def held(self, clusters: Mapping[int, int]) -> Iterator[None]:
        self.clusters.update(clusters)
        try:
            yield
        finally:
            for slot in clusters:
                self.drop(slot)

    async def wait_none(self, slots: Iterable[int]) -> bool:
        """True if somebody held one of these: things may have changed, plan again."""
        for slot in slots:
            if slot in self.clusters:
                await self._waited_for.setdefault(slot, trio.Event()).wait()
                return True
        return False
