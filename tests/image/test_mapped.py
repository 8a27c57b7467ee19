"""dm-ploop's rules for the images of a table: their order, and the errno of each."""

import errno
from dataclasses import replace

import pytest

from ploopfs.errors import BadImage, ImageRefused
from ploopfs.image.check import check_image
from ploopfs.image.header import HEADER_BYTES, V1, Header
from ploopfs.image.mapped import check_mapped, refused
from ploopfs.image.stacking import Layer
from ploopfs.testing.images import ImageBuilder

CLUSTER_SECTORS = 64
DISK_SECTORS = 4 * CLUSTER_SECTORS


def layer(path: str = "/top", **fields: object) -> Layer:
    builder = ImageBuilder(clusters={0: b"a"})
    for name, value in fields.items():
        setattr(builder, name, value)
    image = builder.build()
    return Layer(path, Header.parse(image, path), len(image))


def errno_of(*layers: Layer, cluster_sectors: int = CLUSTER_SECTORS, end_sectors: int = DISK_SECTORS) -> int:
    try:
        check_mapped(layers, cluster_sectors=cluster_sectors, end_sectors=end_sectors)
    except ImageRefused as error:
        return error.errno
    return 0


def custom_first_block(of: Layer) -> Layer:
    assert of.header is not None
    return replace(of, header=replace(of.header, first_block_sectors=2 * CLUSTER_SECTORS))


def test_a_stack_that_a_table_may_name() -> None:
    raw = Layer("/raw", None, 3 * CLUSTER_SECTORS * 512)
    assert errno_of(raw, layer("/middle", disk_clusters=3), layer()) == 0
    assert errno_of(layer(), end_sectors=1) == 0
    assert errno_of(Layer("/raw", None, DISK_SECTORS * 512)) == 0


def test_a_lower_mark_is_not_looked_at() -> None:
    assert errno_of(layer("/base", in_use=0x746F6E59), layer()) == 0


@pytest.mark.parametrize(
    ("top", "number"),
    [
        (layer(version=V1), errno.EOPNOTSUPP),
        (layer(cluster_sectors=128), errno.EINVAL),
        (custom_first_block(layer()), errno.EINVAL),
        (layer(disk_clusters=3), errno.EBADSLT),
        (replace(layer(), file_size_bytes=5 * 32768 - 512), errno.EPROTO),
        (Layer("/raw", None, DISK_SECTORS * 512 - 512), errno.EBADSLT),
        (Layer("/raw", None, DISK_SECTORS * 512 + 512), errno.EPROTO),
    ],
)
def test_each_rule_of_the_top_has_its_errno(top: Layer, number: int) -> None:
    assert errno_of(top) == number


@pytest.mark.parametrize(
    ("lower", "number"),
    [
        (layer("/base", version=V1), errno.EPROTO),
        (layer("/base", cluster_sectors=128), errno.EPROTO),
        (layer("/base", disk_clusters=5), errno.EPROTO),
        (custom_first_block(layer("/base")), errno.EPROTO),
        (replace(layer("/base"), file_size_bytes=32769), errno.EPROTO),
        (Layer("/raw", None, 32769), errno.EPROTO),
    ],
)
def test_each_rule_of_a_lower_delta_has_its_errno(lower: Layer, number: int) -> None:
    assert errno_of(lower, layer()) == number


def test_a_lower_delta_with_more_entries_than_the_one_above_is_too_long() -> None:
    assert errno_of(layer("/base", disk_clusters=4), layer("/middle", disk_clusters=3), layer()) == errno.EBADSLT


def test_the_top_is_looked_at_before_what_lies_below() -> None:
    assert errno_of(layer("/base", disk_clusters=5), layer(version=V1)) == errno.EOPNOTSUPP


def test_the_order_of_the_tops_rules_is_the_kernels() -> None:
    wrong = replace(custom_first_block(layer(cluster_sectors=128, disk_clusters=3, version=V1)), file_size_bytes=1)
    assert errno_of(wrong) == errno.EOPNOTSUPP


@pytest.mark.parametrize(("entry", "number"), [(99, errno.EPROTO), (1, errno.EXDEV)], ids=["beyond", "in the map"])
def test_a_bad_entry_of_the_map_has_dm_ploops_errno(entry: int, number: int) -> None:
    image = bytearray(ImageBuilder(disk_clusters=9000, clusters={0: b"a"}).build())
    image[HEADER_BYTES : HEADER_BYTES + 4] = entry.to_bytes(4, "little")
    header = Header.parse(bytes(image), "/i")
    (problem,) = check_image(header, bytes(image[: header.bat_area_bytes]), len(image), "/i").problems
    assert isinstance(problem, BadImage)
    assert (problem.errno, refused(problem, is_top=True).errno) == (errno.EINVAL, number)


def test_an_image_without_its_whole_map_has_no_data() -> None:
    image = ImageBuilder(clusters={0: b"a"}).build()
    problem = check_image(Header.parse(image, "/i"), image[:100], 100, "/i").problems[0]
    assert isinstance(problem, BadImage)
    assert refused(problem, is_top=True).errno == errno.ENODATA
    with pytest.raises(BadImage) as bad:
        Header.parse(image[:60], "/i")
    assert refused(bad.value, is_top=False).errno == errno.ENODATA


@pytest.mark.parametrize(("is_top", "number"), [(True, errno.EOPNOTSUPP), (False, errno.EPROTO)])
def test_an_unknown_signature_is_another_failure_below_than_at_the_top(is_top: bool, number: int) -> None:
    with pytest.raises(BadImage) as bad:
        Header.parse(b"no image" * 8, "/i")
    assert refused(bad.value, is_top=is_top).errno == number
