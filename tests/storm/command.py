"""`tools/storm`: many runs, or one again; what was found, how to see it again, and what was survived.

Progress goes to a terminal, results to standard output. Exit code 0: nothing was found; 1: something was.
"""

import argparse
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice

from ploopfs.cli.text import TerminalLine
from tests.storm.broken import BROKEN, broken
from tests.storm.figures import Figures
from tests.storm.run import TEMPERATE, Outcome, Plan, simulate

EVERYTHING = 1 << 20
LAST_LINES = 40
INTERRUPTED = 130
EXAMPLES = """\
exit codes:
  0  nothing was found
  1  something that must be true was not: the seed, the shortest run that shows it, and its last lines are printed
  2  the command line is wrong
  130  ended by Ctrl-C, after the run that was under way: what was survived until then is told

examples:
  tools/storm --seed 7 --steps 400 -v          # one run, with everything that happens in it
  tools/storm --seed 1000 --seeds 200          # these seeds
  tools/storm --minutes 60 --json              # fresh seeds for an hour
  tools/storm --seeds 50 --broken "skip the replay"     # can it fail?
"""


def number(text: str) -> int:
    """A count of something of which there is one at least: nothing that was looked at would say that all is well."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def duration(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a time of more than 0 minutes")
    return value


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        prog="tools/storm",
        description="Simulate disks, their stores, users and operators, in one process and virtual time, from a seed: "
        "the same seed gives the same run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--seed", type=int, help="the first seed; default: a fresh one")
    arguments.add_argument("--steps", type=number, default=400, help="of each run (default: %(default)s)")
    amount = arguments.add_mutually_exclusive_group()
    amount.add_argument("--seeds", type=number, default=1, help="how many runs (default: %(default)s)")
    amount.add_argument("--minutes", type=duration, help="as many runs as begin within this time")
    arguments.add_argument("--devices", type=number, help="of each run; default: 2 to 4, as the seed decides")
    arguments.add_argument("--broken", choices=BROKEN, metavar="BUG", help=f"break the product: {', '.join(BROKEN)}")
    arguments.add_argument("--json", action="store_true", help="the figures as one object")
    arguments.add_argument("-v", "--verbose", action="store_true", help="print everything that happens")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    given = parser().parse_args(argv)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**9)
    climate = BROKEN[given.broken].climate if given.broken else TEMPERATE
    plan = Plan(seed, given.steps, given.devices, EVERYTHING if given.verbose else LAST_LINES, climate)
    figures, line = Figures(), TerminalLine()
    with broken(given.broken), interruptible() as is_interrupted:
        for outcome in runs(plan, seeds=given.seeds, minutes=given.minutes):
            figures.add(outcome)
            line.say(f"seed {outcome.plan.seed}: {figures}"[:200])
            if given.verbose and not given.json:
                print("\n".join(outcome.lines))
            if outcome.violation:
                line.clear()
                _tell(shortened(outcome), given.broken, quiet=given.json or given.verbose)
            if is_interrupted():
                break
    line.clear()
    if given.json:
        failed = [
            {"seed": each.plan.seed, "step": each.at_step, "violation": each.violation} for each in figures.failed
        ]
        last = {"first_seed": seed, "digest": outcome.digest}
        print(json.dumps({**last, **figures.numbers, "violations": failed}))
    else:
        print(f"seeds from {seed} on, {given.steps} steps each: {figures}; trace {outcome.digest}")
    return 1 if figures.failed else INTERRUPTED if is_interrupted() else 0


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Whether there was a Ctrl-C. The first one is only remembered, so that the run under way ends in order."""
    seen: list[int] = []

    def remember(number: int, _frame: object) -> None:
        seen.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)


def runs(plan: Plan, *, seeds: int, minutes: float | None) -> Iterator[Outcome]:
    """At least one."""
    ends_s = time.monotonic() + (minutes or 0) * 60
    for seed in islice(count(plan.seed), seeds if minutes is None else None):
        yield simulate(replace(plan, seed=seed))
        if minutes is not None and time.monotonic() >= ends_s:
            return


def shortened(outcome: Outcome) -> Outcome:
    """The same seed with the fewest steps found that still fail, which need not be for the same reason."""
    shortest = simulate(replace(outcome.plan, steps=outcome.at_step, keep=LAST_LINES))
    if not shortest.violation:
        return outcome
    passes, fails = 0, shortest.plan.steps
    while fails - passes > 1:
        steps = (passes + fails) // 2
        shorter = simulate(replace(shortest.plan, steps=steps))
        if shorter.violation:
            shortest, fails = shorter, steps
        else:
            passes = steps
    return shortest


def _tell(outcome: Outcome, bug: str | None, *, quiet: bool) -> None:
    if not quiet:
        print("\n".join(outcome.lines))
    devices = f" --devices {outcome.plan.disks}" if outcome.plan.disks else ""
    how = f' --broken "{bug}"' if bug else ""
    print(f"VIOLATION: {outcome.violation}", file=sys.stderr)
    run = f"--seed {outcome.plan.seed} --steps {outcome.plan.steps}{devices}{how}"
    print(f"again: tools/storm {run} -v", file=sys.stderr)
