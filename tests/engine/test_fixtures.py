"""Stacks and images that the original tools and QEMU made, good and broken, open or are refused as they should be."""

import hashlib
import json
import lzma
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ploopfs.engine.counters import Counters
from ploopfs.engine.opening import StackSpec, open_stack, resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.stack import Stack
from ploopfs.errors import BadImage, ImageConverting, PloopError
from ploopfs.image.header import CLOSED, HEADER_BYTES, Header
from ploopfs.testing.files import MemoryFiles

DATA = Path(__file__).resolve().parent.parent / "data"
ARCHIVES = sorted((DATA / "stacks").glob("*.tar.xz"))
BROKEN = [json.loads(line) for line in (DATA / "broken" / "verdicts.jsonl").read_text().splitlines()]
CLEAN, NOT_CLOSED = 0, 37
PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class Unpacked:
    """A directory with a descriptor and its images; `facts` is its fixture.json."""

    directory: Path
    facts: dict[str, object]

    def chain(self) -> list[str]:
        names = self.facts["chain"]
        assert isinstance(names, list)
        paths = [str(self.directory / name) for name in names]
        return [f"raw@{paths[0]}", *paths[1:]] if self.facts["raw_base"] else paths

    def named(self, way: str) -> str | Sequence[str]:
        match way:
            case "descriptor":
                return str(self.directory / "DiskDescriptor.xml")
            case "directory":
                return str(self.directory)
            case _:
                return self.chain()


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    """Without expect.raw, which its sha256 stands for."""
    directory = tmp_path_factory.mktemp("stack")
    with tarfile.open(request.param) as archive:
        for member in archive:
            if not member.name.endswith("/expect.raw"):
                archive.extract(member, directory, filter="data")
    (inner,) = directory.iterdir()
    return Unpacked(inner, json.loads((inner / "fixture.json").read_text()))


async def sha256_of(stack: Stack) -> str:
    digest = hashlib.sha256()
    for offset in range(0, stack.size_bytes, PIECE_BYTES):
        digest.update(await stack.read(offset, min(PIECE_BYTES, stack.size_bytes - offset)))
    return digest.hexdigest()


def test_there_are_fixtures() -> None:
    assert len(ARCHIVES) == 6
    assert {verdict["image"] for verdict in BROKEN} == {path.name for path in (DATA / "broken").glob("*.xz")}


async def test_a_stack_of_the_original_tools_reads_back_byte_for_byte(unpacked: Unpacked) -> None:
    files = OsFiles()
    spec = await resolve(files, unpacked.named("descriptor"))
    stack = await open_stack(files, spec, read_only=False, counters=Counters())
    facts = unpacked.facts
    cluster_bytes = stack.cluster_bytes
    assert (stack.size_bytes, len(stack.deltas), stack.format_version, cluster_bytes) == (
        facts["size"],
        facts["levels"],
        facts["v"],
        int(str(facts["blocksize_sectors"])) * 512,
    )
    assert await sha256_of(stack) == facts["sha256"]
    before = {path.name: path.stat().st_size for path in unpacked.directory.iterdir()}
    await stack.aclose(clean=True)
    assert {path.name: path.stat().st_size for path in unpacked.directory.iterdir()} == before


@pytest.mark.parametrize("way", ["descriptor", "directory", "list"])
async def test_a_stack_is_the_same_however_it_is_named(unpacked: Unpacked, way: str) -> None:
    files = OsFiles()
    spec = await resolve(files, unpacked.named(way))
    assert [f"raw@{image.path}" if image.raw else image.path for image in spec.images] == unpacked.chain()
    assert spec.cluster_sectors == (None if way == "list" else unpacked.facts["blocksize_sectors"])
    stack = await open_stack(files, spec, read_only=True, counters=Counters())
    assert stack.read_only
    if stack.size_bytes <= 64 << 20:
        assert await sha256_of(stack) == unpacked.facts["sha256"]
    assert stack.size_bytes == unpacked.facts["size"]
    await stack.aclose(clean=True)


async def opened(verdict: dict[str, object]) -> tuple[Stack, MemoryFiles, bytes]:
    name = str(verdict["image"])
    content = lzma.decompress((DATA / "broken" / name).read_bytes())
    files = MemoryFiles()
    files.put(name, content)
    spec = await resolve(files, name)
    return await open_stack(files, spec, read_only=False, counters=Counters()), files, content


def of_verdict(*codes: int) -> list[object]:
    return [pytest.param(verdict, id=str(verdict["name"])) for verdict in BROKEN if verdict["vz7_fcr"] in codes]


REFUSED = {int(verdict["vz7_fcr"]) for verdict in BROKEN} - {CLEAN, NOT_CLOSED}


@pytest.mark.parametrize("verdict", of_verdict(CLEAN))
async def test_an_image_that_the_original_calls_clean_opens_for_writing(verdict: dict[str, object]) -> None:
    stack, files, before = await opened(verdict)
    assert not stack.read_only
    await stack.aclose(clean=True)
    assert files.bytes_of(str(verdict["image"])) == before


@pytest.mark.parametrize("verdict", of_verdict(NOT_CLOSED))
async def test_an_image_that_was_not_closed_and_is_sound_opens_for_writing(
    verdict: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stack, files, before = await opened(verdict)
    assert not stack.read_only
    await stack.aclose(clean=True)
    closed = Header.parse(before, "image").changed(in_use=CLOSED, flags=0, extension_sectors=0)
    assert files.bytes_of(str(verdict["image"])) == closed.raw + before[HEADER_BYTES:]
    assert [record.getMessage() for record in caplog.records] == [
        f"{verdict['image']}: was not closed; checked: sound"
    ]


@pytest.mark.parametrize("verdict", of_verdict(*REFUSED))
async def test_a_broken_image_is_refused_by_name(verdict: dict[str, object]) -> None:
    expected = ImageConverting if verdict["vz7_fcr"] == 17 else BadImage
    with pytest.raises(PloopError) as raised:
        await opened(verdict)
    assert type(raised.value) is expected
    assert str(raised.value).startswith(f"{verdict['image']}: ")
    if isinstance(raised.value, BadImage):
        assert raised.value.field
        assert raised.value.expected
        # What the original mends with -F, a repair of ours mends as well; and whoever is refused is told so.
        advice = f"`ploopfs check -r {verdict['image']}`"
        assert (advice in str(raised.value)) is (verdict["vz7_Fc"] in (CLEAN, NOT_CLOSED))


async def test_a_raw_image_alone_has_the_size_of_its_file() -> None:
    files = MemoryFiles()
    files.put("disk.raw", bytes(range(256)) * 1000)
    spec = await resolve(files, "raw@disk.raw", cluster_sectors=64)
    assert spec == StackSpec(spec.images, 64)
    stack = await open_stack(files, spec, read_only=False, counters=Counters())
    assert (stack.size_bytes, stack.format_version) == (256000, 0)
    await stack.write(255999, b"!")
    assert await stack.read(255990, 10) == bytes(range(246, 255)) + b"!"
    await stack.aclose(clean=True)
