"""What every File must do, the real one and the fakes alike: the same tests for each."""

import errno
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from ploopfs.engine.file import Buffer, File
from ploopfs.engine.probe import ProbedImage
from ploopfs.errors import BackendError, ImageLocked, ImageMismatch
from tests.engine.places import FaultyPlace, ForgetfulPlace, InjectedPlace, MemoryPlace, OsPlace, Place

CONTENT = bytes(range(256)) * 64


@pytest.fixture(params=["os", "memory", "faulty", "injected", "ruled", "forgetful"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    places: dict[str, Place] = {
        "os": OsPlace(tmp_path),
        "memory": MemoryPlace(),
        "faulty": FaultyPlace(),
        "injected": InjectedPlace(tmp_path, ruled=False),
        "ruled": InjectedPlace(tmp_path, ruled=True),
        "forgetful": ForgetfulPlace(),
    }
    return places[request.param]


@pytest.fixture
def path(place: Place) -> str:
    path = place.path("image")
    place.put(path, CONTENT)
    return path


async def open_both(place: Place, path: str, *, writable: tuple[bool, bool]) -> tuple[File, File]:
    return await place.files.open(path, writable=writable[0]), await place.files.open(path, writable=writable[1])


async def test_a_read_gives_exactly_the_bytes_of_its_range(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=False)
    assert await file.read(3, 1000) == CONTENT[3:1003]
    assert await file.read(0, len(CONTENT)) == CONTENT


async def test_a_read_is_short_only_at_the_end_of_the_file(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=False)
    assert await file.read(len(CONTENT) - 10, 100) == CONTENT[-10:]
    assert await file.read(len(CONTENT), 1) == b""
    assert await file.read(len(CONTENT) + 5000, 1) == b""


async def test_what_a_read_gives_may_be_changed_without_changing_the_file(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=False)
    (await file.read(0, 16))[:] = b"x" * 16
    assert await file.read(0, 16) == CONTENT[:16]


async def test_a_read_without_waiting_gives_everything_or_none(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=False)
    await file.read(0, len(CONTENT))
    assert file.read_nowait(5, 500) in (None, CONTENT[5:505])
    assert file.read_nowait(len(CONTENT) - 10, 100) is None


async def test_what_a_read_without_waiting_gives_lies_where_it_was_told_to(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=False)
    await file.read(0, len(CONTENT))
    space = bytearray(b"." * 600)
    given = file.read_nowait(5, 500, memoryview(space)[50:550])
    if given is not None:
        assert given == CONTENT[5:505]
        assert space == b"." * 50 + CONTENT[5:505] + b"." * 50


async def test_a_write_is_seen_by_another_open_file(place: Place, path: str) -> None:
    file, other = await open_both(place, path, writable=(True, False))
    await file.write(100, memoryview(b"0123456789")[2:7])
    assert await other.read(99, 7) == CONTENT[99:100] + b"23456" + CONTENT[105:106]


async def heard_soon(file: File, offset: int, data: Buffer) -> BackendError | bool | None:
    """How it ended; False if nothing was begun."""
    heard: list[BackendError | None] = []
    if not file.write_soon(((offset, data),), heard.append):
        return False
    assert heard == [], "it is told in another turn"
    with trio.fail_after(60):
        while not heard:
            await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked()
    [error] = heard
    return error


async def test_a_write_without_a_task_is_there_when_its_end_is_told_or_was_not_begun(place: Place, path: str) -> None:
    file, other = await open_both(place, path, writable=(True, False))
    for at, data in ((100, b"234567"), (300, bytearray(b"abcdef")), (500, memoryview(b"xabcdefx")[1:7])):
        error = await heard_soon(file, at, data)
        assert error in (None, False)
        expected = CONTENT[at : at + 6] if error is False else bytes(data)
        assert await other.read(at - 1, 8) == CONTENT[at - 1 : at] + expected + CONTENT[at + 6 : at + 7]


async def test_of_several_pieces_all_are_there_when_their_end_is_told_or_none_was_begun(
    place: Place, path: str
) -> None:
    file, other = await open_both(place, path, writable=(True, False))
    heard: list[BackendError | None] = []
    is_begun = file.write_soon(((100, b"first"), (103, memoryview(b"second")), (600, b"third")), heard.append)
    with trio.fail_after(60):
        while is_begun and not heard:
            await trio.lowlevel.checkpoint()
    assert heard == [None] * is_begun
    expected = bytearray(CONTENT[:1000])
    if is_begun:
        expected[100:109], expected[600:605] = b"firsecond", b"third"
    assert bytes(await other.read(0, 1000)) == bytes(expected)


async def test_a_write_without_a_task_to_a_file_that_may_not_be_written_is_not_begun_or_ends_with_ebadf(
    place: Place, path: str
) -> None:
    closed = await place.files.open(path, writable=True)
    await closed.aclose()
    for file in (closed, await place.files.open(path, writable=False)):
        error = await heard_soon(file, 0, b"x")
        assert error is False or (isinstance(error, BackendError) and error.errno == errno.EBADF)
    assert place.content(path) == CONTENT


async def test_many_writes_without_a_task_are_each_told_of_once(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=True)
    told: list[int] = []

    def tell(number: int, error: BackendError | None) -> None:
        assert error is None
        told.append(number)

    begun = [n for n in range(100) if file.write_soon(((10 * n, b"%09d." % n),), partial(tell, n))]
    assert begun in ([], list(range(100)))
    with trio.fail_after(60):
        while len(told) < len(begun):
            await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(told) == begun
    expected = b"".join(b"%09d." % n for n in begun)
    assert await file.read(0, 1000) == expected + CONTENT[len(expected) : 1000]


async def test_a_write_past_the_end_leaves_zeroes_between(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=True)
    await file.write(len(CONTENT) + 1000, b"end")
    assert await file.size() == len(CONTENT) + 1003
    assert place.content(path) == CONTENT + bytes(1000) + b"end"


async def test_truncation_up_adds_zeroes_and_down_cuts(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=True)
    await file.truncate(len(CONTENT) + 100)
    assert place.content(path) == CONTENT + bytes(100)
    await file.truncate(50)
    assert (await file.size(), place.content(path)) == (50, CONTENT[:50])
    await file.truncate(100)
    assert place.content(path) == CONTENT[:50] + bytes(50)


async def test_a_size_that_was_synced_is_that_of_the_file_and_its_bytes_stay(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=True)
    await file.write(0, b"new")
    longer = len(CONTENT) + 10_000
    await file.truncate(longer)
    await file.sync_size(longer)
    assert await file.size() == longer
    assert place.content(path) == b"new" + CONTENT[3:] + bytes(10_000)


async def test_a_punched_hole_reads_as_zeroes_and_the_size_stays(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=True)
    await file.punch(4096, 4096)
    assert place.content(path) == CONTENT[:4096] + bytes(4096) + CONTENT[8192:]
    await file.punch(len(CONTENT) - 10, 4096)
    assert place.content(path)[-11:] == CONTENT[-11:-10] + bytes(10)
    assert await file.size() == len(CONTENT)


async def test_allocated_space_reads_as_before_and_as_zeroes_past_the_old_end(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=True)
    await file.allocate(len(CONTENT) - 10, 5000)
    assert place.content(path) == CONTENT + bytes(4990)
    await file.allocate(0, 100)
    assert await file.size() == len(CONTENT) + 4990


async def test_a_sync_of_a_healthy_file_succeeds(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=True)
    await file.write(0, b"x")
    await file.sync()


async def test_a_missing_file_is_the_storage_saying_enoent(place: Place) -> None:
    for writable in (False, True):
        with pytest.raises(BackendError) as raised:
            await place.files.open(place.path("missing"), writable=writable)
        assert raised.value.errno == errno.ENOENT
        assert place.path("missing") in str(raised.value)
    with pytest.raises(BackendError) as raised:
        await place.files.is_directory(place.path("missing"))
    assert raised.value.errno == errno.ENOENT


async def test_a_directory_is_told_from_a_file(place: Place, path: str) -> None:
    assert not await place.files.is_directory(path)
    assert await place.files.is_directory(path.rpartition("/")[0])


async def test_two_opens_of_one_file_have_one_identity(place: Place, path: str) -> None:
    file, again = await open_both(place, path, writable=(True, False))
    place.put(place.path("other"), CONTENT)
    other = await place.files.open(place.path("other"), writable=False)
    assert file.identity == again.identity != other.identity
    assert (file.path, file.writable, again.writable) == (path, True, False)


async def test_a_file_opened_for_reading_cannot_be_changed(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=False)
    with pytest.raises(BackendError) as raised:
        await file.write(0, b"x")
    assert raised.value.errno == errno.EBADF
    with pytest.raises(BackendError):
        await file.truncate(0)
    with pytest.raises(BackendError):
        await file.punch(0, 4096)
    with pytest.raises(BackendError):
        await file.allocate(0, 100000)
    assert place.content(path) == CONTENT


async def test_two_writers_exclude_each_other(place: Place, path: str) -> None:
    first, second = await open_both(place, path, writable=(True, True))
    await first.lock()
    with pytest.raises(ImageLocked, match=path):
        await second.lock()


@pytest.mark.parametrize("writable", [(True, False), (False, True)])
async def test_a_writer_and_a_reader_exclude_each_other(place: Place, path: str, writable: tuple[bool, bool]) -> None:
    first, second = await open_both(place, path, writable=writable)
    await first.lock()
    with pytest.raises(ImageLocked):
        await second.lock()


async def test_readers_share(place: Place, path: str) -> None:
    first, second = await open_both(place, path, writable=(False, False))
    await first.lock()
    await second.lock()


async def test_who_only_reads_may_keep_readers_out_until_he_claims_the_image_as_a_reader(
    place: Place, path: str
) -> None:
    first, second = await open_both(place, path, writable=(False, False))
    writer = await place.files.open(path, writable=True)
    await first.lock(as_writer=True)
    for other in (second, writer):
        with pytest.raises(ImageLocked):
            await other.lock()
    await first.lock()
    await second.lock()
    with pytest.raises(ImageLocked):
        await writer.lock()
    with pytest.raises(ImageLocked):
        await first.lock(as_writer=True)


async def test_a_refused_lock_leaves_nothing_locked(place: Place, path: str) -> None:
    first, second = await open_both(place, path, writable=(True, True))
    await first.lock()
    with pytest.raises(ImageLocked):
        await second.lock()
    await first.unlock()
    third = await place.files.open(path, writable=True)
    await third.lock()


async def test_unlocking_lets_the_next_one_in_and_locking_twice_is_no_conflict(place: Place, path: str) -> None:
    first, second = await open_both(place, path, writable=(True, True))
    await first.lock()
    await first.lock()
    await first.unlock()
    await second.lock()


async def test_closing_releases_the_lock_of_this_file_alone(place: Place, path: str) -> None:
    first, second = await open_both(place, path, writable=(True, True))
    bystander = await place.files.open(path, writable=False)
    await first.lock()
    await bystander.aclose()
    with pytest.raises(ImageLocked):
        await second.lock()
    await first.aclose()
    await second.lock()


async def test_a_closed_file_answers_ebadf_and_closes_again_quietly(place: Place, path: str) -> None:
    file = await place.files.open(path, writable=True)
    await file.aclose()
    await file.aclose()
    calls = (
        lambda: file.read(0, 1),
        lambda: file.write(0, b"x"),
        lambda: file.truncate(1),
        lambda: file.punch(0, 1),
        lambda: file.allocate(0, 1),
        file.sync,
        file.size,
        file.lock,
    )
    for call in calls:
        with pytest.raises(BackendError) as raised:
            await call()
        assert raised.value.errno == errno.EBADF
    assert place.content(path) == CONTENT


async def test_a_probe_of_a_sound_storage_succeeds_and_leaves_the_image_as_it_was(place: Place, path: str) -> None:
    await place.files.probe([ProbedImage(path=path, start=CONTENT[:64], failed=(4096, 512), write_beside=True)])
    await place.files.probe([ProbedImage(path=path), ProbedImage(path=path, start=CONTENT[:1])])
    assert place.content(path) == CONTENT


async def test_a_probe_misses_an_image_that_is_not_there_and_refuses_another_in_its_place(
    place: Place, path: str
) -> None:
    with pytest.raises(BackendError) as missing:
        await place.files.probe([ProbedImage(path=path), ProbedImage(path=place.path("gone"), write_beside=True)])
    assert (missing.value.errno, missing.value.operation, missing.value.path) == (
        errno.ENOENT,
        "open",
        place.path("gone"),
    )
    with pytest.raises(ImageMismatch, match="the header is not the one that was opened"):
        await place.files.probe([ProbedImage(path=path, start=b"other", write_beside=True)])


async def test_who_is_cancelled_closes_all_the_same(place: Place, path: str) -> None:
    """A descriptor that nobody closes keeps its lock, and nobody could open the image again."""
    file, other = await open_both(place, path, writable=(True, True))
    await file.lock()
    with trio.CancelScope() as scope:
        scope.cancel()
        await file.aclose()
    await other.lock()
    await other.aclose()
