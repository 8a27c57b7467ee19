"""Cuts the power and kills processes under writers, as often as it is told to: the long form of tests that CI runs in
seconds. Started by tools/crash.

Knows nothing of how: that is tests/engine/power.py, tests/engine/killing.py and tests/mounted/killing.py. Invariant:
the first byte that is missing ends it with the seed that shows it again; however it ends, no process of its own, no
mount and no file is left, except the images of a failure.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random

from ploopfs.cli.exits import end_on_signals
from ploopfs.cli.text import ProgressLine
from tests.engine.crash import Run, assert_survives_any_power_failure
from tests.engine.killing import Disk, Model, as_numbers, killer
from tests.engine.power import LONG
from tests.engine.test_crash import SHAPES
from tests.mounted.killing import kill_daemon

Progress = Callable[[int, int], None]
"""How many are done, of how many."""
DESCRIPTION = "Cut the power, kill -9 the engine, kill -9 the daemon: every acknowledged or flushed byte must be there."
EPILOG = """\
Power failures are simulated: stories of random operations on a disk in memory, each cut at every step, with every
subset of unsynced sectors where these are few and some hundred where they are many; then recovered, and cut again.
Kills are real: processes, files and mounts.

exit codes:
  0  nothing was lost
  1  something was; the message says what, and with which seed it is shown again
  2  the command line is wrong
  128 + N  ended by signal N: 130 after Ctrl-C

example:
  tools/crash --times 300 --daemon 20 --power 50 --seed 7
"""


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if min(options.power, options.times, options.daemon) < 0 or not options.power + options.times + options.daemon:
        parser.error("--times, --daemon and --power are 0 or more, and not all 0: nothing would be shown")
    end_on_signals()
    line = ProgressLine()
    parts: dict[str, tuple[int, Callable[[int, int, Path, Progress], Mapping[str, int]]]] = {
        "power": (options.power, cut_power),
        "engine": (options.times, kill_engine),
        "daemon": (options.daemon, kill_daemons),
    }
    report: dict[str, object] = {"seed": options.seed}
    for name, (times, run) in parts.items():
        if not times:
            continue
        place = Path(tempfile.mkdtemp(prefix="ploopfs-crash-", dir=options.dir))
        started_s = time.monotonic()
        try:
            numbers = run(times, options.seed, place, partial(line.show, name))
        except AssertionError as error:
            line.clear()
            asked = " ".join(f"--{option} {count}" for option, count in _alone(name, times).items())
            print(f"crash: {name}: {error}\ncrash: shown again by tools/crash {asked} --seed {options.seed}; what was "
                  f"left is in {place}", file=sys.stderr)
            return 1
        except BaseException:  # ended by a signal, too
            shutil.rmtree(place)
            raise
        line.clear()
        shutil.rmtree(place)
        figures = {**numbers, "seconds": round(time.monotonic() - started_s)}
        report[name] = figures
        if not options.json:
            print(f"{name}: " + ", ".join(f"{value} {key}" for key, value in figures.items()))
    if options.json:
        print(json.dumps(report))
    return 0


def _alone(name: str, times: int) -> dict[str, int]:
    """The options that ask for this part and no other."""
    return {option: times if part == name else 0
            for part, option in (("engine", "times"), ("daemon", "daemon"), ("power", "power"))}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/crash", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=100, metavar="N", help="kills of the engine (default: 100)")
    parser.add_argument("--daemon", type=int, default=5, metavar="N", help="kills of the daemon (default: 5)")
    parser.add_argument("--power", type=int, default=5, metavar="N", help="stories to cut the power in (default: 5)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of everything that is drawn (default: 1)")
    parser.add_argument("--dir", metavar="DIR", help="where the images are put (default: TMPDIR)")
    parser.add_argument("--json", action="store_true", help="print one object of figures")
    return parser


def cut_power(times: int, seed: int, _place: Path, progress: Progress) -> Mapping[str, int]:
    outcomes = 0
    for number in range(times):
        shape = list(SHAPES.values())[number % len(SHAPES)]
        run = Run(shape, seed + number, together=(1, 4)[number // len(SHAPES) % 2])
        try:
            outcomes += assert_survives_any_power_failure(run, LONG)
        except AssertionError as error:
            raise AssertionError(f"story {number} ({shape}): {error}") from error
        progress(number + 1, times)
    return {"stories": times, "outcomes": outcomes}


def kill_engine(times: int, seed: int, place: Path, progress: Progress) -> Mapping[str, int]:
    total: dict[str, int] = {}
    with killer(Random(seed)) as one:
        for first in range(0, times, 50):
            # A new disk now and then: one that has grown old is full.
            disk, model = Disk(place / f"disk{first}"), Model()
            for number in range(first, min(first + 50, times)):
                one.kill(disk, model)
                disk.examine(model, closes=number % 10 == 9)
                progress(number + 1, times)
            for key, value in as_numbers(model).items():
                total[key] = total.get(key, 0) + value
    return total


def kill_daemons(times: int, seed: int, place: Path, progress: Progress) -> Mapping[str, int]:
    disk, model, random = Disk(place / "disk"), Model(), Random(seed)
    for number in range(times):
        kill_daemon(place, disk, model, random)
        disk.examine(model, closes=number % 5 == 4)
        progress(number + 1, times)
    return as_numbers(model)


if __name__ == "__main__":
    sys.exit(main())
