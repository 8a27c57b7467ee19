"""The modules of the subsystem: loading puts the global standby key in, unloading takes it out.

Knows nothing of the tree. Invariants: the key is in exactly while the module `scst` is loaded; nothing is unloaded
under a device that is in SCST.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from ploopfs.device.device import Device
from ploopfs.device.registry import Registry
from ploopfs.errors import BadValue, Busy, NoSuchEntry
from ploopfs.scst.backing import Backings
from ploopfs.scst.core import Core

log = logging.getLogger(__name__)

SCST, VDISK, ISCSI = "scst", "scst_vdisk", "iscsi_scst"
MODULES = (SCST, VDISK, ISCSI)


@dataclass(eq=False, frozen=True, slots=True)
class Module:
    """One module from when it was loaded until it is unloaded."""

    name: str


class Scst:
    """The subsystem of one daemon. `mountpoint` is where its tree is seen by whoever writes file names.

    The other two modules depend on `scst`, which on its own can do nothing: so that comes with both (in the words of
    modprobe.d: `softdep scst post: scst_vdisk iscsi_scst`), and goes with them.

    A device can be attached by configuration while nothing is loaded: that is the inconsistency of the specification
    which is only warned about. It is in SCST as soon as that is loaded.
    """

    def __init__(self, registry: Registry, mountpoint: str = "") -> None:
        self._registry = registry
        self._backings = Backings(registry, mountpoint)
        self._loaded: dict[str, Module] = {}
        self.core = Core(self._backings, registry.events)

    @property
    def loaded(self) -> bool:
        return SCST in self._loaded

    @property
    def modules(self) -> Mapping[str, "Module"]:
        """Those that are loaded, first come first."""
        return self._loaded

    def load(self, name: str = SCST) -> None:
        """As modprobe: with all that the module needs, and no error if it is there. Raises NoSuchEntry."""
        module = _module(name)
        for wanted in (module,) if self.loaded else MODULES:
            if wanted not in self._loaded:
                self._loaded[wanted] = Module(wanted)
                self._registry.key.enabled = True
                log.info("module %s is loaded", wanted)
                self._registry.events.emit("", "module_loaded", module=wanted)

    def unload(self, name: str = SCST) -> None:
        """Raises NoSuchEntry if the module is not loaded, Busy if a device is in it."""
        module = _module(name)
        if module not in self._loaded:
            raise NoSuchEntry(f"module {module} is not loaded")
        if module != ISCSI and self.core.vdisks:
            raise Busy(f"module {module} is in use by {', '.join(self.core.vdisks)}")
        for going in reversed(MODULES if module == SCST else (module,)):
            if going in self._loaded:
                self._remove(going)

    def attach(self, device: Device) -> None:
        """Its handler promises to clear standby."""
        self.core.attach(device)

    def detach(self, device: Device) -> None:
        """Undo `attach`. Raises Busy if somebody else has a use for the device in SCST."""
        self.core.detach(device)

    def is_attached(self, device: Device) -> bool:
        """Whether SCST has the device under any name: it cannot go then."""
        return self._backings.is_held(device)

    def _remove(self, module: str) -> None:
        del self._loaded[module]
        if module == ISCSI:
            self.core.remove_iscsi()
        if module == SCST:
            self.core = Core(self._backings, self._registry.events)
            self._registry.key.enabled = False
        log.info("module %s is unloaded", module)
        self._registry.events.emit("", "module_unloaded", module=module)


def _module(name: str) -> str:
    """A module's name as the kernel has it, in which a dash is an underscore."""
    module = name.replace("-", "_")
    if not module:
        raise BadValue("the name of a module is missing")
    if module not in MODULES:
        raise NoSuchEntry(f"there is no module {name!r}, expected one of {', '.join(MODULES)}")
    return module
