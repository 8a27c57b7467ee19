"""The servers that are compared: each gives the disk of an image as a regular file, over FUSE.

A peer is started, serves until its block ends, and must end in order. Knows nothing of what is asked of it. Invariant:
whatever happens, no process of a peer and no mount of it is left.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.bench.fio import BenchError
from tests.mounted.daemon import HANG_S, ROOT, Daemon, device, serving, unmount, until

PROGRAMS = ("fio", "qemu-storage-daemon", "qemu-nbd", "nbdfuse")
DAY_S = 24 * 3600
QEMU_FILE = "driver=file,cache.direct=off,cache.no-flush=off,aio=threads"
QEMU_EXPORT = "type=fuse,writable=on,growable=off"
QEMU_NBD = ("--cache=writeback", "--aio=threads", "--discard=unmap", "--detect-zeroes=off", "--persistent")

OWN, SESSION = "own", "pyfuse3"
QEMU, NBDFUSE, FILE = "qemu", "nbdfuse", "file"
FUSES_OUT = "fuses out"
"""Own connections again, of a device that nobody recovers: it keeps nothing for that, as QEMU does not either."""
DEVICE = "ploop0"
_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Peer:
    """`disk` is the file that fio opens; `images` lie below the server, whose processes are `pids`."""

    name: str
    disk: Path
    images: tuple[Path, ...]
    pids: tuple[int, ...] = ()
    daemon: Daemon | None = None

    @property
    def is_file(self) -> bool:
        return not self.pids

    def cpu_us(self) -> int:
        """User and system time of the server so far, in steps of a tick."""
        return sum(map(_cpu_us, self.pids))


Start = Callable[[Path, Sequence[Path], int], AbstractContextManager[Peer]]
"""Serve these deltas, base first, of a disk of so many bytes, with a directory of its own."""


def _cpu_us(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_US


@cache
def command() -> tuple[str, ...]:
    """The ploopfs to measure: ours, or what PLOOPFS says."""
    return tuple(shlex.split(os.environ.get("PLOOPFS", ""))) or (sys.executable, "-m", "ploopfs")


@cache
def planes() -> dict[str, tuple[str, ...]]:
    """The ways in which the measured ploopfs can serve a disk, the one to be compared first, with their options."""
    asked = [*command(), "mount", "--help"]
    told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    if "--data-plane" not in told.stdout:
        return {SESSION: ()}
    return {plane: ("--data-plane", plane) for plane in (OWN, SESSION)}


def all_peers() -> dict[str, Start]:
    """By name, what is compared with the others first."""
    ours: dict[str, Start] = {f"ploopfs {plane}": _ploopfs(plane) for plane in planes()}
    if OWN in planes():
        ours[FUSES_OUT] = _ploopfs(OWN, standby=False)
    return {**ours, QEMU: _qemu, NBDFUSE: _nbdfuse, FILE: _file}


def ours(*, standby: bool = True, limits: dict[str, object] | None = None) -> Start:
    """The first of the planes; without `standby` the fuses are out, to be put in by who measures that."""
    return _ploopfs(next(iter(planes())), standby=standby, limits=limits)


def _ploopfs(plane: str, *, standby: bool = True, limits: dict[str, object] | None = None) -> Start:
    @contextmanager
    def start(place: Path, deltas: Sequence[Path], size_bytes: int) -> Iterator[Peer]:
        place.mkdir()
        with serving(
            place,
            device(deltas, DEVICE, standby=standby),
            loaded=standby,
            limits=limits,
            options=[*planes()[plane], "--log-level", "warning"],
            command=command(),
            life_s=DAY_S,
        ) as daemon:
            until(lambda: daemon.disk().stat().st_size == size_bytes, "the disk has its size")
            used = daemon.attribute("ploopfs/data_plane")
            if used.exists() and used.read_text().strip() != plane:
                raise BenchError(f"ploopfs serves by {used.read_text().strip()}, not by {plane}: see its log")
            name = f"ploopfs {plane}" if standby else FUSES_OUT
            yield Peer(name, daemon.disk(), tuple(deltas), (daemon.process.pid,), daemon)
            code = daemon.end()
            if code != 0 or daemon.log.count("\n") > 1:  # one line says that it is ready
                raise BenchError(f"ploopfs ended with code {code}, and said:\n{daemon.log}")

    return start


@contextmanager
def _qemu(place: Path, deltas: Sequence[Path], size_bytes: int) -> Iterator[Peer]:
    """It takes one delta alone: its parallels driver refuses `backing`."""
    if len(deltas) > 1:
        raise BenchError("qemu-storage-daemon serves no stack of deltas")
    place.mkdir()
    disk = place / "disk"
    disk.touch()
    (image,) = deltas
    told = [
        *("qemu-storage-daemon", "--blockdev", f"{QEMU_FILE},node-name=file0,filename={_option(image)}"),
        *("--blockdev", f"driver=parallels,node-name={DEVICE},file=file0"),
        *("--export", f"{QEMU_EXPORT},id=e0,node-name={DEVICE},mountpoint={_option(disk)}"),
    ]
    with _unmounted(disk), _running(place, told, lambda: disk.stat().st_size == size_bytes) as pid:
        yield Peer(QEMU, disk, tuple(deltas), (pid,))


@contextmanager
def _nbdfuse(place: Path, deltas: Sequence[Path], size_bytes: int) -> Iterator[Peer]:
    """qemu-nbd, which does take a stack, and its export as a file."""
    place.mkdir()
    mountpoint, socket = place / "mnt", place / "socket"
    mountpoint.mkdir()
    options, prefix = "", ""
    for delta in reversed(deltas):
        options += f",{prefix}driver=parallels,{prefix}file.driver=file,{prefix}file.filename={_option(delta)}"
        prefix = f"{prefix}backing."
    disk = mountpoint / DEVICE
    with _unmounted(mountpoint), ExitStack() as servers:
        # The socket is there before anybody listens to it.
        listening = place / "qemu-nbd.pid"
        told = ["qemu-nbd", *QEMU_NBD, f"--socket={socket}", f"--pid-file={listening}"]
        told += ["--image-opts", options.removeprefix(",")]
        nbd = servers.enter_context(_running(place, told, listening.exists))
        told = ["nbdfuse", str(disk), "--unix", str(socket)]
        fuse = servers.enter_context(
            _running(
                place,
                told,
                lambda: disk.exists() and disk.stat().st_size == size_bytes,
                end=lambda _server: unmount(mountpoint),  # by a signal it ends with code 1
            )
        )
        yield Peer(NBDFUSE, disk, tuple(deltas), (nbd, fuse))


@contextmanager
def _file(_place: Path, deltas: Sequence[Path], _size_bytes: int) -> Iterator[Peer]:
    """The ceiling: nobody between fio and the page cache."""
    (file,) = deltas
    yield Peer(FILE, file, (file,))


def _option(path: Path) -> str:
    """QEMU ends an option's value at a comma; two are one that belongs to the value."""
    return str(path).replace(",", ",,")


@contextmanager
def _running(
    place: Path,
    told: Sequence[str],
    is_ready: Callable[[], bool],
    end: Callable[["subprocess.Popen[bytes]"], None] = subprocess.Popen.terminate,
) -> Iterator[int]:
    """A server from when it serves to its orderly end. Its own session: a Ctrl-C is not for it."""
    log = place / f"{told[0]}.log"
    with log.open("ab") as output:
        server = subprocess.Popen(
            told, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until(lambda: server.poll() is not None or is_ready(), f"{told[0]} serves")
        if server.returncode is not None:
            raise BenchError(f"{shlex.join(told)} ended with code {server.returncode}:\n{_tail(log)}")
        yield server.pid
    finally:
        end(server)
        try:
            server.wait(HANG_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    if server.returncode != 0:
        raise BenchError(f"{told[0]} ended with code {server.returncode}:\n{_tail(log)}")


@contextmanager
def _unmounted(place: Path) -> Iterator[None]:
    """Afterwards nothing is mounted there, whatever became of the server."""
    try:
        yield
    finally:
        unmount(place)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def lacks() -> list[str]:
    """What this machine has not that is needed."""
    missing = [program for program in (*PROGRAMS, command()[0]) if not shutil.which(program)]
    return missing if os.access("/dev/fuse", os.R_OK | os.W_OK) else [*missing, "/dev/fuse"]
