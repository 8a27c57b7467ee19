"""The tree as a whole: links that lead somewhere, nodes that stay, devices that come and go."""

import posixpath

import pytest

from ploopfs.errors import BadValue, NoSuchDevice, PloopError
from ploopfs.sysfs.nodes import Attribute, Directory, Disk, Link, Names, Report, Stream
from ploopfs.sysfs.openfile import CHANGED, READY, opening
from tests.sysfs.fakes import DEVICE, FakeDevice, FakeRegistry, node_at, opened, text_of, walk


def test_every_link_leads_to_a_directory_of_the_tree(root: Directory) -> None:
    links = [(path, node) for path, node in walk(root) if isinstance(node, Link)]
    assert len(links) == 4
    for path, link in links:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link.target))
        assert isinstance(node_at(root, target), Directory)


def test_the_links_are_those_of_a_real_virtual_device(root: Directory) -> None:
    links = {path: node.target for path, node in walk(root) if isinstance(node, Link)}
    assert links == {
        "sys/block/ploop0": "../devices/virtual/block/ploop0",
        "sys/class/block/ploop0": "../../devices/virtual/block/ploop0",
        "sys/dev/block/182:0": "../../devices/virtual/block/ploop0",
        f"{DEVICE}/subsystem": "../../../../class/block",
    }


async def test_a_reload_is_asked_for_by_a_one_and_by_nothing_else(root: Directory, registry: FakeRegistry) -> None:
    node = node_at(root, "sys/fs/ploopfs/reload")
    assert isinstance(node, Attribute)
    assert node.store is not None
    seen = registry.reload_asked.version
    with pytest.raises(BadValue, match="reload takes 1"):
        await node.store("0\n")
    assert registry.reload_asked.version == seen
    await node.store("1\n")
    assert registry.reload_asked.version == seen + 1


def test_no_two_names_share_a_node(root: Directory) -> None:
    nodes = [node for _, node in walk(root)]
    assert len({id(node) for node in nodes}) == len(nodes)


def test_nodes_are_the_same_objects_each_time(root: Directory) -> None:
    assert dict(walk(root)) == dict(walk(root))


def test_modes_are_those_of_sysfs_and_in_debugfs_the_owners_alone(root: Directory) -> None:
    modes = {type(node): set[int]() for _, node in walk(root)}
    for _, node in walk(root):
        modes[type(node)].add(node.mode)
    assert modes == {
        Directory: {0o755},
        Link: {0o777},
        Disk: {0o660},
        Attribute: {0o444, 0o644, 0o200, 0o600, 0o400},
        Stream: {0o444},
        Report: {0o444},
    }


def test_every_value_ends_in_exactly_one_newline(root: Directory) -> None:
    for path, node in walk(root):
        if isinstance(node, Attribute) and node.show is not None:
            try:
                text = opening(node, 0).read(0, 1 << 20)
            except PloopError:
                continue
            assert not text or (text.endswith(b"\n") and not text.endswith(b"\n\n")), path


def test_the_disk_is_the_device(root: Directory, device: FakeDevice) -> None:
    disk = node_at(root, "dev/ploop0")
    assert isinstance(disk, Disk)
    assert disk.device is device  # type: ignore[comparison-overlap]
    device.read_only = True
    assert disk.mode == 0o440


def test_a_second_device_leaves_the_first_alone(root: Directory, registry: FakeRegistry) -> None:
    first = dict(walk(root))
    registry.add(name="ploop3")
    both = dict(walk(root))
    assert first.items() <= both.items()
    assert text_of(root, "sys/devices/virtual/block/ploop3/dev") == "182:48\n"
    assert "sys/dev/block/182:48" in both


def test_a_removed_device_is_gone_and_its_open_files_answer_enodev(root: Directory, registry: FakeRegistry) -> None:
    paths = [f"{DEVICE}/size", f"{DEVICE}/queue/standby", f"{DEVICE}/pdelta/0/image", f"{DEVICE}/ploopfs/parked"]
    files = [opened(root, path) for path in paths]
    for file in files:
        file.read(0, 4096)
    del registry.devices["ploop0"]
    for file in files:
        assert file.poll()[0] == READY | CHANGED
        with pytest.raises(NoSuchDevice):
            file.read(0, 4096)
    assert not [path for path, _ in walk(root) if "ploop0" in path or "182" in path]


@pytest.mark.parametrize("path", ["sys/block", "sys/class/block", "sys/dev/block", "sys/devices/virtual/block", "dev"])
def test_names_are_listed_anew_only_when_a_device_has_come_or_gone(
    root: Directory, registry: FakeRegistry, path: str
) -> None:
    """Or one of a thousand would take as long to find as a thousand."""
    directory = node_at(root, path)
    assert isinstance(directory, Directory)
    names = directory.children()
    assert directory.children() is names
    registry.add(name="ploop7")
    more = directory.children()
    assert directory.children() is more
    assert len(more) == len(names) + 1
    del registry.devices["ploop7"]
    assert dict(directory.children()) == dict(names)


def test_a_directory_knows_how_many_directories_it_has(root: Directory, registry: FakeRegistry) -> None:
    registry.add(name="ploop7")
    counts = [node_at(root, path).children() for path in ("sys/devices/virtual/block", "sys/block")]  # type: ignore[union-attr]
    assert [names.subdirectories for names in counts if isinstance(names, Names)] == [2, 0]


def test_a_device_that_came_back_under_its_name_has_new_nodes(root: Directory, registry: FakeRegistry) -> None:
    before = dict(walk(root))
    of_the_old = opened(root, f"{DEVICE}/size")
    registry.add()
    after = dict(walk(root))
    changed = {path for path in before if before[path] is not after[path]}
    assert changed == {path for path in before if "ploop0" in path or "182" in path}
    with pytest.raises(NoSuchDevice):
        of_the_old.read(0, 4096)


def test_a_device_that_was_seen_missing_has_new_nodes_too(root: Directory, registry: FakeRegistry) -> None:
    before = node_at(root, DEVICE)
    device = registry.devices.pop("ploop0")
    assert not any("ploop0" in path for path, _ in walk(root))
    registry.devices["ploop0"] = device
    assert node_at(root, DEVICE) is not before


def test_the_module_shows_its_key(root: Directory, registry: FakeRegistry) -> None:
    assert text_of(root, "sys/fs/ploopfs/ploop_standby_check") == "1\n"
    registry.key.enabled = False
    assert text_of(root, "sys/fs/ploopfs/ploop_standby_check") == "0\n"
