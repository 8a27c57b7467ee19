"""A scenario, as frozen values: the devices that a rehearsal sets up, and its steps.

Knows neither how a scenario is written nor how it is played.
"""

from dataclasses import dataclass
from typing import Any

from ploopfs.bounds import SCENARIO_COMMAND_S, SCENARIO_WITHIN_S

DEFAULT_DEVICE = "ploop0"


@dataclass(frozen=True, slots=True)
class StageDevice:
    """A device that the rehearsal makes: `depth` scratch deltas, the top of them over `image` where one is given.

    An image of the user is thus only ever read. `recovery` is as in a configuration, None for a manual one; its paths
    count from the scratch directory.
    """

    name: str = DEFAULT_DEVICE
    flavour: str = "vz7"
    image: tuple[str, ...] = ()
    depth: int = 3
    size_mib: int = 64
    standby: bool = True
    on_standby: str = "fail"
    hold_timeout_ms: int = 300_000
    recovery: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`line` is where it stands, `device` what it is about."""

    line: int
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inject(Step):
    """A fault rule; `words` are those of the tree's grammar. `name` is for a later `Remove`."""

    words: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove(Step):
    """The rule of that name, or all that the rehearsal has made, on every device."""

    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Step):
    """`count` requests of one kind (write, read or flush), each of which must end with `errno` (empty: well)."""

    kind: str
    count: int = 1
    errno: str = ""
    timeout_s: float = SCENARIO_COMMAND_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(Step):
    """Reads, writes and flushes beside the other steps, from here to `stop`."""

    start: bool
    threads: int = 1
    timeout_s: float = SCENARIO_COMMAND_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectValue(Step):
    """An attribute of the device reads `text`, or matches it as a pattern, or is a number of at least that."""

    attribute: str
    compare: str
    text: str
    within_s: float = SCENARIO_WITHIN_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectEvent(Step):
    """An event with these facts comes after the one that the expectation before this one found."""

    event: str
    facts: tuple[tuple[str, str], ...] = ()
    within_s: float = SCENARIO_WITHIN_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectLoad(Step):
    """The load of the device has met some errors so far, or none."""

    errors: bool
    within_s: float = SCENARIO_WITHIN_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Store(Step):
    """A write to a file of the device's directory, or with `file` of the mount. `is_recovery`: a user's own command
    may stand in for it."""

    path: str
    value: str
    in_mount: bool = False
    errno: str = ""
    is_recovery: bool = False
    timeout_s: float = SCENARIO_COMMAND_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Step):
    """A shell command that must exit with `exit`."""

    command: str
    exit: int = 0
    is_recovery: bool = False
    timeout_s: float = SCENARIO_COMMAND_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify(Step):
    """`disk`: every acknowledged byte reads back. `images`: after unmounting, every image is closed and sound."""

    what: str


AnyStep = Inject | Remove | Request | Load | ExpectValue | ExpectEvent | ExpectLoad | Store | Command | Verify


@dataclass(frozen=True, slots=True)
class Scenario:
    """`path` is where it was read, absolute; repeated steps stand in `steps` as often as they are played."""

    path: str
    name: str
    about: str
    devices: tuple[StageDevice, ...]
    steps: tuple[AnyStep, ...]
