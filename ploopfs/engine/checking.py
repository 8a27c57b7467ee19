"""One image file looked at whole: what the check says of it, and what could be given back.

The map is read in pieces, so that one of 16 million clusters takes seconds and little memory. Never writes.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ploopfs.engine.file import File
from ploopfs.engine.loading import read_whole
from ploopfs.errors import BadImage
from ploopfs.image.bat import Entries, check_map_size
from ploopfs.image.check import MODES, Report, area_problems, judge
from ploopfs.image.extension import extension_clusters, extension_offset_bytes, extension_problems
from ploopfs.image.header import HEADER_BYTES, Header
from ploopfs.image.survey import Survey, entries_of, pieces

MIN_IMAGE_BYTES = 4096
"""What the original reads first."""

Progress = Callable[[str, int, int], None]
"""What is done, how much of it, of how much."""


def no_progress(_what: str, _done: int, _whole: int) -> None:
    """Nobody looks."""


@dataclass(frozen=True, slots=True)
class Examined:
    """`codes` has the exit code of the original for each of its options; `report` is for `check -f -c -r`.

    `survey` is None where the map cannot be read. `extension_problem` is empty for a sound extension and for none;
    `extension_clusters` are those of a sound one, which are used as well."""

    path: str
    header: Header
    file_size_bytes: int
    report: Report
    codes: dict[str, int]
    survey: Survey | None = None
    extension_problem: str = ""
    extension_clusters: Entries = field(default_factory=lambda: np.zeros(0, np.uint32))

    @property
    def leaked_clusters(self) -> int:
        return self.survey.leaked_clusters if self.survey else 0


async def examine(file: File, progress: Progress = no_progress) -> Examined:
    """The image in an open and locked file.

    Raises BackendError; BadImage for a header that no reader accepts, a file shorter than the original wants to read,
    and a map that is too large; TruncatedImage if the file is shortened meanwhile."""
    path, size = file.path, await file.size()
    if size < MIN_IMAGE_BYTES:
        raise BadImage(path, "file size", f"{size} bytes", f"at least {MIN_IMAGE_BYTES}", mapped_errno=errno.ENODATA)
    header = Header.parse(bytes(await file.read(0, HEADER_BYTES)), path)
    check_map_size(header, path)
    survey = Survey(header, size)
    if any(area_problems(header, size, path)):
        return Examined(path, header, size, judge(survey, path, b""), _codes(survey, path, b""))
    for offset, length in pieces(header.bat_area_bytes):
        survey.feed(entries_of(await read_whole(file, offset, length)))
        progress("reading the map", offset + length, header.bat_area_bytes)
    offset = extension_offset_bytes(header)
    extension = b""
    if offset and offset + header.cluster_bytes <= size:
        extension = await read_whole(file, offset, header.cluster_bytes)
    report, codes = judge(survey, path, extension), _codes(survey, path, extension)
    last = max(survey.used.end, header.first_cluster) - 1
    problem = next(extension_problems(header, size, path, extension, last_data_cluster=last), None)
    taken = np.zeros(0, np.uint32)
    if problem is None:
        taken = np.array(list(extension_clusters(header, extension)), np.uint32)
        taken = taken[~survey.used.add(taken)]
    return Examined(path, header, size, report, codes, survey, str(problem or ""), taken)


def _codes(survey: Survey, path: str, extension: bytes) -> dict[str, int]:
    return {name: judge(survey, path, extension, mode=mode).verdict.value for name, mode in MODES.items()}
