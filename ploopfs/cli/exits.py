"""The exit codes of every command, in one place."""

from enum import IntEnum


class Exit(IntEnum):
    """Documented in the README and in `ploopfs --help`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    NO_MOUNT = 4
    TIMEOUT = 5
    NOT_CLOSED = 6


MEANING = {
    Exit.OK: "done",
    Exit.FAILED: "the operation was refused or failed; the message says why",
    Exit.USAGE: "the command line is wrong",
    Exit.CONFIG: "the configuration is wrong, or an image in it cannot be opened",
    Exit.NO_MOUNT: "the mountpoint cannot be used, or no ploopfs is mounted there",
    Exit.TIMEOUT: "the time ran out before the state was reached",
    Exit.NOT_CLOSED: "an image could not be flushed and stays marked in use",
}
EPILOG = "exit codes:\n" + "\n".join(f"  {code.value}  {text}" for code, text in MEANING.items())
