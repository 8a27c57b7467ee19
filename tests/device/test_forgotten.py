"""A store that acknowledges, forgets and comes back, at every step of a story: no acknowledged byte is gone."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.device.waiting import OnStandby
from ploopfs.image.check import Verdict
from tests.device.rig import CLUSTER, TOP, rig_of, three_deltas
from tests.device.stories import (
    Recovery,
    Step,
    Story,
    Way,
    steps_of,
    tell_every_pair_of_crashes,
    tell_every_single_crash,
    ways,
)
from tests.engine.disk import verdict

pytestmark = pytest.mark.expects_warnings

TWICE = (
    Step("write", 0, 100, ord("x")),
    Step("discard", 2 * CLUSTER, CLUSTER),
    Step("write", 50, 100, ord("y")),
)
"""Short, as every pair of crashes in it is told: a copy-up, a discard, and a write over what was not flushed yet."""


@pytest.mark.parametrize("seed", range(0, len(ways()), 9))
async def test_no_acknowledged_byte_is_lost_wherever_in_a_story_the_store_crashes(seed: int) -> None:
    assert await tell_every_single_crash(ways()[seed], steps_of(Random(seed), 8))


@pytest.mark.parametrize(
    "way",
    [
        Way(OnStandby.FAIL, Recovery.REOPEN, stays_dead=False),
        Way(OnStandby.HOLD, Recovery.REPLACE, stays_dead=True, alone=True),
        Way(OnStandby.HOLD, Recovery.LOAD, stays_dead=False, alone=True),
        Way(OnStandby.FAIL, Recovery.LOAD_COPY, stays_dead=True),
    ],
    ids=lambda way: way.recovery.value,
)
async def test_nor_wherever_it_crashes_again_in_the_recovery_or_later(way: Way) -> None:
    assert await tell_every_pair_of_crashes(way, TWICE) > 50


@given(st.sampled_from(ways()), st.sets(st.integers(1, 150), max_size=12), st.integers(0, 2**32 - 1))
async def test_nor_however_often_it_crashes_in_recoveries_too(way: Way, crashes: set[int], seed: int) -> None:
    await Story(way, crashes, seed).tell(steps_of(Random(seed), 12))


async def test_an_image_whose_store_forgot_a_growth_is_closed_with_the_size_that_its_map_needs() -> None:
    rig = await rig_of(three_deltas(), armed=False)
    await rig.device.write(3 * CLUSTER, b"x")
    del rig.store.images[TOP].data[-CLUSTER + 1 :]
    assert await rig.device.aclose()
    assert verdict(rig.store.bytes_of(TOP)).verdict is Verdict.CLEAN
