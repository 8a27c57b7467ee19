"""Looking at a whole image costs little, however large it is or says that it is."""

import errno
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trio

from ploopfs.engine import checking
from ploopfs.engine.checking import Examined, examine
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.repair import plan_for
from ploopfs.errors import BadImage, PloopError, TruncatedImage
from ploopfs.image.check import Verdict
from ploopfs.image.header import HEADER_BYTES, V2, Header
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.engine.bitmaps import with_bitmap

MIB = 1 << 20
LARGE = 4 * MIB
"""Clusters of a disk of 4 TiB: a map of 16 MiB."""
CLUSTER = 32768


async def examined(path: str, progress: Callable[[str, int, int], None] = checking.no_progress) -> Examined:
    file = await OsFiles().open(path, writable=False)
    try:
        return await examine(file, progress)
    finally:
        await file.aclose()


def peak_of(path: Path) -> tuple[Examined | PloopError, int]:
    """What comes of it, and the memory that it took at most."""
    tracemalloc.start()
    try:
        try:
            found: Examined | PloopError = trio.run(examined, str(path))
        except PloopError as error:
            found = error
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def large(path: Path, count: int, entries: Callable[[int], np.ndarray[tuple[int], np.dtype[np.uint32]]]) -> None:
    """`entries` gets the number of the first data cluster."""
    header = Header.new(size_sectors=count * 2048, cluster_sectors=2048, version=V2)
    with path.open("wb") as file:
        file.write(header.raw)
        file.write(entries(header.first_cluster).astype("<u4").tobytes())
        file.truncate((header.first_cluster + count) * MIB)


@pytest.mark.slow
def test_a_map_of_16_mib_is_checked_with_less_memory_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "large.hds"
    large(path, LARGE, lambda first: np.arange(LARGE, dtype=np.uint32)[::-1] + first)
    found, peak = peak_of(path)
    assert isinstance(found, Examined)
    assert (found.report.verdict, found.leaked_clusters) == (Verdict.CLEAN, 0)
    assert peak < 14 * MIB


@pytest.mark.slow
def test_a_plan_for_a_map_in_which_every_entry_is_bad_costs_a_few_times_the_map(tmp_path: Path) -> None:
    path = tmp_path / "large.hds"
    large(path, MIB, lambda _first: np.full(MIB, 0xFFFFFFF0, dtype=np.uint32))
    tracemalloc.start()
    try:
        plan = plan_for(trio.run(examined, str(path)))
        assert plan is not None
        assert (plan.losses, plan.count()) == (MIB, MIB + 1)
        assert tracemalloc.get_traced_memory()[1] < 10 * 4 * MIB
    finally:
        tracemalloc.stop()


def hostile(path: Path, *, clusters: int, first_sectors: int, size: int, entries: bytes = b"") -> Path:
    header = bytearray(ImageBuilder().build()[:HEADER_BYTES])
    struct.pack_into("<IQ", header, 32, clusters, clusters * 64)
    struct.pack_into("<I", header, 48, first_sectors)
    path.write_bytes((header + entries).ljust(8192, b"\0"))
    with path.open("r+b") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("size", [8192, 1 << 43], ids=["a small file", "a sparse file"])
def test_a_header_that_says_too_much_is_refused_before_anything_is_read(tmp_path: Path, size: int) -> None:
    path = hostile(tmp_path / "a.hds", clusters=0xFFFFFFFF, first_sectors=0x2000040, size=size)
    found, peak = peak_of(path)
    assert isinstance(found, BadImage)
    assert found.field == "m_FirstBlockOffset"
    assert peak < 2 * MIB


def test_a_sparse_file_of_terabytes_costs_a_bit_for_each_cluster_at_most(tmp_path: Path) -> None:
    entries = struct.pack("<1000I", *range(1, 250_000_001, 250_000))
    path = hostile(tmp_path / "a.hds", clusters=1000, first_sectors=64, size=1 << 43, entries=entries)
    found, peak = peak_of(path)
    assert isinstance(found, Examined)
    assert (found.report.verdict, found.leaked_clusters) == (Verdict.CLEAN, (1 << 28) - 1 - 1000)
    assert peak < (1 << 28) // 8 + 4 * MIB
    plan = plan_for(found)
    assert plan is not None
    assert plan.count() == 1000, "999 gaps, and the end"


def test_progress_tells_how_much_of_the_map_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.hds"
    path.write_bytes(ImageBuilder(20000).build())
    monkeypatch.setattr("ploopfs.image.survey.PIECE_BYTES", CLUSTER)
    told: list[tuple[str, int, int]] = []
    trio.run(examined, str(path), lambda *what: told.append(what))
    area = 3 * CLUSTER
    ends = [HEADER_BYTES + CLUSTER, HEADER_BYTES + 2 * CLUSTER, area]
    assert told == [("reading the map", end, area) for end in ends]


async def test_a_file_that_is_cut_meanwhile_is_no_clean_image(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MemoryFiles()
    memory.put("image", ImageBuilder(20000, clusters={0: b"x"}).build())
    file = await memory.open("image", writable=False)
    size = await file.size()

    async def as_it_was() -> int:
        return size

    monkeypatch.setattr(file, "size", as_it_was)
    del memory.images["image"].data[CLUSTER:]
    with pytest.raises(TruncatedImage, match=f"ends at {CLUSTER}, expected"):
        await examine(file)


async def test_a_file_shorter_than_the_original_reads_first_is_too_short() -> None:
    memory = MemoryFiles()
    memory.put("image", ImageBuilder().build()[:4095])
    with pytest.raises(BadImage, match="file size is 4095 bytes, expected at least 4096") as raised:
        await examine(await memory.open("image", writable=False))
    assert raised.value.mapped_errno == errno.ENODATA


async def test_a_sound_extension_is_no_leak_and_a_stale_one_is() -> None:
    memory = MemoryFiles()
    image = with_bitmap(ImageBuilder(clusters={0: b"x"}).build(), [b"\1"])
    memory.put("image", image)
    assert (await examine(await memory.open("image", writable=False))).leaked_clusters == 0
    memory.put("image", image[:44] + bytes(4) + image[48:])
    found = await examine(await memory.open("image", writable=False))
    assert (found.report.verdict, found.leaked_clusters) == (Verdict.CLEAN, 2)
