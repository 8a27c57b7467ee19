"""Runs the real command: a daemon in the foreground as a child of the test, and the other verbs beside it.

A daemon is ended by its own process id, and no mount of it is left behind, whatever the test did. Nothing sleeps: what
has to happen first is waited for by the line that says so, or by asking the tree.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
OTHER_PLANE = os.environ.get("PLOOPFS_TEST_PLANE")
"""`pyfuse3`: every test that does not say which way the data of its disks take runs on the tree's connection."""

PLOOPFS = (sys.executable, "-m", "ploopfs")
IMPATIENT = """
import sys
from ploopfs.cli import main, serve
serve.SHUTDOWN_DEADLINE_S = float(sys.argv.pop(1))
sys.exit(main.main())
"""

HANG_S = int(os.environ.get("PLOOPFS_TEST_HANG_S", "60"))
"""Only a failing test waits that long, on a machine that has nothing better to do."""

HOLD_MS = HANG_S * 1000
"""For devices that hold: whatever a test does between an outage and its end may take as long as anything else."""

LIFE_S = 10 * HANG_S
"""No daemon, not even one that a whole module shares, is needed for longer."""


def ploopfs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """One run of the command to its end."""
    return subprocess.run([*PLOOPFS, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)


def said(stderr: str) -> str:
    """What the command itself says, wherever that stands: not what is logged."""
    return "\n".join(line for line in stderr.splitlines() if line.startswith("ploopfs: "))


def errno_of(call: Callable[..., object], *arguments: object) -> str:
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "success"


def until(condition: Callable[[], bool], what: str) -> None:
    """Ask again and again, where nothing reports; the bound only ends a test that fails."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {HANG_S} s: {what}"


def is_polling(task: Path) -> bool:
    """A process or thread, by its directory in /proc, is blocked in poll, select or epoll_wait."""
    try:
        return "poll" in (task / "wchan").read_text()
    except OSError:
        return False


class Lines:
    """What a child writes to a pipe, as it comes."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe = pipe
        self._lines: list[str] = []
        self._ended = False
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        with self._came:
            return "".join(self._lines)

    def wait_for(self, part: str, *, start: int = 0) -> int:
        """The number of the line after the first from `start` on that contains `part`."""

        def found() -> int:
            return next((number for number, line in enumerate(self._lines[start:], start + 1) if part in line), 0)

        with self._came:
            self._came.wait_for(lambda: found() or self._ended, HANG_S)
            assert found(), f"{part!r} was not said:\n{''.join(self._lines)}"
            return found()

    def wait_end(self) -> str:
        self._reader.join(HANG_S)
        self._pipe.close()
        return self.text

    def _read(self) -> None:
        for line in self._pipe:
            with self._came:
                self._lines.append(line)
                self._came.notify_all()
        with self._came:
            self._ended = True
            self._came.notify_all()


class Daemon:
    """A running daemon; `mountpoint` answers. Names of attributes are counted from the directory of the device."""

    def __init__(self, process: subprocess.Popen[str], mountpoint: Path, lines: Lines) -> None:
        self.process, self.mountpoint, self._lines = process, mountpoint, lines

    @property
    def log(self) -> str:
        """All of it once the daemon has ended. Before, a thread of its own writes what was logged: see
        `wait_for_line`."""
        return self._lines.text

    def wait_for_line(self, part: str, *, start: int = 0) -> int:
        return self._lines.wait_for(part, start=start)

    def disk(self, device: str = "ploop0") -> Path:
        return self.mountpoint / "dev" / device

    def attribute(self, name: str, device: str = "ploop0") -> Path:
        return self.mountpoint / "sys/block" / device / name

    def value(self, name: str, device: str = "ploop0") -> str:
        """What cat(1) prints, without the one newline."""
        return self.attribute(name, device).read_text().removesuffix("\n")

    def store(self, name: str, text: str, device: str = "ploop0") -> None:
        """One write(2), as `echo` does it, with the errno of the store."""
        with opened(self.attribute(name, device), os.O_WRONLY | os.O_TRUNC) as fd:
            os.write(fd, f"{text}\n".encode())

    def events(self) -> list[dict[str, Any]]:
        """All that are still in the ring."""
        text = (self.mountpoint / "sys/fs/ploopfs/events").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(HANG_S)
        self._lines.wait_end()
        return code


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        # Where the daemon has died meanwhile close says so, and has closed.
        with suppress(OSError):
            os.close(fd)


def device(image: Path | str | Sequence[Path | str], name: str = "ploop0", **others: object) -> dict[str, object]:
    """An entry of `devices` in which both fuses are in, unless `others` says otherwise."""
    listed = os.fspath(image) if isinstance(image, Path | str) else [os.fspath(path) for path in image]
    return {"name": name, "image": listed, "standby": True} | others


def write_config(
    place: Path,
    *devices: dict[str, object],
    loaded: bool = True,
    limits: dict[str, object] | None = None,
    allowed_dirs: Sequence[str] | None = None,
    data_plane: str | None = None,
) -> Path:
    """JSON is YAML."""
    path = place / "config.yaml"
    config: dict[str, object] = {"scst": {"loaded": loaded}, "devices": devices, "limits": limits or {}}
    if allowed_dirs is not None:
        config["allowed_dirs"] = allowed_dirs
    if data_plane is not None:
        config["data_plane"] = data_plane
    path.write_text(json.dumps(config, indent=2))
    return path


@contextmanager
def serving(
    place: Path,
    *devices: dict[str, object],
    loaded: bool = True,
    limits: dict[str, object] | None = None,
    allowed_dirs: Sequence[str] | None = None,
    data_plane: str | None = None,
    options: Sequence[str] = (),
    shutdown_deadline_s: float | None = None,
    command: Sequence[str] = PLOOPFS,
    pass_fds: Sequence[int] = (),
    life_s: float = LIFE_S,
) -> Iterator[Daemon]:
    """Mount these devices at `place`/mnt, which is made if it is missing. `command` stands for `ploopfs`."""
    if shutdown_deadline_s is not None:
        command = (sys.executable, "-c", IMPATIENT, str(shutdown_deadline_s))
    config = write_config(
        place, *devices, loaded=loaded, limits=limits, allowed_dirs=allowed_dirs, data_plane=data_plane
    )
    mountpoint = place / "mnt"
    if not os.path.lexists(mountpoint) and not is_mounted(mountpoint):
        mountpoint.mkdir()
    plane = ("--data-plane", OTHER_PLANE) if OTHER_PLANE else ()
    process = subprocess.Popen(
        [*command, "mount", os.fspath(config), os.fspath(mountpoint), *plane, *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
        process_group=0,  # the interrupt of a terminal is for who uses it, and ends it when done
    )
    assert process.stderr is not None
    running = Daemon(process, mountpoint, Lines(process.stderr))
    # A daemon that hangs is killed, and whoever waits for its mount gets an error instead.
    watchdog = threading.Timer(life_s, process.kill)
    watchdog.start()
    try:
        running.wait_for_line(f"ploopfs: {mountpoint} is ready")
        yield running
    finally:
        watchdog.cancel()
        _end(process, mountpoint)
        running.wait()


def _end(process: subprocess.Popen[str], mountpoint: Path) -> None:
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(HANG_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        unmount(mountpoint)


def is_mounted(place: Path) -> bool:
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        return any(line.split()[4] == os.fspath(place) for line in table)


def unmount(place: Path) -> None:
    """Lazily, as often as something is mounted there: the last resort, when whoever served it is gone."""
    while is_mounted(place):
        subprocess.run(["umount", "-l", os.fspath(place)], check=True)
