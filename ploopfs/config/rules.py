"""Rules for what a file may hold, and the walk that checks a file's nodes against them.

A rule is a value: a scalar, a list, a mapping. Knows neither the meaning of a key nor where a file came from.
Invariant: every mistake of a file is reported (the first MAX_ERRORS of them), each with its line, the path of the key,
the value and what was expected.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ploopfs.bounds import MAX_ERRORS, MAX_NUMBER, MAX_SHOWN, Bound
from ploopfs.errors import ConfigError

Value = Any  # what a file holds: its type is not known before its rule has checked it
_TAG = "tag:yaml.org,2002:"
_SCALARS: Mapping[str, Callable[[ScalarNode], Value]] = {
    _TAG + "str": SafeConstructor().construct_yaml_str,
    _TAG + "bool": SafeConstructor().construct_yaml_bool,
    _TAG + "int": SafeConstructor().construct_yaml_int,
    _TAG + "float": SafeConstructor().construct_yaml_float,
}
_NUMBERS = frozenset({_TAG + "int", _TAG + "float"})


@dataclass(frozen=True, slots=True)
class Scalar:
    """`accepts` sees a value of one of `types`."""

    expected: str
    types: tuple[type, ...]
    accepts: Callable[[Value], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class ListOf:
    """`first` is the rule of the first entry where it differs; `lone` that of a scalar in the list's place."""

    expected: str
    entry: "Scalar | MapOf"
    length: range
    first: "Scalar | None" = None
    lone: Scalar | None = None


@dataclass(frozen=True, slots=True)
class MapOf:
    """`lone` is the rule of a scalar in the mapping's place."""

    expected: str
    keys: "Mapping[str, Rule]"
    required: tuple[str, ...] = ()
    lone: Scalar | None = None


Rule = Scalar | ListOf | MapOf


def is_path(text: str) -> bool:
    """Whether the kernel could take it as a path: a NUL ends a name, and a lone surrogate has no bytes."""
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def whole(low: int, high: int) -> Scalar:
    return Scalar(f"a whole number from {low} to {high}", (int,), lambda value: low <= value <= high)


def settable(bound: Bound) -> Scalar:
    """What the setting of a bound takes."""
    return whole(1, bound.highest)


def seconds_up_to(highest: int, *, zero: bool = False) -> Scalar:
    """`zero`: none at all is possible, too."""
    from_ = "from 0 to" if zero else "above 0 and at most"
    return Scalar(
        f"a number of seconds {from_} {highest}",
        (int, float),
        lambda value: 0 <= value <= highest and (zero or value > 0),
    )


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _description(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return f"a list of {len(node.value)}"
    if not node.value:
        return "empty"
    text = shown(node.value)
    return text if node.tag == _TAG + "str" else text.strip("'\"")


def _joined(where: str, key: str) -> str:
    name = key if re.fullmatch("[A-Za-z0-9_-]{1,40}", key) else shown(key)
    return f"{where}.{name}" if where else name


@dataclass(slots=True)
class Walk:
    """One pass over a file's nodes. A value that is absent or was reported is None or not there; `lines` knows every
    path that was seen, so that a rule about several values can name a line too."""

    file: str
    lines: dict[str, int] = field(default_factory=dict)
    errors: list[tuple[int, str]] = field(default_factory=list)

    def error(self, where: str, problem: str, *, line: int = 0) -> None:
        """Raises ConfigError with all of them when there are too many."""
        line = line or self.lines[where]
        self.errors.append((line, f"{self.file}:{line}: {where or 'the file'}: {problem}"))
        if len(self.errors) == MAX_ERRORS:
            end = f"{self.file}: after {MAX_ERRORS} mistakes no further ones are looked for"
            self.errors.append((sys.maxsize, end))
            self.check()

    def check(self) -> None:
        """Raises ConfigError, one line per mistake in the order of the file, if there is one."""
        if self.errors:
            raise ConfigError("\n".join(text for _, text in sorted(self.errors, key=lambda error: error[0])))

    def read(self, rule: Rule, node: Node, where: str) -> Value:
        self.lines[where] = node.start_mark.line + 1
        match rule, node:
            case (ListOf(lone=Scalar() as lone) | MapOf(lone=Scalar() as lone)), ScalarNode():
                return self.read(lone, node, where)
            case MapOf(), MappingNode() if node.tag == _TAG + "map":
                return self._read_map(rule, node, where)
            case ListOf(), SequenceNode() if node.tag == _TAG + "seq" and len(node.value) in rule.length:
                return self._read_list(rule, node, where)
            case Scalar(), ScalarNode() if (value := _scalar(node, rule)) is not None:
                return value
        self.error(where, f"is {_description(node)}, expected {rule.expected}")
        return None

    def _read_list(self, rule: ListOf, node: SequenceNode, where: str) -> list[Value]:
        rules = [rule.first or rule.entry] + [rule.entry] * (len(node.value) - 1)
        return [
            self.read(entry_rule, entry, f"{where}[{index}]")
            for index, (entry_rule, entry) in enumerate(zip(rules, node.value, strict=False))
        ]

    def _read_map(self, rule: MapOf, node: MappingNode, where: str) -> dict[str, Value]:
        found: dict[str, Value] = {}
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != _TAG + "str" or not isinstance(key, ScalarNode):
                self.error(where, f"a key is {_description(key)}, expected one of {', '.join(rule.keys)}", line=line)
            elif key.value in seen:
                self.error(_joined(where, key.value), f"is given twice, first in line {seen[key.value]}", line=line)
            elif key.value not in rule.keys:
                self.error(_joined(where, key.value), _unknown(key.value, rule.keys), line=line)
                seen[key.value] = line
            else:
                seen[key.value] = line
                found[key.value] = self.read(rule.keys[key.value], value, _joined(where, key.value))
        for name in rule.required:
            if name not in seen:
                self.error(
                    _joined(where, name), f"is missing, expected {rule.keys[name].expected}", line=self.lines[where]
                )
        return found


def _scalar(node: ScalarNode, rule: Scalar) -> Value:
    """The value of a scalar that obeys the rule, else None: no rule takes null."""
    if node.tag not in _SCALARS or (node.tag in _NUMBERS and len(node.value) > MAX_NUMBER):
        return None
    try:
        value = _SCALARS[node.tag](node)
    except (ValueError, LookupError, ArithmeticError):
        return None  # a tag or a shape that promises more than the text keeps: `!!bool maybe`, `0b_`
    # The exact type: a bool is an int to isinstance.
    return value if type(value) in rule.types and rule.accepts(value) else None


def _unknown(key: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key[:MAX_SHOWN], known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"is no known key, expected one of {', '.join(known)}{hint}"
