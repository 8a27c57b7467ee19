"""An open file of events: where it starts, that it reads each record once, and what it says of those it missed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.device.events import EVENTS, Events
from ploopfs.sysfs.stream import READABLE, OpenStream


def lines(text: bytes) -> list[dict[str, object]]:
    assert text == b"" or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_new_reader_starts_with_the_oldest_record_that_is_held() -> None:
    events = Events(capacity=2)
    for number in range(5):
        events.emit("ploop0", "warning", text=str(number))
    assert [record["text"] for record in lines(OpenStream(events).read(4096))] == ["3", "4"]


def test_a_record_is_a_line_of_json_with_its_facts() -> None:
    events = Events()
    events.emit("ploop0", "standby_on", errno="EIO", level=None)
    [record] = lines(OpenStream(events).read(4096))
    assert record.pop("time") == pytest.approx(events.record(1).time_s)
    assert record == {"seq": 1, "device": "ploop0", "event": "standby_on", "errno": "EIO", "level": None}


def test_reading_goes_on_where_this_descriptor_is_and_never_waits() -> None:
    events = Events()
    first, second = OpenStream(events), OpenStream(events)
    assert first.read(4096) == b""
    events.emit("ploop0", "attached")
    assert [record["seq"] for record in lines(first.read(4096))] == [1]
    events.emit("ploop0", "detached")
    assert [record["seq"] for record in lines(first.read(4096))] == [2]
    assert [record["seq"] for record in lines(second.read(4096))] == [1, 2]
    assert first.read(4096) == second.read(4096) == b""


def test_what_was_overwritten_before_it_was_read_is_reported_as_a_gap() -> None:
    events = Events(capacity=3)
    reader = OpenStream(events)
    events.emit("ploop0", "attached")
    reader.read(4096)
    for _ in range(7):
        events.emit("ploop0", "attached")
    gap, *rest = lines(reader.read(4096))
    assert gap == {"seq": 5, "event": "gap", "lost": 4}
    assert [record["seq"] for record in rest] == [6, 7, 8]


def test_it_can_be_polled_for_what_is_there_to_read() -> None:
    events = Events()
    reader = OpenStream(events)
    assert reader.poll() == 0
    events.emit("ploop0", "attached")
    assert reader.poll() == READABLE
    reader.read(10)
    assert reader.poll() == READABLE, "the rest of the line"
    reader.read(4096)
    assert reader.poll() == 0


def test_lines_are_whole_while_they_fit() -> None:
    events = Events()
    for _ in range(3):
        events.emit("ploop0", "attached")
    reader = OpenStream(events)
    first, second = (len(events.record(number).as_json()) + 1 for number in (1, 2))
    assert len(reader.read(first + second - 1)) == first
    assert len(lines(reader.read(4096))) == 2


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1),
    emits=st.lists(st.integers(0, 5), min_size=1),
    capacity=st.integers(1, 9),
)
def test_however_it_is_read_the_numbers_grow_and_only_gaps_are_missing(
    sizes: list[int], emits: list[int], capacity: int
) -> None:
    events, read = Events(capacity=capacity), b""
    reader = OpenStream(events)
    for turn, count in enumerate(emits):
        for _ in range(count):
            events.emit("d", "warning", text="x" * (turn % 7))
        read += reader.read(sizes[turn % len(sizes)])
    while more := reader.read(64):
        read += more
    seen = lost = 0
    for record in lines(read):
        if record["event"] == "gap":
            assert isinstance(record["lost"], int)
            lost += record["lost"]
        else:
            seen += 1
        assert record["seq"] == seen + lost
    assert seen + lost == sum(emits) == events.next_sequence - 1


def test_every_event_has_a_meaning_and_no_other_is_taken() -> None:
    assert all(EVENTS.values())
    with pytest.raises(AssertionError):
        Events().emit("ploop0", "no_such_event")
