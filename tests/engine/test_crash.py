"""A power failure at any moment: what was flushed is there, what was not is old or new, and the image is never broken.

One run of random operations is journaled; then, for many moments of it, the images that the failure may leave are made
from the journal, opened again and compared with the states of the model since the last flush.
"""

from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
import trio

from ploopfs.engine.counters import Counters
from ploopfs.engine.opening import open_stack
from ploopfs.image.check import Verdict
from ploopfs.image.header import MUTABLE_START, V1, V2
from tests.engine.disk import Disk, Shape, draw_change, verdict
from tests.engine.journal import Journal, JournalFiles, images_after_crash
from tests.engine.places import MemoryPlace

SHAPES = {
    "v2 alone": Shape(depth=1, version=V2),
    "v1 alone": Shape(depth=1, version=V1),
    "v2 on two": Shape(depth=3, version=V2),
    "v2 on raw": Shape(depth=2, raw_base=True, raw_short_bytes=4096),
}
OPERATIONS = 25
MOMENTS = 80


class Run:
    """`states` are the model's contents in time: (tick from which it may show, is it flushed, content)."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.random = Random(seed)
        self.journal = Journal()
        self.place = MemoryPlace()
        self.disk = Disk(self.place, shape, self.random, JournalFiles(self.place.files, self.journal))
        self.before = {self.disk.top_path: self.place.content(self.disk.top_path)}
        self.states: list[tuple[int, bool, bytes]] = []
        trio.run(self._run)

    async def _run(self) -> None:
        self._note(flushed=True)
        await self.disk.open()
        for _ in range(OPERATIONS):
            change = draw_change(len(self.disk.model), self.random)
            self.disk.run_model(change)
            if change.kind in ("write", "discard"):
                self._note(flushed=False)
            if change.kind != "read":
                await self.disk.run_engine(change)
            if change.kind == "flush" or (change.kind == "write" and change.fua):
                self._note(flushed=True)
        await self.disk.stack.aclose(clean=True)
        self._note(flushed=True)

    def _note(self, *, flushed: bool) -> None:
        self.states.append((self.journal.tick(), flushed, bytes(self.disk.model.content)))

    def possible_at(self, at: int) -> list[bytes]:
        """The last flushed content, and every later one that had begun."""
        begun = [state for state in self.states if state[0] <= at]
        last = max(index for index, state in enumerate(begun) if state[1])
        return [content for _tick, _flushed, content in begun[last:]]

    def moments(self) -> Iterator[int]:
        end = self.journal.tick()
        yield from sorted({*self.random.sample(range(1, end), min(end - 1, MOMENTS)), end})


def content_after(run: Run, image: bytes) -> bytes:
    """What a stack over this top holds; it is opened as it is, mark or no mark, so for reading."""
    place = MemoryPlace()
    for path, content in {**run.disk.frozen, run.disk.top_path: image}.items():
        place.put(path, content)

    async def read() -> bytes:
        stack = await open_stack(place.files, run.disk.spec, read_only=True, counters=Counters())
        return bytes(await stack.read(0, stack.size_bytes))

    return trio.run(read)


def assert_mixed_from(states: list[bytes], content: bytes) -> None:
    """Each byte is that of one of the states."""
    got = np.frombuffer(content, np.uint8)
    known = np.zeros(len(got), dtype=bool)
    for state in states:
        known |= got == np.frombuffer(state, np.uint8)
    strange = np.flatnonzero(~known)
    assert not len(strange), f"{len(strange)} bytes from {strange[0]} on are none that was ever written there"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_power_failure_loses_nothing_that_was_flushed(shape: Shape, seed: int) -> None:
    run = Run(shape, seed)
    for at in run.moments():
        for path, image in images_after_crash(run.before, run.journal, at, run.random):
            assert verdict(image, path).verdict in (Verdict.CLEAN, Verdict.NOT_CLOSED), at
            assert_mixed_from(run.possible_at(at), content_after(run, image))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_image_is_marked_from_before_the_first_change_until_after_the_last(shape: Shape) -> None:
    run = Run(shape, seed=9)
    changes = [entry for entry in run.journal.of("write", "truncate", "punch hole") if entry.offset != MUTABLE_START]
    first, last = changes[0].begun, max(entry.ended or 0 for entry in changes)
    for at in run.moments():
        ((_path, image),) = images_after_crash(run.before, run.journal, at, run.random)
        if first <= at <= last:
            assert verdict(image).verdict is Verdict.NOT_CLOSED


def test_the_check_of_a_mixture_sees_a_byte_that_was_never_written() -> None:
    states = [bytes(100), b"a" * 100]
    assert_mixed_from(states, b"a" * 50 + bytes(50))
    with pytest.raises(AssertionError, match="1 bytes from 7 on"):
        assert_mixed_from(states, b"a" * 7 + b"b" + bytes(92))
