"""Operations of a stack one by one, told as stories that a power failure may end anywhere (power.py).

The disk has six clusters, each filled with a letter of its own; what nobody has is POISON in the file.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.grow import grown
from ploopfs.engine.merge import copied_up, without_level
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.stack import Stack
from ploopfs.image.header import V1, V2
from ploopfs.image.plan import Punch, plan_discard
from tests.engine.bitmaps import with_bitmap
from tests.engine.disk import image_with_leaks
from tests.engine.model import CLUSTER_BYTES as CLUSTER
from tests.engine.power import Story

BASE, MIDDLE, TOP, RAW = "/store/base.hds", "/store/middle.hds", "/store/top.hds", "/store/base.raw"
DISK_CLUSTERS = 6
LARGE = 8177
"""Clusters of a disk whose map needs a cluster more than that of a small one."""

Has = Mapping[int, bytes]


def filled(has: Has) -> dict[int, bytes]:
    return {slot: letter * CLUSTER for slot, letter in has.items()}


class Scene:
    """`levels` is base first, by path: an image's bytes, and the letters that it has. `content` is the model."""

    def __init__(self, levels: Mapping[str, tuple[bytes, Has]]) -> None:
        self.story = Story({path: image for path, (image, _has) in levels.items()})
        self.content = bytearray(DISK_CLUSTERS * CLUSTER)
        for path, (image, has) in levels.items():
            if path == RAW:
                self.content[: len(image)] = image
            for slot, letter in has.items():
                self.content[slot * CLUSTER : (slot + 1) * CLUSTER] = letter * CLUSTER
        self.spec = StackSpec(tuple(ImageSpec(path, raw=path == RAW) for path in levels), CLUSTER // 512)
        self.story.begins_with(self.spec, self.content)
        self.stack: Stack

    async def tell(self, acts: Callable[["Scene"], Awaitable[None]]) -> Story:
        """From before it is opened until after it is closed."""
        self.stack = await open_stack(self.story.files, self.spec, read_only=False, counters=Counters())
        await acts(self)
        self.shows(closing=True)
        await self.stack.aclose(clean=True)
        self.shows(flushed=True, closing=True)
        return self.story

    def shows(self, *, flushed: bool = False, closing: bool = False) -> None:
        self.story.shows(self.spec, self.content, flushed=flushed, closing=closing)

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        self.content[offset : offset + len(data)] = data
        self.shows()
        await self.stack.write(offset, data, fua=fua)
        if fua:
            self.shows(flushed=True)

    async def discard(self, slot: int, count: int = 1) -> None:
        """Clusters that the top owns."""
        first, end = slot * CLUSTER, (slot + count) * CLUSTER
        self.content[first:end] = bytes(end - first)
        self.shows()
        assert await self.stack.discard(first, end - first) == tuple(range(slot, slot + count))

    async def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self.content[offset : offset + length] = bytes(length)
        self.shows()
        await self.stack.write_zeroes(offset, length, unmap=unmap)

    async def flush(self) -> None:
        await self.stack.flush()
        self.shows(flushed=True)

    async def grow(self, clusters: int) -> None:
        size = min(clusters, 2 * DISK_CLUSTERS) * CLUSTER
        self.content.extend(bytes(size - len(self.content)))
        self.shows()
        self.stack = await grown(self.stack, clusters * CLUSTER // 512)
        self.shows(flushed=True)

    async def merge(self) -> None:
        self.shows()
        copied = await copied_up(self.stack)
        self.shows(flushed=True)
        self.stack = without_level(self.stack, copied)
        await copied.dropped.aclose(clean=False)
        self.spec = StackSpec((*self.spec.images[:-2], self.spec.images[-1]), CLUSTER // 512)
        self.shows(flushed=True)


def levels(*images: tuple[str, Has, Sequence[int]], version: object = V2) -> dict[str, tuple[bytes, Has]]:
    """(path, letters, leaked clusters), base first; the last one may be version 1."""
    assert version in (V1, V2)
    return {
        path: (image_with_leaks(DISK_CLUSTERS, filled(has), leaked, V1 if version is V1 else V2), has)
        for path, has, leaked in images
    }


@dataclass(frozen=True, slots=True)
class Told:
    levels: Mapping[str, tuple[bytes, Has]]
    acts: Callable[[Scene], Awaitable[None]]


async def _nothing(_scene: Scene) -> None:
    pass


async def _write_partly(scene: Scene) -> None:
    await scene.write(3 * CLUSTER + 700, b"n" * 1000)
    await scene.flush()


async def _write_partly_with_fua(scene: Scene) -> None:
    await scene.write(3 * CLUSTER + 700, b"n" * 1000, fua=True)
    await scene.write(4 * CLUSTER, b"N" * 600)


async def _write_whole(scene: Scene) -> None:
    await scene.write(3 * CLUSTER, b"n" * CLUSTER)
    await scene.flush()


async def _write_in_place(scene: Scene) -> None:
    await scene.write(1 * CLUSTER + 700, b"n" * 1000)
    await scene.flush()
    await scene.write(1 * CLUSTER + 1000, b"N" * 1000)


async def _write_over_three(scene: Scene) -> None:
    """In the top, in a lower delta, in nobody."""
    await scene.write(1 * CLUSTER + 30000, b"n" * (2 * CLUSTER - 20000))
    await scene.flush()


async def _copy_up(scene: Scene) -> None:
    await scene.write(2 * CLUSTER + 700, b"n" * 1000)
    await scene.flush()


async def _write_twice(scene: Scene) -> None:
    """The second cluster while nothing of the first one's map entry is durable."""
    await scene.write(3 * CLUSTER + 700, b"n" * 1000)
    await scene.write(4 * CLUSTER + 700, b"N" * 1000)
    await scene.write(3 * CLUSTER + 900, b"O" * 1000)
    await scene.flush()


async def _discard(scene: Scene) -> None:
    await scene.discard(1)
    await scene.flush()


async def _discard_and_use_again(scene: Scene) -> None:
    """The cluster that one gives back is the next one's."""
    await scene.discard(1)
    await scene.write(4 * CLUSTER + 700, b"n" * 1000)
    await scene.write(1 * CLUSTER + 700, b"N" * 1000)
    await scene.flush()


async def _discard_what_was_just_written(scene: Scene) -> None:
    await scene.write(3 * CLUSTER + 700, b"n" * 1000)
    await scene.discard(3)
    await scene.write(4 * CLUSTER + 100, b"N" * 1000)


async def _zero_and_use_again(scene: Scene) -> None:
    """Over all kinds of cluster and parts of them; what one gives back is the next one's."""
    await scene.zero(300, 4 * CLUSTER)
    await scene.write(5 * CLUSTER + 700, b"n" * 1000)
    await scene.flush()
    await scene.zero(2 * CLUSTER - 512, 1024, unmap=False)


async def _zero_what_is_below(scene: Scene) -> None:
    await scene.zero(0, 6 * CLUSTER)
    await scene.write(1 * CLUSTER + 700, b"n" * 1000)
    await scene.flush()


async def _zero_what_was_just_written(scene: Scene) -> None:
    await scene.write(3 * CLUSTER + 700, b"n" * 1000)
    await scene.zero(3 * CLUSTER, 2 * CLUSTER)
    await scene.write(4 * CLUSTER + 100, b"N" * 1000)


async def _zero_raw(scene: Scene) -> None:
    await scene.zero(700, 2 * CLUSTER)
    await scene.flush()
    await scene.write(900, b"n" * 1000)


async def _discard_two(scene: Scene) -> None:
    plan = plan_discard(scene.stack.map, scene.stack.below, 0, 2 * CLUSTER, single=False)
    assert all(isinstance(punch, Punch) for punch in plan.punches)
    await scene.discard(0, 2)
    await scene.flush()


async def _grow_into_preallocation(scene: Scene) -> None:
    scene.stack.top.preallocates = True
    await scene.write(3 * CLUSTER + 700, b"n" * 1000)
    await scene.write(4 * CLUSTER + 700, b"N" * 1000)
    await scene.write(5 * CLUSTER + 700, b"O" * 1000)
    await scene.flush()


async def _resize(scene: Scene) -> None:
    await scene.write(3 * CLUSTER + 700, b"n" * 1000)
    await scene.grow(9)
    await scene.write(8 * CLUSTER + 700, b"N" * 1000)


async def _resize_and_move(scene: Scene) -> None:
    await scene.write(3 * CLUSTER + 700, b"n" * 1000)
    await scene.grow(LARGE)
    await scene.write(8 * CLUSTER + 700, b"N" * 1000)


async def _merge(scene: Scene) -> None:
    await scene.write(3 * CLUSTER + 700, b"n" * 1000)
    await scene.merge()
    await scene.write(4 * CLUSTER + 700, b"N" * 1000)


ALONE = levels((TOP, {0: b"a", 1: b"b"}, ()))
LEAKY = levels((TOP, {0: b"a", 1: b"b"}, (2, 3, 4)))
OF_VERSION_1 = levels((TOP, {0: b"a", 1: b"b"}, (2,)), version=V1)
EMPTY = levels((TOP, {}, ()))
CHAIN = levels((BASE, {0: b"a", 1: b"b", 2: b"c"}, (4,)), (TOP, {0: b"A", 1: b"B"}, (2, 3)))
THREE = levels((BASE, {0: b"a", 1: b"b"}, (4,)), (MIDDLE, {1: b"B", 2: b"C"}, (3,)), (TOP, {0: b"Z"}, (1, 5)))
EXTENDED = {TOP: (with_bitmap(ALONE[TOP][0], [b"\1"]), ALONE[TOP][1])}
ON_RAW: dict[str, tuple[bytes, Has]] = {RAW: (b"".join((b"r" * CLUSTER, b"s" * CLUSTER, b"t" * 4096)), {}), **EMPTY}
RAW_ALONE: dict[str, tuple[bytes, Has]] = {RAW: (b"r" * (DISK_CLUSTERS * CLUSTER), {})}


async def _on_raw(scene: Scene) -> None:
    await scene.write(1 * CLUSTER + 700, b"n" * 1000)
    await scene.write(2 * CLUSTER + 700, b"N" * 1000)
    await scene.flush()


SCENES: dict[str, Told] = {
    "opened and closed": Told(ALONE, _nothing),
    "opened and closed, empty": Told(EMPTY, _nothing),
    "opened and closed, with a dirty bitmap": Told(EXTENDED, _nothing),
    "the first write to an image": Told(EMPTY, _write_partly),
    "allocation at the end of the file": Told(ALONE, _write_partly),
    "allocation, version 1": Told(OF_VERSION_1, _write_partly),
    "allocation of a whole cluster": Told(ALONE, _write_whole),
    "allocation where something was": Told(LEAKY, _write_partly),
    "allocation with a dirty bitmap": Told(EXTENDED, _write_partly),
    "allocation twice": Told(ALONE, _write_twice),
    "a write through": Told(LEAKY, _write_partly_with_fua),
    "a write in place": Told(ALONE, _write_in_place),
    "copy-up": Told(CHAIN, _copy_up),
    "copy-up from a raw base": Told(ON_RAW, _on_raw),
    "one write in the top, in a lower one and in nobody": Told(CHAIN, _write_over_three),
    "discard": Told(ALONE, _discard),
    "discard, then another gets the cluster": Told(ALONE, _discard_and_use_again),
    "discard of what is not durable": Told(LEAKY, _discard_what_was_just_written),
    "discard above a lower delta": Told(CHAIN, _discard_two),
    "zeroes": Told(ALONE, _zero_and_use_again),
    "zeroes where something was": Told(LEAKY, _zero_what_was_just_written),
    "zeroes over each kind of cluster": Told(CHAIN, _zero_and_use_again),
    "zeroes above a lower delta": Told(CHAIN, _zero_what_is_below),
    "zeroes above two lower deltas": Told(THREE, _zero_what_is_below),
    "zeroes above a raw base": Told(ON_RAW, _zero_what_is_below),
    "zeroes of a raw image": Told(RAW_ALONE, _zero_raw),
    "growth into preallocated space": Told(LEAKY, _grow_into_preallocation),
    "preallocation at the end": Told(ALONE, _grow_into_preallocation),
    "resize": Told(LEAKY, _resize),
    "resize that moves clusters": Told(ALONE, _resize_and_move),
    "resize of the top of a chain": Told(CHAIN, _resize),
    "resize of a raw image": Told(RAW_ALONE, _resize),
    "merge": Told(THREE, _merge),
    "merge of the base": Told(CHAIN, _merge),
}
