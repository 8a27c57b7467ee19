"""The simulator finds nothing in the product, whatever the seed; and finds each deliberate bug, and is deterministic.

The seeds that are fresh are printed at the end of the session, with what was survived; a failure names its seed and
how to see it again.
"""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.storm.broken import BROKEN, broken
from tests.storm.command import main, parser, shortened
from tests.storm.figures import Figures
from tests.storm.run import Climate, Outcome, Plan, simulate

FRESH_S = 15.0
STEPS = 250
ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.slow


def told(outcome: Outcome) -> str:
    shortest = shortened(outcome)
    lines = "\n".join(shortest.lines)
    return (
        f"{lines}\n{shortest.violation}\n"
        f"again: tools/storm --seed {shortest.plan.seed} --steps {shortest.plan.steps} -v"
    )


def test_nothing_is_found_with_seeds_that_are_always_the_same(record_property: Callable[[str, object], None]) -> None:
    figures = Figures()
    for seed in range(6):
        outcome = simulate(Plan(seed, STEPS))
        assert not outcome.violation, told(outcome)
        figures.add(outcome)
    assert figures.counts["standby_on"] > 10, "hardly anything happened"
    assert figures.counts["forgot"] > 10
    assert figures.counts["made by threads"] > 10
    assert figures.sum_of("request ") > 500
    record_property("figures", f"fixed seeds: {figures}")


def test_nothing_is_found_with_fresh_seeds(record_property: Callable[[str, object], None]) -> None:
    figures, first = Figures(), random.SystemRandom().randrange(10**9)
    ends_s = time.monotonic() + FRESH_S
    while time.monotonic() < ends_s:
        outcome = simulate(Plan(first + figures.runs, STEPS))
        assert not outcome.violation, told(outcome)
        figures.add(outcome)
    record_property("figures", f"seeds from {first} on, {STEPS} steps each: {figures}")


TRIES = 40


@pytest.mark.parametrize("bug", BROKEN)
def test_a_deliberate_bug_is_found(bug: str) -> None:
    plans = (Plan(seed, STEPS, climate=BROKEN[bug].climate) for seed in range(TRIES))
    with broken(bug):
        assert any(simulate(plan).violation for plan in plans)


@pytest.mark.parametrize("climate", dict.fromkeys(bug.climate for bug in BROKEN.values()))
def test_in_the_climate_in_which_a_bug_shows_nothing_is_found_without_it(climate: Climate) -> None:
    for seed in range(2):
        outcome = simulate(Plan(seed, STEPS, climate=climate))
        assert not outcome.violation, told(outcome)


def test_a_run_that_fails_is_shortened_to_one_that_fails_too() -> None:
    with broken("allocate a used cluster"):
        outcome = simulate(Plan(0, STEPS))
        shortest = shortened(outcome)
        assert simulate(shortest.plan).violation == shortest.violation
    assert 0 < shortest.plan.steps <= outcome.at_step


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    first, again, other = (simulate(Plan(seed, 120)) for seed in (3, 3, 4))
    assert (first.digest, first.counts, first.simulated_s) == (again.digest, again.counts, again.simulated_s)
    assert first.digest != other.digest


def test_a_shorter_run_is_the_beginning_of_a_longer_one() -> None:
    short, long = (simulate(Plan(5, steps, keep=100_000)) for steps in (60, 90))
    beginning = short.lines[: next(at for at, line in enumerate(short.lines) if line.endswith(" end"))]
    assert long.lines[: len(beginning)] == beginning


def test_no_hash_seed_changes_a_run() -> None:
    digests = set()
    for hash_seed in ("0", "1", "77"):
        command = [sys.executable, "-m", "tests.storm", "--seed", "9", "--steps", "100", "--json"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        digests.add(json.loads(done.stdout)["digest"])
    assert len(digests) == 1


def test_the_command_says_how_to_see_a_violation_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "0", "--steps", "150", "--broken", "allocate a used cluster"]) == 1
    out, err = capsys.readouterr()
    assert "1 failed" in out
    assert "VIOLATION: " in err
    again = next(line for line in err.splitlines() if line.startswith("again: tools/storm --seed 0 --steps "))
    options = parser().parse_args(shlex.split(again)[2:])
    assert (options.seed, options.broken, options.verbose) == (0, "allocate a used cluster", True)


@pytest.mark.parametrize(
    ("option", "amount"),
    [("seeds", "0"), ("seeds", "-1"), ("steps", "0"), ("minutes", "0"), ("minutes", "nan"), ("devices", "-1")],
)
def test_the_command_refuses_to_look_at_nothing(option: str, amount: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main([f"--{option}", amount])
    assert refused.value.code == 2
    assert f"--{option}" in capsys.readouterr().err


def test_ctrl_c_ends_the_command_after_the_run_under_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(plan: Plan) -> Outcome:
        signal.raise_signal(signal.SIGINT)
        return simulate(plan)

    monkeypatch.setattr("tests.storm.command.simulate", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert main(["--seed", "0", "--steps", "20", "--seeds", "5", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["runs"] == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_the_command_counts_what_was_survived(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "0", "--steps", "60", "--seeds", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["runs"], told["failed"], told["violations"]) == (2, 0, [])
    assert told["requests"] > 50
