"""The power fails while an image, a disk or a snapshot is made: the descriptor is the old one or the new one, whole,
and every file that it names is there and sound."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

import pytest

from ploopfs.engine import create
from ploopfs.engine.counters import Counters
from ploopfs.engine.create import create_disk, create_image, snapshot_disk
from ploopfs.engine.opening import open_stack, resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.errors import BadImage
from ploopfs.image.check import Verdict
from ploopfs.image.descriptor import parse
from ploopfs.image.header import V2
from ploopfs.testing.files import MemoryFiles
from tests.engine.directory import Call, Cut, RecordedOs
from tests.engine.disk import verdict
from tests.engine.power import Effort

CLUSTER = 32768
SIZE = 4 * CLUSTER
EFFORT = Effort(pieces=6, atoms=4, alone=3, drawn=8)


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def recorded(monkeypatch: pytest.MonkeyPatch, make: Callable[[], object]) -> list[Call]:
    calls = RecordedOs()
    with monkeypatch.context() as patch:
        patch.setattr(create, "os", calls)
        make()
    return calls.calls


def cuts(root: Path, before: Mapping[str, bytes], calls: list[Call]) -> Iterator[tuple[bool, dict[str, bytes]]]:
    """(whether everything had been done, the files that are left), for a failure after each call."""
    for done in range(len(calls) + 1):
        for files in Cut(str(root), before, calls[:done]).outcomes(EFFORT, Random(done)):
            yield done == len(calls), files


async def content_of(files: Mapping[str, bytes], descriptor: str) -> bytes:
    """Of the disk, every image of which must be closed and sound."""
    memory = MemoryFiles()
    for path, content in files.items():
        memory.put(path, content)
    spec = await resolve(memory, descriptor)
    for image in spec.images:
        assert verdict(files[image.path], image.path).verdict is Verdict.CLEAN
    stack = await open_stack(memory, spec, read_only=False, counters=Counters())
    assert not stack.read_only
    content = bytes(await stack.read(0, stack.size_bytes))
    await stack.aclose(clean=True)
    return content


async def write(directory: Path, letter: bytes) -> None:
    files = OsFiles()
    stack = await open_stack(files, await resolve(files, str(directory)), read_only=False, counters=Counters())
    await stack.write(CLUSTER, letter * 1000)
    await stack.aclose(clean=True)


@pytest.mark.parametrize("below", ["disk", "some/where/disk"])
async def test_a_descriptor_that_is_there_names_a_whole_disk_and_one_that_was_answered_for_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    directory = tmp_path / below
    calls = recorded(
        monkeypatch, lambda: create_disk(str(directory), size_sectors=SIZE // 512, cluster_sectors=64, version=V2)
    )
    descriptor, found = str(directory / "DiskDescriptor.xml"), 0
    for is_done, files in cuts(tmp_path, {}, calls):
        assert descriptor in files or not is_done
        if descriptor in files:
            found += 1
            assert await content_of(files, descriptor) == bytes(SIZE)
    assert found


async def test_a_snapshot_is_taken_or_not_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "disk"
    descriptor = create_disk(str(directory), size_sectors=SIZE // 512, cluster_sectors=64, version=V2)
    await write(directory, b"a")
    snapshot_disk(descriptor)
    await write(directory, b"b")
    expected = bytes(CLUSTER) + b"b" * 1000 + bytes(SIZE - CLUSTER - 1000)
    before = files_below(tmp_path)
    calls = recorded(monkeypatch, lambda: snapshot_disk(descriptor))
    new = Path(descriptor).read_bytes()
    seen = set()
    for is_done, files in cuts(tmp_path, before, calls):
        assert files[descriptor] in ((new,) if is_done else (before[descriptor], new))
        seen.add(files[descriptor])
        assert {entry.path for entry in parse(files[descriptor], descriptor).images} <= files.keys()
        assert await content_of(files, descriptor) == expected
        assert before.items() - {(descriptor, before[descriptor])} <= files.items(), "an older file has changed"
    assert seen == {before[descriptor], new}


async def test_of_an_image_that_was_not_finished_is_left_nothing_or_what_nobody_opens_or_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "new.hds")
    calls = recorded(monkeypatch, lambda: create_image(path, size_sectors=SIZE // 512, cluster_sectors=64, version=V2))
    whole, seen = Path(path).read_bytes(), set()
    for is_done, files in cuts(tmp_path, {}, calls):
        assert files.get(path) == whole or not is_done
        if files.get(path, whole) != whole:
            memory = MemoryFiles()
            memory.put(path, files[path])
            with pytest.raises(BadImage):
                await open_stack(memory, await resolve(memory, path), read_only=True, counters=Counters())
        seen.add(files.get(path))
    assert {None, b"", whole} <= seen
