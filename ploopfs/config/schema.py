"""The configuration file: YAML text in, one frozen `Config` or one `ConfigError` with every mistake out.

Looks at no image and at no device: whether the files exist is found out by who opens them. Invariant: a `Config` that
`load` returned obeys every rule below, and its paths are absolute.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ploopfs import bounds
from ploopfs.bounds import MAX_ALLOWED_DIRS, MAX_DELTAS, MAX_DEVICES
from ploopfs.config.loading import compose, read_text
from ploopfs.config.recovery import RECOVERY, check_recovery, recovery_of
from ploopfs.config.rules import ListOf, MapOf, Scalar, Value, Walk, is_path, seconds_up_to, settable, shown
from ploopfs.device.recovery import Recovery
from ploopfs.errors import ConfigError

RAW_PREFIX = "raw@"
DEFAULT_FLAVOUR = "vz7"
MAX_NAME = 127
"""Bytes of a device-mapper name, of the 128 in the kernel's structure."""


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """One device. `image` is one path, or the files of a stack base first, the first perhaps after `raw@`.

    `dm_name` and `dm_uuid` are of a vz9 device only; without a name it is `ploopN` for dm-N.
    """

    name: str
    image: str | tuple[str, ...]
    flavour: str = DEFAULT_FLAVOUR
    standby: bool = False
    read_only: bool = False
    cluster_sectors: int | None = None
    on_standby: str = "fail"
    hold_timeout_ms: int = bounds.HOLD_TIMEOUT_MS
    dm_name: str | None = None
    dm_uuid: str = ""
    recovery: Recovery = field(default_factory=Recovery)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a device may hold and on how long anything may wait for it."""

    requests_per_device: int = bounds.REQUESTS
    held_requests: int = bounds.HELD_REQUESTS
    held_mib: int = bounds.HELD_MIB
    unflushed_mib: int = bounds.UNFLUSHED_MIB
    park_timeout_s: float = bounds.PARK_TIMEOUT_S
    quiesce_timeout_s: float = bounds.QUIESCE_TIMEOUT_S
    threads_per_device: int = bounds.THREADS


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
    allowed_dirs: tuple[str, ...] | None = None
    """Absolute; None: images may lie anywhere."""
    data_plane: str = "own"


def is_plain_path(text: str) -> bool:
    """A file whose own name starts with the prefix is still ./raw@..., so nothing is out of reach."""
    return is_path(text) and not text.startswith(RAW_PREFIX)


def _numbered(prefix: str, last: int) -> Scalar:
    """`prefix` and a number without leading zeroes."""
    return Scalar(
        f"a name from {prefix}0 to {prefix}{last}",
        (str,),
        lambda name: bool(re.fullmatch(f"{prefix}(0|[1-9][0-9]{{0,6}})", name)) and int(name[len(prefix) :]) <= last,
    )


# Minors are 20 bits. vz7 has 16 of them to a disk, device-mapper one; a plain disk is one of the first 16 of its major.
DEVICE_NAMES: Mapping[str, Scalar] = {
    "vz7": _numbered("ploop", 65535),
    "vz9": _numbered("dm-", (1 << 20) - 1),
    "block": Scalar("a name from xvda to xvdp", (str,), lambda name: bool(re.fullmatch("xvd[a-p]", name))),
}
FLAVOURS = tuple(DEVICE_NAMES)

ON_STANDBY = ("fail", "hold")
DATA_PLANES = ("own", "pyfuse3")
"""A FUSE connection of its own for each disk, or the tree's for all."""


def _is_dm_name(name: str) -> bool:
    return is_path(name) and "/" not in name and len(os.fsencode(name)) <= MAX_NAME and name not in (".", "..")


_SWITCH = Scalar("true or false", (bool,))
_CLUSTER = Scalar(
    "a power of two from 64 to 131072", (int,), lambda value: 64 <= value <= 131072 and value.bit_count() == 1
)
_FIRST = Scalar("a path, or raw@ and a path", (str,), lambda text: is_path(text.removeprefix(RAW_PREFIX)))
_UPPER = Scalar("a path (raw@ is for the first of the list only)", (str,), is_plain_path)
_LONE = Scalar("a path (a raw image is [raw@PATH]) or a list of paths, base first", (str,), is_plain_path)
_DEVICE = MapOf(
    "a mapping with name and image",
    {
        "name": Scalar("a name such as ploop0", (str,)),  # the flavour tells which names: see _check_device
        "flavour": Scalar(f"one of {', '.join(FLAVOURS)}", (str,), lambda name: name in FLAVOURS),
        "image": ListOf(f"1 to {MAX_DELTAS} paths, base first", _UPPER, range(1, MAX_DELTAS + 1), _FIRST, _LONE),
        "standby": _SWITCH,
        "read_only": _SWITCH,
        "cluster_sectors": _CLUSTER,
        "on_standby": Scalar("fail or hold", (str,), lambda policy: policy in ON_STANDBY),
        "hold_timeout_ms": settable(bounds.HOLD_TIMEOUT_MS),
        "dm_name": Scalar(
            f"a device-mapper name: 1 to {MAX_NAME} bytes without a slash", (str,), _is_dm_name
        ),
        "dm_uuid": Scalar(f"at most {MAX_NAME} bytes", (str,), lambda uuid: not uuid or _is_dm_name(uuid)),
        "recovery": RECOVERY,
    },
    required=("name", "image"),
)
FILE = MapOf(
    "a mapping of scst, devices, limits, allowed_dirs, data_plane",
    {
        "scst": MapOf("a mapping with loaded", {"loaded": _SWITCH}),
        "devices": ListOf(f"a list of at most {MAX_DEVICES} devices", _DEVICE, range(MAX_DEVICES + 1)),
        "limits": MapOf(
            "a mapping of limits",
            {
                "requests_per_device": settable(bounds.REQUESTS),
                "held_requests": settable(bounds.HELD_REQUESTS),
                "held_mib": settable(bounds.HELD_MIB),
                "unflushed_mib": settable(bounds.UNFLUSHED_MIB),
                "park_timeout_s": seconds_up_to(bounds.PARK_TIMEOUT_S.highest),
                "quiesce_timeout_s": seconds_up_to(bounds.QUIESCE_TIMEOUT_S.highest),
                "threads_per_device": settable(bounds.THREADS),
            },
        ),
        "allowed_dirs": ListOf(
            f"a list of 1 to {MAX_ALLOWED_DIRS} directories",
            Scalar("a directory", (str,), is_path),
            range(1, MAX_ALLOWED_DIRS + 1),
        ),
        "data_plane": Scalar(" or ".join(DATA_PLANES), (str,), lambda plane: plane in DATA_PLANES),
    },
)


def _check_device(walk: Walk, device: Mapping[str, Value], where: str) -> None:
    name, image = device.get("name"), device.get("image")
    flavour = device.get("flavour", DEFAULT_FLAVOUR)
    if flavour is not None and name is not None and not DEVICE_NAMES[flavour].accepts(name):
        walk.error(f"{where}.name", f"is {shown(name)}, expected {DEVICE_NAMES[flavour].expected}")
    for key in ("dm_name", "dm_uuid"):
        if device.get(key) is not None and flavour is not None and flavour != "vz9":
            walk.error(f"{where}.{key}", "is given, expected only where flavour is vz9")
    # Every other image says its cluster size itself; a key that is silently without effect would mislead.
    lone_raw = isinstance(image, list) and len(image) == 1 and str(image[0]).startswith(RAW_PREFIX)
    if flavour == "block" and image is not None and not lone_raw:
        walk.error(f"{where}.image", f"is not raw, expected [{RAW_PREFIX}PATH]: the flavour block knows no deltas")
    if flavour == "block" and device.get("standby"):
        walk.error(f"{where}.standby", "is true, expected false: a device that is no ploop has no standby mode")
    if flavour == "block" and device.get("recovery") not in (None, "manual"):
        walk.error(f"{where}.recovery", "is given, expected none: a device that is no ploop has no standby mode")
    check_recovery(walk, device.get("recovery"), f"{where}.recovery")
    if device.get("cluster_sectors") is not None and image is not None and not lone_raw:
        walk.error(f"{where}.cluster_sectors", f"is given, expected only where image is [{RAW_PREFIX}PATH]")


def _check_devices(walk: Walk, devices: Sequence[Mapping[str, Value] | None]) -> None:
    first_line: dict[str, int] = {}
    for index, device in enumerate(devices):
        where = f"devices[{index}]"
        if device is None:
            continue
        _check_device(walk, device, where)
        name = device.get("name")
        if name in first_line:
            walk.error(f"{where}.name", f"is {shown(name)} as in line {first_line[name]}, expected a name of its own")
        elif name is not None:
            first_line[name] = walk.lines[f"{where}.name"]


def _resolved(directory: Path, image: str) -> str:
    """Absolute, and `..` kept: after a symbolic link, collapsing it in the text would name another file."""
    prefix = RAW_PREFIX if image.startswith(RAW_PREFIX) else ""
    return prefix + str(directory / image.removeprefix(prefix))


def _device(directory: Path, found: Mapping[str, Value]) -> DeviceConfig:
    image = found["image"]
    images = _resolved(directory, image) if isinstance(image, str) else tuple(_resolved(directory, i) for i in image)
    recovery = recovery_of(found.get("recovery", "manual"), partial(_resolved, directory))
    return DeviceConfig(**{**found, "image": images, "recovery": recovery})


def _allowed_dirs(directory: Path, found: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if found is None else tuple(str(directory / allowed) for allowed in found)


def load(path: str | os.PathLike[str], *, names_devices: bool = False) -> Config:
    """Reads and checks one file. Raises `ConfigError` only, one line per mistake in the order of the file.

    `names_devices`: one that says nothing of devices is a mistake. A file that was cut short, or is about to be
    written, must not take the devices away that are in force."""
    file = os.fspath(path)
    root = compose(file, read_text(file))
    walk = Walk(file)
    found = (root and walk.read(FILE, root, "")) or {}
    _check_devices(walk, found.get("devices") or ())
    walk.check()
    if names_devices and "devices" not in found:
        raise ConfigError(f"{file}: devices: is missing, expected the list of them, which is [] where none is wanted")
    absolute = Path(file).absolute()
    return Config(
        path=str(absolute),
        scst=ScstConfig(**found.get("scst", {})),
        devices=tuple(_device(absolute.parent, device) for device in found.get("devices", ())),
        limits=Limits(**found.get("limits", {})),
        allowed_dirs=_allowed_dirs(absolute.parent, found.get("allowed_dirs")),
        data_plane=found.get("data_plane", "own"),
    )
