"""Writes whose acknowledgement is left to the storage's own kernel, and those where it must not be."""

import errno
import os
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.standby import State
from ploopfs.device.unflushed import CHANGE_BYTES
from ploopfs.engine.ring_write import Reply
from tests.device.ready import ReadyFiles
from tests.device.replying import ReplyingFiles
from tests.device.rig import DISK_BYTES, TOP, Asked, Rig, rig_of, three_deltas
from tests.device.test_nowait import IN_TOP

DATA = b"w" * 512


class Reader:
    """The other end of what replies are written to."""

    def __init__(self) -> None:
        self._start, self.fd = os.pipe()
        os.set_blocking(self._start, False)

    def count(self) -> int:
        """How many have come."""
        try:
            return os.read(self._start, 1 << 16).count(b"written")
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self._start)
        os.close(self.fd)


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


class Soon:
    """One write with its reply; what it is to await runs in a task. `told` is what was heard of it, in order."""

    def __init__(self, rig: Rig, nursery: trio.Nursery, reader: Reader, data: bytes = DATA) -> None:
        self.told: list[str] = []
        self.goes_on: Asked | None = None
        self._nursery = nursery
        self.reply = Reply(reader.fd, b"written", lambda _result: self.told.append("sent"))
        self.is_begun = rig.device.write_soon(IN_TOP, data, self._written, self.reply)

    def _written(self, rest: Callable[[], Awaitable[None]] | None) -> None:
        self.told.append("acknowledged" if rest is None else "goes on")
        if rest is not None:
            self.goes_on = Asked(self._nursery, rest())


async def bounded(changes: int) -> Rig:
    """So many writes of DATA fill what may be kept."""
    limit = changes * (len(DATA) + CHANGE_BYTES)
    return await rig_of(three_deltas(), storage=ReplyingFiles, bounds=Bounds(unflushed_bytes=limit))


async def test_one_whose_reply_was_sent_by_the_storage_is_kept_and_acknowledged_without_another_one(
    nursery: trio.Nursery, reader: Reader
) -> None:
    rig = await rig_of(three_deltas(), storage=ReplyingFiles)
    soon = Soon(rig, nursery, reader)
    assert (soon.is_begun, soon.reply.is_left) == (True, True)
    await wait_all_tasks_blocked()
    assert (soon.told, reader.count()) == (["acknowledged", "sent"], 1)
    assert len(rig.device.unflushed) == 1
    assert rig.device._soon._kept_bytes == 0


async def test_where_the_storage_sends_none_it_is_left_to_nobody(nursery: trio.Nursery, reader: Reader) -> None:
    rig = await rig_of(three_deltas(), storage=ReadyFiles)
    soon = Soon(rig, nursery, reader)
    await wait_all_tasks_blocked()
    assert (soon.told, soon.reply.is_left, reader.count()) == (["acknowledged"], False, 0)


async def test_none_is_left_to_the_storage_by_which_with_all_in_flight_what_is_kept_would_be_full(
    nursery: trio.Nursery, reader: Reader
) -> None:
    rig = await bounded(3)
    soons: list[Soon] = []
    released: list[trio.Event] = []
    for _ in range(2):
        released.append(rig.hang("write", count=2))
        soons += [Soon(rig, nursery, reader) for _ in range(2)]
        await wait_all_tasks_blocked()
    assert [each.reply.is_left for each in soons] == [True, True, False, False]
    fsync = rig.hang("fsync", count=1)
    for event in released:
        event.set()
        await wait_all_tasks_blocked()
    assert reader.count() == 2
    assert [each.told[0] for each in soons[:2]] == ["acknowledged"] * 2
    assert [each.told for each in soons[2:]] == [["goes on"]] * 2
    assert [each.goes_on is not None and each.goes_on.ended for each in soons[2:]] == [False, False]
    fsync.set()
    await wait_all_tasks_blocked()
    assert [each.goes_on is not None and each.goes_on.errno for each in soons[2:]] == [0, 0]
    assert len(rig.device.unflushed) == 0
    assert rig.device._soon._kept_bytes == 0
    rig.faults.rules.clear()
    assert Soon(rig, nursery, reader).reply.is_left, "there is room again"
    await wait_all_tasks_blocked()


async def test_what_was_kept_before_counts_too(nursery: trio.Nursery, reader: Reader) -> None:
    rig = await bounded(2)
    await rig.device.write(IN_TOP, DATA)
    assert not Soon(rig, nursery, reader).reply.is_left
    await wait_all_tasks_blocked()
    assert len(rig.device.unflushed) == 0


@pytest.mark.expects_warnings
async def test_one_that_fails_is_not_replied_to_and_judged_as_any(nursery: trio.Nursery, reader: Reader) -> None:
    rig = await rig_of(three_deltas(), storage=ReplyingFiles)
    rig.lose(errno.EBUSY, "write")
    soon = Soon(rig, nursery, reader)
    await wait_all_tasks_blocked()
    assert (soon.told, reader.count(), rig.state) == (["goes on", "sent"], 0, State.ON)
    assert soon.goes_on is not None
    assert soon.goes_on.errno == errno.EBUSY
    assert (len(rig.device.unflushed), rig.device._soon._kept_bytes) == (0, 0)


async def test_what_is_not_begun_leaves_no_reply_and_takes_no_room(nursery: trio.Nursery, reader: Reader) -> None:
    rig = await rig_of(three_deltas(), storage=ReplyingFiles)
    soon = Soon(rig, nursery, reader, b"x" * (DISK_BYTES + 1))
    assert (soon.is_begun, soon.reply.is_left, rig.device._soon._kept_bytes) == (False, False, 0)
    assert rig.store.bytes_of(TOP).count(DATA) == 0
