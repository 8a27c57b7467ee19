"""The FUSE session: mounting a tree, serving it, unmounting it.

Knows nothing of what it serves. Invariants: one session per process, as pyfuse3 has but one; the mountpoint outlives a
crash of the main loop, since an empty directory where a disk was is worse than an error.
"""

import logging
import os
import shutil
import subprocess
from functools import partial

import pyfuse3
import trio

from ploopfs.bounds import HELPER_TIMEOUT_S, MAX_BACKGROUND
from ploopfs.engine.apart import APART
from ploopfs.errors import MountError
from ploopfs.fuse.loop import EventLoop
from ploopfs.fuse.mountpoint import check_mountpoint
from ploopfs.fuse.operations import Operations
from ploopfs.sysfs.nodes import Directory

log = logging.getLogger(__name__)

# Idle tasks that stay, so that a burst need not start them.
_MIN_TASKS = 8
LEAST_MAX_TASKS = 2 * _MIN_TASKS

_FUSE_DEVICE = "/dev/fuse"


class _Session:
    """Whether pyfuse3 has a session: to end one that is not there crashes the process. And whether it answers: one that
    is ended before would leave whoever waits for its start without an answer."""

    active = False
    answers = False


async def serve(
    tree: Directory,
    mountpoint: str,
    *,
    allow_other: bool,
    max_tasks: int,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount `tree` and serve it until it is unmounted, `terminate` is called or the task is cancelled.

    `max_tasks` must exceed the number of requests that may wait at the same time in all devices together, or those
    starve the status files. `terminate` lets requests under way finish, for as long as they take; a cancellation cuts
    them off.
    """
    if max_tasks < LEAST_MAX_TASKS:
        raise ValueError(f"max_tasks is {max_tasks}, at least {LEAST_MAX_TASKS} are needed")
    if _Session.active:
        raise MountError("this process serves a tree already")
    check_fuse(allow_other=allow_other)
    check_mountpoint(mountpoint)
    operations = Operations(tree)
    _mount(operations, mountpoint, allow_other=allow_other)
    unmount = True
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_report_answering, mountpoint, max_tasks, task_status)
            try:
                await pyfuse3.main(min_tasks=_MIN_TASKS, max_tasks=max_tasks)
            except Exception:
                unmount = False
                raise
            nursery.cancel_scope.cancel()
            if not _Session.answers:
                raise MountError(f"{mountpoint}: was unmounted before it was served")
    finally:
        _Session.active = _Session.answers = False
        operations.release_all()
        pyfuse3.close(unmount=unmount)


def terminate() -> bool:
    """End `serve`, if it serves already; whether it does. To be called in the thread of its loop."""
    if _Session.answers:
        pyfuse3.terminate()
    return _Session.answers


def check_fuse(*, allow_other: bool = False) -> None:
    """Raise with what is missing for any mount on this machine, by this user."""
    try:
        os.close(os.open(_FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise MountError(f"{_FUSE_DEVICE} is missing: load the module fuse, or give the container the device") from None
    except OSError as error:
        raise MountError(f"{_FUSE_DEVICE}: {error.strerror}: run as root, or allow the device to this user") from error
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise MountError("fusermount3 is missing: install fuse3, or run as root")
    if allow_other and not _user_allow_other():
        raise MountError("allow_other needs root, or a line user_allow_other in /etc/fuse.conf")


def _user_allow_other() -> bool:
    try:
        with open("/etc/fuse.conf", encoding="utf-8", errors="replace") as configuration:
            return any(line.strip() == "user_allow_other" for line in configuration)
    except OSError:
        return False


def _mount(operations: Operations, mountpoint: str, *, allow_other: bool) -> None:
    options = {"fsname=ploopfs", "subtype=ploopfs", "default_permissions", "nosuid", "nodev"}
    if allow_other:
        options.add("allow_other")
    pyfuse3.trio = EventLoop(lambda: operations.waiting > 0)  # type: ignore[attr-defined]
    try:
        pyfuse3.init(operations, mountpoint, options)
    except RuntimeError as error:
        # libfuse says why on standard error and nowhere else.
        raise MountError(f"{mountpoint}: {error}, see the message above; mounting needs root or fuse3") from error
    _Session.active = True


async def _report_answering(mountpoint: str, max_tasks: int, task_status: trio.TaskStatus[None]) -> None:
    root = await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
    await APART.run(partial(_raise_background_limit, os.minor(root.st_dev), max_tasks))
    _Session.answers = True
    task_status.started()


def _raise_background_limit(connection: int, limit: int) -> None:
    """With 12 asynchronous requests unanswered the kernel holds back all others of the mount: one device that lets a
    dozen wait would stop every device. libfuse has no option for that limit, only fusectl has it; where that is not
    mounted it is for a moment, in a mount name space of its own.
    """
    place = "/sys/fs/fuse/connections"
    write = f"echo {min(limit, MAX_BACKGROUND)} > {place}/{connection}/max_background"
    mounting = f"mount -t fusectl fusectl {place} && " if not os.path.exists(f"{place}/{connection}") else ""
    command = ["unshare", "--mount", "sh", "-c", mounting + write] if mounting else ["sh", "-c", write]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=HELPER_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.info("max_background stays at the kernel's default: %s", error)
        return
    if done.returncode != 0:
        log.info("max_background stays at the kernel's default: %s", done.stderr.strip())
