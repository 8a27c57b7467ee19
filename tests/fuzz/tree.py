"""A tree in which every kind of writable file exists, over real devices on images in memory, and what stores do to it.

One input is a script: records between RECORD bytes, each a path, NUL and the bytes of one write(2). A path that does
not exist means one that does, so that a mutation of it still writes somewhere. Invariant: whatever is written, every
file still answers, every name can stand in a directory, and every event is one line of JSON.
"""

import json
import logging
import os
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio
import trio.testing

from ploopfs.bounds import PAGE_BYTES
from ploopfs.device.bounds import Bounds
from ploopfs.device.device import Device
from ploopfs.device.flavour import FLAVOURS
from ploopfs.device.registry import Registry
from ploopfs.errors import PloopError
from ploopfs.fuse.operations import NAME_MAX
from ploopfs.scst.module import Scst
from ploopfs.sysfs.nodes import Attribute, Directory, Node
from ploopfs.sysfs.openfile import opening
from ploopfs.sysfs.tree import build
from ploopfs.testing.files import MemoryFiles
from tests.device.rig import image

RECORD = b"\x1e"
MOST_RECORDS = 12
STACKS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ploop0": ("vz7", ("/store/base.hds", "/store/middle.hds", "/store/top.hds")),
    "dm-0": ("vz9", ("/mapped/base.hds", "/mapped/middle.hds", "/mapped/top.hds")),
    "xvda": ("block", ("raw@/store/disk.raw",)),
}
COPY = "/store/copy.hds"
SCST = "sys/kernel/scst_tgt"
MADE: tuple[tuple[str, str], ...] = (
    # what is written to make one of everything that only a command makes
    (f"{SCST}/handlers/vdisk_fileio/mgmt", "add_device file filename=/dev/xvda"),
    (f"{SCST}/handlers/vdisk_nullio/mgmt", "add_device null size_mb=1"),
    (f"{SCST}/handlers/vcdrom/mgmt", "add_device cd"),
    (f"{SCST}/targets/iscsi/mgmt", "add_target iqn.x"),
    (f"{SCST}/targets/iscsi/mgmt", "add_attribute IncomingUser joe a-secret-of-12"),
    (f"{SCST}/targets/iscsi/mgmt", "add_target_attribute iqn.x allowed_portal 10.0.0.1"),
    (f"{SCST}/targets/iscsi/iqn.x/luns/mgmt", "add ploop0 0"),
    (f"{SCST}/targets/iscsi/iqn.x/ini_groups/mgmt", "create hosts"),
    (f"{SCST}/targets/iscsi/iqn.x/ini_groups/hosts/luns/mgmt", "add null 1 read_only=1"),
    (f"{SCST}/targets/iscsi/iqn.x/ini_groups/hosts/initiators/mgmt", "add iqn.i"),
    (f"{SCST}/device_groups/mgmt", "create group"),
    (f"{SCST}/device_groups/group/devices/mgmt", "add dm-0"),
    (f"{SCST}/device_groups/group/target_groups/mgmt", "create ways"),
    (f"{SCST}/device_groups/group/target_groups/ways/mgmt", "add iqn.x"),
    (f"{SCST}/device_groups/group/target_groups/ways/mgmt", "add elsewhere"),
)


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """The tree and what it is built of."""

    root: Directory
    registry: Registry
    files: MemoryFiles

    def device(self, name: str) -> Device:
        return self.registry.devices[name]

    def attributes(self) -> dict[str, Attribute]:
        return dict(_attributes(self.root, ""))

    def writable(self) -> list[str]:
        return [path for path, node in self.attributes().items() if node.store is not None]


def record(path: str, payload: bytes | str) -> bytes:
    return path.encode() + b"\0" + (payload.encode() if isinstance(payload, str) else payload)


def script(*records: tuple[str, bytes | str]) -> bytes:
    return RECORD.join(record(path, payload) for path, payload in records)


@asynccontextmanager
async def populated() -> AsyncIterator[Fuzzed]:
    files = MemoryFiles()
    for directory in ("/store", "/mapped"):
        for name, letter in (("base", b"a"), ("middle", b"m"), ("top", b"t")):
            files.put(f"{directory}/{name}.hds", image({0: letter, 1: letter}).build())
    files.put(COPY, image({0: b"t", 1: b"t"}).build())
    files.put("/store/disk.raw", bytes(1 << 18))
    registry = Registry()
    scst = Scst(registry, "/mnt")
    bounds = Bounds(park_timeout_s=5, quiesce_timeout_s=5)
    for name, (flavour, stack) in STACKS.items():
        await registry.add(name, flavour=FLAVOURS[flavour], image=stack, files=files, bounds=bounds)
    scst.load()
    scst.attach(registry.devices["ploop0"])
    scst.attach(registry.devices["dm-0"])
    fuzzed = Fuzzed(build(registry, scst), registry, files)
    for path, text in MADE:
        made = _at(fuzzed.root, path.split("/"))
        assert made is not None, path
        await store(made, text.encode())
    yield fuzzed
    await registry.aclose()


async def store(attribute: Attribute, payload: bytes) -> None:
    """One write(2) as FUSE passes it on, and what the same descriptor reads then."""
    file = opening(attribute, os.O_RDWR if attribute.show else os.O_WRONLY)
    await file.write(0, payload)
    if attribute.show:
        file.read(0, PAGE_BYTES)


def run_script(data: bytes, most_records: int = MOST_RECORDS) -> None:
    """Play one input and check the invariant."""
    with _logged():
        trio.run(_play, data, most_records, clock=trio.testing.MockClock(autojump_threshold=0))


async def _play(data: bytes, most_records: int) -> None:
    async with populated() as fuzzed:
        for one in data.split(RECORD)[:most_records]:
            path, _, payload = one.partition(b"\0")
            await _store_at(fuzzed, path, payload)
        check(fuzzed)


async def _store_at(fuzzed: Fuzzed, path: bytes, payload: bytes) -> None:
    attribute = _at(fuzzed.root, os.fsdecode(path).split("/"))
    if attribute is None:
        files = [file for file in fuzzed.attributes().values() if file.store is not None]
        attribute = files[zlib.crc32(path) % len(files)]
    try:
        await store(attribute, payload)
    except PloopError as error:
        str(error).encode("utf-8", "surrogateescape")


def _at(directory: Directory, names: list[str]) -> Attribute | None:
    """None for what cannot be written."""
    match directory.children().get(names[0]):
        case Directory() as below if len(names) > 1:
            return _at(below, names[1:])
        case Attribute(store=store) as found if len(names) == 1 and store is not None:
            return found
    return None


def check(fuzzed: Fuzzed) -> None:
    """What holds whatever was stored."""
    for path, attribute in fuzzed.attributes().items():
        name = os.fsencode(path.rpartition("/")[2])
        assert 0 < len(name) <= NAME_MAX, f"no directory can hold the name {name!r}"
        assert b"\0" not in name, name
        assert name not in (b".", b".."), path
        if attribute.show is not None:
            try:
                opening(attribute, os.O_RDONLY).read(0, 1 << 20)
            except PloopError as error:
                str(error)
    events = fuzzed.registry.events
    for sequence in range(events.first_sequence, events.next_sequence):
        text = events.record(sequence).as_json()
        assert "\n" not in text
        json.loads(text)


def _attributes(directory: Directory, prefix: str) -> list[tuple[str, Attribute]]:
    found: list[tuple[str, Attribute]] = []
    children: Mapping[str, Node] = directory.children()
    for name, node in children.items():
        assert "/" not in name, f"{prefix}{name!r}"
        match node:
            case Directory():
                found += _attributes(node, f"{prefix}{name}/")
            case Attribute():
                found.append((f"{prefix}{name}", node))
    return found


class _Recorder(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Formats as every handler does, and takes an exception in a record for what it is: a bug that was logged."""
        record.getMessage().encode("utf-8", "surrogateescape")
        assert record.exc_info is None, record.getMessage()


@contextmanager
def _logged() -> Iterator[None]:
    """Every record is made into text, whatever the level."""
    handler, logger = _Recorder(), logging.getLogger("ploopfs")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
