"""Which file may be an image: a regular one, in a directory that is allowed, and the one that was looked at."""

import ast
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from ploopfs.engine import confined
from ploopfs.engine.confined import AllowedDirs
from ploopfs.engine.create import snapshot_disk
from ploopfs.engine.opening import resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.probe import ProbedImage
from ploopfs.errors import BackendError, BadImage, OutsideAllowedDirs
from tests.realparts import need

SOURCES = Path(confined.__file__).parents[1]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def character_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def block_device(path: Path) -> None:
    """A node of a number that nobody has: to open it would say ENXIO."""
    need(root=True)
    os.mknod(path, 0o600 | 0o060000, os.makedev(240, 12345))


KINDS: dict[str, Callable[[Path], None]] = {
    "a FIFO": fifo,
    "a socket": unix_socket,
    "a directory": Path.mkdir,
    "a character device": character_device,
    "a block device": block_device,
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A directory with an image, and one beside it with another."""
    for name in ("store", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "top.hds").write_bytes(name.encode() * 2000)
    return tmp_path / "store"


def files(*allowed: Path) -> OsFiles:
    return OsFiles(4, AllowedDirs([str(path) for path in allowed]))


# What it is.


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_no_regular_file_is_refused_by_its_kind_without_being_opened(
    tmp_path: Path, kind: str, writable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    KINDS[kind](tmp_path / "image")
    real, flags = os.open, []

    def recorded(path: str, flag: int, *arguments: int, **others: int) -> int:
        flags.append(flag)
        return real(path, flag, *arguments, **others)

    monkeypatch.setattr(os, "open", recorded)
    with pytest.raises(BadImage) as raised:
        await OsFiles().open(str(tmp_path / "image"), writable=writable)
    assert str(raised.value) == f"{tmp_path}/image: file type is {kind}, expected a regular file"
    assert raised.value.errno == errno.EINVAL
    assert flags == [os.O_PATH | os.O_CLOEXEC]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_probe_refuses_it_as_well(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "image")
    with pytest.raises(BadImage, match=f"expected a regular file|{kind}"):
        await OsFiles().probe([ProbedImage(path=str(tmp_path / "image"), write_beside=True)])
    assert os.listdir(tmp_path) == ["image"]


def test_a_descriptor_that_is_a_fifo_does_not_hold_up_a_snapshot(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "DiskDescriptor.xml")
    with pytest.raises(BadImage, match="file type is a FIFO"):
        snapshot_disk(str(tmp_path / "DiskDescriptor.xml"))


async def test_a_file_is_opened_as_before_where_it_is_one(store: Path) -> None:
    for path in (store / "top.hds", link(store.parent / "link", store / "top.hds")):
        for writable in (False, True):
            file = await OsFiles().open(str(path), writable=writable)
            assert (file.path, bytes(await file.read(0, 5))) == (str(path), b"store")
            await file.aclose()


@pytest.mark.parametrize("name", ["none", "none/top.hds", "top.hds/below", "loop"])
async def test_a_path_that_leads_nowhere_has_the_errno_of_the_system(store: Path, name: str) -> None:
    (store / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"none|below|loop") as real:
        os.stat(store / name)
    with pytest.raises(BackendError) as raised:
        await OsFiles().open(str(store / name), writable=False)
    assert (raised.value.errno, raised.value.operation) == (real.value.errno, "open")


# Where it lies.


def link(place: Path, target: Path) -> Path:
    place.symlink_to(target)
    return place


async def refused(opening: OsFiles, path: Path, lies_at: Path) -> str:
    """Why; the file is neither opened nor probed."""
    with pytest.raises(OutsideAllowedDirs) as raised:
        await opening.open(str(path), writable=True)
    assert raised.value.errno == errno.EACCES
    with pytest.raises(OutsideAllowedDirs):
        await opening.probe([ProbedImage(path=str(path), write_beside=True)])
    assert str(path) in str(raised.value)
    assert str(lies_at) in str(raised.value)
    assert "allowed_dirs" in str(raised.value)
    return str(raised.value)


async def test_without_a_restriction_an_image_may_lie_anywhere(store: Path) -> None:
    await (await OsFiles().open(str(store / "top.hds"), writable=True)).aclose()
    await (await OsFiles(4, AllowedDirs(None)).open(str(store / "top.hds"), writable=True)).aclose()


async def test_an_image_in_an_allowed_directory_is_opened_and_probed(store: Path) -> None:
    (store / "deep/er").mkdir(parents=True)
    (store / "top.hds").rename(store / "deep/er/top.hds")
    opening = files(store.parent / "none", store)
    await (await opening.open(str(store / "deep/er/top.hds"), writable=True)).aclose()
    await opening.probe([ProbedImage(path=str(store / "deep/er/top.hds"), write_beside=True)])


async def test_the_root_allows_everything(store: Path) -> None:
    await (await files(Path("/")).open(str(store / "top.hds"), writable=False)).aclose()


async def test_an_image_elsewhere_is_refused_with_its_path_and_the_key(store: Path) -> None:
    elsewhere = store.parent / "other/top.hds"
    told = await refused(files(store), elsewhere, elsewhere)
    assert told == f"{elsewhere} lies in none of allowed_dirs: {store}"


async def test_a_directory_whose_name_only_begins_like_an_allowed_one_is_another(store: Path) -> None:
    (store.parent / "store-2").mkdir()
    (store.parent / "store-2/top.hds").write_bytes(b"x")
    await refused(files(store), store.parent / "store-2/top.hds", store.parent / "store-2/top.hds")


async def test_dots_do_not_lead_out(store: Path) -> None:
    await refused(files(store), store / "../other/top.hds", store.parent / "other/top.hds")


async def test_a_link_counts_for_where_it_leads(store: Path) -> None:
    inside, outside = store / "top.hds", store.parent / "other/top.hds"
    told = await refused(files(store), link(store / "out.hds", outside), outside)
    assert told == f"{store}/out.hds, which is {outside}, lies in none of allowed_dirs: {store}"
    await refused(files(store), link(store / "directory", outside.parent) / "top.hds", outside)
    await (await files(store).open(str(link(store.parent / "in.hds", inside)), writable=False)).aclose()


async def test_an_allowed_directory_may_be_named_by_a_link_which_then_cannot_be_turned(store: Path) -> None:
    named = link(store.parent / "named", store)
    opening = files(named)
    await (await opening.open(str(named / "top.hds"), writable=False)).aclose()
    named.unlink()
    link(named, store.parent / "other")
    await refused(opening, named / "top.hds", store.parent / "other/top.hds")


async def test_a_path_that_is_turned_while_it_is_looked_at_does_not_lead_out(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window of a check by name: between the look and the open."""
    path = link(store / "link.hds", store / "top.hds")
    real = os.readlink

    def turned(place: str) -> str:
        answer = real(place)
        path.unlink()
        link(path, store.parent / "other/top.hds")
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(os, "readlink", turned)
        file = await files(store).open(str(path), writable=True)
    assert bytes(await file.read(0, 5)) == b"store"
    await file.write(0, b"WRITE")
    await file.aclose()
    assert (store.parent / "other/top.hds").read_bytes().startswith(b"other")
    await refused(files(store), path, store.parent / "other/top.hds")


async def test_another_restriction_counts_from_the_next_open_on(store: Path) -> None:
    allowed = AllowedDirs([str(store)])
    opening = OsFiles(4, allowed)
    file = await opening.open(str(store / "top.hds"), writable=True)
    allowed.become(AllowedDirs([str(store.parent / "other")]))
    assert bytes(await file.read(0, 5)) == b"store", "what is open stays open"
    await file.aclose()
    await refused(opening, store / "top.hds", store / "top.hds")
    allowed.become(AllowedDirs())
    await (await opening.open(str(store / "top.hds"), writable=True)).aclose()


async def test_a_descriptor_is_read_where_images_may_lie_and_nowhere_else(store: Path) -> None:
    (store.parent / "other/DiskDescriptor.xml").write_text("<x/>")
    with pytest.raises(OutsideAllowedDirs):
        await resolve(files(store), str(store.parent / "other"))


async def test_a_refused_file_leaves_no_descriptor_open(store: Path) -> None:
    opening = files(store)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        with pytest.raises(OutsideAllowedDirs):
            await opening.open(str(store.parent / "other/top.hds"), writable=False)
        with pytest.raises(BadImage):
            await opening.open(str(store), writable=False)
        await trio.lowlevel.checkpoint()
    assert len(os.listdir("/proc/self/fd")) < before + 10


# Nobody else opens images.

OPENS = {
    "engine/apart.py": "/dev/null",
    "engine/command.py": "the pipe that a program says something through",
    "engine/confined.py": "the way in",
    "engine/create.py": "new files of the command line, which no daemon runs",
    "engine/holders.py": "/proc",
    "engine/storage.py": "the mount table",
    "engine/probe.py": "the directory of an image that was found, and a scratch file in it",
}


def opening_calls(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "os.open", "io.open", "Path.open"):
            yield ast.unparse(node)


def test_no_module_below_the_command_line_opens_a_file_past_it() -> None:
    packages = ("image", "engine", "device", "scst", "sysfs")
    found = {
        path.relative_to(SOURCES).as_posix(): list(opening_calls(path.read_text(encoding="utf-8")))
        for package in packages
        for path in (SOURCES / package).rglob("*.py")
    }
    assert {path for path, calls in found.items() if calls} == set(OPENS)
    assert found["engine/storage.py"] == ["open('/proc/self/mountinfo', encoding='utf-8', errors='surrogateescape')"]
