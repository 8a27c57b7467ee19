"""Kept values: what they show, and which of them a saved configuration must hold."""

import pytest

from ploopfs.errors import BadValue
from ploopfs.scst.settings import Blank, Marked, Setting, Settings, keyed
from ploopfs.scst.text import decimal, first_line
from ploopfs.scst.trace import CORE_TOPICS, TraceLevel

TABLE = (
    Setting("changed", "5", decimal()),
    Setting("stored", "5", decimal(), Marked.STORED),
    Setting("never", "5", decimal(), Marked.NEVER),
    Setting("name", None, lambda text: first_line(8)(text) or None),
    Setting("daemon", "No", first_line(8), blank=Blank.MARKED),
    Setting("always", "0", first_line(8), blank=Blank.ALWAYS),
    Setting("fixed", "1"),
)


@pytest.mark.parametrize(
    ("name", "fresh", "text", "after"),
    [
        ("changed", "5", "6", "6\n[key]"),
        ("changed", "5", "5", "5"),
        ("stored", "5", "5", "5\n[key]"),
        ("never", "5", "6", "6"),
        ("name", None, "x\n", "x\n[key]"),
        ("name", None, "\n", None),
        ("daemon", "No", "Yes", "Yes\n[key]\n"),
        ("daemon", "No", "No", "No"),
        ("always", "0\n", "0", "0\n"),
        ("always", "0\n", "1", "1\n[key]\n"),
    ],
)
def test_a_value_shows_with_its_mark_and_its_empty_line(name: str, fresh: str, text: str, after: str) -> None:
    settings = Settings(TABLE)
    assert settings.show(name) == fresh
    settings.store(name, text)
    assert settings.show(name) == after


def test_defaults_of_ones_own_are_what_counts_as_unchanged() -> None:
    settings = Settings(TABLE, {"changed": "7"})
    assert settings.show("changed") == "7"
    settings["changed"] = "5"
    assert settings.show("changed") == "5\n[key]"


def test_what_is_refused_is_not_stored() -> None:
    settings = Settings(TABLE)
    with pytest.raises(BadValue):
        settings.store("changed", "x")
    assert settings["changed"] == "5"
    assert "changed" in settings
    assert "other" not in settings


def test_a_value_that_is_no_setting_is_marked_too() -> None:
    assert (keyed(1), keyed("a", False)) == ("1\n[key]", "a")


def test_trace_levels_are_topics_that_come_and_go() -> None:
    level = TraceLevel(CORE_TOPICS, "retry")

    def topics() -> list[str]:
        return level.show().partition("\n")[0].split(" | ")

    fresh = topics()
    assert fresh == ["out_of_mem", "minor", "pid", "line", "function", "special", "mgmt", "mgmt_dbg", "retry"]
    level.store("add SCSI\n")
    assert set(topics()) == {*fresh, "scsi"}
    level.store("del retry")
    level.store("DEL scsi")
    assert topics() == fresh[:-1]
    level.store("default")
    assert topics() == fresh
    level.store("value 0x9")
    assert topics() == ["pid", "debug"]
    level.store("all")
    assert len(topics()) == 21
    for none in ("none", "null"):
        level.store(none)
        assert topics() == [""]
    for text in ("", "add", "add nothing", "frob", "value x"):
        with pytest.raises(BadValue):
            level.store(text)
    assert "where TOKEN is one of [out_of_mem, " in level.show()
