"""Files that a user writes: YAML in, frozen values out, or one error that names every mistake with its line."""

from ploopfs.config.schema import Config, DeviceConfig, Limits, ScstConfig, load

__all__ = ["Config", "DeviceConfig", "Limits", "ScstConfig", "load"]
