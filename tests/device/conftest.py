"""The rig most tests start from."""

import pytest

from tests.device.rig import Rig, rig_of, three_deltas


@pytest.fixture
async def rig() -> Rig:
    """Three deltas, both fuses in."""
    return await rig_of(three_deltas())


@pytest.fixture
async def unarmed() -> Rig:
    """Three deltas, both fuses out."""
    return await rig_of(three_deltas(), armed=False)
