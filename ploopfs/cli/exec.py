"""`ploopfs exec`: run a command where /sys, /dev and /proc show the disks of a tree beside the real ones.

The command runs in a mount name space of its own, so that nobody else sees any of it, and takes the place of this
process. Knows no daemon; what is mounted is `view`'s to know. Invariant: this module loads no library that starts
threads, since the kernel gives a user name space to a process of one thread only.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from ploopfs.cli.exits import Exit, failed
from ploopfs.cli.namespace import enter, is_alone, may_mount
from ploopfs.cli.view import View, check_free
from ploopfs.errors import MountError, NamespaceError, PloopError
from ploopfs.fuse.mountpoint import State, inspect_mountpoint

ENVIRONMENT = {"SYSTEMD_DEVICE_VERIFY_SYSFS": "0"}
"""udevadm refuses devices in a /sys that is not one file system, unless it is told not to ask."""

_AGAIN = "import sys; sys.path[:] = {path!r}; from ploopfs.cli.exec import alone; sys.exit(alone(*sys.argv[1:]))"


def execute(arguments: argparse.Namespace) -> int:
    """Returns only if the command cannot be started."""
    mountpoint = os.path.realpath(arguments.mountpoint)
    state = inspect_mountpoint(mountpoint)
    if state is not State.SERVING:
        raise MountError(f"{arguments.mountpoint}: no running ploopfs there: {state.value}")
    command = arguments.command[1:] if arguments.command[0] == "--" else arguments.command
    if not may_mount() and not is_alone():
        _start_again(mountpoint, *command)
    return _execute(mountpoint, command)


def alone(mountpoint: str, *command: str) -> int:
    """The same in a process that has loaded nothing but this module."""
    try:
        return _execute(mountpoint, command)
    except (PloopError, OSError) as error:
        return failed(error)


def _start_again(*arguments: str) -> None:
    """Other verbs need a library that has started threads by now."""
    try:
        os.execv(sys.executable, [sys.executable, "-c", _AGAIN.format(path=sys.path), *arguments])
    except OSError as error:
        raise NamespaceError(f"{sys.executable}: cannot be started by this user: {error.strerror}") from error


def _execute(mountpoint: str, command: Sequence[str]) -> int:
    for warning in check_free(mountpoint):
        print(f"ploopfs: {warning}", file=sys.stderr)
    place = os.getcwd()
    View(mountpoint, in_user_namespace=enter()).arrange()
    # It may be a directory that is covered by another now.
    os.chdir(place)
    return _become(command)


def _become(command: Sequence[str]) -> int:
    # Python ignores these for itself; the command is to find them as its caller left them.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    sys.stderr.flush()
    try:
        os.execvpe(command[0], list(command), ENVIRONMENT | os.environ)
    except FileNotFoundError:
        print(f"ploopfs: {command[0]}: there is no such command", file=sys.stderr)
        return Exit.NO_COMMAND
    except OSError as error:
        print(f"ploopfs: {command[0]}: {error.strerror}", file=sys.stderr)
        return Exit.NOT_EXECUTABLE
