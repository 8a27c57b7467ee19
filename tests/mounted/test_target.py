"""iSCSI and NBD over a device whose store dies: with `hold` the other side waits, with `fail` it gets an error."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer

import pytest

from tests.mounted.daemon import HANG_S, HOLD_MS, serving, until
from tests.mounted.disks import MIB, Disk, assert_closed, by_qemu, make_disk
from tests.mounted.flavours import KINDS, Kind, Served, name_of
from tests.mounted.storage import Bindfs
from tests.mounted.tgt import Target, target
from tests.realparts import need

pytestmark = pytest.mark.real

ISCSI_OF_QEMU = "/usr/lib/*/qemu/block-iscsi.so"


class Initiator:
    """A qemu-io that has logged in and stays: every command goes through the same session."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            ["qemu-io", "-f", "raw", "-t", "none", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._watchdog = Timer(HANG_S, self._process.kill)
        self._watchdog.start()

    def begin(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def answer(self, *beginnings: str) -> str:
        """The next line that begins so, after the prompt."""
        assert self._process.stdout is not None
        lines = (line.removeprefix("qemu-io> ") for line in self._process.stdout)
        said = next((line for line in lines if line.startswith(beginnings)), None)
        assert said is not None, "qemu-io ended"
        return said.strip()

    def do(self, command: str) -> str:
        """What it says of a read or write."""
        self.begin(command)
        return self.answer("wrote", "read", "write failed", "Pattern")

    def end(self) -> None:
        """The end of its input."""
        self._watchdog.cancel()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(HANG_S)


@contextmanager
def logged_in(url: str) -> Iterator[Initiator]:
    initiator = Initiator(url)
    try:
        yield initiator
    finally:
        initiator.end()


@contextmanager
def served_disk(bindfs: Bindfs, place: Path, kind: Kind, policy: str) -> Iterator[tuple[Served, Disk]]:
    """Afterwards the image is sound, and QEMU reads of it what is in `content`."""
    disk = make_disk(bindfs.bricks / "disk", depth=2, size_bytes=16 * MIB)
    configured = kind.configured(bindfs.path / "disk", on_standby=policy, hold_timeout_ms=HOLD_MS)
    with serving(place, configured) as daemon:
        yield kind.of(daemon), disk
        assert daemon.end() == 0
    assert_closed(disk.top)
    assert by_qemu(disk.deltas, place / "raw") == disk.content


@contextmanager
def exported(
    bindfs: Bindfs, place: Path, kind: Kind, policy: str
) -> Iterator[tuple[Served, Target, Initiator, Disk]]:
    """By iSCSI."""
    need(commands=("tgtd", "tgtadm", "qemu-io", "iscsi-inq"), files=(ISCSI_OF_QEMU,))
    with (
        served_disk(bindfs, place, kind, policy) as (served, disk),
        target(served.disk, place) as exporting,
        logged_in(exporting.url) as initiator,
    ):
        yield served, exporting, initiator, disk


@contextmanager
def nbd(disk: Path) -> Iterator[str]:
    """The URL of the disk, exported by qemu-nbd."""
    need(commands=("qemu-nbd", "qemu-io"))
    with TemporaryDirectory() as short:
        command = ["qemu-nbd", "--format", "raw", "--persistent", "--cache", "none", "--aio", "threads"]
        command += ["--socket", f"{short}/nbd", "--pid-file", f"{short}/pid"]
        process = subprocess.Popen([*command, disk], stdin=subprocess.DEVNULL)
        try:
            until((Path(short) / "pid").exists, "qemu-nbd listens")
            yield f"nbd+unix:///?socket={short}/nbd"
        finally:
            process.terminate()
            process.wait(HANG_S)


def recover(bindfs: Bindfs, served: Served) -> None:
    bindfs.remount()
    served.store("ploopfs/reopen", "1")


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_with_hold_an_initiator_waits_through_the_outage(tmp_path: Path, bindfs: Bindfs, kind: Kind) -> None:
    with exported(bindfs, tmp_path, kind, "hold") as (served, exporting, initiator, disk):
        assert initiator.do("write -P 0x11 0 1M") == "wrote 1048576/1048576 bytes at offset 0"
        disk.content[:MIB] = b"\x11" * MIB
        bindfs.kill()
        initiator.begin("write -P 0x22 512k 1M")
        until(lambda: served.value("ploopfs/held") != "0", "the initiator's write held")
        # Another initiator is served meanwhile, as far as the disk is not needed.
        subprocess.run(["iscsi-inq", exporting.url], capture_output=True, timeout=HANG_S, check=True)
        recover(bindfs, served)
        assert initiator.answer("wrote", "write failed") == "wrote 1048576/1048576 bytes at offset 524288"
        disk.content[MIB // 2 : 3 * MIB // 2] = b"\x22" * MIB
        assert initiator.do("read -P 0x11 0 512k") == "read 524288/524288 bytes at offset 0"
        assert initiator.do("read -P 0x22 512k 1M") == "read 1048576/1048576 bytes at offset 524288"
        assert "io error" not in exporting.log


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_with_hold_a_client_of_nbd_waits_through_the_outage(tmp_path: Path, bindfs: Bindfs, kind: Kind) -> None:
    with (
        served_disk(bindfs, tmp_path, kind, "hold") as (served, disk),
        nbd(served.disk) as url,
        logged_in(url) as client,
    ):
        assert client.do("write -P 0x11 0 1M") == "wrote 1048576/1048576 bytes at offset 0"
        bindfs.kill()
        client.begin("write -P 0x22 0 1M")
        until(lambda: served.value("ploopfs/held") != "0", "the client's write held")
        recover(bindfs, served)
        assert client.answer("wrote", "write failed") == "wrote 1048576/1048576 bytes at offset 0"
        disk.content[:MIB] = b"\x22" * MIB
        assert client.do("read -P 0x22 0 1M") == "read 1048576/1048576 bytes at offset 0"


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_with_fail_an_initiator_gets_an_error_and_its_session_survives(
    tmp_path: Path, bindfs: Bindfs, kind: Kind
) -> None:
    with exported(bindfs, tmp_path, kind, "fail") as (served, exporting, initiator, disk):
        assert initiator.do("write -P 0x11 0 1M") == "wrote 1048576/1048576 bytes at offset 0"
        bindfs.kill()
        for _ in range(2):
            assert initiator.do("write -P 0x22 0 1M") == "write failed: Input/output error"
        assert served.value("queue/standby") == "on"
        assert "io error" in exporting.log
        recover(bindfs, served)
        assert initiator.do("write -P 0x33 0 1M") == "wrote 1048576/1048576 bytes at offset 0"
        disk.content[:MIB] = b"\x33" * MIB
        assert initiator.do("read -P 0x33 0 1M") == "read 1048576/1048576 bytes at offset 0"
