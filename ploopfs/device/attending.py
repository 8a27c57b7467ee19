"""What runs beside each device of a registry for as long as the device is there: its recovery agent, its flusher.

Owns their tasks, which a device ends itself when it is closed. Knows nothing of what they do.
"""

from collections.abc import Awaitable, Callable, Mapping

import trio

from ploopfs.device.device import Device
from ploopfs.device.registry import Registry


async def run_agents(registry: Registry, environment: Callable[[Device], Mapping[str, str]]) -> None:
    """Until it is cancelled. `environment` is what a command that is to recover this device gets beside the facts of
    the outage."""

    async def run(device: Device) -> None:
        device.agent.environment = environment(device)
        await device.agent.run()

    await _attend(registry, run)


async def run_flushers(registry: Registry) -> None:
    """Until it is cancelled, which should be after the last device was closed: a flush that nobody hears the end of
    leaves its image marked in use."""
    await _attend(registry, lambda device: device.flusher.run())


async def _attend(registry: Registry, run: Callable[[Device], Awaitable[None]]) -> None:
    attended: set[Device] = set()
    async with trio.open_nursery() as nursery:
        while True:
            came_or_went = trio.Event()
            forget = registry.changed.subscribe(came_or_went.set)
            present = set(registry.devices.values())
            for device in present - attended:
                nursery.start_soon(run, device)
            attended = present
            try:
                await came_or_went.wait()
            finally:
                forget()
