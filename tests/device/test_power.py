"""The power fails while one top takes the place of another: whichever of the two is opened afterwards is sound, has
what was flushed to it, and has nothing else."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random

import pytest
import trio
from trio.testing import MockClock

from ploopfs.device.flavour import VZ7, VZ9, Flavour
from ploopfs.device.messages import answer
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.file import Files
from ploopfs.engine.opening import StackSpec
from ploopfs.testing.faulty import Faults, FaultyFiles
from tests.device.mapped import line, mapper_of
from tests.device.rig import BASE, CLUSTER, CONTENT, MIDDLE, NEW, STACK, TOP, Rig, rig_of, three_deltas
from tests.engine.journal import JournalFiles
from tests.engine.power import Story, assert_survives

pytestmark = pytest.mark.expects_warnings

HANG_S = 1e6


class Told:
    """A device on the rig's three deltas, and the story of its tops. `content` is what it shows."""

    def __init__(self) -> None:
        self.images = three_deltas() | {NEW: three_deltas()[TOP]}
        self.story = Story(self.images)
        self.content = bytearray(CONTENT)
        self.stack: Sequence[str] = STACK
        self.rig: Rig

    async def open(self, flavour: Flavour) -> None:
        journal = self.story.journal

        class Journaled(FaultyFiles):
            def __init__(self, inner: Files, faults: Faults) -> None:
                super().__init__(JournalFiles(inner, journal), faults)

        self.shows(flushed=True, closing=True)
        name = "dm-0" if flavour is VZ9 else "ploop0"
        self.rig = await rig_of(self.images, stack=STACK, storage=Journaled, name=name, flavour=flavour)

    def shows(self, *, flushed: bool = False, closing: bool = False, stack: Sequence[str] | None = None) -> None:
        spec = StackSpec(tuple(map(ImageSpec, stack or self.stack)), CLUSTER // 512)
        self.story.shows(spec, self.content, flushed=flushed, closing=closing)

    async def write(self, slot: int, letter: bytes) -> None:
        offset = slot * CLUSTER + 700
        self.content[offset : offset + 1000] = letter * 1000
        self.shows()
        await self.rig.device.write(offset, letter * 1000)

    async def discard(self, slot: int) -> None:
        """Of the top's."""
        self.content[slot * CLUSTER : (slot + 1) * CLUSTER] = bytes(CLUSTER)
        self.shows()
        await self.rig.device.discard(slot * CLUSTER, CLUSTER)

    async def flush(self) -> None:
        await self.rig.device.flush()
        self.shows(flushed=True)

    async def lose(self) -> None:
        """The storage of the top answers nothing but EIO, until `come_back`."""
        self._lost = await self.rig.enter_standby(5)

    def come_back(self) -> None:
        self.rig.faults.remove(self._lost)

    def copy(self, content: bytes) -> None:
        """Somebody has copied what is durable of the top, mark and all, to NEW."""
        self.rig.store.put(NEW, content)
        self.story.before[NEW] = content

    async def end(self) -> Story:
        self.shows(closing=True)
        await self.rig.device.aclose()
        self.shows(flushed=True, closing=True)
        return self.story


async def _healthy(told: Told, exchange: Callable[[], Awaitable[object]], stack: Sequence[str]) -> None:
    """What was written is flushed by the exchange. A new top is a copy of the old one made before."""
    await told.write(3, b"n")
    await told.flush()
    await told.write(4, b"N")
    told.shows(closing=True)
    if stack[-1] != TOP:
        before, told.content[:] = bytes(told.content), CONTENT
        told.shows(flushed=True, closing=True, stack=stack)
        after, told.content[:] = bytes(told.content), before
        await exchange()
        told.shows(flushed=True, closing=True)
        told.content[:] = after
    else:
        await exchange()
        told.shows(flushed=True, closing=True, stack=stack)
    told.stack = stack
    await told.write(5, b"o")
    await told.write(2, b"O")


async def replace_a_healthy_top(told: Told) -> None:
    await told.open(VZ7)
    await _healthy(told, lambda: told.rig.device.replace(NEW), (BASE, MIDDLE, NEW))


async def reopen_a_healthy_top(told: Told) -> None:
    await told.open(VZ7)
    await _healthy(told, told.rig.device.reopen, STACK)


async def replace_a_lower_level(told: Told) -> None:
    told.images["/other/base.hds"] = told.images[BASE]
    told.story.before["/other/base.hds"] = told.images[BASE]
    await told.open(VZ7)
    await told.write(3, b"n")
    await told.flush()
    await told.write(4, b"N")
    await told.rig.device.replace("/other/base.hds", level=0)
    told.stack = ("/other/base.hds", MIDDLE, TOP)
    await told.write(0, b"O")


async def load_a_table_of_a_healthy_device(told: Told) -> None:
    await told.open(VZ9)
    mapper = mapper_of(told.rig)

    async def reload() -> None:
        await mapper.load(line(BASE, MIDDLE, NEW))
        await mapper.resume()

    await _healthy(told, reload, (BASE, MIDDLE, NEW))


async def load_the_same_table_again(told: Told) -> None:
    await told.open(VZ9)
    mapper = mapper_of(told.rig)

    async def reload() -> None:
        await mapper.load(line(*STACK))
        await mapper.resume()

    await _healthy(told, reload, STACK)


async def _after_a_loss(told: Told, recover: Callable[[], Awaitable[object]], stack: Sequence[str]) -> None:
    """What the top has after the first flush a copy of it has not: it is written again before the copy is used."""
    await told.write(3, b"n")
    await told.flush()
    durable, trail = told.rig.store.bytes_of(TOP), [bytes(told.content)]
    for act in (told.write(4, b"N"), told.write(2, b"M"), told.discard(2), told.write(2, b"P")):
        await act
        trail.append(bytes(told.content))
    await told.lose()
    if stack[-1] == NEW:
        told.copy(durable)
        told.content[:] = trail[0]
        told.shows(flushed=True, stack=stack)
        for content in trail:
            told.content[:] = content
            told.shows(stack=stack)
    else:
        told.come_back()
    await recover()
    told.stack = stack
    told.shows(flushed=True)
    await told.write(5, b"o")


async def _load_and_resume(told: Told, *stack: str) -> None:
    await mapper_of(told.rig).load(line(*stack))
    told.shows(flushed=True, stack=stack)
    await mapper_of(told.rig).resume()


async def replace_a_lost_top(told: Told) -> None:
    await told.open(VZ7)
    await _after_a_loss(told, lambda: told.rig.device.replace(NEW), (BASE, MIDDLE, NEW))


async def reopen_a_lost_top(told: Told) -> None:
    await told.open(VZ7)
    await _after_a_loss(told, told.rig.device.reopen, STACK)


async def load_a_table_of_a_lost_device(told: Told) -> None:
    await told.open(VZ9)
    await _after_a_loss(told, lambda: _load_and_resume(told, BASE, MIDDLE, NEW), (BASE, MIDDLE, NEW))


async def load_the_same_table_of_a_lost_device(told: Told) -> None:
    await told.open(VZ9)
    await _after_a_loss(told, lambda: _load_and_resume(told, *STACK), STACK)


async def grow_and_merge_a_mapped_device(told: Told) -> None:
    await told.open(VZ9)
    mapper = mapper_of(told.rig)
    await told.write(3, b"n")
    told.content.extend(bytes(2 * CLUSTER))
    told.shows()
    await answer(mapper, f"resize {8 * CLUSTER // 512}")
    told.shows(flushed=True)
    await told.write(4, b"N")
    await answer(mapper, "merge")
    told.stack = (BASE, TOP)
    told.shows(flushed=True)
    await told.write(0, b"O")


async def flip_the_upper_deltas(told: Told) -> None:
    """The middle lacks what the top has: then either order is the same disk."""
    await told.open(VZ9)
    mapper = mapper_of(told.rig)
    await told.write(3, b"n")
    await mapper.suspend()
    told.shows(flushed=True)
    await answer(mapper, "set_noresume 1")
    told.shows(closing=True)
    told.shows(flushed=True, closing=True, stack=(BASE, TOP, MIDDLE))
    await answer(mapper, "flip_upper_deltas")
    told.shows(flushed=True, closing=True)
    told.stack = (BASE, TOP, MIDDLE)
    told.story.is_no_top(TOP)
    await answer(mapper, "set_noresume 0")
    await mapper.resume()
    await told.write(4, b"N")
    await told.write(2, b"O")


STORIES: Mapping[str, Callable[[Told], Awaitable[None]]] = {
    story.__name__.replace("_", " "): story
    for story in (
        replace_a_healthy_top,
        reopen_a_healthy_top,
        replace_a_lower_level,
        load_a_table_of_a_healthy_device,
        load_the_same_table_again,
        replace_a_lost_top,
        reopen_a_lost_top,
        load_a_table_of_a_lost_device,
        load_the_same_table_of_a_lost_device,
        grow_and_merge_a_mapped_device,
        flip_the_upper_deltas,
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("acts", STORIES.values(), ids=STORIES)
async def test_whatever_a_power_failure_leaves_of_old_and_new_is_sound(
    acts: Callable[[Told], Awaitable[None]],
    autojump_clock: MockClock,  # noqa: ARG001 -- pytest-trio runs a test with the clock that it is given
) -> None:
    told = Told()
    with trio.fail_after(HANG_S):
        await acts(told)
        story = await told.end()
    assert await assert_survives(story, Random(1)) > 50
