"""What an image says of itself, read without a lock and without a judgement that opening would make.

For people who look at images that somebody else may be using. Never writes.
"""

from dataclasses import dataclass

import numpy as np

from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.file import Files
from ploopfs.engine.loading import read_extension
from ploopfs.engine.opening import StackSpec
from ploopfs.errors import PloopError
from ploopfs.image.bat import check_map_size, decode_area
from ploopfs.image.check import check_image
from ploopfs.image.header import BAT_ENTRY_BYTES, HEADER_BYTES, Header
from ploopfs.image.stacking import check_depth


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One file of a stack. `header` and `exit_code` (of the original's check) are None for a raw base."""

    path: str
    file_size_bytes: int
    header: Header | None
    allocated_clusters: int | None
    exit_code: int | None
    problems: tuple[str, ...]


async def inspect_stack(files: Files, spec: StackSpec) -> list[ImageInfo]:
    """Base first. Raises BackendError; BadImage for a file whose header no reader accepts, or whose map is too large to
    be read into memory; ImageMismatch for more files than a stack has."""
    check_depth([image.path for image in spec.images])
    return [await _inspect(files, image) for image in spec.images]


async def _inspect(files: Files, image: ImageSpec) -> ImageInfo:
    file = await files.open(image.path, writable=False)
    try:
        size = await file.size()
        if image.raw:
            return ImageInfo(image.path, size, None, None, None, ())
        header = Header.parse(bytes(await file.read(0, HEADER_BYTES)), image.path)
        check_map_size(header, image.path)
        area = bytes(await file.read(0, min(size, header.bat_area_bytes)))
        report = check_image(header, area, size, image.path, await read_extension(file, header, size))
    finally:
        await file.aclose()
    problems: tuple[PloopError, ...] = report.problems
    # A file that ends inside its map may end inside an entry, too.
    entries = decode_area(area[: len(area) // BAT_ENTRY_BYTES * BAT_ENTRY_BYTES])
    allocated = int(np.count_nonzero(entries[: header.disk_clusters]))
    return ImageInfo(image.path, size, header, allocated, report.verdict.value, tuple(map(str, problems)))
