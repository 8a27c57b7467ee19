"""Every parser of the product has a target: whoever writes a new one without is told here.

A parser is found in the sources by what it calls (PRIMITIVES), and has a target if the seeds of one reach it. Files
that can be written are found in the tables of rows and settings, and have one if the fuzzed tree has them.
"""

import ast
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import pytest
import trio

from ploopfs.engine.storage import Storage
from ploopfs.errors import PloopError
from ploopfs.scst.settings import Setting
from ploopfs.sysfs.rows import Row
from tests.fuzz.targets import TARGETS
from tests.fuzz.tree import MOST_RECORDS, RECORD, populated

pytestmark = pytest.mark.expects_warnings

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for path in sorted((ROOT / "ploopfs").rglob("*.py")) if "testing" not in path.parts]
SOURCES.append(ROOT / "tools/dmsetup")

OF_TEXT = "split rsplit partition rpartition splitlines isdigit isdecimal decode"
OF_BYTES = "loads unpack unpack_from frombuffer compose Parse from_bytes"
METHODS = frozenset(f"fullmatch match search findall finditer {OF_TEXT} {OF_BYTES}".split())
FUNCTIONS = frozenset({"int", "float"})

OF_THE_KERNEL = "what it reads comes from the kernel, in numbers and words of its own"
OF_NUMBERS = "what it converts are numbers of a map that was checked"
OF_A_COMMAND = "what it reads is printed by the user's own program, and goes to the log, a record of which is one line"
IN_A_REHEARSAL = "what it reads comes from the daemon that the rehearsal itself has started, or from its scenario"

WITHOUT: dict[str, str] = {
    # file:function, and why hostile input does not come there
    "ploopfs/blockfuse/mounting.py:is_mounted": OF_THE_KERNEL,
    "ploopfs/blockfuse/mounting.py:_number_at": OF_THE_KERNEL,
    "ploopfs/blockfuse/mounting.py:_received": OF_THE_KERNEL,
    "ploopfs/blockfuse/mounting.py:_said_by": "what it reads is printed by fusermount3, and becomes one line",
    "ploopfs/blockfuse/replies.py:unique_of": "what it reads was written by this process",
    "ploopfs/cli/namespace.py:may_mount": OF_THE_KERNEL,
    "ploopfs/cli/rehearse/play.py:_is_as_expected": IN_A_REHEARSAL,
    "ploopfs/cli/rehearse/play.py:_command": IN_A_REHEARSAL,
    "ploopfs/cli/rehearse/play.py:_take_events": IN_A_REHEARSAL,
    "ploopfs/cli/rehearse/play.py:_scene": IN_A_REHEARSAL,
    "ploopfs/cli/rehearse/report.py:junit": IN_A_REHEARSAL,
    "ploopfs/cli/rehearse/report.py:title": IN_A_REHEARSAL,
    "ploopfs/cli/rehearse/report.py:ended": IN_A_REHEARSAL,
    "ploopfs/cli/rehearse/stage.py:existing_stage": IN_A_REHEARSAL,
    "ploopfs/cli/rehearse/stage.py:log_end": IN_A_REHEARSAL,
    "ploopfs/cli/rehearse/telling.py:described": IN_A_REHEARSAL,
    "ploopfs/device/agent.py:_run": OF_A_COMMAND,
    "ploopfs/engine/command.py:_run_to_end": OF_A_COMMAND,
    "ploopfs/engine/create.py:_without_guid": "a name that the descriptor's target has gone through",
    "ploopfs/engine/probe.py:probe": "a path that was opened before",
    "ploopfs/engine/storage.py:storage_of": OF_THE_KERNEL,
    "ploopfs/engine/holders.py:holders": OF_THE_KERNEL,
    "ploopfs/engine/holders.py:_locks": OF_THE_KERNEL,
    "ploopfs/engine/lock.py:_is_locked": OF_THE_KERNEL,
    "ploopfs/engine/ring.py:_submission": "what it reads was written by this process",
    "ploopfs/image/map.py:slots_of": OF_NUMBERS,
    "ploopfs/image/map.py:next_present": OF_NUMBERS,
    "ploopfs/image/clusters.py:_end": OF_NUMBERS,
    "ploopfs/engine/inject/filter.py:_decided": "what it matches is an operation with a rule",
    "ploopfs/cli/reload.py:reload": "what it splits was looked at, and is a text",
    "ploopfs/cli/configured.py:reload": "what it splits is the message of an error of ours",
    "ploopfs/sysfs/metrics.py:_text": "what it decodes was encoded by the library that made it",
    "ploopfs/fuse/mountpoint.py:_server_of": "what is no number is left out of the message",
}

SOMETIMES = frozenset({"ploopfs/engine/inject/filter.py:_decided"})
"""Reached or not, as a rule of the seeds happens to be in force."""

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def parsers(source: str) -> Iterator[tuple[str, int]]:
    """Functions that call a primitive themselves: the name, and the line of the first decorator or of the name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTION) and any(map(_is_primitive, _own_calls(node))):
            decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
            name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
            yield name, min([node.lineno, *(each.lineno for each in decorators)])


def _own_calls(function: ast.AST) -> Iterator[ast.Call]:
    """Not those of functions inside it, which are parsers themselves."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, FUNCTION):
            continue
        if isinstance(node, ast.Call):
            yield node
        yield from _own_calls(node)


def _is_primitive(call: ast.Call) -> bool:
    match call:
        case ast.Call(func=ast.Attribute(attr=name)):
            return name in METHODS
        case ast.Call(func=ast.Name(id=name), args=[ast.Name() | ast.Subscript() | ast.Call() as argument, *_]):
            return name in FUNCTIONS and not _is_number(argument)
    return False


def _is_number(argument: ast.expr) -> bool:
    """A result of numpy, a truth value or a lookup in an object: no text."""
    return isinstance(argument, ast.Call) and ast.unparse(argument.func).rpartition(".")[2] in (
        "max",
        "count_nonzero",
        "bool",
        "getattr",
        "next",
    )


@cache
def reached() -> frozenset[tuple[str, str, int]]:
    """File, name and first line of every function of the product that the seeds of some target reach. What takes apart
    an answer of the kernel about a file does so in a thread, unseen, whatever file system the seeds lie on."""
    found: set[CodeType] = set()

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            found.add(frame.f_code)

    with patch.object(Storage, "answers_from_memory", False):
        for target in TARGETS.values():
            for data in target.seeds():
                sys.setprofile(profile)
                try:
                    with suppress(PloopError):
                        target.run(data)
                finally:
                    sys.setprofile(None)
    return frozenset((code.co_filename, code.co_name, code.co_firstlineno) for code in found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_function_that_takes_text_or_bytes_apart_is_reached_by_a_target(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    missing = [
        f"{name}:{line}: {function} has no target in tests/fuzz/targets.py"
        for function, line in parsers(path.read_text())
        if (str(path), function, line) not in reached() and f"{name}:{function}" not in WITHOUT
    ]
    assert not missing, "\n".join(missing)


def test_what_needs_no_target_is_still_there_and_has_none() -> None:
    known = {f"{path.relative_to(ROOT)}:{function}" for path in SOURCES for function, _ in parsers(path.read_text())}
    assert set(WITHOUT) <= known
    ours = ((Path(file), name) for file, name, _ in reached() if file.startswith(f"{ROOT}/"))
    reached_names = {f"{file.relative_to(ROOT)}:{name}" for file, name in ours}
    assert sorted(set(WITHOUT) & reached_names - SOMETIMES) == []


def test_a_parser_without_a_target_is_seen() -> None:
    source = "def a(text):\n    return int(text)\n@cache\ndef b(x):\n    def c(y): return y.split()\n    return c\n"
    source += "def d(n): return int(n > 3)\nasync def e(f): return json.loads(f)\nROW = lambda t: t.partition('x')\n"
    assert set(parsers(source)) == {("a", 1), ("c", 5), ("e", 8), ("<lambda>", 9)}


def _modules() -> Iterator[Any]:
    for part in ("sysfs", "scst"):
        for path in sorted((ROOT / "ploopfs" / part).rglob("*.py")):
            yield import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def _tables(kind: type) -> Iterator[Any]:
    """Every value of that kind which stands in a module: by itself, or in the tables that are there."""
    for module in _modules():
        for value in vars(module).values():
            yield from _within(value, kind)


def _within(value: object, kind: type) -> Iterator[Any]:
    if isinstance(value, kind):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _within(each, kind)
    elif isinstance(value, dict):
        yield from _within(list(value.values()), kind)


async def test_every_file_that_can_be_written_is_in_the_tree_that_is_fuzzed() -> None:
    rows = {row.name for row in _tables(Row) if row.store is not None}
    settings = {setting.name for setting in _tables(Setting) if setting.parse is not None}
    assert len(rows) > 60, "the tables of rows were not found"
    assert len(settings) > 50, "the tables of settings were not found"
    async with populated() as fuzzed:
        names = {path.rpartition("/")[2] for path in fuzzed.writable()}
    assert not (rows | settings) - names


def test_the_seeds_of_the_stores_write_to_each_of_them() -> None:
    records = [record for data in TARGETS["stores"].seeds() for record in data.split(RECORD)[:MOST_RECORDS]]
    written = {record.partition(b"\0")[0].decode() for record in records}
    assert not set(trio.run(_writable)) - written


async def _writable() -> list[str]:
    async with populated() as fuzzed:
        return fuzzed.writable()
