"""Whoever uses a disk under torture is heard: no error and no difference goes by."""

import errno
from pathlib import Path
from random import Random

import pytest

from tests.torture.board import Board, Stopped, users
from tests.torture.files import User


def fail(number: int) -> None:
    raise OSError(number, "")


def test_an_error_that_no_outage_explains_fails_the_torture() -> None:
    board = Board(1)
    with pytest.raises(AssertionError, match="EBUSY is none of"):
        board.tried(lambda: fail(errno.EBUSY))
    with board.outage("EIO"), pytest.raises(AssertionError, match="EBUSY is none of"):
        board.tried(lambda: fail(errno.EBUSY))
    with pytest.raises(AssertionError, match="EIO is none of"):
        board.tried(lambda: fail(errno.EIO))
    assert not board.errors


def test_a_fault_that_nobody_meets_is_waited_for_only_while_so_many_calls_are_made() -> None:
    board = Board(1)

    def works() -> None:
        while True:
            board.stepped(0)

    with users(board, [works]):
        assert not board.wait_error("ENOSPC", steps=100)
        assert board.steps[0] >= 100


def test_a_user_that_fails_stops_the_others_and_fails_the_torture() -> None:
    board = Board(2)

    def works() -> None:
        while True:
            board.stepped(0)

    def differs() -> None:
        raise AssertionError("the block differs")

    with pytest.raises(AssertionError, match="the block differs"), users(board, [works, differs]):
        board.wait_steps(1 << 30)


def test_a_file_that_is_not_what_fsync_has_acknowledged_is_told(tmp_path: Path) -> None:
    board = Board(1)
    user = User(0, tmp_path, board, Random(1))
    board.stop()
    with pytest.raises(Stopped):
        user.work()
    [name] = user.journal
    user.compare()
    path = tmp_path / "user0" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(AssertionError, match="is not what fsync has acknowledged"):
        user.compare()
    path.write_bytes(content)
    (tmp_path / "user0/stray").touch()
    with pytest.raises(AssertionError):
        user.compare()
