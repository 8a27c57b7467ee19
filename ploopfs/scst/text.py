"""How the text of a command becomes words, parameters and numbers: SCST's own parsers and the kernel's kstrto family.

Knows nothing of commands. Blanks and `=` both end a word, so no word holds either.
"""

import re
from collections.abc import Callable, Iterator

from ploopfs.errors import BadValue

U64_MAX = 2**64 - 1

_WORD = re.compile(r"[\s=]*([^\s=]*)[\s=]?", re.ASCII)
_PARAMETER = re.compile(r"([^;\n]+)[;\n]?")
_NUMBER = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\n?")
_LONGEST_NUMBER = 32

NAME_MAX_BYTES = 255


def word(text: str) -> tuple[str, str]:
    """The first word, empty if there is none, and what follows it and the one character that ended it."""
    match = _WORD.match(text)
    assert match is not None
    return match[1], text[match.end() :]


def words(text: str) -> list[str]:
    found: list[str] = []
    while (split := word(text))[0]:
        found.append(split[0])
        text = split[1]
    return found


def only(text: str, what: str) -> str:
    """The one word of a text."""
    found = words(text)
    if len(found) != 1:
        raise BadValue(f"{what} wanted, not {text!r}")
    return found[0]


def parameters(text: str) -> Iterator[tuple[str, str]]:
    """`name=value` pairs between `;` or newlines, names in lower case. As in the original, an empty one ends the list:
    what follows it is not looked at."""
    while (match := _PARAMETER.match(text)) is not None:
        text = text[match.end() :]
        name, rest = word(match[1])
        if not name:
            raise BadValue(f"{match[1]!r} is no parameter")
        value, rest = word(rest)
        if not value:
            raise BadValue(f"parameter {name} has no value")
        if word(rest)[0]:
            raise BadValue(f"parameter {name} has more than one value")
        yield name.lower(), value


def number(text: str, low: int = 0, high: int = U64_MAX) -> int:
    """Decimal, 0x hexadecimal or 0 octal, and perhaps one newline."""
    match = _NUMBER.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    if match is not None:
        digits = match[2].lower()
        base = 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10
        value = int(match[1] + digits, base)
        if low <= value <= high:
            return value
    raise BadValue(f"{text[:_LONGEST_NUMBER]!r} is not a number from {low} to {high}")


def first_digit(*allowed: str) -> Callable[[str], str]:
    """For attributes that look at the first character and at nothing else."""

    def parse(text: str) -> str:
        if text[:1] not in allowed:
            raise BadValue(f"{text[:_LONGEST_NUMBER]!r} does not start with one of {', '.join(allowed)}")
        return text[:1]

    return parse


def decimal(low: int = 0, high: int = U64_MAX) -> Callable[[str], str]:
    """A number, shown in decimal."""
    return lambda text: str(number(text, low, high))


def truth(text: str) -> str:
    """Any number but 0 is true."""
    return str(int(number(text) != 0))


switch = decimal(0, 1)


def first_line(limit: int) -> Callable[[str], str]:
    """At most `limit` characters before the first newline."""

    def parse(text: str) -> str:
        line = text.partition("\n")[0]
        if len(line) > limit:
            raise BadValue(f"{line[:_LONGEST_NUMBER]!r}... has {len(line)} characters, at most {limit} are possible")
        return line

    return parse


def check_name(name: str, what: str) -> str:
    """A name that can stand in a directory."""
    if not name:
        raise BadValue(f"the name of {what} is missing")
    if name in (".", "..") or "/" in name:
        raise BadValue(f"{name!r} cannot be the name of {what}")
    if len(name.encode("utf-8", "surrogateescape")) > NAME_MAX_BYTES:
        raise BadValue(f"the name of {what} is longer than {NAME_MAX_BYTES} bytes")
    return name
