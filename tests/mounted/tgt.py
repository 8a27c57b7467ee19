"""tgtd, an iSCSI target in user space, over the disk of a device; QEMU's tools are the initiators.

It opens the disk once and keeps it open, as every target does. It is ended by its own process id, and with SIGKILL: it
ignores SIGTERM while it has a target.
"""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mounted.daemon import HANG_S, until

NAME = "iqn.2024-01.test:disk"


@dataclass(frozen=True, slots=True)
class Target:
    """`url` is the logical unit, for initiators."""

    url: str
    _socket: str
    _log: Path

    @property
    def log(self) -> str:
        return self._log.read_text()

    def admin(self, *arguments: str) -> int:
        command = ["tgtadm", "--lld", "iscsi", "--mode", *arguments]
        environment = os.environ | {"TGT_IPC_SOCKET": self._socket}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=HANG_S, check=False)
        return done.returncode


@contextmanager
def target(disk: Path, place: Path) -> Iterator[Target]:
    """Inside, the disk is logical unit 1 of a target on the loopback interface."""
    # The name of a socket is at most 107 bytes long, which a directory of pytest exceeds.
    with (
        TemporaryDirectory() as short,
        open(place / "tgtd.log", "w", encoding="utf-8") as log,
        _own_port() as port,
    ):
        portal = f"127.0.0.1:{port}"
        running = Target(f"iscsi://{portal}/{NAME}/1", f"{short}/tgtd", place / "tgtd.log")
        process = subprocess.Popen(
            ["tgtd", "-f", "--iscsi", f"portal={portal}", "-C", "0"],
            env=os.environ | {"TGT_IPC_SOCKET": f"{short}/tgtd"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            until(lambda: running.admin("sys", "--op", "show") == 0, "tgtd answers")
            for arguments in (
                "target --op new --tid 1 --targetname " + NAME,
                f"logicalunit --op new --tid 1 --lun 1 --bstype rdwr --backing-store {disk}",
                "target --op bind --tid 1 --initiator-address ALL",
            ):
                assert running.admin(*arguments.split(" ")) == 0, running.log
            yield running
        finally:
            process.kill()
            process.wait(HANG_S)


@contextmanager
def _own_port() -> Iterator[int]:
    """Inside, nobody else is given this port: it is bound here, and tgtd may bind it too, as both say SO_REUSEADDR and
    only one listens."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        yield port
