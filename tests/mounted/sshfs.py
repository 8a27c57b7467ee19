"""A store that loses its session and finds a new one: sshfs over a server of its own, without any network.

What was open when a session ended answers EIO for ever, what is opened afterwards works. And it lies: a write is
acknowledged before the server has it.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.mounted.daemon import HANG_S, unmount
from tests.mounted.storage import wait_mounted

SFTP_SERVER = "/usr/lib/openssh/sftp-server"


class Sshfs:
    """`bricks` is what the store keeps, `path` where it shows it. Made by `sshfs`."""

    def __init__(self, bricks: Path, path: Path, sessions: Path) -> None:
        self.bricks, self.path = bricks, path
        self._sessions = sessions

    def stop_session(self) -> None:
        """The server does nothing more of what it is sent; a write is acknowledged all the same."""
        os.kill(self._server, signal.SIGSTOP)

    @contextmanager
    def stopped_session(self) -> Iterator[None]:
        self.stop_session()
        server = self._server
        try:
            yield
        finally:
            os.kill(server, signal.SIGCONT)

    def end_session(self) -> None:
        os.kill(self._server, signal.SIGKILL)

    @property
    def _server(self) -> int:
        return int(self._sessions.read_text().split()[-1])


@contextmanager
def sshfs(place: Path) -> Iterator[Sshfs]:
    """Mounted at `place`/store, kept in `place`/bricks; both are made."""
    bricks, path, sessions, server = (place / name for name in ("bricks", "store", "sessions", "server"))
    bricks.mkdir()
    path.mkdir()
    server.write_text(f"#!/bin/sh\necho $$ >> {sessions}\nexec {SFTP_SERVER}\n")
    server.chmod(0o755)
    process = subprocess.Popen(
        ["sshfs", "-f", "-o", f"ssh_command={server},reconnect", f"nowhere:{bricks}", path], stdin=subprocess.DEVNULL
    )
    try:
        wait_mounted(path)
        yield Sshfs(bricks, path, sessions)
    finally:
        unmount(path)
        process.kill()
        process.wait(HANG_S)
        with suppress(FileNotFoundError, IndexError, ProcessLookupError):
            os.kill(int(sessions.read_text().split()[-1]), signal.SIGKILL)  # one that was stopped ends by nothing else
