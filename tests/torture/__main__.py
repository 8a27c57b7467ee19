"""`tools/torture`: tortures one after the other, each from a seed that replays it."""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from random import Random, SystemRandom

from ploopfs.cli.exits import end_on_signals
from ploopfs.cli.text import TerminalLine
from tests.torture.report import Report, table, total
from tests.torture.stories import STORIES

TROUBLES = 14

DESCRIPTION = """\
Use a mounted disk while its store dies, hangs, lies, loses its power, fills up and returns, and its daemon ends and is
started again, and compare every byte that was acknowledged. The seed draws the flavour, what happens to requests in
standby, the store (one that lies as GlusterFS does, bindfs over a file system whose power is cut, or GlusterFS itself),
the way of the data (a FUSE connection of its own, or the tree's), and whether an agent recovers the device, or only an
operator.

  fsx    random calls on the disk itself, by several users, of any size, over each other
  fio    fio with its verify state, across outages and the daemon's ends
  ext4   a file system on a loop device over the disk, with a journal of acknowledged fsyncs
  xfs    the same
  power  the engine in this process, on a file system whose power is cut
"""
EPILOG = """\
A seed decides what is done and in which order, not when each of two threads comes to it: a failure that depends on that
may need several attempts.

With PLOOPFS_TEST_HANG_S=600 in the environment it waits for ten minutes, not for one, before it takes what does not
happen for a failure: for a machine that is busy with other things.

exit codes:
  0  nothing acknowledged was lost
  1  a torture failed; its seed and what was found are printed
  2  the command line is wrong
  128 + N  ended by signal N

examples:
  tools/torture --times 4
  tools/torture fsx ext4 --hours 8 --json > torture.json
  tools/torture fsx --seed 1234567 --keep
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    end_on_signals()
    line, reports, began_s = TerminalLine(), list[Report](), time.monotonic()
    stories = arguments.stories or list(STORIES)
    limit_s = arguments.hours * 3600 + arguments.minutes * 60
    times = arguments.times or (0 if limit_s else len(stories))
    seeds = _seeds(arguments.seed)
    while len(reports) < times or time.monotonic() - began_s < limit_s:
        name, seed = stories[len(reports) % len(stories)], next(seeds)
        line.say(f"[{len(reports) + 1}{f' of {times}' if times else ''}] {name} --seed {seed}")
        report = _one(name, seed, arguments, line)
        if report is None:
            return 1
        reports.append(report)
    _tell(reports, time.monotonic() - began_s, as_json=arguments.json)
    return 0


def _one(name: str, seed: int, arguments: argparse.Namespace, line: TerminalLine) -> Report | None:
    began_s, place = time.monotonic(), Path(tempfile.mkdtemp(prefix="torture."))
    try:
        report = STORIES[name](place, Random(seed), arguments.troubles)
    except Exception:
        line.clear()
        traceback.print_exc()
        again = f"tools/torture {name} --seed {seed} --troubles {arguments.troubles}"
        kept = f"; the images are kept in {place}" if arguments.keep else ""
        print(f"torture: {name} failed; again with: {again}{kept}", file=sys.stderr)
        if not arguments.keep:
            shutil.rmtree(place, ignore_errors=True)
        return None
    shutil.rmtree(place)
    line.clear()
    if not arguments.json:
        print(f"{name:<5} --seed {seed:<10} {time.monotonic() - began_s:5.1f} s  {report.line}", flush=True)
    return report


def _tell(reports: Sequence[Report], seconds: float, *, as_json: bool) -> None:
    whole = total(reports)
    if as_json:
        print(json.dumps({"seconds": round(seconds), "tortures": len(reports), **whole.document()}, indent=2))
    else:
        print(f"\n{len(reports)} tortures in {seconds:.0f} s, nothing acknowledged was lost\n\n{table(whole)}")


def _seeds(first: int | None) -> Iterator[int]:
    """The one that was asked for and those after it, or fresh ones."""
    return count(first) if first is not None else iter(lambda: SystemRandom().randrange(1 << 31), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tools/torture", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stories", nargs="*", metavar="STORY", type=_story, help=f"{', '.join(STORIES)}; default: all in turn"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the first; the next has N + 1; default: fresh ones")
    parser.add_argument("--times", type=int, default=0, metavar="N", help="how many; default: each story once")
    parser.add_argument("--hours", type=float, default=0, metavar="H", help="go on for so long instead")
    parser.add_argument("--minutes", type=float, default=0, metavar="M", help="the same, or beside the hours")
    parser.add_argument(
        "--troubles", type=int, default=TROUBLES, metavar="N", help=f"in each; default {TROUBLES}, which is one of each"
    )
    parser.add_argument("--keep", action="store_true", help="keep the images of the one that failed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    return parser


def _story(name: str) -> str:
    """`choices` would refuse that there is none."""
    if name not in STORIES:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(STORIES)}")
    return name


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
