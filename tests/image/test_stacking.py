"""Which images may lie on each other, and which may take a delta's place; each refusal says why in full."""

import pytest

from ploopfs.bounds import MAX_DELTAS
from ploopfs.errors import BadImage, ImageMismatch, PloopError
from ploopfs.image.header import V1, V2, Header, Version
from ploopfs.image.stacking import Layer, check_replacement, check_stack

CLUSTER_BYTES = 64 * 512


def layer(
    path: str, clusters: int = 4, *, cluster_sectors: int = 64, version: Version = V2, tail_sectors: int = 0
) -> Layer:
    """An image as large as `clusters` and `tail_sectors`, which only foreign tools write."""
    size = clusters * cluster_sectors
    header = Header.new(size_sectors=size, cluster_sectors=cluster_sectors, version=version)
    raw = bytearray(header.raw)
    raw[36:44] = (size + tail_sectors).to_bytes(8, "little")
    return Layer(path, Header.parse(bytes(raw), path), header.bat_area_bytes)


def raw(path: str, size_bytes: int) -> Layer:
    return Layer(path, None, size_bytes)


def check_new(
    new: Layer, *, size_clusters: int = 4, format_version: int = 2, is_base: bool = False, cluster_sectors: int = 64
) -> None:
    check_replacement(
        new,
        cluster_bytes=cluster_sectors * 512,
        format_version=format_version,
        size_bytes=size_clusters * CLUSTER_BYTES,
        is_base=is_base,
    )


STACKS = {
    "one image": [layer("base")],
    "equals": [layer("base"), layer("mid"), layer("top")],
    "v1 throughout": [layer("base", version=V1), layer("top", version=V1)],
    "growing upward": [layer("base", 2), layer("mid", 3), layer("top", 4)],
    "a raw base alone": [raw("base", 3 * 512)],
    "a raw base under deltas": [raw("base", 12345), layer("mid", 2), layer("top")],
    "a raw base longer than the disk": [raw("base", 99 * CLUSTER_BYTES), layer("top")],
    "as deep as it may be": [layer(str(level)) for level in range(MAX_DELTAS)],
}


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
def test_a_sound_stack_is_taken(layers: list[Layer]) -> None:
    check_stack(layers)


REFUSED: dict[str, tuple[list[Layer], type[PloopError], str]] = {
    "nothing": ([], ImageMismatch, "a stack has 0 deltas, expected 1 to 127"),
    "too deep": (
        [layer(str(level)) for level in range(MAX_DELTAS + 1)],
        ImageMismatch,
        "127: a stack has 128 deltas, expected 1 to 127",
    ),
    "another cluster": (
        [layer("base", cluster_sectors=128), layer("mid"), layer("top")],
        BadImage,
        "base: m_Sectors is 128, expected 64, as the top (top) has",
    ),
    "another cluster over a raw base": (
        [raw("base", 512), layer("mid", cluster_sectors=128), layer("top")],
        BadImage,
        "mid: m_Sectors is 128, expected 64, as the top (top) has",
    ),
    "another version": (
        [layer("base"), layer("mid", version=V1), layer("top")],
        BadImage,
        "mid: m_Sig is version 1, expected version 2, as the top (top) has",
    ),
    "a newer version below": (
        [layer("base"), layer("top", version=V1)],
        BadImage,
        "base: m_Sig is version 2, expected version 1, as the top (top) has",
    ),
    "a longer base": (
        [layer("base", 5), layer("top", 4)],
        BadImage,
        "base: m_SizeInSectors is 320, expected at most 256, as the delta above it (top) has",
    ),
    "a bulge below a large top": (
        [layer("base", 3), layer("mid", 2), layer("top", 4)],
        BadImage,
        "base: m_SizeInSectors is 192, expected at most 128, as the delta above it (mid) has",
    ),
    "raw on top": ([layer("base"), raw("top", 512)], ImageMismatch, "top: a raw image can only be the base of a stack"),
    "raw in the middle": (
        [layer("base"), raw("mid", 512), layer("top")],
        ImageMismatch,
        "mid: a raw image can only be the base of a stack",
    ),
    "raw on raw": (
        [raw("base", 512), raw("mid", 512), layer("top")],
        ImageMismatch,
        "mid: a raw image can only be the base of a stack",
    ),
    "an empty raw disk": ([raw("disk", 0)], BadImage, "disk: raw size is 0 bytes, expected a multiple of 512"),
    "a raw disk within a sector": (
        [raw("disk", 1023)],
        BadImage,
        "disk: raw size is 1023 bytes, expected a multiple of 512",
    ),
}


@pytest.mark.parametrize(("layers", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refused_stack_says_file_field_and_value(layers: list[Layer], kind: type[PloopError], message: str) -> None:
    with pytest.raises(PloopError) as caught:
        check_stack(layers)
    assert type(caught.value) is kind
    assert str(caught.value) == message


@pytest.mark.parametrize("clusters", [4, 5])
def test_a_replacement_may_be_as_large_as_the_device_or_larger(clusters: int) -> None:
    check_new(layer("new", clusters))


def test_a_raw_base_takes_the_place_of_a_base_alone() -> None:
    check_new(raw("new", 4 * CLUSTER_BYTES), is_base=True, format_version=0)
    with pytest.raises(ImageMismatch) as caught:
        check_new(raw("new", 4 * CLUSTER_BYTES))
    assert str(caught.value) == "new: a raw image cannot be a delta above a base"


def test_a_device_without_a_version_takes_either() -> None:
    for version in (V1, V2):
        check_new(layer("new", version=version), format_version=0, is_base=True)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (layer("new", cluster_sectors=128), "new: m_Sectors is 128, expected 64, as the device has"),
        (layer("new", version=V1), "new: m_Sig is version 1, expected version 2, as the device has"),
        (
            layer("new", 3),
            "new: m_SizeInSectors is 192, expected at least 256 (the device) and a multiple of 64",
        ),
        (
            layer("new", 4, tail_sectors=1),
            "new: m_SizeInSectors is 257, expected at least 256 (the device) and a multiple of 64",
        ),
        (
            raw("new", 4 * CLUSTER_BYTES - 1),
            "new: raw size is 131071 bytes, expected at least the device, 131072 bytes",
        ),
    ],
)
def test_a_refused_replacement_says_file_field_and_value(new: Layer, message: str) -> None:
    with pytest.raises(BadImage) as caught:
        check_new(new, is_base=True)
    assert str(caught.value) == message


def test_the_first_rule_that_a_replacement_breaks_is_the_one_it_hears_of() -> None:
    """The kernel's order: cluster, version, size."""
    with pytest.raises(BadImage, match="m_Sectors"):
        check_new(layer("new", 1, cluster_sectors=128, version=V1))
    with pytest.raises(BadImage, match="m_Sig"):
        check_new(layer("new", 1, version=V1))
