"""A repair on a store: it can be cut off at any operation and begun again, nothing that is needed is lost, and the mark
stays until a second check has found nothing."""

import errno
import struct
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ploopfs.engine.checking import examine
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.file import Files
from ploopfs.engine.holes import known_holes
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.repair import carry_out, plan_for
from ploopfs.errors import BackendError, ImageLocked, RepairFailed
from ploopfs.image.bat import decode_area
from ploopfs.image.check import Verdict
from ploopfs.image.header import CLOSED_V21, HEADER_BYTES, IN_USE, V1, V2, Header, Version
from ploopfs.image.repair import Plan
from ploopfs.testing.faulty import Faults, FaultyFiles
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.engine import qemu
from tests.engine.bitmaps import UUID, with_bitmap
from tests.engine.disk import verdict
from tests.engine.journal import Journal, JournalFiles
from tests.engine.power import Effort, before_syncs, outcomes
from tests.realparts import need

CLUSTER = 32768
PATH = "/image.hds"
SECTOR = 512
EFFORT, SMALL = Effort(pieces=4, atoms=4, alone=3, drawn=3), Effort(pieces=2, atoms=1, alone=1, drawn=1)


def content(cluster: int) -> bytes:
    return bytes([0x40 + cluster]) * CLUSTER


def image(
    *entries: int, clusters: int = 4, disk: int = 6, version: Version = V2, in_use: int = 0, first: int = 1
) -> bytes:
    """Header and map, then `clusters` of data, each of which says which it is; entries count clusters."""
    data = bytearray(ImageBuilder(disk_clusters=disk, version=version, in_use=in_use).build())
    unit = version.entry_unit(64)
    struct.pack_into(f"<{len(entries)}I", data, HEADER_BYTES, *(entry * unit & 0xFFFFFFFF for entry in entries))
    struct.pack_into("<I", data, 48, first * 64)
    return bytes(data) + b"".join(content(cluster) for cluster in range(1, clusters + 1))


async def repair(files: Files, path: str = PATH) -> Plan | None:
    file = await files.open(path, writable=True)
    try:
        await file.lock()
        plan = plan_for(await examine(file))
        if plan is not None and not plan.is_empty:
            await carry_out(file, plan)
        return plan
    finally:
        await file.aclose()


def store_of(data: bytes) -> MemoryFiles:
    memory = MemoryFiles()
    memory.put(PATH, data)
    return memory


def repaired(data: bytes) -> bytes:
    memory = store_of(data)
    trio.run(repair, memory)
    return memory.bytes_of(PATH)


def disk_of(data: bytes) -> dict[int, bytes | None]:
    """What each cluster of the disk reads as: None where an entry names what cannot be read, nothing for a hole."""
    header = Header.parse(data, PATH)
    entries = decode_area(data[: header.bat_area_bytes])[: header.disk_clusters].tolist()
    read: dict[int, bytes | None] = {}
    for slot, entry in enumerate(entries):
        start = entry * (SECTOR if header.version is V1 else CLUSTER)
        is_readable = CLUSTER <= start < len(data) and start % CLUSTER == 0 and entry != 0xFFFFFFFF
        if entry:
            read[slot] = data[start : start + CLUSTER].ljust(CLUSTER, b"\0") if is_readable else None
    return read


def assert_repaired(before: bytes, after: bytes) -> None:
    """Sound, closed, and whatever could be read reads as it did."""
    assert verdict(after, PATH).verdict is Verdict.CLEAN
    expected = {slot: data for slot, data in disk_of(before).items() if data is not None}
    assert disk_of(after) == expected


DAMAGED = {
    "a mark": image(1, 2, in_use=IN_USE),
    "shared": image(1, 1, 3, 3, 3),
    "shared and full": image(1, 2, 3, 4, 4, 1),
    "beyond and shared": image(1, 1, 6, 5, 4),
    "beyond what a copy takes": image(1, 1, 5, 2, 3, 4),
    "past the disk": image(1, 2, 0, 0, 0, 0, 0, 4, 3),
    "past the disk and shared": image(1, 2, 3, 3, 0, 0, 0, 3, 3),
    "in front of the data": image(1, 3, 1, 4, first=2),
    "partial": image(1, 2, 3, 4)[:-1000],
    "partial and shared": image(1, 2, 4, 4, in_use=IN_USE)[:-1000],
    "leaks": image(2, 4, clusters=6),
    "version 1": image(1, 1, 0xFFFFF, 3, version=V1),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_after_a_repair_the_check_is_clean_and_all_that_could_be_read_reads_as_before(data: bytes) -> None:
    after = repaired(data)
    assert_repaired(data, after)
    assert repaired(after)[HEADER_BYTES:CLUSTER] == after[HEADER_BYTES:CLUSTER]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_repair_that_a_power_failure_cuts_off_anywhere_ends_sound_when_it_is_begun_again(
    data: bytes, seed: int
) -> None:
    memory, journal, random = store_of(data), Journal(), Random(seed)
    trio.run(repair, JournalFiles(memory, journal))
    assert_repaired(data, memory.bytes_of(PATH))
    for at in before_syncs(journal):
        for left in outcomes({PATH: data}, journal, at, EFFORT, random):
            assert_no_worse(data, left[PATH])
            assert_repaired(data, repaired(left[PATH]))


def losses(data: bytes) -> int:
    plan = trio.run(planned, store_of(data))
    assert plan is not None
    return plan.losses


async def planned(files: Files) -> Plan | None:
    file = await files.open(PATH, writable=False)
    try:
        return plan_for(await examine(file))
    finally:
        await file.aclose()


@pytest.mark.parametrize("name", [name for name, data in DAMAGED.items() if losses(data)])
def test_a_repair_that_was_cut_off_tells_of_the_same_loss_when_it_is_begun_again(name: str) -> None:
    """Until nothing but the mark is left to be cleared."""
    data, journal = DAMAGED[name], Journal()
    trio.run(repair, JournalFiles(store_of(data), journal))
    told = []
    for count in range([entry.operation for entry in journal.entries].count("write")):
        memory, faults = store_of(data), Faults()
        faults.on(PATH, faults.fail(errno.EIO, "write", skip=count))
        with pytest.raises(BackendError):
            trio.run(repair, FaultyFiles(memory, faults))
        told.append(losses(memory.bytes_of(PATH)))
    assert told == [losses(data)] * (len(told) - 1) + [0]


def assert_no_worse(before: bytes, left: bytes) -> None:
    """What could be read still reads so, and what could not reads as lost or as nothing, never as another's data."""
    now = disk_of(left)
    for slot, data in disk_of(before).items():
        assert now.get(slot) == data, slot


def entries() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 7), min_size=1, max_size=9)


@settings(max_examples=40)
@given(entries(), st.sampled_from([V1, V2]), st.booleans(), st.integers(1, 2), st.integers(0, 2**32))
def test_any_small_dense_map_survives_a_repair_that_is_cut_off(
    names: list[int], version: Version, marked: bool, first: int, seed: int
) -> None:
    data = image(*names, version=version, in_use=IN_USE if marked else 0, first=first)
    memory, journal, random = store_of(data), Journal(), Random(seed)
    trio.run(repair, JournalFiles(memory, journal))
    assert_repaired(data, memory.bytes_of(PATH))
    at = random.choice(sorted(before_syncs(journal)))
    for left in outcomes({PATH: data}, journal, at, SMALL, random):
        assert_no_worse(data, left[PATH])
        assert_repaired(data, repaired(left[PATH]))


def operations_of(data: bytes) -> list[str]:
    journal = Journal()
    trio.run(repair, JournalFiles(store_of(data), journal))
    return [entry.operation for entry in journal.entries]


CHANGING = ("write", "truncate", "punch hole", "fsync")


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_repair_whose_storage_fails_at_any_change_says_so_and_ends_sound_when_it_is_begun_again(data: bytes) -> None:
    for operation in CHANGING:
        for count in range(operations_of(data).count(operation)):
            memory, faults = store_of(data), Faults()
            faults.on(PATH, faults.fail(errno.EIO, operation, skip=count))
            with pytest.raises(BackendError) as raised:
                trio.run(repair, FaultyFiles(memory, faults))
            assert (raised.value.operation, raised.value.errno) == (operation, errno.EIO)
            left = memory.bytes_of(PATH)
            assert_no_worse(data, left)
            assert (memory.images[PATH].writers, memory.images[PATH].readers) == (set(), set())
            assert_repaired(data, repaired(left))


def test_the_order_is_mark_void_copy_name_clear_give_back_look_again_clear_the_void_and_unmark() -> None:
    journal, data = Journal(), image(1, 9, 1, 0, 0, 0, 0, 3)
    trio.run(repair, JournalFiles(store_of(data), journal))
    in_map = range(HEADER_BYTES, CLUSTER)
    said = [
        {"write": {44: "header"}.get(entry.offset, "entries" if entry.offset in in_map else "data")}.get(
            entry.operation, entry.operation
        )
        for entry in journal.entries
    ]
    changes = [what for what in said if what not in ("read", "stat")]
    mark, entries = ["header", "fsync"], ["entries", "fsync"]
    assert changes == [*mark, *entries, "truncate", "data", "fsync", *entries, *entries, "fsync", *entries, *mark]
    # The second check reads the image again before what would be forgotten is.
    assert said[-9:] == ["fsync", "stat", "read", "read", "read", *entries, *mark]


@pytest.mark.parametrize("given_back", ["punch hole", "truncate"])
def test_what_an_entry_past_the_disk_names_is_given_back_when_that_entry_is_gone_for_good(given_back: str) -> None:
    """Cut off in between, the entry would name what is not there: worse than before."""
    journal, past = Journal(), {"punch hole": (2, 4), "truncate": (3, 2)}[given_back]
    trio.run(repair, JournalFiles(store_of(image(1, past[1], 0, 0, 0, 0, 0, past[0])), journal))
    at = [entry.operation for entry in journal.entries].index(given_back)
    before = [entry for entry in journal.entries[:at] if entry.operation in ("write", "fsync")]
    assert before[-1].operation == "fsync"
    assert before[-2].operation == "write"
    assert HEADER_BYTES <= before[-2].offset < CLUSTER


def test_a_sound_image_is_not_written_to() -> None:
    assert set(operations_of(image(1, 2, 3, 4))) == {"stat", "read"}


class Rotting:
    """A store that spoils the map once more just when the repair has written to it: `spoil` says how."""

    def __init__(self, memory: MemoryFiles, *, syncs: int) -> None:
        self.memory, self.syncs = memory, syncs

    async def spoil(self) -> None:
        self.syncs -= 1
        if self.syncs == 0:
            struct.pack_into("<I", self.memory.images[PATH].data, HEADER_BYTES + 4, 99)


async def test_the_mark_stays_if_the_second_check_finds_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = store_of(image(1, 1, in_use=IN_USE))
    rotting = Rotting(memory, syncs=4)
    file = await memory.open(PATH, writable=True)
    sync = file.sync

    async def synced_and_spoilt() -> None:
        await sync()
        await rotting.spoil()

    monkeypatch.setattr(file, "sync", synced_and_spoilt)
    plan = plan_for(await examine(file))
    assert plan is not None
    with pytest.raises(RepairFailed, match=r"the second check finds: /image\.hds: BAT entry 1 is 99"):
        await carry_out(file, plan)
    assert Header.parse(memory.bytes_of(PATH), PATH).is_marked_in_use


async def test_where_no_hole_can_be_made_a_leak_in_the_middle_stays() -> None:
    for number in (errno.EOPNOTSUPP, errno.ENOSYS):
        memory, faults = store_of(image(2, 4, 4, clusters=6)), Faults()
        faults.on(PATH, faults.fail(number, "punch hole"))
        await repair(FaultyFiles(memory, faults))
        assert_repaired(image(2, 4, 4, clusters=6), memory.bytes_of(PATH))


async def test_an_image_that_somebody_reads_is_not_repaired() -> None:
    memory = store_of(image(1, 1))
    reader = await memory.open(PATH, writable=False)
    await reader.lock()
    with pytest.raises(ImageLocked):
        await repair(memory)
    assert memory.bytes_of(PATH) == image(1, 1)
    await reader.aclose()


# --- the format extension ---------------------------------------------------------------------------------------------


BITS = [b"\x05"]


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (image(1, 2, 3, 4), True),
        (image(1, 3, 4), True),
        (image(1, 1, 3, 4), False),
        (image(1, 9, 3, 4), False),
        (image(1, 2, 3, 4, 0, 0, 0, 4), False),
    ],
    ids=["sound", "a leak", "shared", "beyond", "past the disk"],
)
def test_a_dirty_bitmap_is_kept_with_a_leak_beside_it_and_goes_when_the_map_changes(data: bytes, kept: bool) -> None:
    before = with_bitmap(data, BITS) + bytes(CLUSTER)
    assert verdict(before).verdict in (Verdict.CLEAN, Verdict.BROKEN)
    after = repaired(before)
    assert_repaired(before, after)
    header = Header.parse(after, PATH)
    assert (header.in_use == CLOSED_V21, header.extension_sectors != 0) == (kept, kept)
    if kept:
        assert header.raw == before[:HEADER_BYTES]
        assert after[5 * CLUSTER :] == before[5 * CLUSTER : 7 * CLUSTER]


def test_a_broken_extension_is_dropped_and_its_clusters_are_given_back() -> None:
    before = bytearray(with_bitmap(image(1, 2, 3, 4), BITS))
    before[-1] = 1
    after = repaired(bytes(before))
    assert (len(after), Header.parse(after, PATH).extension_sectors) == (5 * CLUSTER, 0)
    assert_repaired(bytes(before), after)


@pytest.mark.real
def test_qemu_reads_the_bitmap_that_a_repair_has_kept(tmp_path: Path) -> None:
    need(commands=("qemu-storage-daemon",))
    path = tmp_path / "image.hds"
    path.write_bytes(with_bitmap(image(1, 3, 4), BITS))
    assert trio.run(repair, OsFiles(), str(path)) is not None
    # Bits 0 and 2, of 64 KiB each.
    assert qemu.bitmaps(str(path)) == {UUID: 2 * 65536}


# --- QEMU's opinion, and real files -----------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_qemu_agrees_that_a_repaired_image_is_sound_and_reads_the_same(tmp_path: Path, data: bytes) -> None:
    need(commands=("qemu-img",))
    path = tmp_path / "image.hds"
    path.write_bytes(data)
    plan = trio.run(repair, OsFiles(), str(path))
    assert plan is not None
    after = path.read_bytes()
    assert_repaired(data, after)
    # QEMU sees a leak where a loss keeps it.
    assert qemu.check(str(path))[0] in ((0, 3) if plan.losses else (0,))
    read = disk_of(after)
    expected = b"".join(read.get(slot) or bytes(CLUSTER) for slot in range(6))
    assert qemu.content([ImageSpec(str(path))], tmp_path) == expected


def test_a_hole_is_known_where_the_file_system_says_so(tmp_path: Path) -> None:
    path = tmp_path / "image.hds"
    path.write_bytes(image(2, 4, clusters=4))
    trio.run(repair, OsFiles(), str(path))
    with known_holes(str(path)) as has_data:
        assert [has_data(n * CLUSTER, (n + 1) * CLUSTER) for n in range(6)] == [True, False, True, False, True, False]
    with pytest.raises(BackendError, match="open"), known_holes(str(tmp_path / "none")):
        pass
