"""`handlers/` and `devices/`: how devices come into the subsystem, and what they are there.

Knows nothing of targets but the place of a LUN.
"""

from collections.abc import Callable

from ploopfs.scst.core import Core
from ploopfs.scst.handlers import HANDLERS, TYPE_NAMES, Handler
from ploopfs.scst.settings import keyed
from ploopfs.scst.vdisk import MIB_SHIFT, NO_RESERVATIONS, VirtualDevice
from ploopfs.sysfs.nodes import Directory, Node
from ploopfs.sysfs.rows import Removed, Row, directory, ignoring
from ploopfs.sysfs.scst.parts import Of, direct, directories, links, queued, settings_of, together


def _show_type(handler: Handler) -> str:
    return f"{handler.type} - {TYPE_NAMES[handler.type]}"


def _show_help(of: Of[Handler]) -> str:
    return f"""Usage: echo "add_device device_name [parameters]" >mgmt
       echo "del_device device_name" >mgmt

where parameters are one or more param_name=value pairs separated by ';'

The following parameters available: {", ".join(of.it.parameters)}
"""


HANDLER: tuple[Row[Of[Handler]], ...] = (
    Row("mgmt", _show_help, queued(lambda of, text: of.core.manage_devices(of.it, text))),
    Row("type", lambda of: _show_type(of.it)),
    Row(
        "trace_level",
        lambda of: of.core.handler_trace_levels[of.it.name].show(),
        direct(lambda of, text: of.core.handler_trace_levels[of.it.name].store(text)),
    ),
)


def _show_filename(of: Of[VirtualDevice]) -> str:
    """An empty line follows, also where there is no name."""
    return (keyed(of.it.filename) if of.it.filename else "none") + "\n"


async def _flush(of: Of[VirtualDevice], _text: str) -> None:
    await of.it.wait_flushed()


DEVICE: tuple[Row[Of[VirtualDevice]], ...] = (
    Row("type", lambda of: _show_type(of.it.handler)),
    Row("block", lambda of: f"{of.it.blocks} 0", direct(lambda of, text: of.it.set_blocks(text))),
    Row("pr_state", lambda _: NO_RESERVATIONS, queued(lambda of, text: of.it.set_pr_state(text))),
    Row(
        "pr_file_name",
        lambda of: keyed(of.it.pr_file_name, of.it.pr_file_name != of.it.default_pr_file_name),
        queued(lambda of, text: of.it.set_pr_file_name(text)),
    ),
    Row("dump_prs", None, ignoring),
)
FILE: tuple[Row[Of[VirtualDevice]], ...] = (
    Row(
        "active",
        lambda of: keyed(int(of.it.active), not of.it.active),
        queued(lambda of, text: of.it.set_active(text)),
    ),
    Row("filename", _show_filename, queued(lambda of, text: of.it.set_filename(text))),
    Row("resync_size", None, queued(lambda of, text: of.it.resync_size(text))),
    Row("sync", None, _flush),
)
MEDIUM: tuple[Row[Of[VirtualDevice]], ...] = (
    Row("filename", _show_filename, queued(lambda of, text: of.it.set_medium(text))),
)
# That a device is nearly full is news for initiators, of which there are none.
THIN: tuple[Row[Of[VirtualDevice]], ...] = (Row("gen_tp_soft_threshold_reached_UA", None, ignoring),)


def _show_size(of: Of[VirtualDevice]) -> str:
    return keyed(of.it.size_bytes, of.it.has_key_size)


def _show_size_mb(of: Of[VirtualDevice]) -> str:
    """Without the mark: a saved configuration that held both would round the size."""
    return str(of.it.size_bytes >> MIB_SHIFT)


SIZE: tuple[Row[Of[VirtualDevice]], ...] = (Row("size", _show_size), Row("size_mb", _show_size_mb))
RESIZABLE: tuple[Row[Of[VirtualDevice]], ...] = (
    Row("size", _show_size, queued(lambda of, text: of.it.set_size(text))),
    Row("size_mb", _show_size_mb, queued(lambda of, text: of.it.set_size(text, MIB_SHIFT))),
)


def rows_of(vdisk: VirtualDevice) -> tuple[Row[Of[VirtualDevice]], ...]:
    handler = vdisk.handler
    return (
        *DEVICE,
        *(FILE if handler.has_file else ()),
        *(MEDIUM if handler.starts_empty else ()),
        *(RESIZABLE if handler.resizable else SIZE),
        *(THIN if vdisk.thin_provisioned else ()),
    )


def handlers(core: Core, removed: Removed, are_there: Callable[[], bool]) -> Directory:
    def gone() -> bool:
        return removed() or not are_there()

    def make(_name: str, handler: Handler) -> Directory:
        of_handler = links(
            lambda: {name: vdisk for name, vdisk in core.vdisks.items() if vdisk.handler is handler},
            lambda vdisk: f"../../devices/{vdisk.name}",
        )
        return together(directory(HANDLER, Of(core, handler), gone).children, of_handler)

    return Directory(directories(lambda: HANDLERS if are_there() else {}, make))


def devices(core: Core, removed: Removed) -> Directory:
    def make(name: str, vdisk: VirtualDevice) -> Directory:
        return _device(core, vdisk, lambda: removed() or core.vdisks.get(name) is not vdisk)

    return Directory(directories(lambda: core.vdisks, make))


def _device(core: Core, vdisk: VirtualDevice, removed: Removed) -> Directory:
    exported = links(lambda: vdisk.exports, lambda lun: f"../../../targets/{lun.path}")
    handler = links(lambda: {"handler": vdisk.handler}, lambda handler: f"../../handlers/{handler.name}")

    def attributes() -> dict[str, Node]:
        rows = directory(rows_of(vdisk), Of(core, vdisk), removed).children()
        return {**settings_of(core, vdisk.settings, removed), **rows, "exported": Directory(exported), **handler()}

    return together(attributes)
