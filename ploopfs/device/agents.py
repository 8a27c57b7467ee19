"""The recovery agents of all devices of a registry, each for as long as its device is there.

Owns their tasks. Knows nothing of what an agent does.
"""

from collections.abc import Callable, Mapping

import trio

from ploopfs.device.device import Device
from ploopfs.device.registry import Registry


async def run_agents(registry: Registry, environment: Callable[[Device], Mapping[str, str]]) -> None:
    """Until it is cancelled. `environment` is what a command that is to recover this device gets beside the facts of
    the outage."""
    running: dict[Device, trio.CancelScope] = {}

    async def run(device: Device, scope: trio.CancelScope) -> None:
        device.agent.environment = environment(device)
        with scope:
            await device.agent.run()

    async with trio.open_nursery() as nursery:
        while True:
            came_or_went = trio.Event()
            forget = registry.changed.subscribe(came_or_went.set)
            present = set(registry.devices.values())
            for device in running.keys() - present:
                running.pop(device).cancel()
            for device in present - running.keys():
                running[device] = trio.CancelScope()
                nursery.start_soon(run, device, running[device])
            try:
                await came_or_went.wait()
            finally:
                forget()
