"""The choke point: whatever a handler raises, the mount lives."""

import errno
import inspect
import logging
import time
from pathlib import Path

import pyfuse3
import pytest
import trio

from ploopfs.engine.ring import ring_of_loop
from ploopfs.engine.ring_write import Reply
from ploopfs.errors import BackendError, BeyondEnd, PloopError
from ploopfs.fuse.answers import answers, unanswered
from ploopfs.fuse.operations import Operations
from tests.realparts import need


async def errno_after(raised: BaseException) -> int:
    @answers
    async def handler() -> None:
        raise raised

    with pytest.raises(pyfuse3.FUSEError) as caught:
        await handler()
    return caught.value.errno


async def test_what_the_kernel_has_acknowledged_by_itself_is_known_before_a_handler_looks(tmp_path: Path) -> None:
    need(io_uring=True)
    ring = ring_of_loop()
    assert ring is not None
    known: list[tuple[int, int]] = []

    @answers
    async def handler() -> None:
        assert known == [(1, 4)]

    with open(tmp_path / "image", "wb", buffering=0) as file, open(tmp_path / "reply", "w+b", buffering=0) as replies:
        reply = Reply(replies.fileno(), b"done", lambda _result: None)
        ring.begin(file.fileno(), ((0, b"data"),), lambda full, result: known.append((full, result)), reply)
        deadline_s = time.monotonic() + 60
        while replies.read(4) != b"done":
            replies.seek(0)
            assert time.monotonic() < deadline_s
        await handler()


async def test_an_expected_failure_is_its_errno() -> None:
    assert await errno_after(BeyondEnd("at the end")) == errno.ENOSPC
    assert await errno_after(BackendError(errno.ENOTCONN, "read", "top.hds")) == errno.ENOTCONN
    assert await errno_after(pyfuse3.FUSEError(errno.ENOTDIR)) == errno.ENOTDIR


@pytest.mark.parametrize("number", [0, -5, 512, 524])
async def test_an_errno_that_the_kernel_does_not_take_is_eio(number: int) -> None:
    assert await errno_after(BackendError(number, "read", "top.hds")) == errno.EIO


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    "bug",
    [RuntimeError("a bug"), OSError(errno.ENOENT, "raw"), ExceptionGroup("", [PloopError("a bug")])],
    ids=["exception", "OSError", "group"],
)
async def test_a_bug_is_eio_and_logged_with_its_traceback(bug: Exception, caplog: pytest.LogCaptureFixture) -> None:
    assert await errno_after(bug) == errno.EIO
    [record] = caplog.records
    assert (record.name, record.levelno) == ("ploopfs.fuse.operations", logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[1] is bug
    assert "handler failed" in record.getMessage()


async def test_a_cancellation_passes() -> None:
    @answers
    async def handler() -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        scope.cancel()
        await handler()
    assert scope.cancelled_caught


@pytest.mark.expects_warnings
async def test_where_there_is_no_reply_nothing_comes_out(caplog: pytest.LogCaptureFixture) -> None:
    @unanswered
    async def handler() -> None:
        raise pyfuse3.FUSEError(errno.EIO)

    await handler()
    assert len(caplog.records) == 1


def test_every_handler_goes_through_the_choke_point() -> None:
    handlers = {name: value for name, value in vars(Operations).items() if hasattr(pyfuse3.Operations, name)}
    coroutines = {name for name, value in handlers.items() if inspect.iscoroutinefunction(inspect.unwrap(value))}
    assert {"lookup", "forget", "read", "write", "poll", "create", "rename"} <= coroutines
    assert {name for name in coroutines if not hasattr(handlers[name], "__wrapped__")} == set()
