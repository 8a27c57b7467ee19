"""`targets/`: the drivers, their targets, and the groups of LUNs and initiators. Knows nothing of devices but names."""

from collections.abc import Callable

from ploopfs.scst.access import INITIATORS_HELP, LUNS_HELP, Group, Lun
from ploopfs.scst.core import VERSION, Core
from ploopfs.scst.iscsi import Extra, Extras
from ploopfs.scst.settings import keyed
from ploopfs.scst.targets import GROUPS_HELP, MASK, CopyManager, IscsiDriver, Target, without_secrets
from ploopfs.sysfs.nodes import Attribute, Directory, Link, Node
from ploopfs.sysfs.rows import Kept, Removed, Row, constant, directory
from ploopfs.sysfs.scst.parts import Nodes, Of, direct, directories, queued, settings_of, together

DRIVER_HELP = """Usage: echo "add_target target_name [parameters]" >mgmt
       echo "del_target target_name" >mgmt
       echo "add_attribute <attribute> <value>" >mgmt
       echo "del_attribute <attribute> <value>" >mgmt
       echo "add_target_attribute target_name <attribute> <value>" >mgmt
       echo "del_target_attribute target_name <attribute> <value>" >mgmt

where parameters are one or more param_name=value pairs separated by ';'

The following target driver attributes available: IncomingUser, OutgoingUser
The following target attributes available: IncomingUser, OutgoingUser, allowed_portal
"""

DRIVER: tuple[Row[Of[IscsiDriver]], ...] = (
    Row("mgmt", lambda _: DRIVER_HELP, queued(lambda of, text: of.core.manage_targets(text), without_secrets)),
    Row("trace_level", lambda of: of.it.trace_level.show(), direct(lambda of, text: of.it.trace_level.store(text))),
    constant("version", f"{VERSION}\nEXTRACHECKS\nTRACING\nDEBUG"),
    constant("open_state", "open"),
)
TARGET: tuple[Row[Of[Target]], ...] = (
    Row(
        "rel_tgt_id",
        lambda of: keyed(of.it.rel_tgt_id, of.it.rel_tgt_id != 0),
        queued(lambda of, text: of.core.iscsi.set_rel_tgt_id(of.it, text)),
    ),
    # An older name of forward_dst.
    Row(
        "forwarding",
        lambda of: of.it.settings.show("forward_dst"),
        direct(lambda of, text: of.it.settings.store("forward_dst", text)),
    ),
)
ISCSI_TARGET: tuple[Row[Of[Target]], ...] = (
    Row("enabled", lambda of: str(int(of.it.enabled)), queued(lambda of, text: of.core.iscsi.enable(of.it, text))),
    Row("tid", lambda of: str(of.it.tid)),
)
GROUPS: tuple[Row[Of[Target]], ...] = (
    Row("mgmt", lambda _: GROUPS_HELP, queued(lambda of, text: of.it.manage_groups(text))),
)
LUNS: tuple[Row[Of[Group]], ...] = (
    Row("mgmt", lambda _: LUNS_HELP, queued(lambda of, text: of.it.manage_luns(text, of.core.vdisks))),
)
LUN: tuple[Row[Lun], ...] = (Row("read_only", lambda lun: keyed(int(lun.read_only), lun.read_only)),)


def targets(core: Core, removed: Removed, has_iscsi: Callable[[], bool]) -> Directory:
    def drivers() -> dict[str, CopyManager | IscsiDriver]:
        return core.drivers if has_iscsi() else {core.copy_manager.name: core.copy_manager}

    def make(name: str, driver: CopyManager | IscsiDriver) -> Directory:
        return _driver(core, driver, lambda: removed() or drivers().get(name) is not driver)

    return Directory(directories(drivers, make))


def _driver(core: Core, driver: CopyManager | IscsiDriver, removed: Removed) -> Directory:
    def attributes() -> dict[str, Node]:
        rows = directory(DRIVER, Of(core, driver), removed).children() if isinstance(driver, IscsiDriver) else {}
        return {**settings_of(core, driver.settings, removed), **rows}

    def make(name: str, target: Target) -> Directory:
        return _target(core, target, lambda: removed() or driver.targets.get(name) is not target, driver)

    added = _extras(core, driver.extras, removed) if isinstance(driver, IscsiDriver) else dict
    return together(attributes, added, directories(lambda: driver.targets, make))


def _target(core: Core, target: Target, removed: Removed, driver: CopyManager | IscsiDriver) -> Directory:
    rows = (*TARGET, *(ISCSI_TARGET if isinstance(driver, IscsiDriver) else ()))
    of = Of(core, target)

    def make(name: str, group: Group) -> Directory:
        return _named_group(core, target, group, lambda: removed() or target.groups.get(name) is not group)

    def fixed() -> dict[str, Node]:
        return {
            **settings_of(core, target.settings, removed),
            **settings_of(core, target.group.settings, removed),
            **directory(rows, of, removed).children(),
            "sessions": Directory(dict),
            "luns": _luns(core, target.group, removed),
            "ini_groups": together(directory(GROUPS, of, removed).children, directories(lambda: target.groups, make)),
        }

    return together(fixed, _extras(core, target.extras, removed))


def _named_group(core: Core, target: Target, group: Group, removed: Removed) -> Directory:
    def manage(_of: Of[Group], text: str) -> None:
        group.manage_initiators(text, target.groups)

    mgmt: Row[Of[Group]] = Row("mgmt", lambda _: INITIATORS_HELP, queued(manage))

    def make(name: str, _: str) -> Attribute:
        return Attribute(show=lambda: name, removed=lambda: removed() or name not in group.initiators)

    kept = Kept(make)

    def fixed() -> dict[str, Node]:
        return {
            **settings_of(core, group.settings, removed),
            "luns": _luns(core, group, removed),
            "initiators": together(
                directory([mgmt], Of(core, group), removed).children, lambda: kept.of(group.initiators)
            ),
        }

    return together(fixed)


def _luns(core: Core, group: Group, removed: Removed) -> Directory:
    """Links lead up from `luns/N/`, and there is one directory more to pass in a named group."""
    up = "../" * (group.path.count("/") + 4)

    def make(_name: str, lun: Lun) -> Directory:
        def gone() -> bool:
            return removed() or group.luns.get(lun.number) is not lun

        return directory(LUN, lun, gone, lambda: {"device": Link(f"{up}devices/{lun.device.name}")})

    numbered = directories(lambda: {str(number): lun for number, lun in group.luns.items()}, make)
    return together(directory(LUNS, Of(core, group), removed).children, numbered)


def _extras(core: Core, extras: Extras, removed: Removed) -> Nodes:
    def make(name: str, extra: Extra) -> Attribute:
        async def store(text: str) -> None:
            core.queued(lambda text: extras.store(name, text), text, f"{name} {MASK}" if extra.is_secret else None)

        return Attribute(
            show=extra.show,
            store=store,
            removed=lambda: removed() or extras.get(name) is not extra,
            private=extra.is_secret,
        )

    kept = Kept(make)
    return lambda: kept.of(extras)
