"""A replace that is refused: the shell sees the errno, `last_error` says why, and the device stays as it was."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ploopfs.engine.create import create_image
from ploopfs.image.header import V1, V2, Header, Version
from tests.mounted.daemon import Daemon, device, errno_of, opened, serving
from tests.mounted.disks import CLUSTER_BYTES, Disk, assert_closed, make_disk
from tests.mounted.storage import store
from tests.mounted.writer import Writer

pytestmark = pytest.mark.real

SIZE_SECTORS = 64 << 11
CLUSTER_SECTORS = CLUSTER_BYTES >> 9


def image(path: Path, *, sectors: int = SIZE_SECTORS, cluster: int = CLUSTER_SECTORS, version: Version = V2) -> Path:
    create_image(str(path), size_sectors=sectors, cluster_sectors=cluster, version=version)
    return path


# Each makes, in a directory of its own beside `places`, a top that is none.


def nothing(place: Path, _places: Path) -> Path:
    return place / "nowhere.hds"


def other_cluster(place: Path, _places: Path) -> Path:
    return image(place / "other.hds", cluster=2 * CLUSTER_SECTORS)


def other_version(place: Path, _places: Path) -> Path:
    return image(place / "other.hds", version=V1)


def smaller(place: Path, _places: Path) -> Path:
    return image(place / "other.hds", sectors=SIZE_SECTORS // 2)


def not_closed(place: Path, _places: Path) -> Path:
    path = image(place / "other.hds")
    header = Header.parse(path.read_bytes()[:64], str(path)).marked_in_use()
    with opened(path) as fd:
        os.pwrite(fd, header.raw, 0)
    return path


def of_another_device(_place: Path, places: Path) -> Path:
    return places / "second" / "root.hds"


def directory(place: Path, _places: Path) -> Path:
    return place


def no_image(place: Path, _places: Path) -> Path:
    path = place / "other.hds"
    path.write_text("no image " * 100)
    return path


def relative(_place: Path, _places: Path) -> Path:
    return Path("top.hds")


def on_the_dead_store(_place: Path, places: Path) -> Path:
    return places / "store" / "disk" / "root.hds"


REFUSED: tuple[tuple[Callable[[Path, Path], Path], str, str, str], ...] = (
    (nothing, "ENOENT", "No such file or directory", "open: ENOENT"),
    (other_cluster, "EINVAL", "Invalid argument", "m_Sectors is 256"),
    (other_version, "EINVAL", "Invalid argument", "version"),
    (smaller, "EINVAL", "Invalid argument", "expected"),
    (not_closed, "EBUSY", "Device or resource busy", "not closed"),
    (of_another_device, "EBUSY", "Device or resource busy", "lock is held by "),
    (directory, "EINVAL", "Invalid argument", "file type is a directory"),
    (no_image, "EINVAL", "Invalid argument", "m_Sig"),
    (relative, "EINVAL", "Invalid argument", "is not an absolute path"),
    (on_the_dead_store, "ENOTCONN", "Transport endpoint is not connected", "open: ENOTCONN"),
)


@dataclass(frozen=True, slots=True)
class StandingBy:
    """A device whose store is dead, and one beside it that works."""

    place: Path
    daemon: Daemon
    disk: Disk
    fd: int

    def state(self) -> list[str]:
        names = ("queue/standby", "ploopfs/generation", "pdelta/1/image", "ploopfs/standby_reason", "size")
        return [self.daemon.value(name) for name in names]


@pytest.fixture(scope="module")
def standing_by(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingBy]:
    place = tmp_path_factory.mktemp("standing-by")
    with store(place) as bindfs:
        disk, second = make_disk(bindfs.bricks / "disk", depth=2), make_disk(place / "second")
        assert disk.size_bytes == SIZE_SECTORS << 9
        devices = device(bindfs.path / "disk"), device(second.directory, "ploop1")
        with serving(place, *devices) as daemon, opened(daemon.disk()) as fd:
            writer = Writer(fd, disk)
            writer.write(20)
            bindfs.kill()
            assert writer.errno_of_write() == "ENOTCONN"
            yield StandingBy(place, daemon, disk, fd)
            # After all that was refused, what is right is still taken.
            bindfs.remount()
            daemon.store("ploopfs/reopen", "1")
            assert daemon.value("ploopfs/last_error") == ""
            writer.write(20)
            writer.assert_all_there()
        assert_closed(disk.top)
        assert_closed(second.top)


@pytest.mark.parametrize(("make", "errno", "words", "reason"), REFUSED, ids=[row[0].__name__ for row in REFUSED])
def test_a_top_that_does_not_fit_is_refused_and_nothing_changes(
    standing_by: StandingBy,
    tmp_path: Path,
    make: Callable[[Path, Path], Path],
    errno: str,
    words: str,
    reason: str,
) -> None:
    daemon, before = standing_by.daemon, standing_by.state()
    path = make(tmp_path, standing_by.place)
    control = daemon.attribute("ploopfs/replace_delta")
    told = subprocess.run(
        ["bash", "-c", 'echo "$1" > "$2"', "bash", path, control], capture_output=True, text=True, check=False
    )
    assert told.returncode == 1
    assert told.stderr.rstrip().endswith(f"write error: {words}")
    assert errno_of(daemon.store, "ploopfs/replace_delta", str(path)) == errno
    assert daemon.value("ploopfs/last_error").startswith(f"replace_delta {path}: ")
    assert reason in daemon.value("ploopfs/last_error")
    assert standing_by.state() == before
    assert before[0] == "on"
    assert errno_of(os.pwrite, standing_by.fd, b"x", 0) == "EIO"


def test_what_is_no_command_is_refused(standing_by: StandingBy) -> None:
    before = standing_by.state()
    for name, text in (("replace_delta", ""), ("reopen", "0"), ("reopen", "yes")):
        assert errno_of(standing_by.daemon.store, f"ploopfs/{name}", text) == "EINVAL"
    assert errno_of(standing_by.daemon.store, "ploopfs/reopen", "1") == "ENOTCONN"
    assert standing_by.state() == before


def test_the_neighbour_of_a_device_in_standby_works_on(standing_by: StandingBy) -> None:
    with opened(standing_by.daemon.disk("ploop1")) as fd:
        assert os.pwrite(fd, b"neighbour", 12345) == 9
        os.fsync(fd)
        assert os.pread(fd, 9, 12345) == b"neighbour"
    assert standing_by.daemon.value("queue/standby", "ploop1") == "off"
