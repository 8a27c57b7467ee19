"""Creating and snapshotting: whole and durable or not at all, and never over what somebody has or uses."""

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from ploopfs.bounds import MAX_DELTAS
from ploopfs.engine import create
from ploopfs.engine.counters import Counters
from ploopfs.engine.create import Making, create_disk, create_image, snapshot_disk
from ploopfs.engine.opening import open_stack, resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.stack import Stack
from ploopfs.errors import AlreadyExists, BackendError, BadDescriptor, BadImage, Busy, ImageLocked, ImageNotClosed
from ploopfs.image.check import Verdict
from ploopfs.image.descriptor import NONE_GUID, Descriptor, parse
from ploopfs.image.header import FLAG_EMPTY, IN_USE, V1, V2, Header, Version
from ploopfs.testing.images import ImageBuilder
from tests.engine.disk import verdict

CLUSTER = 32768


def new_disk(directory: Path, *, clusters: int = 4, version: Version = V2) -> str:
    return create_disk(str(directory), size_sectors=clusters * 64, cluster_sectors=64, version=version)


def described(path: str) -> Descriptor:
    return parse(Path(path).read_bytes(), path)


async def opened(path: str, *, read_only: bool = False) -> Stack:
    files = OsFiles()
    return await open_stack(files, await resolve(files, path), read_only=read_only, counters=Counters())


def listing(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def failing(number: int) -> Callable[..., None]:
    def fail(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# --- create -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize(("asked", "given"), [(1, 64), (64, 64), (65, 128), (1000, 1024)])
def test_a_size_is_rounded_up_to_whole_clusters(tmp_path: Path, version: Version, asked: int, given: int) -> None:
    path = tmp_path / "new.hds"
    header = create_image(str(path), size_sectors=asked, cluster_sectors=64, version=version)
    image = path.read_bytes()
    assert (header.size_sectors, header.version, header.flags) == (given, version, FLAG_EMPTY)
    assert (Header.parse(image, ""), len(image)) == (header, header.bat_area_bytes)
    assert verdict(image).verdict is Verdict.CLEAN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("sectors", "cluster", "version"), [(0, 64, V2), (64, 100, V2), (1 << 32, 64, V1)])
def test_a_size_that_the_format_cannot_hold_makes_no_file(
    tmp_path: Path, sectors: int, cluster: int, version: Version
) -> None:
    with pytest.raises(BadImage, match=r"new\.hds"):
        create_image(str(tmp_path / "new.hds"), size_sectors=sectors, cluster_sectors=cluster, version=version)
    with pytest.raises(BadImage):
        create_disk(str(tmp_path / "disk"), size_sectors=sectors, cluster_sectors=cluster, version=version)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [create_image, create_disk])
def test_a_disk_whose_map_nobody_would_open_is_not_made(tmp_path: Path, create: Callable[..., object]) -> None:
    path = tmp_path / "huge"
    with pytest.raises(BadImage, match=r"m_FirstBlockOffset is .*, expected a map of at most"):
        create(str(path), size_sectors=1 << 33, cluster_sectors=64, version=V2)
    assert not path.exists()


def written(path: Path) -> tuple[int, ...]:
    """What changes with whatever is written to it, and not, as the time of the last access, with a look at it."""
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_nlink, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_what_exists_is_never_written_over(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "taken.hds"
    match kind:
        case "file":
            path.write_bytes(b"precious")
        case "directory":
            path.mkdir()
        case _:
            path.symlink_to("nowhere")
    before = written(path)
    with pytest.raises(AlreadyExists, match=r"taken\.hds"):
        create_image(str(path), size_sectors=64, cluster_sectors=64, version=V2)
    assert written(path) == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["DiskDescriptor.xml", "root.hds"])
def test_a_directory_that_holds_a_disk_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(AlreadyExists, match=name):
        new_disk(tmp_path)
    assert listing(tmp_path) == {name: b"precious"}


async def test_a_created_disk_opens_by_its_descriptor_and_by_its_directory(tmp_path: Path) -> None:
    path = new_disk(tmp_path / "a" / "disk", clusters=5)
    assert path == str(tmp_path / "a" / "disk" / "DiskDescriptor.xml")
    descriptor = described(path)
    assert (descriptor.disk_size_sectors, descriptor.cluster_sectors, len(descriptor.images)) == (320, 64, 1)
    for name in (path, str(tmp_path / "a" / "disk")):
        stack = await opened(name)
        assert (stack.size_bytes, await stack.read(0, 5 * CLUSTER)) == (5 * CLUSTER, bytes(5 * CLUSTER))
        await stack.aclose(clean=True)


def record_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is done to which file, by name, in order."""
    calls: list[tuple[str, str]] = []
    sync, rename, write = os.fsync, os.rename, os.write

    def name_of(fd: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

    def fsync(fd: int) -> None:
        calls.append(("fsync", name_of(fd)))
        sync(fd)

    def noted_rename(source: str, target: str) -> None:
        calls.append(("rename", os.path.basename(target)))
        rename(source, target)

    def noted_write(fd: int, data: bytes) -> int:
        if fd > 2:
            calls.append(("write", name_of(fd)))
        return write(fd, data)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr(os, "write", noted_write)
    return calls


def test_an_image_and_its_name_are_durable_before_a_descriptor_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record_calls(monkeypatch)
    path = new_disk(tmp_path / "disk")
    created, calls[:] = calls[:], []
    _guid, new_file = snapshot_disk(path)
    monkeypatch.undo()
    name = os.path.basename(new_file)
    described_anew = [
        ("write", "DiskDescriptor.xml.tmp"),
        ("fsync", "DiskDescriptor.xml.tmp"),
        ("rename", "DiskDescriptor.xml"),
        ("fsync", "disk"),
    ]
    assert created == [
        ("fsync", tmp_path.name),
        ("write", "root.hds"),
        ("fsync", "root.hds"),
        ("fsync", "disk"),
        *described_anew,
    ]
    assert calls == [("write", name), ("fsync", name), ("fsync", "disk"), *described_anew]


@pytest.mark.parametrize(
    ("of_os", "number"),
    [*product(("write", "ftruncate", "fsync"), (errno.ENOSPC, errno.EIO)), ("rename", errno.ENOSPC)],
)
def test_a_create_that_fails_leaves_nothing_behind(
    tmp_path: Path, of_os: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os, of_os, failing(number))
    with pytest.raises(BackendError) as raised:
        new_disk(tmp_path / "disk")
    monkeypatch.undo()
    assert raised.value.errno == number
    assert listing(tmp_path / "disk") == {}


def test_a_directory_that_is_not_there_is_the_storage_saying_so(tmp_path: Path) -> None:
    with pytest.raises(BackendError) as raised:
        create_image(str(tmp_path / "none" / "new.hds"), size_sectors=64, cluster_sectors=64, version=V2)
    assert raised.value.errno == errno.ENOENT
    with pytest.raises(BackendError) as raised:
        snapshot_disk(str(tmp_path / "DiskDescriptor.xml"))
    assert raised.value.errno == errno.ENOENT


class Unwanted(Exception):
    """Somebody has pressed Ctrl-C."""


def unwanted_after(checks: int) -> Making:
    left = [*range(checks)]

    def check() -> None:
        if not left:
            raise Unwanted
        left.pop()

    return Making(check)


def make_image(directory: Path, making: Making) -> None:
    create_image(str(directory / "new.hds"), size_sectors=256, cluster_sectors=64, version=V2, making=making)


def make_disk(directory: Path, making: Making) -> None:
    create_disk(str(directory), size_sectors=256, cluster_sectors=64, version=V2, making=making)


def make_snapshot(directory: Path, making: Making) -> None:
    snapshot_disk(str(directory / "DiskDescriptor.xml"), making)


@pytest.mark.parametrize(("make", "steps"), [(make_image, 2), (make_disk, 4), (make_snapshot, 4)])
def test_what_nobody_wants_any_more_is_gone_again_wherever_that_shows(
    tmp_path: Path, make: Callable[[Path, Making], None], steps: int
) -> None:
    if make is make_snapshot:
        new_disk(tmp_path)
    before = listing(tmp_path)
    for checks in range(steps):
        making = unwanted_after(checks)
        with pytest.raises(Unwanted):
            make(tmp_path, making)
        assert (listing(tmp_path), making.unfinished) == (before, [])
    making = unwanted_after(steps)
    make(tmp_path, making)
    assert (len(listing(tmp_path)) > len(before), making.unfinished) == (True, [])


def test_what_could_not_be_taken_away_is_known_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = new_disk(tmp_path)
    making = Making()
    monkeypatch.setattr(os, "unlink", failing(errno.ENOTCONN))
    monkeypatch.setattr(os, "rename", failing(errno.ENOTCONN))
    with pytest.raises(BackendError):
        snapshot_disk(path, making)
    monkeypatch.undo()
    assert set(making.unfinished) == {str(left) for left in tmp_path.iterdir()} - {path, f"{tmp_path}/root.hds"}
    assert len(making.unfinished) == 2


@pytest.mark.parametrize("is_done", [True, False])
async def test_what_a_descriptor_may_name_whose_rename_was_lost_is_not_taken_away(
    tmp_path: Path, is_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage that was lost tells nobody whether it has done it."""
    path, making, rename = new_disk(tmp_path), Making(), os.rename
    before = Path(path).read_bytes()

    def lose(source: str, target: str) -> None:
        if is_done:
            rename(source, target)
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(os, "rename", lose)
    with pytest.raises(BackendError):
        snapshot_disk(path, making)
    monkeypatch.undo()
    image, descriptor = making.unfinished
    assert (making.undecided, descriptor, os.path.exists(descriptor)) == (path, f"{path}.tmp", not is_done)
    assert (Path(path).read_bytes() == before) is not is_done
    assert [entry.path for entry in described(path).chain()][1:] == ([image] if is_done else [])
    assert verdict(Path(image).read_bytes()).verdict is Verdict.CLEAN
    await (await opened(path)).aclose(clean=True)


class Killed(BaseException):
    """Nothing of the process is done any more."""


class DyingOs:
    """Calls that change something are done as long as there are any `left`."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __getattr__(self, name: str) -> object:
        if name not in ("open", "write", "ftruncate", "fsync", "rename", "unlink"):
            return getattr(os, name)

        def call(*arguments: object) -> object:
            if name == "open" and isinstance(arguments[1], int) and not arguments[1] & os.O_CREAT:
                return os.open(*arguments)  # type: ignore[arg-type]
            if not self.left:
                raise Killed
            self.left -= 1
            return getattr(os, name)(*arguments)

        return call


def killed_after(calls: int, make: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether it was, before it had ended."""
    with monkeypatch.context() as patch:
        patch.setattr(create, "os", DyingOs(calls))
        try:
            make()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("make", [make_image, make_disk])
async def test_what_a_create_leaves_that_was_killed_opens_nowhere_and_the_next_one_says_what_to_do(
    tmp_path: Path, make: Callable[[Path, Making], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 0
    for calls in range(100):
        place = tmp_path / str(calls)
        place.mkdir()
        if not killed_after(calls, partial(make, place, Making()), monkeypatch):
            break
        images = list(place.glob("*.hds"))
        if (place / "DiskDescriptor.xml").exists() or not images:
            continue
        image = str(images[0])
        is_whole = images[0].stat().st_size == CLUSTER
        if not is_whole:
            with pytest.raises(BadImage, match=r"\.hds: file size is \d+ bytes, expected"):
                await opened(image)
        left += 1
        with pytest.raises(AlreadyExists) as raised:
            make(place, Making())
        told = str(raised.value).removeprefix(f"{image}: exists")
        assert told.endswith(": remove it") or (told == "" and is_whole and make is make_image), told
        images[0].unlink()
        make(place, Making())
    assert left == (4 if make is make_image else 9)


def test_an_image_that_holds_something_or_is_in_use_is_nobodys_to_remove(tmp_path: Path) -> None:
    for name, builder in (("data", ImageBuilder(clusters={1: b"x" * CLUSTER})), ("used", ImageBuilder(in_use=IN_USE))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "root.hds").write_bytes(builder.build())
        with pytest.raises(AlreadyExists, match=r"root\.hds: exists$"):
            new_disk(tmp_path / name)


async def test_a_snapshot_that_was_killed_leaves_the_disk_as_it_was_or_has_been_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new_disk(tmp_path)
    for calls in range(100):
        before = len(described(path).chain())
        if not killed_after(calls, partial(snapshot_disk, path), monkeypatch):
            break
        assert len(described(path).chain()) in (before, before + 1)
        stack = await opened(path)
        await stack.aclose(clean=True)
        snapshot_disk(path)
    else:
        raise AssertionError("it was never let live")


# --- snapshot ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
async def test_a_snapshot_freezes_what_there_was_and_goes_on_in_a_new_delta(tmp_path: Path, version: Version) -> None:
    path = new_disk(tmp_path / "disk", version=version)
    stack = await opened(path)
    await stack.write(CLUSTER, b"before")
    await stack.aclose(clean=True)
    frozen = (tmp_path / "disk" / "root.hds").read_bytes()

    guid, new_file = snapshot_disk(path)
    descriptor = described(path)
    assert [entry.path for entry in descriptor.chain()] == [str(tmp_path / "disk" / "root.hds"), new_file]
    assert [entry.path for entry in descriptor.chain(guid)] == [str(tmp_path / "disk" / "root.hds")]
    assert guid not in new_file
    header = Header.parse(Path(new_file).read_bytes(), new_file)
    assert (header.version, header.size_sectors, header.flags) == (version, 4 * 64, FLAG_EMPTY)
    assert stat.S_IMODE(os.stat(new_file).st_mode) == 0o600

    stack = await opened(path)
    await stack.write(CLUSTER + 2, b"after")
    assert await stack.read(CLUSTER, 10) == b"beafter" + bytes(3)
    await stack.aclose(clean=True)
    assert (tmp_path / "disk" / "root.hds").read_bytes() == frozen
    assert verdict(Path(new_file).read_bytes()).verdict is Verdict.CLEAN


def test_the_guid_in_a_file_name_is_replaced_and_not_added(tmp_path: Path) -> None:
    path = new_disk(tmp_path)
    names = [os.path.basename(snapshot_disk(path)[1]) for _ in range(3)]
    assert all(name.startswith("root.hds.{") and name.count("{") == 1 for name in names)
    assert len(set(names)) == 3


async def test_a_snapshot_of_a_raw_disk_is_a_v2_delta_of_its_size(tmp_path: Path) -> None:
    path = new_disk(tmp_path)
    raw = Path(path).read_text().replace("Compressed", "Plain")
    Path(path).write_text(raw)
    (tmp_path / "root.hds").write_bytes(b"r" * (3 * CLUSTER))
    for count in (2, 3):
        _guid, new_file = snapshot_disk(path)
        header = Header.parse(Path(new_file).read_bytes(), new_file)
        assert (header.version, header.size_bytes, header.cluster_sectors) == (V2, 3 * CLUSTER, 64)
        stack = await opened(path)
        assert (len(stack.deltas), await stack.read(0, 3 * CLUSTER)) == (count, b"r" * (3 * CLUSTER))
        await stack.aclose(clean=True)


def test_a_raw_top_beside_other_images_is_still_a_raw_one(tmp_path: Path) -> None:
    path = new_disk(tmp_path)
    guid, _new_file = snapshot_disk(path)
    text = Path(path).read_text().replace("Compressed", "Plain")
    # The user has switched to a top that grows out of nothing; the image under it remains, aside.
    Path(path).write_text(text.replace(f"<ParentGUID>{guid}<", f"<ParentGUID>{NONE_GUID}<"))
    top = described(path).chain()[-1].path
    assert len(described(path).chain()) == 1
    Path(top).write_bytes(b"r" * (2 * CLUSTER))
    header = Header.parse(Path(snapshot_disk(path)[1]).read_bytes(), "new")
    assert header.size_bytes == 2 * CLUSTER


async def test_a_disk_in_use_gets_no_snapshot(tmp_path: Path) -> None:
    path = new_disk(tmp_path)
    stack = await opened(path)
    before = listing(tmp_path)
    with pytest.raises(ImageLocked, match=r"root\.hds"):
        snapshot_disk(path)
    assert listing(tmp_path) == before
    await stack.aclose(clean=False)
    with pytest.raises(ImageNotClosed, match=r"root\.hds: m_DiskInUse is 0x746f6e59"):
        snapshot_disk(path)
    assert listing(tmp_path) == before


async def test_a_disk_that_is_only_read_gets_no_snapshot_either(tmp_path: Path) -> None:
    path = new_disk(tmp_path)
    stack = await opened(path, read_only=True)
    with pytest.raises(ImageLocked):
        snapshot_disk(path)
    await stack.aclose(clean=True)
    snapshot_disk(path)


@pytest.mark.parametrize("of_os", ["write", "ftruncate", "fsync", "rename"])
def test_a_snapshot_that_fails_leaves_the_disk_as_it_was(
    tmp_path: Path, of_os: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new_disk(tmp_path)
    before = listing(tmp_path)
    monkeypatch.setattr(os, of_os, failing(errno.ENOSPC))
    with pytest.raises(BackendError) as raised:
        snapshot_disk(path)
    monkeypatch.undo()
    assert raised.value.errno == errno.ENOSPC
    assert listing(tmp_path) == before
    snapshot_disk(path)


def test_after_the_rename_nothing_is_taken_back_whatever_the_directory_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new_disk(tmp_path)
    rename = os.rename

    def rename_then_break(source: str, target: str) -> None:
        rename(source, target)
        monkeypatch.setattr(os, "fsync", failing(errno.EIO))

    monkeypatch.setattr(os, "rename", rename_then_break)
    with pytest.raises(BackendError) as raised:
        snapshot_disk(path)
    monkeypatch.undo()
    assert raised.value.operation == "fsync"
    chain = described(path).chain()
    assert len(chain) == 2
    assert all(os.path.exists(entry.path) for entry in chain)


def test_a_snapshot_that_another_one_overtook_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = new_disk(tmp_path)
    opening = os.open
    other: list[str] = []

    def open_after_another(name: str, flags: int, mode: int = 0o777) -> int:
        if name.endswith("root.hds") and not other:
            other.append("under way")
            other.append(snapshot_disk(path)[1])
        return opening(name, flags, mode)

    monkeypatch.setattr(os, "open", open_after_another)
    with pytest.raises(Busy, match=r"DiskDescriptor\.xml"):
        snapshot_disk(path)
    monkeypatch.undo()
    assert [entry.path for entry in described(path).chain()] == [str(tmp_path / "root.hds"), other[1]]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_127th_snapshot_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = new_disk(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _fd: None)  # 500 of them would be most of the time of this test
    for _ in range(126):
        snapshot_disk(path)
    before = listing(tmp_path)
    assert len(described(path).chain()) == MAX_DELTAS
    with pytest.raises(BadDescriptor, match="127"):
        snapshot_disk(path)
    assert listing(tmp_path) == before


def test_a_descriptor_that_is_broken_or_names_a_missing_top_is_refused(tmp_path: Path) -> None:
    path = new_disk(tmp_path)
    (tmp_path / "root.hds").unlink()
    with pytest.raises(BackendError, match=r"root\.hds: open: ENOENT"):
        snapshot_disk(path)
    (tmp_path / "root.hds").write_bytes(b"nothing like an image")
    with pytest.raises(BadImage, match=r"root\.hds: file size"):
        snapshot_disk(path)
    Path(path).write_text("<nothing")
    with pytest.raises(BadDescriptor):
        snapshot_disk(path)
    assert {name.name for name in tmp_path.iterdir()} == {"root.hds", "DiskDescriptor.xml"}


async def test_a_snapshot_beside_a_foreign_image_keeps_its_directory(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "images" / "root.hds").write_bytes(ImageBuilder(clusters={1: b"x" * CLUSTER}).build())
    path = new_disk(tmp_path / "made")
    text = Path(path).read_text().replace(">root.hds<", ">../images/root.hds<")
    moved = tmp_path / "disk" / "DiskDescriptor.xml"
    moved.write_text(text)
    _guid, new_file = snapshot_disk(str(moved))
    assert Path(new_file).parent == tmp_path / "images"
    stack = await opened(str(moved))
    assert await stack.read(CLUSTER, 2) == b"xx"
    await stack.aclose(clean=True)
