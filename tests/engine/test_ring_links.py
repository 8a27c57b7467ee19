"""Writes of several pieces, and the reply behind them, as one chain of the kernel's: this machine's own ring."""

import ctypes
import errno
import gc
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.engine import ring as ring_module
from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.ring import Ring, ring_of_loop
from ploopfs.engine.ring_write import Reply, Write
from ploopfs.errors import BackendError
from ploopfs.testing.images import ImageBuilder
from tests.engine.test_ring import PATIENCE_S, Pipe, fd, path, pipe, ring, short_files, stir, until, until_room
from tests.realparts import need

__all__ = ["fd", "path", "pipe", "ring", "short_files"]
_FEATURES_AT, _FLAGS_AT = 20, 8
PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture(autouse=True)
def _needs() -> None:
    need(io_uring=True)


class Reader:
    """The other end of what a reply is written to."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._sock, self.fd = ours, theirs.detach()

    def got(self) -> list[bytes]:
        """Each message; b"" when nobody can send another one."""
        messages = []
        while True:
            try:
                messages.append(self._sock.recv(1000))
            except BlockingIOError:
                return messages
            if not messages[-1]:
                return messages

    def wait(self) -> None:
        """Without a turn of the event loop."""
        assert select.select([self._sock], [], [], PATIENCE_S)[0]

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()
    with suppress(OSError):  # a test may have closed it
        os.close(reader.fd)


class Story:
    """What was told of one write and its reply, in order."""

    def __init__(self, fd: int) -> None:
        self.told: list[tuple[object, ...]] = []
        self.reply = Reply(fd, b"done", lambda result: self.told.append(("sent", result)))

    def ended(self, full: int, result: int) -> None:
        self.told.append(("ended", full, result))

    @property
    def is_over(self) -> bool:
        return len(self.told) == 2


async def test_the_pieces_are_written_one_after_the_other_and_then_the_reply_before_anybody_here_hears_of_it(
    ring: Ring, pipe: Pipe, reader: Reader
) -> None:
    story = Story(reader.fd)
    ring.begin(pipe.end, ((0, b"first"), (0, b"second")), story.ended, story.reply)
    assert story.reply.is_left
    await wait_all_tasks_blocked(0.01)
    assert (story.told, reader.got()) == ([], [])
    content = b""
    with trio.fail_after(PATIENCE_S):
        while not (messages := reader.got()):
            content += pipe.content()  # no turn of the event loop: nobody here is told
    assert (messages, story.told) == ([b"done"], [])
    assert (content + pipe.content()).lstrip(b"\0") == b"firstsecond"
    await until(lambda: story.is_over)
    assert story.told == [("ended", 2, 6), ("sent", 4)]
    assert not ring._writes


def told_by_file(limit: int) -> dict[str, tuple[tuple[tuple[int, bytes], ...], tuple[int, int], bytes]]:
    """Pieces of which one fails in a file that gets no longer than the limit; what is told, and what is in the file."""
    return {
        "the first": (((limit, b"x"), (10, b"not")), (0, -errno.EFBIG), bytes(3)),
        "the second": (((10, b"yes"), (limit, b"x")), (1, -errno.EFBIG), b"yes"),
        "a part": (((limit - 3, b"abcdef"), (10, b"not")), (0, 3), bytes(3)),
    }


@pytest.mark.parametrize("failing", ["the first", "the second", "a part"])
async def test_after_a_piece_that_fails_nothing_more_is_done_and_there_is_no_reply(
    ring: Ring, fd: int, reader: Reader, short_files: int, failing: str
) -> None:
    pieces, ended, content = told_by_file(short_files)[failing]
    story = Story(reader.fd)
    ring.begin(fd, pieces, story.ended, story.reply)
    await until(lambda: story.is_over)
    await wait_all_tasks_blocked(0.01)
    assert sorted(story.told, key=str) == [("ended", *ended), ("sent", -errno.ECANCELED)]
    assert os.pread(fd, 3, 10) == content
    assert reader.got() == []


async def test_a_descriptor_that_is_none_writes_nothing_and_has_no_reply(ring: Ring, reader: Reader) -> None:
    closed = os.open(os.devnull, os.O_WRONLY)
    os.close(closed)
    story = Story(reader.fd)
    ring.begin(closed, ((0, b"x"), (1, b"y")), story.ended, story.reply)
    await until(lambda: story.is_over)
    (_, full, result), (_, sent) = sorted(story.told, key=lambda each: str(each[0]))
    assert (full, result) == (0, -errno.EBADF)
    assert sent == -errno.ECANCELED
    assert reader.got() == []


@pytest.mark.parametrize(("closes", "number"), [("reader", errno.EPIPE), ("number", errno.EBADF)])
async def test_a_reply_that_nobody_takes_is_told_of_once_and_the_write_is_done_all_the_same(
    ring: Ring, fd: int, reader: Reader, closes: str, number: int
) -> None:
    story = Story(reader.fd)
    if closes == "reader":
        reader.close()
    else:
        os.close(reader.fd)
    ring.begin(fd, ((0, b"data"),), story.ended, story.reply)
    await until(lambda: story.is_over)
    await wait_all_tasks_blocked(0.01)
    assert story.told == [("ended", 1, 4), ("sent", -number)]
    assert (os.pread(fd, 4, 0), ring._in_flight, ring._writes) == (b"data", 0, {})


async def test_a_reply_that_waits_for_a_write_keeps_nothing_open_and_goes_to_what_its_number_is_then(
    ring: Ring, pipe: Pipe, reader: Reader
) -> None:
    """Who closes a connection is not to wait for a storage that hangs."""
    story = Story(reader.fd)
    ring.begin(pipe.end, ((0, b"hangs"),), story.ended, story.reply)
    await wait_all_tasks_blocked(0.01)
    void = os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, reader.fd)
    os.close(void)
    reader.wait()
    assert reader.got() == [b""], "its last descriptor is gone"
    assert await until_room(pipe, lambda: story.is_over) == b"hangs"
    assert story.told == [("ended", 1, 5), ("sent", 4)]


async def test_the_bytes_of_both_stay_where_they_are_until_the_kernel_is_done_with_them(
    ring: Ring, fd: int, pipe: Pipe
) -> None:
    told: list[int] = []
    data = bytearray(b"data")
    ring.begin(fd, ((0, data), (4, b"".join((b"mo", b"re")))), lambda *_: None, Reply(pipe.end, b"".join(
        (b"a reply ", b"of its own")), told.append))
    with pytest.raises(BufferError):
        data.extend(b"which would move them")
    await until(lambda: os.pread(fd, 8, 0) == b"datamore")
    await until(lambda: next(iter(ring._writes.values()))._holds == [])
    data.extend(b", and is his again")
    gc.collect()
    assert (told, len(ring._writes)) == ([], 1)
    assert await until_room(pipe, lambda: told) == b"a reply of its own"
    assert (told, ring._writes) == ([18], {})


async def test_room_is_counted_in_parts(
    ring: Ring, fd: int, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "RING_WRITES", 4)
    story = Story(fd)
    ring.begin(pipe.end, ((0, b"h"), (0, b"h")), story.ended, story.reply)
    refused = Story(fd)
    with pytest.raises(BlockingIOError):
        ring.begin(pipe.end, ((0, b"no"),), refused.ended, refused.reply)
    assert not refused.reply.is_left
    one = Story(fd)
    ring.begin(pipe.end, ((0, b"h"),), one.ended)
    await until_room(pipe, lambda: story.is_over and one.told)
    assert (ring._in_flight, refused.told) == (0, [])


class Stingy:
    """A kernel that takes only so many of what it is given, one number after the other, and then all."""

    def __init__(self, *takes: int) -> None:
        self._takes, self._really = iter(takes), ring_module._call

    def __call__(self, number: int, *arguments: object) -> int:
        if number == ring_module._ENTER:
            ring_fd, count, *rest = arguments
            take = next(self._takes, count)
            if not take:
                ctypes.set_errno(errno.EAGAIN)
                return -1
            arguments = (ring_fd, take, *rest)
        return int(self._really(number, *arguments))


@pytest.mark.parametrize(
    "takes", [(1,), (2,), (3,), (4,), (5,), (0,), (0, 1), (1, 0, 0), (1, 1, 1), (2, 1, 1, 1), (1, 3, 0, 1)], ids=str
)
async def test_a_write_that_the_kernel_takes_part_by_part_is_done_and_answered_as_if_it_had_taken_it_whole(
    ring: Ring, fd: int, reader: Reader, monkeypatch: pytest.MonkeyPatch, takes: tuple[int, ...]
) -> None:
    monkeypatch.setattr(ring_module, "_call", Stingy(*takes))
    story, other = Story(reader.fd), Story(reader.fd)
    ring.gather()
    ring.begin(fd, ((0, b"1"), (1, b"2")), story.ended, story.reply)
    ring.begin(fd, ((2, b"3"), (3, b"4")), other.ended, other.reply)
    ring.submit()
    await until(lambda: story.is_over and other.is_over)
    await wait_all_tasks_blocked(0.01)
    assert (sorted(story.told), sorted(other.told)) == ([("ended", 2, 1), ("sent", 4)],) * 2
    assert (os.pread(fd, 4, 0), reader.got()) == (b"1234", [b"done"] * 2)
    assert (ring._in_flight, ring._gathered, ring._writes) == (0, 0, {})


@pytest.mark.parametrize("takes", [1, 2], ids=["the first", "all but the reply"])
async def test_what_the_kernel_has_not_taken_waits_for_what_it_has_and_holds_up_no_other(
    ring: Ring, fd: int, pipe: Pipe, reader: Reader, monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    monkeypatch.setattr(ring_module, "_call", Stingy(takes))
    story, other, third = Story(reader.fd), Story(reader.fd), Story(fd)
    data = bytearray(b"second")
    ring.gather()
    first = bytes([1]) * PAGE
    write = ring.begin(pipe.end, ((0, first), (0, data)), story.ended, story.reply)
    ring.begin(fd, ((2, b"3"), (3, b"4")), other.ended, other.reply)
    ring.submit()
    ring.begin(fd, ((4, b"5"),), third.ended)
    await until(lambda: other.is_over and third.told)
    await wait_all_tasks_blocked(0.01)
    assert (os.pread(fd, 3, 2), reader.got(), story.told) == (b"345", [b"done"], [])
    assert (write.is_under_way(), ring._in_flight) == (True, 3)
    os.read(pipe.start, PAGE)  # there is room for the first alone
    await wait_all_tasks_blocked(0.01)
    assert (write.is_under_way(), story.told) == (True, [])
    with pytest.raises(BufferError):
        data.extend(b"which would move them")
    assert await until_room(pipe, lambda: story.is_over) == first + b"second"
    assert sorted(story.told) == [("ended", 2, 6), ("sent", 4)]
    assert (reader.got(), ring._in_flight, ring._writes) == ([b"done"], 0, {})
    data.extend(b", and is his again")


@pytest.mark.parametrize("failing", ["the first", "the second", "a part"])
@pytest.mark.parametrize("takes", [(1,), (2,), (1, 1)], ids=str)
async def test_what_the_kernel_has_not_taken_is_not_done_if_what_comes_before_it_fails(
    ring: Ring,
    fd: int,
    reader: Reader,
    short_files: int,
    monkeypatch: pytest.MonkeyPatch,
    takes: tuple[int, ...],
    failing: str,
) -> None:
    monkeypatch.setattr(ring_module, "_call", Stingy(*takes))
    pieces, ended, content = told_by_file(short_files)[failing]
    story = Story(reader.fd)
    ring.begin(fd, pieces, story.ended, story.reply)
    await until(lambda: story.is_over)
    await wait_all_tasks_blocked(0.01)
    assert sorted(story.told) == [("ended", *ended), ("sent", -errno.ECANCELED)]
    assert (os.pread(fd, 3, 10), reader.got()) == (content, [])
    assert (ring._in_flight, ring._gathered, ring._writes) == (0, 0, {})


async def test_who_waits_for_a_write_waits_for_what_the_kernel_takes_later(
    ring: Ring, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "_call", Stingy(1, 0, 0))
    story = Story(fd)
    assert await ring.begin(fd, ((0, b"1"), (1, b"2")), story.ended).wait() == (2, 1)
    assert (os.pread(fd, 2, 0), story.told) == (b"12", [("ended", 2, 1)])


@pytest.mark.expects_warnings
async def test_a_bug_of_who_hears_of_a_failure_leaves_nothing_of_what_the_kernel_has_not_taken(
    ring: Ring, fd: int, reader: Reader, short_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "_call", Stingy(1))
    story = Story(reader.fd)

    def meet_a_bug(_full: int, _result: int) -> None:
        raise ValueError("a bug")

    ring.begin(fd, ((short_files, b"x"), (0, b"not")), meet_a_bug, story.reply)
    await until(lambda: story.told)
    assert (story.told, ring._in_flight, ring._writes) == ([("sent", -errno.ECANCELED)], 0, {})


@pytest.mark.parametrize("takes", [(1,), (1, 0, 0)], ids=str)
async def test_a_cluster_is_allocated_though_the_kernel_takes_its_data_alone_at_first(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, takes: tuple[int, ...]
) -> None:
    image = tmp_path / "top.hds"
    image.write_bytes(ImageBuilder(disk_clusters=8).build())
    stack = await open_stack(OsFiles(), StackSpec((ImageSpec(str(image)),)), read_only=False, counters=Counters())
    assert stack.room is not None
    await stack.room.make()
    monkeypatch.setattr(ring_module, "_call", Stingy(*takes))
    story = Story(reader.fd)
    heard: list[BackendError | None] = []
    assert stack.write_soon(3 * stack.cluster_bytes, b"acknowledged", heard.append, story.reply)
    await until(lambda: heard and story.told)
    assert (heard, story.told, reader.got()) == ([None], [("sent", 4)], [b"done"])
    assert (stack.top.uncertain_slots, stack.top.doubtful_clusters) == (set(), set())
    await stack.aclose(clean=True)
    stack = await open_stack(OsFiles(), StackSpec((ImageSpec(str(image)),)), read_only=True, counters=Counters())
    assert await stack.read(3 * stack.cluster_bytes, 12) == b"acknowledged"
    await stack.aclose(clean=False)


def without(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older kernel."""
    really = ring_module._set_up

    def set_up(parameters: bytearray) -> int:
        if flag == "flags" and struct.unpack_from("=I", parameters, _FLAGS_AT)[0]:
            ctypes.set_errno(errno.EINVAL)
            return -1
        fd = really(parameters)
        if flag == "features":
            features = struct.unpack_from("=I", parameters, _FEATURES_AT)[0]
            struct.pack_into("=I", parameters, _FEATURES_AT, features & ~ring_module._LATE_FILES)
        return fd

    monkeypatch.setattr(ring_module, "_set_up", set_up)


@pytest.mark.parametrize("lacks", ["flags", "features"])
async def test_a_kernel_that_cannot_link_as_is_needed_makes_single_writes(
    path: str, reader: Reader, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    without(lacks, monkeypatch)
    ring = ring_of_loop()
    assert ring is not None
    assert not ring.can_link
    file = await OsFiles().open(path, writable=True)
    heard: list[BackendError | None] = []
    story = Story(reader.fd)
    assert not file.write_soon(((0, b"a"), (1, b"b")), heard.append, story.reply)
    assert file.write_soon(((5, b"one"),), heard.append, story.reply)
    await until(lambda: heard)
    assert (heard, story.told, story.reply.is_left, reader.got()) == ([None], [], False, [])
    assert await file.read(0, 8) == b"\0\0\0\0\0one"
    await file.aclose()


@pytest.mark.parametrize("depth", [1, 40])
async def test_each_chain_is_told_of_once_whoever_delivers_and_however_the_kernel_takes_them(
    ring: Ring, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    random, count, piece = Random(depth), 600, 64
    fds = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(3)]
    fds.append(os.open(tmp_path / "0", os.O_RDONLY))
    takes = (random.randrange(5) if random.random() < 0.3 else 64 for _ in range(10**9))
    monkeypatch.setattr(ring_module, "_AGAIN_S", 0)
    really = Stingy()

    def call(number: int, *arguments: object) -> int:
        if number == ring_module._ENTER:
            ring_fd, gathered, *rest = arguments
            assert isinstance(gathered, int)
            return int(really(number, ring_fd, min(gathered, next(takes)), *rest))
        return int(really(number, *arguments))

    monkeypatch.setattr(ring_module, "_call", call)
    held: list[int] = []
    hold = Write.hold

    def count_and_hold(write: Write, part: int, go_on: Callable[[bool], None]) -> None:
        held.append(part)
        hold(write, part, go_on)

    monkeypatch.setattr(Write, "hold", count_and_hold)
    ended: dict[int, int] = {}
    sent: dict[int, int] = {}
    messages: list[bytes] = []
    left = iter(range(count))

    def data_of(number: int, part: int) -> bytes:
        return (b"%d.%d" % (number, part)).ljust(piece, b"-")

    def is_over(number: int, told: dict[int, int], full: int, _result: int = 0) -> None:
        assert number not in told
        told[number] = full
        if number in ended and number in sent:
            begin()

    def begin() -> None:
        number = next(left, None)
        if number is None:
            return
        pieces = [(2 * piece * number + piece * part, data_of(number, part)) for part in range(random.randrange(1, 3))]
        reply = Reply(reader.fd, b"%d" % number, partial(is_over, number, sent)) if random.random() < 0.7 else None
        if reply is None:
            sent[number] = 0
        ring.begin(fds[number % 4], pieces, partial(is_over, number, ended), reply)
        parts[number] = len(pieces)

    parts: dict[int, int] = {}
    try:
        for _ in range(depth):
            begin()
        with trio.fail_after(PATIENCE_S):
            while len(ended) < count or len(sent) < count:
                messages += reader.got()
                await stir(ring, random)
        messages += reader.got()
        assert not ring._writes
        assert sorted(map(int, messages)) == sorted(number for number, result in sent.items() if result > 0)
        assert {1, 2} <= set(held), "none was cut there"
        for number in range(count):
            is_told = (ended[number], sent[number])
            if number % 4 == 3:
                assert is_told == (0, sent[number] and -errno.ECANCELED), "it cannot be written"
                continue
            assert is_told == (parts[number], sent[number] and len(b"%d" % number))
            for part in range(parts[number]):
                found = os.pread(fds[number % 4], piece, 2 * piece * number + piece * part)
                assert found == data_of(number, part), (number, part)
    finally:
        for fd in fds:
            os.close(fd)


