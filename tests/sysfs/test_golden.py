"""The whole tree against a listing that was written down before it: path, mode, and the exact bytes or the target.

PLOOPFS_WRITE_GOLDEN=1 writes the listings anew; what then changed is for the reader of the difference to judge.
"""

import difflib
import errno
import json
import os
import re
from pathlib import Path

import pytest

from ploopfs.device.flavour import BLOCK, FLAVOURS, VZ7, VZ9, Flavour
from ploopfs.errors import PloopError
from ploopfs.sysfs.nodes import Attribute, Directory, Disk, Link, Node, Report, Stream
from ploopfs.sysfs.openfile import opening
from tests.sysfs.fakes import FakeDelta, FakeRegistry, tree_of, walk

GOLDEN = Path(__file__).parent.parent / "golden"

DISK = "(?:ploop0|dm-0|xvda)"

VOLATILE = [
    # (end of the path, what must be there, what the listing has for it)
    ("/stat", r"( *\d+){17}", "<17 columns>"),
    ("/diskseq", r"\d+", "<number>"),
    ("/uevent", r"(?<=DISKSEQ=)\d+", "<number>"),
    ("/image_info", r"(?<=ino:)\d+", "<inode>"),
    ("/image_info", r"(?<=sdev:)\d+:\d+", "<major>:<minor>"),
    ("/version", r"\d+\.\d+\.\d+", "<version>"),
    ("/pid", r"\d+", "<pid>"),
    # A disk of a tree that nobody serves has no connection; one of a mounted tree has.
    ("/ploopfs/connection", "attached|detached", "<attached or detached>"),
    ("/ploopfs/data_plane", "own|pyfuse3", "<own or pyfuse3>"),
    # In a tree that stands alone there is nothing around ours; in a mounted one there are the disks of the machine.
    ("proc/diskstats", rf"( {DISK})( \d+){{17}}", r"\1 <17 columns>"),
    ("proc/ploopfs/diskstats", rf"(?s).* {DISK}( \d+){{17}}", "<the system's lines, and ours>"),
    ("proc/ploopfs/partitions", rf"(?s)major minor  #blocks  name\n\n.*{DISK}", "<the system's lines, and ours>"),
]

ONE_DELTA = (FakeDelta("/images/disk.hds"),)
THREE_DELTAS = (
    FakeDelta("/images/base.raw", writable=False, format="raw", io_engine="direct"),
    FakeDelta("/images/middle.hds", writable=False),
    FakeDelta("/images/top.hds"),
)
DEVICES: dict[str, tuple[str, Flavour, tuple[FakeDelta, ...]]] = {
    "vz7-1-delta": ("ploop0", VZ7, ONE_DELTA),
    "vz7-3-deltas": ("ploop0", VZ7, THREE_DELTAS),
    "vz9-1-delta": ("dm-0", VZ9, ONE_DELTA),
    "vz9-3-deltas": ("dm-0", VZ9, THREE_DELTAS),
    "block-1": ("xvda", BLOCK, (FakeDelta("/images/disk.raw", format="raw", io_engine="direct"),)),
}
"""The name of the device, its flavour and its deltas, by the name of the listing."""


def masked(path: str, text: str) -> str:
    for end, pattern, mask in VOLATILE:
        if path.endswith(end):
            text = re.sub(pattern, mask, text, count=1)
    return text


def value(path: str, attribute: Attribute) -> str:
    if attribute.show is None:
        return "(write-only)"
    try:
        text = opening(attribute, os.O_RDONLY).read(0, 1 << 16).decode()
    except PloopError as error:
        return f"({errno.errorcode[error.errno]})"
    return json.dumps(masked(path, text))


def listed(path: str, node: Node) -> str:
    match node:
        case Directory():
            return f"{node.mode:04o} {path}/"
        case Link():
            return f"{node.mode:04o} {path} -> {node.target}"
        case Disk():
            return f"{node.mode:04o} {path} (disk of {node.device.size_bytes} bytes)"
        case Stream():
            return f"{node.mode:04o} {path} (stream)"
        case Report():
            return f"{node.mode:04o} {path} (report)"
        case Attribute():
            return f"{node.mode:04o} {path} {value(path, node)}"


@pytest.mark.parametrize("name", DEVICES)
def test_the_tree_is_the_golden_listing(name: str) -> None:
    registry = FakeRegistry()
    device, flavour, deltas = DEVICES[name]
    registry.add(*deltas, name=device, flavour=flavour)
    listing = [listed(path, node) for path, node in walk(tree_of(registry))]
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("PLOOPFS_WRITE_GOLDEN"):
        file.write_text("\n".join([*listing, ""]))
    golden = file.read_text().splitlines()
    difference = "\n".join(difflib.unified_diff(golden, listing, str(file.name), "tree", lineterm=""))
    assert not difference, f"the tree is not its golden listing:\n{difference}"


@pytest.mark.parametrize("name", DEVICES)
def test_the_golden_listings_cover_every_group_of_the_flavour(name: str) -> None:
    listing = (GOLDEN / f"{name}.txt").read_text()
    device, flavour, _ = DEVICES[name]
    assert all(f"/{device}/{group}" in listing for group in ("queue/", "ploopfs/", *flavour.groups))
    others = set().union(*(other.groups for other in FLAVOURS.values())) - flavour.groups
    assert not any(f"/{device}/{group}" in listing for group in others)
