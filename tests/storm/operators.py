"""What operators do to a disk: they recover it, attach and detach it, suspend it, load tables, send messages.

One flow per disk at a time where it takes long; its own randomness, so that what others do changes nothing in it.
Knows nothing of stores but where images lie.
"""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

from ploopfs.device.flavour import VZ7
from ploopfs.device.stats import Op
from ploopfs.errors import ImageNotClosed, PloopError
from tests.device.outage import passes
from tests.storm import users
from tests.storm.world import Disk, World

Flow = Callable[[World, Disk, Random], Awaitable[str]]


def _told(error: PloopError | None) -> str:
    return "ok" if error is None else f"{errno.errorcode.get(error.errno, error.errno)}: {error}"


async def reopen(world: World, disk: Disk, _random: Random) -> str:
    with disk.may_write(disk.top):
        return _told(await world.tell(disk, "ploopfs/reopen", "1"))


async def replace(world: World, disk: Disk, random: Random) -> str:
    """By a copy of what the store has: of a disk in standby as it is, of a healthy one with everybody silent."""
    if disk.device.queue.is_lost:
        return await _replace_lost(world, disk, random)
    if disk.flavour.mapped or disk.rules.is_on:
        return ""
    async with silenced(disk):
        error = await users.ask(world, disk, users.Request("flush"))
        if error is not None:
            return f"not flushed: {_told(error)}"
        path = _copy(world, disk, random)
        with disk.may_write(path), disk.may_write(disk.top):
            verify = random.choice(("", "verify=map ", "verify=full "))
            return f"{path} {_told(await world.tell(disk, 'ploopfs/replace_delta', f'{verify}{path}'))}"


async def _replace_lost(world: World, disk: Disk, random: Random) -> str:
    """A copy is for the outage in which it was made: nobody else recovers meanwhile."""
    async with agent_paused(world, disk), silenced(disk):
        while disk.device.queue.aborted and _changes_in_flight(disk):
            await passes(0.1)  # they are acknowledged if the storage takes them after all, and nobody keeps them
        if not disk.device.queue.is_lost or disk.is_degraded:
            return ""
        path = _copy_of_lost(world, disk, random)
        with disk.may_write(path), disk.may_write(disk.top):
            return f"{path} {_told(await world.tell(disk, 'ploopfs/replace_delta', path))}"


def _changes_in_flight(disk: Disk) -> int:
    by_op = disk.device.stats.by_op
    return by_op[Op.WRITE].in_flight + by_op[Op.DISCARD].in_flight


@asynccontextmanager
async def silenced(disk: Disk) -> AsyncIterator[None]:
    """Nobody asks it anything, unless it refuses every change: a copy of a disk that is written is none."""
    disk.is_silent = not (disk.rules.is_on or disk.device.queue.aborted)
    try:
        while disk.is_silent and disk.requests:
            await passes(0.1)
        yield
    finally:
        disk.is_silent = False


@asynccontextmanager
async def agent_paused(world: World, disk: Disk) -> AsyncIterator[None]:
    await world.tell(disk, "ploopfs/agent", "pause")
    await passes(0)
    try:
        yield
    finally:
        disk.device.agent.resume()


def _copy_of_lost(world: World, disk: Disk, random: Random) -> str:
    path = disk.new_path(random.choice(tuple(world.stores.weather)))
    world.platter.put(path, world.platter.seen(disk.top))
    return path


def _copy(world: World, disk: Disk, random: Random) -> str:
    """A copy that is closed: the mark of a disk in use is ours to take away."""
    path = disk.new_path(random.choice(tuple(world.stores.weather)))
    world.platter.put(path, world.platter.seen(disk.top))
    world.clear_mark(path)
    return path


async def attach(world: World, disk: Disk, random: Random) -> str:
    """Perhaps while the module is not loaded, which is an inconsistency that is only warned of."""
    if disk.rules.is_attached or (not world.scst.loaded and random.random() < 0.7):
        return ""
    world.attach(disk)
    return "attached"


async def detach(world: World, disk: Disk, _random: Random) -> str:
    if not disk.rules.is_attached:
        return ""
    world.detach(disk)
    return "detached"


async def toggle_module(world: World, _disk: Disk, _random: Random) -> str:
    """Unloading is refused while a device is in it."""
    file = "rmmod" if world.scst.loaded else "modprobe"
    return f"{file} {_told(await world.control(f'sys/fs/ploopfs/{file}', 'scst'))}"


async def set_on_standby(world: World, disk: Disk, random: Random) -> str:
    policy = random.choice(("fail", "hold"))
    return f"{policy} {_told(await world.tell(disk, 'ploopfs/on_standby', policy))}"


async def fail_held(world: World, disk: Disk, _random: Random) -> str:
    return _told(await world.tell(disk, "ploopfs/fail_held", "1"))


async def clear_aborted(world: World, disk: Disk, _random: Random) -> str:
    if disk.flavour is not VZ7 or not disk.device.queue.aborted:
        return ""
    return _told(await world.tell(disk, "pstate/aborted", "0"))


async def forget(world: World, disk: Disk, _random: Random) -> str:
    """Of a disk that nobody has promised to recover, its user knows better what to keep."""
    disk.model.forget_kept()
    error = await world.tell(disk, "ploopfs/unflushed_bytes", "0")
    disk.model.forget_kept()
    return _told(error)


async def set_policy(world: World, disk: Disk, random: Random) -> str:
    """A mirror is a copy of the top, under another name, that some store keeps up to date by itself."""
    policy = random.choice(("manual", "reopen", "replace"))
    if policy == "replace":
        path = f"/{random.choice(tuple(world.stores.weather))}/{disk.name}-mirror.hds"
        world.stores.mirror(path, lambda: disk.top)
        disk.mirrors.add(path)
        policy = f"replace {path}"
    return f"{policy} {_told(await world.tell(disk, 'ploopfs/recovery', policy))}"


async def tell_agent(world: World, disk: Disk, random: Random) -> str:
    word = random.choice(("pause", "resume", "resume", "now"))
    return f"{word} {_told(await world.tell(disk, 'ploopfs/agent', word))}"


async def suspend(world: World, disk: Disk, random: Random) -> str:
    """For a while, and whatever is loaded meanwhile comes into force."""
    if not disk.flavour.mapped:
        return ""
    how = random.choice(("flush", "noflush"))
    told = [f"suspend {how} {_told(await world.tell(disk, 'ploopfs/suspend', how))}"]
    await passes(random.choice((0, 0.3, 3, 25)))
    told.append(f"resume {_told(await world.tell(disk, 'ploopfs/resume', 'flush'))}")
    return "; ".join(told)


async def reload(world: World, disk: Disk, random: Random) -> str:
    """The same images, or a copy of a top that was lost, by a table; resumed, or cleared, after a while."""
    if not disk.flavour.mapped:
        return ""
    async with agent_paused(world, disk):
        if disk.device.queue.is_lost and random.random() < 0.5:
            async with silenced(disk):
                return await _reload(world, disk, random, by_copy=True)
        return await _reload(world, disk, random, by_copy=False)


async def _reload(world: World, disk: Disk, random: Random, *, by_copy: bool) -> str:
    images = disk.images
    if by_copy and disk.device.queue.is_lost and disk.device.stack.deltas:
        images[-1] = _copy_of_lost(world, disk, random)
    length = disk.model.size if random.random() < 0.5 else _image_bytes(disk)
    told = []
    with disk.may_write(images[-1]), disk.may_write(disk.top):
        if random.random() < 0.5:
            told.append(f"suspend {_told(await world.tell(disk, 'ploopfs/suspend', 'noflush'))}")
        told.append(f"load {_told(await _load(world, disk, images, length))}")
        await passes(random.choice((0, 0, 0.5, 3)))
        last = random.choice(("resume", "resume", "resume", "clear"))
        told.append(f"{last} {_told(await world.tell(disk, f'ploopfs/{last}', '1' if last == 'clear' else 'flush'))}")
        if last == "clear" or disk.device.mapper.suspended:  # type: ignore[union-attr]
            told.append(f"resume {_told(await world.tell(disk, 'ploopfs/resume', 'flush'))}")
        if disk.device.queue._closing:
            disk.mirrors.add(images[-1])  # what waits is closed with the device
    return "; ".join(told)


async def _load(world: World, disk: Disk, images: list[str], length_bytes: int) -> PloopError | None:
    return await world.tell(disk, "ploopfs/load", f"0 {length_bytes // 512} ploop 6 {' '.join(images)}")


def _image_bytes(disk: Disk) -> int:
    """What the images have, which may be more than the table says."""
    header = disk.device.stack.top.header if disk.device.stack.deltas else None
    return header.size_bytes if header is not None else disk.model.size


async def degrade(world: World, disk: Disk, random: Random) -> str:
    """An error target takes the place of the images for a while."""
    if not disk.flavour.mapped:
        return ""
    async with agent_paused(world, disk):
        told = [f"load error {_told(await world.tell(disk, 'ploopfs/load', f'0 {disk.model.size // 512} error'))}"]
        with disk.may_write(disk.top):
            told.append(f"resume {_told(await world.tell(disk, 'ploopfs/resume', 'flush'))}")
            await passes(random.choice((0, 0.3, 3)))
        told.append(f"back {_told(await restore(world, disk))}")
        await world.tell(disk, "ploopfs/clear", "1")
        await world.tell(disk, "ploopfs/resume", "flush")
    return "; ".join(told)


async def restore(world: World, disk: Disk) -> PloopError | None:
    """The images in the place of an error target. A top that could not be closed before keeps its mark, which a check
    takes away."""
    if not disk.is_degraded:
        return None
    with disk.may_write(disk.top):
        error = await _load(world, disk, disk.images, disk.model.size)
        if isinstance(error, ImageNotClosed):
            world.check_images(disk, closed=False)
            world.clear_mark(disk.top)
            error = await _load(world, disk, disk.images, disk.model.size)
        return error or await world.tell(disk, "ploopfs/resume", "flush")


async def send_message(world: World, disk: Disk, random: Random) -> str:
    """The images grow (the table stays as long as it is), a level is merged into the top, changes are tracked."""
    if not disk.flavour.mapped:
        return ""
    header = disk.device.stack.deltas[-1].header if disk.device.stack.deltas else None
    larger = (header.size_sectors if header is not None else 0) + random.choice((64, 64, 640))
    text = random.choice((f"resize {larger}", f"resize {larger}", "merge", "merge", "tracking_start", "tracking_stop"))
    return f"{text} {_told(await world.tell(disk, 'ploopfs/message', text))}"


LONG = frozenset({"reopen", "replace", "suspend", "reload", "degrade", "message"})
"""One of these at a time on a disk."""

FLOWS: dict[str, tuple[int, Flow]] = {
    "reopen": (6, reopen),
    "replace": (5, replace),
    "attach": (5, attach),
    "detach": (2, detach),
    "toggle_module": (1, toggle_module),
    "on_standby": (2, set_on_standby),
    "fail_held": (1, fail_held),
    "clear_aborted": (3, clear_aborted),
    "forget": (1, forget),
    "policy": (1, set_policy),
    "agent": (1, tell_agent),
    "suspend": (2, suspend),
    "reload": (6, reload),
    "degrade": (2, degrade),
    "message": (3, send_message),
}
"""How often, and what is done; the result says it in words, and is empty if there was nothing to do."""
