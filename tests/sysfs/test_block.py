"""The attributes beside the groups: what they compute, and what may be written."""

import pytest

from ploopfs.device.stats import Op
from ploopfs.errors import BadValue, NoSuchDevice
from ploopfs.sysfs.nodes import Directory
from tests.sysfs.fakes import DEVICE, FakeDevice, text_of, write

UUID = "01234567-89ab-cdef-0123-456789abcdef"


def test_stat_is_17_columns_right_aligned_to_8(root: Directory, device: FakeDevice) -> None:
    started = device.stats.start(Op.READ)
    device.stats.finish(Op.READ, 4096, started)
    text = text_of(root, f"{DEVICE}/stat")
    assert text.startswith("       1        0        8 ")
    assert (len(text.split()), len(text)) == (17, 17 * 9)


def test_inflight_is_reads_and_all_others(root: Directory, device: FakeDevice) -> None:
    for op in Op:
        device.stats.start(op)
    assert text_of(root, f"{DEVICE}/inflight") == "       1        3\n"


def test_size_counts_sectors_of_512_bytes_and_ro_follows_the_device(root: Directory, device: FakeDevice) -> None:
    device.size_bytes, device.read_only = 3 * 512, True
    assert (text_of(root, f"{DEVICE}/size"), text_of(root, f"{DEVICE}/ro")) == ("3\n", "1\n")


@pytest.mark.parametrize("text", ["add", "change\n", "remove", f"add {UUID}", f"change {UUID} A=1 b2=C\n"])
async def test_a_synthetic_uevent_is_accepted(root: Directory, text: str) -> None:
    await write(root, f"{DEVICE}/uevent", text)


@pytest.mark.parametrize(
    "text",
    ["junk", "\n", "Add", "add ", "add\n\n", "adds", "add A=1", f"add {UUID}x", f"add {UUID} A", f"add {UUID} A="],
)
async def test_a_bad_word_for_a_uevent_is_refused(root: Directory, text: str) -> None:
    with pytest.raises(BadValue):
        await write(root, f"{DEVICE}/uevent", text)


async def test_the_polling_of_media_cannot_be_set_where_there_is_none(root: Directory) -> None:
    for text in ("-1", "1000\n"):
        with pytest.raises(NoSuchDevice):
            await write(root, f"{DEVICE}/events_poll_msecs", text)
    for text in ("-2", "junk"):
        with pytest.raises(BadValue):
            await write(root, f"{DEVICE}/events_poll_msecs", text)
