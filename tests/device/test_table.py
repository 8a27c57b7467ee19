"""The text of a table: what is read, what is refused and why, and that printing and reading agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.device.table import ErrorTarget, PloopTarget, Table, parse_table, status_line
from ploopfs.engine.delta import ImageSpec
from ploopfs.errors import BadValue

PATHS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12).map(lambda name: f"/{name}")
TARGETS = st.builds(
    PloopTarget,
    st.integers(6, 17).map(lambda log: 1 << log),
    st.builds(
        lambda base, others: (base, *others),
        st.builds(ImageSpec, PATHS, st.booleans()),
        st.lists(st.builds(ImageSpec, PATHS), max_size=3),
    ),
    st.booleans(),
    st.integers(0, 1 << 40),
)
TABLES = st.builds(Table, st.integers(1, 1 << 50), TARGETS | st.just(ErrorTarget()))


def test_a_line_of_the_specification_is_read() -> None:
    assert parse_table("0 4294967296 ploop 11 falloc_new_clu off=2048 raw@/a /b\n") == Table(
        4294967296,
        PloopTarget(2048, (ImageSpec("/a", raw=True), ImageSpec("/b")), falloc_new_clu=True, off_sectors=2048),
    )


def test_options_may_repeat_and_come_in_any_order() -> None:
    target = parse_table("0 8 ploop 7 off=1 falloc_new_clu off=2 falloc_new_clu /a").target
    assert target == PloopTarget(128, (ImageSpec("/a"),), falloc_new_clu=True, off_sectors=2)


def test_an_error_target_needs_no_arguments_and_minds_none() -> None:
    assert parse_table("0 2097152 error") == parse_table("0 2097152 error x y") == Table(2097152, ErrorTarget())


def test_comments_and_blank_lines_are_passed_over() -> None:
    assert parse_table("\n# a table\n\n  0 8 error  \n") == Table(8, ErrorTarget())


def test_a_read_only_table_says_so_in_front() -> None:
    assert parse_table("ro 0 8 error").read_only
    assert parse_table("ro 0 8 error").line == "ro 0 8 error"


def test_blanks_in_a_path_stand_behind_a_backslash() -> None:
    table = parse_table(r"0 8 ploop 7 /a\ b\\c")
    assert table.target == PloopTarget(128, (ImageSpec(r"/a b\c"),))
    assert table.line == r"0 8 ploop 7 /a\ b\\c"


@given(TABLES)
def test_what_is_printed_is_read_as_the_same_table(table: Table) -> None:
    assert parse_table(table.line) == table


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has 0 targets"),
        ("0 8 error\n8 8 error", "has 2 targets"),
        ("0 8", "expected START LENGTH"),
        ("1 8 error", "start is 1"),
        ("x 8 error", "start is 'x'"),
        ("0 0 error", "length is 0 sectors"),
        ("0 -8 error", "length is '-8'"),
        ("0 99999999999999999999 error", "length is 99999999999999999999 sectors"),
        ("0 8 linear /dev/x 0", "the target type is 'linear'"),
        ("0 8 ploop", "too few arguments"),
        ("0 8 ploop 7", "too few arguments"),
        ("0 8 ploop 7 falloc_new_clu", "names 0 images"),
        ("0 8 ploop 7 " + "/a " * 128, "names 128 images"),
        ("0 8 ploop x /a", "could not parse cluster_log: it is 'x'"),
        ("0 8 ploop 5 /a", "could not parse cluster_log: it is '5'"),
        ("0 8 ploop 18 /a", "could not parse cluster_log: it is '18'"),
        ("0 8 ploop 7 off=x /a", "off is 'x'"),
        ("0 8 ploop 7 a", "the image is 'a', expected an absolute path"),
        ("0 8 ploop 7 /a raw@/b", "the image is 'raw@/b', expected raw@ on the first one only"),
        ("0 8 ploop 7 3", "the image is '3', expected an absolute path"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused_with_the_word_to_blame(text: str, reason: str) -> None:
    with pytest.raises(BadValue) as refused:
        parse_table(text)
    assert reason in str(refused.value)


def test_the_status_is_the_kernels() -> None:
    table = parse_table("0 4294967296 ploop 11 /a /b")
    assert status_line(table, "") == "0 4294967296 ploop 2 v2 2048 o"
    assert status_line(parse_table("0 8 ploop 11 off=7 /a"), "ft") == "0 8 ploop 1 v2 2048 ft off=7"
    assert status_line(parse_table("0 8 error"), "") == "0 8 error"


def test_a_newline_behind_a_backslash_is_a_part_of_a_name_and_ends_no_target() -> None:
    table = parse_table("0 8 ploop 6 /a\\\nb\n")
    assert isinstance(table.target, PloopTarget)
    assert [image.path for image in table.target.images] == ["/a\nb"]
    assert parse_table(table.line) == table
