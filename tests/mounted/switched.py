"""A store that answers as it is told: a file of QEMU's storage daemon, with blkdebug put under it at run time.

What was open stays open, before, during and after the fault: only what the file answers changes.
"""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mounted.daemon import HANG_S, is_mounted, unmount

FAILING = ("read", "write", "write-zeroes", "discard")
"""Not flush: the switch back flushes, and would fail for as long as flushes do."""


class Switched:
    """`path` shows the content of one image. Made by `switched`."""

    def __init__(self, path: Path, qmp: socket.socket) -> None:
        self.path = path
        self._qmp = qmp.makefile("rw", encoding="utf-8")
        self._qmp.readline()  # its greeting
        self._execute("qmp_capabilities")

    @contextmanager
    def failing(self, number: int) -> Iterator[None]:
        """Inside, every read and write of the file fails with this errno."""
        with self._ruled([{"event": "none", "iotype": kind, "errno": number} for kind in FAILING]):
            yield

    @contextmanager
    def failing_one_flush(self, number: int) -> Iterator[None]:
        """Inside, the first fsync of the file fails with this errno, and no other."""
        with self._ruled([{"event": "none", "iotype": "flush", "errno": number, "once": True}]):
            yield

    @contextmanager
    def _ruled(self, rules: list[dict[str, object]]) -> Iterator[None]:
        node: dict[str, object] = {"driver": "blkdebug", "node-name": "faults", "image": "image", "inject-error": rules}
        self._execute("blockdev-add", node)
        self._put_under("faults")
        try:
            yield
        finally:
            self._put_under("image")
            self._execute("blockdev-del", {"node-name": "faults"})

    def _put_under(self, node: str) -> None:
        self._execute("blockdev-reopen", {"options": [{"driver": "raw", "node-name": "shown", "file": node}]})

    def _execute(self, command: str, arguments: dict[str, object] | None = None) -> None:
        json.dump({"execute": command, "arguments": arguments or {}}, self._qmp)
        self._qmp.flush()
        answers = map(json.loads, iter(self._qmp.readline, ""))
        answer = next(answer for answer in answers if "event" not in answer)
        assert "return" in answer, answer


@contextmanager
def switched(image: Path, path: Path) -> Iterator[Switched]:
    """`image` lies behind a FUSE file at `path`, which is made."""
    path.touch()
    ours, theirs = socket.socketpair()
    file = {"driver": "file", "node-name": "image", "filename": str(image)}
    # Over the file at first, not over blkdebug: only so may it be asked to grow.
    shown = {"driver": "raw", "node-name": "shown", "file": "image"}
    export = {"type": "fuse", "id": "shown", "node-name": "shown", "mountpoint": str(path)}
    command = ["qemu-storage-daemon", "--blockdev", json.dumps(file), "--blockdev", json.dumps(shown)]
    command += ["--export", json.dumps(export | {"writable": True, "growable": True})]
    command += ["--chardev", f"socket,id=qmp,fd={theirs.fileno()},server=off", "--monitor", "chardev=qmp"]
    with ours, theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        try:
            ours.settimeout(HANG_S)
            running = Switched(path, ours)
            assert is_mounted(path)
            yield running
        finally:
            process.kill()
            process.wait(HANG_S)
            unmount(path)
