"""All devices of one daemon: it opens them, names them, and closes them.

Owns the devices' lifetimes and the global standby key. Knows nothing of the tree. Invariant: a device that is in
`devices` is open; `aclose` ends every one, and says which it could not close."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from ploopfs.bounds import (
    CLOSE_TIMEOUT_S,
    MAX_DEVICES,
    NAME_GRACE_MS,
    NAME_LENT_MS,
    RELOAD_TIMEOUT_S,
    SHUTDOWN_DEADLINE_S,
)
from ploopfs.device.bounds import DEFAULT_BOUNDS, Bounds
from ploopfs.device.device import Device
from ploopfs.device.events import Events, declare
from ploopfs.device.flavour import Flavour
from ploopfs.device.signal import Signal
from ploopfs.device.standby import StandbyKey
from ploopfs.engine.counters import Counters
from ploopfs.engine.file import Files
from ploopfs.engine.given_up import GivenUp
from ploopfs.engine.inject.injector import Injector
from ploopfs.engine.opening import open_stack, resolve
from ploopfs.engine.stack import Stack
from ploopfs.engine.unclosed import Closed
from ploopfs.errors import AlreadyExists, BadValue, LimitReached, NoSuchDevice, PloopError, StorageTimeout
from ploopfs.image.header import SECTOR_BYTES
from ploopfs.image.mapped import check_mapped

log = logging.getLogger(__name__)

IMAGE_CHECKED = declare(
    "image_checked",
    "the top was not closed; it was checked, found sound and closed before the device came; `path`, `bytes_before` and "
    "`bytes` of the file, `cleared_entries` past the disk's end",
)


class Registry:
    """`devices` maps names to devices in the order in which they were added; `changed` fires when one comes or goes,
    and `census` in the very moment in which `devices` has one more or less; `reload_asked` fires when somebody
    wants them to be as their configuration says by now. `pid` is the process that serves them, `capacity` how many
    there may be."""

    def __init__(self, *, pid: int = 0, capacity: int = MAX_DEVICES) -> None:
        self.pid = pid
        self.capacity = capacity
        self.devices: dict[str, Device] = {}
        self.census = Signal()
        self.key = StandbyKey()
        self.events = Events()
        self.changed = Signal()
        self.reload_asked = Signal()
        self._given_up = GivenUp()
        self._lent_until: dict[str, float] = {}

    async def add(
        self,
        name: str,
        *,
        flavour: Flavour,
        image: str | Sequence[str],
        files: Files,
        read_only: bool = False,
        cluster_sectors: int | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
        dm_name: str | None = None,
        dm_uuid: str = "",
        wait_turn: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> Device:
        """Open an image (as `engine.opening.resolve` takes it) as a device. Raises PloopError, nothing left open.

        `dm_name` and `dm_uuid` are of a mapped device; without a name dm-N is ploopN. `wait_turn` is for who opens
        several at once: the image is open when it is called, and the device comes when it returns."""
        if flavour.device_name.fullmatch(name) is None:
            raise BadValue(f"{name!r} is not a {flavour.name} device name, expected {flavour.device_name.pattern}")
        dm_name = dm_name or f"ploop{flavour.minor(name)}"
        self._check_names(name, flavour, dm_name, dm_uuid)
        counters, injector = Counters(), Injector()
        files = injector.around(files, self._given_up)
        spec = await resolve(files, image, cluster_sectors=cluster_sectors)
        if flavour.raw_only and not (len(spec.images) == 1 and spec.images[0].raw):
            raise BadValue(f"{name}: the image is not raw, expected one raw@PATH for a device without deltas")
        closed = partial(self._closed, name)
        stack = await open_stack(files, spec, read_only=read_only, counters=counters, on_closed=closed)
        try:
            if flavour.mapped:
                _check_mapped(stack)
            await wait_turn()
            await self._wait_forgotten(name)
            self._check_names(name, flavour, dm_name, dm_uuid)  # somebody else's may have been opened meanwhile
        except BaseException:
            with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
                await stack.aclose(clean=True)
            raise
        device = Device(
            name,
            flavour=flavour,
            key=self.key,
            stack=stack,
            files=files,
            injector=injector,
            counters=counters,
            bounds=bounds,
            events=self.events,
            dm_name=dm_name,
            dm_uuid=dm_uuid,
        )
        self.devices[name] = device
        self.census.fire()
        self.events.emit(name, "device_added", flavour=flavour.name, image=stack.top.path, bytes=device.size_bytes)
        self.changed.fire()
        log.info("%s: %d bytes, %d deltas, top %s", name, device.size_bytes, len(stack.deltas), stack.top.path)
        return device

    def _closed(self, name: str, closed: Closed) -> None:
        self.events.emit(
            name,
            IMAGE_CHECKED,
            path=closed.path,
            bytes_before=closed.file_bytes_before,
            bytes=closed.file_bytes,
            cleared_entries=closed.cleared_entries,
        )

    def _check_names(self, name: str, flavour: Flavour, dm_name: str, dm_uuid: str) -> None:
        if name in self.devices:
            raise AlreadyExists(f"{name}: a device of that name exists")
        if len(self.devices) >= self.capacity:
            raise LimitReached(f"{name}: {self.capacity} devices are all that this mount has room for")
        if not flavour.mapped:
            return
        for other in self.devices.values():
            if other.mapper is not None and other.mapper.name == dm_name:
                raise AlreadyExists(f"{name}: {other.name} has the name {dm_name}")
            if other.mapper is not None and dm_uuid and other.mapper.uuid == dm_uuid:
                raise AlreadyExists(f"{name}: {other.name} has the UUID {dm_uuid}")

    def lend(self, name: str) -> float:
        """For how many seconds whoever is told that this device is there may go by that without asking again. It is
        not removed before, nor does another come under its name."""
        self._lent_until[name] = trio.current_time() + (NAME_LENT_MS + NAME_GRACE_MS) / 1000
        return NAME_LENT_MS / 1000

    async def _wait_forgotten(self, name: str) -> None:
        """Of a device that is in `devices` no more, or not yet."""
        await trio.sleep_until(self._lent_until.get(name, 0))
        self._lent_until.pop(name, None)

    def close_gates(self) -> None:
        """Nobody waits for recovery or a resume any more: the daemon is about to end."""
        for device in self.devices.values():
            device.queue.close_gate()

    async def remove(
        self,
        name: str,
        *,
        limit_s: float = RELOAD_TIMEOUT_S,
        let_go: Callable[[Device], None] = lambda _: None,
    ) -> bool:
        """Close a device that nobody uses; False if its image keeps the in-use mark.

        What it has acknowledged is flushed before it goes: if that fails, it stays. `let_go` is called when nothing
        else speaks against it, and raises if something does. Raises NoSuchDevice; Busy and what the flush raises, with
        the device as it was."""
        device = self.devices.get(name)
        if device is None:
            raise NoSuchDevice(f"{name}: there is no such device")
        device.check_idle()
        if not device.read_only and not device.queue.is_lost:
            with trio.move_on_after(limit_s) as limit:
                await device.flush()
            if limit.cancelled_caught:
                raise StorageTimeout(f"{name}: its storage did not flush within {limit_s:g} s")
        if self.devices.get(name) is not device:
            raise NoSuchDevice(f"{name}: it was removed by somebody else")
        device.check_idle()
        let_go(device)
        # Without a wait since the check: nobody can have opened it, and now nobody can any more.
        results: dict[str, bool] = {}
        with trio.CancelScope(shield=True):
            await self._close(name, limit_s, results, is_lent=True)
        return results[name]

    async def aclose(self, *, deadline_s: float = SHUTDOWN_DEADLINE_S) -> bool:
        """Close every device; False if one could not be flushed (its image keeps the in-use mark)."""
        names = tuple(self.devices)
        results: dict[str, bool] = {}
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self._close, name, deadline_s, results)
        return all(results.values())

    async def _close(self, name: str, deadline_s: float, results: dict[str, bool], *, is_lent: bool = False) -> None:
        """`is_lent`: the tree stays, so somebody may still go by its name."""
        device = self.devices.pop(name)
        self.census.fire()
        image = device.stack.deltas[-1].path if device.stack.deltas else "an error target"
        results[name] = False
        with trio.move_on_after(deadline_s) as deadline:
            try:
                results[name] = await device.aclose()
                if not results[name]:
                    log.error("%s: the storage of %s is lost; it stays marked in use", name, image)
            except PloopError as error:
                log.error("%s: not closed cleanly: %s", name, error)
            except Exception:
                # A bug in one must not keep the others from being closed.
                log.exception("%s: not closed cleanly, as that met a bug", name)
        if deadline.cancelled_caught:
            log.error("%s: %s did not answer within %s s; it stays marked in use", name, image, deadline_s)
        if is_lent:
            await self._wait_forgotten(name)
        self.events.emit(name, "device_removed", clean=results[name])
        device.tell_gone()
        self.changed.fire()


def _check_mapped(stack: Stack) -> None:
    """What a table with these images would be refused for."""
    check_mapped(
        [delta.layer for delta in stack.deltas],
        cluster_sectors=stack.cluster_bytes // SECTOR_BYTES,
        end_sectors=stack.size_bytes // SECTOR_BYTES,
    )
