"""A vz9 device through tools/dmsetup, on real parts: the recovery of the specification, and what else tables can do."""

import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from ploopfs.engine.create import create_image
from ploopfs.image.header import V2
from tests.mounted.daemon import HANG_S, ROOT, Daemon, device, errno_of, opened, ploopfs, serving, until
from tests.mounted.disks import CLUSTER_BYTES, MIB, Disk, assert_closed, by_qemu, is_marked, make_disk, sums
from tests.mounted.storage import Bindfs
from tests.mounted.writer import Writer
from tests.realparts import need

pytestmark = pytest.mark.real

BLOCK = "dm-0"
NAME = "vm1"
CLUSTER_SECTORS = CLUSTER_BYTES >> 9
CLUSTER_LOG = CLUSTER_SECTORS.bit_length() - 1

RECOVER = """
set -eu
name=$1
images=
i=0
while img=$(dmsetup message "$name" 0 get_img_name $i) && [ -n "$img" ]; do
    images="$images $img"
    i=$((i + 1))
done
read -r _ sectors _ _ _ cluster _ <<END
$(dmsetup status "$name")
END
log=0
while [ $((1 << log)) -lt "$cluster" ]; do log=$((log + 1)); done
dmsetup suspend --noflush --nolockfs "$name"
fd=4
fds=
for img in $images; do
    if [ "$i" -gt 1 ]; then eval "exec $fd<$img"; else eval "exec $fd<>$img"; fi
    fds="$fds $fd"
    fd=$((fd + 1))
    i=$((i - 1))
done
dmsetup reload "$name" --table "0 $sectors ploop $log$fds"
dmsetup resume --noflush --nolockfs "$name"
"""
"""What ploop's own tool does (kernel-ploop.md 2.2), in plain sh, with descriptors of the images in the table."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A mapped device of three deltas on a store; `disk` names its files behind the store's back."""

    place: Path
    bindfs: Bindfs
    disk: Disk
    daemon: Daemon

    @property
    def images(self) -> list[str]:
        """As the device reaches them."""
        return [str(self.bindfs.path / path.relative_to(self.bindfs.bricks)) for path in self.disk.deltas]

    @property
    def sectors(self) -> int:
        return self.disk.size_bytes >> 9

    def line(self, *images: str, sectors: int | None = None) -> str:
        return f"0 {sectors or self.sectors} ploop {CLUSTER_LOG} {' '.join(images)}"

    def value(self, name: str) -> str:
        return self.daemon.value(name, BLOCK)

    @property
    def standby(self) -> str:
        return self.value("queue/standby")

    def sh(self, script: str, *arguments: str, shell: str = "dash") -> subprocess.CompletedProcess[str]:
        """A script that finds `dmsetup` where a script finds it."""
        environment = os.environ | {
            "PATH": f"{ROOT}/tools:{os.environ['PATH']}",
            "PLOOPFS_MOUNT": str(self.daemon.mountpoint),
        }
        command = [shell, "-c", script, shell, *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
        )

    def dmsetup(self, *words: str) -> str:
        done = self.sh('exec dmsetup "$@"', *words)
        assert (done.returncode, done.stderr) == (0, ""), words
        return done.stdout

    def failure(self, *words: str) -> str:
        done = self.sh('exec dmsetup "$@"', *words)
        assert (done.returncode, done.stdout) == (1, ""), words
        return done.stderr

    def assert_sound(self, *deltas: Path) -> None:
        """After the daemon has ended: QEMU reads what was acknowledged, and nothing has to be repaired."""
        done = ploopfs("umount", self.daemon.mountpoint)
        assert (done.returncode, self.daemon.wait()) == (0, 0), done.stderr
        assert_closed(deltas[-1])
        assert by_qemu(deltas, self.place / "raw") == self.disk.content


@pytest.fixture
def scene(tmp_path: Path, bindfs: Bindfs) -> Iterator[Scene]:
    need(commands=("dash",))
    disk = make_disk(bindfs.bricks / "disk", depth=3)
    wanted = device(bindfs.path / "disk", BLOCK, flavour="vz9", dm_name=NAME, dm_uuid="PLOOP-1")
    with serving(tmp_path, wanted) as daemon:
        yield Scene(tmp_path, bindfs, disk, daemon)


def new_image(path: Path, size_bytes: int) -> Path:
    create_image(str(path), size_sectors=size_bytes >> 9, cluster_sectors=CLUSTER_SECTORS, version=V2)
    return path


# --- recovery -----------------------------------------------------------------------------------------------------


def test_a_script_of_vz9_recovers_the_device_as_it_stands(scene: Scene) -> None:
    with opened(scene.daemon.disk(BLOCK)) as fd:
        writer = Writer(fd, scene.disk)
        writer.write(100)
        scene.bindfs.kill()
        assert writer.errno_of_write() == "EIO", "vz9 has no block status for ENOTCONN"
        assert (scene.standby, writer.errno_of_write()) == ("on", "EIO")
        assert scene.value("ploopfs/standby_reason").startswith("errno=ENOTCONN ")
        scene.bindfs.remount()

        done = scene.sh(RECOVER, NAME)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (scene.standby, scene.value("dm/suspended"), scene.value("ploopfs/generation")) == ("off", "0", "2")
        assert scene.value("ploopfs/table") == scene.line(*scene.images)
        writer.write(100)
        writer.assert_all_there()
    scene.assert_sound(*scene.disk.deltas)
    assert scene.daemon.log.count("dm-0 was switched into the standby mode") == 1
    assert sums(scene.disk.deltas[:-1]) == scene.disk.lower_sums


def test_standby_is_left_at_the_load_and_requests_wait_for_the_resume(scene: Scene) -> None:
    with (
        opened(scene.daemon.disk(BLOCK)) as fd,
        opened(scene.daemon.attribute("queue/standby", BLOCK), os.O_RDONLY) as standby,
        ThreadPoolExecutor(1) as threads,
    ):
        writer = Writer(fd, scene.disk)
        writer.write(50)
        scene.bindfs.kill()
        assert writer.errno_of_write() == "EIO"
        scene.bindfs.remount()
        assert os.pread(standby, 99, 0) == b"on\n"
        poller = select.poll()
        poller.register(standby, select.POLLPRI)
        scene.dmsetup("suspend", "--noflush", "--nolockfs", NAME)
        assert poller.poll(0) == []
        scene.dmsetup("reload", NAME, "--table", scene.line(*scene.images))
        assert poller.poll(HANG_S * 1000)
        assert os.pread(standby, 99, 0) == b"off\n"
        assert "Tables present:    LIVE & INACTIVE\n" in scene.dmsetup("info", NAME)

        waiting = threads.submit(writer.write, 20)
        until(lambda: scene.value("ploopfs/parked") == "1", "a request waits")
        assert poller.poll(0) == []
        scene.dmsetup("resume", "--noflush", "--nolockfs", NAME)
        waiting.result(HANG_S)
        assert poller.poll(0) == []
        writer.assert_all_there()
    scene.assert_sound(*scene.disk.deltas)


def test_a_copy_elsewhere_recovers_and_the_lost_image_is_left_alone(scene: Scene) -> None:
    with opened(scene.daemon.disk(BLOCK)) as fd:
        writer = Writer(fd, scene.disk)
        writer.write(50)
        scene.bindfs.kill()
        assert writer.errno_of_write() == "EIO"
        scene.bindfs.remount()
        copy = scene.place / "copy.hds"
        shutil.copyfile(scene.disk.top, copy)
        lost = sums([scene.disk.top])
        scene.dmsetup("reload", NAME, "--table", scene.line(*scene.images[:-1], str(copy)))
        scene.dmsetup("resume", NAME)
        writer.write(50)
        writer.assert_all_there()
    scene.assert_sound(*scene.disk.deltas[:-1], copy)
    assert (sums([scene.disk.top]), is_marked(scene.disk.top)) == (lost, True)


def test_a_table_that_is_refused_leaves_standby_and_the_table_in_force(scene: Scene) -> None:
    small = new_image(scene.place / "small.hds", MIB)
    with opened(scene.daemon.disk(BLOCK)) as fd:
        scene.bindfs.kill()
        assert errno_of(os.pwrite, fd, b"x", 0) == "EIO"
        for images, reason in (
            (scene.images, "Transport endpoint is not connected"),
            ([*scene.images[:-1], str(small)], "Invalid slot"),
            ([*scene.images[:-1], "/nowhere.hds"], "No such file or directory"),
        ):
            assert scene.failure("reload", NAME, "--table", scene.line(*images)) == (
                f"device-mapper: reload ioctl on {NAME}  failed: {reason}\nCommand failed.\n"
            )
            assert scene.value("ploopfs/last_error").startswith("load: ")
            assert (scene.standby, scene.value("ploopfs/table_inactive")) == ("on", "")
            assert scene.value("ploopfs/table") == scene.line(*scene.images)
            assert errno_of(os.pwrite, fd, b"x", 0) == "EIO"
            scene.bindfs.close()
            scene.bindfs.mount()
        scene.dmsetup("reload", NAME, "--table", scene.line(*scene.images))
        scene.dmsetup("resume", NAME)
        assert os.pread(fd, MIB, 0) == scene.disk.content[:MIB]
    assert not is_marked(small)


def test_the_files_are_enough_for_a_shell_without_dmsetup(scene: Scene) -> None:
    script = """
        set -eu
        cd "$PLOOPFS_MOUNT/sys/block/dm-0/ploopfs"
        echo "get_img_name 0" > message; cat message
        echo "get_img_name 9" > message; cat message
        echo noflush nolockfs > suspend; cat ../dm/suspended
        cat table > load; cat table_inactive
        echo 1 > clear; cat table_inactive
        echo > resume; cat ../dm/suspended
    """
    done = scene.sh(script)
    table = scene.line(*scene.images)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [scene.images[0], "1", table, "0"]


# --- a healthy device ---------------------------------------------------------------------------------------------


def test_nobody_notices_that_tables_are_swapped_under_load(scene: Scene) -> None:
    with opened(scene.daemon.disk(BLOCK)) as fd, ThreadPoolExecutor(1) as threads:
        writer = Writer(fd, scene.disk)
        load = threads.submit(writer.write, 600)
        generation = 1
        while not load.done():
            scene.dmsetup("reload", NAME, "--table", scene.line(*scene.images))
            scene.dmsetup("resume", NAME)
            generation += 1
        load.result()
        assert scene.value("ploopfs/generation") == str(generation)
        writer.assert_all_there()
    scene.assert_sound(*scene.disk.deltas)


def test_a_snapshot_is_taken_under_load(scene: Scene) -> None:
    top = new_image(scene.bindfs.bricks / "disk" / "snapshot.hds", scene.disk.size_bytes)
    with opened(scene.daemon.disk(BLOCK)) as fd, ThreadPoolExecutor(1) as threads:
        writer = Writer(fd, scene.disk)
        load = threads.submit(writer.write, 200)
        table = scene.line(*scene.images, str(scene.bindfs.path / "disk" / "snapshot.hds"))
        scene.dmsetup("suspend", NAME)
        scene.dmsetup("reload", NAME, "--table", table)
        scene.dmsetup("resume", NAME)
        frozen = sums([scene.disk.top])
        load.result()
        writer.write(50)
        writer.assert_all_there()
    assert scene.dmsetup("table", NAME) == f"0 {scene.sectors} ploop 4 v2 {CLUSTER_SECTORS} o\n"
    scene.assert_sound(*scene.disk.deltas, top)
    assert sums([scene.disk.top]) == frozen


def test_a_device_grows_while_it_is_used(scene: Scene) -> None:
    size_bytes = 2 * scene.disk.size_bytes
    with opened(scene.daemon.disk(BLOCK)) as fd, ThreadPoolExecutor(1) as threads:
        writer = Writer(fd, scene.disk)
        load = threads.submit(writer.write, 200)
        scene.dmsetup("message", NAME, "0", "resize", str(size_bytes >> 9))
        assert scene.daemon.disk(BLOCK).stat().st_size == scene.disk.size_bytes
        scene.dmsetup("reload", NAME, "--table", scene.line(*scene.images, sectors=size_bytes >> 9))
        scene.dmsetup("resume", NAME)
        load.result()
        assert scene.daemon.disk(BLOCK).stat().st_size == size_bytes
        assert scene.value("size") == str(size_bytes >> 9)
        assert os.pwrite(fd, b"at the new end", size_bytes - 14) == 14
        assert errno_of(os.pwrite, fd, b"x", size_bytes) == "ENOSPC"
        writer.assert_all_there()
    scene.disk.content.extend(bytes(scene.disk.size_bytes - 14) + b"at the new end")
    scene.assert_sound(*scene.disk.deltas)


def test_a_level_is_merged_away_while_the_device_is_used(scene: Scene) -> None:
    base, _middle, top = scene.disk.deltas
    with opened(scene.daemon.disk(BLOCK)) as fd, ThreadPoolExecutor(1) as threads:
        writer = Writer(fd, scene.disk)
        load = threads.submit(writer.write, 200)
        scene.dmsetup("message", NAME, "0", "merge")
        load.result()
        writer.assert_all_there()
        assert scene.value("ploopfs/table") == scene.line(scene.images[0], scene.images[2])
    scene.assert_sound(base, top)


def test_the_top_is_copied_away_while_it_is_written(scene: Scene) -> None:
    """What `ploop copy` does: all clusters once, and then those that were written meanwhile, until none is left."""
    copy = scene.place / "copy.hds"
    with opened(scene.daemon.disk(BLOCK)) as fd, opened(scene.disk.top, os.O_RDONLY) as top:
        writer = Writer(fd, scene.disk)
        scene.dmsetup("message", NAME, "0", "tracking_start")
        with opened(copy, os.O_RDWR | os.O_CREAT) as to:
            for _round in range(2):
                writer.write(3)
                os.fsync(fd)
                first = int(scene.dmsetup("message", NAME, "0", "tracking_get_next")) * CLUSTER_BYTES
                os.pwrite(to, os.pread(top, CLUSTER_BYTES, first), first)
                copied = 1 + copy_tracked(scene, top, to)
            assert 0 < copied < 20
        scene.dmsetup("message", NAME, "0", "tracking_stop")
        writer.assert_all_there()
        copied_bytes = copy.read_bytes()
        assert copied_bytes == scene.disk.top.read_bytes()[: len(copied_bytes)]
    assert "failed: No such file or directory" in scene.failure("message", NAME, "0", "tracking_get_next")


def copy_tracked(scene: Scene, top: int, to: int) -> int:
    """How many clusters were told until none was left."""
    count = 0
    while True:
        try:
            scene.daemon.store("ploopfs/message", "tracking_get_next", BLOCK)
        except BlockingIOError:
            assert "Resource temporarily unavailable" in scene.failure("message", NAME, "0", "tracking_get_next")
            return count
        start = int(scene.value("ploopfs/message")) * CLUSTER_BYTES
        os.pwrite(to, os.pread(top, CLUSTER_BYTES, start), start)
        count += 1


def test_a_degraded_device_fails_everything_and_comes_back(scene: Scene) -> None:
    with opened(scene.daemon.disk(BLOCK)) as fd:
        writer = Writer(fd, scene.disk)
        writer.write(20)
        scene.dmsetup("reload", NAME, "--table", "0 2097152 error")
        scene.dmsetup("resume", NAME)
        assert scene.dmsetup("table", NAME) == "0 2097152 error \n"
        assert scene.daemon.disk(BLOCK).stat().st_size == 1 << 30
        for call in ((os.pread, fd, 512, 0), (os.pwrite, fd, b"x", 0), (os.fsync, fd)):
            assert errno_of(*call) == "EIO"
        assert (scene.standby, is_marked(scene.disk.top)) == ("off", False)
        scene.dmsetup("reload", NAME, "--table", scene.line(*scene.images))
        scene.dmsetup("resume", NAME)
        writer.write(20)
        writer.assert_all_there()
    scene.assert_sound(*scene.disk.deltas)


def test_replacing_a_delta_is_the_same_on_both_flavours(scene: Scene) -> None:
    with opened(scene.daemon.disk(BLOCK)) as fd:
        writer = Writer(fd, scene.disk)
        writer.write(20)
        scene.bindfs.kill()
        assert writer.errno_of_write() == "EIO"
        scene.bindfs.remount()
        copy = scene.place / "copy.hds"
        shutil.copyfile(scene.disk.top, copy)
        scene.daemon.store("ploopfs/replace_delta", str(copy), BLOCK)
        assert scene.standby == "off"
        assert scene.value("ploopfs/table") == scene.line(*scene.images[:-1], str(copy))
        assert scene.dmsetup("message", NAME, "0", "get_img_name", "2") == f"{copy}\n"
        scene.daemon.store("ploopfs/reopen", "1", BLOCK)
        writer.write(20)
        writer.assert_all_there()
    scene.assert_sound(*scene.disk.deltas[:-1], copy)


# --- beside others ------------------------------------------------------------------------------------------------


def test_devices_of_every_flavour_stand_side_by_side(tmp_path: Path) -> None:
    images = [new_image(tmp_path / f"{number}.hds", MIB) for number in range(3)]
    plain = tmp_path / "plain.img"
    plain.write_bytes(b"plain".ljust(MIB, b"\0"))
    devices = (
        device(images[0]),
        device(images[1], "ploop1", standby=False),
        device(images[2], BLOCK, flavour="vz9"),
        device([f"raw@{plain}"], "xvda", flavour="block", standby=False),
    )
    with serving(tmp_path, *devices) as daemon:
        names = ("ploop0", "ploop1", BLOCK, "xvda")
        assert [daemon.value("queue/standby", name) for name in names] == ["off", "not supported"] * 2
        columns = ["--all", "--noheadings", "--output", "NAME,MAJ:MIN,SIZE"]
        command = ["lsblk", "--sysroot", str(daemon.mountpoint), *columns]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert {tuple(line.split()) for line in listed.splitlines()} == {
            ("ploop0", "182:0", "1M"),
            ("ploop1", "182:16", "1M"),
            ("ploop0", "253:0", "1M"),  # as lsblk calls a dm-N, whose name it finds in dm/name
            ("xvda", "202:0", "1M"),
        }
        assert os.path.samefile(daemon.mountpoint / "dev/mapper/ploop0", daemon.disk(BLOCK))
        with opened(daemon.disk("xvda")) as fd:
            assert os.pread(fd, 5, 0) == b"plain"
            os.pwrite(fd, b"written", 0)
            os.fsync(fd)
        assert plain.read_bytes()[:7] == b"written"
        status = ploopfs("status", "--mount", daemon.mountpoint)
        assert status.returncode == 0, status.stderr
        assert daemon.end() == 0
    for image in images:
        assert_closed(image)
