"""The kernel's parsers, by what they take and what they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.errors import BadValue
from ploopfs.sysfs.parse import U32_MAX, lax_value, line, queue_bool, queue_value, scanned_value


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("0\n", 0), ("+5", 5), ("007\n", 7), ("4294967295", U32_MAX), ("0" * 4000 + "1", 1)],
)
def test_a_strict_number_is_digits_with_at_most_a_plus_before_and_a_newline_after(text: str, value: int) -> None:
    assert queue_value(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "\n", "junk", "-1", "0x1", " 0", "0 \n", "0\n\n", "0\r\n", "+", "++1", "1_0", "٣", "4294967296", "9" * 5000],
)
def test_a_strict_number_is_nothing_else(text: str) -> None:
    with pytest.raises(BadValue):
        queue_value(text)


def test_a_bool_is_any_number_and_true_unless_it_is_0() -> None:
    assert [queue_bool(text) for text in ("0", "1\n", "2", "4294967295")] == [False, True, True, True]
    with pytest.raises(BadValue):
        queue_bool("yes")


@pytest.mark.parametrize(
    ("text", "value"),
    [("12\n", 12), ("12junk", 12), ("junk", 0), ("-1", 0), ("+1", 0), (" 1", 0), ("", 0), ("0x10", 0), ("٣", 0)],
)
def test_a_lax_number_is_the_digits_at_the_start(text: str, value: int) -> None:
    assert lax_value(text) == value


@given(st.text())
def test_a_lax_number_never_fails(text: str) -> None:
    assert 0 <= lax_value(text) <= U32_MAX


@given(st.integers(min_value=0, max_value=10**40))
def test_a_lax_number_wraps_at_32_bits(value: int) -> None:
    assert lax_value(str(value)) == value % 2**32


def test_a_scanned_number_may_have_blanks_before_and_anything_after() -> None:
    assert [scanned_value(text) for text in (" 5 x", "-1\n", "+2")] == [5, -1, 2]
    for text in ("", "x", "-", "9" * 4096):
        with pytest.raises(BadValue):
            scanned_value(text)


def test_a_line_loses_exactly_one_newline() -> None:
    assert [line(text) for text in ("a\n", "a", "a\n\n", "\n", " a ")] == ["a", "a", "a\n", "", " a "]
