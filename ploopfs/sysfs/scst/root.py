"""The directory `scst_tgt`, which is there while the module is loaded. Knows nothing of what its directories hold."""

from ploopfs.scst.core import VERSION, Core
from ploopfs.scst.module import ISCSI, VDISK, Scst
from ploopfs.sysfs.nodes import Directory, Node
from ploopfs.sysfs.rows import Kept, Row, constant, directory, ignoring
from ploopfs.sysfs.scst.devices import devices, handlers
from ploopfs.sysfs.scst.groups import device_groups
from ploopfs.sysfs.scst.parts import Nodes, Of, direct, settings_of, together
from ploopfs.sysfs.scst.targets import targets

VERSION_LINES = (
    f"SCST version: {VERSION}",
    "SCST build date: ",
    "SCST build number: ",
    "SCST git commit sha1: ",
    "SCST kver: ",
    "SCST arch type: ",
    "SCST config: EXTRACHECKS, TRACING, DEBUG",
)
NO_COMMANDS = ""
"""Nobody sends any, so none is ever under way."""

ROOT: tuple[Row[Of[Core]], ...] = (
    constant("version", "\n".join(VERSION_LINES)),
    Row("last_sysfs_mgmt_res", lambda of: str(of.core.last_result)),
    Row("suspend", lambda of: str(of.core.suspends), direct(lambda of, text: of.core.suspend(text))),
    Row("trace_level", lambda of: of.core.trace_level.show(), direct(lambda of, text: of.core.trace_level.store(text))),
    constant("trace_cmds", NO_COMMANDS),
    constant("trace_mcmds", NO_COMMANDS),
)

POOLS = ("sgv", "sgv-clust", "sgv-dma", "sgv-0", "sgv-clust-0", "sgv-dma-0")
"""Of buffers of commands, for all and for the first processor."""
POOL_ELEMENTS = 11


def _line(name: str, width: int, *numbers: object) -> str:
    return " ".join([name.ljust(width), *(str(number).ljust(11) for number in numbers[:-1]), str(numbers[-1])])


def _show_pool(name: str) -> str:
    """A row for the pool, one for each size of a buffer in pages, one for all that are larger: nothing is in them."""
    return "\n".join(
        [
            _line("Name", 30, "Hit", "Total", "% merged", "Cached (P/I/O)"),
            _line(name, 30, 0, 0, 0, "0/0/0"),
            *(_line(f"  {name}-{1 << size}", 30, 0, 0, 0) for size in range(POOL_ELEMENTS)),
            _line("  big/other", 42, "0/0", "0/0"),
        ]
    )


def _show_pools(_name: str) -> str:
    rows = ("Inactive/active pages", "Hi/lo watermarks [pages]", "Hi watermark releases/failures")
    return "\n".join([*(_line(row, 42, "0/0") for row in rows), _line("Other allocs", 42, 0)])


POOL: tuple[Row[str], ...] = (Row("stats", _show_pool, ignoring),)
ALL_POOLS: tuple[Row[str], ...] = (Row("global_stats", _show_pools, ignoring),)


def scst_tgt(scst: Scst) -> Nodes:
    """The directory under its name while the module is loaded; another one each time it was loaded anew."""
    kept: Kept[Core, Directory] = Kept(lambda _, core: _root(scst, core))
    return lambda: kept.of({"scst_tgt": scst.core} if scst.loaded else {})


def _root(scst: Scst, core: Core) -> Directory:
    def removed() -> bool:
        return not scst.loaded or scst.core is not core

    def fixed() -> dict[str, Node]:
        return {
            **settings_of(core, core.settings, removed),
            **directory(ROOT, Of(core, core), removed).children(),
            "devices": devices(core, removed),
            "handlers": handlers(core, removed, lambda: VDISK in scst.modules),
            "targets": targets(core, removed, lambda: ISCSI in scst.modules),
            "device_groups": device_groups(core, removed),
            "sgv": directory(
                ALL_POOLS, "", removed, lambda: {name: directory(POOL, name, removed) for name in POOLS}
            ),
        }

    return together(fixed)
