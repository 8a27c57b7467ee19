"""A replacement that fails changes nothing: every check of the new top with its errno, every failure of its storage."""

import errno
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.flavour import VZ9
from ploopfs.device.standby import State
from ploopfs.engine.file import File
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError, PloopError, StorageTimeout
from ploopfs.image.header import FLAG_CONVERTING, IN_USE, V1
from ploopfs.testing.faulty import FaultyFile, FaultyFiles
from tests.device.rig import (
    BASE,
    CLUSTER,
    CONTENT,
    MIDDLE,
    NEW,
    STACK,
    TOP,
    Asked,
    Rig,
    errno_of,
    image,
    rig_of,
    three_deltas,
)

pytestmark = pytest.mark.expects_warnings

LIMIT_S = 9
NEVER_S = 10 * LIMIT_S
BOUNDS = Bounds(quiesce_timeout_s=LIMIT_S)
in_either_state = pytest.mark.parametrize("lost", [False, True], ids=["healthy", "standby"])


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


SOUND = image({2: b"n"}).build()
BAD_IMAGES: dict[str, tuple[bytes, int, str]] = {
    "another cluster size": (image({}, cluster_sectors=128).build(), errno.EINVAL, "m_Sectors"),
    "another version": (image({}, version=V1).build(), errno.EINVAL, "m_Sig"),
    "in use": (image({3: b"n"}, in_use=IN_USE).build(), errno.EBUSY, "m_DiskInUse"),
    "half converted": (patched(image({}, in_use=IN_USE).build(), 52, bytes([FLAG_CONVERTING])), errno.EBUSY, "conver"),
    "a part of a cluster at its end": (SOUND + bytes(512), errno.EINVAL, "file size"),
    "a smaller disk": (image({}, disk_clusters=5).build(), errno.EINVAL, "m_SizeInSectors"),
    "raw": (bytes(6 * CLUSTER), errno.EINVAL, "m_Sig"),
    "a broken signature": (patched(SOUND, 0, b"X"), errno.EINVAL, "m_Sig"),
    "a broken type": (patched(SOUND, 16, b"\7"), errno.EINVAL, "m_Type"),
    "a map entry past its end": (patched(SOUND, 64, b"\7"), errno.EINVAL, "BAT entry 0"),
    "shorter than a header": (SOUND[:63], errno.EINVAL, "file size"),
    "empty": (b"", errno.EINVAL, "file size"),
}


@dataclass(frozen=True)
class Before:
    """What a refusal must leave as it is."""

    stack: Stack
    files: tuple[File, ...]
    state: State
    images: dict[str, bytes]
    holders: dict[str, tuple[set[int], set[int]]]
    logged: int

    @classmethod
    def of(cls, rig: Rig) -> "Before":
        stack = rig.device.stack
        return cls(
            stack,
            tuple(delta.file for delta in stack.deltas),
            rig.state,
            {path: rig.store.bytes_of(path) for path in STACK},
            {path: (set(rig.store.images[path].writers), set(rig.store.images[path].readers)) for path in STACK},
            len(rig.faults.log),
        )

    async def assert_kept(self, rig: Rig, *, why: str = "") -> None:
        """The old stack, its bytes, locks and mark, and standby; and the reason is told."""
        after = Before.of(rig)
        assert after.stack is self.stack
        assert (after.files, after.state, after.images, after.holders) == (
            self.files,
            self.state,
            self.images,
            self.holders,
        )
        assert (rig.queue.generation, rig.queue.aborted, rig.queue.parked) == (1, False, 0)
        assert rig.is_marked(TOP)
        assert why in rig.device.last_error
        assert rig.device.last_error.startswith(("replace_delta /", "replace_delta top", f"reopen {TOP}: "))
        if NEW in rig.store.images:
            assert not rig.store.images[NEW].writers
        if self.state is State.ON:
            assert rig.changes_of(TOP, self.logged) == []
            assert await errno_of(rig.device.flush()) == errno.EIO
        else:
            await self._assert_serves(rig)

    async def _assert_serves(self, rig: Rig) -> None:
        assert await rig.content() == CONTENT
        await rig.device.write(4 * CLUSTER, b"w")
        assert await rig.device.read(4 * CLUSTER, 2) == b"w\0"
        assert await rig.device.aclose()
        assert not rig.is_marked(TOP)
        again = await rig_of({path: rig.store.bytes_of(path) for path in STACK})
        assert await again.device.read(4 * CLUSTER, 1) == b"w"


async def rig_in(lost: bool, storage: type[FaultyFiles] = FaultyFiles) -> Rig:
    """Healthy, or in standby with a storage that is well again."""
    rig = await rig_of(three_deltas(), bounds=BOUNDS, storage=storage)
    if lost:
        rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    return rig


async def assert_refused(rig: Rig, path: str, number: int, why: str) -> None:
    before = Before.of(rig)
    assert await errno_of(rig.device.replace_top(path)) == number
    await before.assert_kept(rig, why=why)


# --- the checks ---------------------------------------------------------------------------------------------------


@in_either_state
@pytest.mark.parametrize("name", BAD_IMAGES)
async def test_an_image_that_does_not_fit_is_refused_with_its_errno_and_nothing_changes(name: str, lost: bool) -> None:
    data, number, why = BAD_IMAGES[name]
    rig = await rig_in(lost)
    rig.store.put(NEW, data)
    await assert_refused(rig, NEW, number, why)
    assert rig.store.bytes_of(NEW) == data


@in_either_state
@pytest.mark.parametrize("path", ["top.hds", "./top.hds", ""], ids=["a name", "a relative path", "nothing"])
async def test_a_path_that_is_not_absolute_is_invalid(path: str, lost: bool) -> None:
    rig = await rig_in(lost)
    before = Before.of(rig)
    assert await errno_of(rig.device.replace_top(path)) == errno.EINVAL
    assert rig.device.stack is before.stack
    assert rig.state is before.state
    assert "absolute" in rig.device.last_error
    assert len(rig.faults.log) == before.logged


@in_either_state
async def test_an_image_that_is_not_there_is_enoent(lost: bool) -> None:
    await assert_refused(await rig_in(lost), NEW, errno.ENOENT, "ENOENT")


@in_either_state
async def test_an_image_that_somebody_else_has_locked_is_busy(lost: bool) -> None:
    rig = await rig_in(lost)
    rig.store.put("/other/locked.hds", SOUND)
    other = await rig.store.open("/other/locked.hds", writable=True)
    await other.lock()
    await assert_refused(rig, "/other/locked.hds", errno.EBUSY, "lock")
    assert len(rig.store.images["/other/locked.hds"].writers) == 1


@in_either_state
@pytest.mark.parametrize("path", [BASE, MIDDLE])
async def test_a_lower_delta_of_the_same_device_is_busy(path: str, lost: bool) -> None:
    await assert_refused(await rig_in(lost), path, errno.EBUSY, "lock")


@in_either_state
async def test_a_raw_device_takes_no_shorter_image(lost: bool) -> None:
    rig = await rig_of({TOP: b"o" * 8192}, stack=[f"raw@{TOP}"])
    if lost:
        rule = rig.lose(errno.EIO)
        assert await errno_of(rig.device.read(0, 1)) == errno.EIO
        rig.faults.remove(rule)
    rig.store.put(NEW, b"n" * 7680)
    assert await errno_of(rig.device.replace_top(NEW)) == errno.EINVAL
    assert "raw size" in rig.device.last_error
    assert rig.state is (State.ON if lost else State.OFF)
    assert rig.device.stack.top.path == TOP
    assert len(rig.store.images[TOP].writers) == 1


async def test_a_read_only_device_refuses_an_image_in_use_too() -> None:
    rig = await rig_of(three_deltas(), read_only=True)
    rig.store.put(NEW, image({}, in_use=IN_USE).build())
    assert await errno_of(rig.device.replace_top(NEW)) == errno.EBUSY
    assert rig.device.stack.top.path == TOP


async def test_a_later_success_clears_the_last_error(rig: Rig) -> None:
    assert await errno_of(rig.device.replace_top(NEW)) == errno.ENOENT
    assert rig.device.last_error.startswith(f"replace_delta {NEW}: ")
    rig.store.put(NEW, SOUND)
    await rig.device.replace_top(NEW)
    assert rig.device.last_error == ""


# --- the new image's storage fails ----------------------------------------------------------------------------------


@in_either_state
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.EACCES, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("operation", ["open", "lock", "stat", "read", "write", "fsync"])
async def test_a_failure_of_the_new_images_storage_is_no_failure_of_the_device(
    operation: str, number: int, lost: bool
) -> None:
    rig = await rig_in(lost)
    rig.store.put(NEW, SOUND)
    rig.lose(number, operation, path=NEW)
    await assert_refused(rig, NEW, number, operation)


@in_either_state
@pytest.mark.parametrize("operation", ["open", "lock", "stat", "read", "write"])
async def test_a_storage_that_does_not_answer_is_given_up_and_may_be_tried_again(
    operation: str, lost: bool, autojump_clock: MockClock
) -> None:
    rig = await rig_in(lost)
    rig.store.put(NEW, SOUND)
    rig.hang(operation, path=NEW)
    before, started_s = Before.of(rig), autojump_clock.current_time()
    with trio.fail_after(NEVER_S), pytest.raises(StorageTimeout) as timeout:
        await rig.device.replace_top(NEW)
    assert timeout.value.errno == errno.ETIMEDOUT
    assert autojump_clock.current_time() - started_s == LIMIT_S
    assert rig.store.bytes_of(NEW) == SOUND
    rig.faults.rules.clear()
    if lost:
        await before.assert_kept(rig, why="did not answer")
        await rig.device.replace_top(NEW)
        assert await rig.device.read(2 * CLUSTER, 1) == b"n"
    else:
        await before.assert_kept(rig, why="did not answer")


@in_either_state
async def test_a_replacement_that_is_cancelled_leaves_mark_and_lock_as_they_were(lost: bool) -> None:
    rig = await rig_in(lost)
    rig.store.put(NEW, SOUND)
    rig.hang("read", path=NEW)
    before = Before.of(rig)
    async with trio.open_nursery() as nursery:
        asked = Asked(nursery, rig.device.replace_top(NEW))
        await wait_all_tasks_blocked()
        asked.cancel_scope.cancel()
    assert (Before.of(rig).images, Before.of(rig).holders) == (before.images, before.holders)
    assert rig.device.stack is before.stack
    assert not rig.store.images[NEW].writers


# --- reopen -------------------------------------------------------------------------------------------------------


@in_either_state
@pytest.mark.parametrize("operation", ["open", "lock", "stat", "read"])
async def test_a_reopen_that_fails_keeps_the_lock_and_may_be_tried_again(operation: str, lost: bool) -> None:
    rig = await rig_in(lost)
    rule = rig.lose(errno.ENODEV, operation, count=1)
    before = Before.of(rig)
    assert await errno_of(rig.device.reopen()) == errno.ENODEV
    rig.faults.remove(rule)
    await before.assert_kept(rig, why=operation)
    if lost:
        await rig.device.reopen()
        assert await rig.content() == CONTENT


async def test_a_reopen_whose_mark_cannot_be_written_keeps_the_lock() -> None:
    rig = await rig_in(lost=True)
    rig.lose(errno.EIO, "write", count=1)
    before = Before.of(rig)
    assert await errno_of(rig.device.reopen()) == errno.EIO
    assert (Before.of(rig).holders, rig.state) == (before.holders, State.ON)
    await rig.device.reopen()
    assert await rig.content() == CONTENT


@in_either_state
@pytest.mark.parametrize(("field", "low_byte"), [(28, 0x80), (36, 0x40)], ids=["m_Sectors", "m_SizeInSectors"])
async def test_a_reopen_that_finds_another_image_keeps_the_lock(field: int, low_byte: int, lost: bool) -> None:
    rig = await rig_in(lost)
    rig.store.images[TOP].data[field] = low_byte
    before = Before.of(rig)
    refused_for_its_mark = lost and field == 36
    assert await errno_of(rig.device.reopen()) == (errno.EBUSY if refused_for_its_mark else errno.EINVAL)
    after = Before.of(rig)
    assert (after.stack, after.state, after.holders) == (before.stack, before.state, before.holders)
    assert rig.store.bytes_of(TOP) == before.images[TOP]


@in_either_state
async def test_a_reopen_that_somebody_else_outran_says_so(lost: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A second daemon takes the lock in the moment in which neither of our files has it."""
    rig = await rig_in(lost)
    taken = rig.hang("lock", count=1)
    async with trio.open_nursery() as nursery:
        asked = Asked(nursery, rig.device.reopen())
        await wait_all_tasks_blocked()
        other = await rig.store.open(TOP, writable=True)
        await other.lock()
        taken.set()
    assert asked.errno == errno.EBUSY
    assert "could not be taken back" in caplog.text
    assert rig.state is State.ON


class AbandonedFile(FaultyFile):
    """As a real file: an operation that is given up may yet happen, so the file is never closed."""

    async def aclose(self) -> None:
        if not self.abandoned:
            await super().aclose()


class AbandonedFiles(FaultyFiles):
    def wrap(self, file: File) -> FaultyFile:
        return AbandonedFile(file, self.faults)


@in_either_state
@pytest.mark.parametrize("storage", [FaultyFiles, AbandonedFiles])
async def test_a_reopen_that_hung_keeps_the_lock_and_may_be_tried_again(
    lost: bool, storage: type[FaultyFiles], autojump_clock: MockClock
) -> None:
    rig = await rig_in(lost, storage)
    rig.hang("read")
    before, started_s = Before.of(rig), autojump_clock.current_time()
    with trio.fail_after(NEVER_S), pytest.raises(StorageTimeout):
        await rig.device.reopen()
    assert autojump_clock.current_time() - started_s == LIMIT_S
    rig.faults.rules.clear()
    assert (Before.of(rig).holders, Before.of(rig).images) == (before.holders, before.images)
    await rig.device.reopen()
    assert await rig.content() == CONTENT
    assert len(rig.store.images[TOP].writers) == 1


# --- the old image's storage fails, and nobody knew ------------------------------------------------------------------


async def test_a_mark_that_may_be_in_the_file_though_setting_it_failed_is_ours_when_the_store_is_back(rig: Rig) -> None:
    rules = [rig.lose(errno.ENOTCONN, "fsync", skip=3), rig.lose(errno.ENOTCONN, "lock", skip=1)]
    with pytest.raises(BackendError):
        await rig.device.reopen()
    assert (rig.is_marked(TOP), rig.queue.aborted) == (True, True), "by the new file, of which the old knows nothing"
    for rule in rules:
        rig.faults.remove(rule)
    await rig.device.reopen()
    assert not rig.queue.aborted
    assert await rig.content() == CONTENT


@pytest.mark.parametrize("number", [errno.EBUSY, errno.ENOTCONN, errno.EIO], ids=errno.errorcode.get)
async def test_a_loss_that_shows_only_when_the_old_top_is_settled_does_not_keep_it_from_being_replaced(
    rig: Rig, number: int
) -> None:
    rig.store.put(NEW, SOUND)
    rig.lose(number)
    assert await errno_of(rig.device.replace_top("/nowhere")) == errno.ENOENT
    assert (rig.state, rig.device.stack.top.path) == (State.ON, TOP)

    rig = await rig_of(three_deltas(), stack=STACK)
    rig.store.put(NEW, SOUND)
    await rig.device.write(3 * CLUSTER, b"acknowledged")
    rig.lose(number)
    await rig.device.replace_top(NEW)
    assert rig.state is State.OFF
    assert rig.queue.standby.entered == 1
    assert await rig.device.read(2 * CLUSTER, 1) == b"n"
    assert await rig.device.read(3 * CLUSTER, 12) == b"acknowledged"


async def test_an_image_that_was_lost_while_its_mark_was_cleared_is_not_marked_again(rig: Rig) -> None:
    """Its lease may be somebody else's."""
    rig.store.put(NEW, SOUND)
    since = len(rig.faults.log)
    rig.lose(errno.EBUSY, "write", count=1)
    await rig.device.replace_top(NEW)
    assert rig.changes_of(TOP, since) == ["write"]


async def test_a_storage_that_is_too_full_to_settle_the_top_refuses_the_replacement_and_serves_on() -> None:
    rig = await rig_of(three_deltas(), stack=STACK, name="dm-0", flavour=VZ9)
    rig.store.put(NEW, SOUND)
    await rig.device.write(3 * CLUSTER, b"w")
    rig.lose(errno.ENOSPC, "write", count=1)
    assert await errno_of(rig.device.replace_top(NEW)) == errno.ENOSPC
    assert (rig.state, rig.queue.is_lost, rig.device.stack.top.path) == (State.OFF, False, TOP)
    assert rig.is_marked(TOP)
    await rig.device.write(2 * CLUSTER, b"w")


async def test_an_old_storage_that_hangs_while_it_is_settled_is_given_up(autojump_clock: MockClock) -> None:
    rig = await rig_in(lost=False)
    rig.store.put(NEW, SOUND)
    rig.hang("fsync")
    started_s = autojump_clock.current_time()
    with trio.fail_after(NEVER_S), pytest.raises(StorageTimeout):
        await rig.device.replace_top(NEW)
    assert autojump_clock.current_time() - started_s == LIMIT_S
    assert (rig.state, rig.queue.aborted, rig.device.stack.top.path) == (State.OFF, True, TOP)
    await rig.device.replace_top(NEW)
    assert not rig.queue.aborted
    assert await rig.device.read(2 * CLUSTER, 1) == b"n"


def fails(rig: Rig) -> None:
    rig.lose(errno.ENOTCONN, "write", skip=1)


def hangs(rig: Rig) -> None:
    rig.hang("write", skip=1)


@pytest.mark.parametrize(("loss", "state"), [(fails, State.ON), (hangs, State.OFF)], ids=["fails", "hangs"])
async def test_where_the_mark_cannot_be_put_back_nobody_writes_any_more(
    loss: Callable[[Rig], None], state: State, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    rig = await rig_in(lost=False)
    loss(rig)
    started_s = autojump_clock.current_time()
    with trio.fail_after(NEVER_S):
        assert await errno_of(rig.device.replace_top(NEW)) == errno.ENOENT
    assert autojump_clock.current_time() - started_s == (LIMIT_S if state is State.OFF else 0)
    assert (rig.state, rig.queue.aborted) == (state, True)
    assert "could not be put back" in caplog.text
    with pytest.raises(PloopError):
        await rig.device.write(2 * CLUSTER, b"w")
    assert not rig.is_marked(TOP)
    if state is State.ON:
        assert await errno_of(rig.device.set_aborted(False)) == errno.EIO
        rig.queue.standby.detach()  # which ends standby
        assert await errno_of(rig.device.write(2 * CLUSTER, b"w")) == errno.EIO
        assert not rig.is_marked(TOP)


async def test_who_clears_aborted_by_hand_puts_the_mark_back_first(autojump_clock: MockClock) -> None:
    """Else writes would go to an image that says it was closed."""
    rig = await rig_in(lost=False)
    hung = rig.hang("write", skip=1, count=1)
    assert await errno_of(rig.device.replace_top(NEW)) == errno.ENOENT
    hung.set()
    assert (rig.queue.aborted, rig.is_marked(TOP)) == (True, False)
    refusal = rig.lose(errno.EROFS, "write")
    assert await errno_of(rig.device.set_aborted(False)) == errno.EROFS
    assert rig.queue.aborted
    rig.faults.remove(refusal)
    await rig.device.set_aborted(False)
    assert (rig.queue.aborted, rig.is_marked(TOP)) == (False, True)
    await rig.device.write(2 * CLUSTER, b"w")
    assert autojump_clock.current_time() < NEVER_S


async def test_aborted_is_not_cleared_while_what_was_given_up_may_yet_take_the_mark_away(
    autojump_clock: MockClock,
) -> None:
    """A mark that was put back before would not stay."""
    rig = await rig_in(lost=False)
    rule = rig.faults.on(TOP, rig.faults.pause("write", count=1, late=True))
    assert await errno_of(rig.device.replace_top(NEW)) == errno.ETIMEDOUT
    assert (rig.queue.aborted, rig.is_marked(TOP)) == (True, True)
    assert await errno_of(rig.device.set_aborted(False)) == errno.ETIMEDOUT
    assert rig.queue.aborted
    assert rule.released is not None
    rule.released.set()
    await wait_all_tasks_blocked()
    assert not rig.is_marked(TOP)
    assert await errno_of(rig.device.set_aborted(False)) == errno.ETIMEDOUT
    assert autojump_clock.current_time() < NEVER_S


async def test_nor_does_a_device_that_no_failed_request_aborts() -> None:
    rig = await rig_of(three_deltas(), stack=STACK, armed=False, name="dm-0", flavour=VZ9)
    rig.lose(errno.ENOTCONN, "write", skip=1, count=1)
    assert await errno_of(rig.device.replace_top(NEW)) == errno.ENOENT
    assert not rig.is_marked(TOP)
    with pytest.raises(PloopError):
        await rig.device.write(2 * CLUSTER, b"w")
