"""`tools/soak`: the long run, told on a terminal as it goes, and as a table or JSON at the end."""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ploopfs.cli.text import ProgressLine
from tests.soak.campaign import Finding, soak, soak_mounts
from tests.soak.works import WORKS

MOUNTS = 1000
TELL_EVERY_S = 0.5

DESCRIPTION = """\
Do each operation of a mounted tree again and again, and look for what it leaves behind: descriptors, threads, tasks,
locks, files, mounts, objects of Python, memory. A work is measured on a daemon of its own, after a tenth of it to get
warm. What can be counted must be equal afterwards, to the object; memory must not grow with the number of operations.
"""
EPILOG = """\
exit codes:
  0  nothing was left behind
  1  something was; the last column says what
  2  the command line is wrong
  128 + N  ended by signal N: the work under way was judged by what was done

examples:
  tools/soak --factor 0.01
  tools/soak --only replaces --replaces 5000 --trace
  TMPDIR=/dev/shm tools/soak --json > soak.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    ending = _Ending()
    counts = {name: getattr(arguments, name) for name in ("mounts", *WORKS)}
    findings = []
    for name, count in counts.items():
        wanted = round(count * arguments.factor)
        if wanted and not ending.number and (not arguments.only or name in arguments.only):
            findings.append(_one(name, wanted, arguments.trace, ending))
            if not arguments.json:
                print(_row(findings[-1]), flush=True)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return 128 + ending.number if ending.number else int(any(finding.leaks for finding in findings))


class _Ending:
    """The first signal ends the work under way, which is judged by what was done; a second one ends us."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)

    def _end(self, number: int, _frame: object) -> None:
        if self.number:
            raise SystemExit(128 + number)
        self.number = number


def _one(name: str, count: int, traced: bool, ending: _Ending) -> Finding:
    line = ProgressLine()

    def tell(what: str, done: int, wanted: int) -> bool:
        line.show(what, done, wanted)
        return bool(ending.number)

    # In memory where the system has it: flushes to a disk measure the disk.
    with tempfile.TemporaryDirectory(prefix="soak.") as directory:
        place = Path(directory)
        if name == "mounts":
            finding = soak_mounts(count, place, progress=tell)
        else:
            finding = soak(name, WORKS[name][1], count, place, traced=traced, progress=tell)
    line.clear()
    return finding


def _row(finding: Finding) -> str:
    before, after = (size / (1 << 20) for size in finding.private_bytes)
    told = (
        f"{finding.work:<12} {finding.operations:>9}  {finding.seconds:8.1f} s  {before:6.1f} -> {after:6.1f} MiB  "
        f"{finding.bytes_per_operation:9.3f} B/op  {finding.blocks_per_operation:8.4f} blocks/op  "
        f"{'; '.join(finding.leaks) or 'nothing left behind'}"
    )
    traced = sorted(finding.traced.items(), key=lambda each: -abs(each[1]))
    return "\n".join([told, *(f"    {size:+} bytes: {place}" for place, size in traced)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/soak",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=["mounts", *WORKS], help="this work only; may be repeated")
    parser.add_argument("--factor", type=float, default=1.0, metavar="F", help="of every count; default 1")
    parser.add_argument("--trace", action="store_true", help="tell which lines of the daemon hold more memory (slow)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--mounts", type=int, default=MOUNTS, metavar="N", help=f"mounts and unmounts; default {MOUNTS}"
    )
    for name, (count, _, text) in WORKS.items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"{text}; default {count}")
    return parser


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
