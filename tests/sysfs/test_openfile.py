"""The conventions of sysfs (kernel-ploop.md 5), a test per rule, on attributes made for it."""

import errno
import os
import select
from dataclasses import dataclass, field

import pytest

from ploopfs.device.signal import Signal
from ploopfs.errors import BadValue, NoSuchDevice, PermissionDenied, PloopError
from ploopfs.sysfs.nodes import Attribute
from ploopfs.sysfs.openfile import CHANGED, READY, OpenAttribute, opening


@dataclass
class Value:
    """An attribute's subject: shows `text`, remembers what was stored, and fails on demand."""

    text: str | None = "hello"
    shown: int = 0
    stored: list[str] = field(default_factory=list)
    error: PloopError | None = None
    signal: Signal = field(default_factory=Signal)
    removed: bool = False

    def show(self) -> str | None:
        self.shown += 1
        if self.error is not None:
            raise self.error
        return self.text

    async def store(self, text: str) -> None:
        if self.error is not None:
            raise self.error
        self.stored.append(text)

    def open(self, flags: int = os.O_RDWR, *, notifies: bool = True) -> OpenAttribute:
        signal = self.signal if notifies else None
        return opening(Attribute(self.show, self.store, signal, lambda: self.removed), flags)


def test_the_value_has_one_trailing_newline() -> None:
    assert Value().open().read(0, 4096) == b"hello\n"


def test_an_empty_value_is_a_newline_and_no_value_is_an_empty_file() -> None:
    assert Value("").open().read(0, 4096) == b"\n"
    assert Value(None).open().read(0, 4096) == b""


def test_the_value_is_not_generated_before_the_first_read() -> None:
    value = Value()
    file = value.open()
    assert value.shown == 0
    file.read(0, 1)
    assert value.shown == 1


def test_small_reads_continue_in_the_buffer_and_end_in_eof() -> None:
    value = Value()
    file = value.open()
    first = file.read(0, 2)
    value.text = "other"
    assert [first, file.read(2, 2), file.read(4, 100), file.read(6, 100)] == [b"he", b"ll", b"o\n", b""]
    assert value.shown == 1


def test_a_first_read_at_1_gives_the_tail() -> None:
    assert Value().open().read(1, 4096) == b"ello\n"


def test_a_read_beyond_the_end_gives_nothing() -> None:
    assert Value().open().read(4000, 4096) == b""


def test_a_read_from_0_generates_the_value_anew() -> None:
    value = Value()
    file = value.open()
    file.read(0, 4096)
    value.text = "other"
    assert file.read(0, 4096) == b"other\n"


def test_an_error_of_show_is_the_error_of_the_read_and_leaves_no_buffer() -> None:
    value = Value()
    file = value.open()
    file.read(0, 4096)
    value.error = BadValue("not set up")
    with pytest.raises(BadValue) as caught:
        file.read(0, 4096)
    assert caught.value.errno == errno.EINVAL
    value.error, value.text = None, "later"
    assert file.read(2, 4096) == b"ter\n"


def test_what_show_returns_is_capped_at_4095_bytes() -> None:
    assert Value("x" * 5000).open().read(0, 8192) == b"x" * 4095
    assert Value("x" * 4094).open().read(0, 8192) == b"x" * 4094 + b"\n"


def test_two_open_files_have_two_buffers() -> None:
    value = Value()
    one, other = value.open(), value.open()
    one.read(0, 1)
    value.text = "other"
    other.read(0, 1)
    assert (one.read(1, 9), other.read(1, 9)) == (b"ello\n", b"ther\n")


async def test_each_write_is_one_store_with_the_whole_buffer() -> None:
    value = Value()
    file = value.open()
    assert await file.write(0, b"one\n") == 4
    assert await file.write(4, b"two") == 3
    assert value.stored == ["one\n", "two"]


async def test_the_offset_of_a_write_is_ignored() -> None:
    value = Value()
    assert await value.open().write(1, b"whole") == 5
    assert value.stored == ["whole"]


async def test_a_write_is_cut_at_4096_bytes_and_says_so() -> None:
    value = Value()
    assert await value.open().write(0, b"0" * 5000) == 4096
    assert value.stored == ["0" * 4096]


async def test_a_write_of_nothing_stores_nothing() -> None:
    value = Value()
    assert await value.open().write(0, b"") == 0
    assert value.stored == []


async def test_the_stored_text_ends_at_a_nul() -> None:
    value = Value()
    assert await value.open().write(0, b"12\x0034") == 5
    assert value.stored == ["12"]


async def test_bytes_that_are_no_utf8_pass_through_a_store_and_a_show() -> None:
    value = Value()
    await value.open().write(0, b"/images/\xff\xc3\xa4")
    value.text = value.stored[0]
    assert value.open().read(0, 4096) == b"/images/\xff\xc3\xa4\n"


async def test_an_error_of_store_is_the_error_of_the_write() -> None:
    value = Value(error=BadValue("no"))
    with pytest.raises(BadValue):
        await value.open().write(0, b"junk")


def test_opening_without_a_store_for_writing_is_refused_even_for_root() -> None:
    read_only = Attribute(Value().show)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_ACCMODE):
        with pytest.raises(PermissionDenied) as caught:
            opening(read_only, flags)
        assert caught.value.errno == errno.EACCES
    assert opening(read_only, os.O_RDONLY).read(0, 4096) == b"hello\n"


async def test_opening_without_a_show_for_reading_is_refused_even_for_root() -> None:
    value = Value()
    write_only = Attribute(None, value.store)
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_ACCMODE):
        with pytest.raises(PermissionDenied):
            opening(write_only, flags)
    assert await opening(write_only, os.O_WRONLY).write(0, b"1") == 1


async def test_a_direction_that_is_missing_is_refused_at_every_call_too() -> None:
    with pytest.raises(PermissionDenied):
        opening(Attribute(None, Value().store), os.O_WRONLY).read(0, 1)
    with pytest.raises(PermissionDenied):
        await opening(Attribute(Value().show), os.O_RDONLY).write(0, b"1")


def test_truncating_and_appending_opens_mean_nothing() -> None:
    value = Value()
    assert value.open(os.O_RDWR | os.O_TRUNC | os.O_APPEND).read(0, 4096) == b"hello\n"
    assert value.stored == []


def test_modes_follow_from_show_and_store() -> None:
    value = Value()
    modes = [Attribute(value.show).mode, Attribute(value.show, value.store).mode, Attribute(None, value.store).mode]
    assert modes == [0o444, 0o644, 0o200]


async def test_an_open_file_of_a_removed_object_answers_enodev() -> None:
    value = Value()
    file = value.open()
    file.read(0, 1)
    value.removed = True
    with pytest.raises(NoSuchDevice) as caught:
        file.read(1, 4096)
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(NoSuchDevice):
        await file.write(0, b"1")
    with pytest.raises(NoSuchDevice):
        value.open()
    assert value.stored == []


def test_polling_a_removed_object_reports_at_once() -> None:
    value = Value()
    file = value.open()
    file.read(0, 4096)
    value.removed = True
    assert file.poll()[0] == READY | CHANGED


def test_the_base_mask_is_in_out_rdnorm_wrnorm() -> None:
    value = Value()
    file = value.open()
    file.read(0, 4096)
    assert file.poll() == (select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM, 1)


def test_a_fresh_descriptor_polls_pri_and_err_at_once() -> None:
    for notifies in (True, False):
        assert Value().open(notifies=notifies).poll() == (READY | select.POLLPRI | select.POLLERR, 1)


def test_an_attribute_that_never_notifies_is_quiet_after_the_first_read() -> None:
    value = Value()
    file = value.open(notifies=False)
    file.read(0, 4096)
    value.signal.fire()
    assert file.poll() == (READY, 1)


def test_a_change_since_the_last_read_polls_pri_and_err_until_read() -> None:
    value = Value()
    file = value.open()
    file.read(0, 4096)
    value.signal.fire()
    assert file.poll() == (READY | CHANGED, 2)
    assert file.poll() == (READY | CHANGED, 2)
    file.read(3, 4096)
    assert file.poll() == (READY | CHANGED, 2), "a read that continues in the buffer has not seen the new value"
    file.read(0, 1)
    assert file.poll() == (READY, 2)


def test_each_descriptor_has_seen_what_it_has_read_itself() -> None:
    value = Value()
    one, other = value.open(), value.open()
    one.read(0, 4096)
    assert (one.poll()[0], other.poll()[0]) == (READY, READY | CHANGED)


def test_a_change_during_show_is_not_missed() -> None:
    signal = Signal()

    def show() -> str:
        signal.fire()
        return "old"

    file = opening(Attribute(show, None, signal), os.O_RDONLY)
    file.read(0, 4096)
    assert file.poll()[0] == READY | CHANGED


def test_a_read_that_fails_has_seen_the_change_as_well() -> None:
    value = Value(error=BadValue("not set up"))
    file = value.open()
    with pytest.raises(BadValue):
        file.read(0, 4096)
    assert file.poll()[0] == READY


def test_a_write_does_not_count_as_a_read() -> None:
    value = Value()
    assert value.open(os.O_WRONLY).poll()[0] == READY | CHANGED
