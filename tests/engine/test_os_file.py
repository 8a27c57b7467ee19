"""What only the real file can get wrong: odd file types, kernels and file systems without RWF_NOWAIT, short counts."""

import errno
import fcntl
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.handover import lock_handed_over
from ploopfs.engine import lock
from ploopfs.engine.file import File
from ploopfs.engine.late import Hop, Opening
from ploopfs.engine.loading import dismiss
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.storage import Storage
from ploopfs.engine.workers import Lane, Workers
from ploopfs.errors import BackendError, BadImage, ImageLocked, StorageTimeout
from tests.realparts import real_or_skip

CONTENT = bytes(range(256)) * 64


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "image").write_bytes(CONTENT)
    return str(tmp_path / "image")


def failing(number: int) -> Callable[..., int]:
    def fail(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


async def test_a_refused_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(BadImage):
            await OsFiles().open(str(tmp_path), writable=False)
    # The thread that opens and trio itself may hold one or two of their own, but nothing may add up.
    assert len(set(os.listdir("/proc/self/fd")) - before) < 10


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
async def test_a_file_system_without_nowait_is_not_asked_again(
    path: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await OsFiles().open(path, writable=True)
    monkeypatch.setattr(os, "preadv", failing(number))
    assert file.read_nowait(0, 10) is None
    monkeypatch.undo()
    assert file.read_nowait(0, 10) is None


async def test_what_would_block_now_is_asked_again_later(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def would_block(*_arguments: object) -> int:
        asked.append("asked")
        raise BlockingIOError(errno.EAGAIN, "not now")

    file = await OsFiles().open(path, writable=True)
    monkeypatch.setattr(os, "preadv", would_block)
    for _ in range(2):
        assert file.read_nowait(0, 10) is None
    assert len(asked) == 2


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.EBUSY, errno.ENOSPC])
async def test_an_answer_without_waiting_may_be_an_error_of_the_storage(
    path: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await OsFiles().open(path, writable=True)
    monkeypatch.setattr(os, "preadv", failing(number))
    with pytest.raises(BackendError) as raised:
        file.read_nowait(4, 10)
    assert (raised.value.errno, raised.value.offset, raised.value.length) == (number, 4, 10)


@pytest.mark.usefixtures("in_threads")
async def test_short_counts_of_the_system_are_gone_on_with(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await OsFiles().open(path, writable=True)
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: read(fd, [views[0][:7]], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:7], offset))
    assert await file.read(1, 100) == CONTENT[1:101]
    assert await file.read(len(CONTENT) - 10, 100) == CONTENT[-10:]
    await file.write(1, bytes(range(100)))
    assert Path(path).read_bytes() == CONTENT[:1] + bytes(range(100)) + CONTENT[101:]


@pytest.mark.usefixtures("in_threads")
@pytest.mark.parametrize(
    ("of_os", "call"),
    [
        ("preadv", lambda file: file.read(0, 1)),
        ("pwrite", lambda file: file.write(0, b"x")),
        ("fdatasync", lambda file: file.sync()),
        ("fstat", lambda file: file.size()),
        ("ftruncate", lambda file: file.truncate(5)),
    ],
)
async def test_an_error_in_a_worker_thread_is_a_backend_error(
    path: str, of_os: str, call: Callable[[File], Awaitable[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await OsFiles().open(path, writable=True)
    monkeypatch.setattr(os, of_os, failing(errno.ENOTCONN))
    with pytest.raises(BackendError) as raised:
        await call(file)
    monkeypatch.undo()
    assert raised.value.errno == errno.ENOTCONN
    assert path in str(raised.value)
    assert "ENOTCONN" in str(raised.value)


@pytest.mark.parametrize(("of_os", "operation"), [("pwrite", "write"), ("pwritev", "fsync")])
async def test_that_there_is_no_room_for_the_end_of_a_file_is_not_said_of_an_fsync(
    path: str, of_os: str, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first byte of the end may find no room; that it is on the storage is another question."""
    file = await OsFiles().open(path, writable=True)
    await file.truncate(2 * len(CONTENT))
    monkeypatch.setattr(os, of_os, failing(errno.ENOSPC))
    with pytest.raises(BackendError) as raised:
        await file.sync_size(2 * len(CONTENT))
    assert (raised.value.errno, raised.value.operation) == (errno.ENOSPC, operation)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
async def test_a_size_is_flushed_with_all_the_rest_where_it_cannot_be_by_itself(
    path: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await OsFiles().open(path, writable=True)
    await file.truncate(2 * len(CONTENT))
    flushed: list[int] = []
    monkeypatch.setattr(os, "pwritev", failing(number))
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    await file.sync_size(2 * len(CONTENT))
    assert flushed == [file._fd]


@pytest.mark.parametrize("name", ["ECONNABORTED", "EBADFD"])
async def test_a_store_that_is_gone_has_one_name_whatever_its_client_answers(
    path: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await OsFiles().open(path, writable=True)
    monkeypatch.setattr(os, "fdatasync", failing(getattr(errno, name)))
    with pytest.raises(BackendError, match="ENOTCONN"):
        await file.sync()


async def test_a_close_that_fails_is_quiet(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await OsFiles().open(path, writable=True)
    close = os.close

    def close_and_fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "late")

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", close_and_fail)
        await file.aclose()


async def test_the_identity_names_the_file_system(path: str) -> None:
    file = await OsFiles().open(path, writable=False)
    status = os.stat(path)
    assert (file.identity.device_number, file.identity.inode) == (status.st_dev, status.st_ino)
    listed = Path("/proc/self/mountinfo").read_text()
    assert not file.identity.filesystem or f" {file.identity.filesystem} " in listed


@pytest.mark.parametrize(
    ("filesystem", "is_asked_at_once"),
    [
        *((name, True) for name in ("ext4", "xfs", "btrfs", "tmpfs")),
        *((name, False) for name in ("fuse.bindfs", "nfs4", "cifs", "ceph", "gfs2", "overlay", "")),
    ],
)
async def test_a_size_and_a_free_lock_take_no_thread_where_no_disk_and_no_host_is_asked_for_them(
    path: str, filesystem: str, is_asked_at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ploopfs.engine.os_file.storage_of", lambda _number: Storage(filesystem, frozenset()))
    first, second = await OsFiles().open(path, writable=True), await OsFiles().open(path, writable=True)
    hops: list[object] = []
    really = Workers.run

    async def run(
        self: Workers, work: Callable[[], object], lane: Lane | None = None, *, stays: bool = False
    ) -> object:
        hops.append(work)
        return await really(self, work, lane, stays=stays)

    monkeypatch.setattr(Workers, "run", run)
    assert await first.size() == len(CONTENT)
    await first.lock()
    assert len(hops) == (0 if is_asked_at_once else 2)
    with pytest.raises(ImageLocked, match=f"pid {os.getpid()}"):
        await second.lock()
    await first.unlock()
    await second.lock()  # nothing of the first attempt is left that would be in anybody's way
    with pytest.raises(ImageLocked):
        await first.lock()
    await first.aclose()
    with pytest.raises(BackendError, match="EBADF"):
        await first.size()
    await second.aclose()


async def test_an_error_of_what_takes_no_thread_is_a_backend_error(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ploopfs.engine.os_file.storage_of", lambda _number: Storage("ext4", frozenset()))
    file = await OsFiles().open(path, writable=True)
    monkeypatch.setattr(os, "fstat", failing(errno.EIO))
    monkeypatch.setattr(fcntl, "fcntl", failing(errno.EIO))
    with pytest.raises(BackendError, match="stat: EIO"):
        await file.size()
    with pytest.raises(BackendError, match="lock: EIO"):
        await file.lock()
    monkeypatch.undo()
    await file.aclose()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
async def test_a_storage_without_locks_is_used_without_them(
    path: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await OsFiles().open(path, writable=True), await OsFiles().open(path, writable=True)
    monkeypatch.setattr(fcntl, "fcntl", failing(number))
    await first.lock()
    await second.lock()
    await first.unlock()


async def test_a_storage_that_is_dead_when_it_is_locked_says_so(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await OsFiles().open(path, writable=True)
    monkeypatch.setattr(fcntl, "fcntl", failing(errno.ENOTCONN))
    with pytest.raises(BackendError) as raised:
        await file.lock()
    assert (raised.value.errno, raised.value.operation) == (errno.ENOTCONN, "lock")


@pytest.mark.usefixtures("in_threads")
async def test_what_a_write_that_was_given_up_may_yet_change_is_not_opened_for_writing_before_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, files = str(tmp_path / "image"), OsFiles()
    (tmp_path / "image").write_bytes(bytes(4096))
    began, go_on, really = trio.Event(), threading.Event(), os.pwrite
    token = trio.lowlevel.current_trio_token()

    def hanging(fd: int, data: bytes, offset: int) -> int:
        token.run_sync_soon(began.set)
        go_on.wait()
        return really(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", hanging)
    file = await files.open(path, writable=True)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.write, 0, b"late")
            await began.wait()
            scope.cancel()
    assert file.abandoned
    with pytest.raises(StorageTimeout, match="may yet happen"):
        await files.open(path, writable=True)
    await (await files.open(path, writable=False)).aclose()
    go_on.set()
    with trio.fail_after(10):
        while True:
            try:
                again = await files.open(path, writable=True)
                break
            except StorageTimeout:
                await trio.lowlevel.checkpoint()
    assert await again.read(0, 4) == b"late"
    await again.aclose()


@pytest.mark.parametrize("given_up_by", ["who loads it", "who replaces by it"])
async def test_a_file_with_something_given_up_holds_no_lock_which_nobody_could_get_again(
    path: str, given_up_by: str
) -> None:
    file = await OsFiles().open(path, writable=True)
    await file.lock()
    file.abandoned = True
    if given_up_by == "who loads it":
        await dismiss(file)
    else:
        with pytest.raises(StorageTimeout):
            async with lock_handed_over(Mock(), (), file):
                raise StorageTimeout("as if it had not answered")
    again = await OsFiles().open(path, writable=True)
    await again.lock()
    await again.aclose()
    file.close()


async def test_through_a_client_of_a_remote_store_nothing_is_read_from_the_page_cache(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ploopfs.engine.storage.Storage.is_remote", True)
    file = await OsFiles().open(path, writable=False)
    dropped: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _fd, offset, length, _advice: dropped.append((offset, length)))
    assert file.read_nowait(5000, 10) is None
    assert await file.read(5000, 10) == CONTENT[5000:5010]
    assert dropped == [(4096, 4096)]
    await file.aclose()


def test_a_change_that_was_given_up_before_it_began_never_happens() -> None:
    happened: list[str] = []
    early, late = (Hop(lambda: happened.append("change"), lambda: None) for _ in range(2))
    early.give_up()
    early()
    assert (happened, early.is_under_way()) == ([], False)
    late()
    late.give_up()
    assert (happened, late.is_under_way()) == (["change"], False)


def test_a_file_that_is_opened_when_nobody_waits_for_it_any_more_is_closed() -> None:
    early, late = Mock(), Mock()
    opening = Opening(lambda: early)
    assert opening.give_up() is None
    opening()
    early.close.assert_called_once()
    opening = Opening(lambda: late)
    opening()
    assert opening.give_up() is late
    late.close.assert_not_called()


def drops_pages(path: str) -> bool:
    """Whether the file system has a storage to read from again; one in memory has none."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return not is_cached(path)


def is_cached(path: str) -> bool:
    with open(path, "rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(4096)], 0, os.RWF_NOWAIT) == 4096
        except BlockingIOError:
            return False


async def test_who_opens_an_image_for_writing_sees_what_is_on_the_storage_and_not_what_a_failed_fsync_left(
    path: str,
) -> None:
    if not drops_pages(path):
        real_or_skip(f"the file system of {path} is all cache")
    for writable in (False, True):
        Path(path).read_bytes()
        assert is_cached(path)
        file = await OsFiles().open(path, writable=writable)
        assert is_cached(path) is not writable
        assert await file.read(0, len(CONTENT)) == CONTENT
        await file.aclose()


@pytest.mark.usefixtures("in_threads")
@pytest.mark.parametrize("is_remote", [False, True])
async def test_writes_to_a_local_file_are_handed_to_one_thread_as_the_kernel_lets_one_in_at_a_time(
    path: str, monkeypatch: pytest.MonkeyPatch, is_remote: bool
) -> None:
    """And a read, or an fsync, does not wait for them. Of a remote store each may be on its way."""
    monkeypatch.setattr("ploopfs.engine.storage.Storage.is_remote", is_remote)
    file = await OsFiles().open(path, writable=True)
    began, go_on, really = threading.Semaphore(0), threading.Semaphore(0), os.pwrite

    def hanging(fd: int, data: bytes, offset: int) -> int:
        began.release()
        assert go_on.acquire(timeout=60)
        return really(fd, data, offset)

    def arrivals(count: int) -> bool:
        return all(began.acquire(timeout=60) for _ in range(count))

    monkeypatch.setattr(os, "pwrite", hanging)
    async with trio.open_nursery() as nursery:
        for offset in (0, 10, 20):
            nursery.start_soon(file.write, offset, b"new")
        assert await trio.to_thread.run_sync(arrivals, 3 if is_remote else 1)
        await file.sync()
        assert len(await file.read(0, 10)) == 10
        assert not began.acquire(blocking=False)
        go_on.release(3)
    assert (await file.read(0, 23))[::10][:3] == b"nnn"
    await file.aclose()


async def test_a_lock_is_taken_back_after_the_unlock_that_was_given_up_and_is_kept(
    path: str, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    began, go_on, really = trio.Event(), threading.Event(), lock.release
    token = trio.lowlevel.current_trio_token()

    def hanging(fd: int) -> None:
        token.run_sync_soon(began.set)
        go_on.wait()
        really(fd)

    file = await OsFiles().open(path, writable=True)
    await file.lock()
    with monkeypatch.context() as patched, trio.CancelScope() as scope:
        patched.setattr(lock, "release", hanging)
        async with trio.open_nursery() as inner:
            inner.start_soon(file.unlock)
            await began.wait()
            scope.cancel()
    nursery.start_soon(file.lock)
    await wait_all_tasks_blocked(0.05)
    go_on.set()
    while nursery.child_tasks:
        await wait_all_tasks_blocked(0.01)
    assert not file.abandoned
    another = await OsFiles().open(path, writable=True)
    with pytest.raises(ImageLocked):
        await another.lock()
    await another.aclose()
    await file.aclose()


async def test_what_is_written_back_is_waited_for_by_the_next_sync_and_by_the_close_of_the_descriptor(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await OsFiles().open(path, writable=True)
    asked: list[int] = []
    done: list[str] = []
    go_on = threading.Event()

    def hanging(fd: int) -> None:
        asked.append(fd)
        assert go_on.wait(60)
        os.fstat(fd)
        done.append("writeback")

    monkeypatch.setattr("ploopfs.engine.os_file.start_writeback", hanging)
    monkeypatch.setattr(os, "fdatasync", lambda _fd: done.append("sync"))
    file.start_writeback()
    while not asked:
        await trio.lowlevel.checkpoint()
    file.start_writeback()  # which never begins
    await file.write(0, b"new")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.sync)
        await wait_all_tasks_blocked()
        assert done == []
        await file.aclose()
        os.fstat(file._fd)
        go_on.set()
    assert done == ["writeback", "sync"]
    file.start_writeback()
    assert len(asked) == 1


async def test_behind_a_sync_one_writeback_waits_and_none_behind_another_sync(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await OsFiles().open(path, writable=True)
    done: list[str] = []
    came, go_on = threading.Event(), threading.Event()

    def sync(_fd: int) -> None:
        came.set()
        assert go_on.wait(60)
        done.append("sync")

    monkeypatch.setattr("ploopfs.engine.os_file.start_writeback", lambda _fd: done.append("writeback"))
    monkeypatch.setattr(os, "fdatasync", sync)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.sync)
        assert await trio.to_thread.run_sync(came.wait, 60)
        for _ in range(3):
            file.start_writeback()
        nursery.start_soon(file.sync)
        await wait_all_tasks_blocked()
        file.start_writeback()
        go_on.set()
    assert done == ["sync", "writeback", "sync"]
    await file.aclose()


async def test_a_remote_store_is_not_asked_to_write_back(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ploopfs.engine.storage.Storage.is_remote", True)
    monkeypatch.setattr("ploopfs.engine.os_file.start_writeback", lambda _fd: pytest.fail("it was asked"))
    file = await OsFiles().open(path, writable=True)
    file.start_writeback()
    await file.aclose()
