"""What an image says of itself, read without a lock and without a judgement that opening would make.

For people who look at images that somebody else may be using. Never writes.
"""

from dataclasses import dataclass

import numpy as np

from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.file import Files
from ploopfs.engine.opening import StackSpec
from ploopfs.errors import PloopError
from ploopfs.image.bat import decode_area
from ploopfs.image.check import check_image, extension_offset_bytes
from ploopfs.image.header import HEADER_BYTES, Header


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
    """Base first. Raises BackendError, and BadImage for a file whose header no reader accepts."""
    return [await _inspect(files, image) for image in spec.images]


async def _inspect(files: Files, image: ImageSpec) -> ImageInfo:
    file = await files.open(image.path, writable=False)
    try:
        size = await file.size()
        if image.raw:
            return ImageInfo(image.path, size, None, None, None, ())
        header = Header.parse(bytes(await file.read(0, HEADER_BYTES)), image.path)
        area = bytes(await file.read(0, min(size, header.bat_area_bytes)))
        offset = extension_offset_bytes(header)
        extension = bytes(await file.read(offset, header.cluster_bytes)) if offset else b""
        report = check_image(header, area, size, image.path, extension)
    finally:
        await file.aclose()
    problems: tuple[PloopError, ...] = report.problems
    allocated = int(np.count_nonzero(decode_area(area)[: header.disk_clusters]))
    return ImageInfo(image.path, size, header, allocated, report.verdict.value, tuple(map(str, problems)))
