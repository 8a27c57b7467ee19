"""What becomes of an image that was not closed when its disk is opened for writing: it is checked, and closed if it is
sound.

Invariants. What a crash of ours can leave is put right without a question: the mark, a file that ends inside a cluster
or behind the last one that is named, entries past the disk's end. Anything else is for a person, who is told the
command. The image is touched only under its exclusive lock, and only where a lock says that nobody else uses it.
"""

import logging
import shlex
from contextlib import suppress
from dataclasses import dataclass

from ploopfs.engine.checking import examine
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.file import Files
from ploopfs.engine.loading import dismiss
from ploopfs.engine.repair import carry_out, plan_for
from ploopfs.errors import BadImage, ImageNotClosed, PloopError
from ploopfs.image.check import Verdict

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Closed:
    """An image that was found unclosed and is closed now. `file_bytes_before` and `file_bytes` are its size."""

    path: str
    file_bytes_before: int
    file_bytes: int
    cleared_entries: int


async def close_unclosed(files: Files, image: ImageSpec) -> Closed | None:
    """None if the image bears no mark. Raises ImageNotClosed with the command where the image is not sound, or the mark
    is all that could keep two users apart; ImageConverting, ImageLocked, and what a repair raises."""
    file = await files.open(image.path, writable=True)
    try:
        await file.lock()
        examined = await examine(file)
        if not examined.header.is_marked_in_use:
            return None
        if not file.identity.has_locks:
            why = "its storage has no locks that reach beyond this mount, so it may be in use elsewhere"
            raise not_closed(image.path, why)
        if examined.report.verdict is not Verdict.NOT_CLOSED:
            raise examined.report.problems[0]
        plan = plan_for(examined, punches=False)
        assert plan is not None
        size, end = examined.file_size_bytes, plan.end_bytes
        await carry_out(file, plan)
    finally:
        await dismiss(file)
    closed = Closed(image.path, size, end, len(plan.cleared_slots))
    cut = f", cut from {size} to {end} bytes" if end < size else f", extended from {size} to {end} bytes"
    cleared = f", {closed.cleared_entries} entries past the disk's end cleared" if closed.cleared_entries else ""
    log.info("%s: was not closed; checked: sound%s%s", image.path, cut if end != size else "", cleared)
    return closed


def not_closed(path: str, why: str) -> ImageNotClosed:
    return ImageNotClosed(f"{path}: the image was not closed, and is not opened for writing: {why}; {advice(path)}")


async def advised(files: Files, error: BadImage) -> BadImage:
    """The same failure with the command that repairs the image, if one does: not where an image is sound by itself and
    does not fit into a stack, nor where its header is no header."""
    with suppress(PloopError):
        file = await files.open(error.path, writable=False)
        try:
            await file.lock()
            examined = await examine(file)
        finally:
            await dismiss(file)
        if examined.report.verdict is Verdict.BROKEN and examined.survey is not None:
            return error.with_advice(advice(error.path))
    return error


def advice(path: str) -> str:
    """What to do about an image that is not sound, or was not closed, for the end of a message."""
    quoted = shlex.quote(path)
    return f"`ploopfs check -n {quoted}` shows what `ploopfs check -r {quoted}` would repair"
