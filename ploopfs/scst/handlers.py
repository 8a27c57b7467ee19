"""The device handlers of SCST, and the attributes that a virtual device of each has.

Knows nothing of the devices themselves. Names, defaults and limits are those of SCST 3.11.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ploopfs.errors import BadValue
from ploopfs.scst.settings import Marked, Setting
from ploopfs.scst.text import decimal, first_line, number, switch, truth

DISK, CDROM = 0, 5
"""SCSI device types."""
TYPE_NAMES = {DISK: "Direct-access device (e.g., magnetic disk)", CDROM: "CD-ROM device"}

S32_MAX = 2**31 - 1
LEAST_BLOCK_BYTES = 512
CDROM_BLOCK_BYTES = 2048
NULLIO_BYTES = 5 << 39
"""A disk without a file is two and a half TiB large, unless told otherwise."""


def _hexadecimal(allowed: dict[int, str]) -> Callable[[str], str]:
    """An identifier: none, or one of the allowed numbers of digits with one of the allowed first digits."""

    def parse(text: str) -> str:
        digits = text.strip().removeprefix("0x")
        if not digits:
            return ""
        if digits[0] not in allowed.get(len(digits), "") or not set(digits) <= set("0123456789abcdefABCDEF"):
            raise BadValue(f"{text[:40]!r} is no identifier of {' or '.join(map(str, allowed))} hexadecimal digits")
        return f"0x{digits.lower()}"

    return parse


def _pool(text: str) -> str:
    for pool in ("per_initiator", "shared"):
        if text.lower().startswith(pool):
            return pool
    raise BadValue(f"{text[:40]!r} is no kind of threads pool")


def block_bytes(text: str) -> str:
    value = number(text, 0, 1 << 20) or LEAST_BLOCK_BYTES
    if value < LEAST_BLOCK_BYTES or value & (value - 1):
        raise BadValue(f"blocksize {value} is not a power of two of at least {LEAST_BLOCK_BYTES}")
    return str(value)


ANY_HEX = "0123456789abcdefABCDEF"

COMMON: tuple[Setting, ...] = (
    Setting("max_tgt_dev_commands", "64", decimal(0, S32_MAX)),
    Setting("numa_node_id", "-1", decimal(-1, S32_MAX)),
)
THREADS: tuple[Setting, ...] = (
    Setting("threads_num", "1", decimal(0, S32_MAX), queued=True),
    Setting("threads_pool_type", "per_initiator", _pool, queued=True),
)
IDENTITY: tuple[Setting, ...] = (
    Setting("t10_vend_id", None, first_line(8), Marked.STORED),
    Setting("vend_specific_id", None, first_line(128), Marked.STORED),
    Setting("prod_id", None, first_line(16), Marked.STORED),
    Setting("prod_rev_lvl", "3110", first_line(4), Marked.STORED),
    Setting("scsi_device_name", "", first_line(256)),
    Setting("t10_dev_id", None, first_line(25), Marked.STORED),
    Setting("naa_id", "", _hexadecimal({16: "235", 32: "6"})),
    Setting("eui64_id", "", _hexadecimal({16: ANY_HEX, 24: ANY_HEX, 32: ANY_HEX})),
    Setting("usn", None, first_line(20), Marked.STORED),
    Setting("inq_vend_specific", "", first_line(160)),
    Setting("tst", "1"),
)
"""How a device presents itself to initiators; what is None here is made of its name."""

_BLOCKSIZE = Setting("blocksize", str(LEAST_BLOCK_BYTES))
_MEDIUM: tuple[Setting, ...] = (
    _BLOCKSIZE,
    Setting("read_only", "0"),
    Setting("removable", "0"),
    Setting("rotational", "1"),
    Setting("cluster_mode", "0", switch, queued=True),
    Setting("opt_trans_len", "524288", decimal(0, S32_MAX), Marked.STORED),
)
_FILE: tuple[Setting, ...] = (
    *_MEDIUM,
    Setting("write_through", "0"),
    Setting("nv_cache", "0"),
    Setting("thin_provisioned", "0", marked=Marked.STORED),
    Setting("expl_alua", "0", truth),
    Setting("bind_alua_state", "0", truth),
    Setting("lb_per_pb_exp", "1", switch),
)

PARSERS: dict[str, Callable[[str], str]] = {
    "t10_dev_id": first_line(25),
    "blocksize": block_bytes,
    "tst": decimal(0, 1),
    "dummy": switch,
    "numa_node_id": decimal(-1, S32_MAX),
}
"""Of the parameters of add_device that become settings; the others are true or false."""

_BLOCKIO_PARAMETERS = (
    "active bind_alua_state blocksize cluster_mode dif_filename dif_mode dif_static_app_tag dif_type filename "
    "numa_node_id nv_cache read_only removable rotational thin_provisioned tst t10_dev_id write_through"
)
_NULLIO_PARAMETERS = (
    "blocksize cluster_mode dif_mode dif_static_app_tag dif_type dummy numa_node_id read_only removable rotational "
    "size size_mb tst t10_dev_id"
)
_FILEIO_PARAMETERS = _BLOCKIO_PARAMETERS.replace("active", "active async").replace("nv_cache", "nv_cache o_direct")


@dataclass(frozen=True, slots=True)
class Handler:
    """`parameters` is what add_device takes. `has_file`: there is a file behind its devices, which can be closed and
    changed while the device stays. `starts_empty`: a medium is put in later. `resizable`: `size` can be stored.
    `block_layer`: it sends requests to a block device, and so knows whether that can discard."""

    name: str
    type: int
    vendor: str
    parameters: tuple[str, ...]
    settings: tuple[Setting, ...]
    has_file: bool = True
    starts_empty: bool = False
    resizable: bool = False
    block_layer: bool = False


BLOCKIO = Handler(
    name="vdisk_blockio",
    type=DISK,
    vendor="SCST_BIO",
    parameters=tuple(_BLOCKIO_PARAMETERS.split()),
    settings=(*COMMON, *THREADS, *_FILE, *IDENTITY),
    resizable=True,
    block_layer=True,
)
FILEIO = Handler(
    name="vdisk_fileio",
    type=DISK,
    vendor="SCST_FIO",
    parameters=tuple(_FILEIO_PARAMETERS.split()),
    settings=(
        *COMMON,
        *_FILE,
        Setting("o_direct", "0"),
        Setting("async", "0", switch),
        *IDENTITY,
    ),
)
NULLIO = Handler(
    name="vdisk_nullio",
    type=DISK,
    vendor="SCST_FIO",
    parameters=tuple(_NULLIO_PARAMETERS.split()),
    settings=(
        *COMMON,
        *THREADS,
        *_MEDIUM,
        Setting("dummy", "0"),
        Setting("read_zero", "0", switch),
        *IDENTITY,
    ),
    has_file=False,
    resizable=True,
)
VCDROM = Handler(
    name="vcdrom",
    type=CDROM,
    vendor="SCST_FIO",
    parameters=("tst",),
    settings=(*COMMON, *IDENTITY),
    has_file=False,
    starts_empty=True,
)

HANDLERS = {handler.name: handler for handler in (BLOCKIO, FILEIO, NULLIO, VCDROM)}
