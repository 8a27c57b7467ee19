"""What differs between the two generations of ploop (and a disk that is none), as frozen values.

Nothing else in the project asks which flavour a device has: it asks a flavour's field. Knows nothing of devices.
"""

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass

from ploopfs.device.stats import Op

BLOCK_LAYER_ERRNOS = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ETIMEDOUT,
        errno.ENOSPC,
        errno.ENOLINK,
        errno.EREMOTEIO,
        errno.EBADE,
        errno.ENODATA,
        errno.EILSEQ,
        errno.ENOMEM,
        errno.EBUSY,
        errno.ENODEV,
        errno.EAGAIN,
        errno.ETIME,
        errno.EINVAL,
    }
)
"""The errnos that have a block status of their own and so reach the caller; every other one arrives as EIO."""


def _vz7_request_errno(op: Op, storage_errno: int) -> int:
    """vz7 hands the storage's errno up as it is; a failed fsync is always EIO (kernel-ploop.md 1.3)."""
    return errno.EIO if op is Op.FLUSH else storage_errno


def _block_layer_errno(_op: Op, storage_errno: int) -> int:
    """A request-based device answers through block statuses: ENOTCONN becomes EIO, EBUSY stays (kernel-ploop 1.6)."""
    return storage_errno if storage_errno in BLOCK_LAYER_ERRNOS else errno.EIO


@dataclass(frozen=True, slots=True)
class Flavour:
    """One generation's values.

    `request_errno(op, storage_errno)` is the errno that the failing request itself gets. `groups` names the attribute
    directories beside `queue/`. `aborts`: a failed request that does not mean standby sets the `aborted` state.
    `mapped`: a device-mapper device, which has tables and a name of its own. `supports_standby`: it is a ploop, and a
    target that takes it promises to clear its standby mode. `raw_only`: it knows no deltas. `schedulers` are those of a
    request-based queue, the active one first, with `nr_requests` of at most `queue_depth` request structures; a queue
    without them is bio-based.
    """

    name: str
    device_name: re.Pattern[str]
    major: int
    minors_per_disk: int
    groups: frozenset[str]
    fua: bool
    aborts: bool
    request_errno: Callable[[Op, int], int]
    mapped: bool = False
    supports_standby: bool = True
    raw_only: bool = False
    schedulers: tuple[str, ...] = ()
    nr_requests: int = 128
    queue_depth: int = 0

    def minor(self, device_name: str) -> int:
        """The first minor of a device with a valid name of this flavour."""
        match = self.device_name.fullmatch(device_name)
        assert match is not None
        ordinal = match.group(1)
        return (int(ordinal) if ordinal.isdigit() else ord(ordinal) - ord("a")) * self.minors_per_disk


VZ7 = Flavour(
    name="vz7",
    device_name=re.compile(r"ploop(0|[1-9][0-9]*)"),
    major=182,
    minors_per_disk=16,
    groups=frozenset({"pstate", "pdelta", "pstat", "ptune"}),
    fua=False,
    aborts=True,
    request_errno=_vz7_request_errno,
)

VZ9 = Flavour(
    name="vz9",
    device_name=re.compile(r"dm-(0|[1-9][0-9]*)"),
    major=253,
    minors_per_disk=1,
    groups=frozenset({"dm", "vz_trusted_exec"}),
    fua=True,
    aborts=False,
    request_errno=_block_layer_errno,
    mapped=True,
    schedulers=("mq-deadline", "kyber", "bfq", "none"),
    nr_requests=256,
    queue_depth=2048,
)

BLOCK = Flavour(
    name="block",
    device_name=re.compile(r"xvd([a-p])"),
    major=202,
    minors_per_disk=16,
    groups=frozenset(),
    fua=False,
    aborts=False,
    request_errno=_block_layer_errno,
    supports_standby=False,
    raw_only=True,
)
"""Any other disk of the machine, beside the ploops: it is in the tree, and its standby reads `not supported`."""

FLAVOURS = {flavour.name: flavour for flavour in (VZ7, VZ9, BLOCK)}
