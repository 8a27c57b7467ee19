"""What is said of an image that says anything at all: a complaint with the file, the field and the value, or facts."""

import struct
from pathlib import Path

import pytest
import trio

from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.inspect import ImageInfo, inspect_stack
from ploopfs.engine.opening import StackSpec
from ploopfs.engine.os_file import OsFiles
from ploopfs.errors import BadImage
from ploopfs.image.header import CLOSED_V21, HEADER_BYTES, Header
from ploopfs.testing.images import ImageBuilder

SOUND = ImageBuilder(disk_clusters=4, clusters={0: b"a"}).build()
FIRST_BLOCK_OFFSET = 48


def inspected(path: Path, content: bytes, size_bytes: int = 0) -> ImageInfo:
    with path.open("wb") as file:
        file.write(content)
        file.truncate(max(size_bytes, len(content)))
    return trio.run(inspect_stack, OsFiles(), StackSpec((ImageSpec(str(path)),)))[0]


@pytest.mark.parametrize("length", range(HEADER_BYTES, HEADER_BYTES + 6))
def test_a_file_may_end_anywhere_inside_its_map(tmp_path: Path, length: int) -> None:
    info = inspected(tmp_path / "image.hds", SOUND[:length])
    assert (info.file_size_bytes, info.allocated_clusters) == (length, int(length >= HEADER_BYTES + 4))
    assert any("file size" in problem for problem in info.problems)


def test_a_map_that_no_memory_holds_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A header of 64 bytes claims a map of 2 TiB, and a sparse file has it."""
    header = bytearray(SOUND[:HEADER_BYTES])
    struct.pack_into("<I", header, FIRST_BLOCK_OFFSET, 0xFFFFFFC0)
    with pytest.raises(BadImage, match=r"image\.hds: m_FirstBlockOffset is 4294967232, expected a map of at most"):
        inspected(tmp_path / "image.hds", bytes(header), 1 << 41)


@pytest.mark.parametrize("sectors", [(1 << 64) - 64, 1 << 55, (1 << 54) - 64])
def test_an_extension_beyond_what_a_file_can_have_is_a_problem_of_the_image(tmp_path: Path, sectors: int) -> None:
    header = Header.parse(SOUND, "image").changed(in_use=CLOSED_V21, flags=0, extension_sectors=sectors)
    info = inspected(tmp_path / "image.hds", header.raw + SOUND[HEADER_BYTES:])
    assert info.exit_code == 11
    assert any(f"m_FormatExtensionOffset is {sectors}" in problem for problem in info.problems)
