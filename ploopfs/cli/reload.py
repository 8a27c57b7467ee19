"""`ploopfs reload`: SIGHUP to the daemon of a tree, and what its event says.

Knows nothing of what a reload does.
"""

import argparse
import os
import signal
import sys
from collections.abc import Mapping

from ploopfs.cli.configured import BEGIN, FAILED, RELOADED
from ploopfs.cli.events import wait_event
from ploopfs.cli.exits import Exit
from ploopfs.cli.tree import Tree

DONE = ("added", "removed", "changed")
NOT_DONE = {"kept": "kept", "remount": "needs a remount", "failed": "failed"}


def reload(arguments: argparse.Namespace) -> int:
    tree = Tree.find(arguments.mount)
    if sys.stderr.isatty():
        print("waiting for the daemon ...", file=sys.stderr)
    daemon = os.pidfd_open(tree.pid)
    try:
        record = wait_event(
            tree,
            None,
            (RELOADED, FAILED),
            arguments.timeout,
            after=BEGIN,  # what another one that is under way comes to says nothing of the file as it is now
            listening=lambda: signal.pidfd_send_signal(daemon, signal.SIGHUP),
        )
    finally:
        os.close(daemon)
    if record is None:
        print(f"ploopfs: {tree.mountpoint}: not reloaded within {arguments.timeout:g} s", file=sys.stderr)
        return Exit.TIMEOUT
    if arguments.json:
        print(record.line)
    else:
        _print(record.values)
    if record.event == FAILED:
        return Exit.CONFIG
    return Exit.FAILED if any(record.values[name] for name in NOT_DONE) else Exit.OK


def _print(facts: Mapping[str, str]) -> None:
    if "text" in facts:
        print(f"ploopfs: nothing was changed:\n{facts['text']}", file=sys.stderr)
        return
    for name in DONE:
        if facts[name]:
            print(f"{name}: {facts[name]}")
    for name, said in NOT_DONE.items():
        if facts[name]:
            print(f"ploopfs: {said}: {facts[name]}", file=sys.stderr)
    if not any(facts[name] for name in (*DONE, *NOT_DONE)):
        print("nothing has changed")
