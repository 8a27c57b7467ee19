"""Writes that the kernel makes by itself: this machine's own ring. A full pipe is a storage that hangs."""

import ctypes
import errno
import gc
import itertools
import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.engine import ring as ring_module
from ploopfs.engine.os_file import OsFile, OsFiles
from ploopfs.engine.ring import Ring, ring_of_loop
from ploopfs.engine.ring_write import Ended
from ploopfs.errors import BackendError, StorageTimeout
from tests.realparts import need

PATIENCE_S = int(os.environ.get("PLOOPFS_TEST_PATIENCE_S", "60"))
"""Only a failing test waits that long."""


@pytest.fixture(autouse=True)
def _needs() -> None:
    need(io_uring=True)


@pytest.fixture
async def ring() -> Ring:
    ring = ring_of_loop()
    assert ring is not None
    return ring


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "image").write_bytes(bytes(65536))
    return str(tmp_path / "image")


@pytest.fixture
def fd(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


class Pipe:
    """Full: what is written to `end` hangs until there is `room`."""

    def __init__(self) -> None:
        self.start, self.end = os.pipe()
        os.set_blocking(self.end, False)
        try:
            while True:
                os.write(self.end, bytes(65536))
        except BlockingIOError:
            os.set_blocking(self.end, True)
        os.set_blocking(self.start, False)

    def content(self) -> bytes:
        """All of it, so that there is room; zeroes are what it was filled with."""
        parts = []
        try:
            while part := os.read(self.start, 1 << 20):
                parts.append(part)
        except BlockingIOError:
            pass
        return b"".join(parts)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.start)
    os.close(pipe.end)


async def until_room(pipe: Pipe, is_true: Callable[[], object]) -> bytes:
    """What was written to the pipe by then."""
    content = b""
    with trio.fail_after(PATIENCE_S):
        while not is_true():
            content += pipe.content()
            await trio.lowlevel.checkpoint()
    return (content + pipe.content()).lstrip(b"\0")


def never(_error: BackendError | None) -> None:
    raise AssertionError("it was told of what was not begun")


async def until(is_true: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not is_true():
            await trio.lowlevel.checkpoint()


def both(ended: list[tuple[int, int]]) -> Ended:
    """What is told as one."""
    return lambda full, result: ended.append((full, result))


async def written(ring: Ring, fd: int, offset: int, data: bytes | bytearray | memoryview) -> int:
    ended: list[tuple[int, int]] = []
    assert await ring.begin(fd, ((offset, data),), both(ended)).wait() == ended[0]
    [(full, result)] = ended
    assert full == (result == len(data))
    return result


@pytest.mark.parametrize(
    "data",
    [b"bytes", bytearray(b"bytearray"), memoryview(bytearray(b"a view"))[2:], memoryview(b"one to be read alone")[4:8]],
    ids=["bytes", "bytearray", "view", "view of bytes"],
)
async def test_what_it_writes_is_there(ring: Ring, fd: int, data: bytes | bytearray | memoryview) -> None:
    assert await written(ring, fd, 7, data) == len(data)
    assert os.pread(fd, 100, 0) == bytes(7) + bytes(data) + bytes(93 - len(data))


async def test_an_error_is_its_errno_as_a_negative_number(ring: Ring, path: str) -> None:
    read_only, full = os.open(path, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)
    try:
        assert await written(ring, read_only, 0, b"x") == -errno.EBADF
        assert await written(ring, full, 0, b"x") == -errno.ENOSPC
    finally:
        os.close(read_only)
        os.close(full)
    assert await written(ring, full, 0, b"x") == -errno.EBADF


@pytest.fixture
def short_files() -> Iterator[int]:
    """None gets longer than this."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 24, limits[1]))
    yield 1 << 24
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_the_rest_of_a_write_that_was_cut_short_is_left_to_a_thread_which_says_why(
    path: str, short_files: int
) -> None:
    file = await OsFiles().open(path, writable=True)
    with pytest.raises(BackendError) as raised:
        await file.write(short_files - 3, b"123456")
    assert (raised.value.errno, raised.value.operation) == (errno.EFBIG, "write")
    assert await file.read(short_files - 3, 6) == b"123"
    heard: list[BackendError | None] = []
    assert file.write_soon(((short_files - 3, b"abcdef"),), heard.append)
    await until(lambda: heard)
    [error] = heard
    assert error is not None
    assert (error.errno, error.length) == (errno.ENOSPC, 6)
    await file.aclose()


async def test_no_more_are_begun_than_the_bound_and_further_ones_take_a_thread(
    ring: Ring, path: str, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "RING_WRITES", 2)
    file = await OsFiles().open(path, writable=True)
    ended: list[tuple[int, int]] = []
    for _ in range(2):
        ring.begin(pipe.end, ((0, b"hung"),), both(ended))
    with pytest.raises(BlockingIOError):
        ring.begin(pipe.end, ((0, b"hung"),), both(ended))
    assert not file.write_soon(((0, b"soon"),), never)
    await file.write(0, b"by a thread")
    assert await file.read(0, 11) == b"by a thread"
    assert ended == []
    assert await until_room(pipe, lambda: len(ended) == 2) == b"hunghung"
    assert ended == [(1, 4)] * 2
    assert await written(ring, file._fd, 0, b"by the ring") == 11
    await file.aclose()


async def test_what_was_given_up_keeps_its_bytes_until_it_has_ended(ring: Ring, pipe: Pipe) -> None:
    data, ended = bytearray(b"given up"), list[tuple[int, int]]()
    write = ring.begin(pipe.end, ((0, data),), both(ended))
    with trio.CancelScope() as scope:
        scope.cancel()
        await write.wait()
    assert scope.cancelled_caught
    assert write.is_under_way()
    gc.collect()
    with pytest.raises(BufferError):
        data.extend(b"which would move them")
    assert await until_room(pipe, lambda: ended) == b"given up"
    assert ended == [(1, 8)]
    data.extend(b", and is his again")


def test_what_ends_after_the_event_loop_has_keeps_its_bytes_and_the_next_loop_has_a_ring_of_its_own(pipe: Pipe) -> None:
    data, left = bytearray(b"left behind"), list[weakref.ref[Ring]]()

    async def leave() -> None:
        ring = ring_of_loop()
        assert ring is not None
        left.append(weakref.ref(ring))
        ring.begin(pipe.end, ((0, data),), lambda _full, _result: None)
        await wait_all_tasks_blocked()

    async def write_to(fd: int) -> int:
        ring = ring_of_loop()
        assert ring is not None
        assert ring is not left[0]()
        return await written(ring, fd, 0, b"of the next loop")

    trio.run(leave)
    gc.collect()
    assert left[0]() is not None
    with pytest.raises(BufferError):
        data.extend(b"which would move them")
    content = pipe.content()
    assert trio.run(write_to, pipe.end) == 16
    content += pipe.content()
    assert sorted((content.count(b"left behind"), content.count(b"of the next loop"))) == [1, 1]


LEAVING = """
import os, sys, trio, trio.testing
from ploopfs.engine.ring import ring_of_loop

class Told(bytearray):
    def __del__(self):
        os.write(1, b"freed")

async def leave(fd):
    ring_of_loop().begin(fd, ((0, data),), print)
    await trio.testing.wait_all_tasks_blocked()

data = Told(b"in the storage")
trio.run(leave, int(sys.argv[1]))
"""


def test_its_bytes_are_not_freed_by_the_end_of_the_interpreter_either(pipe: Pipe) -> None:
    command = [sys.executable, "-c", LEAVING, str(pipe.end)]
    ended = subprocess.run(command, pass_fds=[pipe.end], capture_output=True, check=True, timeout=PATIENCE_S)
    assert (ended.stdout, ended.stderr) == (b"", b"")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOMEM])
async def test_where_there_is_none_threads_write_and_the_results_are_the_same(
    path: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_arguments: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(ring_module, "_call", refused)
    assert ring_of_loop() is None
    file = await OsFiles().open(path, writable=True)
    assert not file.write_soon(((0, b"soon"),), never)
    await file.write(5, memoryview(b"0123456789")[2:7])
    assert await file.read(4, 7) == b"\x0023456\0"
    await file.aclose()


def test_a_ring_of_which_the_kernel_refuses_a_part_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    really = ring_module._call

    def refused(number: int, *arguments: object) -> int:
        if number != ring_module._REGISTER:
            return int(really(number, *arguments))
        ctypes.set_errno(errno.EINVAL)
        return -1

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(ring_module, "_call", refused)
    for _ in range(5):
        with pytest.raises(OSError, match="Invalid argument"):
            Ring()
    gc.collect()
    assert len(set(os.listdir("/proc/self/fd")) - before) < 5


async def test_what_is_gathered_is_handed_over_together(ring: Ring, fd: int) -> None:
    ended: list[tuple[int, int]] = []
    ring.gather()
    writes = [ring.begin(fd, ((10 * number, b"%d" % number),), both(ended)) for number in range(5)]
    await wait_all_tasks_blocked(0.01)
    assert ended == []
    ring.submit()
    for write in writes:
        assert await write.wait() == (1, 1)
    assert os.pread(fd, 50, 0)[::10] == b"01234"


async def test_when_the_kernel_has_no_memory_for_one_it_is_asked_again(
    ring: Ring, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter(range(3))
    really = ring_module._call

    def refused(*arguments: object) -> int:
        return -1 if next(refusals, None) is not None else int(really(*arguments))

    monkeypatch.setattr(ring_module, "_call", refused)
    ended: list[tuple[int, int]] = []
    writes = [ring.begin(fd, ((number, b"w"),), both(ended)) for number in range(2)]
    with trio.fail_after(PATIENCE_S):
        assert [await write.wait() for write in writes] == [(1, 1)] * 2
    assert next(refusals, None) is None
    assert (os.pread(fd, 3, 0), ended) == (b"ww\0", [(1, 1)] * 2)
    assert await written(ring, fd, 2, b"w") == 1


@pytest.mark.expects_warnings
async def test_a_bug_of_who_is_told_of_one_is_not_the_others(
    ring: Ring, fd: int, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(_full: int, _result: int) -> None:
        raise RuntimeError("a bug")

    ring.begin(fd, ((0, b"x"),), bug)
    await until(lambda: "a bug" in caplog.text)
    assert await written(ring, fd, 1, b"y") == 1


async def stir(ring: Ring, random: Random) -> None:
    """One turn, in which somebody may look for what has ended, and may gather what begins."""
    if random.random() < 0.5:
        ring.deliver()
    if random.random() < 0.5:
        ring.gather()
    await trio.lowlevel.checkpoint()
    ring.submit()


@pytest.mark.parametrize("in_order", [True, False], ids=["loads in order", "loads in any order"])
@pytest.mark.parametrize("depth", [1, 7, 64])
async def test_each_write_is_told_of_once_however_many_there_are_and_whoever_delivers(
    ring: Ring, tmp_path: Path, depth: int, in_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the event loop, or in between by who looks for it."""
    monkeypatch.setattr("ploopfs.engine.ring._LOADS_IN_ORDER", in_order)
    random, count, piece = Random(depth), 2000, 64
    fds = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(5)]
    order = [(fd, piece * number) for fd in fds for number in range(count // len(fds))]
    random.shuffle(order)
    told: list[int] = []
    left = iter(enumerate(order))

    def ended(number: int, _full: int, result: int) -> None:
        told.append(number if result == piece else -1)
        begin()

    def begin() -> None:
        for number, (fd, offset) in itertools.islice(left, 1):
            data = (b"%d." % (fd * count * piece + offset)).ljust(piece, b"-")
            ring.begin(fd, ((offset, data),), partial(ended, number))

    try:
        for _ in range(depth):
            begin()
        with trio.fail_after(PATIENCE_S):
            while len(told) < count:
                await stir(ring, random)
        assert sorted(told) == list(range(count))
        assert not ring._writes
        for fd in fds:
            for offset in range(0, count // len(fds) * piece, piece):
                found = os.pread(fd, piece, offset)
                assert found == (b"%d." % (fd * count * piece + offset)).ljust(piece, b"-")
    finally:
        for fd in fds:
            os.close(fd)


# --- a file that is closed with one in flight ---------------------------------------------------------------------


async def hung_file(path: str, pipe: Pipe) -> OsFile:
    """Its storage hangs until the pipe has room."""
    file = await OsFiles().open(path, writable=True)
    os.dup2(pipe.end, file._fd, inheritable=False)
    return file


async def test_a_file_that_is_closed_with_one_in_flight_is_abandoned_and_its_descriptor_is_closed_when_it_ends(
    path: str, pipe: Pipe
) -> None:
    file, heard = await hung_file(path, pipe), list[BackendError | None]()
    fd = file._fd
    assert file.write_soon(((0, b"late"),), heard.append)
    await file.aclose()
    assert (file.abandoned, heard) == (True, [])
    os.fstat(fd)
    assert not file.write_soon(((0, b"after"),), never)
    with pytest.raises(StorageTimeout, match="may yet happen"):
        await OsFiles().open(path, writable=True)
    await (await OsFiles().open(path, writable=False)).aclose()
    assert await until_room(pipe, lambda: heard) == b"late"
    assert heard == [None]
    await until(lambda: file._fd < 0)
    again = await OsFiles().open(path, writable=True)
    await again.aclose()


async def test_so_is_one_whose_write_was_given_up_by_who_waited(path: str, pipe: Pipe) -> None:
    file = await hung_file(path, pipe)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.write, 0, b"late")
            await wait_all_tasks_blocked()
            scope.cancel()
    assert file.abandoned
    with pytest.raises(StorageTimeout):
        await OsFiles().open(path, writable=True)
    await file.aclose()
    os.fstat(file._fd)
    assert await until_room(pipe, lambda: file._fd < 0) == b"late"
    await (await OsFiles().open(path, writable=True)).aclose()


async def test_a_file_that_hangs_holds_up_no_other(ring: Ring, fd: int, pipe: Pipe) -> None:
    ended: list[tuple[int, int]] = []
    for _ in range(100):
        ring.begin(pipe.end, ((0, b"h"),), both(ended))
    for number in range(10):
        assert await written(ring, fd, number, b"w") == 1
    assert ended == []
    assert await until_room(pipe, lambda: len(ended) == 100) == b"h" * 100
