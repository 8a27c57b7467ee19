"""`tools/mutants`: the deliberate bugs, one or all, against the test that must see each or against all.

Progress goes to a terminal, results to standard output as they come. Exit code 0: each was killed; 1: one was not.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ploopfs.cli.text import TerminalLine
from tests.mutants.arena import Arena, Mutant, MutantError, Verdict, each, mutated, source_of
from tests.mutants.mutants import MUTANTS

UNIT_TESTS = (
    *(f"tests/{part}" for part in ("image", "engine", "device", "scst", "sysfs", "fuse", "blockfuse")),
    "--ignore=tests/fuse/test_mounted.py",
    "-m",
    "not real and not slow",
    "tests/test_configured.py",
    "tests/test_start.py",
)
EXAMPLES = """\
exit codes:
  0  each bug was killed: the test that is named for it failed; with --all-tests, some test did
  1  one survived, or does not fit to the source any more
  2  the command line is wrong

examples:
  tools/mutants                                   # all, each against the test that must see it
  tools/mutants --list
  tools/mutants --all-tests 'skip the barrier'    # which tests kill it?
  tools/mutants --jobs 4 --json > mutants.json
"""


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        prog="tools/mutants",
        description="Break the product on purpose, in a copy, and see whether the tests notice.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("names", nargs="*", metavar="NAME", help="the bugs, as --list names them; default: all")
    arguments.add_argument("--list", action="store_true", help="print the names, and break nothing")
    arguments.add_argument("--all-tests", action="store_true", help="all unit tests, and which of them kill")
    arguments.add_argument("--jobs", type=int, default=2, help="bugs at a time (default: %(default)s)")
    arguments.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="each (default: %(default)g)")
    arguments.add_argument("--json", action="store_true", help="one object for each bug, in a list")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    given = parser().parse_args(argv)
    known = {mutant.name: mutant for mutant in MUTANTS}
    unknown = [name for name in given.names if name not in known]
    if unknown:
        parser().error(f"there is no bug {unknown[0]!r}: see --list")
    mutants = [known[name] for name in given.names or known]
    if given.list:
        print("\n".join(f"{mutant.name}\t{mutant.file}" for mutant in mutants))
        return 0
    stale = _stale(mutants)
    for complaint in stale.values():
        print(complaint, file=sys.stderr)
    mutants = [mutant for mutant in mutants if mutant.name not in stale]
    told: list[dict[str, object]] = []
    survived = 0
    with tempfile.TemporaryDirectory() as directory:
        tests = UNIT_TESTS if given.all_tests else None
        verdicts = each(Arena(Path(directory)), mutants, tests, limit_s=given.limit, jobs=max(1, given.jobs))
        line = TerminalLine()
        line.say(f"0 of {len(mutants)} bugs")
        for number, (mutant, verdict) in enumerate(verdicts, 1):
            survived += not verdict.is_killed
            told.append(_facts(mutant, verdict))
            if not given.json:
                line.clear()
                print(_row(mutant, verdict, show_tests=given.all_tests), flush=True)
            line.say(f"{number} of {len(mutants)} bugs")
        line.clear()
    if given.json:
        print(json.dumps(told, indent=2))
    else:
        print(f"{len(mutants) - survived} of {len(mutants)} bugs were killed")
    return int(bool(survived or stale))


def _stale(mutants: Sequence[Mutant]) -> dict[str, str]:
    complaints = {}
    for mutant in mutants:
        try:
            mutated(mutant, source_of(mutant))
        except MutantError as error:
            complaints[mutant.name] = str(error)
    return complaints


def _facts(mutant: Mutant, verdict: Verdict) -> dict[str, object]:
    return {
        "name": mutant.name,
        "file": mutant.file,
        "killed": verdict.is_killed,
        "exit_code": verdict.exit_code,
        "failed": verdict.failed,
        "passed": verdict.passed,
        "broken": verdict.broken,
    }


def _row(mutant: Mutant, verdict: Verdict, *, show_tests: bool) -> str:
    if verdict.is_killed:
        tests = [f"  {test}" for test in verdict.failed] if show_tests else []
        return "\n".join([f"killed    {mutant.name}", *tests])
    if verdict.exit_code is None:
        return f"TIMED OUT {mutant.name}\n{verdict.text}"
    if verdict.broken:
        return f"BROKEN    {mutant.name}: {verdict.broken}"
    if verdict.exit_code == 0:
        return f"SURVIVED  {mutant.name}: {verdict.passed} tests passed"
    return f"NOT RUN   {mutant.name}: pytest ended with {verdict.exit_code}\n{verdict.text}"
