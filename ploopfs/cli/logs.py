"""Where the messages of a daemon go: through a thread, since a log that is full or stuck must hold up no request.

Knows nothing of who logs what. Invariants: whoever logs never waits and never fails; what is lost is counted, and told
as soon as the log takes messages again; ending waits for a stuck log no longer than FLUSH_S.
"""

import logging
import logging.handlers
import os
import queue
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ploopfs.cli.text import printable

SYSTEM_LOG = "/dev/log"
HELD_MESSAGES = 10_000
"""For as long as the log is stuck; what comes then is lost. They are some MiB."""
FLUSH_S = 2
"""For what is on its way when the daemon ends."""
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

Write = Callable[[logging.LogRecord], None]


class OneLine(logging.Formatter):
    """A record is one line, and a traceback behind it: a name with a newline in it must not look like another record,
    nor a name that is no text cost the record."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


class FileLog:
    """A descriptor that is written to without a buffer: what it did not take is known at once. A line that was cut off
    is ended before the next one."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_cut = False
        self._formatter = OneLine(FORMAT)

    def __call__(self, record: logging.LogRecord) -> None:
        """Raises OSError."""
        line = self._formatter.format(record).encode("utf-8", "backslashreplace") + b"\n"
        rest = b"\n" + line if self._is_cut else line
        while rest:
            written = os.write(self._fd, rest)
            rest = rest[written:]
            self._is_cut = bool(rest)


class SystemLog(logging.handlers.SysLogHandler):
    """The socket of syslog, which is connected again when its server was restarted."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.setFormatter(OneLine(FORMAT))

    def __call__(self, record: logging.LogRecord) -> None:
        """Raises OSError."""
        self.emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - its name and arguments are given
        raise  # noqa: PLE0704 - called by `emit` where it handles the exception


class Behind(logging.Handler):
    """Hands records to a thread that writes them."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self._write = write
        self._records: queue.Queue[logging.LogRecord | None] = queue.Queue(HELD_MESSAGES)
        self._counting = threading.Lock()
        self._lost = 0
        self._why = ""
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """The text is made here, as what it is made of may change."""
        try:
            record.msg, record.args = record.getMessage(), None
            if record.exc_info and not record.exc_text:
                record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
            self._records.put_nowait(record)
        except queue.Full:
            self._lose("the log was stuck")
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Wait for what is on its way, but not for ever. Nothing is written after it."""
        super().close()
        deadline_s = time.monotonic() + FLUSH_S
        try:
            self._records.put(None, timeout=FLUSH_S)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline_s - time.monotonic()))

    def _run(self) -> None:
        while (record := self._records.get()) is not None:
            if self._lost and not self._tell_lost():
                self._lose(self._why)
                continue
            try:
                self._write(record)
            except OSError as error:
                self._lose(error.strerror or str(error))
        if self._lost:
            self._tell_lost()

    def _lose(self, why: str) -> None:
        with self._counting:
            self._lost += 1
            self._why = why

    def _tell_lost(self) -> bool:
        with self._counting:
            lost, self._lost = self._lost, 0
        text = f"{lost} messages were lost: {self._why}"
        try:
            self._write(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None))
        except OSError as error:
            with self._counting:
                self._lost += lost
                self._why = error.strerror or str(error)
            return False
        return True


def tell(text: str) -> threading.Thread:
    """One line on standard error by a thread of its own, which is the result: whoever should read it may be stuck."""
    thread = threading.Thread(target=_print, args=(f"{text}\n".encode("utf-8", "surrogateescape"),), daemon=True)
    thread.start()
    return thread


def _print(line: bytes) -> None:
    with suppress(OSError):
        os.write(2, line)


def log_to(write: Write, level: str) -> None:
    """From here on. To be called in the process that serves: threads do not survive a fork."""
    logging.basicConfig(level=level.upper(), handlers=[Behind(write)])


def end_log() -> None:
    """What was logged is written, as far as a stuck log takes it: whatever is said next stands behind it."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, Behind)]:
        root.removeHandler(handler)
        handler.close()


def file_log(path: str) -> FileLog:
    """Raises OSError, also for a pipe without a reader instead of waiting for one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    os.set_blocking(fd, True)
    return FileLog(fd)


def daemon_log(path: str | None) -> Write:
    """Of a daemon in the background."""
    if path:
        return file_log(path)
    return SystemLog(SYSTEM_LOG) if has_system_log() else FileLog(2)


def has_system_log() -> bool:
    try:
        return stat.S_ISSOCK(os.stat(SYSTEM_LOG).st_mode)
    except OSError:
        return False
