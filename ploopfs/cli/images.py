"""The verbs that work on image files without a daemon: create, snapshot, resize, info."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

import trio

from ploopfs.bounds import READ_TIMEOUT_S
from ploopfs.cli import interrupt
from ploopfs.cli.exits import Exit
from ploopfs.cli.text import printable, say
from ploopfs.engine.counters import Counters
from ploopfs.engine.create import Making, create_disk, create_image, snapshot_disk
from ploopfs.engine.grow import grown
from ploopfs.engine.inspect import ImageInfo, inspect_stack
from ploopfs.engine.opening import DESCRIPTOR_NAME, open_stack, resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.errors import BadValue, PloopError
from ploopfs.image.header import SECTOR_BYTES, VERSIONS

T = TypeVar("T")

_UNITS = {"": SECTOR_BYTES, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})([kKmMgGtT]?)")


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One line of `info`."""

    path: str
    format: str
    version: int
    cluster_bytes: int
    size_bytes: int
    file_bytes: int
    allocated_clusters: int | None
    in_use: bool
    check: int | None
    problems: tuple[str, ...]


def sectors(text: str) -> int:
    """NUMBER[KMGT], a bare number counting sectors, as the original tools take it."""
    match = _SIZE.fullmatch(text)
    size_bytes = int(match[1], 0 if match[1][:2].lower() == "0x" else 10) * _UNITS[match[2].upper()] if match else 0
    if size_bytes < SECTOR_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 64M, 10G or a number of sectors")
    return -(-size_bytes // SECTOR_BYTES)


def create(arguments: argparse.Namespace) -> int:
    """A directory with a disk; or one image file, if PATH has a suffix."""
    _print_result(arguments, _made(partial(_create, arguments)))
    return Exit.OK


def _made(make: Callable[[Making], T]) -> T:
    """What was not finished is gone afterwards, or is named."""
    making = Making(trio.from_thread.check_cancelled)

    def left() -> str:
        files = ", ".join(printable(path) for path in making.unfinished)
        if making.undecided:
            return f"{files}: left behind, to be removed unless {printable(making.undecided)} names them"
        return f"{files}: left behind unfinished, or may be soon: to be removed" if files else ""

    try:
        return interrupt.run_sync(partial(make, making), left)
    except BaseException:
        if text := left():
            print(f"ploopfs: {text}", file=sys.stderr)
        raise


def _create(arguments: argparse.Namespace, making: Making) -> dict[str, str]:
    path, version = arguments.path, VERSIONS[arguments.format_version]
    cluster_sectors = arguments.cluster_size
    if os.path.basename(path) == DESCRIPTOR_NAME:
        path = os.path.dirname(path) or "."
    elif os.path.splitext(path)[1] and not os.path.isdir(path) and not path.endswith("/"):
        create_image(
            path, size_sectors=arguments.size, cluster_sectors=cluster_sectors, version=version, making=making
        )
        return {"image": os.path.abspath(path)}
    made = create_disk(
        path, size_sectors=arguments.size, cluster_sectors=cluster_sectors, version=version, making=making
    )
    return {"descriptor": os.path.abspath(made)}


def snapshot(arguments: argparse.Namespace) -> int:
    guid, new_top = _made(partial(_snapshot, arguments.path))
    _print_result(arguments, {"snapshot": guid, "top": new_top})
    return Exit.OK


def _snapshot(path: str, making: Making) -> tuple[str, str]:
    if os.path.isdir(path):
        path = os.path.join(path, DESCRIPTOR_NAME)
    if not path.endswith(".xml"):
        raise BadValue(f"{path}: a snapshot is taken of a disk, expected its {DESCRIPTOR_NAME} or its directory")
    return snapshot_disk(os.path.realpath(path), making)


def resize(arguments: argparse.Namespace) -> int:
    size_bytes = interrupt.run(partial(_resize, arguments.path, arguments.size))
    _print_result(arguments, {"image": arguments.path, "size": str(size_bytes)})
    return Exit.OK


async def _resize(path: str, size_sectors: int) -> int:
    """The one image, whatever lies below it: a lower delta has no part in it."""
    files = OsFiles()
    spec = await resolve(files, [path])
    stack = await open_stack(files, spec, read_only=False, counters=Counters(), closes_unclosed=False)
    try:
        return (await grown(stack, size_sectors)).size_bytes
    finally:
        with trio.CancelScope(shield=True):  # the mark goes, also when it was interrupted
            await stack.aclose(clean=True)


def info(arguments: argparse.Namespace) -> int:
    """The stack that PATHs make up, top first."""
    image = arguments.paths[0] if len(arguments.paths) == 1 else arguments.paths
    layers = interrupt.run(partial(_inspect, image))
    shown = [_layer(one) for one in layers]
    if arguments.json:
        print(json.dumps([asdict(one) for one in shown], indent=2))
        return Exit.OK
    for level, one in reversed(list(enumerate(shown))):
        say(f"level {level}: {one.path}")
        state = "in use or not closed" if one.in_use else "closed"
        if one.version:
            say(f"  ploop version {one.version}, {state}, original check exits {one.check}")
            clusters = f"cluster {one.cluster_bytes}, {one.allocated_clusters} clusters allocated"
            say(f"  disk {one.size_bytes} bytes, {clusters}")
        else:
            say(f"  raw, {one.file_bytes} bytes")
        for problem in one.problems:
            say(f"  {problem}")
    return Exit.OK


def is_closed(path: str) -> bool:
    """Whether an image bears no in-use mark; one that cannot be read, or not soon, may bear it."""
    return trio.run(_is_closed, path)


async def _is_closed(path: str) -> bool:
    with trio.move_on_after(READ_TIMEOUT_S):
        try:
            [image] = await _inspect(path)
        except PloopError:
            return False
        return image.header is not None and not image.header.is_marked_in_use
    return False


async def _inspect(image: str | list[str]) -> list[ImageInfo]:
    files = OsFiles()
    return await inspect_stack(files, await resolve(files, image))


def _layer(one: ImageInfo) -> LayerInfo:
    header = one.header
    return LayerInfo(
        path=one.path,
        format="ploop1" if header else "raw",
        version=header.version.number if header else 0,
        cluster_bytes=header.cluster_bytes if header else 0,
        size_bytes=header.size_bytes if header else one.file_size_bytes,
        file_bytes=one.file_size_bytes,
        allocated_clusters=one.allocated_clusters,
        in_use=bool(header and header.is_marked_in_use),
        check=one.exit_code,
        problems=one.problems,
    )


def _print_result(arguments: argparse.Namespace, facts: dict[str, str]) -> None:
    if arguments.json:
        print(json.dumps(facts))
    else:
        say("\n".join(facts.values()))
