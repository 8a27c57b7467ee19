"""Plans of repair: what happens to each defect, and that on small dense maps nothing that is needed is ever touched."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ploopfs.errors import ImageFull
from ploopfs.image import repair
from ploopfs.image.check import surveyed
from ploopfs.image.header import CLOSED, CLOSED_V21, FLAG_EMPTY, HEADER_BYTES, IN_USE, V1, V2, Header, Version
from ploopfs.image.repair import (
    Change,
    ClearEntry,
    ClearMark,
    CopyCluster,
    DropExtension,
    ExtendFile,
    Plan,
    PunchLeak,
    TrimFile,
    plan_repair,
)
from ploopfs.image.survey import Fault
from ploopfs.testing.images import ImageBuilder
from tests.image.test_check import CLUSTER_BYTES, CLUSTER_SECTORS, image, patched

MARKED: list[Change] = [ClearMark()]


def plan_of(data: bytes, **options: object) -> Plan:
    header = Header.parse(data, "image")
    return plan_repair(surveyed(header, data[: header.bat_area_bytes], len(data)), **options)  # type: ignore[arg-type]


def changes(data: bytes, **options: object) -> list[Change]:
    return list(plan_of(data, **options).changes())


def clear(slot: int, value: int, fault: Fault, *, lost: bool = True) -> ClearEntry:
    return ClearEntry(slot, value, fault, lost)


def size(clusters: int) -> int:
    return clusters * CLUSTER_BYTES


# Cluster 0 is header and map; the disk has four clusters.
CASES: dict[str, tuple[bytes, list[Change]]] = {
    "sound": (image(1, 2, 3), []),
    "only the mark": (image(1, 2, 3, in_use=IN_USE), MARKED),
    "leak at the end": (image(1), [TrimFile(size(2))]),
    "leak in the middle": (image(3), [PunchLeak(1, 3)]),
    "two leaks": (image(2, data_clusters=4), [PunchLeak(1, 2), TrimFile(size(3))]),
    "nothing allocated": (image(), [TrimFile(size(1))]),
    "last cluster in part": (image(1, 2, 3)[:-1], [ExtendFile(size(4))]),
    "a leak in part": (image(1, 2) [: size(3) + 512], [TrimFile(size(3))]),
    "shared by two": (image(1, 1, 3), [CopyCluster(1, 1, 2), *MARKED]),
    "shared by two, nothing free": (image(1, 1, 3, 2), [ExtendFile(size(5)), CopyCluster(1, 1, 4), *MARKED]),
    "shared by all": (
        image(3, 3, 3, 3),
        [ExtendFile(size(5)), CopyCluster(1, 3, 1), CopyCluster(2, 3, 2), CopyCluster(3, 3, 4), *MARKED],
    ),
    "two shared": (
        image(2, 1, 2, 1),
        [ExtendFile(size(5)), CopyCluster(2, 2, 3), CopyCluster(3, 1, 4), *MARKED],
    ),
    "beyond the file": (image(1, 9), [clear(1, 9, Fault.BEYOND_FILE), *MARKED]),
    "never on disk": (image(0xFFFFFFFF), [clear(0, 0xFFFFFFFF, Fault.BEYOND_FILE), *MARKED]),
    "misaligned": (image(65, version=V1), [clear(0, 65, Fault.MISALIGNED), *MARKED]),
    "a loss beside a share takes no leak": (
        image(1, 9, 1),
        [clear(1, 9, Fault.BEYOND_FILE), ExtendFile(size(5)), CopyCluster(2, 1, 4), *MARKED],
    ),
    "a loss in a file that ends in part": (
        image(1, 9, 3)[:-1],
        [clear(1, 9, Fault.BEYOND_FILE), ExtendFile(size(4)), *MARKED],
    ),
    "right past the disk": (image(1, 2, 0, 0, 3), []),
    "past the disk": (
        image(1, 2, 0, 0, 0, 3),
        [clear(5, 3, Fault.PAST_DISK, lost=False), TrimFile(size(3)), *MARKED],
    ),
    "past the disk and beyond the file": (
        image(1, 2, 3, 0, 0, 9),
        [clear(5, 9, Fault.PAST_DISK, lost=False), *MARKED],
    ),
    "right past the disk, shared with it": (
        image(1, 2, 3, 0, 1),
        [clear(4, 1, Fault.PAST_DISK, lost=False), *MARKED],
    ),
    "past the disk, shared with it and each other": (
        image(1, 2, 3, 0, 0, 3, 3),
        [clear(5, 3, Fault.PAST_DISK, lost=False), clear(6, 3, Fault.PAST_DISK, lost=False), *MARKED],
    ),
    "in front of the data": (patched(image(1, 3), 48, 2 * CLUSTER_SECTORS), [CopyCluster(0, 1, 2), *MARKED]),
    "shared in front of the data": (
        patched(image(1, 1, 3), 48, 2 * CLUSTER_SECTORS),
        [ExtendFile(size(5)), CopyCluster(0, 1, 2), CopyCluster(1, 1, 4), *MARKED],
    ),
    "shared, in v1": (image(64, 64, 192, version=V1), [CopyCluster(1, 1, 2), *MARKED]),
}


@pytest.mark.parametrize(("data", "expected"), CASES.values(), ids=CASES)
def test_each_defect_has_its_change(data: bytes, expected: list[Change]) -> None:
    assert changes(data) == expected
    assert plan_of(data).count() == len(expected)


def test_an_entry_in_header_and_map_is_lost_and_one_between_map_and_data_is_copied() -> None:
    """A map of 9000 entries takes two clusters; data begin at the fourth."""
    empty = ImageBuilder(9000, CLUSTER_SECTORS).build()
    data = patched(patched(empty, HEADER_BYTES, 1, 2, 3), 48, 3 * CLUSTER_SECTORS).ljust(size(4), b"x")
    assert changes(data) == [
        clear(0, 1, Fault.IN_MAP),
        # What is between them is no map of the disk: 8192 words of `x` past its end, with faults of their own.
        *(change for change in changes(data) if isinstance(change, ExtendFile | CopyCluster)),
        *(change for change in changes(data) if isinstance(change, ClearEntry) and not change.lost),
        *MARKED,
    ]
    copied = [change for change in changes(data) if isinstance(change, CopyCluster)]
    assert copied == [CopyCluster(1, 2, 4)]


def test_the_end_of_a_disk_that_ends_inside_a_cluster_is_data() -> None:
    """QEMU makes such disks and reads them whole: here two clusters and a half."""

    def half(*entries: int) -> bytes:
        return patched(image(*entries, data_clusters=2), 36, 2 * CLUSTER_SECTORS + CLUSTER_SECTORS // 2)

    assert changes(half(1, 0, 2)) == []
    assert changes(half(1, 0, 1)) == [CopyCluster(2, 1, 2), *MARKED]
    assert changes(half(1, 0, 9)) == [clear(2, 9, Fault.BEYOND_FILE), *MARKED]
    assert plan_of(half(1, 0, 9)).losses == 1
    assert changes(half(1, 2, 0, 1)) == [clear(3, 1, Fault.PAST_DISK, lost=False), *MARKED]


def test_at_an_opening_leaks_in_the_middle_stay_and_the_end_is_cut() -> None:
    assert changes(image(2, in_use=IN_USE, data_clusters=4), punches=False) == [TrimFile(size(3)), *MARKED]


def test_a_leak_that_is_a_hole_already_is_left_alone() -> None:
    asked: list[tuple[int, int]] = []

    def has_data(start: int, end: int) -> bool:
        asked.append((start, end))
        return start == size(3)

    assert changes(image(2, 4, data_clusters=4), has_data=has_data) == [PunchLeak(3, 4)]
    assert asked == [(size(1), size(2)), (size(3), size(4))]


def test_the_header_of_a_repaired_image_is_closed_and_nothing_else_of_it_is_changed() -> None:
    header = Header.parse(image(1, 1), "image").changed(in_use=IN_USE, flags=FLAG_EMPTY, extension_sectors=99)
    plan = plan_of(header.raw + image(1, 1)[HEADER_BYTES:])
    assert plan.is_marking
    assert plan.closed_header == header.changed(in_use=CLOSED, flags=0, extension_sectors=0)


def test_copies_that_the_map_cannot_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "MAX_ENTRY", 4)
    assert CopyCluster(3, 1, 4) in changes(image(1, 1, 1, 1))
    monkeypatch.setattr(repair, "MAX_ENTRY", 3)
    with pytest.raises(ImageFull, match="1 more clusters are needed"):
        changes(image(1, 1, 1, 1))


# --- the format extension ---------------------------------------------------------------------------------------------


def test_a_sound_extension_is_no_leak_and_goes_when_the_map_changes() -> None:
    def planned(data: bytes) -> list[Change]:
        header = Header.parse(data, "image").changed(in_use=CLOSED_V21, flags=0, extension_sectors=3 * CLUSTER_SECTORS)
        survey = surveyed(header, header.raw + data[HEADER_BYTES : header.bat_area_bytes], len(data))
        taken = np.array([3], np.uint32)
        survey.used.add(taken)
        return list(plan_repair(survey, extension_clusters=taken).changes())

    assert planned(image(1)) == [PunchLeak(2, 3)]
    assert planned(image(1, 2)) == []
    assert planned(image(1, 2, data_clusters=5)) == [TrimFile(size(4))]
    assert planned(image(1, 1)) == [DropExtension("the map changes"), CopyCluster(1, 1, 2), TrimFile(size(3)), *MARKED]
    assert planned(image(1, 9)) == [
        DropExtension("the map changes"), clear(1, 9, Fault.BEYOND_FILE), *MARKED
    ]


def test_an_unsound_extension_is_dropped() -> None:
    assert changes(image(1, 2, 3), extension_problem="bad") == [DropExtension("bad"), *MARKED]


# --- a slow and obvious model -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """`entries` name clusters; those from `disk` on are past the end of the disk."""

    entries: tuple[int, ...]
    disk: int
    first: int
    file_clusters: int

    def needed(self) -> dict[int, int]:
        """Slots of the disk that can be read, and the clusters that they name. A cluster in front of the data that is
        not of the map (of which there is one cluster) is readable as well."""
        return {
            slot: value
            for slot, value in enumerate(self.entries[: self.disk])
            if value and 1 <= value < self.file_clusters
        }


models = st.builds(
    Model,
    st.lists(st.integers(0, 6), min_size=1, max_size=8).map(tuple),
    st.integers(1, 6),
    st.integers(1, 2),
    st.integers(3, 6),
)


def after(model: Model, plan: Plan) -> tuple[dict[int, int], dict[int, str], int]:
    """The entries, whose content each cluster has, and where the file ends: done step by step, as the plan says."""
    entries = {slot: value for slot, value in enumerate(model.entries) if value}
    contents = {cluster: f"of {cluster}" for cluster in range(1, model.file_clusters)}
    end = model.file_clusters
    for change in plan.changes():
        match change:
            case CopyCluster(slot, source, target):
                needed = [value for other, value in entries.items() if other < model.disk]
                assert target not in needed, "a cluster that an entry needs was overwritten"
                contents[target], entries[slot] = contents[source], target
            case ClearEntry(slot, value):
                assert entries.pop(slot) * plan.header.entry_unit == value
            case PunchLeak(first, stop):
                for cluster in range(first, stop):
                    assert contents.pop(cluster)
            case ExtendFile(size_bytes) | TrimFile(size_bytes):
                end = size_bytes // CLUSTER_BYTES
    return entries, {cluster: one for cluster, one in contents.items() if cluster < end}, end


@settings(max_examples=150)
@given(models, st.sampled_from([V1, V2]), st.booleans())
def test_on_a_small_dense_map_everything_needed_reads_as_before_and_all_else_is_sound(
    model: Model, version: Version, marked: bool
) -> None:
    unit = version.entry_unit(CLUSTER_SECTORS)
    empty = ImageBuilder(model.disk, CLUSTER_SECTORS, version, in_use=IN_USE if marked else CLOSED).build()
    data = patched(empty, HEADER_BYTES, *(value * unit for value in model.entries))
    data = patched(data, 48, model.first * CLUSTER_SECTORS).ljust(size(model.file_clusters), b"\0")
    plan = plan_of(data)
    entries, contents, end = after(model, plan)
    assert plan.count() == len(list(plan.changes()))
    assert plan.is_empty is (plan.count() == 0)

    values = list(entries.values())
    assert len(set(values)) == len(values)
    assert all(model.first <= value < end for value in values)
    assert all(slot <= model.disk for slot in entries), "only the slot right past the disk may keep its entry"

    for slot, value in model.needed().items():
        assert contents[entries[slot]] == f"of {value}"
        lowest = min(other for other, named in model.needed().items() if named == value)
        if slot == lowest and value >= model.first:
            assert entries[slot] == value, "the lowest slot keeps its cluster"
    lost = [slot for slot, value in enumerate(model.entries[: model.disk]) if value and slot not in model.needed()]
    assert (plan.losses, [slot for slot in lost if slot in entries]) == (len(lost), [])

    kept = {cluster for cluster in contents if cluster >= model.first} - set(values)
    if lost:
        free = {cluster for cluster in range(model.first, model.file_clusters) if cluster not in values}
        assert kept == free, "a leak beside a loss is kept"
    else:
        assert kept == set(), "every leak is given back"
        assert end == max([model.first - 1, *values]) + 1
    named = [value for value in model.entries if value]
    sound = all(model.first <= value < model.file_clusters for value in named) and len(set(named)) == len(named)
    touched = not sound or any(value and slot > model.disk for slot, value in enumerate(model.entries))
    assert plan.is_marking is (marked or touched)
