"""`ploopfs inject`: faults at the storage of a device, by writing and reading its `error_injection`.

Knows nothing of what a rule does: the tree refuses what it does not take, and says why.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator

from ploopfs.cli.exits import Exit
from ploopfs.cli.text import say
from ploopfs.cli.tree import Tree
from ploopfs.engine.inject.grammar import OPS, STATUSES, check
from ploopfs.errors import BadTree, BadValue

Rule = dict[str, int | float | str | bool]

_VALUES = {
    # option: (word, metavar, help)
    "--errno": ("errno", "ERRNO", "answer with this errno, such as EBUSY, ENOTCONN or EIO"),
    "--status": ("status", "STATUS", f"answer with the errno of a block status: {', '.join(STATUSES)}"),
    "--level": ("level", "N", "only the delta of this level; default: all"),
    "--start": ("start", "N", "first sector of the disk; default with --sectors: 0"),
    "--sectors": ("nr_sectors", "N", "number of sectors; default with --start: the rest of the disk"),
    "--count": ("count", "N", "so many times; default: until the rule is removed"),
    "--skip": ("skip", "N", "let the first N pass"),
    "--chance": ("chance", "N", "one in N; default 1"),
    "--seed": ("seed", "N", "the same ones of --chance for the same seed"),
    "--delay-ms": ("delay_ms", "N", "answer so much later"),
}
_FLAGS = {
    "--hang": ("hang", "do not answer until the rule is removed"),
    "--late": ("late", "with --hang: a change that was given up meanwhile is still done then, as by a real store"),
    "--after": ("after", "do it, and then answer with the errno: a lost reply"),
}

_RULE = re.compile(r"([0-9]{1,20}):([0-9]{1,20}) (.*)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,20}")
_TIME = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_ALWAYS = frozenset({"op", "where", "chance", "hits", "id"})
_OF_A_HIT = frozenset({"last_length", "last_offset"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", metavar="DEV")
    parser.add_argument("--op", choices=OPS, default=None, help="what is taken; default: ALL")
    for option, (word, metavar, text) in _VALUES.items():
        parser.add_argument(option, dest=word, metavar=metavar, help=text)
    for option, (word, text) in _FLAGS.items():
        parser.add_argument(option, dest=word, action="store_true", help=text)
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--list", action="store_true", help="show the rules, newest first: the first that fits decides")
    others.add_argument("--remove", metavar="ID", help="remove one rule; what hangs by it goes on")
    others.add_argument("--remove-all", action="store_true", help="remove every rule")
    parser.set_defaults(wrong=parser.error)
    parser.add_argument("-m", "--mount", metavar="MOUNTPOINT", help="needed if several trees are mounted")


def run(arguments: argparse.Namespace) -> int:
    """Add a rule and show it, unless another order is given."""
    words = list(_words(arguments))
    if words and (arguments.list or arguments.remove or arguments.remove_all):
        arguments.wrong(f"{words[0]} is of a new rule, expected nothing beside --list, --remove or --remove-all")
    tree, device = Tree.find(arguments.mount), arguments.device
    if arguments.remove_all:
        write_command(tree, device, "removeall")
    elif arguments.remove is not None:
        write_command(tree, device, f"remove,id={arguments.remove}")
    elif arguments.list:
        _print(arguments, rules_of(tree, device))
    else:
        command = ",".join(["add", *words])
        try:
            check(command)
        except BadValue as error:
            arguments.wrong(str(error))
        write_command(tree, device, command)
        _print(arguments, rules_of(tree, device)[:1])
    return Exit.OK


def write_command(tree: Tree, device: str, command: str) -> None:
    """Raises OSError with the errno of the write, and the reason in words."""
    fd = os.open(tree.debug_path(device, "error_injection"), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, os.fsencode(f"{command}\n"))
    except OSError as error:
        reason = tree.debug(device, "last_error")
        raise OSError(error.errno, f"{device}: {reason}" if reason else error.strerror) from error
    finally:
        os.close(fd)


def rules_of(tree: Tree, device: str) -> list[Rule]:
    """Newest first; `first` and `last` are sectors. Raises BadTree."""
    name = "error_injection"
    lines = filter(None, tree.debug(device, name).split("\n"))
    return [_parsed(line, tree.debug_path(device, name)) for line in lines]


def _words(arguments: argparse.Namespace) -> Iterator[str]:
    for word in ("op", *(word for word, _, _ in _VALUES.values())):
        if getattr(arguments, word) is not None:
            yield f"{word}={getattr(arguments, word)}"
    for word, _ in _FLAGS.values():
        if getattr(arguments, word):
            yield word


def _parsed(line: str, path: str) -> Rule:
    found = _RULE.fullmatch(line)
    rule: Rule = {"first": int(found[1]), "last": int(found[2])} if found else {}
    for word in found[3].split(",") if found else ():
        key, equals, value = word.partition("=")
        rule[key] = (int(value) if _NUMBER.fullmatch(value) else value) if equals else True
    if "last_time" in rule and _TIME.fullmatch(str(rule["last_time"])):
        rule["last_time"] = float(rule["last_time"])
    if not rule.keys() >= (_ALWAYS | (_OF_A_HIT if "last_op" in rule else frozenset())):
        raise BadTree(path, line, f"FIRST:LAST and {', '.join(sorted(_ALWAYS))}")
    return rule


def _print(arguments: argparse.Namespace, rules: list[Rule]) -> None:
    if arguments.json:
        print(json.dumps(rules, indent=2))
        return
    for rule in rules:
        say(rule_line(rule))


def rule_line(rule: Rule) -> str:
    """`3: READ EBUSY level=2 count=3, 2 hits`"""
    what = [str(rule["op"])]
    if "errno" in rule:
        what.append(str(rule["errno"]))
    if rule["where"] == "sectors":
        what.append(f"sectors={rule['first']}-{rule['last']}")
    what += [f"{key}={rule[key]}" for key in ("level", "skip", "count", "delay_ms", "seed") if key in rule]
    if rule["chance"] != 1:
        what.append(f"chance=1/{rule['chance']}")
    what += [key for key in ("hang", "late", "after") if key in rule]
    hits = f"{rule['hits']} hits"
    if "last_op" in rule:
        hits += f", the last a {rule['last_op']} of {rule['last_length']} bytes at {rule['last_offset']}"
    return f"{rule['id']}: {' '.join(what)}, {hits}"
