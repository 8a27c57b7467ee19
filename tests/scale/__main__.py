"""`tools/scale`: how many devices one tree carries, and how large one may be, in figures."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from compileall import compile_dir
from dataclasses import asdict, dataclass
from pathlib import Path

from ploopfs.bounds import MAX_DEVICES
from ploopfs.cli.exits import end_on_signals
from ploopfs.cli.text import TerminalLine
from tests.idle import halt_poll_us
from tests.mounted.daemon import ROOT
from tests.scale.large import MapMemory, Replaced, measure_map, measure_replace
from tests.scale.many import Beside, Tree, make_images, measure_tree

MIB = 1 << 20
PARTS = ("devices", "map", "replace")

DESCRIPTION = """\
Measure what grows with the number of devices of a tree, and with the size of one: how long it takes until all serve,
memory for each, reading the tree beside the kernel's own sysfs, and beside that behind bindfs, in the same run, memory
for each cluster of a map, and how long requests wait while a top with a large map is replaced. A number is read, not
passed: the exit code says nothing about speed.
"""
EPILOG = """\
exit codes:
  0  measured
  1  something failed; the message says what
  2  the command line is wrong
  128 + N  ended by signal N

examples:
  tools/scale
  tools/scale --only devices --devices 100 --size 10240
  TMPDIR=/var/tmp tools/scale --json > scale.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    end_on_signals()
    line = TerminalLine()
    found: list[Figure] = []
    try:
        with tempfile.TemporaryDirectory(prefix="scale.", dir=arguments.dir) as directory:
            for part in arguments.only or PARTS:
                figures = _measured(part, arguments, Path(directory) / part, line)
                line.clear()
                found += figures
                if not arguments.json and not arguments.markdown:
                    print("\n".join(figure.as_text() for figure in figures), flush=True)
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        line.clear()
        print(f"scale: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps([asdict(figure) for figure in found], indent=2))
    if arguments.markdown:
        print(_markdown(found))
    return 0


@dataclass(frozen=True, slots=True)
class Figure:
    """`wanted` is the most that it should be; None where nothing is said."""

    name: str
    value: float
    unit: str = ""
    wanted: float | None = None
    digits: int = 0

    @property
    def cells(self) -> tuple[str, str, str]:
        wanted = "" if self.wanted is None else f"{self.wanted:g} {self.unit}"
        return self.name, f"{self.value:.{self.digits}f} {self.unit}".strip(), wanted.strip()

    def as_text(self) -> str:
        name, value, wanted = self.cells
        return f"{name:<70} {value:>12}  {wanted}".rstrip()


def _measured(part: str, arguments: argparse.Namespace, place: Path, line: TerminalLine) -> list[Figure]:
    place.mkdir()
    options = arguments.option or []
    if part == "map":
        return _of_map(measure_map(place / "map", arguments.map_gib * 1024, line.say, options))
    if part == "replace":
        entries = arguments.entries
        return _of_replace(measure_replace(place / "replace", entries, arguments.times, line.say, options))
    # As an installer does it. Where the interpreter may not keep what it has compiled, each start was 0.3 s longer.
    compile_dir(ROOT / "ploopfs", quiet=2)
    images = make_images(place / "images", arguments.devices, arguments.size * MIB, line.say)
    one = measure_tree(place / "one", images[:1], line.say, options)
    return _of_tree(one, measure_tree(place / "many", images, line.say, options), arguments.size)


def _of_tree(one: Tree, many: Tree, size_mib: int) -> list[Figure]:
    each = f"{many.devices} devices of {size_mib} MiB"
    started = (many.start_bytes - one.start_bytes) / (many.devices - one.devices)
    walked = started + (many.walked_bytes - many.start_bytes) / many.walked
    return [
        Figure(f"{each}: until the tree is served", many.ready_s, "s", digits=2),
        Figure(f"{each}: until each disk has answered", many.serving_s, "s", 5, digits=2),
        Figure("one device: until the disk has answered", one.serving_s, "s", digits=2),
        Figure("memory of each further device", started / 1024, "KiB", 100),
        Figure("memory of one whose files were all looked at", walked / 1024, "KiB"),
        Figure("reading all files of a device", many.walk_s / many.walked * 1000, "ms"),
        Figure("ls -l of sys/block and dev", many.ls_s, "s", digits=2),
        Figure("lsblk --sysroot", many.lsblk_s, "s", digits=2),
        *_beside("cat of all queue/standby, each file", many.cat),
        *_beside("open, read and close of a queue/standby", many.read),
        *_idle(),
        Figure(f"{each}: until all are closed", many.end_s, "s", digits=2),
    ]


def _beside(name: str, found: Beside) -> list[Figure]:
    return [
        Figure(name, found.ours_s * 1e6, "us"),
        Figure("  of the kernel's own sysfs", found.kernel_s * 1e6, "us", digits=1),
        Figure("  of that behind bindfs, a FUSE file system in C", found.bindfs_s * 1e6, "us"),
        Figure("  times as long as the kernel's own", found.ours_s / found.kernel_s, wanted=10, digits=1),
    ]


def _idle() -> list[Figure]:
    poll_us = halt_poll_us()
    return [] if poll_us is None else [Figure("an idle CPU looks for work before it halts", poll_us, "us")]


def _of_map(found: MapMemory) -> list[Figure]:
    each = f"a map of {found.clusters} clusters"
    return [
        Figure(f"{each}: memory of each cluster, one delta", found.alone_bytes, "B", digits=1),
        Figure(f"{each}: memory of each cluster, two deltas", found.stacked_bytes, "B", digits=1),
    ]


def _of_replace(found: Replaced) -> list[Figure]:
    each = f"replace of a top with {found.entries} entries"
    return [
        Figure(f"{each}, from begin to end, median of {found.times}", found.whole_s * 1000, "ms"),
        Figure(f"{each}: longest wait of a read, median", found.longest_wait_s * 1000, "ms", 100),
        Figure(f"{each}: longest wait of a read, the worst", found.worst_wait_s * 1000, "ms"),
        Figure("longest wait of a read in as much time without one", found.usual_wait_s * 1000, "ms"),
        Figure("reads that failed", found.errors, wanted=0),
    ]


def _markdown(found: Sequence[Figure]) -> str:
    heads = ("what", "measured", "wanted at most"), ("---", "---:", "---:")
    return "\n".join(f"| {' | '.join(row)} |" for row in (*heads, *(figure.cells for figure in found)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tools/scale", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="this part only; may be repeated")
    devices = f"devices of the tree; default 1000, at most {MAX_DEVICES}"
    parser.add_argument("--devices", type=_count, default=1000, metavar="N", help=devices)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of each of them; default 1024")
    parser.add_argument("--map-gib", type=int, default=2048, metavar="GIB", help="of the disk of the map; default 2048")
    parser.add_argument("--entries", type=int, default=1 << 20, metavar="N", help="of the top; default 1048576")
    parser.add_argument("--times", type=int, default=10, metavar="N", help="replacements; default 10")
    parser.add_argument("--dir", metavar="DIR", help="where the images are put; default: a temporary directory")
    parser.add_argument("--option", action="append", metavar="TEXT", help="passed on to `ploopfs mount`, as it is")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print JSON")
    shape.add_argument("--markdown", action="store_true", help="print a table as a README has it")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if not 2 <= number <= MAX_DEVICES:
        raise argparse.ArgumentTypeError(f"{text} is not from 2 to {MAX_DEVICES:d}")
    return number


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
