"""What only a probe of the machine's own storage can get wrong: where it writes, what it leaves, and when it hangs."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.engine import probe
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.probe import SCRATCH_PREFIX, ProbedImage
from ploopfs.errors import BackendError, BadImage, ImageMismatch

CONTENT = bytes(range(256)) * 64
NAME = f"{SCRATCH_PREFIX}test"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    path = tmp_path / "store/top.hds"
    path.write_bytes(CONTENT)
    return path


class Calls:
    """The calls of os that a probe makes, with an errno for some: `fails` says which, by name and flags or file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Callable[[str, tuple[Any, ...]], int | None]) -> None:
        self.log: list[str] = []
        for name in ("open", "pread", "posix_fadvise", "pwrite", "fsync", "unlink"):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name), fails))

    def _wrapped(
        self, name: str, real: Callable[..., Any], fails: Callable[[str, tuple[Any, ...]], int | None]
    ) -> Callable[..., Any]:
        def call(*arguments: Any, **others: Any) -> Any:  # noqa: ANN401 -- whatever os takes and gives
            self.log.append(name)
            number = fails(name, arguments)
            if number is not None:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **others)

        return call


def nothing_fails(_name: str, _arguments: tuple[Any, ...]) -> None:
    return None


def without_tmpfile(name: str, arguments: tuple[Any, ...]) -> int | None:
    is_tmpfile = name == "open" and arguments[1] & os.O_TMPFILE == os.O_TMPFILE
    return errno.EOPNOTSUPP if is_tmpfile else None


def failing(operation: str, number: int) -> Callable[[str, tuple[Any, ...]], int | None]:
    return lambda name, arguments: without_tmpfile(name, arguments) or (number if name == operation else None)


def written(path: Path) -> ProbedImage:
    return ProbedImage(path=str(path), start=CONTENT[:64], write_beside=True)


@pytest.mark.parametrize("fails", [nothing_fails, without_tmpfile])
def test_a_synced_write_is_made_beside_the_image_and_leaves_no_file(
    image: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[[str, tuple[Any, ...]], int | None]
) -> None:
    calls = Calls(monkeypatch, fails)
    probe.probe([written(image)], NAME)
    assert calls.log.index("pwrite") < calls.log.index("fsync")
    assert calls.log.count("pread") == 2, "the image, and what was written"
    assert ("unlink" in calls.log) is (fails is without_tmpfile)
    assert os.listdir(image.parent) == [image.name]
    assert image.read_bytes() == CONTENT


def test_an_image_that_is_only_read_is_not_written_beside(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, nothing_fails)
    probe.probe([ProbedImage(path=str(image), failed=(100, 50))], NAME)
    assert calls.log == [*["open"] * 3, *["posix_fadvise", "pread"] * 2], "past the page cache"


@pytest.mark.parametrize("place", ["absent", "other", "directory", "fifo", "no directory"])
def test_a_mountpoint_without_its_mount_is_not_written_to(
    image: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    image.unlink()
    match place:
        case "other":
            image.write_bytes(b"another image")
        case "directory":
            image.mkdir()
        case "fifo":
            os.mkfifo(image)
        case "no directory":
            image.parent.rmdir()
    calls = Calls(monkeypatch, nothing_fails)
    with pytest.raises((BackendError, BadImage, ImageMismatch)):
        probe.probe([written(image)], NAME)
    assert "pwrite" not in calls.log


def test_through_a_link_the_write_is_made_where_the_image_is(image: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/top.hds").symlink_to(image)
    (tmp_path / "bare").chmod(0o555)
    probe.probe([written(tmp_path / "bare/top.hds")], NAME)


@pytest.mark.parametrize("operation", ["pwrite", "fsync"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.EROFS, errno.ECONNABORTED])
def test_a_failed_write_speaks_against_the_storage_and_its_file_is_removed(
    image: Path, monkeypatch: pytest.MonkeyPatch, operation: str, number: int
) -> None:
    Calls(monkeypatch, failing(operation, number))
    with pytest.raises(BackendError) as raised:
        probe.probe([written(image)], NAME)
    expected = errno.ENOTCONN if number == errno.ECONNABORTED else number
    assert (raised.value.errno, raised.value.path) == (expected, str(image.parent / NAME))
    assert os.listdir(image.parent) == [image.name]


@pytest.mark.parametrize("operation", ["pwrite", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_storage_is_a_sound_one(
    image: Path, monkeypatch: pytest.MonkeyPatch, operation: str, number: int
) -> None:
    Calls(monkeypatch, failing(operation, number))
    probe.probe([written(image)], NAME)
    assert os.listdir(image.parent) == [image.name]


def test_a_directory_that_is_not_ours_to_write_to_says_nothing_of_the_storage(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str, arguments: tuple[Any, ...]) -> int | None:
        return errno.EACCES if name == "open" and arguments[1] & os.O_ACCMODE == os.O_RDWR else None

    Calls(monkeypatch, fails)
    probe.probe([written(image)], NAME)


def test_what_a_dying_storage_kept_of_a_probe_is_removed_by_the_next(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as dying:
        Calls(dying, failing("unlink", errno.ENOTCONN))
        with pytest.raises(BackendError, match="unlink"):
            probe.probe([written(image)], NAME)
    assert NAME in os.listdir(image.parent)
    Calls(monkeypatch, without_tmpfile)
    probe.probe([written(image)], NAME)
    assert os.listdir(image.parent) == [image.name]


def test_a_storage_that_gives_back_something_else_is_not_sound(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda _fd, data, _offset: len(data))
    with pytest.raises(BackendError) as raised:
        probe.probe([written(image)], NAME)
    assert raised.value.errno == errno.EIO


def test_a_failed_probe_leaves_no_descriptor_open(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    for operation in ("pread", "pwrite", "fsync", "unlink"):
        with monkeypatch.context() as failure:
            Calls(failure, failing(operation, errno.EIO))
            with pytest.raises(BackendError):
                probe.probe([written(image)], NAME)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_mount_that_dies_in_the_midst_of_a_probe_is_what_the_probe_says_and_close_says_no_more(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing a file of a dead FUSE mount fails, and closes."""
    before, close = len(os.listdir("/proc/self/fd")), os.close

    def closing(fd: int) -> None:
        close(fd)
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(os, "close", closing)
    Calls(monkeypatch, lambda name, _: errno.ENOTCONN if name == "pread" else None)
    with pytest.raises(BackendError, match="read 4096 bytes at 0: ENOTCONN"):
        probe.probe([written(image)], NAME)
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_probe_that_hangs_is_one_thread_which_the_next_waits_for_and_the_device_s_threads_are_free(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, hung, begun = OsFiles(threads=1), threading.Event(), 0
    real = os.fsync

    def hanging(fd: int) -> None:
        nonlocal begun
        begun += 1
        hung.wait()
        real(fd)

    monkeypatch.setattr(os, "fsync", hanging)
    for _ in range(3):
        with trio.move_on_after(0.05) as limit:
            await files.probe([written(image)])
        assert limit.cancelled_caught
    assert begun == 1
    file = await files.open(str(image), writable=False)
    assert await file.read(0, 10) == CONTENT[:10]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(files.probe, [written(image)])
        await wait_all_tasks_blocked()
        hung.set()
    assert begun == 2
    assert os.listdir(image.parent) == [image.name]
