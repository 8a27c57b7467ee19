"""What differs between the two generations of ploop, as frozen values.

Nothing else in the project asks which flavour a device has: it asks a flavour's field. Knows nothing of devices.
"""

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass

from ploopfs.device.stats import Op


def _vz7_request_errno(op: Op, storage_errno: int) -> int:
    """vz7 hands the storage's errno up as it is; a failed fsync is always EIO (kernel-ploop.md 1.3)."""
    return errno.EIO if op is Op.FLUSH else storage_errno


@dataclass(frozen=True, slots=True)
class Flavour:
    """One generation's values.

    `request_errno(op, storage_errno)` is the errno that the failing request itself gets. `groups` names the attribute
    directories beside `queue/`. `aborts`: a failed request that does not mean standby sets the `aborted` state.
    """

    name: str
    device_name: re.Pattern[str]
    major: int
    minors_per_disk: int
    groups: frozenset[str]
    fua: bool
    aborts: bool
    request_errno: Callable[[Op, int], int]

    def minor(self, device_name: str) -> int:
        """The first minor of a device with a valid name of this flavour."""
        match = self.device_name.fullmatch(device_name)
        assert match is not None
        return int(match.group(1)) * self.minors_per_disk


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

FLAVOURS = {flavour.name: flavour for flavour in (VZ7,)}
