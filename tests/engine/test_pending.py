"""The fault model of everything that forgets: which outcomes a failure has, each of them and no other."""

from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.testing.pending import AtLeast, Exactly, Pending, PendingNames, Sector, everything, nothing


def outcomes(pending: Pending) -> set[bytes]:
    """Of every subset."""
    found = set()
    for kept in product((False, True), repeat=len(pending.pieces)):
        decisions = iter(kept)
        found.add(bytes(pending.left(lambda _piece, decisions=decisions: next(decisions))))  # type: ignore[misc]
    return found


def test_a_write_is_torn_where_its_sectors_meet() -> None:
    pending = Pending(bytes(2048))
    pending.write(500, b"x" * 600)
    assert pending.pieces == [Sector(500, b"x" * 12), Sector(512, b"x" * 512), Sector(1024, b"x" * 76)]
    assert len(outcomes(pending)) == 8


def test_bytes_past_the_size_that_is_left_vanish_and_a_size_without_its_data_shows_zeroes() -> None:
    pending = Pending(b"old")
    pending.write(3, b"new")
    assert pending.pieces == [AtLeast(6), Sector(3, b"new")]
    assert outcomes(pending) == {b"old", b"old\0\0\0", b"oldnew"}


def test_the_data_of_a_change_are_one_atom_and_its_size_another() -> None:
    pending = Pending(b"")
    pending.write(0, bytes(1024))
    pending.write(0, bytes(1024))
    assert [len(atom) for atom in pending.atoms] == [1, 2, 2]
    assert [piece for atom in pending.atoms for piece in atom] == pending.pieces


def test_data_that_were_there_before_the_size_appear_with_a_later_size() -> None:
    pending = Pending(b"")
    pending.write(0, b"data")
    pending.truncate(6)
    assert outcomes(pending) == {b"", bytes(4), b"data", bytes(6), b"data\0\0"}


def test_of_several_writes_to_a_sector_any_may_be_the_last_that_arrived() -> None:
    pending = Pending(b"0")
    for data in (b"1", b"2"):
        pending.write(0, data)
    assert outcomes(pending) == {b"0", b"1", b"2"}


def test_a_hole_is_old_or_zeroes_and_what_is_written_into_it_may_be_all_that_arrived() -> None:
    pending = Pending(b"old")
    pending.punch(0, 100)
    pending.write(1, b"N")
    assert outcomes(pending) == {b"old", bytes(3), b"oNd", b"\0N\0"}


def test_a_cut_that_is_not_kept_shows_the_old_bytes_when_the_file_is_long_again() -> None:
    pending = Pending(b"abcd")
    pending.truncate(1)
    pending.truncate(3)
    assert outcomes(pending) == {b"abcd", b"a", b"abc", b"a\0\0"}
    assert pending.pieces == [Exactly(1), Exactly(3)]


def test_space_that_was_allocated_is_only_a_size() -> None:
    pending = Pending(b"ab")
    pending.allocate(0, 1)
    assert pending.pieces == []
    pending.allocate(1, 3)
    assert outcomes(pending) == {b"ab", b"ab\0\0"}


def test_what_was_settled_no_failure_takes() -> None:
    pending = Pending(b"old")
    pending.write(0, b"1")
    first = pending.changes
    pending.write(1, b"2")
    pending.settle(first)
    assert outcomes(pending) == {b"1ld", b"12d"}
    pending.crash(nothing)
    assert (bytes(pending.data), pending.pieces) == (b"1ld", [])


CHANGES: dict[str, Callable[[Pending, int, int], None]] = {
    "write": lambda pending, offset, length: pending.write(offset, bytes([length % 255 + 1]) * length),
    "truncate": lambda pending, offset, _length: pending.truncate(offset),
    "fallocate": lambda pending, offset, length: pending.allocate(offset, length),
    "punch hole": lambda pending, offset, length: pending.punch(offset, length),
}


def applied(image: bytearray, name: str, offset: int, length: int) -> None:
    """What a file system shows while nothing fails."""
    match name:
        case "write":
            image.extend(bytes(max(0, offset - len(image))))
            image[offset : offset + length] = bytes([length % 255 + 1]) * length
        case "truncate":
            del image[offset:]
            image.extend(bytes(offset - len(image)))
        case "fallocate":
            image.extend(bytes(max(0, offset + length - len(image))))
        case _:
            end = min(offset + length, len(image))
            image[offset:end] = bytes(max(0, end - offset))


@given(st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 1500), st.integers(1, 1200))))
def test_with_nothing_lost_it_is_the_file_as_it_was_seen_however_much_of_it_was_settled(
    changes: list[tuple[str, int, int]],
) -> None:
    seen = bytearray(b"old" * 300)
    pending = Pending(bytes(seen))
    for number, (name, offset, length) in enumerate(changes):
        CHANGES[name](pending, offset, length)
        applied(seen, name, offset, length)
        assert pending.left(everything) == seen
        if number % 3 == 0:
            pending.settle(number)
            assert pending.left(everything) == seen
    pending.settle(pending.changes)
    assert pending.left(nothing) == seen


def test_a_rename_is_there_as_a_whole_or_not_and_only_the_sync_of_its_directory_makes_it_durable() -> None:
    names = PendingNames({"/d/x": 1})
    names.change({"/d/x.tmp": 2})
    names.change({"/d/x.tmp": None, "/d/x": 2})
    names.settle("/other")
    left = [
        names.left(lambda change, kept=kept: kept[names.changes.index(change)])  # type: ignore[misc]
        for kept in product((False, True), repeat=2)
    ]
    assert left == [{"/d/x": 1}, {"/d/x": 2}, {"/d/x": 1, "/d/x.tmp": 2}, {"/d/x": 2}]
    names.settle("/d")
    assert names.left(lambda _change: False) == {"/d/x": 2}


def test_one_operation_changes_one_directory() -> None:
    with pytest.raises(ValueError, match="unpack"):
        PendingNames().change({"/a/x": None, "/b/x": 1})
