"""Disks with known content, made by the project's own engine, and what QEMU and our own check say of them later."""

import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import trio

from ploopfs.engine.counters import Counters
from ploopfs.engine.create import create_disk, snapshot_disk
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.inspect import ImageInfo, inspect_stack
from ploopfs.engine.opening import StackSpec, open_stack, resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.image.header import SECTOR_BYTES, V2

MIB = 1 << 20
BLOCK_BYTES = 4096
CLUSTER_BYTES = 64 << 10
FILLED_BLOCKS = 64
"""How many blocks of each delta hold something."""


@dataclass(eq=False, slots=True)
class Disk:
    """`deltas` is base first; `content` is the whole disk; `lower_sums` what no one may change."""

    directory: Path
    deltas: list[Path]
    content: bytearray
    lower_sums: list[str]

    @property
    def top(self) -> Path:
        return self.deltas[-1]

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def cluster(self, start: int) -> bytearray:
        return self.content[start : start + CLUSTER_BYTES]


def make_disk(directory: Path, *, depth: int = 1, size_bytes: int = 64 * MIB, seed: int = 1) -> Disk:
    """Every delta overwrites some blocks of those below it, and adds some."""
    content, random = bytearray(size_bytes), Random(seed)
    descriptor = create_disk(
        str(directory),
        size_sectors=size_bytes // SECTOR_BYTES,
        cluster_sectors=CLUSTER_BYTES // SECTOR_BYTES,
        version=V2,
    )
    _fill(descriptor, content, random)
    for _ in range(depth - 1):
        snapshot_disk(descriptor)
        _fill(descriptor, content, random)
    deltas = [Path(image.path) for image in trio.run(resolve, OsFiles(), descriptor).images]
    return Disk(directory, deltas, content, sums(deltas[:-1]))


def _fill(descriptor: str, content: bytearray, random: Random) -> None:
    trio.run(_write_blocks, descriptor, content, random)


async def _write_blocks(descriptor: str, content: bytearray, random: Random) -> None:
    files = OsFiles()
    stack = await open_stack(files, await resolve(files, descriptor), read_only=False, counters=Counters())
    for number in random.sample(range(len(content) // BLOCK_BYTES), FILLED_BLOCKS):
        data = random.randbytes(BLOCK_BYTES)
        await stack.write(number * BLOCK_BYTES, data)
        content[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES] = data
    await stack.aclose(clean=True)


def sums(paths: Sequence[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def inspected(image: Path) -> ImageInfo:
    spec = StackSpec((ImageSpec(str(image)),))
    return trio.run(inspect_stack, OsFiles(), spec)[0]


def is_marked(image: Path) -> bool:
    header = inspected(image).header
    return header is not None and header.is_marked_in_use


def assert_closed(image: Path) -> None:
    """The mark is cleared, and neither the original's check nor QEMU has anything to say."""
    found = inspected(image)
    assert (found.exit_code, found.problems, is_marked(image)) == (0, (), False)
    command = ["qemu-img", "check", "-f", "parallels", str(image)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def by_qemu(deltas: Sequence[Path], place: Path) -> bytes:
    """The whole disk as QEMU reads the stack."""
    options = ""
    prefix = ""
    for path in reversed(deltas):
        options += f"{prefix}driver=parallels,{prefix}file.filename={path},"
        prefix = f"{prefix}backing."
    subprocess.run(["qemu-img", "convert", "-O", "raw", "--image-opts", options.rstrip(","), place], check=True)
    return place.read_bytes()
