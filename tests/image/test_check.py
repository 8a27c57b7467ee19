"""The check: the original's exit code for every fixture, and each rule broken by hand (image-format.md 4 and 7)."""

import hashlib
import json
import lzma
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.errors import BadImage, ImageConverting
from ploopfs.image.check import MODES, Mode, Report, Verdict, check_image
from ploopfs.image.extension import DIRTY_BITMAP_MAGIC, EXTENSION_MAGIC, extension_offset_bytes
from ploopfs.image.header import (
    CLOSED,
    CLOSED_V21,
    FLAG_CONVERTING,
    FLAG_EMPTY,
    HEADER_BYTES,
    IN_USE,
    V1,
    V2,
    Header,
    Version,
)
from ploopfs.testing.images import ImageBuilder

DATA = Path(__file__).parent.parent / "data" / "broken"
VERDICTS = [json.loads(line) for line in (DATA / "verdicts.jsonl").read_text().splitlines()]
PATH = "/vz/root.hds"
CLUSTER_SECTORS = 64
CLUSTER_BYTES = CLUSTER_SECTORS * 512


def judged(data: bytes, mode: Mode = MODES["check -f -c -r"]) -> Report:
    """What a reader of the file does: parse, then check the area and the extension that the header names."""
    header = Header.parse(data, PATH)
    offset = extension_offset_bytes(header)
    extension = data[offset : offset + header.cluster_bytes] if offset + header.cluster_bytes <= len(data) else b""
    return check_image(header, data[: header.bat_area_bytes], len(data), PATH, extension, mode=mode)


def only_problem(report: Report) -> str:
    assert report.verdict is Verdict.BROKEN
    (problem,) = report.problems
    assert isinstance(problem, BadImage)
    assert problem.path == PATH
    return str(problem).removeprefix(f"{PATH}: ")


def patched(data: bytes, offset: int, *values: int) -> bytes:
    """The file with other u32 values from `offset` on."""
    return data[:offset] + struct.pack(f"<{len(values)}I", *values) + data[offset + 4 * len(values) :]


def image(
    *entries: int, version: Version = V2, in_use: int = CLOSED, data_clusters: int = 3, disk_clusters: int = 4
) -> bytes:
    """A file of one cluster of header and map, and `data_clusters`; `entries` are in the units of the format."""
    empty = ImageBuilder(disk_clusters, CLUSTER_SECTORS, version, in_use=in_use).build()
    return patched(empty, HEADER_BYTES, *entries) + bytes(data_clusters * CLUSTER_BYTES)


COLUMNS = {"check": "vz7_check", "check -f": "vz7_f", "check -f -c -r": "vz7_fcr", "check -F -c": "vz7_Fc"}


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda verdict: verdict["name"])
def test_the_originals_verdict_holds_whatever_its_options(verdict: dict[str, object], options: str) -> None:
    data = lzma.decompress((DATA / str(verdict["image"])).read_bytes())
    try:
        report = judged(data, MODES[options])
    except BadImage:
        code = 11
    else:
        code = report.verdict.value
        assert bool(report.problems) == (report.verdict in {Verdict.BROKEN, Verdict.CONVERTING})
    assert code == verdict[COLUMNS[options]]


def test_every_fixture_has_a_verdict_and_every_verdict_occurs() -> None:
    assert {verdict["image"] for verdict in VERDICTS} == {path.name for path in DATA.glob("*.xz")}
    assert {verdict["vz7_fcr"] for verdict in VERDICTS} == {verdict.value for verdict in Verdict}


@pytest.mark.parametrize("version", [V1, V2])
def test_what_the_builder_makes_is_clean(version: Version) -> None:
    clusters = {2: b"two", 0: b"zero"}
    assert judged(ImageBuilder(version=version, clusters=clusters).build()) == Report(Verdict.CLEAN)
    assert judged(ImageBuilder(version=version).build()) == Report(Verdict.CLEAN)


# --- size, header and area ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("surplus", [-512, -1, 1, 512])
def test_a_file_that_ends_inside_a_cluster_is_broken_unless_it_was_not_closed(surplus: int) -> None:
    size = 4 * CLUSTER_BYTES + surplus
    assert only_problem(judged(image(1, 2).ljust(size, b"\0")[:size])) == (
        f"file size is {size} bytes, expected a multiple of the cluster, {CLUSTER_BYTES} bytes"
    )
    assert judged(image(1, 2, in_use=IN_USE).ljust(size, b"\0")[:size]) == Report(Verdict.NOT_CLOSED)


def test_the_last_cluster_of_an_image_that_was_not_closed_may_be_a_partial_one() -> None:
    data = image(3, in_use=IN_USE)[: 3 * CLUSTER_BYTES + 1]
    assert judged(data) == Report(Verdict.NOT_CLOSED)
    assert judged(data[:-1]).verdict is Verdict.BROKEN


@pytest.mark.parametrize("in_use", [CLOSED, IN_USE])
def test_a_file_shorter_than_its_map_is_broken(in_use: int) -> None:
    problem = judged(image(in_use=in_use)[:4096]).problems[0]
    assert str(problem) == (
        f"{PATH}: file size is 4096 bytes, expected at least the header and map, {CLUSTER_BYTES} bytes"
    )


def test_a_map_that_does_not_fit_before_the_data_is_broken() -> None:
    fits = (CLUSTER_BYTES - HEADER_BYTES) // 4
    assert judged(patched(image(1), 36, fits * CLUSTER_SECTORS)) == Report(Verdict.CLEAN)
    assert only_problem(judged(patched(image(1), 36, (fits + 1) * CLUSTER_SECTORS))) == (
        "m_FirstBlockOffset is 64, expected at least 65 sectors, for the map of 8177 clusters"
    )


def test_a_disk_of_less_than_a_cluster_is_broken() -> None:
    assert only_problem(judged(patched(image(), 36, 63))) == (
        "m_SizeInSectors is 63, expected at least one cluster of 64"
    )


def test_m_size_and_flags_are_not_looked_at() -> None:
    for data in (patched(image(1), 32, 0), patched(image(1), 32, 99), patched(image(1), 52, FLAG_EMPTY)):
        assert judged(data) == Report(Verdict.CLEAN)


def test_an_interrupted_conversion_is_told_before_its_entries_are_judged() -> None:
    report = judged(patched(image(99, in_use=IN_USE), 52, FLAG_CONVERTING))
    assert report.verdict is Verdict.CONVERTING
    assert [type(problem) for problem in report.problems] == [ImageConverting]
    assert PATH in str(report.problems[0])


def test_a_conversion_that_left_no_room_for_the_map_is_broken() -> None:
    assert judged(patched(image(in_use=IN_USE), 52, FLAG_CONVERTING)[:4096]).verdict is Verdict.BROKEN


# --- entries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_use", [CLOSED, IN_USE])
@pytest.mark.parametrize(
    ("version", "entries", "problem"),
    [
        (V2, (0, 4), "BAT entry 1 is 4, expected a cluster below the end of the file, cluster 4"),
        (V2, (9,), "BAT entry 0 is 9, expected a cluster below the end of the file, cluster 4"),
        (V2, (0, 0xFFFFFFFF), "BAT entry 1 is 4294967295, expected a cluster below the end of the file, cluster 4"),
        (V1, (1, 64), "BAT entry 0 is 1, expected a multiple of the cluster, 64 sectors"),
        (V1, (0, 0, 65), "BAT entry 2 is 65, expected a multiple of the cluster, 64 sectors"),
        (V1, (0, 0, 256), "BAT entry 2 is 256, expected a cluster below the end of the file, cluster 4"),
        (V2, (1, 2, 1), "BAT entry 2 is 1, expected a cluster that no other entry uses"),
        (V2, (3, 2, 3, 2), "BAT entry 2 is 3, expected a cluster that no other entry uses"),
        (V1, (64, 128, 128), "BAT entry 2 is 128, expected a cluster that no other entry uses"),
        (V2, (1, 0, 0, 0, 1), "BAT entry 4 is 1, expected a cluster that no other entry uses"),
        (V2, (0, 0, 0, 0, 0, 7), "BAT entry 5 is 7, expected a cluster below the end of the file, cluster 4"),
    ],
)
def test_a_hard_error_is_fatal_wherever_its_entry_stands(
    in_use: int, version: Version, entries: tuple[int, ...], problem: str
) -> None:
    report = judged(image(*entries, version=version, in_use=in_use))
    assert report.verdict is Verdict.BROKEN
    assert str(report.problems[0]) == f"{PATH}: {problem}"


def test_the_last_number_names_no_cluster_in_whatever_large_a_file() -> None:
    data = image(0xFFFFFFFF, 0xFFFFFFFE)
    report = check_image(Header.parse(data, PATH), data[:CLUSTER_BYTES], 2**33 * CLUSTER_BYTES, PATH)
    assert only_problem(report).startswith("BAT entry 0 is 4294967295, expected a cluster below the end of the file")


def test_an_entry_inside_header_and_map_is_fatal() -> None:
    data = patched(image(2, 3), 48, 3 * CLUSTER_SECTORS)
    assert only_problem(judged(data)) == "BAT entry 0 is 2, expected a data cluster, from 3 on"


def test_problems_come_in_the_order_of_the_rules_one_of_each() -> None:
    data = image(128, 1, 64, 999 * 64, 128, 2, version=V1)
    report = judged(patched(data, 48, 2 * CLUSTER_SECTORS))
    assert [str(problem).removeprefix(f"{PATH}: ") for problem in report.problems] == [
        "BAT entry 1 is 1, expected a multiple of the cluster, 64 sectors",
        "BAT entry 3 is 63936, expected a cluster below the end of the file, cluster 4",
        "BAT entry 2 is 64, expected a data cluster, from 2 on",
        "BAT entry 4 is 128, expected a cluster that no other entry uses",
    ]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 2), st.booleans())
def test_the_verdict_on_a_small_dense_map_agrees_with_the_plain_rules(
    entries: list[int], file_clusters: int, first_cluster: int, marked: bool
) -> None:
    data = image(*entries, data_clusters=2, disk_clusters=5, in_use=IN_USE if marked else CLOSED)
    data = patched(data, 48, first_cluster * CLUSTER_SECTORS)
    header = Header.parse(data, PATH)
    named = [entry for entry in entries if entry]
    sound = first_cluster <= file_clusters and len(set(named)) == len(named)
    sound = sound and all(first_cluster <= entry < file_clusters for entry in named)
    expected = (Verdict.NOT_CLOSED if marked else Verdict.CLEAN) if sound else Verdict.BROKEN
    report = check_image(header, data[: header.bat_area_bytes], file_clusters * CLUSTER_BYTES, PATH)
    assert report.verdict is expected


# --- entries past the disk's end ----------------------------------------------------------------------------------


def test_the_slot_right_past_the_end_is_let_pass_and_the_next_is_not() -> None:
    assert judged(image(1, 0, 0, 0, 2)) == Report(Verdict.CLEAN)
    assert only_problem(judged(image(1, 0, 0, 0, 0, 2, 3))) == (
        "BAT entry 5 is set, expected 0, past the end of a disk of 4 clusters"
    )


def test_slots_past_the_end_are_no_matter_in_an_image_that_was_not_closed() -> None:
    assert judged(image(1, 0, 0, 0, 0, 2, in_use=IN_USE)) == Report(Verdict.NOT_CLOSED)


@pytest.mark.parametrize(
    ("disk_clusters", "slot", "verdict"),
    [
        (786432, 786432, Verdict.CLEAN),
        (786432, 786433, Verdict.BROKEN),
        (786432, 1048575, Verdict.BROKEN),
        (786432, 1048576, Verdict.CLEAN),
        (786432, 1048576 + 786433, Verdict.BROKEN),
        (1048575, 1048576 + 5, Verdict.CLEAN),
        (1048576, 1048577, Verdict.CLEAN),
        (1048577, 2000000, Verdict.CLEAN),
    ],
)
def test_a_slot_is_compared_in_32_bits(disk_clusters: int, slot: int, verdict: Verdict) -> None:
    """Clusters of 2 MiB: slot 1048576 begins at 2 TiB, which is 0 in 32 bits of sectors."""
    cluster_sectors, first_cluster = 4096, 4
    header = Header.new(size_sectors=disk_clusters * cluster_sectors, cluster_sectors=cluster_sectors, version=V2)
    header = Header.parse(patched(header.raw, 48, first_cluster * cluster_sectors), PATH)
    area = bytearray(header.bat_area_bytes)
    struct.pack_into("<I", area, HEADER_BYTES + 4 * slot, first_cluster)
    report = check_image(header, bytes(area), (first_cluster + 1) * header.cluster_bytes, PATH)
    assert report.verdict is verdict


# --- the format extension -----------------------------------------------------------------------------------------

BITMAP_CLUSTER = 3
EXTENSION_CLUSTER = 4
DISK_SECTORS = 4 * CLUSTER_SECTORS
UUID = bytes.fromhex("262178fe49d711e28e9a525400123456")


def section(magic: int, data: bytes, *, size: int | None = None) -> bytes:
    return struct.pack("<QQII", magic, 0, len(data) if size is None else size, 0) + data


def bitmap(l1: Sequence[int], *, size_sectors: int = DISK_SECTORS, count: int | None = None) -> bytes:
    head = struct.pack("<Q16sII", size_sectors, UUID, 128, len(l1) if count is None else count)
    return section(DIRTY_BITMAP_MAGIC, head + struct.pack(f"<{len(l1)}Q", *l1))


VALID_BITMAP = bitmap([BITMAP_CLUSTER * CLUSTER_SECTORS])


@dataclass(frozen=True)
class Extended:
    """A v2.1 image: two clusters of data, one of bitmap bits, the extension last."""

    sections: bytes = VALID_BITMAP + bytes(24)
    extension_sectors: int = EXTENSION_CLUSTER * CLUSTER_SECTORS
    in_use: int = CLOSED_V21
    magic: int = EXTENSION_MAGIC
    md5: bytes | None = None
    clusters: dict[int, bytes] = field(default_factory=lambda: {0: b"zero", 2: b"two"})
    version: Version = V2

    def build(self) -> bytes:
        data = ImageBuilder(4, CLUSTER_SECTORS, self.version, self.clusters, self.in_use).build()
        body = self.sections.ljust(CLUSTER_BYTES - 24, b"\0")
        digest = self.md5 or hashlib.md5(body, usedforsecurity=False).digest()
        data = data.ljust(EXTENSION_CLUSTER * CLUSTER_BYTES, b"\xff") + struct.pack("<Q", self.magic) + digest + body
        header = Header.parse(data, PATH)
        header = header.changed(in_use=self.in_use, flags=0, extension_sectors=self.extension_sectors)
        return header.raw + data[HEADER_BYTES:]


ACCEPTED = {
    "a bitmap cluster": Extended(),
    "v1": Extended(version=V1),
    "all zeroes and all ones": Extended(bitmap([0, 1])),
    "no table": Extended(bitmap([])),
    "no section": Extended(b""),
    "a section of another feature": Extended(section(0x1234, b"transit!") + VALID_BITMAP),
    "a section that fills the cluster": Extended(section(0x1234, b"x" * (CLUSTER_BYTES - 48))),
    "a terminator with other fields set": Extended(VALID_BITMAP + struct.pack("<QQII", 0, 7, 7, 7)),
    "a table longer than needed": Extended(bitmap([0, 0, 3 * CLUSTER_SECTORS, 0])),
    "no data": Extended(clusters={}),
}
REFUSED = {
    "marked in use": (Extended(in_use=IN_USE), "m_DiskInUse is 0x746f6e59, expected 0x312e3276"),
    "another mark": (Extended(in_use=1), "m_DiskInUse is 0x1, expected 0x312e3276"),
    "not at a cluster": (
        Extended(extension_sectors=EXTENSION_CLUSTER * CLUSTER_SECTORS + 1),
        "m_FormatExtensionOffset is 257, expected a whole cluster within the file of 163840 bytes",
    ),
    "at the end of the file": (Extended(extension_sectors=5 * CLUSTER_SECTORS), "m_FormatExtensionOffset is 320,"),
    "far away": (Extended(extension_sectors=2**64 - 64), "m_FormatExtensionOffset is 18446744073709551552,"),
    "magic": (Extended(magic=0x1234), "format extension magic is 0x1234, expected 0xab234cef23dcea87"),
    "digest": (Extended(md5=b"\x11" * 16), f"format extension MD5 is {'11' * 16}, expected "),
    "a section over the end": (
        Extended(section(0x1234, b"", size=CLUSTER_BYTES - 47)),
        "extension section 0x1234 size is 32721, expected a section within its cluster",
    ),
    "a second section over the end": (
        Extended(VALID_BITMAP + section(0x99, b"", size=0xFFFFFFFF)),
        "extension section 0x99 size is 4294967295, expected",
    ),
    "data behind the sections": (
        Extended(VALID_BITMAP + bytes(24) + b"\0\0\1"),
        "format extension is followed by data, expected zeroes up to the end of its cluster",
    ),
    "data where no section fits": (
        Extended(section(0x1234, b"x" * (CLUSTER_BYTES - 48 - 23)) + bytes(22) + b"\1"),
        "format extension is followed by data,",
    ),
    "a bitmap without its head": (
        Extended(section(DIRTY_BITMAP_MAGIC, bytes(31))),
        "dirty bitmap size is 31, expected at least 32 bytes",
    ),
    "a bitmap of another disk": (
        Extended(bitmap([0], size_sectors=DISK_SECTORS + 1)),
        "dirty bitmap m_Size is 257, expected 256 sectors, as the disk",
    ),
    "a bitmap of another disk in 64 bits": (
        Extended(bitmap([0], size_sectors=DISK_SECTORS + (1 << 32))),
        "dirty bitmap m_Size is 4294967552,",
    ),
    "a table longer than its section": (
        Extended(bitmap([0], count=2)),
        "dirty bitmap m_L1Size is 2, expected a table within the section of 40 bytes",
    ),
    "bits not at a cluster": (Extended(bitmap([0, 193])), "dirty bitmap L1 entry 1 is 193, expected"),
    "bits in the data": (
        Extended(bitmap([2 * CLUSTER_SECTORS])),
        "dirty bitmap L1 entry 0 is 128, expected a cluster between the data and the extension",
    ),
    "bits in the data of v1": (Extended(bitmap([2 * CLUSTER_SECTORS]), version=V1), "dirty bitmap L1 entry 0 is 128,"),
    "bits in the extension": (
        Extended(bitmap([EXTENSION_CLUSTER * CLUSTER_SECTORS])),
        "dirty bitmap L1 entry 0 is 256,",
    ),
    "bits behind the extension": (Extended(bitmap([1, 1, 2**50])), "dirty bitmap L1 entry 2 is 1125899906842624,"),
    "a second bitmap": (Extended(VALID_BITMAP + bitmap([2])), "dirty bitmap L1 entry 0 is 2,"),
}


@pytest.mark.parametrize("extended", ACCEPTED.values(), ids=ACCEPTED)
def test_a_sound_extension_is_clean(extended: Extended) -> None:
    assert judged(extended.build()) == Report(Verdict.CLEAN)


@pytest.mark.parametrize(("extended", "problem"), REFUSED.values(), ids=REFUSED)
def test_an_unsound_extension_is_broken(extended: Extended, problem: str) -> None:
    assert only_problem(judged(extended.build())).startswith(problem)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_closed_by_older_software_no_extension_is_looked_at(case: tuple[Extended, str]) -> None:
    assert judged(replace(case[0], in_use=CLOSED).build()) == Report(Verdict.CLEAN)


def test_the_extension_must_lie_in_the_file_whole() -> None:
    report = judged(Extended().build()[:-CLUSTER_BYTES])
    assert only_problem(report).startswith("m_FormatExtensionOffset is 256,")


def test_an_entry_and_the_extension_are_both_reported() -> None:
    data = patched(Extended(magic=0).build(), HEADER_BYTES + 4, 99)
    assert [str(problem).split(" is ")[0] for problem in judged(data).problems] == [
        f"{PATH}: BAT entry 1",
        f"{PATH}: format extension magic",
    ]


@pytest.mark.parametrize(
    ("in_use", "extension_sectors", "offset"),
    [(CLOSED_V21, 256, 131072), (CLOSED_V21, 0, 0), (CLOSED, 256, 0), (IN_USE, 256, 0), (1, 256, 0)],
)
def test_only_an_image_closed_by_v21_software_has_an_extension_to_read(
    in_use: int, extension_sectors: int, offset: int
) -> None:
    header = Header.parse(image(), PATH).changed(in_use=in_use, flags=0, extension_sectors=extension_sectors)
    assert extension_offset_bytes(header) == offset
