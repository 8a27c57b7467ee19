"""The store that forgets: what it does beyond being a file like any other (test_file_conformance.py)."""

import errno
from itertools import cycle

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.engine.file import File
from ploopfs.errors import BackendError
from ploopfs.testing.forgetful import ForgetfulFiles

PATH = "/forgetful/image"
CONTENT = b"0123456789"


async def opened(store: ForgetfulFiles) -> File:
    store.put(PATH, CONTENT)
    return await store.open(PATH, writable=True)


async def test_a_crash_takes_back_what_nobody_synced() -> None:
    store = ForgetfulFiles()
    file = await opened(store)
    await file.write(2, b"ab")
    await file.sync()
    await file.write(3, b"cd")
    await file.truncate(20)
    await file.punch(0, 2)
    assert store.bytes_of(PATH) == b"\0\0acd56789" + bytes(10)
    store.crash()
    assert store.bytes_of(PATH) == store.durable_bytes_of(PATH) == b"01ab456789"


async def test_a_size_that_was_synced_stays_and_nothing_else_does() -> None:
    store = ForgetfulFiles()
    file = await opened(store)
    await file.write(2, b"ab")
    await file.truncate(20)
    await file.sync_size(20)
    await file.truncate(30)
    store.crash()
    assert store.bytes_of(PATH) == CONTENT + bytes(10)


async def test_what_was_cut_off_does_not_come_back_with_a_size_that_was_synced() -> None:
    store = ForgetfulFiles()
    file = await opened(store)
    await file.write(2, b"ab")
    await file.write(6, b"cd")
    await file.truncate(5)
    await file.truncate(10)
    await file.sync_size(10)
    store.survives = lambda: True
    store.crash()
    assert store.bytes_of(PATH) == b"01ab4" + bytes(5)


async def test_of_what_was_not_synced_as_much_survives_as_is_asked_for() -> None:
    store = ForgetfulFiles()
    file = await opened(store)
    for offset, data in enumerate((b"a", b"b", b"c", b"d")):
        await file.write(2 * offset, data)
    survives = cycle([False, True])
    store.survives = lambda: next(survives)
    store.crash()
    assert store.bytes_of(PATH) == b"01b345d789"


async def test_who_was_open_is_told_once_and_then_hears_of_success_only() -> None:
    store = ForgetfulFiles(number=errno.EIO)
    file = await opened(store)
    await file.write(0, b"x")
    store.crash()
    with pytest.raises(BackendError) as told:
        await file.sync()
    assert (told.value.errno, told.value.operation) == (errno.EIO, "fsync")
    await file.sync()
    assert await file.read(0, 10) == CONTENT


async def test_who_was_open_on_a_store_that_stays_dead_is_told_each_time_and_who_opens_it_now_is_not() -> None:
    store = ForgetfulFiles(stays_dead=True)
    file = await opened(store)
    store.crash()
    for _ in range(2):
        with pytest.raises(BackendError, match="ENOTCONN"):
            await file.read(0, 1)
    again = await store.open(PATH, writable=True)
    assert await again.read(0, 10) == CONTENT


async def test_it_crashes_by_itself_before_the_operation_that_was_asked_for() -> None:
    store = ForgetfulFiles()
    file = await opened(store)
    store.crash_at = {2}
    await file.write(0, b"x")
    with pytest.raises(BackendError):
        await file.sync()
    assert store.crashes == 1
    assert store.bytes_of(PATH) == CONTENT


async def test_what_is_on_its_way_when_the_store_crashes_does_not_arrive() -> None:
    store = ForgetfulFiles()
    file = await opened(store)
    errors: list[int] = []

    async def write(data: bytes) -> None:
        try:
            await file.write(0, data)
        except BackendError as error:
            errors.append(error.errno)

    async with trio.open_nursery() as nursery:
        await wait_all_tasks_blocked()
        nursery.start_soon(write, b"lost")
        await trio.lowlevel.checkpoint()
        store.crash()
    assert errors == [errno.ENOTCONN]
    assert store.bytes_of(PATH) == store.durable_bytes_of(PATH) == CONTENT
