"""`ploopfs reload`: asks the daemon of a tree through a file of it, and tells what its event says.

Knows nothing of what a reload does.
"""

import argparse
import sys
from collections.abc import Mapping

from ploopfs.cli.configured import BEGIN, FAILED, RELOADED
from ploopfs.cli.events import EVENTS, Record, wait_event
from ploopfs.cli.exits import Exit
from ploopfs.cli.text import printable, say
from ploopfs.cli.tree import Tree
from ploopfs.errors import BadTree

DONE = ("added", "removed", "changed")
NOT_DONE = {"kept": "kept", "remount": "needs a remount", "failed": "failed"}


def reload(arguments: argparse.Namespace) -> int:
    tree = Tree.find(arguments.mount)
    if sys.stderr.isatty():
        print("waiting for the daemon ...", file=sys.stderr)
    record = wait_event(
        tree,
        None,
        (RELOADED, FAILED),
        arguments.timeout,
        after=BEGIN,  # what another one that is under way comes to says nothing of the file as it is now
        # Not by a signal: a tree can say any number, and a number may be another process's by now.
        listening=tree.ask_reload,
    )
    if record is None:
        print(f"ploopfs: {tree.mountpoint}: not reloaded within {arguments.timeout:g} s", file=sys.stderr)
        return Exit.TIMEOUT
    facts = _facts(record)
    if arguments.json:
        say(record.line)
    elif record.event == FAILED:
        print("ploopfs: nothing was changed:", *map(printable, facts["text"].split("\n")), sep="\n", file=sys.stderr)
    else:
        _tell(facts)
    if record.event == FAILED:
        return Exit.CONFIG
    return Exit.FAILED if any(facts[name] for name in NOT_DONE) else Exit.OK


def _facts(record: Record) -> dict[str, str]:
    """Raises BadTree."""
    names = ("text",) if record.event == FAILED else (*DONE, *NOT_DONE)
    facts = {name: record.values.get(name) for name in names}
    told = {name: fact for name, fact in facts.items() if isinstance(fact, str)}
    if len(told) < len(names):
        raise BadTree(EVENTS, record.line, f"an event with the texts {', '.join(names)}")
    return told


def _tell(facts: Mapping[str, str]) -> None:
    for name in DONE:
        if facts[name]:
            say(f"{name}: {facts[name]}")
    for name, said in NOT_DONE.items():
        if facts[name]:
            print(f"ploopfs: {said}: {printable(facts[name])}", file=sys.stderr)
    if not any(facts.values()):
        say("nothing has changed")
