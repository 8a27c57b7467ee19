"""Stories of a device and whatever is in flight when an operation begins: see operations.py."""

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from ploopfs.device.waiting import OnStandby
from tests.device.operations import NUMBERS, WEIGHED, Story, live, tell

pytestmark = pytest.mark.expects_warnings

steps = st.lists(st.tuples(st.sampled_from(WEIGHED), st.integers(0, NUMBERS - 1)), min_size=1, max_size=3)
"""What happens before anybody else can run."""


@settings(max_examples=150)
@given(st.lists(steps, min_size=5, max_size=30), st.booleans(), st.booleans(), st.sampled_from(OnStandby))
def test_nothing_acknowledged_is_lost_whatever_is_in_flight_when_an_operation_begins(
    story: Story, mapped: bool, stays_dead: bool, on_standby: OnStandby
) -> None:
    clock = MockClock()
    trio.run(live, clock, story, mapped, stays_dead, on_standby, clock=clock)


@pytest.mark.parametrize("seed", range(129, 5000, 271))
def test_nor_in_a_story_whose_every_turn_comes_from_a_seed(seed: int) -> None:
    tell(seed)
