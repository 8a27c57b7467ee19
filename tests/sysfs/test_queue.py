"""What root may write into `queue/`, and `standby` as a watcher sees it."""

import errno
import os

import pytest

from ploopfs.device.standby import Reason
from ploopfs.errors import BadValue, PermissionDenied
from ploopfs.sysfs.nodes import Directory
from ploopfs.sysfs.openfile import CHANGED, READY
from tests.sysfs.fakes import CLUSTER_BYTES, DEVICE, FakeDevice, opened, text_of, write

QUEUE = f"{DEVICE}/queue"
NUMBERS = (
    "add_random iostats rotational stable_writes nomerges rq_affinity read_ahead_kb max_sectors_kb discard_max_bytes"
)


def test_standby_says_in_one_word_where_the_machine_is(root: Directory, device: FakeDevice) -> None:
    words = [text_of(root, f"{QUEUE}/standby")]
    device.queue.standby.detach()
    words.append(text_of(root, f"{QUEUE}/standby"))
    assert words == ["off\n", "not supported\n"]


@pytest.mark.expects_warnings
def test_a_watcher_of_standby_sees_it_go_on_and_off(root: Directory, device: FakeDevice) -> None:
    file = opened(root, f"{QUEUE}/standby")
    assert (file.read(0, 99), file.poll()[0]) == (b"off\n", READY)
    device.queue.standby.storage_lost(Reason(errno=errno.ENOTCONN, operation="read", file="gone"))
    assert file.poll()[0] == READY | CHANGED
    assert (file.read(0, 99), file.poll()[0]) == (b"on\n", READY)
    device.queue.standby.recovered()
    assert file.poll()[0] == READY | CHANGED
    assert file.read(0, 99) == b"off\n"


def test_standby_cannot_be_written_even_by_root(root: Directory) -> None:
    with pytest.raises(PermissionDenied):
        opened(root, f"{QUEUE}/standby", os.O_WRONLY)


@pytest.mark.parametrize("name", NUMBERS.split())
@pytest.mark.parametrize("text", ["junk", "-1", "0x1", " 0", "0 \n", "4294967296", ""])
async def test_every_number_of_the_queue_is_strict(root: Directory, name: str, text: str) -> None:
    before = text_of(root, f"{QUEUE}/{name}")
    if text:
        with pytest.raises(BadValue):
            await write(root, f"{QUEUE}/{name}", text)
    else:
        await write(root, f"{QUEUE}/{name}", text)
    assert text_of(root, f"{QUEUE}/{name}") == before


@pytest.mark.parametrize(
    ("name", "stored", "shown"),
    [
        ("add_random", "1", "1"),
        ("iostats", "0", "0"),
        ("rotational", "7\n", "1"),
        ("stable_writes", "+1\n", "1"),
        ("nomerges", "2", "2"),
        ("nomerges", "3", "1"),
        ("nomerges", "0", "0"),
        ("rq_affinity", "2", "2"),
        ("rq_affinity", "3", "0"),
        ("read_ahead_kb", "4096", "4096"),
        ("read_ahead_kb", "7", "4"),
        ("max_sectors_kb", "4", "4"),
        ("max_sectors_kb", "127", "127"),
        ("discard_max_bytes", "0", "0"),
        ("discard_max_bytes", str(CLUSTER_BYTES), str(CLUSTER_BYTES)),
        ("discard_max_bytes", str(5 * CLUSTER_BYTES), str(CLUSTER_BYTES)),
        ("write_cache", "write through", "write through"),
        ("write_cache", "none", "write through"),
        ("write_cache", "write back and more\n", "write back"),
        ("scheduler", "mq-deadline\n", "none"),
        ("io_poll_delay", "junk", "-1"),
    ],
)
async def test_what_is_stored_is_shown_as_the_kernel_keeps_it(
    root: Directory, name: str, stored: str, shown: str
) -> None:
    await write(root, f"{QUEUE}/{name}", stored)
    assert text_of(root, f"{QUEUE}/{name}") == f"{shown}\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_sectors_kb", "3"),
        ("max_sectors_kb", "128"),
        ("discard_max_bytes", "512"),
        ("write_cache", "writeback"),
        ("nr_requests", "128"),
        ("io_poll", "0"),
        ("wbt_lat_usec", "0"),
    ],
)
async def test_a_value_that_this_queue_cannot_take_is_refused(root: Directory, name: str, text: str) -> None:
    with pytest.raises(BadValue):
        await write(root, f"{QUEUE}/{name}", text)


def test_throttling_that_is_not_set_up_cannot_be_read(root: Directory) -> None:
    with pytest.raises(BadValue):
        text_of(root, f"{QUEUE}/wbt_lat_usec")


def test_the_discard_limits_are_one_cluster_of_the_stack(root: Directory, device: FakeDevice) -> None:
    device.stack.cluster_bytes = 32 << 10
    for name in ("discard_granularity", "discard_max_bytes", "discard_max_hw_bytes"):
        assert text_of(root, f"{QUEUE}/{name}") == "32768\n"
