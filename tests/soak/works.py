"""What is done to a daemon again and again, each as a generator: one step is one operation.

Every kind of operation that opens, registers, starts or keeps something is here. Knows nothing of how it is measured.
Invariant: an operation leaves the daemon as it found it, so that whatever is there afterwards was left behind.
"""

import itertools
import os
import select
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.mounted.daemon import Daemon, device, errno_of, opened, ploopfs, serving, until
from tests.mounted.disks import BLOCK_BYTES, Disk

VZ7_DEVICE, VZ9_DEVICE = "ploop0", "dm-0"
HANDLER = "sys/kernel/scst_tgt/handlers/vdisk_blockio/mgmt"


@dataclass(frozen=True, slots=True)
class Scene:
    """A daemon with a vz7 and a vz9 device. `tops` are two closed images that can take each other's place, by the name
    of the device; the first is in force."""

    daemon: Daemon
    tops: dict[str, list[Path]]
    place: Path

    def attribute(self, name: str, device: str = VZ7_DEVICE) -> str:
        return os.fspath(self.daemon.attribute(name, device))


Steps = Generator[None, None, None]
Work = Callable[[Scene], Steps]


def opens(scene: Scene) -> Steps:
    """Files of every kind. Most through a descriptor of the path (one request each to open, read and release), some by
    name (a lookup of every directory), some of directories."""
    names = ["queue/standby", "ploopfs/generation", "ploopfs/deltas", "stat", "size", "ploopfs/standby_reason"]
    paths = [scene.attribute(name) for name in names]
    paths += [scene.attribute("dm/suspended", VZ9_DEVICE), os.fspath(scene.daemon.disk())]
    paths += [os.fspath(scene.daemon.mountpoint / "sys/fs/ploopfs" / name) for name in ("events", "metrics")]
    directories = [os.fspath(scene.daemon.mountpoint / name) for name in ("sys/block/ploop0/queue", "dev", "proc")]
    held = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths]
    try:
        for number in itertools.count():
            if number % 64 == 63:
                os.listdir(directories[number // 64 % len(directories)])
            else:
                place = number % len(paths)
                path = paths[place] if number % 16 == 0 else f"/proc/self/fd/{held[place]}"
                with opened(Path(path), os.O_RDONLY) as fd:
                    if number % 4 == 0:
                        os.read(fd, 512)
            yield
    finally:
        for fd in held:
            os.close(fd)


def replaces(scene: Scene) -> Steps:
    """The top by another image and back; every other time as the first thing after a write."""
    with opened(scene.daemon.disk()) as fd, opened(Path(scene.attribute("ploopfs/replace_delta")), os.O_WRONLY) as file:
        for number in itertools.count():
            other = scene.tops[VZ7_DEVICE][1 - number % 2]
            if number % 4 < 2:
                os.pwrite(fd, b"w" * BLOCK_BYTES, 0)
            os.write(file, os.fsencode(other))
            yield


def reopens(scene: Scene) -> Steps:
    with opened(Path(scene.attribute("ploopfs/reopen")), os.O_WRONLY) as file:
        while True:
            os.write(file, b"1")
            yield


def standbys(scene: Scene) -> Steps:
    """Into standby by an error of the storage, and out of it by a reopen with something to replay."""
    rules = scene.daemon.mountpoint / f"sys/kernel/debug/ploopfs/{VZ7_DEVICE}/error_injection"
    with (
        opened(scene.daemon.disk()) as fd,
        opened(rules, os.O_WRONLY) as inject,
        opened(Path(scene.attribute("ploopfs/reopen")), os.O_WRONLY) as reopen,
        opened(Path(scene.attribute("queue/standby")), os.O_RDONLY) as standby,
    ):
        for number in itertools.count():
            errno = ("EBUSY", "ENOTCONN", "EIO")[number % 3]
            os.pwrite(fd, b"s" * BLOCK_BYTES, BLOCK_BYTES)
            os.write(inject, b"add,op=WRITE,errno=%s,count=1" % errno.encode())
            assert errno_of(os.pwrite, fd, b"x", 0) == errno
            assert os.pread(standby, 16, 0) == b"on\n"
            os.write(inject, b"removeall")
            os.write(reopen, b"1")
            assert os.pread(standby, 16, 0) == b"off\n"
            yield


def loads(scene: Scene) -> Steps:
    """Suspend, load a table with the other image, resume; sometimes load twice, or clear instead."""
    first, second = scene.tops[VZ9_DEVICE]
    line, _, _ = Path(scene.attribute("ploopfs/table", VZ9_DEVICE)).read_text().rstrip().rpartition(" ")
    with (
        opened(Path(scene.attribute("ploopfs/suspend", VZ9_DEVICE)), os.O_WRONLY) as suspend,
        opened(Path(scene.attribute("ploopfs/load", VZ9_DEVICE)), os.O_WRONLY) as load,
        opened(Path(scene.attribute("ploopfs/resume", VZ9_DEVICE)), os.O_WRONLY) as resume,
        opened(Path(scene.attribute("ploopfs/clear", VZ9_DEVICE)), os.O_WRONLY) as clear,
        opened(scene.daemon.disk(VZ9_DEVICE)) as fd,
    ):
        for number in itertools.count():
            table = os.fsencode(f"{line} {(second, first)[number % 2]}")
            os.pwrite(fd, b"l" * BLOCK_BYTES, 0)
            if number % 8 == 7:
                os.write(load, table)
                os.write(clear, b"1")
            os.write(suspend, b"flush")
            os.write(load, table)
            os.write(resume, b"flush")
            yield


def attachments(scene: Scene) -> Steps:
    """A device into SCST and out again; what appeared in the tree is looked at meanwhile, and looked for afterwards."""
    devices = scene.daemon.mountpoint / "sys/kernel/scst_tgt/devices"
    for number in itertools.count():
        with opened(scene.daemon.mountpoint / HANDLER, os.O_WRONLY) as manage:
            os.write(manage, b"add_device soak filename=/dev/xvda")
            if number % 8 == 0:
                for path in devices.glob("soak/*"):
                    path.lstat()
            os.write(manage, b"del_device soak")
        assert not (devices / "soak").exists()
        yield


def failures(scene: Scene) -> Steps:
    """Control writes that are refused: some at once, some after a file was opened, some after a map was read."""
    bad = scene.place / "bad.hds"
    bad.write_bytes(b"not an image" * 1000)
    other = scene.tops[VZ9_DEVICE][1]
    refused = [
        ("ploopfs/replace_delta", VZ7_DEVICE, "/nowhere/top.hds", "ENOENT"),
        ("ploopfs/replace_delta", VZ7_DEVICE, os.fspath(bad), "EINVAL"),
        ("ploopfs/replace_delta", VZ7_DEVICE, f"level=7 {other}", "ENOENT"),
        ("ploopfs/on_standby", VZ7_DEVICE, "maybe", "EINVAL"),
        ("ploopfs/hold_timeout_ms", VZ7_DEVICE, "-1", "EINVAL"),
        ("ploopfs/load", VZ9_DEVICE, "0 8 ploop 11 /nowhere", None),
        ("ploopfs/load", VZ9_DEVICE, "nonsense", "EINVAL"),
        ("queue/nomerges", VZ7_DEVICE, "many", "EINVAL"),
    ]
    for number in itertools.count():
        name, of, text, errno = refused[number % len(refused)]
        said = errno_of(scene.daemon.store, name, text, of)
        assert said == errno or (errno is None and said != "success"), (name, text, said)
        yield


def polls(scene: Scene) -> Steps:
    """Descriptors that the kernel is asked to wait on, and that are closed while it does."""
    paths = [scene.attribute(name) for name in ("queue/standby", "ploopfs/held", "ploopfs/generation")]
    paths.append(os.fspath(scene.daemon.mountpoint / "sys/fs/ploopfs/events"))
    held = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths]
    try:
        for number in itertools.count():
            with opened(Path(f"/proc/self/fd/{held[number % len(held)]}"), os.O_RDONLY) as fd:
                while os.read(fd, 1 << 16) and number % len(held) == len(held) - 1:
                    pass
                with select.epoll() as poller:
                    poller.register(fd, select.EPOLLPRI | select.EPOLLET)
                    poller.poll(0)
            yield
    finally:
        for fd in held:
            os.close(fd)


def streams(scene: Scene) -> Steps:
    """Readers of the events that go away before they have read them all, with half a record left."""
    path = scene.daemon.mountpoint / "sys/fs/ploopfs/events"
    with opened(path, os.O_PATH) as held:
        for number in itertools.count():
            with opened(Path(f"/proc/self/fd/{held}"), os.O_RDONLY) as fd:
                os.read(fd, 1 + number % 5000)
            yield


WORKS: dict[str, tuple[int, Work, str]] = {
    "opens": (1_000_000, opens, "files and directories opened, some read, and closed"),
    "replaces": (100_000, replaces, "replace_delta with another image"),
    "reopens": (10_000, reopens, "reopen"),
    "standbys": (100_000, standbys, "standby entered by an error, and left by a reopen with a replay"),
    "loads": (10_000, loads, "vz9: suspend, load, resume with another image"),
    "attachments": (10_000, attachments, "SCST add_device and del_device"),
    "failures": (100_000, failures, "control writes that fail"),
    "polls": (100_000, polls, "polls registered and closed"),
    "streams": (100_000, streams, "readers of the events opened and dropped"),
}
"""What the long run does: how often, what, and in words."""


def _is_dead(mountpoint: Path) -> bool:
    return errno_of(mountpoint.stat) == "ENOTCONN"


def mounts(place: Path, disk: Disk) -> Steps:
    """A daemon, a write, an end: by a signal, by umount, by death and --replace-stale."""
    closed = disk.top.read_bytes()
    options: list[str] = []
    for number in itertools.count():
        with serving(place, device(disk.directory), options=["--log-level", "error", *options]) as daemon:
            options = []
            with opened(daemon.disk()) as fd:
                os.pwrite(fd, b"m" * BLOCK_BYTES, 0)
            match number % 10:
                case 0:
                    daemon.process.kill()
                    daemon.wait()
                    until(partial(_is_dead, daemon.mountpoint), "the mountpoint is dead")
                    options = ["--replace-stale"]
                    disk.top.write_bytes(closed)
                case 1:
                    assert ploopfs("umount", daemon.mountpoint).returncode == 0
                case _:
                    assert daemon.end() == 0
        yield
