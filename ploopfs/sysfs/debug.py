"""`sys/kernel/debug/ploopfs/<dev>/`: faults at the storage of a device, as debugfs has them for a block device.

Knows nothing of what a rule does. Only the owner may read or write here, and the list of rules may be longer than a
page, since debugfs is not sysfs.
"""

from ploopfs.device.device import Device
from ploopfs.device.events import declare
from ploopfs.engine.inject.grammar import execute, listing
from ploopfs.errors import PloopError
from ploopfs.sysfs.control import one_line
from ploopfs.sysfs.parse import line
from ploopfs.sysfs.rows import Row

FAULT_RULES = declare("fault_rules", "the fault rules of a device changed; the `command` that did it")


async def _execute(device: Device, text: str) -> None:
    injector = device.injector
    try:
        execute(injector, text)
    except PloopError as error:
        injector.last_error = str(error)
        raise
    injector.last_error = ""
    device.events.emit(FAULT_RULES, command=line(text))


DEBUG: tuple[Row[Device], ...] = (
    Row(
        "error_injection",
        lambda device: listing(device.injector).removesuffix("\n") or None,
        _execute,
        bounded=False,
        private=True,
    ),
    Row("last_error", lambda device: one_line(device.injector.last_error) or None, private=True),
)
