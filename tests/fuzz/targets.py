"""The one list of what is fuzzed: every parser of the product, as a function of bytes.

A target fails with whatever it raises that is no `PloopError`. `seeds` are inputs from which others are made; `tokens`
are what a grammar is made of. Knows nothing of how inputs are made. Invariant: what a target leaves behind it removes,
so that the n-th input meets what the first one met.
"""

import contextlib
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import trio

from ploopfs.blockfuse import ending, protocol, replies
from ploopfs.blockfuse.buffers import BUFFERS
from ploopfs.cli import main
from ploopfs.config.scenario_file import load_scenario
from ploopfs.config.schema import load
from ploopfs.device.table import parse_table
from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.inject.grammar import execute, listing
from ploopfs.engine.inject.injector import Injector
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.errors import MountError, PloopError
from ploopfs.fuse import host
from ploopfs.fuse.mountpoint import parse_mountinfo
from ploopfs.image.bat import Bat
from ploopfs.image.check import Verdict, check_image
from ploopfs.image.descriptor import parse, serialise, with_snapshot
from ploopfs.image.header import CLOSED_V21, HEADER_BYTES, Header
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.blockfuse.kernel import STATFS, connected
from tests.fuse.toy import MemoryDisk
from tests.fuzz import clients, seeds
from tests.fuzz.clients import quietly
from tests.fuzz.tree import run_script

GUID = "{01234567-89ab-cdef-0123-456789abcdef}"
IMAGE = "/fuzz/image.hds"


@dataclass(frozen=True, slots=True)
class Target:
    """Inputs are cut at `max_bytes`."""

    run: Callable[[bytes], None]
    seeds: Callable[[], tuple[bytes, ...]]
    tokens: tuple[bytes, ...] = ()
    max_bytes: int = 1 << 14


def _header(data: bytes) -> None:
    header = Header.parse(data, "image")
    assert Header.parse(header.raw, "image") == header
    for other in (header.marked_in_use(), header.changed(in_use=0, flags=0, extension_sectors=0)):
        assert other.size_sectors == header.size_sectors
    assert header.bat_area_bytes >= HEADER_BYTES


def _check(data: bytes) -> None:
    """An image whose file ends where the input does."""
    header = Header.parse(data, "image")
    area = data[: header.bat_area_bytes]
    report = check_image(header, area, len(data), "image", _extension_of(header, data))
    assert (report.verdict in (Verdict.CLEAN, Verdict.NOT_CLOSED)) is not bool(report.problems)
    if report.verdict is Verdict.CLEAN:
        bat = Bat(header, area)
        assert len(bat.clusters) == header.disk_clusters
        assert int(bat.used().max(initial=0)) < -(-len(data) // header.cluster_bytes)


def _extension_of(header: Header, data: bytes) -> bytes:
    start = header.extension_sectors * 512
    return data[start : start + header.cluster_bytes]


def _extension(data: bytes) -> None:
    """The input is the format extension of a sound image, with a digest that is right."""
    image = bytearray(ImageBuilder(clusters={0: b"a", 1: b"b"}).build())
    header = Header.parse(bytes(image), "image")
    cluster = seeds.extension(data, header.cluster_bytes)
    changed = header.changed(in_use=CLOSED_V21, flags=0, extension_sectors=len(image) // 512)
    check_image(changed, bytes(image[: header.bat_area_bytes]), len(image) + len(cluster), "image", cluster)


def _open(data: bytes) -> None:
    """A stack of the input over a sound base: read, written, closed, opened again, reads the same."""
    trio.run(_open_stack, data)


async def _open_stack(data: bytes) -> None:
    files = MemoryFiles()
    files.put("/fuzz/base.hds", ImageBuilder(disk_clusters=4, clusters={0: b"base"}).build())
    files.put(IMAGE, data)
    spec = StackSpec((ImageSpec("/fuzz/base.hds"), ImageSpec(IMAGE)))
    stack = await open_stack(files, spec, read_only=False, counters=Counters())
    writable, size = not stack.read_only, stack.size_bytes
    written = b"w" * 512 if writable and size else b""
    if written:
        await stack.write(0, written)
    before = bytes(await stack.read(0, min(size, 1 << 17)))
    await stack.aclose(clean=True)
    again = await open_stack(files, spec, read_only=True, counters=Counters())
    assert bytes(await again.read(0, min(size, 1 << 17))) == before
    assert before.startswith(written)
    await again.aclose(clean=False)


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[str]:
    """The first eight bytes are how long it is, the rest what it starts with."""
    (size,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "image.hds")
        with open(path, "wb") as file:
            file.write(data[8:])
            with contextlib.suppress(OSError):  # longer than the file system takes
                file.truncate(max(len(data) - 8, size % seeds.LARGEST_FILE))
        yield path


def _info(data: bytes) -> None:
    with _file(data) as path:
        for words in (["info", path], ["info", "--json", path]):
            code, _ = quietly(main.main, words)
            assert code in (0, 1), code


def _repair(data: bytes) -> None:
    """What a repair has called sound is sound, and there is nothing left to repair."""
    with _file(data) as path:
        quietly(main.main, ["check", "--json", path])
        code, _ = quietly(main.main, ["check", "--repair", path])
        if code == 0:
            again, _ = quietly(main.main, ["check", path])
            assert again == 0, again


def _descriptor(data: bytes) -> None:
    descriptor = parse(data, "/disks/one/DiskDescriptor.xml")
    again = parse(serialise(descriptor), descriptor.path)
    assert again.images == descriptor.images
    assert again.top_guid == descriptor.top_guid
    with contextlib.suppress(PloopError):
        assert descriptor.chain()
    after = parse(with_snapshot(data, descriptor.path, snapshot_guid=GUID, new_file="new.hds"), descriptor.path)
    assert len(after.chain()) == len(descriptor.chain()) + 1


def _of_file(load_file: Callable[[str], object], data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "file.yaml")
        path.write_bytes(data)
        load_file(str(path))


def _inject(data: bytes) -> None:
    injector = Injector()
    for command in data.decode("utf-8", "surrogateescape").split("\x1e"):
        with contextlib.suppress(PloopError):
            execute(injector, command)
    assert all(line.isprintable() for line in listing(injector).split("\n"))


def _fuse(data: bytes) -> None:
    """One read of /dev/fuse. An INIT goes to no connection: a refused one ends it, as it should."""
    with contextlib.suppress(PloopError):
        request = protocol.parse(memoryview(data))
        if isinstance(request.body, protocol.Init):
            with contextlib.suppress(MountError):
                assert len(replies.agreed(request.body)) == 64
            return
    trio.run(_serve_one, data)


async def _serve_one(data: bytes) -> None:
    """Whatever a connection has read, or a thread of its own, which this disk lets make nothing, it serves the next
    request."""
    disk = MemoryDisk()
    async with connected(disk) as kernel:
        await kernel.open()
        read = data[: len(BUFFERS.current)]
        BUFFERS.current[: len(read)] = read
        assert kernel.connection._transfers.made(len(read)) is None
        if data:  # an empty one would be the end
            await kernel.send(data)
        assert len((await kernel.call(STATFS)).body) == 80
    assert disk.open_count == 0


def _ending(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    ending.ends(text)
    ending.is_exiting(text)
    with mock.patch.object(ending, "_read", return_value=text):
        ending.process_of(1)


def _table(data: bytes) -> None:
    table = parse_table(data.decode("utf-8", "surrogateescape"))
    assert parse_table(table.line) == table


def _mountinfo(data: bytes) -> None:
    for mount in parse_mountinfo(data):
        os.fsencode(mount.mountpoint)


def _proc(data: bytes) -> None:
    """What the kernel shows of a loop device over a disk of ours."""
    seeds.shown_in_proc(host, data.decode("utf-8", "surrogateescape"))


TARGETS: Mapping[str, Target] = {
    "header": Target(_header, seeds.images, seeds.IMAGE_TOKENS),
    "check": Target(_check, seeds.images, seeds.IMAGE_TOKENS, 1 << 17),
    "extension": Target(_extension, seeds.extensions, seeds.IMAGE_TOKENS),
    "open": Target(_open, seeds.images, seeds.IMAGE_TOKENS, 1 << 17),
    "info": Target(_info, seeds.sized_images, seeds.IMAGE_TOKENS, 1 << 17),
    "repair": Target(_repair, seeds.sized_images, seeds.IMAGE_TOKENS, 1 << 17),
    "descriptor": Target(_descriptor, seeds.descriptors, seeds.XML_TOKENS),
    "config": Target(partial(_of_file, load), seeds.configurations, seeds.YAML_TOKENS),
    "scenario": Target(partial(_of_file, load_scenario), seeds.scenarios, seeds.YAML_TOKENS),
    "inject": Target(_inject, seeds.injections, seeds.INJECT_TOKENS),
    "table": Target(_table, seeds.tables, seeds.TABLE_TOKENS),
    "fuse": Target(_fuse, seeds.fuse_requests, seeds.FUSE_TOKENS, 1 << 13),
    "ending": Target(_ending, seeds.thread_states, seeds.NUMBERS),
    "stores": Target(run_script, seeds.stores, seeds.STORE_TOKENS),
    "mountinfo": Target(_mountinfo, seeds.mountinfos, seeds.MOUNTINFO_TOKENS),
    "proc": Target(_proc, seeds.mountinfos, seeds.MOUNTINFO_TOKENS),
    "arguments": Target(clients.run_arguments, seeds.command_lines, seeds.ARGUMENT_TOKENS),
    "verbs": Target(clients.run_verbs, seeds.trees, seeds.TREE_TOKENS),
    "dmsetup": Target(clients.run_dmsetup, seeds.trees, seeds.TREE_TOKENS),
    "dmsetup-line": Target(clients.run_dmsetup_line, seeds.dmsetup_lines, seeds.TABLE_TOKENS),
}
