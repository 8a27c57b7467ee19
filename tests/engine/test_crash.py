"""A power failure at any moment: what was flushed is there, what was not is old or new, and the image is never
broken."""

import pytest

from ploopfs.image.header import V1, V2
from tests.engine.crash import Run, assert_survives_any_power_failure
from tests.engine.disk import Shape

SHAPES = {
    "v2 alone": Shape(depth=1, version=V2),
    "v1 alone": Shape(depth=1, version=V1),
    "v2 on two": Shape(depth=3, version=V2),
    "v2 on raw": Shape(depth=2, raw_base=True, raw_short_bytes=4096),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_power_failure_loses_nothing_that_was_flushed(shape: Shape, seed: int) -> None:
    assert_survives_any_power_failure(Run(shape, seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_nor_one_while_several_requests_are_in_flight(shape: Shape, seed: int) -> None:
    assert_survives_any_power_failure(Run(shape, seed, together=4))
