"""Whether the storage under images works: a real read of each, and a synced write in a scratch file beside the top.

Blocking: runs in a worker thread, in one piece, so that a probe which the storage holds up is one thread and leaves
nothing open when it ends at last. Invariants: nothing is written before the image itself was found and known again (a
mountpoint without its mount takes files, too), and then through the very directory in which it was found; no image is
ever written; the scratch file is removed, and what a dying storage kept of one is what the next probe removes.
"""

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ploopfs.bounds import MAX_REREAD_BYTES
from ploopfs.engine.confined import ANYWHERE, AllowedDirs, close_image, open_found
from ploopfs.errors import BackendError, ImageMismatch

SCRATCH_PREFIX = ".ploopfs-probe-"
READ_BYTES = 4096

_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS, errno.EINVAL})
_NO_VERDICT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM})
"""Answers to the scratch file that do not speak against the storage: it is full, or only the images are ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedImage:
    """`start` is what the file must begin with to be the image that is meant (empty: anything). `failed` is the offset
    and length of a read that the storage has failed, to be tried again. `write_beside`: a scratch file is written."""

    path: str
    start: bytes = b""
    failed: tuple[int, int] | None = None
    write_beside: bool = False


def scratch_name() -> str:
    """One for the whole life of a prober: it takes its own leftover again."""
    return SCRATCH_PREFIX + secrets.token_hex(8)


def probe(images: Sequence[ProbedImage], scratch: str, allowed: AllowedDirs = ANYWHERE) -> None:
    """Raises BackendError with the storage's first answer that speaks against it, ImageMismatch for another image, and
    what opening an image raises that can be none."""
    for image in images:
        with ExitStack() as opened:
            directory, name = os.path.split(os.path.realpath(image.path))
            with _asking("open", image.path):
                place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.callback(close_image, place)
                found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
                opened.callback(close_image, found)
                fd = open_found(found, image.path, os.O_RDONLY | os.O_NONBLOCK, allowed)
                opened.callback(close_image, fd)
            _check_image(fd, image)
            if image.write_beside:
                _write(place, os.path.join(directory, scratch), scratch)


def _check_image(fd: int, image: ProbedImage) -> None:
    if _read(fd, image.path, 0, READ_BYTES)[: len(image.start)] != image.start:
        raise ImageMismatch(f"{image.path}: the header is not the one that was opened")
    if image.failed is not None:
        offset, length = image.failed
        _read(fd, image.path, offset, min(length, MAX_REREAD_BYTES))


def _read(fd: int, path: str, offset: int, length: int) -> bytes:
    """Past the page cache, which would answer for a storage that is gone."""
    with _asking("read", path, offset, length):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, length, offset)


def _write(place: int, path: str, name: str) -> None:
    content = os.urandom(READ_BYTES)
    try:
        with _scratch_file(place, path, name) as fd:
            with _asking("write", path, 0, len(content)):
                if os.pwrite(fd, content, 0) != len(content):
                    return  # nearly full
            with _asking("fsync", path):
                os.fsync(fd)
            if _read(fd, path, 0, len(content)) != content:
                raise BackendError(errno.EIO, "read", path, length=len(content))
    except BackendError as error:
        if error.errno not in _NO_VERDICT:
            raise


@contextmanager
def _scratch_file(place: int, path: str, name: str) -> Iterator[int]:
    """Without a name where the file system can do that; else closed before it is removed, as an open file that is
    removed gets another name on NFS and FUSE."""
    flags = os.O_RDWR | os.O_CLOEXEC
    with ExitStack() as made:
        with _asking("open", path):
            try:
                fd = os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=place)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
                fd = os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=place)
                made.callback(_remove, place, path, name)
            made.callback(close_image, fd)
        yield fd


def _remove(place: int, path: str, name: str) -> None:
    with _asking("unlink", path):
        os.unlink(name, dir_fd=place)


@contextmanager
def _asking(operation: str, path: str, offset: int = 0, length: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackendError.of(error, operation, path, offset=offset, length=length) from error
