"""The groups of a vz7 device: what follows the device, what may be written, and a delta that was replaced."""

import os
from dataclasses import replace

import pytest

from ploopfs.device.stats import Op
from ploopfs.engine.counters import PSTAT_NAMES
from ploopfs.errors import Busy, NoSuchDevice, PermissionDenied
from ploopfs.sysfs.nodes import Directory
from ploopfs.sysfs.openfile import CHANGED, READY
from tests.sysfs.fakes import DEVICE, FakeDelta, FakeDevice, FakeRegistry, node_at, opened, text_of, tree_of, write


async def test_any_write_to_a_counter_resets_it(root: Directory, device: FakeDevice) -> None:
    for number, name in enumerate(PSTAT_NAMES, start=1):
        setattr(device.counters, name, number)
        assert text_of(root, f"{DEVICE}/pstat/{name}") == f"{number}\n"
        await write(root, f"{DEVICE}/pstat/{name}", "junk 5")
        assert text_of(root, f"{DEVICE}/pstat/{name}") == "0\n"


@pytest.mark.parametrize(("text", "shown"), [("0\n", "0"), ("12junk", "12"), ("junk", "0"), ("4294967297", "1")])
async def test_a_tune_value_is_parsed_laxly_and_kept(
    root: Directory, device: FakeDevice, text: str, shown: str
) -> None:
    await write(root, f"{DEVICE}/ptune/fsync_max", text)
    assert text_of(root, f"{DEVICE}/ptune/fsync_max") == f"{shown}\n"
    assert device.tune.fsync_max == int(shown)


async def test_the_discard_granularity_cannot_change_while_the_device_runs(root: Directory) -> None:
    with pytest.raises(Busy):
        await write(root, f"{DEVICE}/ptune/discard_granularity", "4096")
    with pytest.raises(PermissionDenied):
        opened(root, f"{DEVICE}/ptune/discard_alignment", os.O_WRONLY)


async def test_aborted_is_set_by_any_number_and_cleared_by_0_and_tells_its_pollers(
    root: Directory, device: FakeDevice
) -> None:
    watcher = opened(root, f"{DEVICE}/pstate/aborted")
    for text, aborted in (("1\n", True), ("0\n", False), ("7", True), ("junk", False)):
        assert watcher.read(0, 99) == (b"0\n" if aborted else b"1\n")
        assert watcher.poll()[0] == READY
        await write(root, f"{DEVICE}/pstate/aborted", text)
        assert device.queue.aborted is aborted
        assert watcher.poll()[0] == READY | CHANGED


def test_event_never_waits(root: Directory, device: FakeDevice) -> None:
    assert text_of(root, f"{DEVICE}/pstate/event") == "0\n"
    device.queue.set_aborted(True)
    assert text_of(root, f"{DEVICE}/pstate/event") == "1\n"


def test_the_state_counts_what_is_under_way(root: Directory, device: FakeDevice) -> None:
    for op in Op:
        device.stats.start(op)
    device.queue.parked, device.open_count = 5, 2
    counts = {
        "active_reqs": "4",
        "total_bios": "9",
        "discard_inflight_bios": "1",
        "fsync_reqs": "1",
        "queued_bios": "5",
        "open_count": "2",
    }
    assert {name: text_of(root, f"{DEVICE}/pstate/{name}").strip() for name in counts} == counts


def test_the_top_of_no_delta_is_minus_one_as_an_unsigned_number(root: Directory, device: FakeDevice) -> None:
    device.stack.deltas = ()
    assert text_of(root, f"{DEVICE}/pstate/top") == "4294967295\n"


def test_image_info_is_inode_and_device_of_the_file(root: Directory, device: FakeDevice) -> None:
    for major, minor in ((8, 17), (0, 0x12345), (0xABC, 255), (259, 1048575), (0x12345, 0x7ABCDEF)):
        device.stack.deltas[0].device_number = os.makedev(major, minor)
        assert text_of(root, f"{DEVICE}/pdelta/0/image_info") == f"ino:1234\nsdev:{major}:{minor}\n"


async def test_a_replaced_delta_is_a_new_directory_and_the_old_files_answer_enodev() -> None:
    registry = FakeRegistry()
    base, top, copy = FakeDelta("/images/base"), FakeDelta("/images/top"), FakeDelta("/copy/top")
    device = registry.add(base, top)
    root = tree_of(registry)
    of_base, of_top = node_at(root, f"{DEVICE}/pdelta/0"), node_at(root, f"{DEVICE}/pdelta/1")
    image = opened(root, f"{DEVICE}/pdelta/1/image")
    lower = opened(root, f"{DEVICE}/pdelta/0/image")
    assert image.read(0, 99) == b"/images/top\n"
    device.stack.deltas = (base, copy)
    with pytest.raises(NoSuchDevice):
        image.read(0, 99)
    assert image.poll()[0] == READY | CHANGED
    assert lower.read(0, 99) == b"/images/base\n"
    assert node_at(root, f"{DEVICE}/pdelta/0") is of_base
    assert node_at(root, f"{DEVICE}/pdelta/1") is not of_top
    assert text_of(root, f"{DEVICE}/pdelta/1/image") == "/copy/top\n"


def test_levels_come_and_go_with_the_stack(root: Directory, device: FakeDevice) -> None:
    base = device.stack.deltas[0]
    levels = node_at(root, f"{DEVICE}/pdelta")
    assert isinstance(levels, Directory)
    for deltas in ((base, FakeDelta("/images/top")), (base,), (FakeDelta("/images/other"), base)):
        device.stack.deltas = deltas
        assert list(levels.children()) == [str(level) for level in range(len(deltas))]
        for level, delta in enumerate(deltas):
            assert text_of(root, f"{DEVICE}/pdelta/{level}/image") == f"{delta.path}\n"
            assert text_of(root, f"{DEVICE}/pdelta/{level}/level") == f"{level}\n"


def test_a_flavour_decides_which_groups_there_are(registry: FakeRegistry, device: FakeDevice) -> None:
    device.flavour = replace(device.flavour, groups=frozenset({"pstat"}))
    children = node_at(tree_of(registry), DEVICE)
    assert isinstance(children, Directory)
    assert "pstat" in children.children()
    assert not {"pstate", "pdelta", "ptune"} & children.children().keys()
