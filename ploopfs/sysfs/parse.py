"""How the text of a store becomes a value: the kernel's parsers.

Knows nothing of attributes. Invariant: a strict parser refuses with BadValue whatever it would not show again.
"""

import re

from ploopfs.errors import BadValue

U32_MAX = 2**32 - 1

_KSTRTOUL = re.compile(r"\+?([0-9]+)\n?")
_LEADING_DIGITS = re.compile(r"[0-9]*")
_SCANF_LONG = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+)")


def queue_value(text: str) -> int:
    """kstrtoul base 10 as `queue/` uses it: one newline may follow, nothing else; at most 32 bits."""
    match = _KSTRTOUL.fullmatch(text)
    # Length first: Python refuses to convert thousands of digits with an error of its own.
    if match is None or len(match[1].lstrip("0")) > len(str(U32_MAX)) or int(match[1]) > U32_MAX:
        raise BadValue(f"{text!r} is not a number from 0 to {U32_MAX}")
    return int(match[1])


def queue_bool(text: str) -> bool:
    """Any number but 0 is true."""
    return queue_value(text) != 0


def lax_value(text: str) -> int:
    """vz7's own parser: the digits at the start, 0 if there are none, wrapped to 32 bits; it never fails."""
    match = _LEADING_DIGITS.match(text)
    assert match is not None
    value = 0
    for digit in match[0]:
        value = (value * 10 + int(digit)) & U32_MAX
    return value


def scanned_value(text: str) -> int:
    """sscanf("%ld"): blanks, a sign and digits; what follows is not looked at."""
    match = _SCANF_LONG.match(text)
    if match is None or len(match[1]) > len(str(U32_MAX)):
        raise BadValue(f"{text!r} does not start with a number")
    return int(match[1])


def line(text: str) -> str:
    """The text without the one newline that `echo` adds; a value may end in further ones."""
    return text.removesuffix("\n")
