"""The log of a daemon: who logs never waits and never fails, and what is lost is counted and told."""

import errno
import logging
import logging.handlers
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ploopfs.cli import logs
from ploopfs.cli.logs import Behind, FileLog, SystemLog, end_log, file_log
from tests.mounted.daemon import HANG_S


class Store:
    """A log that is stuck while `gate` is shut, and fails with `error` while that is set."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.error: OSError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.came = threading.Semaphore(0)

    def __call__(self, record: logging.LogRecord) -> None:
        self.came.release()
        assert self.gate.wait(HANG_S)
        if self.error is not None:
            raise self.error
        self.texts.append(record.getMessage())


@contextmanager
def logger_to(store: Store) -> Iterator[tuple[logging.Logger, Behind]]:
    logger = logging.Logger("test")
    behind = Behind(store)
    logger.addHandler(behind)
    try:
        yield logger, behind
    finally:
        store.gate.set()
        behind.close()


def test_what_is_logged_is_written_in_order_and_all_of_it_at_the_end() -> None:
    store = Store()
    with logger_to(store) as (logger, _):
        for number in range(100):
            logger.warning("message %d", number)
    assert store.texts == [f"message {number}" for number in range(100)]


def test_the_text_is_that_of_the_moment() -> None:
    store = Store()
    store.gate.clear()
    with logger_to(store) as (logger, _):
        changing = ["before"]
        logger.warning("%s", changing)
        changing[0] = "after"
    assert store.texts == ["['before']"]


def test_a_stuck_log_holds_up_nobody_and_what_it_lost_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "HELD_MESSAGES", 3)
    store = Store()
    store.gate.clear()
    with logger_to(store) as (logger, _):
        logger.warning("under way")
        assert store.came.acquire(timeout=HANG_S)
        for number in range(10):
            logger.warning("message %d", number)
    held = ["message 0", "message 1", "message 2"]
    assert store.texts == ["under way", "7 messages were lost: the log was stuck", *held]


def test_a_log_that_fails_loses_messages_and_says_how_many_when_there_is_room() -> None:
    store = Store()
    with logger_to(store) as (logger, _):
        store.error = OSError(errno.ENOSPC, "No space left on device")
        for number in range(5):
            logger.warning("message %d", number)
        for _ in range(5):
            assert store.came.acquire(timeout=HANG_S)
        store.gate.clear()
        logger.warning("there is room")
        store.error = None
    assert store.texts == ["5 messages were lost: No space left on device", "there is room"]


def test_ending_waits_for_a_stuck_log_no_longer_than_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FLUSH_S", 0.05)
    for held in (1, 100):
        monkeypatch.setattr(logs, "HELD_MESSAGES", held)
        store = Store()
        store.gate.clear()
        with logger_to(store) as (logger, behind):
            logger.warning("under way")
            assert store.came.acquire(timeout=HANG_S)
            logger.warning("waits")
            behind.close()
            assert store.texts == []


def test_what_is_said_after_the_end_of_the_log_stands_behind_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store, root = Store(), logging.Logger("root")
    monkeypatch.setattr(logging, "getLogger", lambda: root)
    root.addHandler(Behind(store))
    for number in range(1000):
        root.warning("message %d", number)
    end_log()
    store.texts.append("said")
    assert store.texts == [*(f"message {number}" for number in range(1000)), "said"]
    assert not root.handlers


def test_a_traceback_is_written_as_one_record() -> None:
    path_r, path_w = os.pipe()
    with os.fdopen(path_r, "rb") as reading:
        behind = Behind(FileLog(path_w))
        logger = logging.Logger("test")
        logger.addHandler(behind)
        try:
            raise ValueError("a bug")
        except ValueError:
            logger.exception("it failed")
        behind.close()
        os.close(path_w)
        text = reading.read().decode()
    assert "ERROR test: it failed\nTraceback " in text
    assert text.endswith("ValueError: a bug\n")


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("test", logging.WARNING, __file__, 0, text, None, None)


def test_a_line_that_was_cut_off_is_ended_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = bytearray()
    room = 40

    def write(_fd: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        some = bytes(data[:room])
        room -= len(some)
        taken.extend(some)
        return len(some)

    monkeypatch.setattr(os, "write", write)
    log = FileLog(99)
    with pytest.raises(OSError, match="No space left"):
        log(record("a text that is too long for what is left of the disk"))
    room = 1000
    log(record("there is room"))
    first, second = taken.decode().splitlines()
    assert len(first) == 40
    assert second.endswith("WARNING test: there is room")


def test_a_pipe_without_a_reader_is_refused_as_a_log_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        file_log(str(tmp_path / "pipe"))


def test_the_system_log_gets_each_message_and_says_when_nobody_listens(tmp_path: Path) -> None:
    address = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address)
        log = SystemLog(address)
        log(record("one"))
        assert server.recv(1000).rstrip(b"\0").endswith(b"WARNING test: one")
    with pytest.raises(OSError, match="Connection refused"):
        log(record("nobody hears it"))
    with pytest.raises(OSError, match="Connection refused"):
        SystemLog(address)(record("nor this"))
    log.close()
