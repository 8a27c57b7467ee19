"""A scenario file: YAML text in, one frozen `Scenario` or one `ConfigError` with every mistake out.

Knows how a scenario is written, not how it is played. Invariant: a `Scenario` that `load_scenario` returned obeys every
rule below, each of its steps is about a device that it has, and its image paths are absolute.
"""

import errno
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ploopfs.bounds import (
    HOLD_TIMEOUT_MS,
    SCENARIO_DEPTH,
    SCENARIO_DEVICES,
    SCENARIO_REPEATS,
    SCENARIO_SIZE_MIB,
    SCENARIO_STEPS,
    SCENARIO_TIMEOUT_S,
)
from ploopfs.config.loading import compose, read_text
from ploopfs.config.recovery import RECOVERY, check_recovery
from ploopfs.config.rules import ListOf, MapOf, Scalar, Value, Walk, is_path, seconds_up_to, settable, shown, whole
from ploopfs.config.scenario import (
    DEFAULT_DEVICE,
    AnyStep,
    Command,
    ExpectEvent,
    ExpectLoad,
    ExpectValue,
    Inject,
    Load,
    Remove,
    Request,
    Scenario,
    StageDevice,
    Store,
    Verify,
)
from ploopfs.config.schema import DEVICE_NAMES, FLAVOURS, ON_STANDBY
from ploopfs.errors import ConfigError

_SECONDS = seconds_up_to(SCENARIO_TIMEOUT_S)
_SWITCH = Scalar("true or false", (bool,))
_TEXT = Scalar("a text", (str,), bool)
_STAGED = tuple(name for name in FLAVOURS if name != "block")
"""A scenario makes images with deltas, and a disk that is no ploop has none."""
_ERRNO = Scalar("the name of an errno such as EBUSY", (str,), lambda name: name in errno.errorcode.values())
_DEVICE = Scalar("the name of a device of the scenario", (str,), bool)
_NUMBER_OR_TEXT = Scalar("a text or a number", (str, int, bool))
_FILE = Scalar(
    "a path without .. below the directory", (str,), lambda path: is_path(path) and ".." not in path.split("/")
)
_IMAGE = Scalar("a path", (str,), is_path)
_COUNT = whole(1, 1_000_000)
_NAME = Scalar("a word", (str,), lambda name: bool(re.fullmatch("[A-Za-z0-9_-]{1,40}", name)))

_STAGE_DEVICE = MapOf(
    "a mapping with the keys of a device",
    {
        "name": _DEVICE,
        "flavour": Scalar(f"one of {', '.join(_STAGED)}", (str,), lambda name: name in _STAGED),
        "image": ListOf("a path, or a list of paths, base first", _IMAGE, range(1, 100), lone=_IMAGE),
        "depth": whole(1, SCENARIO_DEPTH),
        "size_mib": whole(1, SCENARIO_SIZE_MIB),
        "standby": _SWITCH,
        "on_standby": Scalar("fail or hold", (str,), lambda policy: policy in ON_STANDBY),
        "hold_timeout_ms": settable(HOLD_TIMEOUT_MS),
        "recovery": RECOVERY,
    },
)

_RULE_WORDS = {
    # as in the grammar of error_injection
    "op": _TEXT,
    "errno": _ERRNO,
    "status": _TEXT,
    "level": whole(0, 126),
    "start": whole(0, 2**64 - 1),
    "nr_sectors": whole(0, 2**64 - 1),
    "chance": _COUNT,
    "seed": whole(0, 2**64 - 1),
    "skip": whole(0, 1_000_000),
    "count": _COUNT,
    "delay_ms": whole(1, 3_600_000),
    "hang": _SWITCH,
    "late": _SWITCH,
    "after": _SWITCH,
}
_REQUEST = MapOf(
    "a number, or a mapping with count, errno",
    {"device": _DEVICE, "count": _COUNT, "errno": _ERRNO, "timeout_s": _SECONDS},
    lone=_COUNT,
)
_ACT = MapOf(
    "a mapping with store and value, or with command",
    {
        "device": _DEVICE,
        "store": _FILE,
        "file": _FILE,
        "value": _NUMBER_OR_TEXT,
        "errno": _ERRNO,
        "command": _TEXT,
        "exit": whole(0, 255),
        "timeout_s": _SECONDS,
    },
)
_STEP_KEYS: dict[str, MapOf | Scalar | ListOf] = {
    "inject": MapOf("a mapping with the words of a fault rule", {"device": _DEVICE, "name": _NAME, **_RULE_WORDS}),
    "remove": MapOf("all, or a mapping with name", {"name": _NAME}, ("name",), Scalar("all", (str,), "all".__eq__)),
    "write": _REQUEST,
    "read": _REQUEST,
    "flush": _REQUEST,
    "load": MapOf(
        "start, stop, or a mapping with do",
        {
            "device": _DEVICE,
            "do": Scalar("start or stop", (str,), lambda do: do in ("start", "stop")),
            "threads": whole(1, 16),
            "timeout_s": _SECONDS,
        },
        ("do",),
        Scalar("start or stop", (str,), lambda do: do in ("start", "stop")),
    ),
    "expect": MapOf(
        "a mapping with one of standby, attribute, event, load_errors",
        {
            "device": _DEVICE,
            "standby": Scalar(
                "on, off or 'not supported'", (bool, str), lambda state: state in (True, False, "not supported")
            ),
            "attribute": _FILE,
            "is": _NUMBER_OR_TEXT,
            "matches": _TEXT,
            "at_least": whole(0, 2**63),
            "event": _NAME,
            "facts": ListOf("a list of key=value", Scalar("key=value", (str,), lambda fact: "=" in fact), range(1, 20)),
            "load_errors": Scalar("some or none", (str,), lambda how: how in ("some", "none")),
            "within_s": _SECONDS,
        },
    ),
    "act": _ACT,
    "recover": _ACT,
    "verify": Scalar("disk or images", (str,), lambda what: what in ("disk", "images")),
}

_SIMPLE_STEP = MapOf("a mapping with one step", _STEP_KEYS)
_STEP = MapOf(
    "a mapping with one step",
    {
        **_STEP_KEYS,
        "repeat": MapOf(
            "a mapping with times and steps",
            {
                "times": whole(1, SCENARIO_REPEATS),
                "steps": ListOf("a list of steps", _SIMPLE_STEP, range(1, SCENARIO_STEPS + 1)),
            },
            ("times", "steps"),
        ),
    },
)
_SCENARIO = MapOf(
    "a mapping with name, about, devices and steps",
    {
        "name": Scalar("a name without a newline", (str,), lambda name: bool(name) and "\n" not in name),
        "about": _TEXT,
        "devices": ListOf(f"a list of 1 to {SCENARIO_DEVICES} devices", _STAGE_DEVICE, range(1, SCENARIO_DEVICES + 1)),
        "steps": ListOf(f"a list of 1 to {SCENARIO_STEPS} steps", _STEP, range(1, SCENARIO_STEPS + 1)),
    },
    ("name", "steps"),
)


def load_scenario(path: str | os.PathLike[str]) -> Scenario:
    """Reads and checks one file. Raises `ConfigError` only, one line per mistake in the order of the file."""
    file = os.fspath(path)
    root = compose(file, read_text(file))
    walk = Walk(file)
    if root is None:
        raise ConfigError(f"{file}: is empty, expected {_SCENARIO.expected}")
    found = walk.read(_SCENARIO, root, "") or {}
    names = _device_names(walk, found.get("devices"))
    reader = _Steps(walk, names)
    steps = tuple(reader.read(found.get("steps") or (), "steps"))
    _check_order(walk, steps)
    walk.check()
    absolute = Path(file).absolute()
    return Scenario(
        path=str(absolute),
        name=found["name"],
        about=found.get("about", ""),
        devices=tuple(_stage_device(absolute.parent, device) for device in found.get("devices", ({},))),
        steps=steps,
    )


def _check_order(walk: Walk, steps: Sequence[AnyStep]) -> None:
    """What only the sequence shows: a rule that is removed was made before, and nothing comes after the images."""
    made: set[str] = set()
    for number, step in enumerate(steps):
        match step:
            case Inject(name=name):
                made.add(name)
            case Remove(line=line, name=name) if name and name not in made:
                known = ", ".join(sorted(made - {""})) or "none"
                problem = f"is {shown(name)}, expected the name of a rule made before (there: {known})"
                walk.error("remove", problem, line=line)
            case Verify(line=line, what="images") if number != len(steps) - 1:
                walk.error("verify", "images unmounts the disks, expected as the last step", line=line)


def _stage_device(directory: Path, found: Mapping[str, Value]) -> StageDevice:
    image = found.get("image", ())
    images = (image,) if isinstance(image, str) else image
    return StageDevice(**{**found, "image": tuple(str(directory / one) for one in images)})


def _device_names(walk: Walk, devices: Sequence[Mapping[str, Value] | None] | None) -> list[str]:
    """Each once, and one that its flavour has."""
    if devices is None:
        return [DEFAULT_DEVICE]
    names: list[str] = []
    for index, device in enumerate(devices):
        if device is None:
            continue
        name, flavour = device.get("name", DEFAULT_DEVICE), device.get("flavour", "vz7")
        where = f"devices[{index}]"
        check_recovery(walk, device.get("recovery"), f"{where}.recovery")
        where = f"{where}.name" if f"{where}.name" in walk.lines else where
        if name is None or flavour is None:
            continue
        if not DEVICE_NAMES[flavour].accepts(name):
            walk.error(where, f"is {shown(name)}, expected {DEVICE_NAMES[flavour].expected}")
        if name in names:
            walk.error(where, f"is {shown(name)} again, expected a name of its own")
        names.append(name)
    return names


class _Steps:
    """Makes steps of what the walk has read, and reports what a rule of one value could not see."""

    def __init__(self, walk: Walk, names: list[str]) -> None:
        self._walk = walk
        self._names = names

    def read(self, found: Sequence[Mapping[str, Value] | None], where: str) -> Iterator[AnyStep]:
        for index, entry in enumerate(found):
            here = f"{where}[{index}]"
            if entry is None:
                continue
            if len(entry) != 1:
                given = ", ".join(entry) or "none"
                self._walk.error(here, f"has {given}, expected one of {', '.join(_STEP.keys)}")
                continue
            [(kind, value)] = entry.items()
            if value is None:
                continue
            if kind == "repeat":
                steps = list(self.read(value.get("steps") or (), f"{here}.repeat.steps"))
                yield from steps * (value.get("times") or 1)
            elif (step := self._step(kind, value, f"{here}.{kind}")) is not None:
                yield step

    def _step(self, kind: str, value: Value, where: str) -> AnyStep | None:
        fields = dict(value) if isinstance(value, dict) else {}
        line, device = self._walk.lines[where], self._device(fields, where)
        match kind:
            case "inject":
                name = fields.pop("name", "") or ""
                return Inject(line=line, device=device, words=tuple(_words(fields)), name=name)
            case "remove":
                return Remove(line=line, device=device, name=fields.get("name") or "")
            case "write" | "read" | "flush":
                if not isinstance(value, dict):
                    fields["count"] = value
                return Request(line=line, device=device, kind=kind, **fields)
            case "load":
                do = fields.pop("do", value)
                return Load(line=line, device=device, start=do == "start", **fields)
            case "expect":
                return self._expect(fields, where, line, device)
            case "act" | "recover":
                return self._act(fields, where, line, device, is_recovery=kind == "recover")
            case _:
                return Verify(line=line, device=device, what=value)

    def _device(self, fields: dict[str, Value], where: str) -> str:
        name: str | None = fields.pop("device", None)
        if name is None:
            if len(self._names) > 1:
                self._any_device_is_missing(where)
            return self._names[0] if self._names else DEFAULT_DEVICE
        if name not in self._names:
            known = ", ".join(self._names)
            self._walk.error(f"{where}.device", f"is {shown(name)}, expected a device of the scenario: {known}")
        return name

    def _any_device_is_missing(self, where: str) -> None:
        """Only what is about one device must say which."""
        if not where.endswith((".remove", ".verify", ".event")):
            self._walk.error(where, f"names no device, expected device: one of {', '.join(self._names)}")

    def _expect(self, fields: dict[str, Value], where: str, line: int, device: str) -> AnyStep | None:
        within = {"within_s": float(fields["within_s"])} if fields.get("within_s") is not None else {}
        kinds = [kind for kind in ("standby", "attribute", "event", "load_errors") if kind in fields]
        if len(kinds) != 1:
            given = " and ".join(kinds) or "none"
            self._walk.error(where, f"has {given}, expected one of standby, attribute, event, load_errors")
            return None
        needs = {"standby": (), "attribute": ("is", "matches", "at_least"), "event": ("facts",), "load_errors": ()}
        for key in fields.keys() - {kinds[0], "within_s", *needs[kinds[0]]}:
            self._walk.error(f"{where}.{key}", f"is given, expected none with {kinds[0]}")
        match kinds[0]:
            case "standby":
                text = _text(fields["standby"])
                return ExpectValue(
                    line=line, device=device, attribute="queue/standby", compare="is", text=text, **within
                )
            case "attribute":
                return self._expect_attribute(fields, where, line, device, within)
            case "event":
                facts = tuple(tuple(fact.split("=", 1)) for fact in fields.get("facts") or () if fact is not None)
                return ExpectEvent(line=line, device=device, event=fields["event"], facts=facts, **within)
            case _:
                return ExpectLoad(line=line, device=device, errors=fields["load_errors"] == "some", **within)

    def _expect_attribute(
        self, fields: dict[str, Value], where: str, line: int, device: str, within: dict[str, float]
    ) -> AnyStep | None:
        compared = [how for how in ("is", "matches", "at_least") if fields.get(how) is not None]
        if len(compared) != 1:
            given = " and ".join(compared) or "none"
            self._walk.error(where, f"has {given}, expected one of is, matches, at_least")
            return None
        [how] = compared
        text = _text(fields[how])
        if how == "matches":
            try:
                with warnings.catch_warnings(action="ignore"):  # of what a later Python may read in it
                    re.compile(text)
            except (re.error, OverflowError, RecursionError) as error:
                self._walk.error(f"{where}.matches", f"is {shown(text)}, expected a pattern: {error}")
        return ExpectValue(line=line, device=device, attribute=fields["attribute"], compare=how, text=text, **within)

    def _act(
        self, fields: dict[str, Value], where: str, line: int, device: str, *, is_recovery: bool
    ) -> AnyStep | None:
        kinds = [kind for kind in ("store", "file", "command") if kind in fields]
        if len(kinds) != 1:
            given = " and ".join(kinds) or "none"
            self._walk.error(where, f"has {given}, expected one of store, file, command")
            return None
        is_command = kinds == ["command"]
        for key in ("exit",) if not is_command else ("value", "errno"):
            if key in fields:
                self._walk.error(f"{where}.{key}", f"is given, expected none with {kinds[0]}")
        if not is_command and "value" not in fields:
            self._walk.error(where, "has no value, expected what is written")
            return None
        timeout_s = float(fields.get("timeout_s") or 60)
        if is_command:
            return Command(
                line=line,
                device=device,
                command=fields["command"],
                exit=fields.get("exit") or 0,
                is_recovery=is_recovery,
                timeout_s=timeout_s,
            )
        return Store(
            line=line,
            device=device,
            path=fields[kinds[0]],
            value=_text(fields["value"]),
            in_mount=kinds == ["file"],
            errno=fields.get("errno") or "",
            is_recovery=is_recovery,
            timeout_s=timeout_s,
        )


def _text(value: Value) -> str:
    """YAML 1.1 takes on and off for booleans, and 1 for a number: here all are what an attribute reads."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _words(fields: Mapping[str, Value]) -> Iterator[str]:
    """In the grammar of error_injection, which judges them."""
    for key, value in fields.items():
        if value is True:
            yield key
        elif value is not False and value is not None:
            yield f"{key}={value}"
