"""One virtual device of SCST: a name, a handler, and perhaps a device of ours behind it.

It holds that device (STANDBY_EN) from the command that adds it to the one that deletes it, in the words of the
specification: `active` 0 only closes the file, and clears nothing. Storing another file name, which is possible while
the device is inactive, deletes one device from SCST and adds another, so STANDBY_EN moves. Knows nothing of the tree.
"""

from collections.abc import Mapping
from functools import reduce

import trio

from ploopfs.bounds import SYNC_TIMEOUT_S
from ploopfs.device.device import Device
from ploopfs.errors import BadValue, Busy, NoMedium, NotPermitted, PermissionDenied, PloopError, StorageTimeout
from ploopfs.scst.access import Lun
from ploopfs.scst.backing import Backings
from ploopfs.scst.handlers import CDROM_BLOCK_BYTES, LEAST_BLOCK_BYTES, NULLIO_BYTES, PARSERS, Handler
from ploopfs.scst.settings import Settings
from ploopfs.scst.text import check_name, number, parameters, truth

NAME_MAX_BYTES = 64
MIB_SHIFT = 20
RESERVATIONS_DIRECTORY = "/var/lib/scst/pr"
NO_RESERVATIONS = "version 1\ngeneration 0"


def crc32c(data: bytes, crc: int = 0) -> int:
    """As the kernel's function of that name: neither the start value nor the result is inverted."""
    return reduce(lambda value, byte: _CRC_TABLE[(value ^ byte) & 0xFF] ^ value >> 8, data, crc)


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = tuple(map(_table_entry, range(256)))


def identity(name: str, handler: Handler, setup_id: int) -> dict[str, str | None]:
    """What a device is called towards initiators: derived from its name, so that it is the same after every start."""
    number_of_name = f"{setup_id << 32 | crc32c(name.encode('utf-8', 'surrogateescape') + bytes(1)):x}"
    t10 = f"{number_of_name}-{name}"[:25]
    return {
        "t10_vend_id": handler.vendor,
        "vend_specific_id": t10,
        "prod_id": name[:16],
        "t10_dev_id": t10,
        "usn": number_of_name,
    }


class VirtualDevice:
    """`device` is what it stands for, None while that is not known. `exports` maps the names of its links to LUNs."""

    def __init__(self, name: str, handler: Handler, text: str, *, setup_id: int, backings: Backings) -> None:
        """`text` is what follows the name in add_device. Raises PloopError, nothing held."""
        if len(check_name(name, "a device").encode("utf-8", "surrogateescape")) > NAME_MAX_BYTES:
            raise BadValue(f"the name of a device is longer than {NAME_MAX_BYTES} bytes")
        given = self._checked(handler, text)
        self.name = name
        self.handler = handler
        self.filename = given.pop("filename", None)
        self.active = truth(given.pop("active", "1")) == "1"
        self.exports: dict[str, Lun] = {}
        self.blocks = 0
        self.pr_file_name = self.default_pr_file_name
        self.device: Device | None = None
        self._exported = 0
        self._backings = backings
        self._size_bytes = self._stored_size(given) if handler.resizable and not handler.has_file else 0
        self.settings = Settings(handler.settings, self._defaults(given, setup_id))
        for parameter, value in given.items():
            self.settings[parameter] = PARSERS.get(parameter, truth)(value)
        if self._size_bytes % self.block_bytes:
            raise BadValue(f"size {self._size_bytes} is not a multiple of the block size {self.block_bytes}")
        if handler.has_file:
            self._open_at_first()

    @property
    def default_pr_file_name(self) -> str:
        return f"{RESERVATIONS_DIRECTORY}/{self.name}"

    @property
    def block_bytes(self) -> int:
        if "blocksize" not in self.settings:
            return CDROM_BLOCK_BYTES
        return int(self.settings["blocksize"] or LEAST_BLOCK_BYTES)

    @property
    def read_only(self) -> bool:
        return self.handler.starts_empty or self._is_on("read_only")

    @property
    def thin_provisioned(self) -> bool:
        return self._is_on("thin_provisioned")

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def has_key_size(self) -> bool:
        """Whether a saved configuration must hold the size: it is not what the handler would take anyway."""
        return self.handler.has_file or self._size_bytes != NULLIO_BYTES

    # What is stored into attributes

    def set_active(self, text: str) -> None:
        active = number(text, 0, 1) == 1
        if active and not self.active:
            self._bind(self._find())
            self._size_bytes = self._size_bytes or self._present_size()
        self.active = active

    def set_filename(self, text: str) -> None:
        """Another file behind the same device; whether it exists turns out when the device becomes active."""
        filename = text.strip()
        if self.active:
            raise BadValue(f"{self.name}: the file name cannot change while the device is active")
        if not filename.startswith("/"):
            raise BadValue(f"{self.name}: file name {filename!r} is not absolute")
        self.filename = filename
        self._bind(self._found())

    def set_medium(self, text: str) -> None:
        """The medium of a CD-ROM drive; an empty name takes it out."""
        filename = text.strip() or None
        device = self._backings.find(filename) if filename else None
        self.filename = filename
        self._bind(device)
        self._size_bytes = self._present_size()

    def set_size(self, text: str, shift: int = 0) -> None:
        size = number(text, 0, (2**64 - 1) >> shift) << shift
        if size % self.block_bytes:
            raise BadValue(f"{self.name}: size {size} is not a multiple of the block size {self.block_bytes}")
        self._size_bytes = size

    def resync_size(self, _text: str) -> None:
        self._check_open()
        self._size_bytes = self._present_size()

    def set_blocks(self, text: str) -> None:
        """External blocking of commands: `1` waits for those in flight, `11` reports later, `0` ends one of them."""
        match text.split():
            case ["0"]:
                self.blocks = max(0, self.blocks - 1)
            case ["1"]:
                self.blocks += 1
            case [first, *_] if first.startswith("11"):
                self.blocks += 1
            case _:
                raise BadValue(f"{self.name}: {text[:40]!r} is no blocking action")

    def set_pr_file_name(self, text: str) -> None:
        if self._is_on("cluster_mode"):
            raise NotPermitted(f"{self.name}: reservations of a clustered device have no file")
        if self.exports:
            raise Busy(f"{self.name} is exported: its reservations have a place already")
        self.pr_file_name = text.partition("\n")[0] or self.default_pr_file_name

    def set_pr_state(self, text: str) -> None:
        """Reservations come from initiators, and there are none: only the empty state can be restored."""
        if self.exports:
            raise Busy(f"{self.name} is exported")
        if text.split() != NO_RESERVATIONS.split():
            raise BadValue(f"{self.name}: there are no registrants to restore")

    async def wait_flushed(self) -> None:
        """Everything written is on stable storage. Bounded, unlike a flush of the disk itself."""
        if not self.handler.has_file:
            return
        device = self._check_open()
        with trio.move_on_after(SYNC_TIMEOUT_S) as timeout:
            await device.flush()
        if timeout.cancelled_caught:
            raise StorageTimeout(f"{device.name} was not flushed within {SYNC_TIMEOUT_S} s")

    # What others tell it

    def exported(self, lun: Lun) -> None:
        self.exports[f"export{self._exported}"] = lun
        self._exported += 1

    def unexported(self, lun: Lun) -> None:
        self.exports = {name: other for name, other in self.exports.items() if other is not lun}

    def deleted(self) -> None:
        self._bind(None)

    # Inside

    def _is_on(self, flag: str) -> bool:
        return flag in self.settings and self.settings[flag] == "1"

    @staticmethod
    def _checked(handler: Handler, text: str) -> dict[str, str]:
        given: dict[str, str] = {}
        for parameter, value in parameters(text):
            if parameter not in handler.parameters:
                raise BadValue(f"{handler.name}: parameter {parameter} is unknown")
            if parameter == "filename" and parameter in given:
                raise BadValue(f"{handler.name}: parameter filename is given twice")
            if parameter.startswith("dif_") and value != "0":
                raise BadValue(f"{handler.name}: {parameter}={value}: no disk here carries integrity data")
            given[parameter] = value
        if handler.has_file and "filename" not in given:
            raise BadValue(f"{handler.name}: a file name is required")
        if handler.has_file and not given["filename"].startswith("/"):
            raise BadValue(f"{handler.name}: file name {given['filename']} is not absolute")
        return {name: value for name, value in given.items() if not name.startswith("dif_")}

    @staticmethod
    def _stored_size(given: dict[str, str]) -> int:
        """Taken out of the parameters; the last one wins, as each stores the same thing."""
        sizes = {"size": 0, "size_mb": MIB_SHIFT}
        found = [number(given.pop(name)) << shift for name, shift in sizes.items() if name in given]
        return found[-1] if found else NULLIO_BYTES

    def _defaults(self, given: Mapping[str, str], setup_id: int) -> dict[str, str | None]:
        writable = truth(given.get("read_only", "0")) == "0"
        of_blocks = {"bind_alua_state": "1", "thin_provisioned": str(int(writable))} if self.handler.block_layer else {}
        return identity(self.name, self.handler, setup_id) | of_blocks

    def _open_at_first(self) -> None:
        """A file that is not looked at (active=0) may be missing, until the device becomes active."""
        self._bind(self._find() if self.active else self._found())
        self._size_bytes = self._present_size() if self.active else 0

    def _find(self) -> Device:
        assert self.filename is not None
        device = self._backings.find(self.filename)
        if device.read_only and not self.read_only:
            raise PermissionDenied(f"{device.name} is read-only, and {self.name} is not: say read_only=1")
        return device

    def _found(self) -> Device | None:
        try:
            return self._find()
        except PloopError:
            return None

    def _check_open(self) -> Device:
        if not self.active or self.device is None:
            raise NoMedium(f"{self.name}: no file is open")
        return self.device

    def _present_size(self) -> int:
        return self.device.size_bytes if self.device is not None else 0

    def _bind(self, device: Device | None) -> None:
        """Stand for another device, or for none. The new one is held first: a device that stays is not let go."""
        old, self.device = self.device, device
        if device is not None:
            self._backings.hold(device)
        if old is not None:
            self._backings.release(old)


