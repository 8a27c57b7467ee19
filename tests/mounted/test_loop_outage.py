"""A file system on a loop device, over a store that dies under a writer and comes back.

With `hold` the file system never notices. With `fail` it gives up at the first failed write of its journal, and needs
umount, repair and mount: such a consumer wants `hold`.
"""

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.mounted.blocks import EXT4, XFS, FileSystem, looped, mounted, run
from tests.mounted.daemon import HANG_S, HOLD_MS, errno_of, opened, serving, until
from tests.mounted.disks import assert_closed, make_disk
from tests.mounted.flavours import KINDS, Kind, Served, name_of
from tests.mounted.storage import Bindfs
from tests.realparts import need

pytestmark = pytest.mark.real

FILES = 15
"""How many files are written before the outage, and at least after it."""


class FileWriter:
    """Makes files, each durable before the next, in directories that come and go; notes the durable ones."""

    def __init__(self, place: Path) -> None:
        self.durable: dict[Path, bytes] = {}
        self._place = place
        self._stopping = False
        self._made = threading.Condition()

    def work(self) -> None:
        random, number = Random(11), 0
        while not self._stopping:
            number += 1
            path = Path(f"d{number % 5}", f"f{number}")
            content = random.randbytes(random.choice((1, 4096, 50_000, 200_000)))
            (self._place / path.parent).mkdir(exist_ok=True)
            write_durably(self._place / path, content)
            with self._made:
                self.durable[path] = content
                self._made.notify_all()

    def wait_files(self, count: int) -> None:
        """Until that many more are durable."""
        with self._made:
            aim = len(self.durable) + count
            assert self._made.wait_for(lambda: len(self.durable) >= aim, HANG_S), f"{len(self.durable)} of {aim}"

    def stop(self) -> None:
        self._stopping = True

    def assert_all_there(self, place: Path) -> None:
        for path, content in self.durable.items():
            assert (place / path).read_bytes() == content, path


def write_durably(path: Path, content: bytes) -> None:
    """Under another name first, as careful programs do."""
    unfinished = path.with_suffix(".new")
    with opened(unfinished, os.O_RDWR | os.O_CREAT) as fd:
        assert os.write(fd, content) == len(content)
        os.fsync(fd)
    unfinished.rename(path)
    fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


@contextmanager
def writing(place: Path) -> Iterator[FileWriter]:
    writer = FileWriter(place)
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(writer.work)
        try:
            yield writer
        finally:
            writer.stop()
        work.result()


@contextmanager
def disk_on(bindfs: Bindfs, place: Path, kind: Kind, system: FileSystem, policy: str) -> Iterator[Served]:
    """A device with a file system, on a store; at the end the image is sound."""
    need(commands=("losetup", system.make[0], system.check[0]), loop=True, file_systems=(system.name,))
    disk = make_disk(bindfs.bricks / "disk", depth=2, size_bytes=system.disk_bytes)
    configured = kind.configured(bindfs.path / "disk", on_standby=policy, hold_timeout_ms=HOLD_MS)
    with serving(place, configured) as daemon:
        run(*system.make, daemon.disk(kind.device))
        yield kind.of(daemon)
        assert daemon.end() == 0
    assert_closed(disk.top)


def recover(bindfs: Bindfs, served: Served) -> None:
    bindfs.remount()
    served.store("ploopfs/reopen", "1")
    assert served.value("queue/standby") == "off"


def is_writable(place: Path) -> bool:
    return errno_of((place / "probe").touch) == "success"


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("system", [EXT4, XFS], ids=lambda system: system.name)
def test_with_hold_the_file_system_never_notices_an_outage(
    tmp_path: Path, bindfs: Bindfs, kind: Kind, system: FileSystem
) -> None:
    with disk_on(bindfs, tmp_path, kind, system, "hold") as served:
        with (
            looped(served.disk, direct_io=True) as loop,
            mounted(loop, tmp_path / "fs") as place,
            writing(place) as writer,
        ):
            writer.wait_files(FILES)
            bindfs.kill()
            until(lambda: served.value("ploopfs/held") != "0", "the writer's requests held")
            durable = len(writer.durable)
            assert errno_of(served.store, "ploopfs/reopen", "1") == "ENOTCONN"
            assert len(writer.durable) <= durable + 1, "an fsync came back while the store was dead"
            recover(bindfs, served)
            writer.wait_files(FILES)
            assert is_writable(place)
            assert system.complaints(loop) == 0
        run(*system.check, served.disk)
        with looped(served.disk, direct_io=True) as loop, mounted(loop, tmp_path / "fs") as place:
            writer.assert_all_there(place)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_with_fail_the_journal_aborts_and_only_umount_repair_and_mount_help(
    tmp_path: Path, bindfs: Bindfs, kind: Kind
) -> None:
    with disk_on(bindfs, tmp_path, kind, EXT4, "fail") as served:
        with looped(served.disk, direct_io=True) as loop, mounted(loop, tmp_path / "fs") as place:
            write_durably(place / "durable", b"before the outage")
            bindfs.kill()
            (place / "lost").mkdir()
            assert errno_of(fsync_directory, place) == "EIO"
            assert served.value("queue/standby") == "on"
            recover(bindfs, served)
            assert not is_writable(place)
            assert not served.value("ploopfs/standby_reason")
        repaired = subprocess.run(["e2fsck", "-f", "-y", served.disk], capture_output=True, text=True, check=False)
        assert repaired.returncode in (0, 1), repaired.stdout + repaired.stderr
        with looped(served.disk, direct_io=True) as loop, mounted(loop, tmp_path / "fs") as place:
            assert (place / "durable").read_bytes() == b"before the outage"
            assert is_writable(place)
