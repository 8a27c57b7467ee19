"""The machine of the recovery agent: the table is total, and says nothing that it must not."""

from ploopfs.device.agent_state import TRANSITIONS, AgentEvent, AgentState


def test_every_event_is_answered_in_every_state() -> None:
    assert set(TRANSITIONS) == {(state, event) for state in AgentState for event in AgentEvent}


def test_nothing_but_resume_ends_a_pause() -> None:
    leaving = {event for event in AgentEvent if TRANSITIONS[AgentState.PAUSED, event] is not AgentState.PAUSED}
    assert leaving == {AgentEvent.RESUME}
    assert {TRANSITIONS[state, AgentEvent.PAUSE] for state in AgentState} == {AgentState.PAUSED}


def test_an_attempt_is_begun_by_a_trusted_storage_alone() -> None:
    begun = {pair for pair, after in TRANSITIONS.items() if after is AgentState.RECOVERING} - {
        pair for pair in TRANSITIONS if pair[0] is AgentState.RECOVERING
    }
    assert begun == {(AgentState.PROBING, AgentEvent.HEALTHY)}


def test_without_a_policy_nothing_is_ever_done() -> None:
    leaving = {event for event in AgentEvent if TRANSITIONS[AgentState.MANUAL, event] is not AgentState.MANUAL}
    assert leaving == {AgentEvent.ARM, AgentEvent.PAUSE}
