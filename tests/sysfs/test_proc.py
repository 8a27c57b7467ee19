"""`proc/` as the kernel writes it, with the system around it as lines that a test wrote down."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from ploopfs.bounds import PAGE_BYTES
from ploopfs.device.stats import Op
from ploopfs.sysfs.nodes import Attribute, Directory
from ploopfs.sysfs.proc import Use
from tests.sysfs.fakes import FakeRegistry, node_at, opened, text_of, tree_of

LOOP_MOUNT = "43 27 7:0 / /mnt/a\\040b rw,relatime shared:7 - ext4 /dev/loop0 rw,errors=remount-ro"
LOOP_SWAP = "/dev/loop1                              partition\t65532\t\t0\t\t-2"
HOST_STATS = "   7       0 loop0 1 2 3\n 254       0 vda 4 5 6\n"
HOST_PARTITIONS = "major minor  #blocks  name\n\n 254        0  268435456 vda\n"
EMPTY_SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


@dataclass
class FakeHost:
    stats: str = HOST_STATS
    listed: str = HOST_PARTITIONS
    mounted: list[Use] = field(default_factory=list)
    swapped: list[Use] = field(default_factory=list)

    def diskstats(self) -> str:
        return self.stats

    def partitions(self) -> str:
        return self.listed

    def mounts(self) -> Sequence[Use]:
        return self.mounted

    def swaps(self) -> Sequence[Use]:
        return self.swapped


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def root(registry: FakeRegistry, host: FakeHost) -> Directory:
    registry.add()
    registry.add(name="ploop3")
    return tree_of(registry, host)


def test_diskstats_has_twenty_columns_which_are_numbers_name_and_stat(
    root: Directory, registry: FakeRegistry
) -> None:
    stats = registry.devices["ploop3"].stats
    stats.finish(Op.READ, 4096, stats.start(Op.READ))
    stats.start(Op.FLUSH)
    first, second = text_of(root, "proc/diskstats").splitlines()
    assert first == " 182       0 ploop0" + " 0" * 17
    assert second.startswith(" 182      48 ploop3 1 0 8 ")
    assert second.split()[11] == "1"
    assert len(second.split()) == 20


def test_partitions_counts_blocks_of_a_kilobyte_below_a_head_and_an_empty_line(root: Directory) -> None:
    assert text_of(root, "proc/partitions") == (
        "major minor  #blocks  name\n\n 182        0      65536 ploop0\n 182       48      65536 ploop3\n"
    )


def test_without_devices_the_files_are_as_empty_as_the_kernels() -> None:
    empty = tree_of(FakeRegistry())
    for name in ("diskstats", "partitions", "self/mountinfo", "ploopfs/diskstats", "ploopfs/partitions"):
        assert text_of(empty, f"proc/{name}") == "", name
    assert text_of(empty, "proc/swaps") == EMPTY_SWAPS


def test_a_mount_of_a_loop_device_over_a_disk_stands_there_with_the_disks_numbers_and_name(
    root: Directory, host: FakeHost
) -> None:
    host.mounted = [Use("ploop3", LOOP_MOUNT)]
    assert text_of(root, "proc/self/mountinfo") == (
        "43 27 182:48 / /mnt/a\\040b rw,relatime shared:7 - ext4 /dev/ploop3 rw,errors=remount-ro\n"
    )


def test_a_line_with_the_separators_look_in_its_beginning_is_taken_apart_all_the_same(
    root: Directory, host: FakeHost
) -> None:
    host.mounted = [Use("ploop3", "23 22 7:2 - /x rw - ext4 /dev/loop0 rw")]
    assert text_of(root, "proc/self/mountinfo") == "23 22 182:48 - /x rw - ext4 /dev/ploop3 rw\n"


def test_a_swap_area_on_a_disk_stands_there_in_the_kernels_columns(root: Directory, host: FakeHost) -> None:
    host.swapped = [Use("ploop0", LOOP_SWAP)]
    assert text_of(root, "proc/swaps") == EMPTY_SWAPS + LOOP_SWAP.replace("/dev/loop1 ", "/dev/ploop0") + "\n"


def test_who_uses_a_disk_that_is_gone_is_not_shown(root: Directory, host: FakeHost) -> None:
    host.mounted, host.swapped = [Use("ploop9", LOOP_MOUNT)], [Use("ploop9", LOOP_SWAP)]
    assert text_of(root, "proc/self/mountinfo") == ""
    assert text_of(root, "proc/swaps") == EMPTY_SWAPS


def test_the_files_for_the_whole_system_have_its_lines_unchanged_and_then_ours(root: Directory) -> None:
    assert text_of(root, "proc/ploopfs/diskstats") == HOST_STATS + text_of(root, "proc/diskstats")
    ours = text_of(root, "proc/partitions").split("\n\n")[1]
    assert text_of(root, "proc/ploopfs/partitions") == HOST_PARTITIONS + ours


def test_a_system_that_shows_nothing_leaves_ours_whole(root: Directory, host: FakeHost) -> None:
    host.stats = host.listed = ""
    for name in ("diskstats", "partitions"):
        assert text_of(root, f"proc/ploopfs/{name}") == text_of(root, f"proc/{name}")


def test_a_file_of_proc_is_longer_than_a_page_and_one_snapshot_until_its_reader_starts_again(
    root: Directory, registry: FakeRegistry
) -> None:
    for number in range(4, 400):
        registry.add(name=f"ploop{number}")
    file = opened(root, "proc/diskstats")
    before = file.read(0, PAGE_BYTES)
    del registry.devices["ploop0"]
    while piece := file.read(len(before), PAGE_BYTES):
        before += piece
    assert len(before) > 4 * PAGE_BYTES
    assert [line.split()[2] for line in before.decode().splitlines()[:2]] == ["ploop0", "ploop3"]
    assert len(before.splitlines()) == 398
    assert file.read(0, 1 << 20).startswith(b" 182      48 ploop3 ")


def test_no_file_of_proc_can_be_written_or_is_bounded(root: Directory) -> None:
    for name in ("diskstats", "partitions", "swaps", "self/mountinfo", "ploopfs/diskstats", "ploopfs/partitions"):
        node = node_at(root, f"proc/{name}")
        assert isinstance(node, Attribute)
        assert (node.mode, node.bounded) == (0o444, False)
