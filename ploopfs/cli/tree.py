"""A mounted tree as a client sees it: plain files, read and written as any shell script would.

Knows nothing of the daemon behind it, and takes nothing that it says for granted: whatever the files hold, what comes
out is a value of the right kind or BadTree. Paths are those of the tree's sysfs layout.
"""

import errno
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ploopfs.bounds import MAX_FILE_BYTES
from ploopfs.errors import BadTree, BadValue, MountError, NoSuchDevice
from ploopfs.fuse.mountpoint import State, inspect_mountpoint, ploopfs_mounts

_NUMBER = re.compile(r"[0-9]{1,20}")
_PROCESS = re.compile(r"[1-9][0-9]{0,8}")
_SECONDS = re.compile(r"[0-9]{1,11}(\.[0-9]{1,9})?")
_LEVEL = re.compile(r"[0-9]+ (.*) ([01]) (\S+)")


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """What `status` and `list` show; sizes in bytes, times in seconds since the epoch."""

    device: str
    mountpoint: str
    disk: str
    size_bytes: int
    read_only: bool
    standby: str
    since_s: float | None
    reason: str
    generation: int
    aborted: bool
    suspended: bool
    parked: int
    last_error: str
    deltas: list[str]
    on_standby: str
    hold_timeout_ms: int
    held: int
    held_bytes: int
    unflushed_bytes: int
    recovery: str
    agent: str
    data_plane: str
    connection: str


@dataclass(frozen=True, slots=True)
class Level:
    """One delta; the last of a stack is the top."""

    path: str
    read_only: bool
    format: str


class Tree:
    """One mounted tree."""

    def __init__(self, mountpoint: str) -> None:
        self.mountpoint = os.path.abspath(mountpoint)

    @classmethod
    def find(cls, mountpoint: str | None) -> "Tree":
        """The tree at `mountpoint`, or at PLOOPFS_MOUNT, or the only one there is. Raises MountError."""
        mountpoint = mountpoint or os.environ.get("PLOOPFS_MOUNT")
        if mountpoint is not None:
            state = inspect_mountpoint(mountpoint)
            if state is not State.SERVING:
                raise MountError(f"{mountpoint}: no running ploopfs there: {state.value}")
            return cls(mountpoint)
        mounts = live_mounts()
        if len(mounts) != 1:
            found = ", ".join(mounts) or "none"
            raise MountError(f"--mount is needed unless exactly one ploopfs is mounted (mounted: {found})")
        return cls(mounts[0])

    @property
    def pid(self) -> int:
        name = "sys/fs/ploopfs/pid"
        return int(self._matching(name, self.read(name), _PROCESS, "the number of a process"))

    def ask_reload(self) -> None:
        path = self._path("sys/fs/ploopfs/reload")
        with open(path, "wb", buffering=0) as file:
            file.write(b"1")

    @property
    def is_checking(self) -> bool:
        """The global key is in: errors of the storage can mean standby."""
        return self.read("sys/fs/ploopfs/ploop_standby_check") == "1"

    def metrics(self) -> str:
        """The text format of Prometheus."""
        return self.read("sys/fs/ploopfs/metrics")

    def devices(self) -> list[str]:
        return sorted(os.listdir(self._path("sys/block")), key=lambda name: (len(name), name))

    def status(self, device: str) -> DeviceStatus:
        since = self.attribute(device, "ploopfs/standby_since")
        return DeviceStatus(
            device=device,
            mountpoint=self.mountpoint,
            disk=self._path(f"dev/{device}"),
            size_bytes=self._number(device, "size") * 512,
            read_only=self.attribute(device, "ro") == "1",
            standby=self.attribute(device, "queue/standby"),
            since_s=self._seconds(device, since) if since else None,
            reason=self.attribute(device, "ploopfs/standby_reason"),
            generation=self._number(device, "ploopfs/generation"),
            aborted=self._optional(device, "ploopfs/aborted") == "1",
            suspended=self._optional(device, "dm/suspended") == "1",
            parked=self._number(device, "ploopfs/parked"),
            last_error=self.attribute(device, "ploopfs/last_error"),
            deltas=[level.path for level in self.levels(device)],
            on_standby=self.attribute(device, "ploopfs/on_standby"),
            hold_timeout_ms=self._number(device, "ploopfs/hold_timeout_ms"),
            held=self._number(device, "ploopfs/held"),
            held_bytes=self._number(device, "ploopfs/held_bytes"),
            unflushed_bytes=self._number(device, "ploopfs/unflushed_bytes"),
            recovery=self._optional(device, "ploopfs/recovery"),
            agent=self._optional(device, "ploopfs/agent"),
            data_plane=self._optional(device, "ploopfs/data_plane"),
            connection=self._optional(device, "ploopfs/connection"),
        )

    def levels(self, device: str) -> list[Level]:
        """Base first. A flavour without pdelta has them in one file."""
        listed = self._optional(device, "ploopfs/deltas")
        if listed:
            return [self._level(device, line) for line in listed.split("\n")]
        try:
            names = os.listdir(self._attribute_path(device, "pdelta"))
        except FileNotFoundError:
            return []
        numbers = sorted(int(name) for name in names if _NUMBER.fullmatch(name))
        return [self._pdelta(device, f"pdelta/{number}") for number in numbers]

    def written_image(self, device: str) -> str | None:
        """The top image if the device writes to it and it can bear an in-use mark."""
        levels = self.levels(device)
        if not levels or self.attribute(device, "ro") == "1" or levels[-1].format == "raw":
            return None
        return levels[-1].path

    def _pdelta(self, device: str, directory: str) -> Level:
        path, read_only, form = (self.attribute(device, f"{directory}/{name}") for name in ("image", "ro", "format"))
        return Level(path, read_only == "1", form)

    def _level(self, device: str, line: str) -> Level:
        """`number path ro format`; the path may hold blanks."""
        found = _LEVEL.fullmatch(line)
        if found is None:
            raise BadTree(self._attribute_path(device, "ploopfs/deltas"), line, "NUMBER PATH 0|1 FORMAT")
        return Level(found[1], found[2] == "1", found[3])

    def _number(self, device: str, name: str) -> int:
        return int(self._matching(f"sys/block/{device}/{name}", self.attribute(device, name), _NUMBER, "a number"))

    def _seconds(self, device: str, text: str) -> float:
        name = f"sys/block/{device}/ploopfs/standby_since"
        return float(self._matching(name, text, _SECONDS, "a time in seconds"))

    def _matching(self, name: str, text: str, pattern: re.Pattern[str], expected: str) -> str:
        if pattern.fullmatch(text) is None:
            raise BadTree(self._path(name), text, expected)
        return text

    def _optional(self, device: str, name: str) -> str:
        """Empty where a device has no such attribute."""
        try:
            return self.attribute(device, name)
        except FileNotFoundError:
            return ""

    def attribute(self, device: str, name: str) -> str:
        """The value without its newline."""
        self.check_device(device)
        return self.read(f"sys/block/{device}/{name}")

    def store(self, device: str, name: str, value: str) -> None:
        """One write(2). Raises OSError with the errno of the store, its reason from `last_error` in the arguments; when
        it is interrupted the daemon goes on."""
        self.check_device(device)
        fd = os.open(self._attribute_path(device, name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            number = _errno_of_write(fd, os.fsencode(f"{value}\n"))
        except KeyboardInterrupt:
            print(f"ploopfs: {device}: the daemon goes on with it; `ploopfs watch` tells how it ends", file=sys.stderr)
            raise
        finally:
            os.close(fd)
        if number:
            raise OSError(number, self.attribute(device, "ploopfs/last_error") or os.strerror(number))

    def wait(self, device: str, name: str, reached: Callable[[str], bool], timeout_s: float | None) -> bool:
        """Wait by poll(2) until an attribute that notifies reads a wanted value; False if the time ran out."""
        self.check_device(device)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        fd = os.open(self._attribute_path(device, name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            poller = select.poll()
            poller.register(fd, select.POLLPRI | select.POLLERR)
            while not reached(os.fsdecode(os.pread(fd, 4096, 0)).rstrip("\n")):
                left_ms = None if deadline is None else max(0, deadline - time.monotonic()) * 1000
                if not poller.poll(left_ms) and left_ms is not None:
                    return False
        finally:
            os.close(fd)
        return True

    def unmount(self, timeout_s: float) -> bool:
        """Unmount, and wait until the daemon has closed its images; False if it is still at it. Raises MountError."""
        daemon = os.pidfd_open(self.pid)
        try:
            with self._without_connections():
                done = subprocess.run(
                    ["fusermount3", "-u", "--", self.mountpoint], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise MountError(f"{self.mountpoint}: {done.stderr.strip()}")
            poller = select.poll()
            poller.register(daemon, select.POLLIN)
            return bool(poller.poll(timeout_s * 1000))
        finally:
            os.close(daemon)

    @contextmanager
    def _without_connections(self) -> Iterator[None]:
        """Inside, no disk is mounted over its file: a mount with others in it cannot be unmounted. Raises MountError if
        one is in use. What was taken is put back if anything fails, whoever is to blame."""
        taken: list[str] = []
        try:
            for device in self.devices():
                if self._optional(device, "ploopfs/connection") in ("attached", "aborted"):
                    taken.append(device)
                    self._detach(device)
            yield
        except BaseException:
            for device in taken:
                with suppress(OSError):  # then the tree serves it, and an event says why
                    self._tell_connection(device, b"attach")
            raise

    def _detach(self, device: str) -> None:
        try:
            self._tell_connection(device, b"detach")
        except OSError as error:
            why = error.strerror if error.errno != errno.EBUSY else self.attribute(device, "ploopfs/last_error")
            raise MountError(f"{self.mountpoint}: {device}: {why}") from error

    def _tell_connection(self, device: str, word: bytes) -> None:
        """Takes seconds at most, so no child stands by for an interrupt: it comes when this has ended."""
        with open(self._attribute_path(device, "ploopfs/connection"), "wb", buffering=0) as file:
            file.write(word)

    def debug_path(self, device: str, name: str) -> str:
        """A file of the device's directory in debugfs."""
        self.check_device(device)
        return self._path(self._debug_name(device, name))

    def debug(self, device: str, name: str) -> str:
        """What it holds, without its newline."""
        self.check_device(device)
        return self.read(self._debug_name(device, name))

    @staticmethod
    def _debug_name(device: str, name: str) -> str:
        return f"sys/kernel/debug/ploopfs/{device}/{name}"

    def check_device(self, device: str) -> None:
        """Raises PloopError unless there is a device of that name."""
        if not device or "/" in device or device.startswith("."):
            raise BadValue(f"{device!r} is not a device name")
        if not os.path.lexists(self._path(f"sys/block/{device}")):
            known = ", ".join(self.devices()) or "none"
            raise NoSuchDevice(f"{device}: no such device in {self.mountpoint} (there: {known})")

    def _attribute_path(self, device: str, name: str) -> str:
        return self._path(f"sys/block/{device}/{name}")

    def read(self, name: str) -> str:
        """A file below the mountpoint, without its newline."""
        with open(self._path(name), "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise BadTree(self._path(name), "endless", f"at most {MAX_FILE_BYTES} bytes")
        return os.fsdecode(data).removesuffix("\n")

    def _path(self, name: str) -> str:
        return os.path.join(self.mountpoint, name)


def live_mounts() -> list[str]:
    """Where a tree is served that this user may look at; a dead one, or another user's, is in nobody's way."""
    return [place for place in ploopfs_mounts() if _is_live(place)]


def _is_live(place: str) -> bool:
    try:
        return inspect_mountpoint(place) is State.SERVING
    except MountError:
        return False


def _errno_of_write(fd: int, data: bytes) -> int:
    """0 if it was written. In a child: nothing, not even SIGKILL, ends a process whose request the daemon has already,
    and an operation may take an hour."""
    # An interrupt that comes within the fork would be lost in what Python does after one. The child keeps it blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    child = os.fork()
    if not child:
        number = errno.EIO
        try:
            os.setsid()  # the interrupt of a terminal is for the parent
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):  # whoever reads those of the parent does not wait for us
                os.dup2(null, stream)
            os.write(fd, data)
            number = 0
        except OSError as error:
            number = error.errno or number
        finally:
            os._exit(number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else errno.EIO
