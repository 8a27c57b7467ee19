"""The command: what it prints, of tortures that need no mount."""

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.torture import __main__ as command
from tests.torture.report import Report
from tests.torture.stories import STORIES

REPORTS = (
    Report("vz7", Counter(write=3, read=1), Counter(written=4096), Counter(EIO=1), Counter(die=1)),
    Report("vz9", Counter(write=2), Counter(written=512, read=1), Counter(), Counter(die=1, hang=2)),
)
"""Of one after the other."""


@pytest.fixture(autouse=True)
def _told(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = iter(REPORTS)

    def story(_place: Path, _random: Random, _troubles: int) -> Report:
        return next(reports)

    monkeypatch.setitem(STORIES, "power", story)
    monkeypatch.setattr(command, "end_on_signals", lambda: None)  # pytest's own are to stay


def test_json_has_the_sum_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["power", "--times", "2", "--seed", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("seconds") >= 0
    assert shown == {
        "tortures": 2,
        "troubles": {"die": 2, "hang": 2},
        "errors": {"EIO": 1},
        "calls": {"write": 5, "read": 1},
        "bytes": {"written": 4608, "read": 1},
    }


def test_the_tables_have_each_torture_and_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["power", "--times", "2", "--seed", "1"]) == 0
    first, second, _, whole, _, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("power --seed 1 ")
    assert second.endswith("vz9: 2 calls, 3 troubles, errors: none")
    assert whole.startswith("2 tortures in ")
    assert [row.split() for row in rows][2:4] == [["errors", "EIO", "1"], ["calls", "write", "5"]]


def test_a_torture_that_fails_says_how_to_have_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def story(_place: Path, _random: Random, _troubles: int) -> Report:
        raise AssertionError("a byte is lost")

    monkeypatch.setitem(STORIES, "power", story)
    assert command.main(["power", "--seed", "7", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "a byte is lost" in printed.err
    assert "again with: tools/torture power --seed 7 --troubles 14" in printed.err
