"""The devices as their configuration wants them: at the start, and again whenever it is read anew.

Knows nothing of FUSE. Invariants: a file with a mistake changes nothing; `config` is what is in force, so what could
not be done is tried again by the next reload; a device that is in use, or whose data could not be flushed, stays.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from ploopfs.bounds import MIB, OPENING, RELOAD_TIMEOUT_S
from ploopfs.config import Config, load
from ploopfs.config.difference import Change, Difference, difference
from ploopfs.config.schema import DeviceConfig
from ploopfs.device.bounds import Bounds
from ploopfs.device.device import Device
from ploopfs.device.events import declare
from ploopfs.device.flavour import FLAVOURS
from ploopfs.device.registry import Registry
from ploopfs.device.waiting import OnStandby
from ploopfs.engine.confined import AllowedDirs
from ploopfs.engine.file import Files
from ploopfs.engine.os_file import OsFiles
from ploopfs.errors import ConfigError, NoSuchDevice, PloopError, StorageTimeout
from ploopfs.scst.module import Scst

log = logging.getLogger(__name__)

BEGIN = declare("config_reload_begin", "the configuration is about to be read again; how it ended follows")
RELOADED = declare(
    "config_reloaded",
    "the configuration was read again; what was `added`, `removed` and `changed`; what was `kept` though the file has "
    "it no more, what needs a `remount`, and what `failed`, each with why",
)
FAILED = declare("config_reload_failed", "the configuration has mistakes, and nothing was changed; they are in `text`")


@dataclass(slots=True)
class _Outcome:
    """What a reload has come to, as its event says it. An entry of the last three says why, or what of."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    remount: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, str]:
        return {
            **{name: ", ".join(getattr(self, name)) for name in ("added", "removed", "changed", "remount")},
            **{name: "; ".join(getattr(self, name)) for name in ("kept", "failed")},
        }


async def _as_it_is(_device: Device) -> None:
    """The tree serves it already."""


class Configured:
    """`files` makes what a device opens its images with. `wait_served` is told of a device that has come under a
    mounted tree, and returns when it is served there as all others are."""

    def __init__(
        self,
        registry: Registry,
        scst: Scst,
        config: Config,
        files: Callable[[AllowedDirs], Files] | None = None,
        wait_served: Callable[[Device], Awaitable[None]] = _as_it_is,
    ) -> None:
        self.config = config
        self._registry, self._scst = registry, scst
        self._allowed = AllowedDirs(config.allowed_dirs)
        self._files = files or partial(OsFiles, config.limits.threads_per_device)
        self._wait_served = wait_served
        self._asked = trio.Event()
        registry.reload_asked.subscribe(self.ask_reload)

    async def start(self) -> None:
        """Add every device, in the order of the file. Raises ConfigError for the first that cannot be."""
        if self.config.scst.loaded:
            self._scst.load()
        added = await self._add_together()
        # The first that failed fails again alone: of two devices with one image, say, the mistake is the second.
        for index, wanted in enumerate(self.config.devices[added:], added):
            try:
                await self._add(wanted)
            except PloopError as error:
                raise ConfigError(f"{self.config.path}: devices[{index}] ({wanted.name}): {error}") from error

    async def _add_together(self) -> int:
        """Several images are opened at the same time; a device comes after all before it. How many came, from the first
        on: as soon as one fails, none comes any more."""
        devices = self.config.devices
        room = trio.Semaphore(OPENING)
        turns = [trio.Event() for _ in range(len(devices) + 1)]
        turns[0].set()

        async def add(index: int, alone: trio.CancelScope) -> None:
            try:
                await self._add(devices[index], turns[index].wait)
                turns[index + 1].set()
            except PloopError as error:
                log.info("devices[%d] (%s) failed beside others: %s", index, devices[index].name, error)
                alone.cancel()
            finally:
                room.release()

        async with trio.open_nursery() as nursery:
            for index in range(len(devices)):
                await room.acquire()
                nursery.start_soon(add, index, nursery.cancel_scope)
        return sum(turn.is_set() for turn in turns) - 1

    def ask_reload(self) -> None:
        """Soon; several that ask before it begins get one."""
        self._asked.set()

    async def run(self) -> None:
        """Reload whenever somebody asks, until it is cancelled."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            try:
                await self.reload()
            except Exception:
                log.exception("%s: reading it again met a bug", self.config.path)

    async def reload(self) -> None:
        """Read the file again, and do what can be done of it."""
        self._registry.events.emit("", BEGIN)
        try:
            new, allowed = await self._read()
        except PloopError as error:
            for line in str(error).split("\n"):
                log.error("not reloaded: %s", line)
            self._registry.events.emit("", FAILED, text=str(error))
            return
        outcome = _Outcome()
        self._allowed.become(allowed)
        await self._become(difference(self.config, new), new, outcome)
        self._tell(outcome)

    async def _read(self) -> tuple[Config, AllowedDirs]:
        """In a thread: the file may lie on a store that hangs, and links of `allowed_dirs` are resolved."""
        with trio.move_on_after(RELOAD_TIMEOUT_S):
            return await trio.to_thread.run_sync(_loaded, self.config.path, abandon_on_cancel=True)
        raise StorageTimeout(f"{self.config.path}: could not be read within {RELOAD_TIMEOUT_S} s")

    async def _become(self, wanted: Difference, new: Config, outcome: _Outcome) -> None:
        """Devices go first: their images may be those of new ones. SCST is loaded before a device is attached to it,
        and unloaded when none is any more."""
        outcome.remount += wanted.remount
        if wanted.confines:
            self._put("allowed_dirs", outcome, allowed_dirs=new.allowed_dirs)
        for name in wanted.removed:
            await self._tried(partial(self._remove, name), outcome.kept, name, outcome)
        if wanted.loads:
            await self._tried(partial(self._set_loaded, new), outcome.failed, "scst.loaded", outcome)
        for change in wanted.changed:
            await self._tried(partial(self._change, change), outcome.failed, str(change), outcome)
        for device in wanted.added:
            await self._tried(partial(self._add_to_config, device), outcome.failed, device.name, outcome)
        if wanted.loads is False:
            await self._tried(partial(self._set_loaded, new), outcome.failed, "scst.loaded", outcome)

    async def _tried(
        self, work: Callable[[_Outcome], Awaitable[None]], failures: list[str], what: str, outcome: _Outcome
    ) -> None:
        try:
            await work(outcome)
        except PloopError as error:
            failures.append(f"{what}: {str(error).removeprefix(f'{what}: ')}")

    def _put(self, what: str, outcome: _Outcome, **in_force: object) -> None:
        self.config = replace(self.config, **in_force)  # type: ignore[arg-type]  # fields of Config
        outcome.changed.append(what)

    # --- the steps ------------------------------------------------------------------------------------------------

    async def _add(
        self, wanted: DeviceConfig, wait_turn: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    ) -> Device:
        limits = self.config.limits
        device = await self._registry.add(
            wanted.name,
            flavour=FLAVOURS[wanted.flavour],
            image=wanted.image,
            files=self._files(self._allowed),
            read_only=wanted.read_only,
            cluster_sectors=wanted.cluster_sectors,
            bounds=Bounds(
                requests=limits.requests_per_device,
                park_timeout_s=limits.park_timeout_s,
                quiesce_timeout_s=limits.quiesce_timeout_s,
                held_requests=limits.held_requests,
                held_bytes=limits.held_mib * MIB,
                unflushed_bytes=limits.unflushed_mib * MIB,
            ),
            dm_name=wanted.dm_name,
            dm_uuid=wanted.dm_uuid,
            wait_turn=wait_turn,
        )
        device.queue.set_on_standby(OnStandby(wanted.on_standby))
        device.queue.set_hold_timeout(wanted.hold_timeout_ms)
        device.agent.configure(wanted.recovery)
        if wanted.standby:
            try:
                self._scst.attach(device)
            except PloopError:
                await self._registry.remove(wanted.name)
                raise
        return device

    async def _add_to_config(self, wanted: DeviceConfig, outcome: _Outcome) -> None:
        with trio.move_on_after(RELOAD_TIMEOUT_S) as limit:
            device = await self._add(wanted)
        if limit.cancelled_caught:
            raise StorageTimeout(f"its storage did not answer within {RELOAD_TIMEOUT_S} s")
        await self._wait_served(device)
        self.config = replace(self.config, devices=(*self.config.devices, wanted))
        outcome.added.append(wanted.name)

    async def _remove(self, name: str, outcome: _Outcome) -> None:
        if name in self._registry.devices:
            clean = await self._registry.remove(name, let_go=self._scst.detach)
            if not clean:
                outcome.failed.append(f"{name}: was removed, and its image stays marked in use")
        self.config = replace(
            self.config, devices=tuple(device for device in self.config.devices if device.name != name)
        )
        outcome.removed.append(name)

    async def _set_loaded(self, new: Config, outcome: _Outcome) -> None:
        if new.scst.loaded:
            self._scst.load()
        elif self._scst.loaded:
            self._scst.unload()
        self._put("scst.loaded", outcome, scst=new.scst)

    async def _change(self, change: Change, outcome: _Outcome) -> None:
        wanted = change.wanted
        device = self._registry.devices.get(wanted.name)
        if device is None:
            raise NoSuchDevice("it was removed by somebody else")
        match change.key:
            case "on_standby":
                device.queue.set_on_standby(OnStandby(wanted.on_standby))
            case "hold_timeout_ms":
                device.queue.set_hold_timeout(wanted.hold_timeout_ms)
            case "recovery":
                device.agent.configure(wanted.recovery)
                device.agent.set_policy(wanted.recovery.policy)
            case "standby" if not wanted.standby:
                self._scst.detach(device)
            case "standby" if not self._scst.is_attached(device):
                self._scst.attach(device)
        devices = (
            replace(each, **{change.key: getattr(wanted, change.key)}) if each.name == wanted.name else each
            for each in self.config.devices
        )
        self._put(str(change), outcome, devices=tuple(devices))

    def _tell(self, outcome: _Outcome) -> None:
        facts = outcome.facts
        told = [f"{name}: {value}" for name, value in facts.items() if value]
        log.info("%s was read again: %s", self.config.path, ", ".join(told) or "nothing has changed")
        for name in outcome.kept:
            log.warning("kept, though the configuration has it no more: %s", name)
        for name in outcome.remount:
            log.warning("%s is another in the configuration, and needs a remount", name)
        for name in outcome.failed:
            log.error("not reloaded: %s", name)
        self._registry.events.emit("", RELOADED, **facts)


def _loaded(path: str) -> tuple[Config, AllowedDirs]:
    config = load(path, names_devices=True)
    return config, AllowedDirs(config.allowed_dirs)
