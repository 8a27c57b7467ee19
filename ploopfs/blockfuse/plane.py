"""The own connection of one device: mounted over the disk's file, cut off, taken away and mounted again.

Knows nothing of the protocol that a connection speaks. Invariants: nothing of a connection that was cut off reaches the
storage any more when the disk is served again; whatever does not come about leaves the disk to the tree.

A mount waits for the tree, and the tree for its handlers when it ends. So no handler waits for a mount: tasks of ours
do, and a handler waits for their result, for a bounded time, and until `end`.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import trio

from ploopfs.blockfuse.mounting import Mounted
from ploopfs.bounds import CONNECTION_TIMEOUT_S
from ploopfs.device.device import Device
from ploopfs.device.events import declare
from ploopfs.device.signal import Signal
from ploopfs.errors import Busy, MountError, NoSuchDevice, NotPermitted, PloopError
from ploopfs.sysfs.nodes import Disk
from ploopfs.sysfs.plane import Connection

log = logging.getLogger(__name__)

CONNECTION = declare(
    "connection",
    "the disk's own connection is in another `state` (attached, aborted, detached) than it was, and `text` says why",
)

class Carrier(Protocol):
    """One connection, served. It owns the descriptor that it was made with."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is unmounted or cut off, or `end` or `close` was called; then nothing of it is under way.
        `task_status` is told when the kernel has agreed to serve it so. Raises MountError if it does not."""

    @property
    def is_closed(self) -> bool:
        """It was cut off, or is not mounted anywhere any more: it takes no more requests."""

    def end(self) -> None:
        """Take no more requests, and answer those that are under way."""

    def close(self) -> None:
        """Close the descriptor, with which every request fails that is under way."""


Carry = Callable[[int], Carrier]
"""Makes one of a descriptor."""


class System(Protocol):
    """Mounts, as `mounting` has them."""

    def mount_over(self, file: str, *, source: str) -> Mounted: ...

    def unmount(self, file: str, number: int, *, lazily: bool = False) -> None: ...

    def is_mounted(self, file: str, number: int) -> bool: ...


class _Served:
    """One connection of a device from its mount on: `begun` when the kernel has agreed or never will, which `failure`
    says; `ended` when nothing of it is under way any more."""

    def __init__(self, carrier: Carrier, number: int) -> None:
        self.carrier, self.number = carrier, number
        self.begun, self.ended = trio.Event(), trio.Event()
        self.failure: PloopError | None = MountError("it was unmounted before it was served")

    def started(self, _value: None = None) -> None:
        """As a task's status."""
        self.failure = None
        self.begun.set()


class _Work:
    """A task of ours: `done` when whoever waits for it may go on, `ended` when it has. `waits_for` says what takes it
    so long."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.done, self.ended = trio.Event(), trio.Event()
        self.error: PloopError | None = None
        self.waits_for = "the mount takes longer"

    def finish(self, error: PloopError | None = None) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()


class OwnPlane:
    """Of one device (`sysfs.plane.Plane`). `current` is the connection that is mounted in our name space; others may
    still be served, mounted in another one."""

    def __init__(self, device: Device, disk: Disk, file: str, *, system: System, carry: Carry) -> None:
        self.device, self._disk, self._file = device, disk, file
        self._system, self._carry = system, carry
        self.changed = Signal()
        self.connection = Connection.DETACHED
        self._current: _Served | None = None
        self._served: set[_Served] = set()
        self._working: _Work | None = None
        self._nursery: trio.Nursery | None = None
        self._has_begun = False
        self._ending = False

    # --- commands -------------------------------------------------------------------------------------------------

    async def wait_attached(self) -> None:
        await self._wait_done(self._attach)

    async def wait_detached(self) -> None:
        await self._wait_done(self._detach)

    def abort(self) -> None:
        if self._working is not None:
            raise Busy("an operation on its connection is under way")
        if self._current is None:
            raise NotPermitted("it has no connection of its own that could be aborted")
        self._disk.is_settling = not self._current.ended.is_set()
        self._current.carrier.close()
        self._become(Connection.ABORTED, "somebody asked for it")

    async def _wait_done(self, steps: Callable[[_Work], Awaitable[None]]) -> None:
        if self._disk.removed():
            raise NoSuchDevice("the device was removed")
        if self._nursery is None or self._ending:
            raise NotPermitted("the tree is not served")
        if self._working is not None:
            raise Busy("an operation on its connection is under way")
        work = self._working = _Work()
        self._nursery.start_soon(self._perform, work, steps)
        with trio.move_on_after(CONNECTION_TIMEOUT_S) as limit:
            await work.done.wait()
        if limit.cancelled_caught:
            work.scope.cancel()
            raise Busy(f"not within {CONNECTION_TIMEOUT_S} s: {work.waits_for}")
        if work.error is not None:
            raise work.error

    async def _perform(self, work: _Work, steps: Callable[[_Work], Awaitable[None]]) -> None:
        try:
            with work.scope:
                await steps(work)
            work.finish()
        except PloopError as error:
            work.finish(error)
        except Exception:
            log.exception("%s: an operation on its connection met a bug", self.device.name)
        finally:
            self._working = None
            self._has_begun = True
            work.finish(Busy("it was given up"))
            work.ended.set()
            self._notice()

    async def _attach(self, work: _Work) -> None:
        if self._current is not None and self.connection is Connection.ATTACHED:
            if self._system.is_mounted(self._file, self._current.number) and not self._current.carrier.is_closed:
                return
            if not self._current.carrier.is_closed:
                self._current = None  # unmounted lazily by somebody: who has it open keeps it
                self._become(Connection.DETACHED, "somebody has unmounted it")
        if self._current is not None:
            await self._settled(work, self._current)
            await self._taken_away(lazily=True)
        mounted = await trio.to_thread.run_sync(partial(self._system.mount_over, self._file, source=self.device.name))
        # Without a wait since the mount: from here on the descriptor is closed by who serves it.
        self._current = served = _Served(self._carry(mounted.fd), mounted.number)
        self._served.add(served)
        try:
            assert self._nursery is not None
            self._nursery.start_soon(self._serve, served)
            await served.begun.wait()
            if served.failure is not None:
                raise served.failure
            if self._ending:
                raise NoSuchDevice("it is not served any more")
        except BaseException:
            served.carrier.close()
            with trio.CancelScope(shield=True):
                await self._taken_away(lazily=True)
            raise
        self._become(Connection.ATTACHED, "it was mounted")

    async def _settled(self, work: _Work, cut_off: _Served) -> None:
        """What it still writes must not come after what is written through whatever serves the disk next."""
        work.waits_for = "requests of the connection that was cut off are still under way"
        await cut_off.ended.wait()

    async def _detach(self, work: _Work) -> None:
        if self._current is not None:
            is_cut_off = self._current.carrier.is_closed
            if is_cut_off:
                await self._settled(work, self._current)
            try:
                await self._taken_away(lazily=is_cut_off)
            except Busy as error:
                raise Busy(f"{error}, it is open ({self.device.open_count} times)") from error

    async def _taken_away(self, *, lazily: bool) -> None:
        assert self._current is not None
        number = self._current.number
        await trio.to_thread.run_sync(partial(self._system.unmount, self._file, number, lazily=lazily))
        self._current = None
        self._become(Connection.DETACHED, "it was unmounted")

    def _become(self, state: Connection, why: str) -> None:
        if state is self.connection:
            return
        self.connection = state
        self.changed.fire()
        # That a device begins with a connection is nothing to report, nor that it ends without.
        if self._has_begun and not self._ending:
            self.device.events.emit(CONNECTION, state=state.value, text=why)

    # --- the connection's life ------------------------------------------------------------------------------------

    async def _serve(self, served: _Served) -> None:
        try:
            await served.carrier.run(task_status=served)
        except MountError as error:
            served.failure = error
        except Exception:
            log.exception("%s: its connection met a bug and is cut off", self.device.name)
        finally:
            served.carrier.close()
            self._served.discard(served)
            self._disk.is_settling = False
            served.begun.set()
            served.ended.set()
        self._notice()

    def _notice(self) -> None:
        """Whether the connection has ended, and we have not done that."""
        current = self._current
        if current is None or not current.ended.is_set() or self.connection is not Connection.ATTACHED:
            return
        if self._working is not None or self._ending:
            return
        if self._is_mounted(current):
            self._become(Connection.ABORTED, "somebody has cut it off")
        else:
            self._current = None
            self._become(Connection.DETACHED, "somebody has unmounted it")
        log.info("%s: its connection is %s", self.device.name, self.connection.value)

    def _is_mounted(self, served: _Served) -> bool:
        try:
            return self._system.is_mounted(self._file, served.number)
        except MountError as error:
            log.error("%s: %s", self.device.name, error)
            return True

    @property
    def is_served(self) -> bool:
        return bool(self._served)

    def begin(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def end(self) -> None:
        """The tree ends: nobody waits for a mount any more."""
        self._ending = True
        if self._working is not None:
            self._working.finish(NotPermitted("the daemon is ending"))
        for served in self._served:
            served.carrier.end()

    async def leave(self) -> None:
        """The device is gone, and so is the name that leads to the mount."""
        self._ending = True
        for served in self._served:
            served.carrier.close()
        if self._working is not None:
            await self._working.ended.wait()
        if self._current is not None:
            try:
                await self._taken_away(lazily=True)
            except PloopError as error:
                log.warning("%s: its mount could not be removed: %s", self.device.name, error)
