"""The ring of events, and that every transition of a device is in it, once."""

import errno
import json
import math
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.bounds import MAX_FACT_CHARACTERS
from ploopfs.device.events import EVENTS, DeviceEvents, Events, declare
from ploopfs.device.standby import Reason, Standby, StandbyKey
from ploopfs.errors import PloopError
from tests.device.mapped import line, mapped_rig, mapper_of
from tests.device.rig import NEW, REQUESTS, STACK, TOP, Rig, errno_of, rig_of, three_deltas

# --- the ring -----------------------------------------------------------------------------------------------------


def filled(count: int, capacity: int) -> Events:
    events = Events(capacity=capacity)
    for number in range(count):
        events.emit("ploop0", "aborted", aborted=bool(number % 2))
    return events


@given(st.integers(1, 8), st.integers(0, 30), st.integers(0, 40))
def test_the_ring_holds_the_last_records_without_a_gap(capacity: int, count: int, since: int) -> None:
    events = filled(count, capacity)
    held = list(range(max(1, count - capacity + 1), count + 1))
    assert events.next_sequence == count + 1
    assert events.first_sequence == (held[0] if held else count + 1)
    assert [record.sequence for record in events.since(0)] == held
    assert [record.sequence for record in events.since(since)] == [number for number in held if number >= since]
    assert all(events.record(number).sequence == number for number in held)


@pytest.mark.expects_warnings
async def test_a_table_of_any_length_leaves_little_in_the_ring() -> None:
    """What is written to `load` may have 64 KiB, and whoever may write there may do so for ever."""
    rig = await mapped_rig()
    with pytest.raises(PloopError):
        await mapper_of(rig).load(line("/" + "a" * 60_000))
    begin, end = list(rig.registry.events.since(0))[-2:]
    assert (begin.event, end.event) == ("replace_begin", "replace_end")
    for record in (begin, end):
        texts = [fact for fact in record.facts.values() if isinstance(fact, str)]
        assert max(map(len, texts)) == MAX_FACT_CHARACTERS + len("...")


@given(st.integers(1, 5), st.lists(st.integers(0, 7), max_size=20))
def test_a_reader_that_remembers_where_it_was_sees_every_record_or_how_many_it_has_missed(
    capacity: int, bursts: list[int]
) -> None:
    events, wanted, seen, lost = Events(capacity=capacity), 1, 0, 0
    for burst in bursts:
        for _ in range(burst):
            events.emit("ploop0", "attached")
        lost += max(0, events.first_sequence - wanted)
        seen += sum(1 for _ in events.since(wanted))
        wanted = events.next_sequence
    assert (seen + lost, lost) == (sum(bursts), sum(max(0, burst - capacity) for burst in bursts))


def test_changed_fires_after_each_record_which_can_then_be_read() -> None:
    events, read = Events(capacity=2), list[int]()
    events.changed.subscribe(lambda: read.extend(record.sequence for record in events.since(len(read) + 1)))
    for _ in range(5):
        events.emit("", "attached")
    assert read == [1, 2, 3, 4, 5]


def test_an_event_that_nobody_has_declared_is_a_bug() -> None:
    events = Events()
    with pytest.raises(AssertionError, match="no such event"):
        events.emit("ploop0", "no such event")
    with mock.patch.dict(EVENTS):
        assert declare("no such event", "now there is") == "no such event"
        events.emit("ploop0", "no such event")
    assert [record.event for record in events.since(0)] == ["no such event"]


@pytest.mark.parametrize("fact", ["seq", "time"])
def test_a_fact_cannot_take_the_place_of_what_every_record_has(fact: str) -> None:
    with pytest.raises(AssertionError, match=fact):
        DeviceEvents(Events(), "ploop0").emit("aborted", **{fact: 1})


def test_a_record_is_one_line_of_json_whatever_its_facts_hold() -> None:
    events = Events()
    path = "/store/two\nlines \N{SNOWMAN} \udcff.hds"
    events.emit("ploop0", "replace_begin", operation="reopen", level=None, path=path)
    [record] = events.since(0)
    text = record.as_json()
    assert text.isascii()
    assert "\n" not in text
    said = json.loads(text)
    assert list(said) == ["seq", "time", "device", "event", "operation", "level", "path"]
    assert (said["seq"], said["device"], said["event"], said["level"], said["path"]) == (
        *(1, "ploop0", "replace_begin", None),
        path,
    )


# --- what happens to a device -------------------------------------------------------------------------------------


def told(rig: Rig, since: int = 1) -> list[tuple[str, dict[str, object]]]:
    return [(record.event, dict(record.facts)) for record in rig.registry.events.since(since)]


def names(rig: Rig) -> list[str]:
    return [event for event, _facts in told(rig)]


async def test_a_device_that_comes_and_goes_is_told_of(rig: Rig) -> None:
    await rig.registry.aclose()
    assert [event for event in told(rig) if event[0].startswith("device_")] == [
        ("device_added", {"flavour": "vz7", "image": TOP, "bytes": 6 * 32768}),
        ("device_removed", {"clean": True}),
    ]
    assert {record.device for record in rig.registry.events.since(1) if "device" in record.event} == {"ploop0"}


@pytest.mark.expects_warnings
async def test_an_outage_is_told_with_its_reason_and_its_end(rig: Rig) -> None:
    before = rig.registry.events.next_sequence
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    for request in REQUESTS.values():
        assert await errno_of(request(rig.device)) == errno.EIO
    await rig.device.reopen()
    on, begin, off, end = told(rig, before)
    assert on[0] == "standby_on"
    assert on[1] == {
        "errno": "ENOTCONN",
        "operation": "read",
        "offset": on[1]["offset"],
        "length": 512,
        "level": 2,
        "file": TOP,
    }
    assert begin == ("replace_begin", {"operation": "reopen", "level": None, "path": TOP})
    assert off[0] == "standby_off"
    assert isinstance(off[1]["seconds"], float)
    assert 0 <= off[1]["seconds"] < math.inf
    said = {"operation": "reopen", "level": None, "path": TOP, "result": "ok", "error": "", "generation": 2}
    assert end == ("replace_end", said)


@pytest.mark.expects_warnings
async def test_a_replace_that_fails_is_told_with_the_errno_and_the_words(rig: Rig) -> None:
    before = rig.registry.events.next_sequence
    with pytest.raises(PloopError) as failure:
        await rig.device.replace(NEW)
    begin, end = told(rig, before)
    assert begin == ("replace_begin", {"operation": "replace_delta", "level": None, "path": NEW})
    assert end[1] | begin[1] == end[1]
    assert (end[1]["result"], end[1]["error"], end[1]["generation"]) == ("ENOENT", str(failure.value), 1)


async def test_aborted_is_told_when_it_changes_and_when_a_replace_clears_it(unarmed: Rig) -> None:
    before = unarmed.registry.events.next_sequence
    for aborted in (True, True, False, True):
        unarmed.queue.set_aborted(aborted)
    await unarmed.device.reopen()
    changes = [facts["aborted"] for event, facts in told(unarmed, before) if event == "aborted"]
    assert changes == [True, False, True, False]


@pytest.mark.expects_warnings
async def test_each_bit_and_each_warning_is_told_once() -> None:
    rig = await rig_of(three_deltas(), armed=False)
    standby = rig.queue.standby
    before = rig.registry.events.next_sequence
    for _ in range(2):
        standby.attach()
        standby.attach()
        standby.detach()
        standby.detach()
    rig.registry.key.enabled = True
    standby.attach()
    standby.storage_lost(Reason(errno=errno.EIO, operation="read", file=STACK[0]))
    standby.detach()
    happened = ["attached", "warning", "detached", "attached", "detached", "attached", "standby_on", "warning"]
    assert [event for event, _ in told(rig, before)] == [*happened, "standby_off", "detached"]


@pytest.mark.expects_warnings
def test_how_long_standby_lasted_does_not_depend_on_the_clock_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    events = Events()
    standby = Standby("ploop0", StandbyKey(enabled=True), DeviceEvents(events, "ploop0"))
    standby.attach()
    standby.storage_lost(Reason(errno=errno.EIO, operation="fsync", file=TOP))
    monkeypatch.setattr("ploopfs.device.standby.time.time", lambda: 0.0)
    standby.recovered()
    seconds = list(events.since(0))[-1].facts["seconds"]
    assert isinstance(seconds, float)
    assert 0 <= seconds < 60


@pytest.mark.parametrize("excess", [0, 1, 100_000])
def test_a_text_that_somebody_wrote_does_not_fill_the_ring(excess: int) -> None:
    events = Events()
    text = "x" * (MAX_FACT_CHARACTERS + excess)
    events.emit("ploop0", "replace_end", error=text, level=1, generation=None)
    facts = events.record(1).facts
    assert facts == {
        "error": text if not excess else f"{text[:MAX_FACT_CHARACTERS]}...",
        "level": 1,
        "generation": None,
    }
