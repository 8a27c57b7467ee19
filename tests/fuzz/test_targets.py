"""Every parser over inputs that somebody made to break it: those that once did, the seeds, and mutations of both.

Half of the mutations are the same in every run; the other half is new in each one, and what fails is printed as the
bytes that the corpus takes (`tests/data/fuzz/TARGET/`). tools/fuzz does the same for as long as one likes.
"""

import os
import sys
import time
from random import Random

import pytest

from ploopfs.errors import PloopError
from tests.fuzz import seeds
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.tree import run_script

pytestmark = pytest.mark.expects_warnings

FIXED_SEED = 1
SLOW = {"stores": 50, "dmsetup-line": 40, "info": 50, "repair": 40, "config": 60, "scenario": 60}
EXAMPLES = {**SLOW, "verbs": 12, "dmsetup": 12}
"""Of each half; the others take next to no time."""
MANY = 200
FRESH_SEED = int(os.environ.get("PLOOPFS_FUZZ_SEED", time.time_ns() % 1_000_000))
"""Given in the environment, the inputs of an earlier run come again."""


def play(name: str, target: Target, data: bytes) -> None:
    """Fails with the input, unless the target takes it or refuses it as one refuses an input."""
    try:
        target.run(data)
    except PloopError:
        pass
    except Exception as error:
        error.add_note(f"{name} broke on this input: {data!r}")
        raise


@pytest.mark.parametrize("name", TARGETS)
def test_what_once_broke_a_parser_does_not_again(name: str) -> None:
    for data in seeds.found(name):
        play(name, TARGETS[name], data)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("seed", [FIXED_SEED, FRESH_SEED], ids=["fixed", "fresh"])
def test_no_input_leaves_a_parser_but_with_an_expected_error(name: str, seed: int) -> None:
    target = TARGETS[name]
    corpus = (*target.seeds(), *seeds.found(name))
    random = Random(seed)
    for number in range(EXAMPLES.get(name, MANY)):
        data = mutated(corpus, target.tokens, random, max_bytes=target.max_bytes)
        try:
            play(name, target, data)
        except Exception as error:
            error.add_note(f"number {number} of PLOOPFS_FUZZ_SEED={seed}")
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_first_seeds(name: str) -> None:
    """A target that refuses all that it is given proves nothing."""
    target = TARGETS[name]
    taken = 0
    for data in target.seeds()[:20]:
        try:
            target.run(data)
        except PloopError:
            continue
        taken += 1
    assert taken


def test_an_error_that_is_none_of_ours_is_seen_with_its_input() -> None:
    def broken(_data: bytes) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError) as caught:
        play("broken", Target(broken, tuple), b"the input")
    assert caught.value.__notes__ == ["broken broke on this input: b'the input'"]


@pytest.mark.parametrize("token", seeds.COMMON, ids=lambda token: repr(token[:20]))
def test_every_file_and_every_place_of_a_number_takes_every_token(token: bytes) -> None:
    """Not at random, since one of thousands of pairs is seldom met."""
    run_script(seeds.token_everywhere(token), most_records=sys.maxsize)
