"""One store is dead and another one hangs, with writes that it has not flushed: who waits for the first need not wait
for the second. bindfs has no FLUSH, so the one that hangs is sshfs."""

import os
from pathlib import Path

import pytest

from tests.mounted.agents import QUICK
from tests.mounted.daemon import device, opened, serving, until
from tests.mounted.disks import assert_closed, make_disk
from tests.mounted.sshfs import SFTP_SERVER, sshfs
from tests.mounted.storage import Bindfs
from tests.mounted.test_agent import SCRIPT, Scene, program
from tests.mounted.writer import Writer
from tests.realparts import need

pytestmark = pytest.mark.real


def test_a_script_recovers_its_device_while_the_store_of_another_hangs(tmp_path: Path, bindfs: Bindfs) -> None:
    need(commands=("sshfs", SFTP_SERVER))
    (tmp_path / "hanging").mkdir()
    script = program(tmp_path, SCRIPT + "ls -l /proc/$$/fd >&2; echo fd 0 is $(readlink /proc/$$/fd/0)\n")
    command = [str(script), str(tmp_path), str(bindfs.path), str(bindfs.bricks)]
    disk = make_disk(bindfs.bricks / "disk", depth=2)
    with sshfs(tmp_path / "hanging") as hanging:
        other = make_disk(hanging.bricks / "disk", depth=2, seed=2)
        devices = (
            device(bindfs.path / "disk", recovery={"command": command, **QUICK}),
            device(hanging.path / "disk", "ploop1"),
        )
        with serving(tmp_path, *devices) as daemon:
            with opened(daemon.disk()) as fd, opened(daemon.disk("ploop1")) as other_fd:
                writer = Writer(fd, disk)
                writer.write(50)
                assert os.pwrite(other_fd, b"before", 0) == len(b"before")
                with hanging.stopped_session():
                    assert os.pwrite(other_fd, b"during", 0) == len(b"during")
                    Scene(bindfs, disk, daemon).lose(writer)
                    until(lambda: daemon.value("queue/standby") == "off", "the device is back")
                    writer.write(50)
                    writer.assert_all_there()
                assert os.pread(other_fd, 6, 0) == b"during"
            daemon.wait_for_line("fd 0 is /dev/null")
            assert str(hanging.path) not in daemon.log.partition("store: ")[2]
            assert daemon.end() == 0
        assert_closed(disk.top)
        assert_closed(other.top)
