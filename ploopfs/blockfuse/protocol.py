"""The kernel's FUSE protocol as far as one regular file needs it: bytes of /dev/fuse become requests.

Sans-IO: knows no descriptor. The layouts are those of include/uapi/linux/fuse.h in version 7.38 of the ABI (Linux 6.2),
in the machine's byte order and without padding of the compiler; the ABI only ever appends. The root of the mount is the
file itself, so there are no names. Invariant: whatever the bytes are, `parse` answers with a request or `BadRequest`.
"""

from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

from ploopfs.errors import BadRequest

MAJOR, MINOR = 7, 38
LEAST_MINOR = 28
"""Of the kernel: FUSE_MAX_PAGES came with it (Linux 4.20)."""

ROOT = 1
"""The only node: the file."""

# struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
HEADER = Struct("=IIQQIIIHH")
# The header, and what fuse_read_in and fuse_write_in begin with: len, opcode, unique, nodeid, pid, fh, offset, size
TRANSFER = Struct("=IIQQ8xI4xQQI")
TRANSFER_BYTES = 80
"""A whole FUSE_READ, and a FUSE_WRITE without its data: both structs have 40 bytes."""

NS = 1_000_000_000

_EMPTY = Struct("=")
_TRANSFER_BODY = Struct("=QQI20x")
_INIT = Struct("=IIII")  # major, minor, max_readahead, flags; longer since 7.36
_SETATTR = Struct("=I4xQQ8xqq8xII4xI4xII4x")  # valid, fh, size, atime, mtime and their nsec, mode, uid, gid
_OPEN = Struct("=I4x")
_RELEASE = Struct("=Q16x")
_FSYNC = Struct("=Q8x")
_INTERRUPT = Struct("=Q")
_IOCTL = Struct("=QIIQII")  # fh, flags, cmd, arg, in_size, out_size
_FALLOCATE = Struct("=QQQI4x")  # fh, offset, length, mode
_LSEEK = Struct("=QQI4x")  # fh, offset, whence

READ, WRITE, FORGET, INTERRUPT, BATCH_FORGET = 15, 16, 2, 36, 42
NO_REPLY = frozenset({FORGET, INTERRUPT, BATCH_FORGET})


class Init(NamedTuple):
    major: int
    minor: int
    max_readahead: int
    flags: int


class GetAttr(NamedTuple):
    """Of the file: which open file asks makes no difference."""


MODE, UID, GID, SIZE, ATIME, MTIME, ATIME_NOW, MTIME_NOW = (1 << bit for bit in (0, 1, 2, 3, 4, 5, 7, 8))
"""FATTR_ bits of SetAttr."""


class SetAttr(NamedTuple):
    """`valid`: which of the rest count."""

    valid: int
    size: int
    atime_ns: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int


class Open(NamedTuple):
    flags: int


class Read(NamedTuple):
    fh: int
    offset: int
    size: int


class Write(NamedTuple):
    """`data` lies in the bytes that were parsed."""

    fh: int
    offset: int
    data: memoryview


class Release(NamedTuple):
    fh: int


class Fsync(NamedTuple):
    fh: int


class Interrupt(NamedTuple):
    """`target` is the `unique` of another request."""

    target: int


class Ioctl(NamedTuple):
    fh: int
    command: int
    out_size: int


class Fallocate(NamedTuple):
    fh: int
    offset: int
    length: int
    mode: int


class Lseek(NamedTuple):
    fh: int
    offset: int
    whence: int


class StatFs(NamedTuple):
    """Of the file system that the file is."""


class Destroy(NamedTuple):
    """The last request of a connection, where the kernel sends it."""


class Forget(NamedTuple):
    """FORGET and BATCH_FORGET: the root is never forgotten."""


class Unknown(NamedTuple):
    """Answered with ENOSYS, which the kernel remembers of many: then it does not ask again."""

    opcode: int


Body = (
    Init
    | GetAttr
    | SetAttr
    | Open
    | Read
    | Write
    | Release
    | Fsync
    | Interrupt
    | Ioctl
    | Fallocate
    | Lseek
    | StatFs
    | Destroy
    | Forget
    | Unknown
)


class Request(NamedTuple):
    """`unique` names it in its answer. `pid` is the thread that waits for it; 0 if there is none, or none that the
    mount's own name space knows."""

    unique: int
    uid: int
    pid: int
    body: Body


def parse(data: memoryview) -> Request:
    """One read of /dev/fuse is one request."""
    if len(data) < HEADER.size:
        raise BadRequest(0, f"{len(data)} bytes are no request, whose header alone has {HEADER.size}")
    length, opcode, unique, node, uid, _gid, pid, extensions, _ = HEADER.unpack_from(data)
    if length != len(data):
        raise BadRequest(unique, f"a request of {length} bytes came as {len(data)}")
    if opcode not in _OPCODES_OF_NO_NODE and node != ROOT:
        raise BadRequest(unique, f"request {opcode} is for node {node}, and there is but {ROOT}")
    # Extensions follow whatever the request is; a length of 8 bytes each.
    body = data[HEADER.size : length - 8 * extensions] if 8 * extensions <= length - HEADER.size else data[:0]
    layout = _LAYOUTS.get(opcode)
    if layout is None:
        return Request(unique, uid, pid, Unknown(opcode))
    struct, build = layout
    if len(body) < struct.size:
        raise BadRequest(unique, f"request {opcode} has {len(body)} bytes, at least {struct.size} were expected")
    return Request(unique, uid, pid, build(unique, struct.unpack_from(body), body))


def _set_attr(_unique: int, fields: tuple[int, ...], _body: memoryview) -> SetAttr:
    valid, _fh, size, atime, mtime, atime_nsec, mtime_nsec, mode, uid, gid = fields
    return SetAttr(valid, size, atime * NS + atime_nsec, mtime * NS + mtime_nsec, mode, uid, gid)


def _write(unique: int, fields: tuple[int, ...], body: memoryview) -> Write:
    fh, offset, size = fields
    if size != len(body) - _TRANSFER_BODY.size:
        raise BadRequest(unique, f"a write of {size} bytes came with {len(body) - _TRANSFER_BODY.size}")
    return Write(fh, offset, body[_TRANSFER_BODY.size :])


def _ioctl(_unique: int, fields: tuple[int, ...], _body: memoryview) -> Ioctl:
    fh, _flags, command, _argument, _in_size, out_size = fields
    return Ioctl(fh, command, out_size)


def _as(kind: Callable[..., Body]) -> Callable[[int, tuple[int, ...], memoryview], Body]:
    return lambda _unique, fields, _body: kind(*fields)


_OPCODES_OF_NO_NODE = frozenset({26, 36, 38, 42})
"""INIT, INTERRUPT, DESTROY, BATCH_FORGET."""

_LAYOUTS: dict[int, tuple[Struct, Callable[[int, tuple[int, ...], memoryview], Body]]] = {
    FORGET: (_EMPTY, _as(Forget)),
    3: (_EMPTY, _as(GetAttr)),
    4: (_SETATTR, _set_attr),
    14: (_OPEN, _as(Open)),
    READ: (_TRANSFER_BODY, _as(Read)),
    WRITE: (_TRANSFER_BODY, _write),
    17: (_EMPTY, _as(StatFs)),
    18: (_RELEASE, _as(Release)),
    20: (_FSYNC, _as(Fsync)),
    26: (_INIT, _as(Init)),
    INTERRUPT: (_INTERRUPT, _as(Interrupt)),
    38: (_EMPTY, _as(Destroy)),
    39: (_IOCTL, _ioctl),
    BATCH_FORGET: (_EMPTY, _as(Forget)),
    43: (_FALLOCATE, _as(Fallocate)),
    46: (_LSEEK, _as(Lseek)),
}
"""By opcode. What is not here (names, directories, extended attributes, locks, FLUSH, POLL, ACCESS) is answered with
ENOSYS, and the kernel does by itself what there is to do: close(2) of a block device promises nothing, a disk is always
ready, `default_permissions` checks access."""
