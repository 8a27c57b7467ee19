"""A real stack and its model side by side: every operation is done to both, and what is read is compared.

Small and dense on purpose: a few clusters of 32 KiB, each of which is soon owned by another level than its neighbour.
"""

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import trio

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.file import Files
from ploopfs.engine.grow import grown
from ploopfs.engine.merge import copied_up, without_level
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError
from ploopfs.image.bat import Bat
from ploopfs.image.check import Report, Verdict, check_image
from ploopfs.image.extension import extension_offset_bytes
from ploopfs.image.header import BAT_ENTRY_BYTES, HEADER_BYTES, SECTOR_BYTES, V2, Header, Version
from ploopfs.image.map import HOLE_LEVEL
from ploopfs.testing.images import ImageBuilder
from tests.engine.model import CLUSTER_BYTES, Model, Owner
from tests.engine.places import Place

MAX_DEPTH = 5
MODELLED = 16
POISON = 0xDB
"""Fills what nobody has written. Where it shows, something came to light that is no data of the disk."""


@dataclass(frozen=True, slots=True)
class Shape:
    """`depth` images, base first; a raw base ends `raw_short_bytes` before the end of the disk, unless it is alone.

    `leaks`: the files also hold clusters full of POISON that no map names.
    """

    clusters: int = 6
    depth: int = 1
    version: Version = V2
    raw_base: bool = False
    raw_short_bytes: int = 0
    leaks: bool = True


@dataclass(frozen=True, slots=True)
class Change:
    """One operation on a range: write, discard, zero, unmap (zeroes that give space back), read or flush."""

    kind: str
    offset: int
    length: int
    data: bytes = b""
    fua: bool = False


class Disk:
    """`specs` is base first. `frozen` holds the bytes of each lower image, which nothing may change any more.

    The model has the first MODELLED clusters of a disk that has grown beyond them; nobody writes to the rest."""

    def __init__(self, place: Place, shape: Shape, random: Random, files: Files | None = None) -> None:
        self.place = place
        self.files = files or place.files
        self.version = V2 if shape.raw_base else shape.version
        self.clusters = shape.clusters
        self.specs: list[ImageSpec] = []
        self._made = 0
        self.writes_soon = False
        self.begun_soon = [0, 0]  # in place, and in a cluster that nobody had
        self.frozen: dict[str, bytes] = {}
        self.model = Model(
            bytes(shape.clusters * CLUSTER_BYTES), [Owner.NOBODY] * shape.clusters, alone=True, raw=shape.raw_base
        )
        self._opened: Stack | None = None
        self._found = b""  # the top as it was found: a leak in it stays until somebody changes the image
        if shape.raw_base:
            self._add_raw(shape, random)
        else:
            self._add_delta(_some_clusters(shape, random), _some_leaks(shape, random))
        for _ in range(shape.depth - 1):
            self.model.snapshot()
            self._add_delta(_some_clusters(shape, random), _some_leaks(shape, random))

    @property
    def stack(self) -> Stack:
        assert self._opened is not None
        return self._opened

    @property
    def spec(self) -> StackSpec:
        return StackSpec(tuple(self.specs), CLUSTER_BYTES // SECTOR_BYTES)

    @property
    def top_path(self) -> str:
        return self.specs[-1].path

    async def open(self) -> None:
        self._opened = await open_stack(self.files, self.spec, read_only=False, counters=Counters())
        self.model.merged.clear()
        assert self.stack.size_bytes == self.clusters * CLUSTER_BYTES
        assert not self.stack.read_only

    # --- one operation, to both -----------------------------------------------------------------------------------

    async def run(self, change: Change) -> None:
        await self.run_engine(change)
        self.run_model(change)

    async def run_engine(self, change: Change) -> None:
        match change.kind:
            case "write":
                await self._write(change)
            case "discard":
                await self.stack.discard(change.offset, change.length)
            case "zero" | "unmap":
                await self.stack.write_zeroes(change.offset, change.length, unmap=change.kind == "unmap")
            case "read":
                data = await self.stack.read(change.offset, change.length)
                assert data == self.model.content[change.offset : change.offset + change.length], change
            case "flush":
                await self.stack.flush()

    async def _write(self, change: Change) -> None:
        heard: list[BackendError | None] = []
        ended = trio.Event()

        def answered(error: BackendError | None) -> None:
            heard.append(error)
            ended.set()

        owner = self.stack.map.levels[change.offset // CLUSTER_BYTES]
        is_begun = self.writes_soon and not change.fua and self.stack.write_soon(change.offset, change.data, answered)
        if not is_begun:
            await self.stack.write(change.offset, change.data, fua=change.fua)
            return
        self.begun_soon[owner == HOLE_LEVEL] += 1
        await ended.wait()
        [error] = heard
        if error is not None:
            raise error

    def run_model(self, change: Change) -> None:
        match change.kind:
            case "write":
                self.model.write(change.offset, change.data)
            case "discard":
                self.model.discard(change.offset, change.length)
            case "zero" | "unmap":
                self.model.write_zeroes(change.offset, change.length, unmap=change.kind == "unmap")

    async def run_together(self, changes: Sequence[Change]) -> None:
        """All at the same time. Their ranges are disjoint, so every order gives the same disk."""
        async with trio.open_nursery() as nursery:
            for change in changes:
                nursery.start_soon(self.run_engine, change)
        for change in changes:
            self.run_model(change)

    # --- the life of the stack ------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Cleanly; every image must then be sound, and every lower one as it was."""
        await self.verify()
        await self.stack.aclose(clean=True)
        self._opened = None
        self.check_images()

    async def reopen(self) -> None:
        await self.close()
        await self.open()
        await self.verify()

    async def snapshot(self) -> None:
        """The old top is closed and frozen, an empty delta is the new top."""
        await self.close()
        self.model.snapshot()
        self._add_delta({})
        await self.open()

    async def die(self) -> None:
        """The process goes away: the storage keeps everything, and nobody clears the mark until the next opening does,
        which gives the end of the file back as well."""
        await self.stack.aclose(clean=False)
        self._opened = None
        if self.specs[-1].raw:
            return
        assert verdict(self.place.content(self.top_path)).verdict is Verdict.NOT_CLOSED
        self._found = b""

    async def grow(self, clusters: int) -> None:
        clusters = max(self.clusters, clusters)
        self._opened = await grown(self.stack, clusters * CLUSTER_BYTES // SECTOR_BYTES)
        self.clusters = clusters
        self.model.grow(min(clusters, MODELLED))

    async def merge(self, meanwhile: Sequence[Change] = ()) -> None:
        """What level top-1 has goes up while other requests are served, and the level goes."""
        copied_to = [int(slot) for slot in self.stack.map.owned_by(self.stack.map.top_level - 1)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run_together, meanwhile)
            copied = await copied_up(self.stack)
        self._opened = without_level(self.stack, copied)
        await copied.dropped.aclose(clean=False)
        for slot in copied_to:
            self.model.owners[slot : slot + 1] = [Owner.TOP] * len(self.model.owners[slot : slot + 1])
        self.model.merged |= self.model.lower.pop()
        self.model.alone = len(self.stack.deltas) == 1
        assert self.place.content(self.specs[-2].path) == self.frozen.pop(self.specs[-2].path)
        del self.specs[-2]

    async def verify(self) -> None:
        """Every byte, read in one piece, and who owns what."""
        assert self.stack.size_bytes == self.clusters * CLUSTER_BYTES
        await self.run_engine(Change("read", 0, len(self.model)))
        owners = owners_of(self.stack)
        assert len(owners) == self.clusters
        assert owners[: len(self.model.owners)] == self.model.owners
        assert set(owners[len(self.model.owners) :]) <= {Owner.NOBODY}
        self.assert_told_as_it_is()

    def assert_told_as_it_is(self) -> None:
        """Where holes are, and how much is none, as a fresh look at the map has it."""
        present = [owner is not Owner.NOBODY for owner in owners_of(self.stack)]
        assert self.stack.allocated_bytes == sum(present) * CLUSTER_BYTES
        data, hole = len(present), len(present)
        for slot in reversed(range(len(present))):
            data, hole = (slot, hole) if present[slot] else (data, slot)
            for within in (0, 1, CLUSTER_BYTES - 1) if slot < MODELLED else ():
                at = slot * CLUSTER_BYTES + within
                assert self.stack.seek_hole(at) == max(at, hole * CLUSTER_BYTES)
                assert self.stack.seek_data(at) == (max(at, data * CLUSTER_BYTES) if data < len(present) else None)

    def check_images(self) -> None:
        for spec in self.specs:
            content = self.place.content(spec.path)
            if not spec.raw:
                report = verdict(content)
                assert report.verdict is Verdict.CLEAN, (spec.path, report)
            assert content == self.frozen.get(spec.path, content), f"{spec.path} was changed below the top"
        top = self.place.content(self.top_path)
        if not self.specs[-1].raw and top != self._found:
            assert_ends_with_a_used_cluster(top)

    # --- making images --------------------------------------------------------------------------------------------

    def _add_raw(self, shape: Shape, random: Random) -> None:
        short = shape.raw_short_bytes if shape.depth > 1 else 0
        content = random.randbytes(len(self.model) - short)
        self._add(ImageSpec(self.place.path("0.raw"), raw=True), content)
        self.model.write(0, content)
        owned = -(-len(content) // CLUSTER_BYTES)
        self.model.owners[:owned] = [Owner.TOP] * owned

    def _add_delta(self, clusters: dict[int, bytes], leaked: Collection[int] = ()) -> None:
        image = image_with_leaks(self.clusters, clusters, leaked, self.version)
        self._add(ImageSpec(self.place.path(f"{self._made}.hds")), image)
        for slot, content in clusters.items():
            self.model.write(slot * CLUSTER_BYTES, content)
            self.model.owners[slot] = Owner.TOP

    def _add(self, spec: ImageSpec, content: bytes) -> None:
        if self.specs:
            self.frozen[self.top_path] = self.place.content(self.top_path)
        self.place.put(spec.path, content)
        self.specs.append(spec)
        self._made += 1
        self._found = content


def verdict(image: bytes, path: str = "image") -> Report:
    header = Header.parse(image, path)
    offset = extension_offset_bytes(header)
    extension = image[offset : offset + header.cluster_bytes] if offset else b""
    return check_image(header, image[: header.bat_area_bytes], len(image), path, extension)


def owners_of(stack: Stack) -> list[Owner]:
    names = {HOLE_LEVEL: Owner.NOBODY, stack.map.top_level: Owner.TOP}
    return [names.get(level, Owner.LOWER) for level in stack.map.levels]


def _some_clusters(shape: Shape, random: Random) -> dict[int, bytes]:
    slots = random.sample(range(shape.clusters), random.randrange(shape.clusters // 2 + 1))
    return {slot: random.randbytes(CLUSTER_BYTES) for slot in slots}


def _some_leaks(shape: Shape, random: Random) -> list[int]:
    return random.sample(range(shape.clusters), random.randrange(shape.clusters // 2 + 1)) if shape.leaks else []


def image_with_leaks(
    disk_clusters: int, clusters: Mapping[int, bytes], leaked: Collection[int], version: Version = V2
) -> bytes:
    """Clusters full of POISON lie between the others in the file, in the places of the `leaked` ones; nothing names
    them."""
    poison = bytes([POISON]) * CLUSTER_BYTES
    in_file = dict(sorted({**dict.fromkeys(leaked, poison), **clusters}.items()))
    image = bytearray(ImageBuilder(disk_clusters=disk_clusters, version=version, clusters=in_file).build())
    for slot in set(leaked) - clusters.keys():
        struct.pack_into("<I", image, HEADER_BYTES + BAT_ENTRY_BYTES * slot, 0)
    return bytes(image)


def assert_ends_with_a_used_cluster(image: bytes) -> None:
    """Anything behind it is a leak to qemu-img check."""
    header = Header.parse(image, "image")
    used = Bat(header, image[: header.bat_area_bytes]).used()
    assert len(image) == max(header.first_cluster, int(used.max(initial=0)) + 1) * header.cluster_bytes


# --- drawing operations -----------------------------------------------------------------------------------------------

KINDS_OF_DATA = ("noise", "noise", "zeroes", "dense")


def data_of(kind: str, length: int, random: Random) -> bytes:
    """`dense`: noise and zeroes take turns, at the length of a cluster, so that a long write has clusters of both."""
    match kind:
        case "noise":
            return random.randbytes(length)
        case "zeroes":
            return bytes(length)
        case _:
            parts = [
                random.randbytes(CLUSTER_BYTES) if random.random() < 0.5 else bytes(CLUSTER_BYTES)
                for _ in range(length // CLUSTER_BYTES + 1)
            ]
            return b"".join(parts)[:length]


def draw_change(disk_bytes: int, random: Random) -> Change:
    """Any operation anywhere; edges of clusters, and ranges over several, come up often."""
    offset = random.randrange(disk_bytes // CLUSTER_BYTES) * CLUSTER_BYTES
    offset = max(0, offset + random.choice((0, 0, 0, 1, 511, 512, 4096, CLUSTER_BYTES // 2, -1, -512)))
    length = random.choice((1, 511, 512, 4096, CLUSTER_BYTES - 1, CLUSTER_BYTES, CLUSTER_BYTES, 3 * CLUSTER_BYTES))
    length = min(length, disk_bytes - offset)
    kind = random.choice(("write", "write", "write", "write", "discard", "unmap", "zero", "read", "flush"))
    data = data_of(random.choice(KINDS_OF_DATA), length, random) if kind == "write" else b""
    return Change(kind, offset, length, data, fua=random.random() < 0.1)


def draw_disjoint(disk_bytes: int, count: int, random: Random) -> list[Change]:
    """Operations on disjoint ranges that share clusters: they meet in the claims and in the map, not in bytes."""
    edges = sorted(random.sample(range(0, disk_bytes + 1, 512), count + 1))
    changes = []
    for start, stop in pairwise(edges):
        kind = random.choice(("write", "write", "write", "discard", "unmap", "zero", "read"))
        data = data_of(random.choice(KINDS_OF_DATA), stop - start, random) if kind == "write" else b""
        changes.append(Change(kind, start, stop - start, data))
    return changes
