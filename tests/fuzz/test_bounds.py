"""No input makes a parser work or allocate beyond its length: counted in lines executed and bytes held, not in time.

A bomb is an input of any size whose worst is known: deep, wide, repeated, or a small one that claims to be large. Twice
the size may cost twice as much and not more, and memory stays within a multiple of the input.
"""

import struct
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

import pytest

from ploopfs.errors import ConfigError, PloopError
from ploopfs.image.descriptor import NONE_GUID, TOP_GUID
from ploopfs.testing.images import ImageBuilder
from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.expects_warnings

SMALL = 300
STEEPEST = 2.4
"""Of the work for twice the size, where twice is right; the rest is for what happens once."""
FREE_BYTES = 4 << 20
BYTES_PER_BYTE = 2000
"""An empty element of four letters is an object with a dict and a list; a node of YAML has two marks."""

Bomb = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Cost:
    lines: int
    peak_bytes: int


def cost_of(run: Callable[[bytes], None], data: bytes) -> Cost:
    """Lines of Python, wherever they stand, and the most that was allocated at one time."""
    lines = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> object:
        nonlocal lines
        lines += event == "line"
        return trace

    with suppress(PloopError):
        run(data)  # what is imported and cached at the first time is no cost of an input
    tracemalloc.start()
    try:
        with suppress(PloopError):
            run(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    previous = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]  # that a trace function returns itself, no type can say
    try:
        with suppress(PloopError):
            run(data)
    finally:
        sys.settrace(previous)
    return Cost(lines, peak)


def _guid(number: int) -> str:
    return f"{{a{number:07x}-1111-4222-8333-000000000000}}"


def _snapshots(count: int) -> bytes:
    """A chain of `count` images, the top first."""
    guids = [TOP_GUID, *map(_guid, range(count - 1))]
    images = "".join(f"<Image><GUID>{guid}</GUID><File>f</File></Image>" for guid in guids)
    pairs = zip(guids, [*guids[1:], NONE_GUID], strict=True)
    shots = "".join(f"<Shot><GUID>{guid}</GUID><ParentGUID>{parent}</ParentGUID></Shot>" for guid, parent in pairs)
    return (
        "<d><Disk_Parameters/><StorageData><Storage><Blocksize>2048</Blocksize>"
        f"{images}</Storage></StorageData><Snapshots>{shots}</Snapshots></d>"
    ).encode()


def _map(count: int) -> bytes:
    """An image whose map of `count` entries says the same of each."""
    image = bytearray(ImageBuilder(disk_clusters=count).build())
    struct.pack_into(f"<{count}I", image, 64, *[0xFFFFFFFF] * count)
    return bytes(image)


def _of(text: bytes, before: bytes = b"", after: bytes = b"") -> Bomb:
    return lambda count: before + text * count + after


def _keys(count: int) -> bytes:
    return "".join(f"key{number}: 1\n" for number in range(count)).encode()


def _attributes(count: int) -> bytes:
    return ("<d " + "".join(f'a{number}="" ' for number in range(count)) + "/>").encode()


def _devices(count: int) -> bytes:
    return b"devices:\n" + b"- {name: ploop0, image: [a, b]}\n" * count


def _steps(count: int) -> bytes:
    return b"name: a\nsteps:\n" + b"- write: {count: 1}\n" * count


def _payload(path: str, text: bytes) -> Bomb:
    return lambda count: path.encode() + b"\0" + text * count


MESSAGE = "sys/devices/virtual/block/dm-0/ploopfs/message"
BOMBS: dict[str, tuple[str, Bomb]] = {
    # what it is called: its target, and how it grows
    "deep elements": ("descriptor", _of(b"<a>")),
    "many elements": ("descriptor", _of(b"<a/>", b"<d>", b"</d>")),
    "many attributes": ("descriptor", _attributes),
    "references": ("descriptor", _of(b"&#65;", b"<d>", b"</d>")),
    "sections between comments": ("descriptor", _of(b"<![CDATA[]]>x<!---->", b"<d>", b"</d>")),
    "many snapshots": ("descriptor", _snapshots),
    "an entity of entities": ("descriptor", _of(b"&c;", b'<!DOCTYPE d [<!ENTITY c "x">]><d>', b"</d>")),
    "deep lists": ("config", _of(b"[")),
    "deep keys": ("config", _of(b"? ")),
    "deep entries": ("config", _of(b"- ")),
    "aliases of aliases": ("config", _of(b"- &a [*a, *a]\n")),
    "unknown keys": ("config", _keys),
    "one long text": ("config", _of(b"a\n ", b"devices: ")),
    "one long number": ("config", _of(b":59", b"limits: {requests_per_device: 1", b"}")),
    "the same device again": ("config", _devices),
    "many steps": ("scenario", _steps),
    "many commands": ("inject", _of(b"add,")),
    "many words": ("inject", _of(b"x=,")),
    "backslashes": ("table", _of(b"\\", b"0 8 ploop 6 /")),
    "many images": ("table", _of(b" /a", b"0 8 ploop 6")),
    "many targets": ("table", _of(b"0 8 error\n")),
    "digits": ("stores", _payload("sys/devices/virtual/block/ploop0/pstate/aborted", b"9")),
    "options": ("stores", _payload("sys/devices/virtual/block/ploop0/ploopfs/replace_delta", b"level=0 ")),
    "moved clusters": ("stores", lambda count: f"{MESSAGE}\0update_delta_index 0 ".encode() + b"0:1;" * count),
    "parameters": ("stores", _payload("sys/kernel/scst_tgt/handlers/vdisk_nullio/mgmt", b"add_device a tst=1;")),
    "addresses": ("stores", _payload("sys/kernel/scst_tgt/targets/iscsi/internal_portal", b"10.0.0.1 ")),
    "a uevent": ("stores", _payload("sys/devices/virtual/block/ploop0/uevent", b"add a=b ")),
    "used clusters": ("check", _map),
    "many mounts": ("mountinfo", _of(b"22 1 0:21 / /mnt\\040a rw - fuse.ploopfs p rw\n")),
    "one long mount": ("mountinfo", _of(b" - ")),
}


@pytest.mark.parametrize("name", BOMBS)
def test_twice_the_input_is_at_most_twice_the_work(name: str) -> None:
    target, bomb = BOMBS[name]
    run = TARGETS[target].run
    once, twice = (cost_of(run, bomb(count)) for count in (SMALL, 2 * SMALL))
    base = cost_of(run, bomb(1))
    assert twice.lines - base.lines <= STEEPEST * max(once.lines - base.lines, 500)
    assert twice.peak_bytes <= FREE_BYTES + BYTES_PER_BYTE * len(bomb(2 * SMALL))


def test_work_that_grows_faster_than_its_input_is_seen() -> None:
    def compared(data: bytes) -> None:
        for one in data:
            for _ in range(len(data) // 30):
                assert one

    once, twice = (cost_of(compared, bytes([1]) * count) for count in (SMALL, 2 * SMALL))
    assert twice.lines > STEEPEST * once.lines


def test_a_small_file_that_claims_to_be_large_is_as_small_in_memory() -> None:
    """A sparse one of 2 TiB, with a map of as much."""
    claims = [data for data in seeds.sized_images() if struct.unpack("<Q", data[:8])[0] > 1 << 30]
    assert claims
    for data in claims:
        assert cost_of(TARGETS["info"].run, data).peak_bytes < FREE_BYTES


@pytest.mark.parametrize("text", [b"- &a [*a]\n", b"<<: *a\n", b"a: &a b\n"])
def test_an_anchor_is_refused_before_it_is_followed(text: bytes) -> None:
    with pytest.raises(ConfigError, match=r"anchors and aliases are not accepted|not YAML"):
        TARGETS["config"].run(text)
