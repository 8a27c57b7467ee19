"""`ploopfs/` of a device: recovery by writing, and why it stands by."""

import errno
import os
import re

import pytest

from ploopfs.device.standby import Reason
from ploopfs.errors import BadValue, ImageMismatch, PermissionDenied
from ploopfs.sysfs.nodes import Directory
from ploopfs.sysfs.openfile import CHANGED, READY
from tests.sysfs.fakes import DEVICE, FakeDevice, opened, text_of, write

CONTROL = f"{DEVICE}/ploopfs"


@pytest.mark.parametrize(
    ("text", "path"), [("/a b\n", "/a b"), ("/a", "/a"), ("/a\n\n", "/a\n"), (" /a \n", " /a "), ("rel", "rel")]
)
async def test_replace_delta_takes_a_path_and_one_newline(
    root: Directory, device: FakeDevice, text: str, path: str
) -> None:
    await write(root, f"{CONTROL}/replace_delta", text)
    assert device.asked == [f"replace {path}"]


async def test_replace_delta_of_nothing_is_refused(root: Directory, device: FakeDevice) -> None:
    with pytest.raises(BadValue):
        await write(root, f"{CONTROL}/replace_delta", "\n")
    assert device.asked == []


async def test_the_errno_of_a_refused_replacement_is_the_writer_s(root: Directory, device: FakeDevice) -> None:
    device.refusal = ImageMismatch("another cluster size")
    with pytest.raises(ImageMismatch):
        await write(root, f"{CONTROL}/replace_delta", "/copy/top\n")
    with pytest.raises(ImageMismatch):
        await write(root, f"{CONTROL}/reopen", "1\n")


async def test_reopen_takes_1_and_nothing_else(root: Directory, device: FakeDevice) -> None:
    for text in ("0", "01", "1 ", "yes", "1\n\n", "\n"):
        with pytest.raises(BadValue):
            await write(root, f"{CONTROL}/reopen", text)
    assert device.asked == []
    await write(root, f"{CONTROL}/reopen", "1\n")
    await write(root, f"{CONTROL}/reopen", "1")
    assert device.asked == ["reopen", "reopen"]


@pytest.mark.parametrize("name", ["replace_delta", "reopen"])
def test_an_order_cannot_be_read_even_by_root(root: Directory, name: str) -> None:
    with pytest.raises(PermissionDenied):
        opened(root, f"{CONTROL}/{name}", os.O_RDWR)


@pytest.mark.expects_warnings
def test_reason_and_time_stand_there_while_the_device_is_in_standby(root: Directory, device: FakeDevice) -> None:
    names = ("standby_reason", "standby_since")
    watchers = [opened(root, f"{CONTROL}/{name}") for name in names]
    assert [watcher.read(0, 99) for watcher in watchers] == [b"", b""]
    device.queue.standby.storage_lost(Reason(errno.ENOTCONN, "/images/a\nb: read"))
    device.queue.standby.since_s = 1700000000.5
    assert [watcher.poll()[0] for watcher in watchers] == [READY | CHANGED] * 2
    assert [watcher.read(0, 99) for watcher in watchers] == [b"ENOTCONN: /images/a\\nb: read\n", b"1700000000.500\n"]
    device.queue.standby.recovered()
    assert [watcher.poll()[0] for watcher in watchers] == [READY | CHANGED] * 2
    assert [text_of(root, f"{CONTROL}/{name}") for name in names] == ["", ""]
    device.queue.standby.detach()
    assert [text_of(root, f"{CONTROL}/{name}") for name in names] == ["", ""]


def test_generation_tells_its_pollers(root: Directory, device: FakeDevice) -> None:
    watcher = opened(root, f"{CONTROL}/generation")
    assert watcher.read(0, 99) == b"1\n"
    device.queue.generation = 2
    device.queue.changed.fire()
    assert watcher.poll()[0] == READY | CHANGED
    assert watcher.read(0, 99) == b"2\n"


def test_last_error_is_one_line_and_parked_a_number(root: Directory, device: FakeDevice) -> None:
    device.last_error, device.queue.parked = "first\nsecond", 3
    assert re.fullmatch(r"first\\nsecond\n", text_of(root, f"{CONTROL}/last_error"))
    assert text_of(root, f"{CONTROL}/parked") == "3\n"
