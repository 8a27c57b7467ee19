"""The verbs and tools/dmsetup over a directory that claims to be a tree: a daemon that says anything at all.

One input is a script: records between RECORD bytes, each a path below the mountpoint, NUL, and what that file holds;
what no record names is as a healthy daemon has it. Invariant: a verb ends with an exit code of its own, never with a
traceback.
"""

import contextlib
import importlib.machinery
import importlib.util
import io
import os
import select
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest import mock

from ploopfs.cli import client, exits, main, tree
from ploopfs.errors import PloopError
from ploopfs.fuse.mountpoint import State
from tests.fuzz.tree import RECORD

DMSETUP = Path(__file__).resolve().parents[2] / "tools/dmsetup"
BLOCK = "sys/block/ploop0"
MAPPED = "sys/block/dm-0"
EVENT = '{"seq": 1, "time": 1.5, "device": "ploop0", "event": "replace_end", "result": "ok", "path": "/a b"}\n'
REASON = "errno=EIO operation=read offset=0 length=512 level=2 file=/store/top of all.hds\n"
RULE = "0:7 op=READ,status=IOERR,chance=1,id=3,where=sectors,errno=EIO,hits=1"
HIT = ",last_time=1.5,last_op=read,last_offset=0,last_length=5\n"
METRICS = '# HELP ploopfs_standby 1\n# TYPE ploopfs_standby gauge\nploopfs_standby{device="ploop0"} 1.0\n'

HEALTHY: Mapping[str, str] = {
    f"{BLOCK}/size": "131072\n",
    f"{BLOCK}/ro": "0\n",
    f"{BLOCK}/queue/standby": "on\n",
    f"{BLOCK}/pdelta/0/image": "/store/base.hds\n",
    f"{BLOCK}/pdelta/0/ro": "1\n",
    f"{BLOCK}/pdelta/0/format": "ploop1\n",
    f"{BLOCK}/ploopfs/standby_since": "1700000000.125\n",
    f"{BLOCK}/ploopfs/standby_reason": REASON,
    f"{BLOCK}/ploopfs/generation": "1\n",
    f"{BLOCK}/ploopfs/aborted": "0\n",
    f"{BLOCK}/ploopfs/parked": "0\n",
    f"{BLOCK}/ploopfs/last_error": "\n",
    f"{BLOCK}/ploopfs/deltas": "0 /store/base.hds 1 ploop1\n1 /store/top of all.hds 0 ploop1\n",
    f"{BLOCK}/ploopfs/on_standby": "hold\n",
    f"{BLOCK}/ploopfs/hold_timeout_ms": "300000\n",
    f"{BLOCK}/ploopfs/held": "2\n",
    f"{BLOCK}/ploopfs/held_bytes": "1024\n",
    f"{BLOCK}/ploopfs/unflushed_bytes": "4096\n",
    f"{BLOCK}/ploopfs/recovery": "manual\n",
    f"{BLOCK}/ploopfs/agent": "paused\n",
    f"{MAPPED}/dm/name": "vm1\n",
    f"{MAPPED}/dm/uuid": "U-1\n",
    f"{MAPPED}/dm/suspended": "0\n",
    f"{MAPPED}/dev": "253:0\n",
    f"{MAPPED}/ro": "0\n",
    f"{MAPPED}/size": "131072\n",
    f"{MAPPED}/queue/read_ahead_kb": "128\n",
    f"{MAPPED}/ploopfs/status": "0 131072 ploop 1 v2 2048 o\n",
    f"{MAPPED}/ploopfs/status_inactive": "\n",
    f"{MAPPED}/ploopfs/open_count": "0\n",
    f"{MAPPED}/ploopfs/event_nr": "0\n",
    f"{MAPPED}/ploopfs/load": "",
    f"{MAPPED}/ploopfs/message": "",
    "sys/fs/ploopfs/pid": "1\n",
    "sys/fs/ploopfs/ploop_standby_check": "1\n",
    "sys/fs/ploopfs/events": EVENT,
    "sys/fs/ploopfs/metrics": METRICS,
    "sys/kernel/debug/ploopfs/ploop0/error_injection": RULE + HIT,
    "sys/kernel/debug/ploopfs/ploop0/last_error": "\n",
}
VERBS: tuple[tuple[str, ...], ...] = (
    ("status",),
    ("status", "--json"),
    ("list",),
    ("why", "ploop0"),
    ("why", "ploop0", "--json"),
    ("watch", "--no-follow", "--last", "all"),
    ("watch", "ploop0", "--no-follow", "--json"),
    ("inject", "ploop0", "--list"),
    ("inject", "ploop0", "--list", "--json"),
    ("inject", "ploop0", "--errno", "EIO"),
    ("metrics", "--json"),
    ("wait", "ploop0", "--for", "off", "--timeout", "0"),
    ("reopen", "ploop0"),
)
DMSETUPS: tuple[tuple[str, ...], ...] = (
    ("info",),
    ("info", "-c", "-O", "minor"),
    ("status", "vm1"),
    ("ls", "--target", "ploop"),
    ("message", "vm1", "0", "merge"),
    ("wipe_table", "vm1"),
)


@contextlib.contextmanager
def hostile(data: bytes, *, least: bool = False) -> Iterator[Path]:
    """The directory; a record for a path that no daemon has is left out. `least`: of a mapped device alone."""
    wanted = (MAPPED,) if least else ("",)
    files = {name: text.encode() for name, text in HEALTHY.items() if name.startswith((*wanted, "sys/fs"))}
    for one in data.split(RECORD):
        path, _, content = one.partition(b"\0")
        if (name := os.fsdecode(path)) in files:
            files[name] = content
    with tempfile.TemporaryDirectory() as place:
        for name, content in files.items():
            file = Path(place, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        yield Path(place)


def run_verbs(data: bytes) -> None:
    with hostile(data) as place:
        for verb, *arguments in VERBS:
            mount = () if verb == "list" else ("-m", str(place))
            with _taken_for_a_tree(place):
                code, _ = quietly(main.main, [verb, *arguments, *mount])
            assert code in set(exits.Exit), f"{verb}: {code}"
        with contextlib.suppress(PloopError):
            assert tree.Tree(str(place)).pid > 0


def run_dmsetup(data: bytes) -> None:
    with hostile(data, least=True) as place, mock.patch.dict(os.environ, PLOOPFS_MOUNT=str(place)):
        for words in DMSETUPS:
            code, _ = quietly(dmsetup().main, [*words])
            assert code in (0, 1)


def run_dmsetup_line(data: bytes) -> None:
    """The words of one command line between NULs, the first of them standard input."""
    stdin, *words = [os.fsdecode(word) for word in data.split(b"\0")[:64]]
    with (
        hostile(b"", least=True) as place,
        mock.patch.dict(os.environ, PLOOPFS_MOUNT=str(place)),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        mock.patch.object(select, "poll", _NothingHappens),
    ):
        code, _ = quietly(dmsetup().main, words)
        assert code in (0, 1)


def run_arguments(data: bytes) -> None:
    """The words of one command line between NULs: parsed, not executed."""
    words = [os.fsdecode(word) for word in data.split(b"\0")[:64]]
    with contextlib.suppress(SystemExit):
        quietly(_parsed, words)


def _parsed(words: list[str]) -> int:
    _parser().parse_args(words)
    return 0


def quietly(run: Callable[..., int], *arguments: object) -> tuple[int, str]:
    """The code, and what went to standard output: as bytes of a terminal in UTF-8, like a real one."""
    output = io.TextIOWrapper(_Discarding(), "utf-8", errors="strict", write_through=True)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()) as said:
        return run(*arguments), said.getvalue()


class _Discarding(io.BytesIO):
    """A terminal, to which a verb prints with more care than to a pipe."""

    def fileno(self) -> int:
        return 1

    def isatty(self) -> bool:
        return True


class _NothingHappens:
    """In the place of select.poll."""

    def register(self, *_: object) -> None: ...

    def poll(self, *_: object) -> list[tuple[int, int]]:
        raise dmsetup().Failed("nothing happens here")


@contextlib.contextmanager
def _taken_for_a_tree(place: Path) -> Iterator[None]:
    with (
        mock.patch.object(tree, "inspect_mountpoint", return_value=State.SERVING),
        mock.patch.object(client, "inspect_mountpoint", return_value=State.SERVING),
        mock.patch.object(tree, "ploopfs_mounts", return_value=[str(place)]),
        mock.patch.object(main, "_parser", _parser),
        mock.patch("signal.signal"),
    ):
        yield


_parser = cache(main._parser)
"""One for all: to make it takes longer than to run a verb."""


@cache
def dmsetup() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("dmsetup", str(DMSETUP))
    spec = importlib.util.spec_from_loader("dmsetup", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
