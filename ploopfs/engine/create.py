"""Making images and snapshots on the machine's own file system: what `ploopfs create` and `ploopfs snapshot` do.

Blocking, for a command line. Invariant: a file appears whole and durable or not at all, and a descriptor names only
files that exist: the new delta first, then the descriptor through a rename; after the rename nothing is taken back.
Where the power failed meanwhile, or who made it was killed, what is left of a new image is named by no descriptor, and
is whole or opens nowhere.
"""

import errno
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ploopfs.bounds import MAX_DESCRIPTOR_BYTES
from ploopfs.engine import lock
from ploopfs.engine.answers import SURELY_NOT_WRITTEN
from ploopfs.engine.confined import ANYWHERE, close_image, open_image
from ploopfs.engine.opening import DESCRIPTOR_NAME
from ploopfs.errors import AlreadyExists, BackendError, Busy, ImageNotClosed, PloopError
from ploopfs.image.bat import check_map_size
from ploopfs.image.descriptor import Descriptor, new_descriptor, parse, serialise, with_snapshot
from ploopfs.image.header import HEADER_BYTES, SECTOR_BYTES, V2, Header, Version

BASE_IMAGE_NAME = "root.hds"
_IMAGE_MODE = 0o600
_DESCRIPTOR_MODE = 0o644
_SURELY_NOT_RENAMED = SURELY_NOT_WRITTEN | {errno.ENOENT, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(slots=True)
class Making:
    """What one operation makes, for who may end it. `check` is called between its steps, and raises when nobody wants
    it any more. `unfinished` are the files that are there, or may soon be, and are taken away if it ends now: what is
    still listed afterwards could not be. `undecided` is a descriptor of which nobody knows whether it is the new one:
    then what is unfinished stays, as the new one names it."""

    check: Callable[[], None] = lambda: None
    unfinished: list[str] = field(default_factory=list)
    undecided: str = ""


def create_image(
    path: str, *, size_sectors: int, cluster_sectors: int, version: Version, making: Making | None = None
) -> Header:
    """An empty image; the size is rounded up to whole clusters. Raises AlreadyExists, BadImage, BackendError."""
    header = Header.new(size_sectors=size_sectors, cluster_sectors=cluster_sectors, version=version, path=path)
    check_map_size(header, path)
    with _new_image(path, header, making or Making()):
        return header


def create_disk(
    directory: str, *, size_sectors: int, cluster_sectors: int, version: Version, making: Making | None = None
) -> str:
    """A directory with one empty image and its DiskDescriptor.xml; returns the descriptor's path."""
    making = making or Making()
    descriptor_path = posixpath.join(directory, DESCRIPTOR_NAME)
    image_path = posixpath.join(directory, BASE_IMAGE_NAME)
    header = Header.new(size_sectors=size_sectors, cluster_sectors=cluster_sectors, version=version, path=image_path)
    check_map_size(header, image_path)
    descriptor = new_descriptor(
        descriptor_path,
        disk_size_sectors=header.size_sectors,
        cylinders=header.cylinders,
        heads=header.heads,
        cluster_sectors=cluster_sectors,
        file=BASE_IMAGE_NAME,
    )
    with _mapped("create", directory):
        _make_directories(os.path.abspath(directory))
    if os.path.lexists(descriptor_path):
        raise AlreadyExists(f"{descriptor_path}: exists")
    with _new_image(image_path, header, making, is_named=False):
        _replace_file(descriptor_path, serialise(descriptor), making)
    _make_rename_durable(descriptor_path)
    return descriptor_path


def _make_directories(directory: str) -> None:
    """All that are missing, each of them durable: what is made below a name that is lost is lost with it."""
    made = [directory]
    while not os.path.isdir(os.path.dirname(made[-1])):
        made.append(os.path.dirname(made[-1]))
    os.makedirs(directory, exist_ok=True)
    for path in reversed(made):
        _sync_directory_of(path)


def snapshot_disk(descriptor_path: str, making: Making | None = None) -> tuple[str, str]:
    """Freeze the top of a disk that nobody uses and put an empty delta on it; returns (snapshot GUID, new file).

    Raises BackendError, BadDescriptor, BadImage, Busy, ImageLocked, ImageNotClosed.
    """
    making = making or Making()
    data = _read_file(descriptor_path)
    descriptor = parse(data, descriptor_path)
    snapshot_guid = _new_guid()
    new_file = f"{_without_guid(descriptor.images[0].file)}.{_new_guid()}"
    text = with_snapshot(data, descriptor_path, snapshot_guid=snapshot_guid, new_file=new_file)
    new_path = parse(text, descriptor_path).chain()[-1].path
    with _unused(descriptor.chain()[-1].path) as fd:
        # Another snapshot may have been taken before the lock was ours; its delta must not drop out of the descriptor.
        if _read_file(descriptor_path) != data:
            raise Busy(f"{descriptor_path}: another operation has just changed it")
        with _new_image(new_path, _delta_header(fd, descriptor), making):
            _replace_file(descriptor_path, text, making)
        _make_rename_durable(descriptor_path)
    return snapshot_guid, new_path


def _delta_header(fd: int, descriptor: Descriptor) -> Header:
    """The header of an empty delta above the open top: same cluster, size and version; v2 above a raw base."""
    chain = descriptor.chain()
    path = chain[-1].path
    if descriptor.raw_base and len(chain) == 1:
        with _mapped("stat", path):
            size_sectors = os.fstat(fd).st_size // SECTOR_BYTES
        return Header.new(size_sectors=size_sectors, cluster_sectors=descriptor.cluster_sectors, version=V2, path=path)
    with _mapped("read", path):
        data = os.pread(fd, HEADER_BYTES, 0)
    top = Header.parse(data, path)
    if top.is_marked_in_use:
        raise ImageNotClosed(f"{path}: m_DiskInUse is {top.in_use:#x}: the image is in use or was not closed")
    return Header.new(
        size_sectors=top.disk_clusters * top.cluster_sectors,
        cluster_sectors=top.cluster_sectors,
        version=top.version,
        path=path,
    )


@contextmanager
def _unused(path: str) -> Iterator[int]:
    """The image, open and locked as for writing, so that nobody serves it meanwhile."""
    with _mapped("open", path):
        fd = open_image(path, os.O_RDWR, ANYWHERE)
    try:
        with _mapped("lock", path):
            lock.claim(fd, path, writable=True)
        yield fd
    finally:
        close_image(fd)


@contextmanager
def _new_image(path: str, header: Header, making: Making, *, is_named: bool = True) -> Iterator[None]:
    """An empty image where nothing was, durable when the block starts; gone again if the block fails. `is_named`: it is
    somebody's as it is, without the block."""
    making.check()
    making.unfinished.append(path)
    try:
        with _mapped("create", path):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _IMAGE_MODE)
    except BackendError as error:
        making.unfinished.remove(path)
        if error.errno == AlreadyExists.errno:
            raise AlreadyExists(f"{path}: exists{_left_by_a_kill(path, is_named=is_named)}") from error
        raise
    with _taken_away_unless_done(path, making):
        with _mapped("write", path):
            _write_and_close(fd, header.raw, size_bytes=header.bat_area_bytes)
            making.check()
            _sync_directory_of(path)
        yield


def _left_by_a_kill(path: str, *, is_named: bool) -> str:
    """What to do about what stands in the way, if it is nothing but what a create leaves that was killed."""
    try:
        fd = open_image(path, os.O_RDONLY, ANYWHERE)
        try:
            size, data = os.fstat(fd).st_size, os.pread(fd, HEADER_BYTES, 0)
        finally:
            os.close(fd)
        header = Header.parse(data, path) if size else None
    except (OSError, PloopError):
        return ""
    whole = header.bat_area_bytes if header else 1
    if header is not None and header.is_marked_in_use:
        return ""
    if size < whole:
        return f", and is no whole image (it has {size} bytes), as a `create` that was killed leaves one: remove it"
    if size == whole and not is_named:
        return f", empty and without a {DESCRIPTOR_NAME}, as a `create` that was killed leaves it: remove it"
    return ""


@contextmanager
def _taken_away_unless_done(path: str, making: Making) -> Iterator[None]:
    """The file is unfinished inside."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # what stays is told by who asks what is unfinished
            if not making.undecided:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                making.unfinished.remove(path)
        raise
    making.unfinished.remove(path)


def _replace_file(path: str, data: bytes, making: Making) -> None:
    """Through PATH.tmp, fsync and rename, as the original tools store a descriptor; a failure leaves PATH as it was, or
    the storage was lost in the rename, which may have been done."""
    temporary = f"{path}.tmp"
    making.check()
    making.unfinished.append(temporary)
    with _mapped("write", temporary), _taken_away_unless_done(temporary, making):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _DESCRIPTOR_MODE)
        _write_and_close(fd, data, size_bytes=len(data))
        making.check()
        making.undecided = path
        try:
            os.rename(temporary, path)
        except OSError as error:
            if error.errno in _SURELY_NOT_RENAMED:
                making.undecided = ""
            raise
        making.undecided = ""


def _make_rename_durable(path: str) -> None:
    """Not part of the replacement: a failure here leaves both the new name and what it names in place."""
    with _mapped("fsync", path):
        _sync_directory_of(path)


def _write_and_close(fd: int, data: bytes, *, size_bytes: int) -> None:
    """`data`, then zeroes up to `size_bytes`, on stable storage."""
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.ftruncate(fd, size_bytes)
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_file(path: str) -> bytes:
    with _mapped("read", path), os.fdopen(open_image(path, os.O_RDONLY, ANYWHERE), "rb") as file:
        return file.read(MAX_DESCRIPTOR_BYTES + 1)


def _sync_directory_of(path: str) -> None:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _mapped(operation: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackendError(error.errno or BackendError.errno, operation, path) from error


def _new_guid() -> str:
    return f"{{{uuid.uuid4()}}}"


def _without_guid(file: str) -> str:
    stem, brace, rest = file.rpartition(".{")
    return stem if brace and rest.endswith("}") else file
