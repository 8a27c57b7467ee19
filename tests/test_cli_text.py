"""How the verbs say what they read: tables, colours, durations, events, reasons and advice. No daemon, plain files."""

import errno
import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ploopfs.bounds import MAX_LAST_EVENTS
from ploopfs.cli import reload, text, tree
from ploopfs.cli.events import EventFile, Record, as_text
from ploopfs.cli.exits import Exit, failed
from ploopfs.cli.logs import FORMAT, OneLine
from ploopfs.cli.main import _parser
from ploopfs.cli.text import Colour, duration, painted, print_table, size
from ploopfs.cli.tree import DeviceStatus, Level, Tree
from ploopfs.cli.why import Failure, failure, steps
from ploopfs.device.events import Events
from ploopfs.device.standby import Reason
from ploopfs.errors import BadTree, BadValue

WELL = DeviceStatus(
    device="ploop0",
    mountpoint="/mnt/ploop",
    disk="/mnt/ploop/dev/ploop0",
    size_bytes=1 << 20,
    read_only=False,
    standby="off",
    since_s=None,
    reason="",
    generation=1,
    aborted=False,
    suspended=False,
    parked=0,
    last_error="",
    deltas=["/d/base.hds", "/d/top.hds"],
    on_standby="fail",
    hold_timeout_ms=300_000,
    held=0,
    held_bytes=0,
    unflushed_bytes=0,
    recovery="",
    agent="",
    data_plane="own",
    connection="attached",
)


# Text


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed is captured all the same."""
    monkeypatch.setattr(text, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_colours() -> None:
    assert painted("on", Colour.RED) == "\033[31mon\033[0m"
    assert painted("on", None) == "on"
    assert painted("   ", Colour.RED) == "   "


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_colours_gets_none(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    assert painted("on", Colour.RED) == "on"


def test_a_pipe_gets_no_colours() -> None:
    assert painted("on", Colour.RED) == "on"


@pytest.mark.usefixtures("terminal")
def test_a_table_is_aligned_as_it_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "BB"), [("long", "x"), ("s", "")], {"A": lambda cell: Colour.RED if "s" in cell else None})
    bold = "\033[1m"
    expected = f"{bold}A   \033[0m  {bold}BB\033[0m\nlong  x\n\033[31ms   \033[0m\n"
    assert capsys.readouterr().out == expected


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (80, ["dm-0  ENOTCONN on read of /a-rather/long/path/to/an.hds"]),
        (55, ["dm-0  ENOTCONN on read of /a-rather/long/path/to/an.hds"]),
        (54, ["dm-0  ENOTCONN on read of", "      /a-rather/long/path/to/an.hds"]),
        (26, ["dm-0  ENOTCONN on read of", "      /a-rather/long/path/to/an.hds"]),
        (25, ["dm-0  ENOTCONN on read of /a-rather/long/path/to/an.hds"]),
    ],
)
def test_the_last_column_goes_on_below_itself_where_the_terminal_ends_and_a_path_stays_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, lines: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(("D", "WHY"), [("dm-0", "ENOTCONN on read of /a-rather/long/path/to/an.hds")])
    assert capsys.readouterr().out.splitlines()[1:] == lines


def test_for_a_pipe_nothing_is_folded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(("D", "WHY"), [("dm-0", "long " * 20 + "end")])
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.usefixtures("terminal")
def test_what_is_folded_shows_what_cannot_be_seen_and_keeps_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert text.folded("the name is /a\nb and it is long", 2) == "the name is /a\\nb and it is\n  long"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-1, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3600, "1 h 0 min"),
        (18_120, "5 h 2 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_a_size_is_told_in_its_largest_unit() -> None:
    assert [size(number) for number in (0, 512, 1 << 20, 3 << 29)] == ["0B", "512B", "1M", "1.5G"]


# Events


def record(event: str, **facts: str | int | bool | None) -> Record:
    events = Events()
    events.emit("ploop0", event, **facts)
    line = events.record(1).as_json()
    return Record(line, json.loads(line))


def test_an_event_is_a_line_with_its_facts_and_values_with_blanks_are_quoted() -> None:
    line = as_text(record("standby_on", errno="EIO", level=None, file="/a b/c", aborted=True, text=""))
    when, rest = line.split("  ", 1)
    assert len(when) == len("12:34:56.789")
    assert rest == 'ploop0    standby_on      errno=EIO level=- file="/a b/c" aborted=true text=""'


def test_events_that_were_lost_are_told() -> None:
    gap = Record("", {"seq": 5, "event": "gap", "lost": 4})
    assert as_text(gap) == "... 4 events were overwritten before they were read"
    assert gap.is_of("ploop0")


@pytest.mark.usefixtures("terminal")
def test_an_operation_has_the_colour_of_its_result() -> None:
    assert "\033[32mreplace_end" in as_text(record("replace_end", result="ok"))
    assert "\033[31mreplace_end" in as_text(record("replace_end", result="EIO"))
    assert "\033[31mstandby_on" in as_text(record("standby_on"))


# A device


@pytest.mark.parametrize("file", ["/d/top.hds", "/with blank/file=x file=y"])
def test_the_reason_of_standby_is_taken_apart_as_the_tree_shows_it(file: str) -> None:
    reason = Reason(errno=errno.ENOTCONN, operation="read", file=file, offset=1 << 20, length=4096, level=1)
    assert failure(str(reason)) == Failure("ENOTCONN", "read", 1 << 20, 4096, 1, file)
    of_none = failure(str(replace(reason, level=None, operation="write data", length=0)))
    assert of_none == Failure("ENOTCONN", "write_data", 1 << 20, 0, None, file)
    assert of_none is not None
    assert of_none.in_words == "ENOTCONN (Transport endpoint is not connected) on write data"
    assert failure("") is None


def test_a_device_in_no_trouble_needs_no_step() -> None:
    assert list(steps(Tree("/mnt/ploop"), WELL)) == []


@pytest.mark.parametrize(
    ("number", "look"), [(errno.ENOTCONN, "stat"), (errno.EBUSY, "fuser"), (errno.EIO, "head"), (9999, "head")]
)
def test_in_standby_the_first_step_is_to_look_and_the_others_lead_out(number: int, look: str) -> None:
    reason = Reason(errno=number, operation="read", file="/d/a b.hds", level=1)
    lost = replace(WELL, standby="on", since_s=1.0, reason=str(reason))
    commands = [step.command for step in steps(Tree("/mnt/ploop"), lost)]
    assert commands[0].startswith(look)
    assert "'/d/a b.hds'" in commands[0]
    assert [command.split()[:3] for command in commands[1:]] == [
        ["ploopfs", "reopen", "ploop0"],
        ["ploopfs", "replace", "ploop0"],
        ["ploopfs", "wait", "ploop0"],
    ]
    assert "--level" not in commands[2]


def test_the_level_that_failed_is_the_one_to_replace_and_who_waits_can_be_given_up() -> None:
    reason = Reason(errno=errno.EIO, operation="read", file="/d/base.hds", level=0)
    lost = replace(WELL, standby="on", since_s=1.0, reason=str(reason), held=2)
    commands = [step.command for step in steps(Tree("/mnt/ploop"), lost)]
    assert commands[2].startswith("ploopfs replace ploop0 PATH --level 0")
    assert "echo 1 > /mnt/ploop/sys/block/ploop0/ploopfs/fail_held" in commands


@pytest.mark.parametrize(
    ("agent", "told"), [("paused", "resume"), ("waiting", "now"), ("gave_up", "now"), ("recovering", None), ("", None)]
)
def test_an_agent_is_resumed_or_hurried(agent: str, told: str | None) -> None:
    reason = Reason(errno=errno.EIO, operation="read", file="/d/top.hds", level=1)
    lost = replace(WELL, standby="on", since_s=1.0, reason=str(reason), recovery="reopen", agent=agent)
    words = [step.command.split()[1] for step in steps(Tree("/mnt/ploop"), lost) if step.command.endswith("/agent")]
    assert words == ([] if told is None else [told])


def test_a_disk_that_is_cut_off_is_told_how_to_open_it_again() -> None:
    [step] = steps(Tree("/mnt/ploop"), replace(WELL, connection="aborted"))
    assert step.command == "echo attach > /mnt/ploop/sys/block/ploop0/ploopfs/connection"
    assert list(steps(Tree("/mnt/ploop"), replace(WELL, connection="detached", data_plane="pyfuse3"))) == []


@pytest.mark.parametrize("has_pstate", [True, False])
def test_an_aborted_device_is_told_how_to_take_writes_again(tmp_path: Path, has_pstate: bool) -> None:
    """Only vz7 has a file for it; opening the top again is for both."""
    attribute = tmp_path / "sys/block/ploop0/pstate/aborted"
    if has_pstate:
        attribute.parent.mkdir(parents=True)
        attribute.write_text("1\n")
    commands = [step.command for step in steps(Tree(str(tmp_path)), replace(WELL, aborted=True))]
    assert commands[0].startswith("ploopfs reopen ploop0")
    assert (f"echo 0 > {attribute}" in commands) is has_pstate


def test_a_suspended_device_is_told_how_to_let_its_requests_go_on(tmp_path: Path) -> None:
    commands = [step.command for step in steps(Tree(str(tmp_path)), replace(WELL, suspended=True, parked=3))]
    assert f"echo > {tmp_path}/sys/block/ploop0/ploopfs/resume" in commands


# The levels of a device, of either flavour


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "sys/block/dm-0"
    (path / "ploopfs").mkdir(parents=True)
    (path / "ro").write_text("0\n")
    return path


def test_levels_are_read_from_one_file_where_there_is_no_pdelta(tmp_path: Path, device: Path) -> None:
    (device / "ploopfs/deltas").write_text("0 /d/base of all.raw 1 raw\n1 /d/top.hds 0 ploop1\n")
    tree = Tree(str(tmp_path))
    assert tree.levels("dm-0") == [Level("/d/base of all.raw", True, "raw"), Level("/d/top.hds", False, "ploop1")]
    assert tree.written_image("dm-0") == "/d/top.hds"


def test_levels_are_read_from_pdelta_in_the_order_of_their_numbers(tmp_path: Path, device: Path) -> None:
    for number in range(11):
        place = device / f"pdelta/{number}"
        place.mkdir(parents=True)
        for name, value in (("image", f"/d/{number}.hds"), ("ro", "1"), ("format", "ploop1")):
            (place / name).write_text(f"{value}\n")
    assert [level.path for level in Tree(str(tmp_path)).levels("dm-0")] == [f"/d/{number}.hds" for number in range(11)]


def test_a_device_without_levels_or_that_does_not_write_has_no_written_image(tmp_path: Path, device: Path) -> None:
    tree = Tree(str(tmp_path))
    assert tree.levels("dm-0") == []
    assert tree.written_image("dm-0") is None
    for line, read_only in (("0 /d/top.hds 1 ploop1", "1"), ("0 /d/disk.img 0 raw", "0")):
        (device / "ploopfs/deltas").write_text(f"{line}\n")
        (device / "ro").write_text(f"{read_only}\n")
        assert tree.written_image("dm-0") is None


def test_what_is_to_be_typed_is_quoted() -> None:
    reason = "errno=EIO operation=read offset=0 length=512 level=1 file=/d/top.hds"
    lost = replace(WELL, standby="on", since_s=1.0, reason=reason, held=1)
    commands = [step.command for step in steps(Tree("/mnt/my ploop"), lost)]
    assert "echo 1 > '/mnt/my ploop/sys/block/ploop0'/ploopfs/fail_held" in commands


# What a tree says that is none of ours, and names that are no text


@pytest.mark.parametrize(
    ("text_of_a_name", "seen"),
    [
        ("plain \u00e4\u4e2d", "plain \u00e4\u4e2d"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("\033[2J\x07", "\\x1b[2J\\x07"),
        ("\udcff\ud800", "\\xff\\ud800"),
        ("a\u202egnp.exe\u2028", "a\\u202egnp.exe\\u2028"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(text_of_a_name: str, seen: str) -> None:
    assert text.printable(text_of_a_name) == seen


@pytest.mark.usefixtures("terminal")
def test_a_terminal_is_sent_no_control_sequence_but_our_colours(capsys: pytest.CaptureFixture[str]) -> None:
    text.say(f"{painted('on', Colour.RED)} /a\033[2J\033[8mb\n  next")
    assert capsys.readouterr().out == "\033[31mon\033[0m /a\\x1b[2J\\x1b[8mb\n  next\n"


def test_a_pipe_gets_the_very_name(capsys: pytest.CaptureFixture[str]) -> None:
    text.say("/a\033[2Jb")
    assert capsys.readouterr().out == "/a\033[2Jb\n"


def test_a_message_is_one_line_whatever_the_name_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert failed(BadValue("/a\nploopfs: all is well: no such file")) is Exit.FAILED
    assert capsys.readouterr().err == "ploopfs: /a\\nploopfs: all is well: no such file\n"


def test_a_record_of_the_log_is_one_line_whatever_the_name_in_it() -> None:
    formatted = OneLine(FORMAT).format(
        logging.LogRecord("ploopfs", logging.INFO, "", 0, "loaded %s", ("/a\n2026-01-01 ERROR \udcff",), None)
    )
    assert formatted.endswith("INFO ploopfs: loaded /a\\n2026-01-01 ERROR \\xff")
    formatted.encode()


@pytest.mark.parametrize("reason", ["?", "errno=EIO file=/x", "a=b file=/x", "errno=EIO operation=r offset=x length=1"])
def test_a_reason_that_no_daemon_gives_is_refused(reason: str) -> None:
    with pytest.raises(BadTree, match="standby_reason"):
        failure(reason)


def test_an_errno_that_is_none_has_no_meaning() -> None:
    """Not even one that is the name of something else in Python's module."""
    assert Failure("errorcode", "read", 0, 0, None, "/x").in_words == "errorcode on read"


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "{",
        "[" * 100_000,
        "{}",
        '{"event": "gap"}',
        '{"event": "gap", "lost": "many"}',
        '{"time": 1, "device": "ploop0", "event": 7}',
        '{"time": 1e300, "device": "ploop0", "event": "held"}',
        '{"time": NaN, "device": "ploop0", "event": "held"}',
        '{"time": 1, "device": "ploop0", "event": "held", "bytes": ' + "9" * 5000 + "}",
        '{"time": 1, "device": "ploop0", "event": "held", "x": [[]]}',
    ],
)
def test_a_line_that_is_no_event_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "events").write_text(f"{line}\n")
    with (tmp_path / "events").open("rb") as file, pytest.raises(BadTree, match=r"events: is .*, expected"):
        list(EventFile(file.fileno()).read())


def test_events_without_an_end_are_not_read_for_ever() -> None:
    with open("/dev/zero", "rb") as endless, pytest.raises(BadTree, match="endless"):
        list(EventFile(endless.fileno()).read())


def test_a_file_without_an_end_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_FILE_BYTES", 1 << 16)
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(BadTree, match="endless"):
        Tree(str(tmp_path)).read("endless")


@pytest.mark.parametrize("count", ["9" * 30, "18446744073709551616"])
def test_more_events_than_there_can_be_are_all_of_them(count: str) -> None:
    assert _parser().parse_args(["watch", "--last", count]).last == MAX_LAST_EVENTS


@pytest.mark.parametrize("wrong", ["0x" + "f" * 4000, "9" * 21, "9" * 5000])
def test_a_size_beyond_every_number_is_usage(wrong: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        _parser().parse_args(["create", wrong, "x.hds"])


@pytest.mark.parametrize(
    "values",
    [
        {"event": "config_reloaded", "added": "ploop1"},
        {"event": "config_reloaded", **dict.fromkeys(("added", "removed", "changed", "kept", "remount")), "failed": 1},
        {"event": "config_reload_failed", "text": None},
    ],
    ids=["some are missing", "one is no text", "no mistakes"],
)
def test_what_a_tree_says_of_a_reload_is_not_taken_for_granted(values: dict[str, object]) -> None:
    with pytest.raises(BadTree, match="expected an event with the texts "):
        reload._facts(Record("{}", values))
