"""GlusterFS itself as the store, with the write-behind that it has by default: one brick and one client, no glusterd.

The brick's death is a real ENOTCONN for whoever reads or flushes, while writes are acknowledged as ever; the client's
death is that of a FUSE file system. Both are processes of ours, which speak through a socket in a directory.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mounted.daemon import HANG_S, errno_of, unmount, until
from tests.mounted.storage import stopped, wait_mounted

COMMANDS = ("glusterfs", "glusterfsd")

BRICK = """
volume posix
  type storage/posix
  option directory {bricks}
end-volume
volume brick
  type features/locks
  subvolumes posix
end-volume
volume server
  type protocol/server
  option transport-type tcp
  option transport.address-family unix
  option transport.socket.listen-path {socket}
  option auth.addr.brick.allow *
  subvolumes brick
end-volume
"""
CLIENT = """
volume client
  type protocol/client
  option transport-type tcp
  option transport.address-family unix
  option transport.socket.connect-path {socket}
  option remote-host localhost
  option remote-subvolume brick
end-volume
volume write-behind
  type performance/write-behind
  subvolumes client
end-volume
"""


class Gluster:
    """`bricks` is what the store keeps, `path` where it shows it. Made by `gluster`."""

    def __init__(self, place: Path, sockets: Path) -> None:
        self.bricks, self.path = place / "bricks", place / "store"
        self._place, self._socket = place, sockets / "brick"
        self._brick: subprocess.Popen[bytes] | None = None
        self._client: subprocess.Popen[bytes] | None = None
        for name, text in (("brick", BRICK), ("client", CLIENT)):
            (place / f"{name}.vol").write_text(text.format(bricks=self.bricks, socket=self._socket))

    def mount(self) -> None:
        assert self._client is None
        # Nothing is remembered of names and sizes, which we change behind its back.
        options = ("--attribute-timeout=0", "--entry-timeout=0", "--direct-io-mode=enable")
        self._client = self._started("glusterfs", "client", *options, str(self.path))
        wait_mounted(self.path)
        self._wait_connected()

    def start_brick(self) -> None:
        self._socket.unlink(missing_ok=True)
        self._brick = self._started("glusterfsd", "brick")
        until(self._socket.exists, "the brick listens")

    # The brick.

    def lose_brick(self) -> None:
        assert self._brick is not None
        _kill(self._brick)
        self._brick = None
        until(lambda: errno_of(os.stat, self.path) != "success", "the client has noticed")

    def return_brick(self) -> None:
        """The client looks for it every three seconds."""
        self.start_brick()
        self._wait_connected()

    # The client.

    def kill(self) -> None:
        assert self._client is not None
        _kill(self._client)
        self._client = None

    def remount(self) -> None:
        unmount(self.path)
        self.mount()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        assert self._client is not None
        with stopped(self._client):
            yield

    def close(self) -> None:
        unmount(self.path)
        for process in (self._client, self._brick):
            if process is not None:
                _kill(process)

    def _started(self, program: str, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        command = [program, "--no-daemon", f"--volfile={self._place / name}.vol"]
        command.append(f"--log-file={self._place / name}.log")
        return subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _wait_connected(self) -> None:
        until(lambda: errno_of(os.listdir, self.path) == "success", "the client has found the brick")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(HANG_S)


@contextmanager
def gluster(place: Path) -> Iterator[Gluster]:
    """Mounted at `place`/store, kept in `place`/bricks; both are made."""
    with tempfile.TemporaryDirectory(prefix="gluster.") as sockets:  # the name of a socket has to be short
        running = Gluster(place, Path(sockets))
        running.bricks.mkdir()
        running.path.mkdir()
        try:
            running.start_brick()
            running.mount()
            yield running
        finally:
            running.close()
