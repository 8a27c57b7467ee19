"""The text of an injector: commands in the grammar of the kernel's block error injection, and the list of rules.

A command is words between commas: `add,op=READ,start=0,nr_sectors=8,status=IOERR,chance=10`, `removeall`, and what the
kernel lacks: every other key of ADD below, and `remove,id=N`. Words are the kernel's; two are read more strictly than
there: a key is given once, and an operation that no storage of ours has is refused. Invariant: a command that is wrong
raises BadValue with the key, the value and what was expected, and changes nothing.
"""

import errno
import re
from collections.abc import Mapping
from typing import TypeVar

import trio

from ploopfs.bounds import MAX_DELAY_MS, MAX_RULE_CHARACTERS
from ploopfs.engine.inject.filter import OPERATIONS
from ploopfs.engine.inject.injector import Injector
from ploopfs.engine.inject.rule import Rule, Sectors
from ploopfs.errors import BadValue

T = TypeVar("T")

OPS: Mapping[str, frozenset[str]] = {
    "READ": frozenset({"read"}),
    "WRITE": frozenset({"write"}),
    "DISCARD": frozenset({"punch hole"}),
    "FLUSH": frozenset({"fsync"}),
    "TRUNCATE": frozenset({"truncate", "fallocate"}),
    "OPEN": frozenset({"open"}),
    "STAT": frozenset({"stat"}),
    "LOCK": frozenset({"lock"}),
    "UNLOCK": frozenset({"unlock"}),
    "ALL": OPERATIONS,
}
"""The kernel's names, and ours for what a block device does not know, with what each takes of a file."""

STATUSES: Mapping[str, int] = {
    "NOTSUPP": errno.EOPNOTSUPP,
    "TIMEOUT": errno.ETIMEDOUT,
    "NOSPC": errno.ENOSPC,
    "TRANSPORT": errno.ENOLINK,
    "TARGET": errno.EREMOTEIO,
    "RESV_CONFLICT": errno.EBADE,
    "MEDIUM": errno.ENODATA,
    "PROTECTION": errno.EILSEQ,
    "RESOURCE": errno.ENOMEM,
    "DEV_RESOURCE": errno.EBUSY,
    "AGAIN": errno.EAGAIN,
    "OFFLINE": errno.ENODEV,
    "DM_REQUEUE": errno.EREMCHG,
    "ZONE_OPEN_RESOURCE": errno.ETOOMANYREFS,
    "ZONE_ACTIVE_RESOURCE": errno.EOVERFLOW,
    "DURATION_LIMIT": errno.ETIME,
    "INVAL": errno.EINVAL,
    "IOERR": errno.EIO,
}
"""blk_status_t without its prefix, and the errno of each (block/blk-core.c, blk_errors)."""

ERRNOS: Mapping[str, int] = {name: getattr(errno, name) for name in dir(errno) if name.startswith("E")}

ADD = ("op", "status", "errno", "start", "nr_sectors", "chance", "seed", "level", "skip", "count", "delay_ms")
FLAGS = ("hang", "after", "late")
"""What a rule may say, with a value and without one."""

U32_MAX, U64_MAX = 2**32 - 1, 2**64 - 1

_KEYS_OF: Mapping[str, tuple[str, ...]] = {"add": (*ADD, *FLAGS), "remove": ("id",), "removeall": ()}
_KNOWN: Mapping[str, bool] = {key: key not in FLAGS for keys in _KEYS_OF.values() for key in keys}
"""Every key, and whether it has a value."""
_SHOWN = 60
_MOST_LISTED = 32
"""Of the names that a key takes, in a message."""
_NUMBER = re.compile(r"0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*)")

Words = dict[str, str]


def execute(injector: Injector, text: str) -> None:
    """One command, as one write(2) gives it. Raises BadValue, NoSuchEntry, LimitReached; nothing has changed then."""
    action, words = _split(text)
    match action:
        case "add":
            injector.add(_rule(words))
        case "remove":
            injector.remove(_number("id", words["id"], 1, U64_MAX))
        case _:
            injector.remove_all()


def check(text: str) -> None:
    """Raise BadValue for a command that no injector would take."""
    action, words = _split(text)
    if action == "add":
        _rule(words)


def listing(injector: Injector) -> str:
    """A line for each rule, newest first: the kernel's columns, then `key=value` for everything that is set."""
    return "".join(f"{_line(rule)}\n" for rule in injector.rules)


# --- reading ------------------------------------------------------------------------------------------------------


def _split(text: str) -> tuple[str, Words]:
    """The action and its words, each of which is known and given once."""
    if len(text) > MAX_RULE_CHARACTERS:
        raise BadValue(f"the command has {len(text)} characters, expected at most {MAX_RULE_CHARACTERS}")
    actions: list[str] = []
    words: Words = {}
    for word in filter(None, re.split("[,\n]", text)):  # a newline separates as a comma does, as in the kernel
        key, equals, value = word.partition("=")
        if word in _KEYS_OF:
            actions.append(word)
        elif key not in _KNOWN or bool(equals) is not _KNOWN[key]:
            known = ", ".join(f"{key}=" if valued else key for key, valued in _KNOWN.items())
            raise BadValue(f"{_shown(word)} is no word of a command, expected {', '.join(_KEYS_OF)} with {known}")
        elif key in words:
            raise BadValue(f"{key} is given twice: {_shown(words[key])} and {_shown(value)}")
        else:
            words[key] = value
    if len(actions) != 1:
        given = " and ".join(actions) or "none"
        raise BadValue(f"the action is {given}, expected one of {', '.join(_KEYS_OF)}")
    [action] = actions
    for key in words:
        if key not in _KEYS_OF[action]:
            raise BadValue(f"{key} is given, expected none with {action}")
    if action == "remove" and "id" not in words:
        raise BadValue("id is missing, expected that of a rule")
    return action, words


def _rule(words: Words) -> Rule:
    number = _errno(words)
    delay_ms = _number("delay_ms", words["delay_ms"], 1, MAX_DELAY_MS) if "delay_ms" in words else 0
    if number is None and not delay_ms and "hang" not in words:
        raise BadValue("what the rule does is missing, expected one of status=, errno=, delay_ms=, hang")
    if "after" in words and number is None:
        raise BadValue("after is given, expected only with status= or errno=")
    if "late" in words and "hang" not in words:
        raise BadValue("late is given, expected only with hang")

    def optional(key: str, low: int, high: int) -> int | None:
        return _number(key, words[key], low, high) if key in words else None

    return Rule(
        _one_of("op", words.get("op", "ALL"), OPS),
        errno=number,
        delay_s=delay_ms / 1000,
        released=trio.Event() if "hang" in words else None,
        after="after" in words,
        late="late" in words,
        level=optional("level", 0, U32_MAX),
        sectors=_sectors(words),
        chance=optional("chance", 1, U32_MAX) or 1,
        seed=optional("seed", 0, U64_MAX),
        skip=optional("skip", 0, U32_MAX) or 0,
        count=optional("count", 1, U32_MAX),
    )


def _errno(words: Words) -> int | None:
    if "errno" in words and "status" in words:
        raise BadValue(f"errno is {_shown(words['errno'])} beside a status, expected one of the two")
    if "status" in words:
        return _one_of("status", words["status"], STATUSES)
    return _one_of("errno", words["errno"], ERRNOS) if "errno" in words else None


def _sectors(words: Words) -> Sectors | None:
    """None if neither key is given: then the rule also takes what belongs to no sector."""
    if "start" not in words and "nr_sectors" not in words:
        return None
    first = _number("start", words.get("start", "0"), 0, U64_MAX)
    # The kernel takes 0 as "the rest of the device".
    count = _number("nr_sectors", words.get("nr_sectors", "0"), 0, U64_MAX)
    if first + count > U64_MAX:
        raise BadValue(f"nr_sectors is {count}, expected at most {U64_MAX - first} from start {first}")
    return Sectors(first, first + count - 1 if count else U64_MAX)


def _number(key: str, text: str, low: int, high: int) -> int:
    """As the kernel reads one: hexadecimal after 0x, octal after 0, else decimal."""
    match = _NUMBER.fullmatch(text)
    # Length first: Python refuses to convert thousands of digits with an error of its own.
    if match is not None and len(text) <= _SHOWN:
        value = next(int(digits, base) for digits, base in zip(match.groups(), (16, 8, 10), strict=True) if digits)
        if low <= value <= high:
            return value
    raise BadValue(f"{key} is {_shown(text)}, expected a number from {low} to {high}")


def _one_of(key: str, text: str, known: Mapping[str, T]) -> T:
    if text not in known:
        expected = f"one of {', '.join(known)}" if len(known) <= _MOST_LISTED else f"a name such as {next(iter(known))}"
        raise BadValue(f"{key} is {_shown(text)}, expected {expected}")
    return known[text]


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


# --- showing ------------------------------------------------------------------------------------------------------


def _line(rule: Rule) -> str:
    """`where` tells a rule that also takes what belongs to no sector from one that has all sectors."""
    sectors = rule.sectors or Sectors(0, U64_MAX)
    words = {
        "op": next(name for name, operations in OPS.items() if operations == rule.operations),
        "status": _status(rule.errno),
        "chance": rule.chance,
        "id": rule.number,
        "where": "everything" if rule.sectors is None else "sectors",
        "errno": None if rule.errno is None else errno.errorcode[rule.errno],
        "level": rule.level,
        "skip": rule.skip or None,
        "count": rule.count,
        "delay_ms": round(rule.delay_s * 1000) or None,
        "hang": rule.released is not None,
        "after": rule.after,
        "late": rule.late,
        "seed": rule.seed,
        "hits": rule.hits,
    }
    if rule.last is not None:
        last = rule.last
        words |= {
            "last_time": f"{last.time_s:.6f}",
            "last_op": last.operation.replace(" ", "_"),
            "last_offset": last.offset,
            "last_length": last.length,
            "last_level": last.level,
        }
    given = {key: value for key, value in words.items() if value is not None and value is not False}
    shown = (key if value is True else f"{key}={value}" for key, value in given.items())
    return f"{sectors.first}:{sectors.last} {','.join(shown)}"


def _status(number: int | None) -> str:
    """What the block layer would make of an errno: one that it has no status for is IOERR."""
    if number is None:
        return "OK"
    return next((name for name, status in STATUSES.items() if status == number), "IOERR")
