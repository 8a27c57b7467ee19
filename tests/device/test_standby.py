"""The standby machine: its table, its two fuses, its log lines."""

import errno
import itertools
import logging

import pytest

from ploopfs.device.standby import STANDBY_ERRNOS, TRANSITIONS, Event, Reason, Standby, StandbyKey, State

SWITCHED = "ploop0 was switched into the standby mode"
KEY_IS_OUT = "ploop0: STANDBY_EN is set while ploop_standby_check is disabled"
LEFT_IN_STANDBY = "ploop0: STANDBY_EN was cleared in standby mode; STANDBY is cleared with it"
LOST = Reason(errno=errno.ENOTCONN, operation="read", file="/store/top.hds")


def machine(state: State = State.OFF) -> Standby:
    """The global key is in."""
    standby = Standby("ploop0", StandbyKey(enabled=True))
    if state is not State.NOT_SUPPORTED:
        standby.attach()
    if state is State.ON:
        assert standby.storage_lost(LOST)
    return standby


def happen(standby: Standby, event: Event) -> None:
    match event:
        case Event.ATTACHED:
            standby.attach()
        case Event.DETACHED:
            standby.detach()
        case Event.STORAGE_LOST:
            standby.storage_lost(LOST)
        case Event.RECOVERED:
            standby.recovered()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_values_are_the_texts_of_the_attribute() -> None:
    assert [state.value for state in State] == ["not supported", "off", "on"]


def test_the_table_is_total() -> None:
    assert set(TRANSITIONS) == set(itertools.product(State, Event))


@pytest.mark.expects_warnings
@pytest.mark.parametrize(("before", "event"), TRANSITIONS, ids=lambda member: member.name.lower())
def test_what_happens_leads_where_the_table_says(before: State, event: Event) -> None:
    standby = machine(before)
    seen, changes = standby.changed.version, list[State]()
    standby.changed.subscribe(lambda: changes.append(standby.state))
    happen(standby, event)
    after = TRANSITIONS[before, event]
    assert standby.state is after
    assert changes == ([] if after is before else [after])
    assert standby.changed.version - seen == len(changes)
    assert (standby.reason == LOST) is (after is State.ON)
    assert standby.refuses is (after is State.ON)


def test_the_spec_in_one_line_per_transition() -> None:
    values = {(before.value, event): after.value for (before, event), after in TRANSITIONS.items()}
    moves = {(before, event): after for (before, event), after in values.items() if after != before}
    assert moves == {
        ("not supported", Event.ATTACHED): "off",
        ("off", Event.DETACHED): "not supported",
        ("off", Event.STORAGE_LOST): "on",
        ("on", Event.RECOVERED): "off",
        ("on", Event.DETACHED): "not supported",
    }


def test_three_answers_of_the_storage_mean_standby() -> None:
    assert {errno.EBUSY, errno.ENOTCONN, errno.EIO} == STANDBY_ERRNOS


@pytest.mark.expects_warnings
def test_of_all_errnos_these_three_switch_and_no_other() -> None:
    reasons = [Reason(errno=number, operation="read", file="x") for number in errno.errorcode]
    switched = {reason.errno for reason in reasons if machine().storage_lost(reason)}
    assert switched == {errno.EBUSY, errno.ENOTCONN, errno.EIO}


def test_an_errno_that_means_nothing_leaves_the_machine_alone() -> None:
    standby = machine()
    for number in (errno.ENOSPC, errno.ETIMEDOUT, errno.EROFS, errno.ESTALE, errno.ENODEV):
        standby.storage_lost(Reason(errno=number, operation="read", file="x"))
    assert (standby.state, standby.reason) == (State.OFF, None)


@pytest.mark.expects_warnings
def test_each_switch_is_logged_once_in_the_kernels_words(caplog: pytest.LogCaptureFixture) -> None:
    standby = machine()
    for _ in range(3):
        assert standby.storage_lost(LOST)
    assert warnings(caplog) == [SWITCHED]
    standby.recovered()
    standby.storage_lost(LOST)
    assert warnings(caplog) == [SWITCHED, SWITCHED]


@pytest.mark.expects_warnings
def test_the_first_reason_stays_until_recovery() -> None:
    standby = machine(State.ON)
    standby.storage_lost(Reason(errno=errno.EIO, operation="read", file="later"))
    assert standby.reason == LOST
    standby.recovered()
    assert standby.reason is None


@pytest.mark.expects_warnings
def test_the_time_is_that_of_the_last_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ploopfs.device.standby.time.time", lambda: 1000.0)
    standby = machine()
    monkeypatch.setattr("ploopfs.device.standby.time.time", lambda: 2000.0)
    standby.attach()
    assert standby.since_s == 1000.0
    standby.storage_lost(LOST)
    assert standby.since_s == 2000.0


def test_without_the_en_bit_nothing_is_touched_or_said(caplog: pytest.LogCaptureFixture) -> None:
    standby = machine(State.NOT_SUPPORTED)
    assert not standby.storage_lost(LOST)
    assert standby.state is State.NOT_SUPPORTED
    assert not standby.armed
    assert warnings(caplog) == []


@pytest.mark.expects_warnings
def test_without_the_key_nothing_is_touched_and_the_en_bit_is_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    standby = Standby("ploop0", StandbyKey())
    standby.attach()
    assert standby.state is State.OFF
    for _ in range(2):
        assert not standby.storage_lost(LOST)
    standby.attach()
    assert standby.state is State.OFF
    assert warnings(caplog) == [KEY_IS_OUT]


def test_without_the_key_an_error_that_means_nothing_is_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    key = StandbyKey(enabled=True)
    standby = Standby("ploop0", key)
    standby.attach()
    key.enabled = False
    assert not standby.storage_lost(Reason(errno=errno.ENOSPC, operation="write", file="full"))
    assert warnings(caplog) == []


@pytest.mark.expects_warnings
def test_without_the_key_standby_is_not_checked() -> None:
    key = StandbyKey(enabled=True)
    standby = Standby("ploop0", key)
    standby.attach()
    standby.storage_lost(LOST)
    key.enabled = False
    assert not standby.refuses
    assert standby.state is State.ON


@pytest.mark.expects_warnings
def test_detaching_in_standby_warns_once_and_clears_both_bits(caplog: pytest.LogCaptureFixture) -> None:
    standby, states = machine(), list[State]()
    standby.changed.subscribe(lambda: states.append(standby.state))
    for _ in range(2):
        standby.storage_lost(LOST)
        standby.detach()
        standby.attach()
    assert states == [State.ON, State.NOT_SUPPORTED, State.OFF] * 2
    assert warnings(caplog) == [SWITCHED, LEFT_IN_STANDBY, SWITCHED]


def test_detaching_a_healthy_device_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    machine().detach()
    assert warnings(caplog) == []
