"""Another process takes an image in the moment in which its lock goes from one open file of ours to another."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ploopfs.engine import lock
from ploopfs.errors import ImageLocked
from tests.mounted.daemon import HANG_S, errno_of, opened, serving, until
from tests.mounted.disks import assert_closed, make_disk
from tests.mounted.flavours import VZ7, VZ9, Kind, Served, name_of
from tests.mounted.writer import Writer

pytestmark = pytest.mark.real

REOPENS = {"recovery": {"reopen": True, "probe": False, "backoff_s": 0.1, "backoff_max_s": 0.1}}


def reopen(served: Served) -> None:
    served.store("ploopfs/reopen", "1")


def load_and_clear(served: Served) -> None:
    served.store("ploopfs/clear", "1")


def has_lock(fd: int, top: Path) -> bool:
    try:
        lock.claim(fd, str(top), writable=True)
    except ImageLocked:
        return False
    return True


@contextmanager
def stolen(served: Served, top: Path, hand_over: Callable[[Served], None]) -> Iterator[str]:
    """Inside, somebody else has the image; the errno that the operation got."""
    rules = served.daemon.mountpoint / f"sys/kernel/debug/ploopfs/{served.name}/error_injection"
    if hand_over is load_and_clear:
        served.store("ploopfs/load", served.value("ploopfs/table"))
    rules.write_text("add,op=LOCK,hang,count=1\n")
    with ThreadPoolExecutor(1) as threads, opened(top) as fd:
        answer = threads.submit(errno_of, hand_over, served)
        until(lambda: has_lock(fd, top), "nobody of us has the lock")
        rules.write_text("removeall\n")
        yield answer.result(HANG_S)


@pytest.mark.parametrize(
    ("kind", "hand_over", "answer"),
    [(VZ7, reopen, "EBUSY"), (VZ9, reopen, "EBUSY"), (VZ9, load_and_clear, "success")],
    ids=name_of,
)
def test_a_device_whose_lock_is_taken_stands_by_and_its_agent_comes_when_it_is_free(
    tmp_path: Path, kind: Kind, hand_over: Callable[[Served], None], answer: str
) -> None:
    disk = make_disk(tmp_path / "disk", depth=2)
    with serving(tmp_path, kind.configured(disk.directory, **REOPENS)) as daemon:
        served = kind.of(daemon)
        with opened(served.disk) as fd:
            writer = Writer(fd, disk)
            writer.write(40)
            with stolen(served, disk.top, hand_over) as got:
                assert (got, served.value("queue/standby")) == (answer, "on")
                level = f"offset=0 length=0 level=1 file={disk.top}"
                assert served.value("ploopfs/standby_reason") == f"errno=EBUSY operation=lock {level}"
                assert writer.errno_of_write() == "EIO"
                held = f"lock is held by {Path(os.readlink('/proc/self/exe')).name} (pid {os.getpid()})"
                until(lambda: held in served.value("ploopfs/last_error"), "the agent was refused")
                before = disk.top.read_bytes()
                assert writer.errno_of_write() == "EIO"
                assert disk.top.read_bytes() == before, "it is written by nobody of us"
            until(lambda: served.value("queue/standby") == "off", "the agent has recovered it")
            writer.write(40)
            writer.assert_all_there()
        assert daemon.end() == 0
    assert_closed(disk.top)


def test_aborted_is_not_cleared_by_hand_until_the_image_is_opened_again(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", depth=2)
    with serving(tmp_path, VZ7.configured(disk.directory, standby=False)) as daemon:
        served = VZ7.of(daemon)
        with opened(served.disk) as fd:
            writer = Writer(fd, disk)
            writer.write(40)
            with stolen(served, disk.top, reopen):
                assert (served.value("queue/standby"), served.value("pstate/aborted")) == ("not supported", "1")
                assert errno_of(served.store, "pstate/aborted", "0") == "EBUSY"
            assert errno_of(served.store, "pstate/aborted", "0") == "EBUSY"
            told = f"aborted: {disk.top}: its lock was lost, somebody else may have written it: reopen the image"
            assert served.value("ploopfs/last_error") == told
            assert writer.errno_of_write() == "EIO"
            reopen(served)
            assert served.value("pstate/aborted") == "0"
            writer.write(40)
            writer.assert_all_there()
        assert daemon.end() == 0
    assert_closed(disk.top)


def test_who_is_attached_after_its_lock_was_taken_is_recovered_then(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", depth=2)
    with serving(tmp_path, VZ7.configured(disk.directory, standby=False, **REOPENS)) as daemon:
        served = VZ7.of(daemon)
        with opened(served.disk) as fd:
            writer = Writer(fd, disk)
            writer.write(40)
            with stolen(served, disk.top, reopen):
                assert writer.errno_of_write() == "EIO"
                mgmt = daemon.mountpoint / "sys/kernel/scst_tgt/handlers/vdisk_blockio/mgmt"
                mgmt.write_text("add_device ploop0 filename=/dev/ploop0\n")
                assert served.value("queue/standby") == "on"
            until(lambda: served.value("queue/standby") == "off", "the agent has recovered it")
            writer.write(40)
            writer.assert_all_there()
        assert daemon.end() == 0
    assert_closed(disk.top)
