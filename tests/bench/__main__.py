"""`tools/bench`: how fast a disk of ploopfs is beside the same disk served by others, as one table."""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ploopfs.cli.exits import end_on_signals
from ploopfs.cli.text import TerminalLine
from tests.bench.cases import DEEP, FULL, MIB, USING_UP, Image, Plan
from tests.bench.fio import BenchError
from tests.bench.groups import compare, compare_depths, cost_of_check
from tests.bench.images import Tell
from tests.bench.peers import QEMU_EXPORT, QEMU_FILE, command, lacks, planes
from tests.bench.profile import profile
from tests.bench.report import Figures
from tests.idle import halt_poll_us
from tests.mounted.daemon import ROOT, unmount

GROUPS = ("one", "holes", "copy-up", "depth", "check")
COMPARED = {"one": Image.FULL, "holes": Image.EMPTY, "copy-up": Image.OVER}
NEEDED = 14
"""Times the size of the disk: the images of five peers, and the stacks."""

DESCRIPTION = """\
Measure fio on a disk of ploopfs, on the same image served by QEMU (qemu-storage-daemon's FUSE export, and nbdfuse over
qemu-nbd), and on a plain file of the same file system, which is the ceiling. Every server has a copy of its own and the
same options; they serve at the same time and are measured in turn. A number is read, not passed: the exit code says
nothing about speed. Run it on a machine that does nothing else.

groups:
  one      4 KiB random and 1 MiB sequential requests on one delta
  holes    writes that allocate: each into a cluster that is a hole
  copy-up  writes to an empty top over a full delta, each of which copies its cluster
  depth    reads from a stack of 1, 10 and 100 deltas
  check    standby's check: both fuses in against both out, many short runs beside each other
"""
EPILOG = """\
environment:
  PLOOPFS  the command of the ploopfs to measure; default: that of this directory
  TMPDIR   where the images are put without --dir; not in memory, or a part of what is measured is left out

exit codes:
  0  measured
  1  something is missing or failed; the message says what
  2  the command line is wrong
  128 + N  ended by signal N; everything is cleaned up as after a full run

examples:
  tools/bench --quick
  tools/bench --markdown --dir /var/tmp > speed.md
  tools/bench --only one --runs 9 --json
  tools/bench --profile '4 KiB random read, QD 16' --profile-to read.svg
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.profile and not (arguments.profile_to or "").endswith((".svg", ".txt")):
        parser.error("--profile needs --profile-to with a file .svg (a flame graph) or .txt (its stacks)")
    end_on_signals()
    line = TerminalLine()
    try:
        if missing := lacks():
            raise BenchError(f"this machine lacks {', '.join(missing)}")
        with scratch_directory(arguments.dir) as scratch:
            report = _run(arguments, scratch, line.say)
    except (BenchError, AssertionError, OSError) as error:
        line.clear()
        print(f"bench: {error}", file=sys.stderr)
        return 1
    line.clear()
    if report:
        print(report)
    return 0


def _run(arguments: argparse.Namespace, scratch: Path, tell: Tell) -> str:
    plan = _plan(arguments)
    needed, free = NEEDED * plan.size_bytes, shutil.disk_usage(scratch).free
    if free < needed:
        raise BenchError(f"{scratch} has {free // MIB} MiB free, {needed // MIB} MiB are needed; see --dir and --size")
    if arguments.profile:
        case = next(case for case in (*FULL, *USING_UP) if case.name == arguments.profile)
        profile(case, arguments.plane, Path(arguments.profile_to), scratch, plan, tell)
        return ""
    figures = Figures(conditions(plan, scratch))
    for group in arguments.only or GROUPS:
        place = scratch / group
        if group == "depth":
            figures.depths = compare_depths(place, plan, tell)
        elif group == "check":
            figures.check = cost_of_check(place, plan, tell)
        else:
            figures.compared |= compare(COMPARED[group], place, plan, tell)
        shutil.rmtree(place)
    if arguments.json:
        return figures.as_json()
    return figures.as_markdown() if arguments.markdown else figures.as_text()


def _plan(arguments: argparse.Namespace) -> Plan:
    plan = Plan.quick() if arguments.quick else Plan.full()
    asked = {"runs": arguments.runs, "seconds": arguments.seconds, "pairs": arguments.pairs}
    asked["size_bytes"] = arguments.size and arguments.size * MIB
    return replace(plan, **{name: value for name, value in asked.items() if value})


@contextmanager
def scratch_directory(parent: str | None) -> Iterator[Path]:
    """On a disk if the machine has one in a usual place. Removed at the end, and nothing stays mounted in it."""
    places = (tempfile.gettempdir(), "/var/tmp")
    usual = next((place for place in places if _filesystem(Path(place)) != "tmpfs"), places[0])
    scratch = Path(tempfile.mkdtemp(prefix="bench.", dir=parent or usual)).resolve()
    try:
        yield scratch
    finally:
        for place in _mounts_below(scratch):
            unmount(place)
        shutil.rmtree(scratch)


def _mounts_below(directory: Path) -> list[Path]:
    table = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((place for place in table if place.is_relative_to(directory)), reverse=True)


# What the figures depend on.


def conditions(plan: Plan, scratch: Path) -> dict[str, str]:
    sizes = f"{plan.size_bytes // MIB} MiB, clusters of 1 MiB"
    return {
        "machine": f"Linux {platform.release()}, {_cpus()}, {busy():.0%} busy before the first run",
        "versions": ", ".join(map(_first_line, (command(), ("qemu-storage-daemon",), ("nbdfuse",), ("fio",)))),
        "images": f"{sizes}, on {_filesystem(scratch)}, through the page cache; a copy for each server",
        "ploopfs": f"a vz7 device attached to SCST, both fuses in; {' and '.join(planes())}",
        "qemu": f"parallels over {QEMU_FILE}; export {QEMU_EXPORT}",
        "fio": f"direct=1 (but for the plain file); medians of {plan.runs} x {plan.seconds} s, in turn; ± is half of "
        "the way from the slowest run to the fastest",
    }


def _cpus() -> str:
    poll_us = halt_poll_us()
    idle = "" if poll_us is None else f" (an idle one looks for work for {poll_us} us before it halts)"
    return f"{os.cpu_count()} CPUs{idle}"


def busy() -> float:
    """The share of CPU time that others take in a moment in which we do nothing. A load average would also count
    whoever waits for a disk, or for a mount that does not answer."""

    def ticks() -> list[int]:
        return [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]

    before = ticks()
    signal.sigtimedwait([], 1)
    spent = [after - earlier for after, earlier in zip(ticks(), before, strict=True)]
    return 1 - (spent[3] + spent[4]) / (sum(spent) or 1)


def _filesystem(place: Path) -> str:
    return _output(["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(place)])


def _first_line(program: Sequence[str]) -> str:
    return _output([*program, "--version"]).splitlines()[0]


def _output(told: list[str]) -> str:
    done = subprocess.run(told, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(told)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


# The command line.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tools/bench", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1 run of 1 s on small disks: one to two minutes in all")
    parser.add_argument("--only", action="append", choices=GROUPS, help="this group only; may be repeated")
    parser.add_argument("--runs", type=_positive, metavar="N", help="runs per case and peer; default 5")
    parser.add_argument("--seconds", type=_positive, metavar="S", help="length of a run; default 3")
    parser.add_argument("--pairs", type=_positive, metavar="N", help="of runs with the fuses in and out; default 40")
    parser.add_argument("--size", type=_positive, metavar="MIB", help="size of the full disks; default 512")
    parser.add_argument("--dir", metavar="DIR", help="where the images are put; default: a temporary directory")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print JSON, with every run, instead of the tables")
    shape.add_argument("--markdown", action="store_true", help="print the tables as a README has them")
    names = [case.name for case in (*FULL, *USING_UP) if case not in DEEP]
    parser.add_argument(
        "--profile", choices=names, metavar="CASE", help="no figures: where the time of our server goes in this case"
    )
    parser.add_argument("--plane", choices=planes(), default=next(iter(planes())), help="the one to profile")
    parser.add_argument("--profile-to", metavar="FILE", help="a flame graph (.svg), or collapsed stacks (.txt)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


if __name__ == "__main__":
    sys.exit(main())
