"""`ploopfs check`: the original's exit codes for every fixture, repairs, dry runs, stacks, and images in use."""

import errno
import json
import lzma
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ploopfs.cli.main import main
from ploopfs.cli.text import ProgressLine
from ploopfs.engine.delta import ImageSpec
from ploopfs.errors import BackendError
from ploopfs.image.header import HEADER_BYTES, IN_USE
from ploopfs.testing.images import ImageBuilder
from tests.engine import qemu
from tests.mounted.daemon import device, serving
from tests.mounted.disks import make_disk
from tests.realparts import need

DATA = Path(__file__).parent / "data"
VERDICTS = [json.loads(line) for line in (DATA / "broken" / "verdicts.jsonl").read_text().splitlines()]
DESCRIPTORS = [json.loads(line) for line in (DATA / "descriptors" / "verdicts.jsonl").read_text().splitlines()]
CLUSTER = 32768
ONE, TWO, THREE = (bytes([value]) * CLUSTER for value in (1, 2, 3))


class Checking:
    """Runs the verb in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str]:
        self._capsys.readouterr()
        code = main(["check", *(os.fspath(argument) for argument in arguments)])
        return code, self._capsys.readouterr().out

    def json(self, *arguments: str | Path) -> tuple[int, Any]:
        code, out = self("--json", *arguments)
        return code, json.loads(out)


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Checking:
    return Checking(capsys)


def fixture(verdict: dict[str, Any], directory: Path) -> Path:
    path = directory / "image.hds"
    path.write_bytes(lzma.decompress((DATA / "broken" / verdict["image"]).read_bytes()))
    return path


def put(path: Path, entries: dict[int, int] | None = None, *, in_use: int = 0, tail: bytes = b"") -> Path:
    """Three clusters of the disk, 1 to 3 of the file, and other entries than those."""
    image = bytearray(ImageBuilder(clusters={0: ONE, 1: TWO, 2: THREE}, in_use=in_use).build())
    for slot, value in (entries or {}).items():
        struct.pack_into("<I", image, HEADER_BYTES + 4 * slot, value)
    path.write_bytes(image + tail)
    return path


def looks(path: Path) -> tuple[bytes, int, int]:
    """What a change of any kind shows in."""
    status = path.stat()
    return path.read_bytes(), status.st_mtime_ns, status.st_ctime_ns


# --- the original's fixtures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda verdict: verdict["name"])
def test_the_exit_code_is_the_originals_and_nothing_is_written(
    check: Checking, tmp_path: Path, verdict: dict[str, Any]
) -> None:
    path = fixture(verdict, tmp_path)
    before = looks(path)
    code, told = check.json(path)
    assert code == told["exit_code"] == verdict["vz7_fcr"]
    [image] = told["images"]
    if image["original_codes"]:
        names = ("check", "check -f", "check -f -c -r", "check -F -c")
        columns = ("vz7_check", "vz7_f", "vz7_fcr", "vz7_Fc")
        assert image["original_codes"] == {n: verdict[c] for n, c in zip(names, columns, strict=True)}
    else:
        assert {verdict[column] for column in ("vz7_check", "vz7_f", "vz7_fcr", "vz7_Fc")} == {11}
    assert check("-n", path)[0] == code
    assert looks(path) == before


@pytest.mark.real
@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda verdict: verdict["name"])
def test_a_repaired_fixture_is_clean_for_us_and_for_qemu(
    check: Checking, tmp_path: Path, verdict: dict[str, Any]
) -> None:
    need(commands=("qemu-img",))
    path = fixture(verdict, tmp_path)
    before, (_code, plan) = looks(path), check.json("-n", path)
    code, told = check.json("-r", path)
    # What the original mends it leaves marked, if it was, unless it is told otherwise.
    assert code == {37: 0}.get(verdict["vz7_Fc"], verdict["vz7_Fc"])
    [image] = told["images"]
    assert image["changes"] == plan["images"][0]["changes"]
    assert (looks(path) == before) is not image["repaired"]
    assert image["repaired"] is bool(image["changes"])
    assert check(path)[0] == code
    if code == 0:
        left = 3 if image["lost_clusters"] or verdict["name"].startswith("slot beyond disk") else 0
        assert qemu.check(str(path))[0] == (1 if verdict["name"] == "ext garbage" else left)
        if image["leaked_clusters"] and not image["lost_clusters"]:
            before = looks(path)
            assert check("-r", path)[0] == 0
            assert looks(path) == before, "a second repair has nothing to do"


@pytest.mark.parametrize("verdict", DESCRIPTORS, ids=lambda verdict: verdict["name"])
def test_a_descriptor_that_the_original_rejects_is_39(
    check: Checking, tmp_path: Path, verdict: dict[str, Any]
) -> None:
    text = (DATA / "descriptors" / verdict["xml"]).read_text().replace("/ABSOLUTE/DIR", str(tmp_path))
    (tmp_path / "DiskDescriptor.xml").write_text(text)
    # Its reader accepts an unknown parent; then there is no chain to check, which vz7 answers with 39 as well.
    assert (check(tmp_path)[0] == 39) is (bool(verdict["vz7"]) or verdict["name"] == "parent unknown")


# --- what is said, and what is not touched ----------------------------------------------------------------------------


def test_a_loss_is_said_loudly_and_by_its_place_on_the_disk(check: Checking, tmp_path: Path) -> None:
    path = put(tmp_path / "a.hds", {1: 99})
    before = looks(path)
    code, out = check("-n", path)
    assert (code, looks(path)) == (11, before)
    assert "LOST: 1 clusters of the disk would be cleared, their data cannot be reached" in out
    place = f"its data are LOST ({CLUSTER} to {2 * CLUSTER} of the disk)"
    assert f"  would clear entry 1: 99 lies past the end of the file, {place}\n" in out
    assert "kept until the next --repair, as they may be what is lost" in out
    code, out = check("-r", path)
    assert (code, "LOST: 1 clusters of the disk are cleared" in out) == (0, True)
    leak = "  1 clusters that no entry names: up to 32K could be given back\n"
    assert check(path) == (0, f"level 0: {path}: sound\n{leak}")
    code, out = check("--repair", path)
    assert (code, "  give back 1 clusters from 2 on\n" in out) == (0, True)
    assert path.read_bytes()[2 * CLUSTER : 3 * CLUSTER] == bytes(CLUSTER)


def test_a_repair_that_is_cut_off_does_not_say_that_all_is_done(
    check: Checking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "image.hds", {1: 1})

    async def full(*_arguments: object) -> None:
        raise BackendError.of(OSError(errno.ENOSPC, "full"), "write", os.fspath(path))

    words = "the repair was cut off: some of these changes are made, and it can be begun again"
    with monkeypatch.context() as context:
        context.setattr("ploopfs.cli.check.carry_out", full)
        code, said = check("-r", path)
    assert code == 7
    assert "ENOSPC" in said
    assert words in said
    assert words not in check("-n", path)[1]
    code, said = check("-r", path)
    assert (code, words in said) == (0, False)


def test_a_dry_run_wins_over_a_repair_and_takes_no_writers_lock(check: Checking, tmp_path: Path) -> None:
    path = put(tmp_path / "a.hds", {3: 2}, in_use=IN_USE)
    before = looks(path)
    need(commands=("qemu-io",))
    with qemu.holding([ImageSpec(str(path))], read_only=True):
        code, told = check.json("-r", "-n", path)
        assert (code, told["images"][0]["repaired"]) == (11, False)
        assert told["images"][0]["changes"] == [
            f"extend the file to {5 * CLUSTER} bytes",
            "copy cluster 2 to cluster 4 for entry 3",
            "clear the in-use mark, if a second check finds nothing",
        ]
        # Who repairs may not stand beside a reader.
        code, told = check.json("-r", path)
        assert code == 37
        assert "qemu-io" in told["images"][0]["problems"][0]
    assert looks(path) == before
    assert check("-r", path)[0] == 0
    assert path.read_bytes()[4 * CLUSTER :] == TWO


def test_many_changes_are_counted_and_the_first_are_shown(check: Checking, tmp_path: Path) -> None:
    clusters = dict.fromkeys(range(1100), b"x")
    image = bytearray(ImageBuilder(disk_clusters=1100, clusters=clusters).build())
    image[HEADER_BYTES : HEADER_BYTES + 4 * 1100] = struct.pack("<1100I", *range(5000, 6100))
    path = tmp_path / "a.hds"
    path.write_bytes(image)
    code, told = check.json("-n", path)
    [one] = told["images"]
    assert (code, one["change_count"], len(one["changes"]), one["lost_clusters"]) == (11, 1101, 1000, 1100)
    assert "  and 101 changes more\n" in check("-n", path)[1]
    assert check("-r", path)[0] == 0
    assert check.json(path)[1]["images"][0]["leaked_clusters"] == 1100


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (Path.absolute, 4, "ENOENT"),
        (lambda path: path.write_bytes(b"WithouFreSpacExt"), 6, "file size is 16 bytes, expected at least 4096"),
        (lambda path: path.write_bytes(put(path).read_bytes()[:4096]), 6, "expected at least the header and map"),
        (os.mkfifo, 4, "file type"),
        (lambda path: path.write_bytes(bytes(8192)), 11, "m_Sig"),
        (lambda path: path.symlink_to("/proc/self/mem"), 6, "file size is 0 bytes"),
    ],
    ids=["missing", "short", "no map", "fifo", "zeroes", "proc"],
)
def test_what_cannot_be_read_has_the_originals_code(
    check: Checking, tmp_path: Path, make: Callable[[Path], object], code: int, words: str
) -> None:
    path = tmp_path / "a.hds"
    make(path)
    for options in ((), ("-n",), ("-r",)):
        found, out = check(*options, path)
        assert (found, str(path) in out) == (code, True)
        assert words in out


# --- stacks -----------------------------------------------------------------------------------------------------------


def test_of_a_stack_only_the_top_is_repaired_and_a_lower_delta_by_its_own_name(
    check: Checking, tmp_path: Path
) -> None:
    base, top = put(tmp_path / "base one.hds", {3: 1}), put(tmp_path / "top.hds", {3: 2})
    before = looks(base)
    code, out = check("-r", base, top)
    assert code == 11
    assert f"level 1: {top}: repaired" in out
    assert f"  a lower delta: ploopfs check -r '{base}' repairs it\n" in out
    assert looks(base) == before
    assert check(top)[0] == 0
    assert check(base, top)[0] == 11
    assert check("-r", base)[0] == 0
    assert check(base, top)[0] == 0


def test_images_that_form_no_stack_are_38_and_each_is_judged(check: Checking, tmp_path: Path) -> None:
    base = tmp_path / "base.hds"
    base.write_bytes(ImageBuilder(cluster_sectors=128).build())
    code, told = check.json(base, put(tmp_path / "top.hds"))
    assert (code, [one["exit_code"] for one in told["images"]]) == (38, [0, 0])
    assert "m_Sectors is 128, expected 64" in told["stack_problem"]
    assert "m_Sectors is 128, expected 64" in check(base, tmp_path / "top.hds")[1]


def test_a_raw_base_has_nothing_to_check_and_its_delta_has(check: Checking, tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(2 * CLUSTER))
    code, out = check(f"raw@{base}", put(tmp_path / "top.hds", {3: 1}))
    assert (code, f"level 0: {base}: raw, has no map\n" in out) == (11, True)


def test_a_disk_is_checked_by_its_directory_and_its_blocksize(check: Checking, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", depth=3, size_bytes=1 << 20)
    code, told = check.json(disk.directory)
    assert (code, [Path(one["path"]) for one in told["images"]]) == (0, disk.deltas)
    descriptor = disk.directory / "DiskDescriptor.xml"
    descriptor.write_text(descriptor.read_text().replace("<Blocksize>128<", "<Blocksize>256<"))
    assert check(descriptor)[0] == 38


# --- an image that is in use ------------------------------------------------------------------------------------------


@pytest.mark.real
def test_an_image_that_a_daemon_serves_is_in_use_and_stays_as_it_is(check: Checking, tmp_path: Path) -> None:
    need(fuse=True)
    disk = make_disk(tmp_path / "disk", depth=2, size_bytes=1 << 20)
    with serving(tmp_path, device(disk.directory)) as daemon:
        before = [looks(path) for path in disk.deltas]
        for options in ((), ("-n",), ("-r",)):
            code, out = check(*options, disk.directory)
            assert (code, "lock is held by " in out) == (37, True)
            assert str(daemon.process.pid) in out
        assert [looks(path) for path in disk.deltas] == before
        assert daemon.end() == 0
    assert check(disk.directory)[0] == 0


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_a_line_on_a_terminal_and_nothing_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProgressLine, "SHOWN_AFTER_S", 0)
    monkeypatch.setattr(ProgressLine, "BETWEEN_S", 0)
    quiet = ProgressLine()
    quiet.show("reading", 1, 2)
    quiet.clear()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    line = ProgressLine()
    line.show("reading", 1, 2)
    line.show("reading", 2, 2)
    line.clear()
    half, full = "#" * 15 + " " * 15, "#" * 30
    shown = f"\r\033[Kreading [{half}]  50%\r\033[Kreading [{full}] 100%\r\033[K"
    assert capsys.readouterr() == ("", shown)


def test_what_is_over_soon_shows_no_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    line = ProgressLine()
    line.show("reading", 1, 2)
    line.clear()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["image.hds", "link.hds"])
def test_one_image_named_twice_is_no_stack_and_nothing_of_it_is_repaired(
    check: Checking, tmp_path: Path, name: str
) -> None:
    path = put(tmp_path / "image.hds", {1: 99}, in_use=IN_USE)
    (tmp_path / "link.hds").hardlink_to(path)
    before = path.read_bytes()
    code, out = check("-r", path, tmp_path / name)
    assert (code, path.read_bytes() == before) == (38, True)
    assert f"{tmp_path / name}: is the same image as {path}" in out


def test_a_loss_is_told_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever ends the repair then has read it."""
    path = put(tmp_path / "image.hds", {1: 99})
    assert main(["check", "-r", os.fspath(path)]) == 0
    told = capsys.readouterr()
    assert "1 clusters of the disk will be cleared" in told.err
    assert "LOST: 1 clusters of the disk are cleared" in told.out
