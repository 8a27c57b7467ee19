"""Which images make a stack, who may open it beside whom, and that nothing stays open or locked when it is refused."""

import errno
import os
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio

from ploopfs.bounds import MAX_DESCRIPTOR_BYTES
from ploopfs.engine import lock
from ploopfs.engine.counters import Counters
from ploopfs.engine.create import create_disk
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.inspect import inspect_stack
from ploopfs.engine.loading import load_delta
from ploopfs.engine.opening import StackSpec, open_stack, resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.stack import Stack
from ploopfs.engine.storage import Identity
from ploopfs.engine.unclosed import Closed, close_unclosed
from ploopfs.errors import (
    BackendError,
    BadDescriptor,
    BadImage,
    ImageLocked,
    ImageMismatch,
    ImageNotClosed,
    PloopError,
    TruncatedImage,
)
from ploopfs.image.check import Verdict
from ploopfs.image.header import HEADER_BYTES, IN_USE, V1, V2
from ploopfs.testing.faulty import Faults, FaultyFiles
from ploopfs.testing.files import MemoryFile, MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.engine.bitmaps import with_bitmap
from tests.engine.disk import verdict
from tests.engine.places import MemoryPlace, OsPlace, Place

CLUSTER = 32768
NOBODY: tuple[set[int], set[int]] = (set(), set())


async def open_images(
    files: MemoryFiles,
    *names: str,
    read_only: bool = False,
    sectors: int | None = None,
    on_closed: Callable[[Closed], None] = lambda _closed: None,
) -> Stack:
    spec = StackSpec(tuple(ImageSpec(name, raw=name.endswith(".raw")) for name in names), sectors)
    return await open_stack(files, spec, read_only=read_only, counters=Counters(), on_closed=on_closed)


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


# --- images that were not closed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("used",), ("base", "used"), ("short.raw", "used")], ids="+".join)
async def test_a_sound_top_that_was_not_closed_is_closed_and_opens_for_writing(
    files: MemoryFiles, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    told: list[Closed] = []
    stack = await open_images(files, *names, on_closed=told.append)
    await stack.write(0, b"w" * CLUSTER)
    await stack.aclose(clean=True)
    assert told == [Closed("used", CLUSTER, CLUSTER, 0)]
    assert [record.getMessage() for record in caplog.records] == ["used: was not closed; checked: sound"]
    assert verdict(files.bytes_of("used")).verdict is Verdict.CLEAN


def damaged(**entries: int) -> bytes:
    """Two clusters, and a mark."""
    image = bytearray(ImageBuilder(clusters={0: b"0" * CLUSTER, 1: b"1" * CLUSTER}, in_use=IN_USE).build())
    for slot, value in entries.items():
        struct.pack_into("<I", image, 64 + 4 * int(slot.removeprefix("slot")), value)
    return bytes(image)


LEFT_BY_A_CRASH = {
    "a leak at the end": (damaged() + b"l" * CLUSTER, Closed("top", 4 * CLUSTER, 3 * CLUSTER, 0)),
    "a file that ends in a leak": (damaged() + b"l" * 512, Closed("top", 3 * CLUSTER + 512, 3 * CLUSTER, 0)),
    "a file that ends in a cluster": (damaged()[:-512], Closed("top", 3 * CLUSTER - 512, 3 * CLUSTER, 0)),
    "an entry past the disk": (damaged(slot5=2, slot1=0), Closed("top", 3 * CLUSTER, 2 * CLUSTER, 1)),
    "a leak in the middle": (damaged(slot0=0), Closed("top", 3 * CLUSTER, 3 * CLUSTER, 0)),
}


@pytest.mark.parametrize(("image", "closed"), LEFT_BY_A_CRASH.values(), ids=LEFT_BY_A_CRASH)
async def test_what_a_crash_leaves_is_put_right_without_a_question(
    files: MemoryFiles, image: bytes, closed: Closed
) -> None:
    files.put("top", image)
    told: list[Closed] = []
    stack = await open_images(files, "base", "top", on_closed=told.append)
    assert (told, stack.read_only) == ([closed], False)
    await stack.aclose(clean=True)
    assert verdict(files.bytes_of("top")).verdict is Verdict.CLEAN
    # No cluster is written to, not even a leak between others: who opens a disk does not wait for holes.
    kept = image[CLUSTER : closed.file_bytes].ljust(closed.file_bytes - CLUSTER, b"\0")
    assert files.bytes_of("top")[CLUSTER:] == kept


@pytest.mark.parametrize(
    "image", [damaged(slot1=1), damaged(slot1=9), damaged()[: 2 * CLUSTER]], ids=["shared", "beyond", "cut"]
)
async def test_what_no_crash_of_ours_leaves_is_refused_with_the_command_and_stays(
    files: MemoryFiles, image: bytes
) -> None:
    files.put("my top", image)
    with pytest.raises(BadImage, match=r"my top: BAT entry 1 .*`ploopfs check -r 'my top'` would repair"):
        await open_images(files, "base", "my top")
    assert files.bytes_of("my top") == image
    assert (files.images["my top"].writers, files.images["my top"].readers) == NOBODY


@pytest.mark.parametrize("names", [("used", "top"), ("used", "also used")], ids="+".join)
async def test_nothing_is_built_upon_a_lower_delta_that_was_not_closed_and_nothing_is_written(
    files: MemoryFiles, names: tuple[str, ...]
) -> None:
    files.put("also used", ImageBuilder(in_use=IN_USE).build())
    before = [files.bytes_of(name) for name in names]
    with pytest.raises(ImageNotClosed, match=r"used: the image was not closed.*`ploopfs check -r used`"):
        await open_images(files, *names)
    assert [files.bytes_of(name) for name in names] == before
    assert all((image.writers, image.readers) == NOBODY for image in files.images.values())


async def test_a_top_that_was_not_closed_and_does_not_fit_is_left_alone(files: MemoryFiles) -> None:
    before = files.bytes_of("used")
    with pytest.raises(BadImage, match="longer: m_SizeInSectors is 384"):
        await open_images(files, "longer", "used")
    assert files.bytes_of("used") == before


async def test_an_unclosed_image_that_somebody_has_open_is_locked(files: MemoryFiles) -> None:
    holder = await open_images(files, "used", read_only=True)
    before = files.bytes_of("used")
    with pytest.raises(ImageLocked):
        await open_images(files, "used")
    assert files.bytes_of("used") == before
    await holder.aclose(clean=True)


async def test_who_comes_before_an_unclosed_image_is_closed_keeps_it_from_being_closed(files: MemoryFiles) -> None:
    """Opening looks at it, lets go of it, and takes it again to close it."""
    reader = await files.open("used", writable=False)
    await reader.lock()
    before = files.bytes_of("used")
    with pytest.raises(ImageLocked):
        await close_unclosed(files, ImageSpec("used"))
    assert files.bytes_of("used") == before
    await reader.aclose()


async def test_images_that_are_opened_beside_each_other_have_a_map_each() -> None:
    """They are read into the same room, one with something to wait for after its header, one without."""
    files, images = MemoryFiles(), {}
    for number in range(6):
        data = ImageBuilder(disk_clusters=6, clusters={number: b"x" * CLUSTER}).build()
        images[f"image{number}"] = with_bitmap(data) if number % 2 else data
        files.put(f"image{number}", images[f"image{number}"])
    found: dict[str, list[int]] = {}

    async def open_one(name: str) -> None:
        file = await files.open(name, writable=True)
        bat = (await load_delta(file, raw=False)).bat
        assert bat is not None
        found[name] = [slot for slot, cluster in enumerate(bat.clusters) if cluster]

    async with trio.open_nursery() as nursery:
        for name in images:
            nursery.start_soon(open_one, name)
    assert found == {f"image{number}": [number] for number in range(6)}


async def test_an_image_that_gets_shorter_while_its_extension_is_read_is_not_opened(
    files: MemoryFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_bitmap(ImageBuilder(clusters={0: b"b" * CLUSTER}).build())
    files.put("shorter", data)
    really = MemoryFile.size

    async def size(self: MemoryFile) -> int:
        found = await really(self)
        del files.images["shorter"].data[-CLUSTER:]
        return found

    monkeypatch.setattr(MemoryFile, "size", size)
    with pytest.raises(TruncatedImage, match=f"shorter: ends at {len(data) - CLUSTER}, expected {CLUSTER} bytes"):
        await open_images(files, "shorter")
    assert files.bytes_of("shorter") == data[:-CLUSTER]


async def test_an_unclosed_image_that_breaks_a_rule_is_not_repaired_unasked(files: MemoryFiles) -> None:
    """Whatever made it so between the two looks: what a repair clears may be all that leads to somebody's data."""
    data = bytearray(ImageBuilder(clusters={0: b"b" * CLUSTER}, in_use=IN_USE).build())
    struct.pack_into("<I", data, HEADER_BYTES + 4, 99 * V2.entry_unit(64))
    files.put("beyond", bytes(data))
    with pytest.raises(BadImage, match="BAT entry 1"):
        await close_unclosed(files, ImageSpec("beyond"))
    assert files.bytes_of("beyond") == bytes(data)


async def test_without_locks_the_mark_is_believed(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is all that keeps a second host off the image."""
    before = files.bytes_of("used")
    monkeypatch.setattr("ploopfs.testing.files.Identity", partial(Identity, has_locks=False))
    with pytest.raises(ImageNotClosed, match=r"its storage has no locks that reach .*`ploopfs check -r used`"):
        await open_images(files, "used")
    assert files.bytes_of("used") == before


def test_a_storage_without_locks_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"")
    with path.open() as file:
        assert lock.can_lock(file.fileno())
        for number, answer in ((errno.ENOLCK, False), (errno.EOPNOTSUPP, False), (errno.ENOSYS, False)):
            monkeypatch.setattr("fcntl.fcntl", Mock(side_effect=OSError(number, "")))
            assert lock.can_lock(file.fileno()) is answer
        monkeypatch.setattr("fcntl.fcntl", Mock(side_effect=OSError(errno.EIO, "")))
        with pytest.raises(OSError, match="Errno 5"):
            lock.can_lock(file.fileno())


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


async def test_a_disk_that_no_map_in_memory_can_hold_is_refused_by_name(tmp_path: Path) -> None:
    """Sparse, and so as small as any other file."""
    image = tmp_path / "huge.raw"
    image.touch()
    os.truncate(image, 1 << 42)
    spec = StackSpec((ImageSpec(str(image), raw=True),), cluster_sectors=64)
    with pytest.raises(BadImage, match=r"huge\.raw: disk size is 134217728 clusters, expected at most 67108864"):
        await open_stack(OsFiles(), spec, read_only=True, counters=Counters())


async def test_a_stack_that_is_too_deep_is_refused_before_a_file_is_opened(files: MemoryFiles) -> None:
    """A descriptor of a megabyte names ten thousand images, and nobody has that many descriptors of files."""
    names = ["missing", *["base"] * 126, "top"]
    with pytest.raises(ImageMismatch, match="top: a stack has 128 deltas, expected 1 to 127"):
        await open_images(files, *names)
    with pytest.raises(ImageMismatch, match="top: a stack has 128 deltas, expected 1 to 127"):
        await inspect_stack(files, StackSpec(tuple(map(ImageSpec, names))))
