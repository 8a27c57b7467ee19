"""While our store was away another process took the image: reopen is refused, and says who holds it."""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from ploopfs.engine.delta import ImageSpec
from tests.engine import qemu
from tests.mounted.daemon import HANG_S, errno_of, opened, serving, until
from tests.mounted.disks import assert_closed, make_disk
from tests.mounted.flavours import KINDS, Kind, name_of
from tests.mounted.storage import Bindfs
from tests.mounted.writer import Writer
from tests.realparts import need

pytestmark = pytest.mark.real


def qemu_io(image: Path, _place: Path) -> AbstractContextManager[int]:
    """As a raw image: QEMU's own driver refuses one that is marked in use."""
    return qemu.holding([ImageSpec(str(image), raw=True)])


@contextmanager
def qemu_storage_daemon(image: Path, place: Path) -> Iterator[int]:
    """With a writable export, which is what takes the locks."""
    command = ["qemu-storage-daemon", "--pidfile", "pid", "--nbd-server", "addr.type=unix,addr.path=nbd"]
    command += ["--blockdev", f"driver=file,node-name=image,filename={image}"]
    command += ["--export", "type=nbd,id=image,node-name=image,writable=on"]
    process = subprocess.Popen(command, cwd=place, stdin=subprocess.DEVNULL)
    try:
        until((place / "pid").exists, "qemu-storage-daemon has the image")
        yield process.pid
    finally:
        process.terminate()
        process.wait(HANG_S)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize(
    ("holding", "command"), [(qemu_io, "qemu-io"), (qemu_storage_daemon, "qemu-storage-daemon")], ids=name_of
)
def test_reopen_is_busy_and_names_who_holds_the_image(
    tmp_path: Path,
    bindfs: Bindfs,
    kind: Kind,
    holding: Callable[[Path, Path], AbstractContextManager[int]],
    command: str,
) -> None:
    need(commands=(command,))
    disk = make_disk(bindfs.bricks / "disk", depth=2)
    top = bindfs.path / "disk" / disk.top.name
    with serving(tmp_path, kind.configured(bindfs.path / "disk")) as daemon:
        served = kind.of(daemon)
        with opened(served.disk) as fd:
            writer = Writer(fd, disk)
            writer.write(40)
            bindfs.kill()
            assert writer.errno_of_write() == kind.answer("ENOTCONN")
            bindfs.remount()
            with holding(top, tmp_path) as pid:
                refused = rf"{top}: cannot be opened for writing: its [a-z_]+ lock is held by {command} \(pid {pid}\)"
                for recover in kind.recoveries:
                    assert errno_of(recover, served, top) == "EBUSY"
                    [*_, ended] = (record for record in daemon.events() if record["event"] == "replace_end")
                    assert (ended["result"], bool(re.fullmatch(refused, ended["error"]))) == ("EBUSY", True), ended
                assert errno_of(kind.recoveries[0], served, top) == "EBUSY"
                assert re.fullmatch(f"reopen {top}: {refused}", served.value("ploopfs/last_error"))
                assert served.value("queue/standby") == "on"
            kind.recoveries[0](served, top)
            assert [served.value("queue/standby"), served.value("ploopfs/last_error")] == ["off", ""]
            writer.write(40)
            writer.assert_all_there()
        assert daemon.end() == 0
    assert_closed(disk.top)
