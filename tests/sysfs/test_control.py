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
    device.queue.standby.storage_lost(
        Reason(errno=errno.ENOTCONN, operation="punch hole", offset=65536, length=512, level=2, file="/images/a\nb")
    )
    device.queue.standby.since_s = 1700000000.5
    assert [watcher.poll()[0] for watcher in watchers] == [READY | CHANGED] * 2
    assert [watcher.read(0, 99) for watcher in watchers] == [
        b"errno=ENOTCONN operation=punch_hole offset=65536 length=512 level=2 file=/images/a\\nb\n",
        b"1700000000.500\n",
    ]
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
    device.why.text, device.queue.parked = "first\nsecond", 3
    assert re.fullmatch(r"first\\nsecond\n", text_of(root, f"{CONTROL}/last_error"))
    assert text_of(root, f"{CONTROL}/parked") == "3\n"


# --- options of replace_delta -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("level=0 /a", "replace /a level=0 verify=none"),
        ("level=1 verify=map /a b\n", "replace /a b level=1 verify=map"),
        ("verify=full  level=2  /a=b", "replace /a=b level=2 verify=full"),
        ("/level=3 x", "replace /level=3 x"),
    ],
)
async def test_replace_delta_takes_options_before_the_path(
    root: Directory, device: FakeDevice, text: str, asked: str
) -> None:
    await write(root, f"{CONTROL}/replace_delta", text)
    assert device.asked == [asked]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("level=x /a", "level is 'x', expected the number of a level"),
        ("level=-1 /a", "level is '-1', expected the number of a level"),
        ("level= /a", "level is '', expected the number of a level"),
        ("verify=all /a", "verify is 'all', expected one of none, map, full"),
        ("depth=1 /a", "depth is no option of replace_delta, expected level or verify"),
        ("level=1 ", "replace_delta wants the path of the new delta: [level=N] [verify=none|map|full] PATH"),
    ],
)
async def test_a_wrong_option_is_refused_and_last_error_says_what_is_wrong_with_it(
    root: Directory, device: FakeDevice, text: str, why: str
) -> None:
    with pytest.raises(BadValue):
        await write(root, f"{CONTROL}/replace_delta", text)
    assert device.asked == []
    assert text_of(root, f"{CONTROL}/last_error") == f"replace_delta: {why}\n"


# --- holding ------------------------------------------------------------------------------------------------------


async def test_the_policy_is_fail_until_it_is_set(root: Directory) -> None:
    assert text_of(root, f"{CONTROL}/on_standby") == "fail\n"
    await write(root, f"{CONTROL}/on_standby", "hold\n")
    assert text_of(root, f"{CONTROL}/on_standby") == "hold\n"
    with pytest.raises(BadValue):
        await write(root, f"{CONTROL}/on_standby", "wait\n")
    assert text_of(root, f"{CONTROL}/last_error") == "on_standby: on_standby is 'wait', expected fail or hold\n"
    await write(root, f"{CONTROL}/on_standby", "fail")
    assert text_of(root, f"{CONTROL}/last_error") == ""


async def test_the_time_to_hold_has_bounds(root: Directory) -> None:
    assert text_of(root, f"{CONTROL}/hold_timeout_ms") == "300000\n"
    for text in ("1", "86400000\n"):
        await write(root, f"{CONTROL}/hold_timeout_ms", text)
        assert text_of(root, f"{CONTROL}/hold_timeout_ms").strip() == text.strip()
    for text in ("0", "86400001", "-1", "1.5", "1s", " 1"):
        with pytest.raises(BadValue):
            await write(root, f"{CONTROL}/hold_timeout_ms", text)
    assert text_of(root, f"{CONTROL}/hold_timeout_ms") == "86400000\n"


async def test_fail_held_takes_1(root: Directory, device: FakeDevice) -> None:
    with pytest.raises(BadValue):
        await write(root, f"{CONTROL}/fail_held", "0")
    await write(root, f"{CONTROL}/fail_held", "1\n")
    assert device.queue.asked == ["fail_held"]


def test_held_tells_its_pollers(root: Directory, device: FakeDevice) -> None:
    watcher = opened(root, f"{CONTROL}/held")
    assert watcher.read(0, 99) == b"0\n"
    device.queue.room.held = 1
    device.queue.room.changed.fire()
    assert watcher.poll()[0] == READY | CHANGED
    assert watcher.read(0, 99) == b"1\n"


async def test_what_is_kept_for_a_replay_can_be_forgotten(root: Directory, device: FakeDevice) -> None:
    device.unflushed.wrote(0, b"x" * 100)
    for text in ("1", "", "00", "0 "):
        with pytest.raises(BadValue):
            await write(root, f"{CONTROL}/unflushed_bytes", text + "\n")
    assert text_of(root, f"{CONTROL}/unflushed_bytes") == "100\n"
    await write(root, f"{CONTROL}/unflushed_bytes", "0\n")
    assert text_of(root, f"{CONTROL}/unflushed_bytes") == "0\n"


def test_what_waits_and_what_no_flush_has_confirmed_is_shown_in_bytes(root: Directory, device: FakeDevice) -> None:
    device.queue.room.held_bytes = 4096
    device.unflushed.wrote(0, b"x" * 100)
    assert text_of(root, f"{CONTROL}/held_bytes") == "4096\n"
    assert text_of(root, f"{CONTROL}/unflushed_bytes") == "100\n"
