"""Every expected failure, each a class with its errno.

`str(error)` is the reason in words, for logs and `last_error`; `errno` is what the caller of the tree sees.
An exception that is not a `PloopError` is a bug. Knows nothing of the rest of the project.
"""

import errno as _errno
import os
from collections.abc import Sequence

# The kernel takes only these from a FUSE server and leaves a request with any other for ever without an answer. Network
# file systems do leak numbers above it (524), which arrive as a backend's errno.
_ANSWERS = range(1, 512)


class PloopError(Exception):
    """Base of every failure that this project expects."""

    errno: int = _errno.EIO

    @property
    def answer(self) -> int:
        """`errno`, as far as FUSE can carry it."""
        return self.errno if self.errno in _ANSWERS else _errno.EIO


# --- images and descriptors ---------------------------------------------------------------------------------------


class BadImage(PloopError):
    """An image breaks a rule of the format; names the file, the field and the value. `mapped_errno` is the answer that
    dm-ploop has for it where vz7 and the command line have EINVAL."""

    errno = _errno.EINVAL

    def __init__(
        self, path: str, field: str, value: object, expected: str, *, mapped_errno: int = _errno.EINVAL
    ) -> None:
        super().__init__(f"{path}: {field} is {value}, expected {expected}")
        self.path, self.field, self.value, self.expected = path, field, value, expected
        self.mapped_errno = mapped_errno

    def with_advice(self, advice: str) -> "BadImage":
        """The same, with what to do about it."""
        expected = f"{self.expected}; {advice}"
        return BadImage(self.path, self.field, self.value, expected, mapped_errno=self.mapped_errno)


class ImageRefused(PloopError):
    """An image does not fit the device-mapper table that names it; `errno` is dm-ploop's answer."""

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno


class BadDescriptor(PloopError):
    """A DiskDescriptor.xml breaks a rule; `line` is 0 where no single line is to blame."""

    errno = _errno.EINVAL

    def __init__(self, path: str, reason: str, *, line: int = 0) -> None:
        super().__init__(f"{path}:{line}: {reason}" if line else f"{path}: {reason}")
        self.path, self.reason, self.line = path, reason, line


class ImageNotClosed(PloopError):
    """The in-use mark is set: the image is open elsewhere or was not closed."""

    errno = _errno.EBUSY


class ImageConverting(PloopError):
    """A format conversion of this image was interrupted (mark and CIF_FmtVersionConvert set)."""

    errno = _errno.EBUSY


class RepairFailed(PloopError):
    """The second check of a repaired image found something: it keeps its in-use mark."""


class ImageLocked(PloopError):
    """Another process (a second daemon, QEMU) holds the image."""

    errno = _errno.EBUSY


class ImageFull(PloopError):
    """No cluster number is left in this image's block map."""

    errno = _errno.E2BIG


class ImageMismatch(PloopError):
    """An image does not fit the stack or the device that it is to join."""

    errno = _errno.EINVAL


class LevelTooLarge(PloopError):
    """A delta that user space has changed is larger than the one above it."""

    errno = _errno.EFBIG


class WrongLevel(PloopError):
    """A level whose image cannot do what is asked: a raw one cannot be a top."""

    errno = _errno.EBADSLT


class WrongLength(PloopError):
    """A file that user space has changed is not a whole number of clusters long."""

    errno = _errno.EPROTO


class NotSupported(PloopError):
    """The kernel's ENOTSUPP, which has no name in user space, and which FUSE cannot carry."""

    errno = 524


class Interrupted(PloopError):
    """A long operation was told to end before it was done."""

    errno = _errno.EINTR


class NothingTracked(PloopError):
    """No cluster has been written since it was last asked about."""

    errno = _errno.EAGAIN


# --- storage ------------------------------------------------------------------------------------------------------


_STORE_IS_GONE = frozenset({_errno.ECONNABORTED, _errno.EBADFD})


class BackendError(PloopError):
    """The storage below an image answered an operation with an errno: the only failure that can mean standby."""

    def __init__(self, errno: int, operation: str, path: str, *, offset: int = 0, length: int = 0) -> None:
        super().__init__(errno, operation, path)
        self.errno = errno
        self.operation, self.path, self.offset, self.length = operation, path, offset, length

    @classmethod
    def of(cls, error: OSError, operation: str, path: str, *, offset: int = 0, length: int = 0) -> "BackendError":
        """What the kernel answered. It answers what a FUSE server had when it died with ECONNABORTED, and everything
        later with ENOTCONN. GlusterFS, whose brick is gone, answers EBADFD for a file with a lock, as ours are, and
        ENOTCONN for others. That is one event, the store is gone, and it bears the name that the specification knows.
        """
        number = _errno.ENOTCONN if error.errno in _STORE_IS_GONE else error.errno or _errno.EIO
        return cls(number, operation, path, offset=offset, length=length)

    def __str__(self) -> str:
        where = f" {self.length} bytes at {self.offset}" if self.length else ""
        name = _errno.errorcode.get(self.errno, str(self.errno))
        return f"{self.path}: {self.operation}{where}: {name} ({os.strerror(self.errno)})"


class TruncatedImage(PloopError):
    """A mapped cluster ends before its length: somebody shortened the file under us. Not an answer of the storage."""


# --- requests -----------------------------------------------------------------------------------------------------


class InStandby(PloopError):
    """Refused at the gate: the device is in standby."""


class DeviceAborted(PloopError):
    """A write refused at the gate: vz7's aborted state."""


class RequestFailed(PloopError):
    """A request met a storage error; `errno` is what its flavour reports for it."""

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno


class QueueFull(PloopError):
    """The bound on requests in a device's queue is reached."""


class ParkTimeout(PloopError):
    """A request waited in a quiesced or suspended queue for longer than the bound."""


class HoldFull(PloopError):
    """In standby no further request is held: the bound on their number or bytes is reached."""


class HoldTimeout(PloopError):
    """A request was held in standby for longer than `hold_timeout_ms`."""


class HeldFailed(PloopError):
    """A held request was failed by hand."""


class ShuttingDown(PloopError):
    """A request that waited when the daemon was told to end."""


class QuiesceTimeout(PloopError):
    """Requests in flight did not end within the bound, so the stack cannot be swapped."""

    errno = _errno.EBUSY


class StorageTimeout(PloopError):
    """The storage neither answered nor failed within the bound."""

    errno = _errno.ETIMEDOUT


class CommandFailed(PloopError):
    """A user's program that was to recover a device could not be started, failed, or left it in standby."""


class BeyondEnd(PloopError):
    """A write at or past the end of the device, as a block device answers it."""

    errno = _errno.ENOSPC


class ReadOnly(PloopError):
    """A write to a read-only device."""

    errno = _errno.EROFS


# --- devices, tree, configuration ---------------------------------------------------------------------------------


class BadValue(PloopError):
    """A value that an attribute, a control file or an argument does not take."""

    errno = _errno.EINVAL


class TargetFailed(PloopError):
    """A request to a device whose table is an error target."""


class MessageNotSupported(PloopError):
    """A message that is none, or not for this image. The kernel's ENOTSUPP (524) could not travel through FUSE."""

    errno = _errno.EOPNOTSUPP


class NoResume(PloopError):
    """A resume that a message has forbidden."""

    errno = _errno.EAGAIN


class BadRequest(PloopError):
    """The bytes of a connection to the kernel are no request that it could have sent; `unique` is the one to answer, 0
    if not even that is known."""

    def __init__(self, unique: int, reason: str) -> None:
        super().__init__(reason)
        self.unique = unique


class NoSuchFile(PloopError):
    """A request for an open file that is none."""

    errno = _errno.EBADF


class NotForDisks(PloopError):
    """A request that a disk does not know; ENOSYS where the kernel then does it by itself and asks no second time."""

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno


class NoDataBeyond(PloopError):
    """From here to the end of the device there is neither data nor a hole to find."""

    errno = _errno.ENXIO


class NoSuchDevice(PloopError):
    """No device (any more) of that name."""

    errno = _errno.ENODEV


class NoSuchEntry(PloopError):
    """No delta, node or entry of that name."""

    errno = _errno.ENOENT


class AlreadyExists(PloopError):
    """The name, number or file is taken."""

    errno = _errno.EEXIST


class Busy(PloopError):
    """Another operation of the same kind is under way, or the object is in use."""

    errno = _errno.EBUSY


class NotUnique(PloopError):
    """A number that must be one's own is another's."""

    errno = _errno.EBADSLT


class NoMedium(PloopError):
    """The file behind a device of the target subsystem is closed."""

    errno = _errno.EMEDIUMTYPE


class TooManyOpen(PloopError):
    """The bound on the open files of a tree is reached."""

    errno = _errno.ENFILE


class LimitReached(PloopError):
    """The bound on how many of a kind may exist is reached."""

    errno = _errno.ENOSPC


class PermissionDenied(PloopError):
    """An attribute (even for root, as in kernfs) or an image is not open in the direction that is asked for."""

    errno = _errno.EACCES


class OutsideAllowedDirs(PloopError):
    """A file lies in none of the directories in which the configuration allows images."""

    errno = _errno.EACCES

    def __init__(self, path: str, place: str, allowed: Sequence[str]) -> None:
        at = "" if place == path else f", which is {place},"
        super().__init__(f"{path}{at} lies in none of allowed_dirs: {', '.join(allowed)}")


class NotPermitted(PloopError):
    """A change of the namespace, which a sysfs-like tree never allows."""

    errno = _errno.EPERM


class ConfigError(PloopError):
    """A configuration breaks a rule; names file, line, the path of the key and what was expected."""

    errno = _errno.EINVAL


class Unmet(PloopError):
    """A rehearsal found something else than its scenario expects."""


class MountError(PloopError):
    """A mountpoint cannot be used; says why and what would help."""

    errno = _errno.EBUSY


class BadTree(PloopError):
    """A file of a mounted tree holds what no daemon of ours writes: anybody can mount something of that name."""

    errno = _errno.EPROTO

    def __init__(self, path: str, value: str, expected: str) -> None:
        shown = value if len(value) <= 60 else value[:60] + "..."
        super().__init__(f"{path}: is {shown!r}, expected {expected}")


class NamespaceError(PloopError):
    """The view of a command cannot be arranged: a right, a kernel feature or a free name is missing."""

    errno = _errno.EPERM
