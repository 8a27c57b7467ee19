"""Opening one image as a delta: opened, locked, read and checked, before anything is written.

Knows nothing of stacks. Invariant: what could not be loaded is closed, or left to who opened it.
"""

import logging
from collections.abc import Callable

import trio

from ploopfs.bounds import CLOSE_TIMEOUT_S
from ploopfs.engine.delta import Delta, ImageSpec
from ploopfs.engine.file import Buffer, File, Files
from ploopfs.engine.memory import READ_ROOM
from ploopfs.errors import BackendError, ImageNotClosed, TruncatedImage
from ploopfs.image.bat import Bat, check_map_size
from ploopfs.image.check import Verdict, check_image
from ploopfs.image.extension import extension_offset_bytes
from ploopfs.image.header import MUTABLE_START, Header

log = logging.getLogger(__name__)

AcceptMark = Callable[[Header, Bat], bool]
"""Decides whether an in-use mark that is already set is our own (see device/replace.py)."""


async def open_delta(files: Files, spec: ImageSpec, *, writable: bool) -> Delta:
    """Open, lock, read and check one image; nothing is written yet. Raises as `load_delta`."""
    file = await files.open(spec.path, writable=writable)
    try:
        return await load_delta(file, raw=spec.raw)
    except BaseException:
        await dismiss(file)
        raise


async def load_delta(
    file: File, *, raw: bool, accept_mark: AcceptMark | None = None, locks_as_writer: bool = False
) -> Delta:
    """Lock, read and check the image in an open file, which whoever opened it closes if that fails. `locks_as_writer`:
    the image is written, through another open file of ours.

    Raises BackendError, ImageLocked, BadImage, ImageConverting, TruncatedImage, and ImageNotClosed for an image whose
    mark is set and that is to be written, unless `accept_mark` says that the mark is ours."""
    locks_as_writer |= file.writable
    await file.lock(as_writer=locks_as_writer)
    size = await file.size()
    if raw:
        delta = Delta(file, header=None, bat=None, file_size=size, trusted_size=size)
    else:
        delta = await _read_image(file, size, accept_mark)
    delta.locks_as_writer = locks_as_writer
    return delta


async def dismiss(file: File) -> None:
    """Close a file that comes into no use, also for who was cancelled. One with an operation that was given up stays
    open until that has ended, but not locked: nobody, ourselves included, could open the image meanwhile."""
    with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
        try:
            await file.unlock()
        except BackendError as error:
            log.info("%s", error)
        finally:
            await file.aclose()  # also if the lock did not go in time


async def reread(delta: Delta, accept_mark: AcceptMark | None = None) -> Delta:
    """The image in the open file of a delta as it is now: size, header and map, checked as when it was opened.

    The same open file, in another Delta; the given one is left alone. For what nobody keeps in memory (the map of a
    lower level), or somebody else may have written. Raises as `load_delta`, and closes nothing."""
    size = await delta.file.size()
    if delta.header is None:
        return Delta(delta.file, header=None, bat=None, file_size=size, trusted_size=size)
    return await _read_image(delta.file, size, accept_mark)


async def _read_image(file: File, size: int, accept_mark: AcceptMark | None) -> Delta:
    path = file.path
    # At once what most maps are, so that the storage is asked once.
    start = await _start_of(file, min(size, len(READ_ROOM)))
    header = Header.parse(bytes(start[: MUTABLE_START * 2]), path)
    check_map_size(header, path)
    extension = await read_extension(file, header, size)
    if extension or header.bat_area_bytes > len(start):
        start = await _start_of(file, min(size, header.bat_area_bytes))
    # From here on nothing is waited for: others may be given the same room.
    area = memoryview(start)[: header.bat_area_bytes]
    report = check_image(header, area, size, path, extension)
    match report.verdict:
        case Verdict.BROKEN | Verdict.CONVERTING:
            for problem in report.problems[1:]:
                log.info("%s", problem)
            raise report.problems[0]
        case Verdict.NOT_CLOSED if file.writable:
            bat = Bat(header, area)
            if accept_mark is None or not accept_mark(header, bat):
                raise ImageNotClosed(
                    f"{path}: m_DiskInUse is {header.in_use:#x}: the image is in use or was not closed"
                )
    # An image that was not closed may end inside a cluster; what the interrupted growth did not write reads as zeroes.
    whole = -(-size // header.cluster_bytes) * header.cluster_bytes
    return Delta(file, header=header, bat=Bat(header, area), file_size=size, trusted_size=whole)


async def _start_of(file: File, length: int) -> Buffer:
    """So many bytes, or all that there are. They stay as they are until something else is read."""
    if length <= len(READ_ROOM) and (at_hand := file.read_nowait(0, length, READ_ROOM[:length])) is not None:
        return at_hand
    return await file.read(0, length)


async def read_extension(file: File, header: Header, size: int) -> bytes:
    """The cluster of the format extension; empty where a valid one cannot lie, which the check says."""
    offset = extension_offset_bytes(header)
    if not offset or offset + header.cluster_bytes > size:
        return b""
    return await read_whole(file, offset, header.cluster_bytes)


async def read_whole(file: File, offset: int, length: int) -> bytes:
    """So many bytes. Raises TruncatedImage where the file has become shorter since it was looked at."""
    data = await file.read(offset, length)
    if len(data) < length:
        raise TruncatedImage(f"{file.path}: ends at {offset + len(data)}, expected {length} bytes at {offset}")
    return bytes(data)
