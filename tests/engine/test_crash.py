"""A power failure at any moment: what was flushed is there, what was not is old or new, and the image is never
broken."""

import pytest

from ploopfs.image.check import Verdict
from ploopfs.image.header import MUTABLE_START, V1, V2
from tests.engine.crash import Run, assert_mixed_from, assert_survives_any_power_failure, content_after
from tests.engine.disk import Shape, verdict
from tests.engine.journal import images_after_crash

SHAPES = {
    "v2 alone": Shape(depth=1, version=V2),
    "v1 alone": Shape(depth=1, version=V1),
    "v2 on two": Shape(depth=3, version=V2),
    "v2 on raw": Shape(depth=2, raw_base=True, raw_short_bytes=4096),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_power_failure_loses_nothing_that_was_flushed(shape: Shape, seed: int) -> None:
    assert_survives_any_power_failure(Run(shape, seed))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_a_power_failure_leaves_opens_for_writing_and_reads_as_it_was_left(shape: Shape) -> None:
    run = Run(shape, seed=20)
    for at in list(run.moments())[::4]:
        for _path, image in images_after_crash(run.before, run.journal, at, run.random):
            assert content_after(run, image, at, read_only=False) == content_after(run, image, at)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_image_is_marked_from_before_the_first_change_until_after_the_last(shape: Shape) -> None:
    run = Run(shape, seed=9)
    changes = [entry for entry in run.journal.of("write", "truncate", "punch hole") if entry.offset != MUTABLE_START]
    first, last = changes[0].begun, max(entry.ended or 0 for entry in changes)
    for at in run.moments():
        ((_path, image),) = images_after_crash(run.before, run.journal, at, run.random)
        if first <= at <= last:
            assert verdict(image).verdict is Verdict.NOT_CLOSED


def test_the_check_of_a_mixture_sees_a_byte_that_was_never_written() -> None:
    states = [bytes(100), b"a" * 100]
    assert_mixed_from(states, b"a" * 50 + bytes(50))
    with pytest.raises(AssertionError, match="1 bytes from 7 on"):
        assert_mixed_from(states, b"a" * 7 + b"b" + bytes(92))
