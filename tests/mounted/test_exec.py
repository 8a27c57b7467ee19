"""`ploopfs exec` on a running daemon: what commands see, whom their writes reach, and that nothing is left of it."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ploopfs.cli.exits import Exit
from ploopfs.fuse.mountpoint import mountpoints_below
from tests.mounted.blocks import looped
from tests.mounted.daemon import HANG_S, PLOOPFS, ROOT, Daemon, device, errno_of, opened, serving
from tests.mounted.disks import Disk, make_disk
from tests.mounted.storage import Bindfs
from tests.mounted.test_access import NOBODY
from tests.realparts import NO_SYS_ADMIN, need

pytestmark = pytest.mark.real

SYSTEM = ("/", "/sys", "/dev", "/proc")
BOTH = pytest.mark.parametrize("by", [(), NO_SYS_ADMIN], ids=["who may mount", "who may not"])


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return make_disk(tmp_path_factory.mktemp("exec") / "disk", depth=2)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, disk: Disk) -> Iterator[Daemon]:
    need(fuse=True, root=True)
    place = tmp_path_factory.mktemp("served")
    other = make_disk(place / "other")
    devices = device(disk.directory), device(other.directory, "ploop11", standby=False)
    with serving(place, *devices) as running:
        yield running


def run(daemon: Daemon, *command: str, by: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    arguments = [*by, *PLOOPFS, "exec", str(daemon.mountpoint), "--", *command]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)


def script(daemon: Daemon, text: str, by: tuple[str, ...] = ()) -> str:
    """What a shell says that runs it; it has nothing to complain of."""
    done = run(daemon, "sh", "-euc", text, by=by)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def lasting(names: Iterable[str]) -> list[str]:
    """Loop devices come and go with whoever else uses some."""
    return [name for name in names if not name.startswith("loop")]


# What a command sees


def test_the_loop_over_all_disks_runs_as_it_stands(daemon: Daemon) -> None:
    assert script(daemon, "for f in /sys/block/*/queue/standby; do cat $f; done") == "off\nnot supported\n"


def test_every_disk_of_the_system_is_there_and_ours_besides(daemon: Daemon) -> None:
    need(commands=("lsblk",))
    for directory in ("block", "class/block", "devices/virtual/block"):
        theirs = set(lasting(os.listdir(f"/sys/{directory}")))
        assert set(lasting(script(daemon, f"ls /sys/{directory}").split())) == theirs | {"ploop0", "ploop11"}
    command = ["lsblk", "--noheadings", "--raw", "--output", "NAME,MAJ:MIN,SIZE,TYPE"]
    real = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seen = script(daemon, " ".join(command))
    ours = {"ploop0 182:0 64M disk", "ploop11 182:176 64M disk"}
    assert set(lasting(seen.splitlines())) == {*lasting(real.splitlines()), *ours}


def test_statistics_are_those_of_all_disks_and_live(daemon: Daemon) -> None:
    need(commands=("iostat",))
    reading = "dd if=/dev/ploop11 of=/dev/null bs=1M count=3 status=none"
    shown = script(daemon, f"cat /proc/diskstats; {reading}; cat /proc/diskstats")
    rows = [line.split() for line in shown.splitlines()]
    real = lasting(line.split()[2] for line in Path("/proc/diskstats").read_text().splitlines())
    assert lasting(row[2] for row in rows) == [*real, "ploop0", "ploop11"] * 2
    before, after = (int(row[5]) for row in rows if row[2] == "ploop11")
    assert after - before == 3 << 20 >> 9
    assert "ploop11" in script(daemon, "cat /proc/partitions")
    table = [line.split()[:1] for line in script(daemon, "iostat -d -p ALL").splitlines()]
    assert ["ploop0"] in table
    assert ["ploop11"] in table


def test_the_directory_of_the_tree_itself_is_there(daemon: Daemon) -> None:
    assert script(daemon, "cat /sys/fs/ploopfs/pid") == f"{daemon.process.pid}\n"


@BOTH
def test_what_else_is_in_the_directories_stays(daemon: Daemon, by: tuple[str, ...]) -> None:
    need(user_namespaces=bool(by))
    places = ("/sys", "/sys/fs", "/sys/fs/cgroup", "/sys/kernel", "/sys/kernel/mm", "/sys/module", "/dev")
    shown = script(daemon, f"for place in {' '.join(places)}; do ls -A $place; echo //; done", by).split("//\n")
    for place, names in zip(places, shown[:-1], strict=True):
        assert set(lasting(os.listdir(place))) <= set(names.splitlines()), place


def test_a_command_stays_in_its_directory_and_keeps_its_environment(daemon: Daemon) -> None:
    assert script(daemon, "pwd; echo $PATH") == f"{ROOT}\n{os.environ['PATH']}\n"


# Whom writes reach


def test_a_disk_is_read_and_written_under_its_name(daemon: Daemon, disk: Disk) -> None:
    data = os.urandom(4096)
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        script(daemon, f"dd if={file.name} of=/dev/ploop0 bs=4096 seek=5 conv=notrunc,fsync status=none")
    disk.content[5 * 4096 : 6 * 4096] = data
    with opened(daemon.disk(), os.O_RDONLY) as fd:
        assert os.pread(fd, 4096, 5 * 4096) == data
    done = subprocess.run(
        [*PLOOPFS, "exec", str(daemon.mountpoint), "dd", "if=/dev/ploop0", "bs=1M", "status=none"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert done.stdout == disk.content


def test_attributes_of_ours_and_of_the_system_are_written_through(daemon: Daemon, tmp_path: Path) -> None:
    script(daemon, "echo 1 > /sys/block/ploop0/queue/rotational")
    assert daemon.value("queue/rotational") == "1"
    script(daemon, "echo 0 > /sys/class/block/ploop0/queue/rotational")
    assert daemon.value("queue/rotational") == "0"
    need(commands=("losetup",), loop=True)
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    with looped(file, direct_io=False) as loop:
        real = Path("/sys/block", loop.name, "queue/read_ahead_kb")
        before = int(real.read_text())
        script(daemon, f"echo {before + 128} > {real}")
        assert int(real.read_text()) == before + 128
        real.write_text(str(before))


def test_a_refused_store_is_the_writers_error(daemon: Daemon) -> None:
    done = run(daemon, "bash", "-c", "echo 64 > /sys/block/ploop0/queue/nr_requests")
    assert (done.returncode, done.stderr.endswith("write error: Invalid argument\n")) == (1, True)


def test_a_recovery_script_runs_as_it_stands(tmp_path: Path, bindfs: Bindfs) -> None:
    disk = make_disk(bindfs.bricks / "disk", depth=2)
    top = bindfs.path / disk.top.relative_to(bindfs.bricks)
    with serving(tmp_path, device(bindfs.path / "disk")) as daemon:
        bindfs.kill()
        with opened(daemon.disk()) as fd:
            assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"
            bindfs.remount()
            recover = """
            for standby in /sys/block/*/queue/standby; do
                [ "$(cat $standby)" = on ] || continue
                disk=${standby%/queue/standby}
                echo "$(cat $disk/pdelta/1/image)" > $disk/ploopfs/replace_delta
                cat $standby
            done
            """
            assert script(daemon, recover) == "off\n"
            assert os.pwrite(fd, b"x", 0) == 1
        assert daemon.value("pdelta/1/image") == str(top)


def test_a_loop_device_is_made_of_a_disk(daemon: Daemon) -> None:
    need(commands=("losetup", "blockdev"), loop=True)
    shown = script(
        daemon, "loop=$(losetup --find --show /dev/ploop11); blockdev --getsize64 $loop; losetup --detach $loop"
    )
    assert shown == f"{64 << 20}\n"


# Nothing is left, nothing is in between


def outside() -> tuple[list[str], list[list[str]]]:
    """What is mounted in the system's directories, and what these list; loop devices and other mounts are others'."""
    table = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if line.split()[4] in SYSTEM]
    table += [path for place in ("/sys", "/dev", "/proc") for path in mountpoints_below(place)]
    listings = [os.listdir(place) for place in ("/dev", "/sys/block", "/sys/kernel", "/sys/fs")]
    return table, [sorted(lasting(listing)) for listing in listings]


def test_nothing_of_it_is_seen_outside_during_or_after(daemon: Daemon) -> None:
    before = outside()
    text = "touch /dev/made-inside; ls /dev/ploop0 /dev/made-inside; exec cat"
    command = [*PLOOPFS, "exec", str(daemon.mountpoint), "sh", "-c", text]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as inside:
        assert inside.stdin
        assert inside.stdout
        assert [inside.stdout.readline().strip() for _ in range(2)] == ["/dev/made-inside", "/dev/ploop0"]
        assert outside() == before
        inside.stdin.close()
    assert inside.returncode == 0
    assert outside() == before


def test_where_mounts_are_shared_with_others_none_of_it_is(daemon: Daemon, tmp_path: Path) -> None:
    """As on a system whose systemd has made them so."""
    need(commands=("unshare",))
    verb = shlex.join([*PLOOPFS, "exec", str(daemon.mountpoint), "true"])
    look = "cut -d' ' -f5 /proc/self/mountinfo | sort"
    # Made private first: shared with this shell's children, and not with the system, whose mounts may change meanwhile.
    text = f"mount --make-rshared /; {look} > {tmp_path}/before; {verb}; {look} | diff {tmp_path}/before -"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", text]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_takes_the_place_of_the_verb(daemon: Daemon) -> None:
    command = [*PLOOPFS, "exec", str(daemon.mountpoint), "sh", "-c", "echo $$; exec cat"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as inside:
        assert inside.stdout
        assert int(inside.stdout.readline()) == inside.pid
        inside.send_signal(signal.SIGTERM)
    assert inside.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("sh", "-c", "exit 42"), 42),
        # Python ignores this signal; whoever is started by it must not.
        (("sh", "-c", "kill -PIPE $$"), -signal.SIGPIPE),
        (("no-such-command",), Exit.NO_COMMAND),
        (("/etc/passwd",), Exit.NOT_EXECUTABLE),
        (("test", "a", "=", "--", "-o", "a", "=", "a"), 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_exit_code_is_the_commands(daemon: Daemon, command: tuple[str, ...], code: int) -> None:
    assert run(daemon, *command).returncode == code


def test_without_a_tree_the_command_is_not_started(tmp_path: Path) -> None:
    command = [*PLOOPFS, "exec", str(tmp_path), "--", "touch", f"{tmp_path}/started"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == Exit.NO_MOUNT
    assert done.stderr == f"ploopfs: {tmp_path}: no running ploopfs there: an empty directory\n"
    assert os.listdir(tmp_path) == []


# Without the right to mount


def test_the_verb_loads_nothing_that_starts_threads() -> None:
    program = "import os, ploopfs.cli.exec; print(os.listdir('/proc/self/task') == [str(os.getpid())])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_who_may_not_mount_gets_a_user_name_space(daemon: Daemon) -> None:
    need(user_namespaces=True)
    looking = "id -u; cat /sys/block/ploop0/queue/standby; ls /dev/ploop*; cat /proc/diskstats"
    shown = script(daemon, looking, NO_SYS_ADMIN)
    assert shown.startswith("0\noff\n/dev/ploop0\n/dev/ploop11\n")
    assert " ploop11 " in shown
    script(daemon, "echo 1 > /sys/block/ploop0/queue/rotational", NO_SYS_ADMIN)
    assert daemon.value("queue/rotational") == "1"
    daemon.store("queue/rotational", "0")


@BOTH
def test_nodes_and_terminals_work_in_both_kinds_of_dev(daemon: Daemon, by: tuple[str, ...]) -> None:
    need(commands=("python3",), user_namespaces=bool(by))
    check = "import os; print(os.path.exists(os.ttyname(os.openpty()[1]))); open('/dev/null', 'w').write('x')"
    shown = script(daemon, f'python3 -c "{check}"; head -c 3 /dev/zero | wc -c; test -d /dev/shm; ls /dev/fd/0', by)
    assert shown.split() == ["True", "3", "/dev/fd/0"]


def test_where_name_spaces_are_forbidden_the_error_names_the_switch(daemon: Daemon) -> None:
    need(user_namespaces=True)
    forbidding = ("unshare", "--user", "--map-root-user", "sh", "-c")
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    done = run(daemon, "true", by=(*forbidding, forbid, "sh", *NO_SYS_ADMIN))
    assert (done.returncode, done.stdout) == (Exit.FAILED, "")
    assert done.stderr == (
        "ploopfs: no mount name space for this user: No space left on device: /proc/sys/user/max_user_namespaces is 0\n"
    )


def test_another_user_needs_allow_other_and_then_sees_what_the_modes_allow() -> None:
    """The interpreter of the tests may lie where only root may go; this verb runs on any, and needs nothing else."""
    need(user_namespaces=True, root=True, fuse=True)
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)
        shutil.copytree(ROOT / "ploopfs", place / "ploopfs", ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["chmod", "-R", "a+rX", place / "ploopfs"], check=True)  # a checkout may be for root alone
        disk = make_disk(place / "disk")

        def by_nobody(text: str) -> subprocess.CompletedProcess[str]:
            program = "import sys; from ploopfs.cli.exec import alone; sys.exit(alone(*sys.argv[1:]))"
            command = [*NOBODY, python, "-c", program, f"{place}/mnt", "sh", "-c", text]
            return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)

        with serving(place, device(disk.directory), options=["-o", "allow_other"]):
            done = by_nobody("id -u; cat /sys/block/*/queue/standby; ls /dev/ploop0; grep CapEff /proc/self/status")
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == "65534\noff\n/dev/ploop0\nCapEff:\t0000000000000000\n"
            for text in ("head -c 1 /dev/ploop0", "echo 1 > /sys/block/ploop0/ploopfs/reopen"):
                assert "Permission denied" in by_nobody(text).stderr
        with serving(place, device(disk.directory)):
            done = by_nobody("true")
            assert (done.returncode, "Permission denied" in done.stderr) == (Exit.FAILED, True)
