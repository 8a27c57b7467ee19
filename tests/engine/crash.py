"""A run of random operations on a stack and its model, of which a power failure may end any at any moment."""

from random import Random

import trio

from tests.engine.disk import Change, Disk, Shape, draw_change, draw_disjoint
from tests.engine.places import MemoryPlace
from tests.engine.power import USUAL, Effort, Story, assert_survives

OPERATIONS = 25


class Run:
    """`together`: so many operations at a time, on disjoint ranges, each step of which lets the others run. `soon`:
    what can be written without a task is, and room is made ahead."""

    def __init__(
        self, shape: Shape, seed: int, *, operations: int = OPERATIONS, together: int = 1, soon: bool = False
    ) -> None:
        self.random = Random(seed)
        self.operations, self.together = operations, together
        place = MemoryPlace()
        self.disk = Disk(place, shape, self.random)
        self.disk.writes_soon = soon
        images = {spec.path: place.content(spec.path) for spec in self.disk.specs}
        self.story = Story(images, shuffle=Random(seed) if together > 1 else None)
        # What is known of the images stays with the disk; the story has files of its own.
        place.memory, self.disk.files = self.story.memory, self.story.files
        self.story.begins_with(self.disk.spec, self.disk.model.content)
        trio.run(self._run)

    async def _run(self) -> None:
        await self.disk.open()
        await self.operate()
        self.note(closing=True)
        await self.disk.stack.aclose(clean=True)
        self.note(flushed=True, closing=True)

    async def operate(self) -> None:
        for _ in range(self.operations // self.together):
            if self.disk.writes_soon and self.random.random() < 0.5:
                assert self.disk.stack.room is not None
                await self.disk.stack.room.make()
            if self.together == 1:
                await self.operation(draw_change(len(self.disk.model), self.random))
            else:
                await self._several(draw_disjoint(len(self.disk.model), self.together, self.random))

    async def operation(self, change: Change) -> None:
        self.disk.run_model(change)
        if change.kind not in ("read", "flush"):
            self.note()
        if change.kind != "read":
            await self.disk.run_engine(change)
        if change.kind == "flush" or (change.kind == "write" and change.fua):
            self.note(flushed=True)

    async def _several(self, changes: list[Change]) -> None:
        for change in changes:
            self.disk.run_model(change)
        self.note()
        async with trio.open_nursery() as nursery:
            for change in changes:
                if change.kind != "read":
                    nursery.start_soon(self.disk.run_engine, change)
        if self.random.random() < 0.4:
            await self.disk.stack.flush()
            self.note(flushed=True)

    def note(self, *, flushed: bool = False, closing: bool = False) -> None:
        self.story.shows(self.disk.spec, self.disk.model.content, flushed=flushed, closing=closing)


def assert_survives_any_power_failure(run: Run, effort: Effort = USUAL) -> int:
    """How many outcomes were looked at."""
    return trio.run(assert_survives, run.story, run.random, effort)
