"""The parsers: words, parameters and numbers, as SCST and the kernel read them."""

import pytest

from ploopfs.errors import BadValue
from ploopfs.scst.text import (
    check_name,
    decimal,
    first_digit,
    first_line,
    number,
    only,
    parameters,
    switch,
    truth,
    word,
    words,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ("", "")),
        ("  \t\n", ("", "")),
        ("add ploop0 0\n", ("add", "ploop0 0\n")),
        ("  add   b", ("add", "  b")),
        ("filename=/dev/x", ("filename", "/dev/x")),
        ("= = a=", ("a", "")),
    ],
)
def test_a_word_ends_at_a_blank_or_an_equals_sign_and_takes_one_of_them_along(
    text: str, found: tuple[str, str]
) -> None:
    assert word(text) == found


def test_words_are_all_of_them() -> None:
    assert words(" a=b  c\n") == ["a", "b", "c"]
    assert only("7\n", "a LUN") == "7"
    for text in ("", "1 2"):
        with pytest.raises(BadValue, match="a LUN wanted"):
            only(text, "a LUN")


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("\n", []),
        ("filename=/dev/vda; nv_cache=0\n", [("filename", "/dev/vda"), ("nv_cache", "0")]),
        ("  Read_Only = 1;", [("read_only", "1")]),
        ("a=1\nb=2", [("a", "1"), ("b", "2")]),
        ("a 1;b 2", [("a", "1"), ("b", "2")]),
        # An empty parameter ends the list, whatever follows: so does the original.
        ("a=1;;b=2", [("a", "1")]),
    ],
)
def test_parameters_are_pairs_between_semicolons_or_newlines(text: str, pairs: list[tuple[str, str]]) -> None:
    assert list(parameters(text)) == pairs


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("a=1; ;b=2", "is no parameter"), ("a", "a has no value"), ("a=1 2", "more than one value"), ("a=b=c", "more")],
)
def test_what_is_no_pair_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(BadValue, match=complaint):
        list(parameters(text))


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("16383\n", 16383), ("0x1F", 31), ("017", 15), ("+5", 5), ("00", 0)]
)
def test_a_number_is_decimal_hexadecimal_or_octal(text: str, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "\n", "x", " 1", "1 ", "08", "1\n\n", "-1", "0x", "1" * 40, str(2**64), "٣"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(BadValue):
        number(text)


def test_a_number_has_bounds_which_the_refusal_names() -> None:
    assert number("-1", -1, 5) == -1
    with pytest.raises(BadValue, match="'6' is not a number from -1 to 5"):
        number("6", -1, 5)
    assert decimal(0, 16)("0x10") == "16"
    assert (switch("1\n"), truth("5"), truth("0")) == ("1", "1", "0")
    with pytest.raises(BadValue):
        switch("2")


def test_the_first_digit_is_all_that_counts_for_some() -> None:
    parse = first_digit("0", "1")
    assert (parse("1abc\n"), parse("0")) == ("1", "0")
    for text in ("", "2", " 1"):
        with pytest.raises(BadValue):
            parse(text)


def test_a_line_is_cut_at_its_newline_and_measured() -> None:
    parse = first_line(4)
    assert (parse("abcd\nefgh"), parse("\n")) == ("abcd", "")
    with pytest.raises(BadValue, match="at most 4"):
        parse("abcde")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "ä" * 128])
def test_a_name_that_no_directory_could_hold_is_refused(name: str) -> None:
    with pytest.raises(BadValue):
        check_name(name, "a group")


def test_a_name_may_hold_anything_else() -> None:
    assert check_name("iqn.2024-01.e2e:*", "an initiator") == "iqn.2024-01.e2e:*"
    assert check_name("...", "a group") == "..."
