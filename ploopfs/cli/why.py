"""`ploopfs why`: one screen about one device: what it is in, since when, what failed first, what to type next.

Reads the tree like everybody else. Knows which steps lead out of which trouble, and takes none of them.
"""

import argparse
import errno
import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ploopfs.cli.events import as_text, recent
from ploopfs.cli.exits import Exit
from ploopfs.cli.text import Colour, duration, folded, painted, say, size
from ploopfs.cli.tree import DeviceStatus, Tree, live_mounts
from ploopfs.errors import BadTree

RECENT = 6
SERVED_BY = {
    "attached": "the disk is served through one of its own",
    "aborted": "whoever has the disk open, or opens it, gets ENOTCONN",
    "detached": "the disk is served through the one of the tree",
}
LABEL_COLUMNS = 14

_REASON = re.compile(
    r"errno=(\S+) operation=(\S+) offset=([0-9]{1,20}) length=([0-9]{1,20}) level=(-|[0-9]{1,20}) file=(.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Failure:
    """`standby_reason`, taken apart: what met the first error."""

    errno: str
    operation: str
    offset: int
    length: int
    level: int | None
    file: str

    @property
    def in_words(self) -> str:
        number = next((number for number, name in errno.errorcode.items() if name == self.errno), None)
        meaning = f" ({os.strerror(number)})" if number else ""
        where = f" of {self.length} bytes at {self.offset}" if self.length else ""
        return f"{self.errno}{meaning} on {self.operation.replace('_', ' ')}{where}"


@dataclass(frozen=True, slots=True)
class Step:
    """A command to type, and what it is good for."""

    command: str
    purpose: str


def failure(reason: str) -> Failure | None:
    """None for an empty reason. The file comes last, and may hold blanks. Raises BadTree."""
    if not reason:
        return None
    found = _REASON.fullmatch(reason)
    if found is None:
        raise BadTree("ploopfs/standby_reason", reason, "errno= operation= offset= length= level= file=")
    number, operation, offset, length, level, file = found.groups()
    return Failure(number, operation, int(offset), int(length), None if level == "-" else int(level), file)


def why(arguments: argparse.Namespace) -> int:
    tree = Tree.find(arguments.mount)
    one = tree.status(arguments.device)
    todo = list(steps(tree, one))
    events = recent(tree, one.device, RECENT)
    if arguments.json:
        facts = {"status": asdict(one), "next": [asdict(step) for step in todo]}
        print(json.dumps(facts | {"events": [record.values for record in events]}, indent=2))
        return Exit.OK
    say(_headline(one))
    say()
    for label, text in _facts(tree, one):
        say(f"  {label:<{LABEL_COLUMNS}}{folded(text, 2 + LABEL_COLUMNS)}")
    if events:
        say(f"\nlast events ({painted(f'ploopfs watch {one.device}', Colour.BOLD)} shows more)")
        for record in events:
            say(f"  {as_text(record)}")
    say("\nwhat to type next" if todo else "\nnothing to do")
    for step in todo:
        say(f"  {painted(step.command, Colour.BOLD)}\n      {folded(step.purpose, 6)}")
    return Exit.OK


def _headline(one: DeviceStatus) -> str:
    if one.since_s is not None:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.since_s))
        return painted(f"{one.device} is in standby since {since} ({duration(time.time() - one.since_s)})", Colour.RED)
    if one.connection == "aborted":
        return painted(f"{one.device} is cut off: its connection was aborted", Colour.RED)
    if one.suspended:
        return painted(f"{one.device} is suspended: {one.parked} requests wait for its resume", Colour.YELLOW)
    if one.aborted:
        return painted(f"{one.device} is aborted: writes are refused, reads pass", Colour.RED)
    if one.standby == "off":
        return painted(f"{one.device} is not in standby", Colour.GREEN)
    return f"{one.device} does not support standby"


def _facts(tree: Tree, one: DeviceStatus) -> Iterator[tuple[str, str]]:
    first = failure(one.reason)
    if first is not None:
        yield "first error", first.in_words
        yield "file", first.file + _place(first.level, len(one.deltas))
    if one.standby == "not supported":
        yield "standby", "not attached to a target (STANDBY_EN is out): a storage error is a plain error"
    elif not tree.is_checking:
        yield "standby", "never entered: no target subsystem is loaded (ploop_standby_check is out)"
    yield "requests", _requests(one)
    if one.connection in SERVED_BY:
        yield "connection", f"{one.connection}: {SERVED_BY[one.connection]}"
    if one.unflushed_bytes:
        yield "unflushed", f"{size(one.unflushed_bytes)} of writes, kept to be written again with the recovery"
    if one.agent:
        yield "recovery", f"{one.recovery} (the agent is {one.agent.replace('_', ' ')})"
    if one.last_error:
        yield "last error", one.last_error
    access = "read-only" if one.read_only else "read-write"
    yield "disk", f"{one.disk} ({size(one.size_bytes)}, {access}, generation {one.generation})"
    for level, delta in reversed(list(enumerate(tree.levels(one.device)))):
        yield f"level {level}", f"{delta.path} ({delta.format}{', read-only' if delta.read_only else ''})"


def _place(level: int | None, depth: int) -> str:
    if level is None:
        return " (no delta of the stack in force)"
    return f" (level {level}, the top)" if level == depth - 1 else f" (level {level})"


def _requests(one: DeviceStatus) -> str:
    if one.on_standby == "fail":
        return "refused with EIO at once (on_standby is fail)" if one.since_s else "would be refused in standby (fail)"
    bound = f"for at most {duration(one.hold_timeout_ms / 1000)}"
    if not one.since_s:
        return f"would be held in standby, {bound}"
    return f"{one.held} held, with {size(one.held_bytes)} of data, each {bound}"


def steps(tree: Tree, one: DeviceStatus) -> Iterator[Step]:
    """What leads out of the trouble that a device is in; nothing for a device in none."""
    mount = f" --mount {shlex.quote(tree.mountpoint)}" if len(live_mounts()) > 1 else ""
    control = shlex.quote(f"{tree.mountpoint}/sys/block/{one.device}")
    first = failure(one.reason)
    if one.connection == "aborted":
        yield Step(f"echo attach > {control}/ploopfs/connection", "let the disk be opened again")
    if first is not None:
        yield _look(first)
        yield from _agent_steps(one, control)
        yield Step(f"ploopfs reopen {one.device}{mount}", "the storage is back, and the image is where it was")
        level = "" if first.level in (None, len(one.deltas) - 1) else f" --level {first.level}"
        yield Step(f"ploopfs replace {one.device} PATH{level}{mount}", "or: a copy of the image lies at PATH")
        if one.held:
            yield Step(f"echo 1 > {control}/ploopfs/fail_held", "or: give up the requests that wait; they get EIO")
        yield Step(f"ploopfs wait {one.device} --for off{mount}", "see it leave standby")
    elif one.suspended:
        yield Step(f"cat {control}/ploopfs/table_inactive", "the table that comes into force, if one is loaded")
        yield Step(f"echo > {control}/ploopfs/resume", "let the requests go on")
        yield Step(f"echo 1 > {control}/ploopfs/clear", "before that, if the loaded table is the wrong one")
    elif one.aborted:
        yield Step(f"ploopfs reopen {one.device}{mount}", "the storage is sound again: open the top anew")
        if os.path.exists(f"{control}/pstate/aborted"):
            yield Step(f"echo 0 > {control}/pstate/aborted", "or: take writes again as it is, unless its lock was lost")
        yield Step(f"ploopfs replace {one.device} PATH{mount}", "or: put another image in the place of the top")


def _look(first: Failure) -> Step:
    file = shlex.quote(first.file)
    match first.errno:
        case "ENOTCONN":
            return Step(f"stat {file}", "still not connected? the mount below it is dead: mount the store anew")
        case "EBUSY":
            return Step(f"fuser --verbose {file}", "somebody has taken the image, here or on another host: get it back")
        case _:
            return Step(f"head -c 4096 {file} | wc -c", "the store failed: see whether it answers again")


def _agent_steps(one: DeviceStatus, control: str) -> Iterator[Step]:
    match one.agent:
        case "paused":
            yield Step(f"echo resume > {control}/ploopfs/agent", "the agent is paused: let it recover the device")
        case "probing" | "waiting" | "gave_up":
            yield Step(f"echo now > {control}/ploopfs/agent", "the agent will try by itself: have it try now")
