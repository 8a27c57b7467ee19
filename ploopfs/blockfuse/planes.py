"""The own connections of all devices: each has one while it is there.

Owns their tasks. Knows nothing of the protocol that a connection speaks, and of the tree only where a disk lies in it.
Invariant: what could not be mounted is served by the tree, and a device is then as usable as before.
"""

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from ploopfs.blockfuse.mounting import Mounted, is_mounted, mount_over, unmount
from ploopfs.blockfuse.plane import CONNECTION, Carry, OwnPlane, System
from ploopfs.device.device import Device
from ploopfs.device.registry import Registry
from ploopfs.errors import MountError, PloopError
from ploopfs.sysfs.nodes import Disk
from ploopfs.sysfs.plane import Connection

log = logging.getLogger(__name__)

ATTACHING = 16
"""Mounts that are made at the same time: each waits for two or three answers of the tree."""


class Linux:
    """This machine's. `allow_other`: other users get in as far as the modes allow."""

    def __init__(self, *, allow_other: bool) -> None:
        self._allow_other = allow_other

    def mount_over(self, file: str, *, source: str) -> Mounted:
        return mount_over(file, source=source, allow_other=self._allow_other)

    def unmount(self, file: str, number: int, *, lazily: bool = False) -> None:
        unmount(file, number, lazily=lazily)

    def is_mounted(self, file: str, number: int) -> bool:
        return is_mounted(file, number)


class Planes:
    """Of every device of a registry. `wanted`: they get a connection of their own without being asked."""

    def __init__(
        self, registry: Registry, mountpoint: str, system: System, carry: Callable[[Disk], Carry], *, wanted: bool
    ) -> None:
        self._registry = registry
        self._disks = os.path.join(os.path.realpath(mountpoint), "dev")
        self._system, self._carry, self._wanted = system, carry, wanted
        self._planes: dict[Device, OwnPlane] = {}
        self._nursery: trio.Nursery | None = None
        self._look: Callable[[], object] = dict
        self._told: set[str] = set()
        self._ending = False

    def of(self, device: Device, disk: Disk) -> OwnPlane:
        """`disk` is its node in the tree."""
        plane = self._planes.get(device)
        if plane is None:
            file = os.path.join(self._disks, device.name)
            plane = OwnPlane(device, disk, file, system=self._system, carry=self._carry(disk))
            self._planes[device] = plane
            if self._nursery is not None:
                plane.begin(self._nursery)
            if self._ending:
                plane.end()
        return plane

    @asynccontextmanager
    async def carrying(self, look: Callable[[], object]) -> AsyncIterator[None]:
        """Inside, the tree may be served. It ends when every connection has: one may be open or mounted elsewhere.
        `look` has the tree make the nodes of all devices."""
        self._look = look
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for plane in self._planes.values():
                plane.begin(nursery)
            forget = self._registry.changed.subscribe(self._follow)
            try:
                yield
            finally:
                forget()

    async def wait_attached(self, *devices: Device) -> None:
        """As far as they can be, of those that are to have a connection. The first one shows whether anything can."""
        if not self._wanted:
            return
        refused = ""
        for device in devices[:1]:
            refused = await self._try_to_attach(device)
        limit = trio.CapacityLimiter(ATTACHING)

        async def attach(device: Device) -> None:
            nonlocal refused
            async with limit:
                refused = await self._try_to_attach(device, refused)

        async with trio.open_nursery() as nursery:
            for device in devices[1:]:
                nursery.start_soon(attach, device)

    async def _try_to_attach(self, device: Device, refused: str = "") -> str:
        """Why no other disk can be mounted, either; empty if one can."""
        try:
            if refused:
                raise MountError(refused)
            if device not in self._planes:
                self._look()
            plane = self._planes.get(device)
            if plane is not None:
                await plane.wait_attached()
        except PloopError as error:
            if not self._ending and device in self._planes:
                self._tell_not_attached(device, str(error))
            return str(error) if isinstance(error, MountError) else refused
        return refused

    def _tell_not_attached(self, device: Device, why: str) -> None:
        """In the log once: what keeps one disk from being mounted keeps others, too."""
        device.events.emit(CONNECTION, state=Connection.DETACHED.value, text=why)
        if why not in self._told:
            self._told.add(why)
            log.info("%s: no connection of its own, it is served by the tree: %s", device.name, why)

    def _follow(self) -> None:
        assert self._nursery is not None
        present = set(self._registry.devices.values())
        for device in self._planes.keys() - present:
            self._nursery.start_soon(self._planes.pop(device).leave)

    def end(self) -> bool:
        """The daemon is about to end: requests under way are answered, and no more are taken. Whether there are any
        connections."""
        self._ending = True
        for plane in self._planes.values():
            plane.end()
        return any(plane.is_served for plane in self._planes.values())
