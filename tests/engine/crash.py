"""A run of operations that is journaled, and what the disk may hold when a power failure ends it at any moment.

The images that the failure may leave are made from the journal, opened again and compared with the states of the model
since the last flush.
"""

from collections.abc import Iterator
from random import Random

import numpy as np
import trio

from ploopfs.engine.counters import Counters
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.image.check import Verdict
from tests.engine.disk import MODELLED, Disk, Shape, draw_change, verdict
from tests.engine.journal import Journal, JournalFiles, images_after_crash
from tests.engine.model import CLUSTER_BYTES
from tests.engine.places import MemoryPlace

OPERATIONS = 25
MOMENTS = 80


class Run:
    """`states` are the model's contents in time: (tick from which it may show, is it flushed, content). `clusters` are
    the sizes that the disk has had, `specs` the stacks that it has consisted of, from which tick on."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.random = Random(seed)
        self.journal = Journal()
        self.place = MemoryPlace()
        self.disk = Disk(self.place, shape, self.random, JournalFiles(self.place.files, self.journal))
        self.before = {self.disk.top_path: self.place.content(self.disk.top_path)}
        self.clusters = {self.disk.clusters}
        self.lower = dict(self.disk.frozen)
        self.specs = [(0, self.disk.spec)]
        self.states: list[tuple[int, bool, bytes]] = []
        trio.run(self._run)

    async def _run(self) -> None:
        self.note(flushed=True)
        await self.disk.open()
        await self.operate()
        await self.disk.stack.aclose(clean=True)
        self.note(flushed=True)

    async def operate(self) -> None:
        for _ in range(OPERATIONS):
            change = draw_change(len(self.disk.model), self.random)
            self.disk.run_model(change)
            if change.kind in ("write", "discard"):
                self.note(flushed=False)
            if change.kind != "read":
                await self.disk.run_engine(change)
            if change.kind == "flush" or (change.kind == "write" and change.fua):
                self.note(flushed=True)

    def note(self, *, flushed: bool) -> None:
        self.states.append((self.journal.tick(), flushed, bytes(self.disk.model.content)))

    def possible_at(self, at: int) -> list[bytes]:
        """The last flushed content, and every later one that had begun."""
        begun = [state for state in self.states if state[0] <= at]
        last = max(index for index, state in enumerate(begun) if state[1])
        return [content for _tick, _flushed, content in begun[last:]]

    def spec_at(self, at: int) -> StackSpec:
        return [spec for tick, spec in self.specs if tick <= at][-1]

    def moments(self) -> Iterator[int]:
        end = self.journal.tick()
        yield from sorted({*self.random.sample(range(1, end), min(end - 1, MOMENTS)), end})


def content_after(run: Run, image: bytes, at: int, *, read_only: bool = True) -> bytes:
    """What a stack over this top holds. For reading it is opened as it is, mark or no mark; for writing it is closed
    first, and must be sound when it is closed again."""
    place = MemoryPlace()
    for path, content in {**run.lower, run.disk.top_path: image}.items():
        place.put(path, content)

    async def read() -> bytes:
        stack = await open_stack(place.files, run.spec_at(at), read_only=read_only, counters=Counters())
        assert len(stack.map) in run.clusters
        assert not any(stack.map.owned_by_top(slot) for slot in range(MODELLED, len(stack.map)))
        content = bytes(await stack.read(0, min(stack.size_bytes, MODELLED * CLUSTER_BYTES)))
        await stack.aclose(clean=True)
        assert read_only or verdict(place.content(run.disk.top_path)).verdict is Verdict.CLEAN
        return content

    return trio.run(read)


def assert_survives_any_power_failure(run: Run) -> None:
    for at in run.moments():
        for path, image in images_after_crash(run.before, run.journal, at, run.random):
            assert verdict(image, path).verdict in (Verdict.CLEAN, Verdict.NOT_CLOSED), at
            assert_mixed_from(run.possible_at(at), content_after(run, image, at))


def assert_mixed_from(states: list[bytes], content: bytes) -> None:
    """Each byte is that of one of the states, of which the first is certain to have been reached; what a smaller disk
    did not have are zeroes."""
    assert len(content) >= len(states[0])
    got = np.frombuffer(content, np.uint8)
    known = np.zeros(len(got), dtype=bool)
    for state in states:
        known |= got == np.frombuffer(state[: len(content)].ljust(len(content), b"\0"), np.uint8)
    strange = np.flatnonzero(~known)
    assert not len(strange), f"{len(strange)} bytes from {strange[0]} on are none that was ever written there"
