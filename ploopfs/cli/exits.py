"""The exit codes of every command, in one place, and which failure has which."""

import sys
from enum import IntEnum

from ploopfs.errors import ConfigError, MountError


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
EPILOG = "exit codes:\n" + "\n".join(f"  {code.value}  {text}" for code, text in MEANING.items())


def failed(error: BaseException) -> Exit:
    """Say what failed; the code for it."""
    message = error.strerror if isinstance(error, OSError) and error.filename is None else error
    print(f"ploopfs: {message}", file=sys.stderr)
    match error:
        case ConfigError():
            return Exit.CONFIG
        case MountError():
            return Exit.NO_MOUNT
        case _:
            return Exit.FAILED
