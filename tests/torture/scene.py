"""A disk on a store that fails, served by a daemon that comes and goes, and the ways in which it is recovered.

Knows nothing of who uses the disk. Invariant: whatever was done to it, at each clean end the image is sound, the lower
deltas are what they were, and QEMU reads in the closed stack what the users have noted.
"""

import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import TypeVar

from ploopfs.engine.create import snapshot_disk
from tests.mounted.daemon import HANG_S, Daemon, errno_of, opened, ploopfs, serving
from tests.mounted.disks import MIB, Disk, assert_closed, by_qemu, is_marked, make_disk, sums
from tests.mounted.flavours import Recover, Served, replaced
from tests.mounted.planes import carried_by
from tests.torture.setting import Setting, Store

DESCRIPTOR = "DiskDescriptor.xml"
ASK_AGAIN_MS = 20
LAST_EVENTS = 20

S = TypeVar("S")


class Scene:
    """`disk` names the files behind the store's back. Made by `scene`."""

    def __init__(self, place: Path, store: Store, disk: Disk, setting: Setting) -> None:
        self.place, self.store, self.disk, self.setting = place, store, disk, setting
        self.copies = 0
        self._daemon: Daemon | None = None
        self._running = ExitStack()

    @property
    def daemon(self) -> Daemon:
        assert self._daemon is not None
        return self._daemon

    @property
    def served(self) -> Served:
        return self.setting.kind.of(self.daemon)

    @property
    def top(self) -> Path:
        """As the daemon has been told it."""
        return self.store.path / self.disk.top.relative_to(self.store.bricks)

    @property
    def _home(self) -> Path:
        """Where the descriptor has the top."""
        return self.top.with_name(self.top.name.rpartition("-of-")[2])

    def store_as(self, kind: type[S]) -> S:
        """For what only such a store can do."""
        assert isinstance(self.store, kind)
        return self.store

    def _brick(self, path: Path) -> Path:
        return self.store.bricks / path.relative_to(self.store.path)

    # The daemon.

    def serve(self) -> None:
        assert self._daemon is None
        if is_marked(self.disk.top):
            # The locks of this store are its mount's alone: only who killed the daemon knows that nobody has the image.
            repaired = ploopfs("check", "--repair", self.top)
            assert repaired.returncode == 0, repaired.stdout + repaired.stderr
        configured, options = self.setting.configured(self.top.parent), carried_by(self.setting.plane)
        self._daemon = self._running.enter_context(
            serving(self.place, configured, options=options, shutdown_deadline_s=HANG_S)
        )
        assert self.served.value("ploopfs/data_plane") == self.setting.plane

    def end(self, *, compare: bool) -> None:
        """Ask the daemon to; `compare` where what the users have noted is all that was written."""
        self.daemon.process.terminate()
        self.ended(compare=compare)

    def ended(self, *, compare: bool) -> None:
        """Somebody has asked it to."""
        assert self.daemon.wait() == 0, self.daemon.log
        self._gone()
        assert_closed(self.disk.top)
        assert sums(self.disk.deltas[:-1]) == self.disk.lower_sums
        if compare:
            self._assert_content(by_qemu(self.disk.deltas, self.place / "raw"))

    def kill(self) -> None:
        self.daemon.process.kill()
        self.killed()

    def killed(self) -> None:
        """What it had acknowledged, the store has; the image was not closed, and is put right before the next one."""
        assert self.daemon.wait() == -signal.SIGKILL
        self._gone()

    def snapshot(self) -> None:
        """While nobody serves it."""
        _, path = snapshot_disk(str(self.disk.directory / DESCRIPTOR))
        self.disk.deltas.append(Path(path))
        self.disk.lower_sums = sums(self.disk.deltas[:-1])

    def assert_disk(self) -> None:
        """While nobody writes."""
        with opened(self.served.disk, os.O_RDONLY) as fd:
            self._assert_content(b"".join(iter(lambda: os.read(fd, MIB), b"")))

    def adopt(self) -> None:
        """Whoever used the disk has compared it himself: its closed image has to hold that."""
        self.disk.content[:] = self.served.disk.read_bytes()

    def _assert_content(self, found: bytes) -> None:
        """The difference of two disks is no message."""
        expected = self.disk.content
        assert len(found) == len(expected)
        for start in range(0, len(expected), MIB):
            piece = slice(start, start + MIB)
            if found[piece] != expected[piece]:
                first = next(at for at in range(start, len(found)) if found[at] != expected[at])
                raise AssertionError(f"the disk differs from byte {first} on")

    def told(self) -> str:
        """Where it is, for who finds out what went wrong."""
        if self._daemon is None or self._daemon.process.poll() is not None:
            return "no daemon"
        ours = ("held", "parked", "aborted", "generation", "agent")
        names = ("queue/standby", "inflight", *(f"ploopfs/{name}" for name in ours))
        values = [f"{name}: {self.served.value(name)}" for name in names]
        events = [str(event) for event in self.daemon.events()[-LAST_EVENTS:]]
        return "\n".join([str(self.setting), *values, *events, self.daemon.log])

    def close(self) -> None:
        """Whatever became of it."""
        self._running.close()

    def _gone(self) -> None:
        log = self.daemon.log
        assert "Traceback" not in log, log
        self._daemon = None
        self._running.close()
        if self.top != self._home:
            self.top.rename(self._home)
            kept(self._brick(self._home))
            self.disk.deltas[-1] = self._brick(self._home)

    def inject(self, command: str) -> None:
        rules = self.daemon.mountpoint / "sys/kernel/debug/ploopfs" / self.setting.kind.device / "error_injection"
        with opened(rules, os.O_WRONLY) as fd:
            os.write(fd, command.encode())

    # Standby.

    def pause(self, seconds: float) -> None:
        select.poll().poll(seconds * 1000)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Where nothing reports."""
        pause, deadline = select.poll(), time.monotonic() + HANG_S
        while not condition():
            assert time.monotonic() < deadline, f"not in {HANG_S} s: {what}"
            pause.poll(ASK_AGAIN_MS)

    def wait_standby(self, over: Callable[[], bool] = lambda: False) -> None:
        """Or until there is nobody left who could meet the fault."""
        with opened(self.served.attribute("queue/standby"), os.O_RDONLY) as fd:
            poller, deadline = select.poll(), time.monotonic() + HANG_S
            poller.register(fd, select.POLLPRI)
            while os.pread(fd, 100, 0) != b"on\n" and not over():
                assert time.monotonic() < deadline, "no standby"
                poller.poll(ASK_AGAIN_MS)

    def ask_store(self) -> str:
        """What the store answers, which whoever has the disk is told."""
        with opened(self.served.disk) as fd:
            return errno_of(os.fsync, fd)

    def wait_in_flight(self) -> None:
        self.wait(lambda: self.served.value("inflight").split() != ["0", "0"], "a request in flight")

    def is_in_standby(self) -> bool:
        return self.served.value("queue/standby") == "on"

    @contextmanager
    def agent_paused(self) -> Iterator[None]:
        """Inside, only an operator recovers it."""
        if self.setting.agent:
            self.served.store("ploopfs/agent", "pause")
        yield
        if self.setting.agent:
            self.served.store("ploopfs/agent", "resume")

    def try_to_recover(self, random: Random) -> str:
        """By an operator, while the store may still be gone: the errno."""
        return errno_of(random.choice(self.setting.kind.recoveries), self.served, self.top)

    def recover(self, random: Random) -> None:
        """With the store back: by the agent, or by an operator at the first attempt, with the image itself or a copy of
        what the bricks have."""
        if self.setting.agent and random.random() < 0.5:
            self.wait(lambda: not self.is_in_standby(), "the agent recovers it")
            return
        recover: Recover = random.choice((*self.setting.kind.recoveries, self._replaced_by_a_copy))
        with self.agent_paused():
            # A copy of what somebody writes to is none.
            if self.is_in_standby():
                recover(self.served, self.top)
                assert not self.is_in_standby()

    def _replaced_by_a_copy(self, served: Served, _top: Path) -> None:
        old, self.copies = self.top, self.copies + 1
        copy = self._home.with_name(f"copy-{self.copies}-of-{self._home.name}")
        shutil.copyfile(self._brick(old), self._brick(copy))
        kept(self._brick(copy))
        replaced(served, copy)
        self.disk.deltas[-1] = self._brick(copy)
        old.unlink()


def kept(path: Path) -> None:
    """Its bytes and its name: what is ours to keep is not what a store without power may lose."""
    for each in (path, path.parent):
        with opened(each, os.O_RDONLY) as fd:
            os.fsync(fd)


@contextmanager
def scene(place: Path, setting: Setting) -> Iterator[Scene]:
    """Served, and at the end as the module says."""
    with setting.stored(place) as store:
        disk = make_disk(store.bricks / "disk", depth=setting.depth, size_bytes=setting.size_bytes)
        running = Scene(place, store, disk, setting)
        try:
            running.serve()
            yield running
            running.end(compare=True)
        finally:
            running.close()
