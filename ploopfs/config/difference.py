"""What is different between two configurations: what can be changed in a running daemon, and what needs a new mount.

Pure. Knows nothing of devices but what the file says of them.
"""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from ploopfs.config.schema import Config, DeviceConfig, Limits

LiveKey = Literal["on_standby", "hold_timeout_ms", "recovery", "standby"]
LIVE: tuple[LiveKey, ...] = get_args(LiveKey)
"""Keys of a device that can change while it is served; all others make it another disk."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key of one device; the new value is in `wanted`."""

    wanted: DeviceConfig
    key: LiveKey

    def __str__(self) -> str:
        return f"{self.wanted.name}.{self.key}"


@dataclass(frozen=True, slots=True)
class Difference:
    """`remount` names keys that the new file changes in vain, as `ploop0.image` or `limits.held_mib`."""

    removed: tuple[str, ...]
    changed: tuple[Change, ...]
    added: tuple[DeviceConfig, ...]
    loads: bool | None
    """Whether `scst.loaded` is to change, and to what."""
    confines: bool
    """Whether `allowed_dirs` changes."""
    remount: tuple[str, ...]


def difference(old: Config, new: Config) -> Difference:
    """Devices are told apart by their names."""
    before = {device.name: device for device in old.devices}
    after = {device.name: device for device in new.devices}
    staying = [(before[name], wanted) for name, wanted in after.items() if name in before]
    return Difference(
        removed=tuple(name for name in before if name not in after),
        changed=tuple(
            Change(wanted, key) for device, wanted in staying for key in LIVE if _differs(device, wanted, key)
        ),
        added=tuple(device for name, device in after.items() if name not in before),
        loads=new.scst.loaded if new.scst.loaded != old.scst.loaded else None,
        confines=new.allowed_dirs != old.allowed_dirs,
        remount=(
            *(
                f"{wanted.name}.{each.name}"
                for device, wanted in staying
                for each in fields(DeviceConfig)
                if each.name not in LIVE and _differs(device, wanted, each.name)
            ),
            *(["data_plane"] if old.data_plane != new.data_plane else []),
            *(f"limits.{each.name}" for each in fields(Limits) if _differs(old.limits, new.limits, each.name)),
        ),
    )


def _differs(one: object, other: object, key: str) -> bool:
    return bool(getattr(one, key) != getattr(other, key))
