"""Bytes to requests and values to bytes, against a second writing-down of the layouts, and against all other bytes."""

import errno
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.blockfuse import replies
from ploopfs.blockfuse.protocol import (
    Body,
    Destroy,
    Fallocate,
    Forget,
    Fsync,
    GetAttr,
    Init,
    Interrupt,
    Ioctl,
    Lseek,
    Open,
    Read,
    Release,
    Request,
    SetAttr,
    StatFs,
    Unknown,
    Write,
    parse,
)
from ploopfs.blockfuse.replies import Attributes
from ploopfs.errors import BadRequest, MountError
from ploopfs.sysfs.nodes import Shown
from tests.blockfuse import kernel
from tests.blockfuse.kernel import U16, U32, U64, packed, request, transfer

u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize(
    ("opcode", "body", "expected"),
    [
        (kernel.GETATTR, bytes(16), GetAttr()),
        (kernel.OPEN, packed((U32, 0o2), (U32, 0)), Open(2)),
        (kernel.READ, transfer(3, 1 << 40, 4096), Read(3, 1 << 40, 4096)),
        (kernel.RELEASE, packed((U64, 3), (U32, 2), (U32, 0), (U64, 9)), Release(3)),
        (kernel.FSYNC, packed((U64, 3), (U32, 1), (U32, 0)), Fsync(3)),
        (kernel.FALLOCATE, kernel.fallocate(3, 4096, 8192, 3), Fallocate(3, 4096, 8192, 3)),
        (kernel.LSEEK, kernel.lseek(3, 4096, 4), Lseek(3, 4096, 4)),
        (kernel.IOCTL, kernel.ioctl(3, 0x80081272, 8), Ioctl(3, 0x80081272, 8)),
        (kernel.IOCTL, kernel.ioctl(3, 0x80081272, 8) + bytes(64), Ioctl(3, 0x80081272, 8)),
        (kernel.STATFS, b"", StatFs()),
        (kernel.DESTROY, b"", Destroy()),
        (kernel.FORGET, bytes(8), Forget()),
        (kernel.BATCH_FORGET, packed((U32, 1), (U32, 0), (U64, 1), (U64, 5)), Forget()),
        (kernel.INTERRUPT, packed((U64, 40)), Interrupt(40)),
        (kernel.INIT, kernel.init(flags=5), Init(7, 45, 1 << 17, 5)),
        (kernel.INIT, kernel.init(flags=5)[:16], Init(7, 45, 1 << 17, 5)),
        (kernel.POLL, bytes(24), Unknown(kernel.POLL)),
        (kernel.LOOKUP, b"name\0", Unknown(kernel.LOOKUP)),
        (9999, b"", Unknown(9999)),
    ],
)
def test_each_request_is_what_its_bytes_say(opcode: int, body: bytes, expected: Body) -> None:
    parsed = parse(memoryview(request(opcode, body, unique=8, uid=7)))
    assert parsed == Request(8, 7, kernel.PID, expected)
    assert type(parsed.body) is type(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("init", Init(7, 45, 1 << 17, 0x73FFFFFB)),
        ("getattr", GetAttr()),
        ("open", Open(0o140002)),
        ("read", Read(1, 8192, 4096)),
        ("flush", Unknown(kernel.FLUSH)),
        ("release", Release(1)),
        ("fdatasync", Fsync(2)),
        ("lseek", Lseek(2, 1 << 20, os.SEEK_DATA)),
        ("ioctl", Ioctl(2, 0x80081272, 8)),
        ("getxattr", Unknown(kernel.GETXATTR)),
        ("fallocate", Fallocate(2, 4096, 8192, 3)),
        ("poll", Unknown(kernel.POLL)),
        ("utimes", SetAttr(0x30, 0, 7_000_000_000, 8_000_000_000, 0, 0, 0)),
        ("chmod", SetAttr(0x1, 0, 0, 0, 0o100600, 0, 0)),
        ("chown", SetAttr(0x6, 0, 0, 0, 0, 11, 12)),
        ("truncate", SetAttr(0x208, 0, 0, 0, 0, 0, 0)),
        ("statfs", StatFs()),
    ],
)
def test_what_linux_has_sent_is_understood(name: str, expected: Body) -> None:
    body = parse(memoryview(kernel.SENT_BY_LINUX[name])).body
    assert (type(body), body) == (type(expected), expected)


def test_a_write_of_linux_is_understood() -> None:
    body = parse(memoryview(kernel.SENT_BY_LINUX["write"])).body
    assert isinstance(body, Write)
    assert (body.fh, body.offset, bytes(body.data)) == (2, 12345, b"hello")


def test_what_is_set_of_a_file_is_taken_field_by_field() -> None:
    body = kernel.setattr_of(0x7F, size=11, mode=0o100600, uid=12, gid=13, time_s=14)
    assert parse(memoryview(request(kernel.SETATTR, body, unique=8))).body == SetAttr(
        0x7F, 11, 14_000_000_007, 14_000_000_008, 0o100600, 12, 13
    )


@given(u64, u64, st.binary(max_size=64), u64, u32)
def test_a_write_brings_its_data(fh: int, offset: int, data: bytes, unique: int, pid: int) -> None:
    body = transfer(fh, offset, len(data)) + data
    parsed = parse(memoryview(request(kernel.WRITE, body, unique=unique, pid=pid)))
    assert (parsed.unique, parsed.pid) == (unique, pid)
    assert isinstance(parsed.body, Write)
    assert (parsed.body.fh, parsed.body.offset, bytes(parsed.body.data)) == (fh, offset, data)


def test_extensions_at_the_end_are_no_data_of_a_write() -> None:
    plain = bytearray(request(kernel.WRITE, transfer(1, 0, 4) + b"data" + bytes(16), unique=8))
    plain[36:38] = packed((U16, 2))
    body = parse(memoryview(plain)).body
    assert isinstance(body, Write)
    assert bytes(body.data) == b"data"


@pytest.mark.parametrize(
    ("data", "unique", "reason"),
    [
        (b"", 0, "0 bytes are no request, whose header alone has 40"),
        (request(kernel.GETATTR, unique=8)[:39], 0, "39 bytes are no request"),
        (request(kernel.GETATTR, bytes(16), unique=8) + b"x", 8, "a request of 56 bytes came as 57"),
        (request(kernel.GETATTR, bytes(16), unique=8, node=2), 8, "request 3 is for node 2, and there is but 1"),
        (request(kernel.READ, transfer(1, 0, 1)[:19], unique=8), 8, "request 15 has 19 bytes, at least 40 were"),
        (request(kernel.WRITE, transfer(1, 0, 5) + b"data", unique=8), 8, "a write of 5 bytes came with 4"),
        (request(kernel.WRITE, transfer(1, 0, 3) + b"data", unique=8), 8, "a write of 3 bytes came with 4"),
    ],
)
def test_what_no_kernel_sends_is_refused_with_the_reason(data: bytes, unique: int, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason) as raised:
        parse(memoryview(data))
    assert raised.value.unique == unique


def test_both_sides_do_what_both_can() -> None:
    body = replies.agreed(Init(7, 45, 1 << 17, 0xFFFFFFFF))
    numbers = [int.from_bytes(body[at : at + 4], "little") for at in (0, 4, 8, 12)]
    # ASYNC_READ, BIG_WRITES, ASYNC_DIO, PARALLEL_DIROPS, MAX_PAGES
    assert numbers == [7, 38, 1 << 17, 0x1 | 0x20 | 0x8000 | 0x40000 | 0x400000]
    assert len(body) == 64
    background, congestion = (int.from_bytes(body[at : at + 2], "little") for at in (16, 18))
    assert (background, congestion) == (512, 384)
    assert int.from_bytes(body[20:24], "little") == 1 << 20
    assert int.from_bytes(body[28:30], "little") == (1 << 20) // 4096
    assert int.from_bytes(replies.agreed(Init(7, 45, 0, 1))[12:16], "little") == 1, "what the kernel cannot"


def test_a_kernel_that_is_too_old_is_told_apart() -> None:
    replies.agreed(Init(7, 28, 0, 0))
    with pytest.raises(MountError, match=r"^the kernel speaks FUSE 7\.27, at least 7\.28 is needed$"):
        replies.agreed(Init(7, 27, 0, 0))


def test_attributes_lie_where_the_kernel_looks_for_them() -> None:
    times_ns = (3_000_000_004, -1, 5_000_000_006)
    body = replies.attributes(Attributes(7, 1 << 40, 1536, Shown(0o660, 11, 12, *times_ns)))
    assert len(body) == 104
    assert body[:16] == bytes(16), "never valid for longer than the answer"
    longs = [int.from_bytes(body[at : at + 8], "little", signed=True) for at in range(16, 64, 8)]
    assert longs == [7, 1 << 40, 3, 3, -1, 5]
    words = [int.from_bytes(body[at : at + 4], "little") for at in range(64, 104, 4)]
    assert words == [4, 999_999_999, 6, stat.S_IFREG | 0o660, 1, 11, 12, 0, 4096, 0]


def test_an_answer_says_how_long_it_is_and_to_what() -> None:
    assert replies.header(9, 100) == packed((U32, 116), (U32, 0), (U64, 9))
    assert replies.failure(9, errno.EIO) == packed((U32, 16), (U32, (1 << 32) - errno.EIO), (U64, 9))
    assert replies.opened(5) == packed((U64, 5), (U32, 0x41), (U32, 0))
    assert replies.count(4096) == packed((U32, 4096), (U32, 0))
    assert replies.number(1 << 33) == packed((U64, 1 << 33))
    assert replies.ioctl_result(b"12345678") == bytes(16) + b"12345678"
    assert replies.statistics() == bytes(40) + packed((U32, 4096), (U32, 255), (U32, 4096)) + bytes(28)
