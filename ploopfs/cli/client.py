"""The verbs that talk to a running daemon through its tree: list, status, replace, reopen, wait, metrics, umount."""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict

from ploopfs.cli.events import as_text, wait_event
from ploopfs.cli.exits import Exit
from ploopfs.cli.images import is_closed
from ploopfs.cli.text import Colour, duration, print_table, printable, say, size
from ploopfs.cli.tree import DeviceStatus, Tree, live_mounts
from ploopfs.cli.why import failure
from ploopfs.errors import BadTree
from ploopfs.fuse.mountpoint import State, inspect_mountpoint

HELD = "held"
"""What `wait --for` takes beside the states of standby."""


def list_devices(arguments: argparse.Namespace) -> int:
    """Every device of every live tree."""
    trees = [Tree(place) for place in live_mounts()]
    found = [one for tree in trees for one in _all_of(tree)]
    if arguments.json:
        print(json.dumps([asdict(status) for status in found], indent=2))
    else:
        rows = [(status.device, size(status.size_bytes), status.standby, status.disk) for status in found]
        print_table(("DEVICE", "SIZE", "STANDBY", "DISK"), rows, {"STANDBY": _standby_colour})
    return Exit.OK


def status(arguments: argparse.Namespace) -> int:
    """What each device is in, since when, and why."""
    tree = Tree.find(arguments.mount)
    devices = [arguments.device] if arguments.device else tree.devices()
    found = [tree.status(device) for device in devices]
    if arguments.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        heads = ("DEVICE", "STANDBY", "SINCE", "HELD", "SIZE", "ACCESS", "WHY")
        print_table(heads, [_row(one) for one in found], {"STANDBY": _standby_colour, "WHY": lambda _: Colour.RED})
    return Exit.OK


def replace(arguments: argparse.Namespace) -> int:
    level = "" if arguments.level is None else f"level={arguments.level} "
    value = f"{level}verify={arguments.verify} {os.path.abspath(arguments.path)}"
    Tree.find(arguments.mount).store(arguments.device, "ploopfs/replace_delta", value)
    return Exit.OK


def reopen(arguments: argparse.Namespace) -> int:
    Tree.find(arguments.mount).store(arguments.device, "ploopfs/reopen", "1")
    return Exit.OK


def wait(arguments: argparse.Namespace) -> int:
    tree, device = Tree.find(arguments.mount), arguments.device
    tree.check_device(device)
    wanted = arguments.state or arguments.event
    if sys.stderr.isatty():
        print(f"waiting until {device} is {wanted} ...", file=sys.stderr)
    if arguments.event:
        record = wait_event(tree, device, [arguments.event], arguments.timeout)
        if record is not None:
            say(record.line if arguments.json else as_text(record))
            return Exit.OK
        print(f"ploopfs: {device}: no {arguments.event} within {arguments.timeout:g} s", file=sys.stderr)
        return Exit.TIMEOUT
    name, reached = ("ploopfs/held", "0".__ne__) if wanted == HELD else ("queue/standby", wanted.__eq__)
    if tree.wait(device, name, reached, arguments.timeout):
        return Exit.OK
    now = tree.attribute(device, name)
    print(f"ploopfs: {device} is still {now!r} after {arguments.timeout:g} s", file=sys.stderr)
    return Exit.TIMEOUT


def metrics(arguments: argparse.Namespace) -> int:
    text = Tree.find(arguments.mount).metrics()
    say(json.dumps(_families(text), indent=2) if arguments.json else text)
    return Exit.OK


def _families(text: str) -> list[dict[str, object]]:
    # It comes with an HTTP server: the other verbs do not wait for that to be loaded.
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    try:
        families = list(text_string_to_metric_families(f"{text}\n"))
    except Exception as error:  # it raises whatever its text runs into
        raise BadTree("sys/fs/ploopfs/metrics", text, f"the text format of Prometheus ({error})") from error
    return [
        {
            "name": family.name,
            "type": family.type,
            "help": family.documentation,
            "samples": [
                {"name": sample.name, "labels": sample.labels, "value": sample.value} for sample in family.samples
            ],
        }
        for family in families
    ]


def umount(arguments: argparse.Namespace) -> int:
    tree = Tree.find(arguments.mountpoint)
    written = [top for device in tree.devices() if (top := tree.written_image(device)) is not None]
    if not tree.unmount(arguments.timeout):
        doing = "closes images, or serves a command of `ploopfs exec`"
        print(f"ploopfs: {arguments.mountpoint}: unmounted, but its daemon still {doing}", file=sys.stderr)
        return Exit.TIMEOUT
    # The daemon's own exit code is for its parent only; the mark says the same to everybody.
    not_closed = [image for image in written if not is_closed(image)]
    for image in not_closed:
        print(f"ploopfs: {printable(image)}: could not be flushed and stays marked in use", file=sys.stderr)
    return Exit.NOT_CLOSED if not_closed else Exit.OK


def _all_of(tree: Tree) -> list[DeviceStatus]:
    """Nothing of a tree that ends while it is being listed."""
    try:
        return [tree.status(device) for device in tree.devices()]
    except OSError:
        if inspect_mountpoint(tree.mountpoint) is State.SERVING:
            raise
        return []


def _row(one: DeviceStatus) -> tuple[str, ...]:
    since = "-" if one.since_s is None else duration(time.time() - one.since_s)
    access = "read-only" if one.read_only else "read-write"
    return one.device, one.standby, since, str(one.held), size(one.size_bytes), access, _why(one)


def _why(one: DeviceStatus) -> str:
    first = failure(one.reason)
    if first is not None:
        return f"{first.errno} on {first.operation} of {first.file}"
    if one.connection == "aborted":
        return "its connection was aborted"
    if one.aborted:
        return "aborted: writes are refused"
    return f"suspended: {one.parked} requests wait" if one.suspended else ""


def _standby_colour(cell: str) -> Colour | None:
    return {"on": Colour.RED, "off": Colour.GREEN}.get(cell.rstrip(), Colour.DIM)
