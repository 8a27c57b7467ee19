"""Numbers and lookup counts."""

import pyfuse3
import pytest

from ploopfs.fuse import inodes
from ploopfs.fuse.inodes import Inode, Inodes
from ploopfs.sysfs.nodes import Attribute, Directory, Disk, Link, Node
from tests.fuse.toy import MemoryDisk


@pytest.fixture
def names() -> dict[str, Node]:
    return {"link": Link("."), "below": Directory(lambda: below)}


below: dict[str, Node] = {"value": Attribute(str)}


def look_up(table: Inodes, node: Node) -> Inode:
    inode = table.of(node)
    inode.lookups += 1
    return inode


def test_the_root_has_the_number_that_the_kernel_expects_and_is_never_forgotten() -> None:
    root = Directory(dict)
    table = Inodes(root)
    assert table.of(root).number == pyfuse3.ROOT_INODE
    table.forget(pyfuse3.ROOT_INODE, 10)
    assert table[pyfuse3.ROOT_INODE].node is root


def test_a_node_has_one_number_and_no_other_node_has_it(names: dict[str, Node]) -> None:
    table = Inodes(Directory(lambda: names))
    link = table.of(names["link"])
    assert table.of(names["link"]) is link
    assert table.of(names["below"]).number != link.number
    assert table[link.number].node is names["link"]


def test_two_nodes_that_say_the_same_are_two_files() -> None:
    table = Inodes(Directory(dict))
    assert table.of(Link("a")) is not table.of(Link("a"))


def churn(table: Inodes) -> None:
    """Make the table sweep, as it does when it has doubled."""
    for _ in range(2 * len(table) + inodes._SWEEP_LEAST):
        table.forget(look_up(table, Link(".")).number, 1)


def test_a_node_that_left_the_tree_stays_until_it_is_forgotten(names: dict[str, Node]) -> None:
    table = Inodes(Directory(lambda: names))
    link = look_up(table, names["link"])
    assert look_up(table, names.pop("link")) is link
    table.forget(link.number, 1)
    churn(table)
    assert table[link.number] is link
    table.forget(link.number, 1)
    churn(table)
    with pytest.raises(KeyError):
        table[link.number]
    assert table.of(link.node).number > link.number


def test_a_node_in_the_tree_keeps_its_number_when_it_is_forgotten(names: dict[str, Node]) -> None:
    table = Inodes(Directory(lambda: names))
    value = look_up(table, below["value"])
    value.changes.uid = 7
    table.forget(value.number, 1)
    churn(table)
    assert look_up(table, below["value"]) is value


def test_the_table_does_not_grow_with_nodes_that_come_and_go() -> None:
    table = Inodes(Directory(dict))
    for _ in range(10):
        churn(table)
    assert len(table) <= inodes._SWEEP_LEAST


def test_a_directory_that_cannot_list_itself_does_not_stop_forgetting_for_ever(
    monkeypatch: pytest.MonkeyPatch, names: dict[str, Node]
) -> None:
    monkeypatch.setattr(inodes, "_SWEEP_LEAST", 2)

    def fail() -> dict[str, Node]:
        raise RuntimeError("a bug")

    names["failing"] = Directory(fail)
    table = Inodes(Directory(lambda: names))
    link = look_up(table, names["link"])
    with pytest.raises(RuntimeError):
        table.forget(link.number, 1)
    table.forget(look_up(table, names["link"]).number, 1)
    assert link.lookups == 0


def test_what_was_changed_of_a_disk_counts_for_whoever_serves_it() -> None:
    disk = Disk(MemoryDisk())
    one, other = Inodes(Directory(dict)), Inodes(Directory(dict))
    one.of(disk).changes.mode = 0o600
    assert other.of(disk).changes.mode == 0o600
    assert one.of(Link(".")).changes.mode is None
