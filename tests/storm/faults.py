"""What befalls the stores: outages, crashes, stolen leases, hangs, slowness, full and flaky ones - and their return.

Every fault ends by itself after a drawn time. Knows nothing of devices.
"""

import errno
from collections.abc import Callable
from random import Random

import trio

from ploopfs.engine.inject.filter import OPERATIONS
from tests.device.outage import passes
from tests.storm.world import Disk, World

STANDBY = (errno.EIO, errno.EBUSY, errno.ENOTCONN)
OTHERS = (errno.ENOSPC, errno.ETIMEDOUT, errno.EIO, errno.ENODEV)
_DATA = frozenset({"read", "write", "fsync", "truncate"})
THIEF = -1


def outage(world: World, disk: Disk, random: Random) -> str:
    """Nothing is answered but with an errno; what was not synced may be gone, and who had a file open has lost it."""
    name, number = _store_of(disk), random.choice(STANDBY)
    forgets, stays_dead = random.random() < 0.6, random.random() < 0.5
    weather = world.stores.weather_at(disk.top)
    if weather.outage is not None:
        return ""
    weather.outage = number
    if forgets:
        world.stores.crash(name, number, stays_dead=stays_dead)
    _until(world, random.choice((0.1, 1, 3, 12)), lambda: setattr(weather, "outage", None))
    return f"{name} {errno.errorcode[number]}{' forgets' * forgets}{' dead' * (forgets and stays_dead)}"


def restart(world: World, disk: Disk, random: Random) -> str:
    """The store crashes and is back at once; clients learn of it late."""
    name, stays_dead = _store_of(disk), random.random() < 0.5
    world.stores.crash(name, errno.ENOTCONN, stays_dead=stays_dead)
    return f"{name}{' dead' * stays_dead}"


def theft(world: World, disk: Disk, random: Random) -> str:
    """The lease of the top is somebody else's for a while: who had it open gets EBUSY for ever, and a lock is on it."""
    path = disk.top
    image = world.platter.files.images[path]
    if THIEF in image.writers:
        return ""
    world.stores.crash_image(path, errno.EBUSY, stays_dead=True)
    image.writers.add(THIEF)
    _until(world, random.choice((0.5, 2, 6)), lambda: image.writers.discard(THIEF))
    return path


def hang(world: World, disk: Disk, random: Random) -> str:
    weather = world.stores.weather_at(disk.top)
    if weather.hang is not None:
        return ""
    weather.hang = trio.Event()
    world.stalls(+1)
    seconds = random.choice((0.2, 1, 5, 9))

    def end() -> None:
        if weather.hang is not None:
            weather.hang.set()
            weather.hang = None
            world.stalls(-1)

    _until(world, seconds, end)
    return f"{_store_of(disk)} {seconds} s"


def slowness(world: World, disk: Disk, random: Random) -> str:
    weather = world.stores.weather_at(disk.top)
    weather.slowness = random.choice((5, 20))
    _until(world, random.choice((1, 3)), lambda: setattr(weather, "slowness", 1))
    return f"{_store_of(disk)} {weather.slowness}"


def fullness(world: World, disk: Disk, random: Random) -> str:
    weather = world.stores.weather_at(disk.top)
    weather.is_full = True
    _until(world, random.choice((0.5, 2, 5)), lambda: setattr(weather, "is_full", False))
    return _store_of(disk)


def flakiness(world: World, disk: Disk, random: Random) -> str:
    """Some operations fail, before, after or amid what they do."""
    weather = world.stores.weather_at(disk.top)
    weather.rate = random.choice((0.02, 0.1, 0.4))
    weather.errnos = random.choice((STANDBY, OTHERS, (errno.ENOSPC,), (errno.ETIMEDOUT,)))
    weather.operations = random.choice((OPERATIONS, _DATA, frozenset({"fsync"}), frozenset({"write"})))
    _until(world, random.choice((0.2, 1, 3)), lambda: setattr(weather, "rate", 0))
    return f"{_store_of(disk)} {weather.rate} {'/'.join(errno.errorcode[number] for number in weather.errnos)}"


FAULTS: dict[str, tuple[int, Callable[[World, Disk, Random], str]]] = {
    "outage": (6, outage),
    "restart": (4, restart),
    "theft": (3, theft),
    "hang": (2, hang),
    "slowness": (2, slowness),
    "fullness": (2, fullness),
    "flakiness": (4, flakiness),
}
"""How often, and what happens; the result says it in words, and is empty if it could not."""


def calm(world: World) -> None:
    """Every store is well again."""
    for weather in world.stores.weather.values():
        if weather.hang is not None:
            weather.hang.set()
            world.stalls(-1)
        weather.outage, weather.rate, weather.is_full, weather.slowness, weather.hang = None, 0, False, 1, None
    for image in world.platter.files.images.values():
        image.writers.discard(THIEF)


def _store_of(disk: Disk) -> str:
    return disk.top.split("/")[1]


def _until(world: World, seconds: float, end: Callable[[], None]) -> None:
    async def wait() -> None:
        await passes(seconds)
        end()

    world.stores.nursery.start_soon(wait)
