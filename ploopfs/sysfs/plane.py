"""`ploopfs/data_plane` and `ploopfs/connection` of a device: the way that its data takes, and the control over it.

Knows no way itself, and no FUSE: who serves the disks has them (as `Plane`), and a tree that stands alone has none.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ploopfs.device.device import Device
from ploopfs.device.signal import Signal
from ploopfs.errors import BadValue, NotPermitted
from ploopfs.sysfs.nodes import Disk
from ploopfs.sysfs.parse import line
from ploopfs.sysfs.rows import Row


class DataPlane(enum.Enum):
    """`OWN`: a connection of the device's own, mounted over its file. `PYFUSE3`: the tree's, with all other files."""

    OWN = "own"
    PYFUSE3 = "pyfuse3"


class Connection(enum.Enum):
    """Of a device's own connection."""

    ATTACHED = "attached"
    """It is mounted over the disk's file, and serves it."""
    ABORTED = "aborted"
    """It is mounted and cut off: whoever has the disk open, or opens it, gets ENOTCONN."""
    DETACHED = "detached"
    """There is none: the tree serves the disk's file itself."""

    @property
    def data_plane(self) -> DataPlane:
        return DataPlane.PYFUSE3 if self is Connection.DETACHED else DataPlane.OWN


class Plane(Protocol):
    """The own connection of one device. A command whose state there is already does nothing."""

    @property
    def connection(self) -> Connection: ...

    @property
    def changed(self) -> Signal: ...

    async def wait_attached(self) -> None:
        """Raises PloopError; then it is as it was."""

    async def wait_detached(self) -> None:
        """Raises Busy if anybody has the disk open."""

    def abort(self) -> None:
        """Every request that is under way fails at once."""


Planes = Callable[[Device, Disk], Plane]
"""Of a device whose file in the tree is this node."""


class _Alone:
    connection = Connection.DETACHED

    def __init__(self) -> None:
        self.changed = Signal()

    async def wait_attached(self) -> None:
        raise NotPermitted("nobody serves the disk")

    async def wait_detached(self) -> None:
        """It is."""

    def abort(self) -> None:
        raise NotPermitted("nobody serves the disk")


def alone(_device: Device, _disk: Disk) -> Plane:
    """In a tree that nobody serves."""
    return _Alone()


@dataclass(frozen=True, slots=True)
class Carried:
    """A device, and the way that its data takes."""

    device: Device
    plane: Plane


async def _command(carried: Carried, text: str) -> None:
    with carried.device.why.explaining("connection"):
        match line(text):
            case "attach":
                await carried.plane.wait_attached()
            case "detach":
                await carried.plane.wait_detached()
            case "abort":
                carried.plane.abort()
            case other:
                raise BadValue(f"connection takes attach, detach or abort, not {other!r}")


CARRIED: tuple[Row[Carried], ...] = (
    Row(
        "data_plane",
        lambda carried: carried.plane.connection.data_plane.value,
        signal=lambda carried: carried.plane.changed,
    ),
    Row("connection", lambda carried: carried.plane.connection.value, _command, lambda carried: carried.plane.changed),
)
