"""The verbs that talk to a running daemon through its tree: list, status, replace, reopen, wait, umount."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from ploopfs.cli.exits import Exit
from ploopfs.cli.images import is_closed
from ploopfs.cli.tree import DeviceStatus, Tree
from ploopfs.fuse.mountpoint import State, inspect_mountpoint, ploopfs_mounts


def list_devices(arguments: argparse.Namespace) -> int:
    """Every device of every live tree."""
    trees = [Tree(place) for place in ploopfs_mounts() if inspect_mountpoint(place) is State.SERVING]
    found = [one for tree in trees for one in _all_of(tree)]
    if arguments.json:
        print(json.dumps([asdict(status) for status in found], indent=2))
    else:
        rows = [(status.device, _size(status.size_bytes), status.standby, status.disk) for status in found]
        _print_table(("DEVICE", "SIZE", "STANDBY", "DISK"), rows)
    return Exit.OK


def status(arguments: argparse.Namespace) -> int:
    """What each device is in, since when, and why."""
    tree = Tree.find(arguments.mount)
    devices = [arguments.device] if arguments.device else tree.devices()
    found = [tree.status(device) for device in devices]
    if arguments.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        print("\n\n".join("\n".join(_lines(one)) for one in found))
    return Exit.OK


def replace(arguments: argparse.Namespace) -> int:
    Tree.find(arguments.mount).store(arguments.device, "ploopfs/replace_delta", os.path.abspath(arguments.path))
    return Exit.OK


def reopen(arguments: argparse.Namespace) -> int:
    Tree.find(arguments.mount).store(arguments.device, "ploopfs/reopen", "1")
    return Exit.OK


def wait(arguments: argparse.Namespace) -> int:
    tree = Tree.find(arguments.mount)
    if sys.stderr.isatty():
        print(f"waiting until {arguments.device} is {arguments.state} ...", file=sys.stderr)
    if tree.wait(arguments.device, arguments.state, arguments.timeout):
        return Exit.OK
    now = tree.attribute(arguments.device, "queue/standby")
    print(f"ploopfs: {arguments.device} is still {now!r} after {arguments.timeout:g} s", file=sys.stderr)
    return Exit.TIMEOUT


def umount(arguments: argparse.Namespace) -> int:
    tree = Tree.find(arguments.mountpoint)
    written = [top for device in tree.devices() if (top := tree.written_image(device)) is not None]
    if not tree.unmount(arguments.timeout):
        print(f"ploopfs: {arguments.mountpoint}: unmounted, but its daemon is still closing images", file=sys.stderr)
        return Exit.TIMEOUT
    # The daemon's own exit code is for its parent only; the mark says the same to everybody.
    not_closed = [image for image in written if not is_closed(image)]
    for image in not_closed:
        print(f"ploopfs: {image}: could not be flushed and stays marked in use", file=sys.stderr)
    return Exit.NOT_CLOSED if not_closed else Exit.OK


def _all_of(tree: Tree) -> list[DeviceStatus]:
    """Nothing of a tree that ends while it is being listed."""
    try:
        return [tree.status(device) for device in tree.devices()]
    except OSError:
        if inspect_mountpoint(tree.mountpoint) is State.SERVING:
            raise
        return []


def _lines(one: DeviceStatus) -> list[str]:
    lines = [f"{one.device}: {one.standby}"]
    if one.since_s is not None:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.since_s))
        lines.append(f"  since       {since} ({time.time() - one.since_s:.0f} s)")
    if one.reason:
        lines.append(f"  why         {one.reason}")
    access = "read-only" if one.read_only else "read-write"
    lines.append(f"  disk        {one.disk} ({_size(one.size_bytes)}, {access})")
    lines.append(f"  generation  {one.generation}")
    if one.aborted:
        lines.append("  aborted     writes are refused until the top is replaced or 0 is written to pstate/aborted")
    if one.last_error:
        lines.append(f"  last error  {one.last_error}")
    lines += [f"  delta {level:<5} {path}" for level, path in reversed(list(enumerate(one.deltas)))]
    return lines


def _size(size_bytes: int) -> str:
    size, units = float(size_bytes), iter("BKMGTPE")
    unit = next(units)
    while size >= 1024 and unit != "E":
        size, unit = size / 1024, next(units)
    return f"{size:g}{unit}" if size == int(size) else f"{size:.1f}{unit}"


def _print_table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    for row in (heads, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
