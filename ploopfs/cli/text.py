"""How the client verbs print: sizes, durations, tables, and colours where somebody looks at them.

Knows nothing of devices. Invariant: what goes into a pipe or a file has no escape sequence.
"""

import os
import sys
from collections.abc import Callable, Sequence
from enum import Enum


class Colour(Enum):
    """The value selects it in an escape sequence."""

    RED = "31"
    GREEN = "32"
    YELLOW = "33"
    BOLD = "1"
    DIM = "2"


Style = Callable[[str], Colour | None]


def painted(text: str, colour: Colour | None) -> str:
    """In colour if standard output is a terminal that takes it, and the user does too (no-color.org)."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\033[{colour.value}m{text}\033[0m" if colour and wanted and text.strip() else text


def plain(_cell: str) -> None:
    """The style of a column without colours."""


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], styles: dict[str, Style] | None = None) -> None:
    """`styles` names columns by their heads. The last column is not padded."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    widths[-1] = 0
    columns = [(styles or {}).get(head, plain) for head in heads]
    print("  ".join(painted(head.ljust(width), Colour.BOLD) for head, width in zip(heads, widths, strict=True)))
    for row in rows:
        cells = zip(row, widths, columns, strict=True)
        print("  ".join(painted(cell.ljust(width), style(cell)) for cell, width, style in cells).rstrip())


def size(size_bytes: int) -> str:
    amount, units = float(size_bytes), iter("BKMGTPE")
    unit = next(units)
    while amount >= 1024 and unit != "E":
        amount, unit = amount / 1024, next(units)
    return f"{amount:g}{unit}" if amount == int(amount) else f"{amount:.1f}{unit}"


def duration(seconds: float) -> str:
    """The two largest units: `12 s`, `3 min 20 s`, `5 h 2 min`, `2 d 4 h`."""
    whole = max(0, int(seconds))
    for unit_s, name, below_s, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit_s:
            return f"{whole // unit_s} {name} {whole % unit_s // below_s} {below}"
    return f"{whole} s"
