"""A disk on a connection of its own, in a process of its own: `python -m tests.blockfuse.server FILE IMAGE...`.

Mounts over FILE and prints `ready`. Both fuses are in. Lines of standard input are commands, each answered with a line:
`inject RULE` for faults of the storage, `hold`, `reopen`, `tell` for what the device is like, `close` for the end of
its connection. Ends with its input.
"""

import ctypes
import logging
import os
import stat
import sys

import trio

from ploopfs.blockfuse.connection import Connection
from ploopfs.blockfuse.front import Front
from ploopfs.device.device import Device
from ploopfs.device.flavour import VZ7
from ploopfs.device.registry import Registry
from ploopfs.device.waiting import OnStandby
from ploopfs.engine.file import OsFiles
from ploopfs.engine.inject.grammar import execute
from ploopfs.scst.module import Scst
from ploopfs.sysfs.nodes import Disk

_libc = ctypes.CDLL(None, use_errno=True)
MNT_DETACH = 2


def mount(file: str) -> int:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    options = f"fd={fd},rootmode={stat.S_IFREG:o},user_id=0,group_id=0,allow_other,default_permissions"
    if _libc.mount(b"ploop", os.fsencode(file), b"fuse.ploopfs-disk", ctypes.c_ulong(6), options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    return fd


async def main(*words: str) -> None:
    file, *images = words
    logging.basicConfig(level=logging.INFO)
    registry = Registry()
    scst = Scst(registry)
    device = await registry.add("ploop0", flavour=VZ7, image=images, files=OsFiles())
    scst.load()
    scst.attach(device)
    connection = Connection(mount(file), Front(Disk(device)))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(connection.run)
            print("ready", flush=True)
            await obey(device, connection)
            # Lazily: who still has it open keeps what there is of it, and the connection ends with the last of them.
            _libc.umount2(os.fsencode(file), MNT_DETACH)
    finally:
        _libc.umount2(os.fsencode(file), MNT_DETACH)
        await registry.aclose()


async def obey(device: Device, connection: Connection) -> None:
    while line := (await trio.to_thread.run_sync(sys.stdin.readline)).strip():
        word, _, rest = line.partition(" ")
        answer = "done"
        match word:
            case "inject":
                execute(device.injector, rest)
            case "hold":
                device.queue.set_on_standby(OnStandby.HOLD)
            case "reopen":
                await device.reopen()
            case "close":
                connection.close()
            case "tell":
                held, flying = device.queue.room.held, device.stats.in_flight
                answer = f"open={device.open_count} held={held} in_flight={flying} {device.queue.standby.state.value}"
        print(answer, flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
