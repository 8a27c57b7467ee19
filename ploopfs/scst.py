"""The target subsystem as the devices' consumer: loading it puts the global key in, attaching a device sets STANDBY_EN.

Knows nothing of FUSE. Invariant: the key is in exactly while the subsystem is loaded.
"""

from ploopfs.device.device import Device
from ploopfs.device.standby import StandbyKey


class Scst:
    """The subsystem of one daemon."""

    def __init__(self, key: StandbyKey) -> None:
        self._key = key

    @property
    def loaded(self) -> bool:
        return self._key.enabled

    def load(self) -> None:
        self._key.enabled = True

    def attach(self, device: Device) -> None:
        """The device's handler promises to clear standby."""
        device.queue.standby.attach()
