"""`ploopfs mount`: configuration to registry to mounted tree, and an orderly end.

The end: no new requests, those under way finish, every image is flushed and closed. Storage that does not let go
within the deadline is named, its image stays marked in use, and the exit code says so."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from ploopfs.blockfuse.connection import Connection
from ploopfs.blockfuse.front import Front
from ploopfs.blockfuse.planes import Linux, Planes
from ploopfs.bounds import MAX_DEVICES, SHUTDOWN_DEADLINE_S, SPARE_DEVICES, STATUS_TASKS
from ploopfs.cli.configured import Configured
from ploopfs.cli.exits import Exit
from ploopfs.cli.logs import FileLog, daemon_log, end_log, file_log, has_system_log, log_to, tell
from ploopfs.config import Config, load
from ploopfs.device.attending import run_agents, run_flushers
from ploopfs.device.device import Device
from ploopfs.device.registry import Registry
from ploopfs.engine.apart import APART
from ploopfs.engine.memory import collect_seldom, keep_freed_memory
from ploopfs.errors import MountError
from ploopfs.fuse.host import LinuxHost
from ploopfs.fuse.mountpoint import State, check_mountpoint, inspect_mountpoint, replace_stale
from ploopfs.scst.module import Scst
from ploopfs.sysfs.nodes import Directory, Disk
from ploopfs.sysfs.plane import DataPlane
from ploopfs.sysfs.tree import build

log = logging.getLogger(__name__)

ENDING = (signal.SIGINT, signal.SIGTERM)
RELOADING = signal.SIGHUP


def mount(arguments: argparse.Namespace) -> int:
    keep_freed_memory()  # before the log has a thread
    config = load(arguments.config)
    mountpoint = os.path.abspath(arguments.mountpoint)
    log_file = os.path.abspath(arguments.log_file) if arguments.log_file else None
    if inspect_mountpoint(mountpoint) is State.STALE:
        if not arguments.replace_stale:
            raise MountError(f"{mountpoint} {State.STALE.value}; --replace-stale clears it")
        replace_stale(mountpoint)
    check_mountpoint(mountpoint)
    ready: Callable[[], object]
    if arguments.daemon:
        if log_file is None and not has_system_log():
            print("ploopfs: no system log here: messages of the daemon are lost without --log-file", file=sys.stderr)
        ready = _daemonize().ready
        log_to(daemon_log(log_file), arguments.log_level)
    else:
        ready = partial(tell, f"ploopfs: {mountpoint} is ready")
        log_to(file_log(log_file) if log_file else FileLog(2), arguments.log_level)
    # From here to the exit signals end us only through `serve`: not before it listens, nor after the last image.
    for number in (*ENDING, RELOADING):
        signal.signal(number, signal.SIG_IGN)
    collect_seldom()
    APART.begin()
    own = (arguments.data_plane or config.data_plane) == DataPlane.OWN.value
    try:
        return trio.run(serve, config, mountpoint, "allow_other" in arguments.options, own, ready)
    finally:
        end_log()  # why it was refused is the last that is said


async def serve(config: Config, mountpoint: str, allow_other: bool, own: bool, ready: Callable[[], object]) -> int:
    """Serve until unmounted or signalled; `ready` is called when the tree answers. `own`: each disk gets a connection
    of its own. The exit code."""
    capacity = min(len(config.devices) + SPARE_DEVICES, MAX_DEVICES)
    registry = Registry(pid=os.getpid(), capacity=capacity)
    scst = Scst(registry, mountpoint)
    planes = Planes(registry, mountpoint, Linux(allow_other=allow_other), _carry, wanted=own)
    configured = Configured(registry, scst, config, wait_served=planes.wait_attached)
    # Held until the last image is closed: a signal that comes then must not kill us in the middle of it.
    with trio.open_signal_receiver(*ENDING, RELOADING) as signals:
        async with _flushing(registry):
            try:
                async with _until_signalled(signals, registry, configured, planes):
                    await configured.start()
                    max_tasks = capacity * config.limits.requests_per_device + STATUS_TASKS
                    tree = build(registry, scst, LinuxHost(mountpoint), planes.of)
                    disks = tree.children()["dev"]
                    assert isinstance(disks, Directory)

                    async def attach() -> None:
                        await planes.wait_attached(*registry.devices.values())
                        ready()

                    async with _beside(registry, configured, mountpoint), planes.carrying(disks.children):
                        await _serve_tree(tree, mountpoint, attach, allow_other=allow_other, max_tasks=max_tasks)
            finally:
                with trio.CancelScope(shield=True):
                    clean = await registry.aclose(deadline_s=SHUTDOWN_DEADLINE_S)
    return Exit.OK if clean else Exit.NOT_CLOSED


def _carry(disk: Disk) -> Callable[[int], Connection]:
    return partial(Connection, front=Front(disk))


@asynccontextmanager
async def _until_signalled(
    signals: AsyncIterator[int], registry: Registry, configured: Configured, planes: Planes
) -> AsyncIterator[None]:
    """The first signal ends the session and lets its requests finish, up to the deadline; a second one, or the
    deadline, cuts them off. Before there is a session the first one does."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, signals, registry, configured, planes, nursery.cancel_scope)
        yield
        nursery.cancel_scope.cancel()


async def _wait_ending(signals: AsyncIterator[int], configured: Configured) -> signal.Signals:
    """The next one that ends us; the other has the configuration read again, as soon as there is a session."""
    while (number := await anext(signals)) == RELOADING:
        configured.ask_reload()
    return signal.Signals(number)


async def _end_on_signal(
    signals: AsyncIterator[int],
    registry: Registry,
    configured: Configured,
    planes: Planes,
    everything: trio.CancelScope,
) -> None:
    from ploopfs.fuse import mount as fuse_mount  # noqa: PLC0415 -- see _serve_tree

    log.info("%s: ending", (await _wait_ending(signals, configured)).name)
    registry.close_gates()
    serves_disks, serves_tree = planes.end(), fuse_mount.terminate()
    if serves_disks or serves_tree:
        with trio.move_on_after(SHUTDOWN_DEADLINE_S) as deadline:
            await _wait_ending(signals, configured)
        if deadline.cancelled_caught:
            log.error("requests did not end within %s s and are cut off", SHUTDOWN_DEADLINE_S)
    everything.cancel()


@asynccontextmanager
async def _flushing(registry: Registry) -> AsyncIterator[None]:
    """Around all there is of a device, its end included, which a flush under way is a part of."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_flushers, registry)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _beside(registry: Registry, configured: Configured, mountpoint: str) -> AsyncIterator[None]:
    """Inside, devices are recovered as their configuration says, and that is read again when somebody asks."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(configured.run)
        nursery.start_soon(run_agents, registry, partial(_recovery_environment, mountpoint))
        yield
        nursery.cancel_scope.cancel()


def _recovery_environment(mountpoint: str, device: Device) -> dict[str, str]:
    """Where a command finds the device that it is to recover."""
    return {
        "PLOOPFS_MOUNT": mountpoint,
        "PLOOPFS_DISK": os.path.join(mountpoint, "dev", device.name),
        "PLOOPFS_SYSFS": os.path.join(mountpoint, "sys/block", device.name),
    }


async def _serve_tree(
    tree: Directory, mountpoint: str, begun: Callable[[], Awaitable[None]], *, allow_other: bool, max_tasks: int
) -> None:
    # pyfuse3 is loaded only by the process that serves, and only after it has forked.
    from ploopfs.fuse import mount as fuse_mount  # noqa: PLC0415

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(fuse_mount.serve, tree, mountpoint, allow_other=allow_other, max_tasks=max_tasks))
        await begun()


# --- going to the background --------------------------------------------------------------------------------------


class _Parent:
    """The waiting parent of a daemon, through a pipe: it is told `ready`, or why not and with which exit code."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def ready(self) -> None:
        """From here on nobody reads our standard streams."""
        os.write(self._fd, b"\0")
        os.close(self._fd)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)


def _daemonize() -> _Parent:
    """Fork. The parent never returns: it exits when the child is ready or has ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        is_ready = os.read(reading, 1) == b"\0"
        if is_ready:
            os._exit(Exit.OK)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status))
    os.close(reading)
    os.setsid()
    os.chdir("/")
    return _Parent(writing)
