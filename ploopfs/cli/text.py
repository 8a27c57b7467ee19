"""How the client verbs print: sizes, durations, tables, and colours where somebody looks at them.

Knows nothing of devices. Invariants: what goes into a pipe or a file has no colours; what goes to a terminal has no
character that does anything there but be seen, whatever the name of a file or the answer of a tree may hold.
"""

import os
import re
import shutil
import sys
import textwrap
import time
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


_OURS = re.compile(f"(\033\\[(?:0|{'|'.join(colour.value for colour in Colour)})m)")
_UNDECODED = range(0xDC80, 0xDD00)
"""What `surrogateescape` makes of the bytes 0x80 to 0xFF."""


def printable(text: str) -> str:
    """One line in which everything is seen: what is not a letter, a sign or a blank stands there as an escape."""
    return text if text.isprintable() else "".join(one if one.isprintable() else _escape(one) for one in text)


def _escape(one: str) -> str:
    if ord(one) in _UNDECODED:
        return f"\\x{ord(one) - 0xDC00:02x}"
    return one.encode("unicode_escape").decode()


def say(text: str = "") -> None:
    """Print lines: as they are into a pipe or a file, whose reader wants the very name; so that all is seen to a
    terminal."""
    print("\n".join(map(_seen, text.split("\n"))) if sys.stdout.isatty() else text)


def _seen(line: str) -> str:
    return "".join(part if _OURS.fullmatch(part) else printable(part) for part in _OURS.split(line))


LEAST_COLUMNS = 20
"""What is to be folded into less is left to the terminal."""


def folded(text: str, indent: int) -> str:
    """For a terminal: what begins in column `indent` and is longer than the line goes on below itself. A word is never
    cut, so that a path can be copied."""
    if not sys.stdout.isatty():
        return text
    columns = shutil.get_terminal_size().columns - indent
    shown = printable(text)
    if len(shown) <= columns or columns < LEAST_COLUMNS:
        return text
    lines = textwrap.wrap(shown, columns, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(lines)


def plain(_cell: str) -> None:
    """The style of a column without colours."""


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], styles: dict[str, Style] | None = None) -> None:
    """`styles` names columns by their heads. The last column is not padded, and folded where the terminal ends."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    widths[-1] = 0
    last_begins = sum(widths) + 2 * (len(widths) - 1)
    columns = [(styles or {}).get(head, plain) for head in heads]
    say("  ".join(painted(head.ljust(width), Colour.BOLD) for head, width in zip(heads, widths, strict=True)))
    for row in rows:
        cells = zip((*row[:-1], folded(row[-1], last_begins)), widths, columns, strict=True)
        say("  ".join(painted(cell.ljust(width), style(cell)) for cell, width, style in cells).rstrip())


class TerminalLine:
    """One line on standard error that overwrites itself; nothing where no terminal is."""

    def __init__(self) -> None:
        self._shown = False

    def say(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            self.say("")
            self._shown = False


class ProgressLine(TerminalLine):
    """How much is done of something that takes long."""

    SHOWN_AFTER_S = 0.5
    BETWEEN_S = 0.1
    WIDTH = 30

    def __init__(self) -> None:
        super().__init__()
        self._next_s = time.monotonic() + self.SHOWN_AFTER_S

    def show(self, what: str, done: int, whole: int) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + self.BETWEEN_S
        part = min(1.0, done / whole) if whole else 1.0
        bar = "#" * int(part * self.WIDTH)
        self.say(f"{what} [{bar:<{self.WIDTH}}] {part:4.0%}")


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
