"""`sys/module/` of the loaded modules, and the two files that load and unload them.

Knows nothing of what they do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ploopfs.scst.core import VERSION
from ploopfs.scst.module import ISCSI, SCST, VDISK, Module, Scst
from ploopfs.sysfs.nodes import Directory, Node
from ploopfs.sysfs.parse import line
from ploopfs.sysfs.rows import Removed, Row, constant, directory, ignoring, storing
from ploopfs.sysfs.scst.parts import Nodes, directories, links, together


@dataclass(frozen=True, slots=True)
class Loaded:
    """One module, and all that is loaded."""

    scst: Scst
    name: str

    @property
    def holders(self) -> Mapping[str, Module]:
        """The modules that need it."""
        return {name: module for name, module in self.scst.modules.items() if self.name == SCST != name}

    @property
    def references(self) -> int:
        """What keeps it from being unloaded, or goes with it."""
        return len(self.holders) + (len(self.scst.core.vdisks) if self.name != ISCSI else 0)


CONTROL: tuple[Row[Scst], ...] = (
    Row("modprobe", None, storing(lambda text: line(text).strip(), Scst.load)),
    Row("rmmod", None, storing(lambda text: line(text).strip(), Scst.unload)),
)
MODULE: tuple[Row[Loaded], ...] = (
    constant("initstate", "live"),
    Row("refcnt", lambda module: str(module.references)),
    constant("version", VERSION),
    # Nothing of it lies in the kernel.
    constant("coresize", 0),
    constant("initsize", 0),
    constant("taint", "OE"),
    Row("uevent", None, ignoring),
)
PARAMETERS: Mapping[str, tuple[Row[Loaded], ...]] = {
    SCST: (
        Row("scst_threads", lambda module: module.scst.core.settings["threads"]),
        Row("async_lun_replace", lambda module: "NY"[module.scst.core.settings["async_lun_replace"] == "1"]),
        constant("auto_cm_assignment", "Y"),
        constant("forcibly_close_sessions", "N"),
    ),
    VDISK: (constant("num_threads", 8),),
    ISCSI: (),
}


def control(scst: Scst) -> Mapping[str, Node]:
    """The files beside the daemon's own, which are always there."""
    return directory(CONTROL, scst, lambda: False).children()


def modules(scst: Scst) -> Nodes:
    def make(name: str, module: Module) -> Directory:
        return _module(Loaded(scst, name), lambda: scst.modules.get(name) is not module)

    return directories(lambda: scst.modules, make)


def _module(module: Loaded, removed: Removed) -> Directory:
    def fixed() -> dict[str, Node]:
        parameters = PARAMETERS[module.name]
        return {
            **directory(MODULE, module, removed).children(),
            "holders": Directory(links(lambda: module.holders, lambda holder: f"../../{holder.name}")),
            **({"parameters": directory(parameters, module, removed)} if parameters else {}),
        }

    return together(fixed)
