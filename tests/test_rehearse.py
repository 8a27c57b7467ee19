"""The parts of a rehearsal without a mount: the ledger, the load's view of a disk, reports, and how steps are told."""

import argparse
import errno
import io
import json
import os
import sys
import threading
import xml.etree.ElementTree as ET
from pathlib import Path
from random import Random

import pytest

from ploopfs.cli.rehearse import verb
from ploopfs.cli.rehearse.ledger import BLOCK_BYTES, LANES, SPAN_BYTES, Ledger
from ploopfs.cli.rehearse.load import SINGLE_LANE, DiskUser, Load, bounded
from ploopfs.cli.rehearse.report import Outcome, Result, Teller, as_json, junit, summary
from ploopfs.cli.rehearse.telling import described
from ploopfs.config.scenario import Command, ExpectEvent, Inject, Request, Store
from ploopfs.config.scenario_file import load_scenario
from ploopfs.errors import BadValue, Unmet
from tests.mounted.daemon import until

SHIPPED = sorted((Path(__file__).parent.parent / "config/scenarios").glob("*.yaml"))
OLD, NEW, OTHER = b"o" * BLOCK_BYTES, b"n" * BLOCK_BYTES, b"x" * BLOCK_BYTES




def rehearse(file: Path) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(file)]))


def test_an_event_that_no_daemon_tells_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text("{name: wrong, about: wrong, steps: [\n{expect: {standby: off}},\n{expect: {event: stanby_on}}]}\n")
    with pytest.raises(BadValue) as refused:
        rehearse(file)
    assert str(refused.value).startswith(f"{file}:3: expect.event is 'stanby_on', expected an event: standby_on")
    file.write_text("{name: wrong, about: wrong, steps: [{expect: {event: xyz}}]}\n")
    with pytest.raises(BadValue, match=r"expected an event: .*agent_attempt.*, replace_end, .*standby_on"):
        rehearse(file)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_event_of_a_shipped_scenario_is_one(path: Path) -> None:
    verb._check_events(str(path), load_scenario(str(path)))


# --- the ledger ---------------------------------------------------------------------------------------------------


def test_a_block_must_read_as_what_was_acknowledged_last() -> None:
    ledger = Ledger(1 << 20)
    for data in (OLD, NEW):
        ledger.issued(3, data)
        ledger.acknowledged(3, data)
    assert (ledger.fits(3, NEW), ledger.fits(3, OLD)) == (True, False)
    assert list(ledger) == [3]


def test_a_write_that_was_not_acknowledged_may_be_there_or_not() -> None:
    ledger = Ledger(1 << 20)
    ledger.acknowledged(3, OLD)
    ledger.issued(3, NEW)
    assert (ledger.fits(3, OLD), ledger.fits(3, NEW), ledger.fits(3, OTHER)) == (True, True, False)
    ledger.acknowledged(3, OTHER)
    assert (ledger.fits(3, OLD), ledger.fits(3, NEW), ledger.fits(3, OTHER)) == (False, False, True)


def test_nothing_is_said_of_a_block_that_was_never_written() -> None:
    ledger = Ledger(1 << 20)
    ledger.issued(5, NEW)
    assert ledger.fits(5, OTHER)
    assert ledger.fits(6, OTHER)
    assert list(ledger) == []


def test_writers_have_blocks_of_their_own_within_the_disk() -> None:
    for size_bytes in (BLOCK_BYTES * LANES, 1 << 20, (1 << 20) + 512, SPAN_BYTES * 4):
        ledger, random = Ledger(size_bytes), Random(1)
        drawn = {lane: {ledger.draw(random, lane) for _ in range(200)} for lane in range(LANES)}
        assert sum(len(blocks) for blocks in drawn.values()) == len(set().union(*drawn.values()))
        assert max(max(blocks) for blocks in drawn.values()) < min(size_bytes, SPAN_BYTES) // BLOCK_BYTES


# --- requests on a disk -------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    return path


def test_what_a_user_wrote_is_in_the_ledger_and_on_the_disk(disk: Path) -> None:
    ledger = Ledger(1 << 20)
    user = DiskUser(os.fspath(disk), ledger, lane=SINGLE_LANE, writes=True)
    assert [user.request(kind) for kind in ("write", "write", "read", "flush")] == [""] * 4
    content = disk.read_bytes()
    assert 1 <= len(ledger) <= 2
    assert all(ledger.fits(block, content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]) for block in ledger)
    user.close()


def test_a_user_says_which_errno_it_met(disk: Path) -> None:
    user = DiskUser(os.fspath(disk), Ledger(1 << 20), lane=0, writes=False)
    assert (user.request("write"), user.request("read")) == ("EBADF", "")
    user.close()


def test_a_block_that_reads_wrong_is_found(disk: Path) -> None:
    ledger = Ledger(1 << 20)
    user = DiskUser(os.fspath(disk), ledger, lane=0, writes=True)
    user.request("write")
    disk.write_bytes(bytes(1 << 20))
    with pytest.raises(Unmet, match=r"the 4096 bytes at \d+ are not those that were acknowledged"):
        user.request("read")
    user.close()


def test_no_two_users_write_the_same_bytes(disk: Path) -> None:
    written: list[bytes] = []
    for _ in range(2):
        disk.write_bytes(bytes(1 << 20))
        user = DiskUser(os.fspath(disk), Ledger(1 << 20), lane=0, writes=True)
        user.request("write")
        user.close()
        written.append(disk.read_bytes().replace(b"\0", b""))
    assert written[0] != written[1]


def test_a_load_goes_on_until_it_is_stopped_and_counts_its_errors(disk: Path) -> None:
    load = Load(os.fspath(disk), Ledger(1 << 20), threads=2, writes=True)
    until(lambda: load.requests > 20, "some requests")
    load.stop(10)
    assert not load.errors


def test_a_load_that_reads_what_was_never_written_says_so_when_it_is_stopped(disk: Path) -> None:
    ledger = Ledger(1 << 20)
    for block in range(0, 100, LANES):
        ledger.acknowledged(block, OTHER)
    load = Load(os.fspath(disk), ledger, threads=1, writes=False)
    until(lambda: load.wrong is not None, "a wrong block")
    with pytest.raises(Unmet, match="are not those that were acknowledged"):
        load.stop(10)


def test_a_call_that_does_not_end_is_left_behind() -> None:
    never = threading.Event()
    with pytest.raises(Unmet, match=r"the write did not end within 0\.01 s"):
        bounded(never.wait, 0.01, "the write")
    never.set()


def test_a_bounded_call_gives_its_result_or_its_error() -> None:
    def fails() -> None:
        raise BadValue("so")

    assert bounded(lambda: 5, 10, "it") == 5
    assert bounded(lambda: None, 10, "it") is None
    with pytest.raises(BadValue, match="so"):
        bounded(fails, 10, "it")


# --- reports ------------------------------------------------------------------------------------------------------

RESULTS = (
    Result(1, 4, "write ploop0", Outcome.PASSED, 0.25),
    Result(2, 5, "act: \x1b[31m<&>", Outcome.FAILED, 1.5, "it said\n\x00 this & that"),
    Result(3, 6, "verify images", Outcome.SKIPPED, 0.0),
)
EVENTS = ({"seq": 1, "device": "ploop0", "event": "standby_on", "text": "\x07"},)


def test_the_junit_report_is_xml_with_a_case_for_each_step() -> None:
    root = ET.fromstring(junit("a <name>", "/s.yaml", RESULTS, EVENTS))
    [suite] = root
    assert suite.attrib == {
        "name": "a <name>",
        "time": "1.750",
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "1",
    }
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == ["001: write ploop0", "002: act: ?[31m<&>", "003: verify images"]
    assert {(case.get("file"), case.get("classname")) for case in cases} == {("/s.yaml", "a <name>")}
    assert [[child.tag for child in case] for case in cases] == [[], ["failure"], ["skipped"]]
    failure = cases[1][0]
    assert (failure.get("message"), failure.text) == ("it said", "it said\n? this & that")
    assert "standby_on" in (suite.findtext("system-out") or "")


def test_the_json_report_has_every_step_and_event() -> None:
    told = json.loads(json.dumps(as_json("n", "/s.yaml", RESULTS, EVENTS)))
    assert (told["scenario"], told["file"], told["passed"]) == ("n", "/s.yaml", False)
    assert [step["outcome"] for step in told["steps"]] == ["passed", "failed", "skipped"]
    assert told["steps"][1] == {
        "number": 2,
        "line": 5,
        "step": "act: \x1b[31m<&>",
        "outcome": "failed",
        "seconds": 1.5,
        "detail": "it said\n\x00 this & that",
    }
    assert told["events"] == list(EVENTS)
    assert as_json("n", "/s.yaml", RESULTS[:1], ())["passed"]


def test_the_summary_counts() -> None:
    assert summary(RESULTS) == "1 passed, 1 failed, 1 skipped, 1.8 s"
    assert summary(RESULTS[:1]) == "1 passed, 0.2 s"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told_on(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stdout", stream)
    teller = Teller(quiet=False)
    teller.title("name", "about\n  it")
    teller.begun(1, 3, "write ploop0")
    for result in RESULTS:
        teller.ended(result)
    return stream.getvalue()


def test_plain_output_has_neither_colours_nor_lines_that_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told_on(io.StringIO(), monkeypatch).replace("\x1b[31m<&>", "X").splitlines() == [
        "name: about it",
        "  ok        0.25 s  line 4: write ploop0",
        "  FAILED    1.50 s  line 5: act: X",
        "                    it said",
        "                    \0 this & that",
        "  --        0.00 s  line 6: verify images",
    ]


def test_a_terminal_sees_the_step_that_is_being_played_in_colour_unless_it_wants_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    told = told_on(Terminal(), monkeypatch)
    assert "\r\033[K  ...     1/3  write ploop0" in told
    assert "\033[32mok    \033[m" in told
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033[32m" not in told_on(Terminal(), monkeypatch)


# --- steps in words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Inject(line=1, device="ploop0", words=("op=READ", "hang"), name="x"), "inject ploop0 op=READ hang as x"),
        (Request(line=1, device="ploop0", kind="write", count=5, errno="EIO"), "write ploop0 5 times with EIO"),
        (
            ExpectEvent(line=1, device="ploop0", event="held", facts=(("operation", "read"),)),
            "expect ploop0 event held operation=read",
        ),
        (
            Store(line=1, device="ploop0", path="ploopfs/reopen", value="1", errno="EBUSY"),
            "act '1' > ploop0 ploopfs/reopen with EBUSY",
        ),
        (
            Command(line=1, device="ploop0", command="a\nb\n", is_recovery=True),
            "recover: a...",
        ),
    ],
)
def test_a_step_is_told_in_one_line(step: Inject | Request | ExpectEvent | Store | Command, words: str) -> None:
    assert described(step) == words


def test_errnos_are_told_by_name_even_where_the_system_has_none(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_arguments: object) -> bytes:
        raise OSError(4095, "unknown")

    user = DiskUser(os.fspath(disk), Ledger(1 << 20), lane=0, writes=True)
    monkeypatch.setattr("ploopfs.cli.rehearse.load.os.pread", fails)
    assert (user.request("read"), 4095 in errno.errorcode) == ("4095", False)
    user.close()
