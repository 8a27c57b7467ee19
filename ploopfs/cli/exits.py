"""The exit codes of every command, in one place, and which failure has which."""

import errno
import os
import signal
import sys
from enum import IntEnum

from ploopfs.cli.text import printable
from ploopfs.errors import ConfigError, MountError

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals by which a user, a service manager and a terminal that is closed end a command."""


class Exit(IntEnum):
    """Documented in the README and in `ploopfs --help`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    NO_MOUNT = 4
    TIMEOUT = 5
    NOT_CLOSED = 6
    UNMET = 7
    NOT_EXECUTABLE = 126
    NO_COMMAND = 127


MEANING = {
    Exit.OK: "done",
    Exit.FAILED: "the operation was refused or failed; the message says why",
    Exit.USAGE: "the command line is wrong",
    Exit.CONFIG: "the configuration is wrong, or an image in it cannot be opened",
    Exit.NO_MOUNT: "the mountpoint cannot be used, or no ploopfs is mounted there",
    Exit.TIMEOUT: "the time ran out before the state was reached",
    Exit.NOT_CLOSED: "an image could not be flushed and stays marked in use",
    Exit.UNMET: "a rehearsal found something else than its scenario expects",
    Exit.NOT_EXECUTABLE: "exec: the command is no program, or may not be run; every other code is the command's own",
    Exit.NO_COMMAND: "exec: there is no such command",
}
EPILOG = "\n".join(
    ["exit codes:", *(f"  {code.value}  {text}" for code, text in MEANING.items()), "  128 + N  ended by signal N"]
)


def interrupted(interrupt: KeyboardInterrupt) -> int:
    """As a shell tells of who was ended by a signal; `interrupt` may bear its number."""
    number: int = interrupt.args[0] if interrupt.args else signal.SIGINT
    return 128 + number


def end_on_signals() -> None:
    """The first signal unwinds, which ends and unmounts everything; that is not to be cut short by a second one."""

    def end(number: int, _frame: object) -> None:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in ENDING:
        signal.signal(each, end)


def open_standard_streams() -> None:
    """Whoever was started with one of them closed would find the next file that is opened, an image perhaps, in its
    place, and write messages into it. Writing to a closed one fails as it should, since it is opened for reading."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY)
            assert opened == fd, (opened, fd)
            os.set_inheritable(fd, True)
            setattr(sys, name, open(fd, "w" if fd else "r", closefd=False, encoding="utf-8"))  # noqa: SIM115


def drop_output() -> None:
    """Nobody reads it: the interpreter must not find that out again when it flushes."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _is_dead_tree(error: OSError) -> bool:
    """A file of it cannot be reached; what a store answered bears no name of a file."""
    return error.filename is not None and error.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def _in_words(error: BaseException) -> str:
    if not isinstance(error, OSError):
        return str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    if _is_dead_tree(error):
        return f"{where}the daemon of the tree has ended ({error.strerror})"
    return f"{where}{error.strerror or error}"


def failed(error: BaseException) -> Exit:
    """Say what failed; the code for it. Only of a file that a user wrote there is a line for each mistake."""
    said = _in_words(error)
    lines = said.split("\n") if isinstance(error, ConfigError) else [said]
    print("ploopfs:", "\n".join(map(printable, lines)), file=sys.stderr)
    match error:
        case OSError() if _is_dead_tree(error):
            return Exit.NO_MOUNT
        case ConfigError():
            return Exit.CONFIG
        case MountError():
            return Exit.NO_MOUNT
        case _:
            return Exit.FAILED
