"""Hostile bytes into every writable file of a mounted tree, and hostile images where it takes one: it lives, answers,
and holds no more memory than before."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import seeds
from tests.fuzz.mutate import mutated
from tests.mounted.daemon import Daemon, device, errno_of, opened, ploopfs, serving
from tests.mounted.disks import make_disk

pytestmark = pytest.mark.real

SEED = 1
ENDINGS = ("/rmmod", "/dm/suspended")
"""Not written: without the subsystem most of the tree is gone."""
GROWTH_KIB = 64 << 10
LONGEST_BYTES = 5000
"""Longer than a page, which is the most that an attribute of sysfs takes."""
BUGS = ("Traceback", " failed\n", "Logging error")
"""What the log says of an exception that nobody expected."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """One device of each flavour; those with deltas have a second stack to be given."""
    for name in ("vz7", "vz9"):
        make_disk(tmp_path / name, depth=2, size_bytes=8 << 20)
    (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
    devices = (
        device(tmp_path / "vz7"),
        device(tmp_path / "vz9", "dm-0", flavour="vz9"),
        device([f"raw@{tmp_path}/disk.raw"], "xvda", flavour="block", standby=False),
    )
    limits: dict[str, object] = {"park_timeout_s": 0.2, "quiesce_timeout_s": 1}
    with serving(tmp_path, *devices, limits=limits, shutdown_deadline_s=10) as running:
        yield running


def attributes(daemon: Daemon) -> list[Path]:
    """Each file once, links not followed."""
    found = []
    for directory, below, names in os.walk(daemon.mountpoint / "sys"):
        below.sort()
        found += [Path(directory, name) for name in sorted(names)]
    return [path for path in found if stat.S_ISREG(path.lstat().st_mode)]


def is_writable(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o200) and not str(path).endswith(ENDINGS)


def written(path: Path, data: bytes) -> str:
    """One write(2), and what the same descriptor reads then: the errno's name, "" for none."""
    try:
        with opened(path, os.O_RDWR if path.stat().st_mode & 0o400 else os.O_WRONLY) as fd:
            os.write(fd, data)
            if path.stat().st_mode & 0o400:
                os.pread(fd, 1 << 16, 0)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def resident_kib(daemon: Daemon) -> int:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))


def read_all(daemon: Daemon) -> int:
    """How many files answer: with a value, or with the errno that is theirs."""
    count = 0
    for path in attributes(daemon):
        if path.lstat().st_mode & 0o400:
            assert errno_of(path.read_bytes) in ("success", "EINVAL"), path
            count += 1
    return count


def no_bug_was_logged(daemon: Daemon) -> None:
    for line in daemon.log.splitlines(keepends=True):
        assert not any(bug in line for bug in BUGS), daemon.log[-4000:]


def test_every_writable_file_takes_any_bytes(daemon: Daemon) -> None:
    answering, before_kib = read_all(daemon), resident_kib(daemon)
    files = [path for path in attributes(daemon) if is_writable(path)]
    assert len(files) > 200
    answers = set()
    for path in files:
        corpus = (b"1\n", b"0 8 error\n", b"add_device a filename=/dev/dm-0\n", path.name.encode())
        # Each file has its own bytes: a new one changes nothing for the others.
        random = Random(f"{SEED} {path.relative_to(daemon.mountpoint)}")
        for _ in range(2):
            data = mutated(corpus, seeds.STORE_TOKENS, random, max_bytes=LONGEST_BYTES) or b"\n"
            answers.add(written(path, data))
    assert {"", "EINVAL"} <= answers
    assert "EIO" not in answers
    no_bug_was_logged(daemon)
    assert daemon.process.poll() is None
    assert read_all(daemon) >= answering
    assert resident_kib(daemon) - before_kib < GROWTH_KIB


def test_a_name_of_any_bytes_is_looked_for_and_not_found(daemon: Daemon) -> None:
    for token in (*seeds.COMMON, b"\xff" * 255):
        name = token.replace(b"\0", b"").replace(b"/", b"")[:255]
        if name in (b"", b".", b".."):
            continue
        place = os.fsencode(daemon.mountpoint / "sys/block/ploop0/queue")
        with pytest.raises(FileNotFoundError):
            os.stat(place + b"/" + name)
    no_bug_was_logged(daemon)


def hostile_images(place: Path) -> Iterator[Path]:
    for number, data in enumerate(seeds.sized_images()):
        path = place / f"hostile{number}.hds"
        with path.open("wb") as file:
            file.write(data[8:])
            size = int.from_bytes(data[:8], "little")
            file.truncate(max(len(data) - 8, size if size < 1 << 42 else 0))
        yield path
    sparse = place / "sparse.raw"
    sparse.touch()
    os.truncate(sparse, 1 << 42)
    yield sparse
    named = place / "a\nb\x1b[2J.hds"
    named.write_bytes(b"x")
    yield named
    yield place


def test_a_hostile_image_is_refused_wherever_one_is_taken(daemon: Daemon, tmp_path: Path) -> None:
    """By a replacement, a table, and the verb: the device goes on as it was."""
    place = tmp_path / "hostile"
    place.mkdir()
    before_kib, table = resident_kib(daemon), daemon.value("ploopfs/table", "dm-0")
    generations = [daemon.value("ploopfs/generation", name) for name in ("ploop0", "dm-0")]
    front = " ".join(table.split(" ")[:4])
    for image in hostile_images(place):
        escaped = os.fsencode(str(image).replace("\n", "\\\n"))
        assert written(daemon.attribute("ploopfs/replace_delta"), os.fsencode(image))
        for kind in (b"", b"raw@"):
            load = written(daemon.attribute("ploopfs/load", "dm-0"), front.encode() + b" " + kind + escaped)
            if not load:  # a sound image of another disk may wait, and goes again
                daemon.store("ploopfs/clear", "1", "dm-0")
            assert load != "EIO"
    no_bug_was_logged(daemon)
    assert [daemon.value("ploopfs/generation", name) for name in ("ploop0", "dm-0")] == generations
    assert daemon.value("ploopfs/table", "dm-0") == table
    assert resident_kib(daemon) - before_kib < GROWTH_KIB
    assert len(daemon.disk().read_bytes()) == 8 << 20


def test_info_ends_without_a_traceback_on_a_hostile_image(tmp_path: Path) -> None:
    """On some of them: tests/fuzz asks of all, without a process for each."""
    for image in [*hostile_images(tmp_path)][-6:]:
        told = ploopfs("info", image)
        assert "Traceback" not in told.stderr, image
        assert told.returncode in (0, 1)


def test_a_configuration_with_a_hostile_image_is_refused_by_name(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.raw"
    sparse.touch()
    os.truncate(sparse, 1 << 42)
    config = tmp_path / "config.yaml"
    config.write_text(f"devices: [{{name: ploop0, image: ['raw@{sparse}'], cluster_sectors: 64}}]\n")
    (tmp_path / "mnt").mkdir()
    told = ploopfs("mount", config, tmp_path / "mnt")
    assert told.returncode == 3
    assert "sparse.raw: disk size is 134217728 clusters, expected at most" in told.stderr
    assert "Traceback" not in told.stderr
