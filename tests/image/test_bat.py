"""The map of one image both ways: entries in memory, and the pages that go back into the file (image-format.md 3)."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.image.bat import PAGE_BYTES, Bat, PageWrite, decode_area
from ploopfs.image.header import HEADER_BYTES, V1, V2, Header, Version
from ploopfs.testing.images import ImageBuilder

CLUSTER_SECTORS = 64
PAGE_0_ENTRIES = 1008
"""Of the 1024 slots of the first page the header takes 16."""

versions = pytest.mark.parametrize(("version", "unit"), [(V1, CLUSTER_SECTORS), (V2, 1)])


def image(version: Version, entries: Sequence[int], *, disk_clusters: int | None = None) -> tuple[Header, bytes]:
    """A header and its whole area; `entries` are in the units of the disk format."""
    header = Header.new(
        size_sectors=(disk_clusters or len(entries)) * CLUSTER_SECTORS,
        cluster_sectors=CLUSTER_SECTORS,
        version=version,
    )
    area = header.raw + struct.pack(f"<{len(entries)}I", *entries)
    return header, area.ljust(header.bat_area_bytes, b"\0")


def applied(area: bytes, pages: Sequence[PageWrite]) -> bytes:
    result = bytearray(area)
    for page in pages:
        result[page.offset : page.offset + len(page.data)] = page.data
    return bytes(result)


def extents(pages: Sequence[PageWrite]) -> list[tuple[int, int]]:
    return [(page.offset, len(page.data)) for page in pages]


@versions
def test_memory_counts_clusters_whatever_the_version_counts(version: Version, unit: int) -> None:
    bat = Bat(*image(version, [0, 3 * unit, 1 * unit, 0, 2 * unit]))
    assert bat.clusters.tolist() == [0, 3, 1, 0, 2]
    assert bat.view().tolist() == [0, 3, 1, 0, 2]


@versions
def test_the_file_gets_the_units_of_its_version(version: Version, unit: int) -> None:
    bat = Bat(*image(version, [0, 3 * unit, 0, 0]))
    (page,) = bat.pages({0: 7, 3: 9})
    assert page == PageWrite(HEADER_BYTES, struct.pack("<4I", 7 * unit, 3 * unit, 0, 9 * unit))


@pytest.mark.parametrize(
    ("version", "cluster", "entry"),
    [(V1, 0xFFFFFFFF // 64, 0xFFFFFFC0), (V2, 0xFFFFFFFE, 0xFFFFFFFE)],
)
def test_the_largest_cluster_number_survives_both_ways(version: Version, cluster: int, entry: int) -> None:
    header, area = image(version, [entry])
    assert Bat(header, area).clusters.tolist() == [cluster]
    (page,) = Bat(*image(version, [0])).pages({0: cluster})
    assert page.data == struct.pack("<I", entry)


def test_the_area_is_decoded_to_its_end() -> None:
    _, area = image(V2, [1, 2, 3])
    entries = decode_area(area)
    assert entries[:4].tolist() == [1, 2, 3, 0]
    assert len(entries) == (len(area) - HEADER_BYTES) // 4


def test_the_first_page_begins_behind_the_header_and_ends_with_a_short_map() -> None:
    bat = Bat(*image(V2, [1, 0, 0, 2]))
    assert extents(list(bat.pages({2: 5}))) == [(HEADER_BYTES, 16)]


def test_each_page_is_whole_but_for_the_header_and_the_end_of_the_map() -> None:
    clusters = 3 * 1024
    bat = Bat(*image(V2, range(1, clusters + 1)))
    pages = list(bat.pages({0: 9, PAGE_0_ENTRIES: 9, clusters - 1: 9, 2047: 9}))
    assert extents(pages) == [
        (HEADER_BYTES, PAGE_BYTES - HEADER_BYTES),
        (PAGE_BYTES, PAGE_BYTES),
        (2 * PAGE_BYTES, PAGE_BYTES),
        (3 * PAGE_BYTES, HEADER_BYTES),
    ]


@pytest.mark.parametrize(
    ("slot", "offset"),
    [(0, 64), (PAGE_0_ENTRIES - 1, 64), (PAGE_0_ENTRIES, 4096), (2031, 4096), (2032, 8192)],
)
def test_only_the_page_of_a_changed_entry_is_written(slot: int, offset: int) -> None:
    bat = Bat(*image(V2, [0] * 3000))
    assert [page.offset for page in bat.pages({slot: 1})] == [offset]


def test_nothing_to_change_is_nothing_to_write() -> None:
    assert list(Bat(*image(V2, [1, 2])).pages({})) == []


def test_making_pages_leaves_memory_as_it_was() -> None:
    bat = Bat(*image(V2, [1, 2]))
    list(bat.pages({0: 7}))
    assert bat.clusters.tolist() == [1, 2]


@versions
def test_entries_past_the_disks_end_stay_taken_and_stay_in_the_file(version: Version, unit: int) -> None:
    header, area = image(version, [unit, 0, 7 * unit, 0, 5 * unit], disk_clusters=2)
    bat = Bat(header, area)
    assert bat.clusters.tolist() == [1, 0]
    assert sorted(bat.used().tolist()) == [1, 5, 7]
    (page,) = bat.pages({1: 2})
    assert extents([page]) == [(HEADER_BYTES, 8)]
    assert sorted(Bat(header, applied(area, [page])).used().tolist()) == [1, 2, 5, 7]


def test_used_follows_what_memory_says_now() -> None:
    bat = Bat(*image(V2, [4, 0, 6]))
    bat.clusters[1], bat.clusters[2] = 5, 0
    assert sorted(bat.used().tolist()) == [4, 5]


def test_the_builder_of_images_and_the_map_agree() -> None:
    for version in (V1, V2):
        data = ImageBuilder(disk_clusters=4, version=version, clusters={3: b"three", 1: b"one"}).build()
        header = Header.parse(data, "image")
        assert Bat(header, data[: header.bat_area_bytes]).clusters.tolist() == [0, 2, 0, 1]


@st.composite
def maps_and_changes(draw: st.DrawFn) -> tuple[Version, list[int], dict[int, int]]:
    """Small dense maps whose few entries lie about an edge of two pages as often as not."""
    edge = draw(st.sampled_from((0, PAGE_0_ENTRIES - 2)))
    entries = [0] * edge + draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    slots = st.integers(edge, len(entries) - 1)
    return draw(st.sampled_from((V1, V2))), entries, draw(st.dictionaries(slots, st.integers(0, 3)))


@given(maps_and_changes())
def test_pages_change_their_entries_and_no_other_byte(drawn: tuple[Version, list[int], dict[int, int]]) -> None:
    version, clusters, changes = drawn
    unit = version.entry_unit(CLUSTER_SECTORS)
    header, area = image(version, [cluster * unit for cluster in clusters])
    expected = [changes.get(slot, cluster) * unit for slot, cluster in enumerate(clusters)]
    assert applied(area, list(Bat(header, area).pages(changes))) == image(version, expected)[1]
