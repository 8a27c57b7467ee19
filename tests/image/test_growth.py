"""Plans of a larger disk: what may grow, step by step, and what is left of a plan that a crash cuts off."""

from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.errors import BadImage, BadValue, ImageFull
from ploopfs.image.allocator import MAX_ENTRY, Allocator
from ploopfs.image.bat import Bat
from ploopfs.image.check import Report, Verdict, check_image
from ploopfs.image.growth import GrowthStep, WriteHeader, check_growth, grown_header, plan_growth
from ploopfs.image.header import HEADER_BYTES, MIN_CLUSTER_SECTORS, V1, V2, Header, Version
from ploopfs.image.plan import Barrier, CopyUp, Grow, Run, Scrub, WriteMap
from tests.image.patches import CLUSTER_BYTES, Patch, crashes, image_file, patches

DISK = 6
"""Clusters of the small disk; its map fits into cluster 0 of the file, as those of up to 8176 clusters do."""
SIZES = {1: 8176, 2: 8177, 3: 20000, 5: 40000}
"""Clusters of header and map -> clusters of a disk."""


class Image:
    """A top image, as its bytes say."""

    def __init__(self, file: bytes | bytearray) -> None:
        self.file = bytearray(file)
        self.header = Header.parse(bytes(file[:HEADER_BYTES]), "top")
        area = bytes(file[: self.header.bat_area_bytes])
        assert check_image(self.header, area, len(file), "top") == Report(Verdict.NOT_CLOSED)
        self.bat = Bat(self.header, area)
        self.allocator = Allocator(
            self.bat.used(),
            first_cluster=self.header.first_cluster,
            file_clusters=-(-len(file) // CLUSTER_BYTES),
            entry_unit=self.header.entry_unit,
        )

    def plan(self, clusters: int) -> tuple[GrowthStep, ...]:
        return plan_growth(
            self.bat,
            self.allocator,
            old=self.header,
            new=grown_header(self.header, clusters * MIN_CLUSTER_SECTORS, "top"),
            top_level=0,
            file_size=len(self.file),
        )

    def patches(self, step: GrowthStep) -> list[Patch]:
        match step:
            case WriteHeader(header):
                return [Patch(0, header.raw)]
            case WriteMap(entries):
                return [Patch(page.offset, page.data) for page in self.bat.pages(entries)]
            case _:
                return patches(step, b"", [self.file], CLUSTER_BYTES)

    def content(self) -> dict[int, bytes]:
        """Clusters of the disk that the image has, by slot."""
        return {
            slot: bytes(self.file[cluster * CLUSTER_BYTES : (cluster + 1) * CLUSTER_BYTES])
            for slot, cluster in enumerate(self.bat.clusters)
            if cluster
        }


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Dense: most clusters of the file lie where a map may grow to, and gaps in it hold bytes of nobody."""
    entries = draw(st.permutations([0, 0, 1, 2, 3, 4, 6]))[:DISK]
    end = max(entries) + 1 + draw(st.integers(0, 1))
    version = draw(st.sampled_from((V1, V2)))
    return Image(image_file(version, DISK, dict(enumerate(entries)), end=max(end, 1), tag=16))


# --- cut off anywhere -------------------------------------------------------------------------------------------------


@given(images(), st.sampled_from(sorted(SIZES.values())))
def test_a_crash_anywhere_leaves_the_old_disk_or_the_new_one_with_every_cluster(image: Image, clusters: int) -> None:
    assert sizes_after_crashes(image, image.plan(clusters)) == {DISK, clusters}


def sizes_after_crashes(image: Image, steps: Sequence[GrowthStep]) -> set[int]:
    """Of the disks that a crash may leave; each has every cluster that the image has."""
    content = image.content()
    sizes = set()
    for file in crashes(image.file, steps, image.patches):
        crashed = Image(file)
        assert crashed.content() == content
        sizes.add(crashed.header.disk_clusters)
    return sizes


@given(images(), st.sampled_from(sorted(SIZES)), st.data())
def test_a_plan_that_is_done_leaves_a_map_of_zeroes_and_free_space_that_nobody_has(
    image: Image, area_clusters: int, data: st.DataObject
) -> None:
    content = image.content()
    for step in image.plan(SIZES[area_clusters]):
        for patch in image.patches(step):
            patch.apply(image.file)
    grown = Image(image.file)
    assert (grown.header.first_cluster, grown.header.disk_clusters) == (area_clusters, SIZES[area_clusters])
    assert (grown.header.bat_entries, len(grown.bat.clusters)) == (SIZES[area_clusters], SIZES[area_clusters])
    assert grown.content() == content
    assert not any(grown.file[grown.bat.end_bytes : grown.header.bat_area_bytes])
    # What is allocated from here on is neither part of the map nor anybody's, in memory as after opening again.
    for allocator in (image.allocator, grown.allocator):
        given_out = [allocator.allocate()[0] for _ in range(data.draw(st.integers(1, 12)))]
        assert min(given_out) >= area_clusters
        assert not set(given_out) & set(map(int, grown.bat.used()))


def test_a_bad_order_is_seen() -> None:
    """The checker's check: the header before the room is zeroes, or an entry before the copied cluster."""
    for spoilt in (without_barriers, header_first):
        image = Image(image_file(V2, DISK, {0: 1, 1: 2}, end=3, tag=16))
        steps = spoilt(image.plan(SIZES[3]))
        with pytest.raises(AssertionError):
            sizes_after_crashes(image, steps)


def without_barriers(steps: tuple[GrowthStep, ...]) -> list[GrowthStep]:
    return [step for step in steps if not isinstance(step, Barrier)]


def header_first(steps: tuple[GrowthStep, ...]) -> list[GrowthStep]:
    return [steps[-1], Barrier(), *steps[:-1]]


# --- step by step -----------------------------------------------------------------------------------------------------


def test_a_map_that_needs_no_room_costs_a_barrier_and_a_header() -> None:
    image = Image(image_file(V2, DISK, {0: 1}, end=2, tag=16))
    old = image.header
    assert image.plan(7) == (Grow(CLUSTER_BYTES), Barrier(), WriteHeader(old.resized(7 * MIN_CLUSTER_SECTORS)))


def test_data_are_copied_then_named_then_the_room_is_cleared_then_the_header_says_so() -> None:
    image = Image(image_file(V2, DISK, {0: 4, 3: 1}, end=5, tag=16))
    new = image.header.resized(SIZES[3] * MIN_CLUSTER_SECTORS)
    assert image.plan(SIZES[3]) == (
        Grow(3 * CLUSTER_BYTES),
        Grow(4 * CLUSTER_BYTES),
        CopyUp(3 * CLUSTER_BYTES, (Run(0, CLUSTER_BYTES, CLUSTER_BYTES),), 0, 0, 0),
        Barrier(),
        WriteMap({3: 3}),
        Barrier(),
        Scrub(CLUSTER_BYTES, CLUSTER_BYTES),
        Scrub(2 * CLUSTER_BYTES, CLUSTER_BYTES),
        Barrier(),
        WriteHeader(new),
    )


def test_what_stands_in_the_map_past_the_disks_end_does_not_come_to_light() -> None:
    file = image_file(V2, DISK + 1, {0: 1, DISK: 2}, end=3, tag=16)
    shrunk = Header.parse(bytes(file[:HEADER_BYTES]), "top").resized(DISK * MIN_CLUSTER_SECTORS)
    file[:HEADER_BYTES] = shrunk.raw
    image = Image(file)
    assert image.bat.has_leftovers
    for crashed in crashes(image.file, image.plan(SIZES[2]), image.patches):
        assert set(Image(crashed).content()) == {0}
    image.bat.extend(SIZES[2])
    assert (len(image.bat.clusters), image.bat.has_leftovers) == (SIZES[2], False)


def test_where_the_map_cannot_name_another_cluster_nothing_is_taken() -> None:
    image = Image(image_file(V1, DISK, {0: 1, 1: 2}, end=3, tag=16))
    last = MAX_ENTRY // MIN_CLUSTER_SECTORS
    full = Allocator(image.bat.used(), first_cluster=1, file_clusters=last, entry_unit=MIN_CLUSTER_SECTORS)
    full.reserve_below(last)
    image.allocator = full
    with pytest.raises(ImageFull):
        image.plan(SIZES[3])
    assert full.allocate() == (last, True)


# --- what may grow ----------------------------------------------------------------------------------------------------


def header_of(clusters: int, version: Version = V2) -> Header:
    sectors = clusters * MIN_CLUSTER_SECTORS
    return Header.new(size_sectors=sectors, cluster_sectors=MIN_CLUSTER_SECTORS, version=version)


@pytest.mark.parametrize(
    ("sectors", "message"),
    [
        (383, "size 383 sectors, expected at least 384: online shrink is not supported"),
        (0, "online shrink is not supported"),
        ((0xFFFFFFFF - 2) * 64, "expected fewer than 4294967293 clusters"),
        (385, "size 385 sectors, expected a multiple of the cluster, 64 sectors"),
    ],
)
def test_a_size_that_no_disk_can_grow_to_is_refused(sectors: int, message: str) -> None:
    with pytest.raises(BadValue, match=message):
        grown_header(header_of(DISK), sectors, "top")


def test_a_version_1_image_does_not_grow_past_32_bits_of_sectors() -> None:
    limit = (1 << 32) - 64
    assert grown_header(header_of(DISK, V1), limit, "top").size_sectors == limit
    with pytest.raises(BadValue, match="expected at most 4294967295 in a version 1 image"):
        grown_header(header_of(DISK, V1), limit + 64, "top")
    assert grown_header(header_of(DISK, V2), limit + 64, "top").size_sectors == limit + 64


def test_a_disk_that_ends_inside_a_cluster_does_not_grow() -> None:
    raw = bytearray(header_of(DISK).raw)
    raw[36:38] = (6 * 64 - 1).to_bytes(2, "little")
    partial = Header.parse(bytes(raw), "top")
    assert grown_header(partial, 5 * 64, "top") is partial
    with pytest.raises(BadImage, match="top: m_SizeInSectors is 383, expected a multiple of the cluster, 64"):
        grown_header(partial, 7 * 64, "top")


def test_the_same_size_is_the_same_header() -> None:
    header = header_of(DISK)
    assert grown_header(header, DISK * 64, "top") is header
    check_growth(1001, now_sectors=1001, cluster_sectors=64)  # a raw image may end inside a cluster


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_a_grown_header_differs_in_three_fields_and_in_no_other_byte(version: Version) -> None:
    random = Random(1)
    raw = bytearray(header_of(DISK, version).raw)
    for at in (20, 24, 52, 56, *((40,) if version is V1 else ())):  # geometry, flags, extension; unused in v1
        raw[at : at + 4] = random.randbytes(4)
    old = Header.parse(bytes(raw), "top")
    new = old.resized(SIZES[3] * 64)
    assert (new.bat_entries, new.size_sectors, new.first_block_sectors) == (SIZES[3], SIZES[3] * 64, 3 * 64)
    changed = {at for at in range(HEADER_BYTES) if old.raw[at] != new.raw[at]}
    assert changed <= {*range(32, 40 if version is V1 else 44), *range(48, 52)}


def test_an_area_that_is_larger_than_needed_stays() -> None:
    raw = bytearray(header_of(DISK).raw)
    raw[48:52] = (4 * 64).to_bytes(4, "little")
    custom = Header.parse(bytes(raw), "top")
    assert custom.resized(SIZES[3] * 64).first_cluster == 4
    assert custom.resized(SIZES[5] * 64).first_cluster == 5


# --- reserving --------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(1, 9)), st.integers(1, 12), st.integers(1, 14), st.sets(st.integers(0, 2)))
def test_what_is_reserved_is_not_handed_out_and_everything_else_still_is(
    used: set[int], file_clusters: int, floor: int, taken_back: set[int]
) -> None:
    end = max([file_clusters, *(cluster + 1 for cluster in used)])

    def given_out(reserve: Callable[[Allocator], None]) -> list[int]:
        image = Image(image_file(V2, 16, dict(enumerate(sorted(used))), end=end, tag=0))
        first = [image.allocator.allocate()[0] for _ in range(3)]
        for index in taken_back:
            image.allocator.release(first[index])
        reserve(image.allocator)
        return [image.allocator.allocate()[0] for _ in range(20)]

    free = given_out(lambda _allocator: None)
    reserved = given_out(lambda allocator: allocator.reserve_below(floor))
    expected = [cluster for cluster in free if cluster >= floor]
    assert reserved[: len(expected)] == expected
    assert sorted(set(reserved)) == reserved
