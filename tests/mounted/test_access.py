"""What another user may do in the tree: nothing without allow_other, and with it what the modes say."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.daemon import device, serving
from tests.mounted.disks import make_disk
from tests.realparts import need

pytestmark = pytest.mark.real

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")


@pytest.fixture
def place() -> Iterator[Path]:
    """Open to everybody on the way to it, which a directory of pytest is not."""
    need(commands=("setpriv",))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


def by_nobody(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run([*NOBODY, *command], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def assert_denied(script: str) -> None:
    code, said = by_nobody("sh", "-c", f"cd / && {script}")
    assert (code != 0, "Permission denied" in said) == (True, True), said


def test_another_user_reads_attributes_and_neither_disks_nor_controls(place: Path) -> None:
    disk = make_disk(place / "disk")
    devices = device(disk.directory), device([disk.directory / "other.hds"], "ploop1", read_only=True)
    make_disk(place / "other").top.rename(disk.directory / "other.hds")
    with serving(place, *devices, options=["-o", "allow_other"]) as daemon:
        assert by_nobody("cat", daemon.attribute("queue/standby")) == (0, "off\n")
        assert by_nobody("cat", daemon.attribute("pstate/aborted")) == (0, "0\n")
        for script in (
            f"head -c 1 {daemon.disk()}",
            f"head -c 1 {daemon.disk('ploop1')}",
            f"echo x > {daemon.disk()}",
            f"cat {daemon.attribute('ploopfs/replace_delta')}",
            f"echo 1 > {daemon.attribute('ploopfs/reopen')}",
            f"echo 1 > {daemon.attribute('pstate/aborted')}",
            f"echo 1 > {daemon.attribute('queue/rotational')}",
        ):
            assert_denied(script)
        code, said = by_nobody("chmod", "666", daemon.disk())
        assert (code, "Operation not permitted" in said) == (1, True)
        assert daemon.value("pstate/aborted") == "0"


def test_without_allow_other_another_user_sees_nothing(place: Path) -> None:
    disk = make_disk(place / "disk")
    with serving(place, device(disk.directory)) as daemon:
        for script in (f"ls {daemon.mountpoint}", f"cat {daemon.attribute('queue/standby')}"):
            assert_denied(script)
