"""A mapped device in the tree: its names, and the files that stand for dmsetup's ioctls."""

import errno
import os

import pytest

from ploopfs.bounds import MAX_TABLE_BYTES
from ploopfs.device.flavour import VZ9
from ploopfs.device.table import parse_table
from ploopfs.errors import BadValue, MessageNotSupported
from ploopfs.sysfs.nodes import Directory, Link
from ploopfs.sysfs.openfile import CHANGED, READY
from tests.sysfs.fakes import FakeDelta, FakeDevice, FakeMapper, FakeRegistry, node_at, opened, text_of, tree_of, write

DEVICE = "sys/devices/virtual/block/dm-3"
CONTROL = f"{DEVICE}/ploopfs"


@pytest.fixture
def device(registry: FakeRegistry) -> FakeDevice:
    deltas = (FakeDelta("/images/base.hds", writable=False), FakeDelta("/images/top.hds"))
    return registry.add(*deltas, name="dm-3", flavour=VZ9)


@pytest.fixture
def mapper(device: FakeDevice) -> FakeMapper:
    assert device.mapper is not None
    return device.mapper


@pytest.fixture
def root(registry: FakeRegistry, mapper: FakeMapper) -> Directory:
    assert mapper.name == "ploop3"
    return tree_of(registry)


def test_the_name_of_device_mapper_leads_to_the_disk(root: Directory, registry: FakeRegistry) -> None:
    link = node_at(root, "dev/mapper/ploop3")
    assert isinstance(link, Link)
    assert link.target == "../dm-3"
    registry.devices.clear()
    dev = node_at(root, "dev")
    assert isinstance(dev, Directory)
    assert dev.children() == {}


def test_who_it_is_and_whether_it_is_suspended(root: Directory, mapper: FakeMapper) -> None:
    mapper.uuid = "PLOOP-1"
    file = opened(root, f"{DEVICE}/dm/suspended")
    assert file.read(0, 9) == b"0\n"
    mapper.suspended = True
    mapper.changed.fire()
    assert file.poll()[0] == READY | CHANGED
    assert [text_of(root, f"{DEVICE}/dm/{name}") for name in ("name", "uuid", "suspended")] == [
        "ploop3\n",
        "PLOOP-1\n",
        "1\n",
    ]


async def test_a_device_can_be_marked_untrusted(root: Directory) -> None:
    await write(root, f"{DEVICE}/vz_trusted_exec", "0\n")
    assert text_of(root, f"{DEVICE}/vz_trusted_exec") == "0\n"
    with pytest.raises(BadValue):
        await write(root, f"{DEVICE}/vz_trusted_exec", "no")


def test_tables_and_states_are_lines(root: Directory, mapper: FakeMapper) -> None:
    names = ("table", "table_inactive", "status", "status_inactive", "deltas")
    assert [text_of(root, f"{CONTROL}/{name}") for name in names] == [
        "0 131072 ploop 11 /images/base.hds /images/top.hds\n",
        "",
        "0 131072 ploop 2 v2 2048 o\n",
        "",
        "0 /images/base.hds 1 ploop1\n1 /images/top.hds 0 ploop1\n",
    ]
    mapper.inactive_table, mapper.inactive_status = parse_table("0 8 ploop 7 /a"), "0 8 ploop 1 v2 128 o"
    assert text_of(root, f"{CONTROL}/table_inactive") == "0 8 ploop 7 /a\n"
    assert text_of(root, f"{CONTROL}/status_inactive") == "0 8 ploop 1 v2 128 o\n"


def test_a_watcher_of_the_tables_is_told(root: Directory, device: FakeDevice) -> None:
    files = [opened(root, f"{CONTROL}/{name}") for name in ("table", "table_inactive", "status", "event_nr", "deltas")]
    for file in files:
        file.read(0, 99)
    device.queue.changed.fire()
    assert [file.poll()[0] for file in files] == [READY | CHANGED] * 5


async def test_a_table_may_be_longer_than_a_page(root: Directory, mapper: FakeMapper) -> None:
    text = "0 8 ploop 7 " + " ".join(f"/{'d' * 200}/{number}" for number in range(60))
    file = opened(root, f"{CONTROL}/load", os.O_WRONLY)
    assert await file.write(0, text.encode()) == len(text) > 4096
    assert mapper.asked == [f"load {text}"]
    with pytest.raises(BadValue, match="the text has"):
        await write(root, f"{CONTROL}/load", "0 8 ploop 7 /" + "d" * MAX_TABLE_BYTES)
    assert len(mapper.asked) == 1


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("suspend", "\n", "suspend flush=True"),
        ("suspend", "flush lockfs\n", "suspend flush=True"),
        ("suspend", "noflush nolockfs", "suspend flush=False"),
        ("suspend", "nolockfs", "suspend flush=True"),
        ("resume", "noflush nolockfs\n", "resume"),
        ("resume", "\n", "resume"),
        ("clear", "1\n", "clear"),
    ],
)
async def test_what_is_written_is_what_is_done(
    root: Directory, mapper: FakeMapper, name: str, text: str, asked: str
) -> None:
    await write(root, f"{CONTROL}/{name}", text)
    assert mapper.asked == [asked]


@pytest.mark.parametrize(("name", "text"), [("suspend", "hard"), ("resume", "1 2"), ("clear", "0"), ("clear", "all")])
async def test_other_words_are_refused_and_explained(
    root: Directory, device: FakeDevice, mapper: FakeMapper, name: str, text: str
) -> None:
    with pytest.raises(BadValue):
        await write(root, f"{CONTROL}/{name}", text)
    assert mapper.asked == []
    assert text_of(root, f"{CONTROL}/last_error").startswith(f"{name}: ")
    assert device.asked == []


async def test_a_message_is_answered_to_whoever_reads_next(root: Directory) -> None:
    await write(root, f"{CONTROL}/message", "get_img_name 1\n")
    assert text_of(root, f"{CONTROL}/message") == "/images/top.hds\n"
    await write(root, f"{CONTROL}/message", "get_img_name 9\n")
    assert text_of(root, f"{CONTROL}/message") == ""


async def test_through_one_descriptor_each_gets_the_answer_to_his_own_message(root: Directory) -> None:
    mine, theirs = (opened(root, f"{CONTROL}/message", os.O_RDWR) for _ in range(2))
    await mine.write(0, b"get_img_name 0")
    await theirs.write(0, b"get_img_name 9")
    assert (mine.read(0, 99), theirs.read(0, 99)) == (b"/images/base.hds\n", b"")
    await theirs.write(0, b"get_img_name 1")
    assert (mine.read(0, 99), theirs.read(0, 99)) == (b"/images/base.hds\n", b"/images/top.hds\n")


async def test_a_message_that_is_none_has_an_errno_that_can_travel(root: Directory) -> None:
    with pytest.raises(MessageNotSupported) as refused:
        await write(root, f"{CONTROL}/message", "snapshot")
    assert refused.value.errno == errno.EOPNOTSUPP < 512
    assert "'snapshot' is no message" in text_of(root, f"{CONTROL}/last_error")


def test_a_request_based_queue_shows_its_scheduler_and_its_requests(root: Directory) -> None:
    assert text_of(root, f"{DEVICE}/queue/scheduler") == "[mq-deadline] kyber bfq none\n"
    assert text_of(root, f"{DEVICE}/queue/nr_requests") == "256\n"
    assert text_of(root, f"{DEVICE}/queue/fua") == "1\n"
    assert text_of(root, f"{DEVICE}/queue/discard_granularity") == "1048576\n"


@pytest.mark.parametrize(
    ("name", "stored", "shown"),
    [
        ("scheduler", "none\n", "mq-deadline kyber bfq [none]"),
        ("scheduler", "bfq", "mq-deadline kyber [bfq] none"),
        ("nr_requests", "64", "64"),
        ("nr_requests", "1", "4"),
        ("nr_requests", "2048", "2048"),
    ],
)
async def test_a_request_based_queue_takes_what_its_kernel_takes(
    root: Directory, name: str, stored: str, shown: str
) -> None:
    await write(root, f"{DEVICE}/queue/{name}", stored)
    assert text_of(root, f"{DEVICE}/queue/{name}") == f"{shown}\n"


@pytest.mark.parametrize(("name", "text"), [("scheduler", "cfq"), ("nr_requests", "2049"), ("nr_requests", "x")])
async def test_and_refuses_what_it_refuses(root: Directory, name: str, text: str) -> None:
    with pytest.raises(BadValue):
        await write(root, f"{DEVICE}/queue/{name}", text)
