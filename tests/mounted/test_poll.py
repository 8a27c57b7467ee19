"""poll(2), epoll(7) and select(2) on attributes: who watches a value is woken by every change, however he waits."""

import os
import select
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.daemon import HANG_S, HOLD_MS, errno_of, is_polling, opened, serving, until
from tests.mounted.disks import MIB, make_disk
from tests.mounted.flavours import KINDS, VZ7, VZ9, Kind, Served, name_of
from tests.mounted.storage import Bindfs

pytestmark = pytest.mark.real

OF_STANDBY = frozenset({"queue/standby", "ploopfs/standby_reason", "ploopfs/standby_since", "ploopfs/held"})
"""What both edges of an outage change while somebody is held."""


@dataclass(frozen=True, slots=True)
class Scene:
    bindfs: Bindfs
    served: Served
    disk: int

    def lose(self) -> None:
        self.bindfs.kill()
        assert errno_of(os.pwrite, self.disk, b"x", 0) != "success"

    def recover(self) -> None:
        self.bindfs.remount()
        self.served.store("ploopfs/reopen", "1")


@contextmanager
def scene(
    place: Path, bindfs: Bindfs, kind: Kind = VZ7, *, loaded: bool = True, policy: str = "fail"
) -> Iterator[Scene]:
    make_disk(bindfs.bricks / "disk", size_bytes=16 * MIB)
    configured = kind.configured(bindfs.path / "disk", on_standby=policy, hold_timeout_ms=HOLD_MS)
    with serving(place, configured, loaded=loaded) as daemon, opened(daemon.disk(kind.device)) as disk:
        yield Scene(bindfs, kind.of(daemon), disk)


class Watched:
    """Attributes in one epoll; each is read when it is reported, as a program that watches them does."""

    def __init__(self, served: Served, names: frozenset[str], closing: ExitStack, flags: int = 0) -> None:
        self._epoll = closing.enter_context(select.epoll())
        self._names: dict[int, str] = {}
        for name in names:
            fd = closing.enter_context(opened(served.attribute(name), os.O_RDONLY))
            self._names[fd] = name
            self._read(fd)
            self._epoll.register(fd, select.EPOLLPRI | flags)

    def reported(self, timeout_s: float) -> dict[str, str]:
        """The new values."""
        ready = self._epoll.poll(timeout_s)
        assert all(events & select.EPOLLPRI for _, events in ready)
        return {self._names[fd]: self._read(fd) for fd, _ in ready}

    def wait_for(self, names: frozenset[str]) -> dict[str, str]:
        """Until each of these has been reported; the last value of each."""
        values: dict[str, str] = {}
        while not names <= values.keys():
            news = self.reported(HANG_S)
            assert news, f"only {values} in time"
            values.update(news)
        return values

    @staticmethod
    def _read(fd: int) -> str:
        return os.pread(fd, 4096, 0).decode()


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_every_attribute_that_an_outage_changes_reports_both_edges(tmp_path: Path, bindfs: Bindfs, kind: Kind) -> None:
    with (
        scene(tmp_path, bindfs, kind, policy="hold") as one,
        ThreadPoolExecutor(1) as thread,
        ExitStack() as closing,
    ):
        watched = Watched(one.served, OF_STANDBY | {"ploopfs/generation"}, closing)
        for generation in range(2, 4):
            assert watched.reported(0) == {}
            bindfs.kill()
            write = thread.submit(os.pwrite, one.disk, b"x", 0)
            values = watched.wait_for(OF_STANDBY)
            assert [values["queue/standby"], values["ploopfs/held"]] == ["on\n", "1\n"]
            assert values["ploopfs/standby_reason"].startswith("errno=ENOTCONN ")
            assert float(values["ploopfs/standby_since"]) > 0
            one.recover()
            values = watched.wait_for(OF_STANDBY | {"ploopfs/generation"})
            assert [values["queue/standby"], values["ploopfs/held"]] == ["off\n", "0\n"]
            assert [values["ploopfs/standby_reason"], values["ploopfs/standby_since"]] == ["", ""]
            assert values["ploopfs/generation"] == f"{generation}\n"
            assert write.result() == 1


def test_the_aborted_state_reports_both_edges(tmp_path: Path, bindfs: Bindfs) -> None:
    with scene(tmp_path, bindfs, loaded=False) as one, ExitStack() as closing:
        name = "pstate/aborted"
        watched = Watched(one.served, frozenset({name}), closing)
        assert watched.reported(0) == {}
        one.lose()
        assert watched.wait_for(frozenset({name})) == {name: "1\n"}
        one.served.store(name, "0")
        assert watched.wait_for(frozenset({name})) == {name: "0\n"}
        one.served.store(name, "0")
        assert watched.reported(0) == {}, "nothing has changed"


def test_the_suspended_state_reports_both_edges(tmp_path: Path, bindfs: Bindfs) -> None:
    with scene(tmp_path, bindfs, VZ9) as one, ExitStack() as closing:
        name = "dm/suspended"
        watched = Watched(one.served, frozenset({name}), closing)
        for control, value in (("suspend", "1\n"), ("resume", "0\n")):
            assert watched.reported(0) == {}
            one.served.store(f"ploopfs/{control}", "noflush")
            assert watched.wait_for(frozenset({name})) == {name: value}


def test_what_was_never_read_is_reported_at_once(tmp_path: Path, bindfs: Bindfs) -> None:
    with (
        scene(tmp_path, bindfs) as one,
        opened(one.served.attribute("queue/standby"), os.O_RDONLY) as fd,
        select.epoll() as epoll,
    ):
        epoll.register(fd, select.EPOLLPRI)
        [(_, events)] = epoll.poll(HANG_S)
        assert events & select.EPOLLPRI
        assert os.pread(fd, 100, 0) == b"off\n"
        assert epoll.poll(0) == []


def test_a_change_between_reading_and_waiting_is_not_missed(tmp_path: Path, bindfs: Bindfs) -> None:
    with scene(tmp_path, bindfs) as one, opened(one.served.attribute("queue/standby"), os.O_RDONLY) as fd:
        assert os.pread(fd, 100, 0) == b"off\n"
        one.lose()
        waiting = select.poll()
        waiting.register(fd, select.POLLPRI)
        [(_, events)] = waiting.poll(HANG_S * 1000)
        assert events & select.POLLPRI
        one.recover()
        # Two changes since the last read are a change, even though the value is as it was.
        [(_, events)] = waiting.poll(0)
        assert events & select.POLLPRI
        assert os.pread(fd, 100, 0) == b"off\n"
        assert waiting.poll(0) == []


@pytest.mark.parametrize("flag", [select.EPOLLET, select.EPOLLONESHOT], ids=["edge-triggered", "one-shot"])
def test_who_wants_each_change_once_gets_each_once(tmp_path: Path, bindfs: Bindfs, flag: int) -> None:
    with (
        scene(tmp_path, bindfs) as one,
        opened(one.served.attribute("queue/standby"), os.O_RDONLY) as fd,
        select.epoll() as epoll,
    ):
        assert os.pread(fd, 100, 0) == b"off\n"
        epoll.register(fd, select.EPOLLPRI | flag)
        for change, value in ((one.lose, b"on\n"), (one.recover, b"off\n")):
            change()
            assert len(epoll.poll(HANG_S)) == 1
            assert epoll.poll(0) == [], "reported once, though it has not been read"
            assert os.pread(fd, 100, 0) == value
            epoll.modify(fd, select.EPOLLPRI | flag)
            assert epoll.poll(0) == []


def test_each_descriptor_has_its_own_news(tmp_path: Path, bindfs: Bindfs) -> None:
    path = "queue/standby"
    with (
        scene(tmp_path, bindfs) as one,
        opened(one.served.attribute(path), os.O_RDONLY) as first,
        opened(one.served.attribute(path), os.O_RDONLY) as second,
    ):
        assert [os.pread(fd, 100, 0) for fd in (first, second)] == [b"off\n"] * 2
        one.lose()
        for news in ([first, second], [second], []):
            # select(2) calls it an exceptional condition; of what has happened already it tells without a timeout.
            assert select.select([], [], [first, second], 0)[2] == news
            if news:
                assert os.pread(news[0], 100, 0) == b"on\n"


def test_whoever_waits_is_woken_in_whatever_way_he_waits(tmp_path: Path, bindfs: Bindfs) -> None:
    """All of them are blocked in the kernel before anything happens."""
    with (
        scene(tmp_path, bindfs) as one,
        ExitStack() as closing,
        ThreadPoolExecutor(3) as threads,
    ):
        fds = [closing.enter_context(opened(one.served.attribute("queue/standby"), os.O_RDONLY)) for _ in range(3)]
        assert {os.pread(fd, 100, 0) for fd in fds} == {b"off\n"}
        epoll = closing.enter_context(select.epoll())
        epoll.register(fds[0], select.EPOLLPRI)
        poll = select.poll()
        poll.register(fds[1], select.POLLPRI)
        waits = [
            threads.submit(lambda: epoll.poll(HANG_S)[0][0]),
            threads.submit(lambda: poll.poll(HANG_S * 1000)[0][0]),
            threads.submit(lambda: select.select([], [], [fds[2]], HANG_S)[2][0]),
        ]
        until(lambda: sum(map(is_polling, Path("/proc/self/task").iterdir())) >= len(waits), "everybody waits")
        assert not any(wait.done() for wait in waits)
        one.lose()
        assert [wait.result() for wait in waits] == fds
        assert {os.pread(fd, 100, 0) for fd in fds} == {b"on\n"}


def test_a_watcher_is_woken_when_the_daemon_dies(tmp_path: Path, bindfs: Bindfs) -> None:
    with (
        scene(tmp_path, bindfs) as one,
        opened(one.served.attribute("queue/standby"), os.O_RDONLY) as fd,
        ThreadPoolExecutor(1) as thread,
    ):
        assert os.pread(fd, 100, 0) == b"off\n"
        waiting = select.poll()
        waiting.register(fd, select.POLLPRI)
        wait = thread.submit(waiting.poll, HANG_S * 1000)
        one.served.daemon.process.kill()
        [(_, events)] = wait.result()
        assert events & select.POLLERR
        assert errno_of(os.pread, fd, 100, 0) == "ENOTCONN"
