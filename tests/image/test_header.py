"""The header both ways, against the bytes and numbers that the original tools write (image-format.md 2)."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.errors import BadImage
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
    first_block_sectors,
    geometry,
)

PATH = "/vz/root.hds"
MIB_SECTORS = 2048
GIB_SECTORS = 1024 * MIB_SECTORS
FRESH = bytes.fromhex(
    "57697468 6f754672 65537061 63457874  02000000 10000000 00010000 00080000"
    "40000000 00000200 00000000 00000000  00080000 01000000 00000000 00000000"
)
"""What `ploop init` writes for a disk of 64 MiB."""

IN_USE_FIELD = range(44, 48)
FLAGS_FIELD = range(52, 56)
EXTENSION_FIELD = range(56, 64)


def fresh(*, size_sectors: int = 64 * MIB_SECTORS, cluster_sectors: int = 2048, version: Version = V2) -> Header:
    return Header.new(size_sectors=size_sectors, cluster_sectors=cluster_sectors, version=version)


def patched(offset: int, value: int, raw: bytes = FRESH) -> bytes:
    """The 64 bytes with another u32 at `offset`."""
    return raw[:offset] + struct.pack("<I", value) + raw[offset + 4 :]


def refusal(data: bytes) -> tuple[str, object]:
    with pytest.raises(BadImage) as caught:
        Header.parse(data, PATH)
    error = caught.value
    assert error.path == PATH
    assert str(error) == f"{PATH}: {error.field} is {error.value}, expected {error.expected}"
    return error.field, error.value


def changed_bytes(old: bytes, new: bytes) -> set[int]:
    return {index for index, (before, after) in enumerate(zip(old, new, strict=True)) if before != after}


valid_headers = st.builds(
    lambda signature, chs, cluster_log, entries, size, in_use, clusters, tail: (
        signature
        + struct.pack("<I", 2)
        + chs
        + struct.pack("<IIQII", 1 << cluster_log, entries, size, in_use, clusters << cluster_log)
        + tail
    ),
    st.sampled_from((V1.signature, V2.signature)),
    st.binary(min_size=8, max_size=8),
    st.integers(6, 17),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(1, 2**15 - 1),
    st.binary(min_size=12, max_size=12),
)


def test_a_fresh_v2_header_is_the_64_bytes_of_the_original() -> None:
    assert fresh().raw == FRESH


def test_a_fresh_v1_header_differs_in_the_signature_only() -> None:
    assert fresh(version=V1).raw == b"WithoutFreeSpace" + FRESH[16:]


def test_every_field_of_the_originals_header_is_read() -> None:
    header = Header.parse(FRESH + b"the map, which is not looked at", PATH)
    assert header == Header(
        version=V2,
        heads=16,
        cylinders=256,
        cluster_sectors=2048,
        bat_entries=64,
        size_sectors=131072,
        in_use=CLOSED,
        first_block_sectors=2048,
        flags=FLAG_EMPTY,
        extension_sectors=0,
        raw=FRESH,
    )


def test_each_field_is_read_from_its_own_offset() -> None:
    raw = V2.signature + struct.pack("<IIIIIQIIIQ", 2, 11, 12, 128, 13, 2**40 + 14, 15, 384, 16, 2**50 + 17)
    header = Header.parse(raw, PATH)
    assert (header.heads, header.cylinders, header.cluster_sectors, header.bat_entries) == (11, 12, 128, 13)
    assert (header.size_sectors, header.in_use, header.first_block_sectors) == (2**40 + 14, 15, 384)
    assert (header.flags, header.extension_sectors) == (16, 2**50 + 17)


@pytest.mark.parametrize(("version", "size_sectors"), [(V1, 131072), (V2, 131072 + (5 << 32))])
def test_only_v2_reads_the_upper_half_of_the_size(version: Version, size_sectors: int) -> None:
    raw = patched(40, 5, version.signature + FRESH[16:])
    header = Header.parse(raw, PATH)
    assert header.size_sectors == size_sectors
    assert header.marked_in_use().raw[36:44] == raw[36:44]


@pytest.mark.parametrize(
    ("size_sectors", "heads", "cylinders"),
    [
        (64, 2, 1),
        (64 * MIB_SECTORS, 16, 256),
        (100 * MIB_SECTORS, 16, 400),
        (504 * MIB_SECTORS, 16, 1024),
        (505 * MIB_SECTORS, 16, 1026),
        (GIB_SECTORS, 16, 2080),
        (8 * GIB_SECTORS, 16, 32768),
        (8193 * MIB_SECTORS, 16, 32772),
        (10 * GIB_SECTORS, 16, 40960),
        (1024 * GIB_SECTORS, 16, 4194304),
        (1001472, 16, 1956),
        # By the rule of 2.5 alone: the fixed range is open at both ends, and what has no divisor is addressed flat.
        (1032192, 16, 1024),
        (1032193, 16, 1024),
        (16777215, 16, 16644),
        (16777216, 16, 32768),
        (63 * 8, 8, 1),
        (16 * 4, 2, 1),
        (16 * 12 * 5, 2, 15),
        (8 * 7, 1, 56),
        (32 * 5, 1, 160),
        (63, 1, 63),
        (65, 1, 65),
    ],
)
def test_the_geometry_is_that_of_the_original(size_sectors: int, heads: int, cylinders: int) -> None:
    assert geometry(size_sectors) == (heads, cylinders)


@pytest.mark.parametrize(
    ("entries", "cluster_sectors", "first"),
    [
        (1, 2048, 2048),
        (262128, 2048, 2048),
        (262129, 2048, 4096),
        (1048576, 2048, 10240),
        (16777216, 2048, 133120),
        (32768, 64, 320),
        (16384, 128, 256),
        (4096, 512, 512),
        (16, 131072, 131072),
    ],
)
def test_data_starts_at_the_cluster_after_the_map(entries: int, cluster_sectors: int, first: int) -> None:
    assert first_block_sectors(entries, cluster_sectors) == first
    header = fresh(size_sectors=entries * cluster_sectors, cluster_sectors=cluster_sectors)
    assert (header.bat_entries, header.first_block_sectors) == (entries, first)
    assert (header.first_cluster, header.bat_area_bytes) == (first // cluster_sectors, first * 512)


def test_a_size_is_rounded_up_to_whole_clusters() -> None:
    header = fresh(size_sectors=64 * MIB_SECTORS + 1)
    assert (header.size_sectors, header.bat_entries, header.disk_clusters) == (65 * 2048, 65, 65)
    assert header.size_bytes == 65 << 20


def test_a_foreign_size_within_a_cluster_loses_its_tail_as_in_the_original() -> None:
    header = Header.parse(patched(36, 3072), PATH)
    assert (header.size_sectors, header.disk_clusters, header.size_bytes) == (3072, 1, 1 << 20)


@pytest.mark.parametrize(("version", "unit"), [(V1, 512), (V2, 1)])
def test_a_v1_entry_counts_sectors_and_a_v2_entry_clusters(version: Version, unit: int) -> None:
    header = fresh(cluster_sectors=512, version=version)
    assert (header.entry_unit, header.cluster_bytes) == (unit, 256 << 10)


@pytest.mark.parametrize(
    ("version", "cluster_sectors", "limit"),
    [(V1, 2048, 2**32 - 2048), (V1, 64, 2**32 - 64), (V2, 2048, (2**32 - 1) * 2048), (V2, 64, (2**32 - 1) * 64)],
)
def test_a_disk_is_as_large_as_its_version_can_say(version: Version, cluster_sectors: int, limit: int) -> None:
    header = fresh(size_sectors=limit, cluster_sectors=cluster_sectors, version=version)
    assert Header.parse(header.raw, PATH).size_sectors == limit
    with pytest.raises(BadImage, match=f"size is {limit + cluster_sectors} sectors, expected 1 to"):
        fresh(size_sectors=limit + 1, cluster_sectors=cluster_sectors, version=version)


def test_a_disk_without_a_sector_is_refused() -> None:
    with pytest.raises(BadImage, match="size is 0 sectors"):
        fresh(size_sectors=0)


@pytest.mark.parametrize("cluster_sectors", [1 << power for power in range(6, 18)])
def test_clusters_of_32_kib_to_64_mib_are_taken(cluster_sectors: int) -> None:
    header = fresh(cluster_sectors=cluster_sectors)
    assert Header.parse(header.raw, PATH).cluster_sectors == cluster_sectors


@pytest.mark.parametrize("cluster_sectors", [0, 1, 32, 63, 65, 96, 100, 504, 131072 + 64, 262144, 2**31])
def test_other_clusters_are_refused(cluster_sectors: int) -> None:
    raw = patched(48, cluster_sectors, patched(28, cluster_sectors))
    assert refusal(raw) == ("m_Sectors", cluster_sectors)
    with pytest.raises(BadImage, match=f"cluster size is {cluster_sectors} sectors"):
        fresh(cluster_sectors=cluster_sectors)


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        (FRESH[:63], "file size", "63 bytes"),
        (b"", "file size", "0 bytes"),
        (b"WithoutFreeSpac\0" + FRESH[16:], "m_Sig", "b'WithoutFreeSpac\\x00'"),
        (bytes(64), "m_Sig", repr(bytes(16))),
        (patched(16, 3), "m_Type", 3),
        (patched(16, 1), "m_Type", 1),
        (patched(48, 0), "m_FirstBlockOffset", 0),
        (patched(48, 1024), "m_FirstBlockOffset", 1024),
        (patched(48, 2049), "m_FirstBlockOffset", 2049),
    ],
)
def test_a_refusal_names_file_field_and_value(data: bytes, field: str, value: object) -> None:
    assert refusal(data) == (field, value)


@pytest.mark.parametrize("in_use", [CLOSED, CLOSED_V21, 1, IN_USE - 1, 0xFFFFFFFF])
def test_nothing_but_the_mark_counts_as_in_use(in_use: int) -> None:
    header = fresh().changed(in_use=in_use, flags=FLAG_CONVERTING, extension_sectors=0)
    assert not header.is_marked_in_use
    assert not header.is_converting


@pytest.mark.parametrize("flags", [0, FLAG_EMPTY, FLAG_CONVERTING, FLAG_EMPTY | FLAG_CONVERTING])
def test_a_conversion_is_told_by_mark_and_flag_together(flags: int) -> None:
    header = fresh().changed(in_use=IN_USE, flags=flags, extension_sectors=0)
    assert header.raw[44:48] == b"Ynot"
    assert header.is_marked_in_use
    assert header.is_converting == bool(flags & FLAG_CONVERTING)


def test_the_closing_value_of_the_extension_is_spelled_v21() -> None:
    assert fresh().changed(in_use=CLOSED_V21, flags=0, extension_sectors=0).raw[44:48] == b"v2.1"


@given(valid_headers, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_a_changed_header_leaves_the_other_bytes_alone(raw: bytes, in_use: int, flags: int, extension: int) -> None:
    header = Header.parse(raw, PATH)
    assert header.raw == raw
    changed = header.changed(in_use=in_use, flags=flags, extension_sectors=extension)
    assert changed_bytes(raw, changed.raw) <= {*IN_USE_FIELD, *FLAGS_FIELD, *EXTENSION_FIELD}
    assert (changed.in_use, changed.flags, changed.extension_sectors) == (in_use, flags, extension)
    assert header.raw == raw
    restored = changed.changed(in_use=header.in_use, flags=header.flags, extension_sectors=header.extension_sectors)
    assert restored == header


@given(valid_headers)
def test_the_mark_takes_the_empty_flag_away_and_nothing_else(raw: bytes) -> None:
    header = Header.parse(raw, PATH)
    marked = header.marked_in_use()
    assert len(marked.raw) == HEADER_BYTES
    assert changed_bytes(raw, marked.raw) <= {*IN_USE_FIELD, 52}
    assert marked.is_marked_in_use
    assert marked.flags == header.flags & ~FLAG_EMPTY
    assert marked.extension_sectors == header.extension_sectors
