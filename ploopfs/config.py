"""The configuration file: YAML text in, one frozen `Config` or one `ConfigError` with every mistake out.

Looks at no image and at no device: whether the files exist is found out by who opens them. Invariant: a `Config` that
`load` returned obeys every rule below, and its image paths are absolute.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ploopfs.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
MAX_DEVICES = 1024
MAX_IMAGES = 127  # the longest chain: a base and 126 snapshots
RAW_PREFIX = "raw@"
DEFAULT_FLAVOUR = "vz7"
_MAX_DEPTH = 16  # the rules need 5; deeper nesting would recurse without a bound in the composer
_MAX_SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """One device. `image` is one path, or the files of a stack base first, the first perhaps after `raw@`."""

    name: str
    image: str | tuple[str, ...]
    flavour: str = DEFAULT_FLAVOUR
    standby: bool = False
    read_only: bool = False
    cluster_sectors: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a device may hold and on how long anything may wait for it."""

    requests_per_device: int = 1024
    park_timeout_s: float = 30
    quiesce_timeout_s: float = 30
    threads_per_device: int = 64


@dataclass(frozen=True, slots=True)
class ScstConfig:
    """The SCST subsystem at the start."""

    loaded: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file; `path` is where it was read, absolute."""

    path: str
    scst: ScstConfig
    devices: tuple[DeviceConfig, ...]
    limits: Limits


_Value = Any  # what a file holds: its type is not known before its rule has checked it
_TAG = "tag:yaml.org,2002:"
_SCALARS: Mapping[str, Callable[[ScalarNode], _Value]] = {
    _TAG + "str": SafeConstructor().construct_yaml_str,
    _TAG + "bool": SafeConstructor().construct_yaml_bool,
    _TAG + "int": SafeConstructor().construct_yaml_int,
    _TAG + "float": SafeConstructor().construct_yaml_float,
}


@dataclass(frozen=True, slots=True)
class _Scalar:
    expected: str
    types: tuple[type, ...]
    accepts: Callable[[_Value], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class _List:
    """`first` is the rule of the first entry where it differs; `lone` that of a scalar in the list's place."""

    expected: str
    entry: "_Scalar | _Map"
    length: range
    first: "_Scalar | None" = None
    lone: _Scalar | None = None


@dataclass(frozen=True, slots=True)
class _Map:
    expected: str
    keys: "Mapping[str, _Rule]"
    required: tuple[str, ...] = ()


_Rule = _Scalar | _List | _Map


def _is_path(text: str) -> bool:
    """Whether the kernel could take it as a path: a NUL ends a name, and a lone surrogate has no bytes."""
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _is_plain_path(text: str) -> bool:
    """A file whose own name starts with the prefix is still ./raw@..., so nothing is out of reach."""
    return _is_path(text) and not text.startswith(RAW_PREFIX)


def _whole(low: int, high: int) -> _Scalar:
    return _Scalar(f"a whole number from {low} to {high}", (int,), lambda value: low <= value <= high)


# vz7 has major 182 and 16 minors to a disk, and minors are 20 bits: 65536 disks.
_DEVICE_NAMES: Mapping[str, _Scalar] = {
    "vz7": _Scalar(
        "a name from ploop0 to ploop65535",
        (str,),
        lambda name: bool(re.fullmatch("ploop(0|[1-9][0-9]{0,4})", name)) and int(name[len("ploop") :]) <= 65535,
    ),
}
FLAVOURS = tuple(_DEVICE_NAMES)

_SWITCH = _Scalar("true or false", (bool,))
_TIMEOUT = _Scalar("a number of seconds above 0 and at most 3600", (int, float), lambda value: 0 < value <= 3600)
_CLUSTER = _Scalar(
    "a power of two from 64 to 131072", (int,), lambda value: 64 <= value <= 131072 and value.bit_count() == 1
)
_FIRST = _Scalar("a path, or raw@ and a path", (str,), lambda text: _is_path(text.removeprefix(RAW_PREFIX)))
_UPPER = _Scalar("a path (raw@ is for the first of the list only)", (str,), _is_plain_path)
_LONE = _Scalar("a path (a raw image is [raw@PATH]) or a list of paths, base first", (str,), _is_plain_path)
_DEVICE = _Map(
    "a mapping with name and image",
    {
        "name": _Scalar("a name such as ploop0", (str,)),  # the flavour tells which names: see _check_device
        "flavour": _Scalar(f"one of {', '.join(FLAVOURS)}", (str,), lambda name: name in FLAVOURS),
        "image": _List(f"1 to {MAX_IMAGES} paths, base first", _UPPER, range(1, MAX_IMAGES + 1), _FIRST, _LONE),
        "standby": _SWITCH,
        "read_only": _SWITCH,
        "cluster_sectors": _CLUSTER,
    },
    required=("name", "image"),
)
_FILE = _Map(
    "a mapping with scst, devices and limits",
    {
        "scst": _Map("a mapping with loaded", {"loaded": _SWITCH}),
        "devices": _List(f"a list of at most {MAX_DEVICES} devices", _DEVICE, range(MAX_DEVICES + 1)),
        "limits": _Map(
            "a mapping of limits",
            {
                "requests_per_device": _whole(1, 65536),
                "park_timeout_s": _TIMEOUT,
                "quiesce_timeout_s": _TIMEOUT,
                "threads_per_device": _whole(1, 512),
            },
        ),
    },
)


class _Loader(yaml.SafeLoader):
    """Composes nodes, and refuses what could make a small file large or deep before it is built."""

    _depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs forgot it
        if getattr(event, "anchor", None) is not None:  # an alias event carries the anchor it names
            raise yaml.MarkedYAMLError(None, None, "anchors and aliases are not accepted", event.start_mark)
        if self._depth == _MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"nested deeper than {_MAX_DEPTH} levels", event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def fetch_more_tokens(self) -> None:
        """An escape beyond Unicode or a version of thousands of digits leaves the scanner as a bare ValueError."""
        try:
            super().fetch_more_tokens()
        except (ValueError, OverflowError) as error:
            raise yaml.MarkedYAMLError(None, None, str(error), self.get_mark()) from error


def _read_text(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL, or with no bytes in this locale
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{file}: cannot be read: {reason}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{file}: is larger than {MAX_FILE_BYTES} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: byte 0x{content[error.start]:02x} is not UTF-8") from error


def _compose(file: str, text: str) -> Node | None:
    """The file's one document; None when it holds nothing but comments."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{file}:{line}: a character that YAML does not allow: {text[error.position]!r}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        reason = ": ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where}: not YAML that can be read here: {reason}") from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _description(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return f"a list of {len(node.value)}"
    if not node.value:
        return "empty"
    text = _shown(node.value)
    return text if node.tag == _TAG + "str" else text.strip("'\"")


def _joined(where: str, key: str) -> str:
    shown = key if re.fullmatch("[A-Za-z0-9_-]{1,40}", key) else _shown(key)
    return f"{where}.{shown}" if where else shown


@dataclass(slots=True)
class _Walk:
    """One pass over a file's nodes. A value that is absent or was reported is None or not there; `lines` knows every
    path that was seen, so that a rule about several values can name a line too."""

    file: str
    lines: dict[str, int] = field(default_factory=dict)
    errors: list[tuple[int, str]] = field(default_factory=list)

    def error(self, where: str, problem: str, *, line: int = 0) -> None:
        line = line or self.lines[where]
        self.errors.append((line, f"{self.file}:{line}: {where or 'the file'}: {problem}"))

    def read(self, rule: _Rule, node: Node, where: str) -> _Value:
        self.lines[where] = node.start_mark.line + 1
        match rule, node:
            case _List(lone=_Scalar() as lone), ScalarNode():
                return self.read(lone, node, where)
            case _Map(), MappingNode() if node.tag == _TAG + "map":
                return self._read_map(rule, node, where)
            case _List(), SequenceNode() if node.tag == _TAG + "seq" and len(node.value) in rule.length:
                return self._read_list(rule, node, where)
            case _Scalar(), ScalarNode() if (value := _scalar(node, rule)) is not None:
                return value
        self.error(where, f"is {_description(node)}, expected {rule.expected}")
        return None

    def _read_list(self, rule: _List, node: SequenceNode, where: str) -> list[_Value]:
        rules = [rule.first or rule.entry] + [rule.entry] * (len(node.value) - 1)
        return [
            self.read(entry_rule, entry, f"{where}[{index}]")
            for index, (entry_rule, entry) in enumerate(zip(rules, node.value, strict=False))
        ]

    def _read_map(self, rule: _Map, node: MappingNode, where: str) -> dict[str, _Value]:
        found: dict[str, _Value] = {}
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


def _scalar(node: ScalarNode, rule: _Scalar) -> _Value:
    """The value of a scalar that obeys the rule, else None: no rule takes null."""
    if node.tag not in _SCALARS:
        return None
    try:
        value = _SCALARS[node.tag](node)
    except (ValueError, LookupError, ArithmeticError):
        return None  # a tag or a shape that promises more than the text keeps: `!!bool maybe`, `0b_`
    # The exact type: a bool is an int to isinstance.
    return value if type(value) in rule.types and rule.accepts(value) else None


def _unknown(key: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key[:_MAX_SHOWN], known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"is no known key, expected one of {', '.join(known)}{hint}"


def _check_device(walk: _Walk, device: Mapping[str, _Value], where: str) -> None:
    name, image = device.get("name"), device.get("image")
    flavour = device.get("flavour", DEFAULT_FLAVOUR)
    if flavour is not None and name is not None and not _DEVICE_NAMES[flavour].accepts(name):
        walk.error(f"{where}.name", f"is {_shown(name)}, expected {_DEVICE_NAMES[flavour].expected}")
    # Every other image says its cluster size itself; a key that is silently without effect would mislead.
    lone_raw = isinstance(image, list) and len(image) == 1 and str(image[0]).startswith(RAW_PREFIX)
    if device.get("cluster_sectors") is not None and image is not None and not lone_raw:
        walk.error(f"{where}.cluster_sectors", f"is given, expected only where image is [{RAW_PREFIX}PATH]")


def _check_devices(walk: _Walk, devices: Sequence[Mapping[str, _Value] | None]) -> None:
    first_line: dict[str, int] = {}
    for index, device in enumerate(devices):
        where = f"devices[{index}]"
        if device is None:
            continue
        _check_device(walk, device, where)
        name = device.get("name")
        if name in first_line:
            walk.error(f"{where}.name", f"is {_shown(name)} as in line {first_line[name]}, expected a name of its own")
        elif name is not None:
            first_line[name] = walk.lines[f"{where}.name"]


def _resolved(directory: Path, image: str) -> str:
    """Absolute, and `..` kept: after a symbolic link, collapsing it in the text would name another file."""
    prefix = RAW_PREFIX if image.startswith(RAW_PREFIX) else ""
    return prefix + str(directory / image.removeprefix(prefix))


def _device(directory: Path, found: Mapping[str, _Value]) -> DeviceConfig:
    image = found["image"]
    images = _resolved(directory, image) if isinstance(image, str) else tuple(_resolved(directory, i) for i in image)
    return DeviceConfig(**{**found, "image": images})


def load(path: str | os.PathLike[str]) -> Config:
    """Reads and checks one file. Raises `ConfigError` only, one line per mistake in the order of the file."""
    file = os.fspath(path)
    root = _compose(file, _read_text(file))
    walk = _Walk(file)
    found = (root and walk.read(_FILE, root, "")) or {}
    _check_devices(walk, found.get("devices") or ())
    if walk.errors:
        raise ConfigError("\n".join(text for _, text in sorted(walk.errors, key=lambda error: error[0])))
    absolute = Path(file).absolute()
    return Config(
        path=str(absolute),
        scst=ScstConfig(**found.get("scst", {})),
        devices=tuple(_device(absolute.parent, device) for device in found.get("devices", ())),
        limits=Limits(**found.get("limits", {})),
    )
