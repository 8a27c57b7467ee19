"""Which images make a stack, who may open it beside whom, and that nothing stays open or locked when it is refused."""

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from ploopfs.engine.counters import Counters
from ploopfs.engine.create import create_disk
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.file import OsFiles
from ploopfs.engine.opening import StackSpec, open_stack, resolve
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError, BadDescriptor, BadImage, ImageLocked, ImageMismatch, PloopError
from ploopfs.image.descriptor import MAX_DESCRIPTOR_BYTES
from ploopfs.image.header import IN_USE, V1, V2
from ploopfs.testing.faulty import Faults, FaultyFiles
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.engine.places import MemoryPlace, OsPlace, Place

CLUSTER = 32768
NOBODY: tuple[set[int], set[int]] = (set(), set())


async def open_images(files: MemoryFiles, *names: str, read_only: bool = False, sectors: int | None = None) -> Stack:
    spec = StackSpec(tuple(ImageSpec(name, raw=name.endswith(".raw")) for name in names), sectors)
    return await open_stack(files, spec, read_only=read_only, counters=Counters())


@pytest.fixture
def files() -> MemoryFiles:
    files = MemoryFiles()
    files.put("base", ImageBuilder(clusters={0: b"b" * CLUSTER}).build())
    files.put("top", ImageBuilder(clusters={1: b"t" * CLUSTER}).build())
    files.put("longer", ImageBuilder(disk_clusters=6, clusters={5: b"l" * CLUSTER}).build())
    files.put("v1", ImageBuilder(version=V1).build())
    files.put("coarse", ImageBuilder(cluster_sectors=128).build())
    files.put("used", ImageBuilder(in_use=IN_USE).build())
    files.put("short.raw", b"r" * (2 * CLUSTER + 512))
    files.put("odd.raw", b"r" * 1000)
    files.put("empty.raw", b"")
    files.put("broken", b"WithoutFreeSpace")
    return files


MISFITS = {
    ("v1", "top"): (BadImage, r"v1: m_Sig is version 1, expected version 2, as the top \(top\) has"),
    ("coarse", "top"): (BadImage, r"coarse: m_Sectors is 128, expected 64, as the top \(top\) has"),
    ("longer", "top"): (BadImage, r"longer: m_SizeInSectors is 384, expected at most 256"),
    ("base", "short.raw"): (ImageMismatch, r"short.raw: a raw image can only be the base"),
    ("odd.raw",): (BadImage, r"odd.raw: raw size is 1000 bytes, expected a multiple of 512"),
    ("empty.raw",): (BadImage, r"empty.raw: raw size is 0 bytes"),
    ("broken", "top"): (BadImage, r"broken: file size is 16 bytes"),
    ("base", "missing"): (BackendError, r"missing: open: ENOENT"),
}


@pytest.mark.parametrize("names", MISFITS, ids="+".join)
async def test_images_that_do_not_fit_are_refused_and_let_go(files: MemoryFiles, names: tuple[str, ...]) -> None:
    error, message = MISFITS[names]
    before = {name: files.bytes_of(name) for name in files.images}
    with pytest.raises(error, match=message):
        await open_images(files, *names)
    assert {name: files.bytes_of(name) for name in files.images} == before
    assert all((image.writers, image.readers) == NOBODY for image in files.images.values())


async def test_a_stack_of_too_many_images_or_of_none_is_refused(files: MemoryFiles) -> None:
    for count in (0, 128):
        with pytest.raises(ImageMismatch, match=f"a stack has {count} deltas, expected 1 to 127"):
            await open_images(files, *["base"] * count, read_only=True)


async def test_a_blocksize_that_is_not_the_images_is_refused(files: MemoryFiles) -> None:
    with pytest.raises(BadImage, match="top: m_Sectors is 64, expected 128, the disk's Blocksize"):
        await open_images(files, "base", "top", sectors=128)


async def test_a_lower_delta_may_be_shorter_than_the_disk(files: MemoryFiles) -> None:
    stack = await open_images(files, "base", "top", "longer")
    assert stack.size_bytes == 6 * CLUSTER
    expected = b"b" * CLUSTER + b"t" * CLUSTER + bytes(3 * CLUSTER) + b"l" * CLUSTER
    assert await stack.read(0, 6 * CLUSTER) == expected
    assert [stack.level_of(name) for name in ("base", "longer", "v1")] == [0, 2, None]


async def test_a_raw_base_that_ends_inside_a_cluster_is_followed_by_zeroes(files: MemoryFiles) -> None:
    stack = await open_images(files, "short.raw", "top")
    assert await stack.read(CLUSTER * 2, CLUSTER * 2) == b"r" * 512 + bytes(2 * CLUSTER - 512)
    await stack.write(2 * CLUSTER + 1024, b"w")
    assert await stack.read(CLUSTER * 2, 2048) == b"r" * 512 + bytes(512) + b"w" + bytes(1023)


@pytest.mark.expects_warnings
@pytest.mark.parametrize("names", [("used",), ("base", "used"), ("used", "top")], ids="+".join)
async def test_a_stack_with_a_marked_image_opens_for_reading_and_the_warning_names_it(
    files: MemoryFiles, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    before = [files.bytes_of(name) for name in names]
    stack = await open_images(files, *names)
    assert stack.read_only
    assert [record.getMessage()[:21] for record in caplog.records] == ["used: m_DiskInUse is "]
    await stack.aclose(clean=True)
    assert [files.bytes_of(name) for name in names] == before


async def test_a_marked_image_that_is_asked_for_reading_is_no_news(files: MemoryFiles) -> None:
    assert (await open_images(files, "base", "used", read_only=True)).read_only


# --- who may open what beside whom ------------------------------------------------------------------------------------


@pytest.fixture(params=["os", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    place: Place = OsPlace(tmp_path) if request.param == "os" else MemoryPlace()
    for name in ("base", "top", "other"):
        place.put(place.path(name), ImageBuilder().build())
    return place


async def open_at(place: Place, names: Sequence[str], *, read_only: bool) -> Stack:
    spec = StackSpec(tuple(ImageSpec(place.path(name)) for name in names))
    return await open_stack(place.files, spec, read_only=read_only, counters=Counters())


CONFLICTS = (
    (("base", "top"), False, ("base", "top"), False),
    (("base", "top"), False, ("base", "top"), True),
    (("base", "top"), True, ("base", "top"), False),
    (("base", "top"), False, ("base",), False),
    (("base", "top"), True, ("base",), False),
    (("base",), False, ("base", "top"), False),
    (("base",), False, ("base", "top"), True),
    (("base", "top"), False, ("base", "other", "top"), False),
)


@pytest.mark.parametrize(("held", "held_read_only", "wanted", "read_only"), CONFLICTS)
async def test_nobody_writes_what_somebody_else_has_open(
    place: Place, held: Sequence[str], held_read_only: bool, wanted: Sequence[str], read_only: bool
) -> None:
    holder = await open_at(place, held, read_only=held_read_only)
    with pytest.raises(ImageLocked):
        await open_at(place, wanted, read_only=read_only)
    await holder.aclose(clean=True)
    await (await open_at(place, wanted, read_only=read_only)).aclose(clean=True)


async def test_readers_and_tops_over_one_base_live_side_by_side(place: Place) -> None:
    stacks = [await open_at(place, ("base", "top"), read_only=True) for _ in range(2)]
    stacks.append(await open_at(place, ("base", "other"), read_only=False))
    for stack in stacks:
        await stack.aclose(clean=True)


# --- names ------------------------------------------------------------------------------------------------------------


async def test_one_file_several_files_and_a_raw_base_are_taken_as_they_are_named(files: MemoryFiles) -> None:
    assert await resolve(files, "base") == StackSpec((ImageSpec("base"),))
    assert await resolve(files, ["base", "top"]) == StackSpec((ImageSpec("base"), ImageSpec("top")))
    assert await resolve(files, ["raw@a.xml", "top"]) == StackSpec((ImageSpec("a.xml", raw=True), ImageSpec("top")))
    assert await resolve(files, "raw@gone", cluster_sectors=128) == StackSpec((ImageSpec("gone", raw=True),), 128)


async def test_a_file_above_a_linked_directory_is_found_from_where_the_directory_really_is(tmp_path: Path) -> None:
    real = tmp_path / "volumes" / "disk"
    create_disk(str(real), size_sectors=256, cluster_sectors=64, version=V2)
    (real / "root.hds").rename(real.parent / "root.hds")
    descriptor = real / "DiskDescriptor.xml"
    descriptor.write_bytes(descriptor.read_bytes().replace(b">root.hds<", b">../root.hds<"))
    link = tmp_path / "link"
    link.symlink_to(real)
    spec = await resolve(OsFiles(), str(link))
    assert [image.path for image in spec.images] == [str(real.parent / "root.hds")]


async def test_what_is_not_there_is_named_in_the_error(tmp_path: Path) -> None:
    for image in (str(tmp_path / "none"), str(tmp_path / "none.xml"), str(tmp_path)):
        with pytest.raises(PloopError, match=str(tmp_path)) as raised:
            await resolve(OsFiles(), image)
        assert raised.value.errno == errno.ENOENT


async def test_a_descriptor_without_end_is_not_read_to_its_end(files: MemoryFiles) -> None:
    files.put("huge.xml", b" " * (MAX_DESCRIPTOR_BYTES * 2))
    with pytest.raises(BadDescriptor, match=r"huge\.xml"):
        await resolve(files, "huge.xml")


@pytest.mark.parametrize("operation", ["open", "lock", "stat", "read"])
async def test_a_storage_error_while_opening_is_that_error_and_leaves_nothing_open(
    files: MemoryFiles, operation: str
) -> None:
    faults = Faults()
    faulty = FaultyFiles(files, faults)
    faults.on("top", faults.fail(errno.ENOTCONN, operation))
    spec = StackSpec((ImageSpec("base"), ImageSpec("top")))
    with pytest.raises(BackendError) as raised:
        await open_stack(faulty, spec, read_only=False, counters=Counters())
    assert (raised.value.errno, raised.value.operation) == (errno.ENOTCONN, operation)
    assert all((image.writers, image.readers) == NOBODY for image in files.images.values())
