"""A disk as a file: what stat(2), fallocate(2), lseek(2) and ioctl(2) say of it, through a connection."""

import errno
import os
import stat
import time

import pytest

from ploopfs.blockfuse.front import BLKFLSBUF, BLKGETSIZE64, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Front
from ploopfs.sysfs.nodes import Disk
from tests.blockfuse import kernel as fuse
from tests.blockfuse.kernel import U32, Answer, connected, setattr_of
from tests.device.rig import CLUSTER, CONTENT, DISK_BYTES, TOP, Rig, image, rig_of, three_deltas

MODE, UID, GID, SIZE, ATIME, MTIME, ATIME_NOW, MTIME_NOW = 1, 2, 4, 8, 16, 32, 128, 256


@pytest.fixture
async def rig() -> Rig:
    return await rig_of(three_deltas())


def told(answer: Answer) -> dict[str, int]:
    assert answer.errno == 0
    longs, words = "ino size blocks atime mtime ctime", "atime_ns mtime_ns ctime_ns mode links uid gid"
    found = {name: answer.number(16 + 8 * at) for at, name in enumerate(longs.split())}
    return found | {name: answer.number(64 + 4 * at, U32) for at, name in enumerate(words.split())}


async def test_stat_tells_size_space_owner_and_mode(rig: Rig) -> None:
    before_s = int(time.time())
    async with connected(rig.device) as kernel:
        found = told(await kernel.call(fuse.GETATTR, bytes(16)))
    assert (found["size"], found["links"]) == (DISK_BYTES, 1)
    assert found["blocks"] == rig.device.allocated_bytes // 512 == 3 * CLUSTER // 512
    assert found["mode"] == stat.S_IFREG | 0o660
    assert (found["uid"], found["gid"]) == (os.geteuid(), os.getegid())
    assert found["atime"] >= before_s
    assert found["mtime"] >= before_s


async def test_what_is_set_stays_with_the_disk_whoever_serves_it(rig: Rig) -> None:
    disk = Disk(rig.device)
    async with connected(rig.device, disk) as kernel:
        changed = setattr_of(MODE | UID | GID | ATIME | MTIME, mode=0o100600, uid=11, gid=12, time_s=13)
        assert told(await kernel.call(fuse.SETATTR, changed))["mode"] == stat.S_IFREG | 0o600
    async with connected(rig.device, disk) as kernel:
        found = told(await kernel.call(fuse.GETATTR, bytes(16)))
    assert (found["uid"], found["gid"]) == (11, 12)
    assert (found["atime"], found["atime_ns"], found["mtime"], found["mtime_ns"]) == (13, 7, 13, 8)
    assert disk.changes.mode == 0o600


async def test_only_what_is_asked_for_is_set(rig: Rig) -> None:
    async with connected(rig.device) as kernel:
        before = told(await kernel.call(fuse.GETATTR, bytes(16)))
        after = told(await kernel.call(fuse.SETATTR, setattr_of(GID, mode=0o777, uid=11, gid=12, time_s=13)))
        assert {name: value for name, value in after.items() if not name.startswith("ctime")} == {
            name: 12 if name == "gid" else value for name, value in before.items() if not name.startswith("ctime")
        }
        now = told(await kernel.call(fuse.SETATTR, setattr_of(ATIME | ATIME_NOW | MTIME | MTIME_NOW, time_s=13)))
    assert now["atime"] >= before["atime"]
    assert now["mtime"] >= before["mtime"]


@pytest.mark.parametrize(("size", "answer"), [(0, 0), (DISK_BYTES, 0), (DISK_BYTES - 1, errno.EINVAL), (1 << 63, 22)])
async def test_a_disk_is_not_truncated(rig: Rig, size: int, answer: int) -> None:
    async with connected(rig.device) as kernel:
        assert (await kernel.call(fuse.SETATTR, setattr_of(SIZE, size=size))).errno == answer
        assert told(await kernel.call(fuse.GETATTR, bytes(16)))["size"] == DISK_BYTES


@pytest.mark.parametrize("mode", [PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
async def test_a_punched_or_zeroed_range_reads_as_zeroes_to_the_byte(rig: Rig, mode: int) -> None:
    async with connected(rig.device) as kernel:
        fh = await kernel.open()
        start, length = CLUSTER - 3, CLUSTER + 5
        assert (await kernel.call(fuse.FALLOCATE, fuse.fallocate(fh, start, length, mode))).errno == 0
        expected = CONTENT[:start] + bytes(length) + CONTENT[start + length :]
        assert await rig.content() == expected


@pytest.mark.parametrize(("mode", "given_back"), [(PUNCH_HOLE | KEEP_SIZE, True), (ZERO_RANGE, False)])
async def test_a_hole_gives_space_back_and_zeroes_keep_it(mode: int, given_back: bool) -> None:
    rig = await rig_of({TOP: image({0: b"a", 1: b"b"}).build()})
    async with connected(rig.device) as kernel:
        fh = await kernel.open()
        assert (await kernel.call(fuse.FALLOCATE, fuse.fallocate(fh, CLUSTER, CLUSTER, mode))).errno == 0
        found = told(await kernel.call(fuse.GETATTR, bytes(16)))
    assert found["blocks"] == (1 if given_back else 2) * CLUSTER // 512
    assert not any(await rig.device.read(CLUSTER, CLUSTER))


@pytest.mark.parametrize(
    ("mode", "offset", "length", "answer"),
    [
        (0, 0, 512, errno.EOPNOTSUPP),
        (KEEP_SIZE, 0, 512, errno.EOPNOTSUPP),
        (PUNCH_HOLE, 0, 512, errno.EOPNOTSUPP),
        (0x08, 0, CLUSTER, errno.EOPNOTSUPP),
        (0x20, 0, CLUSTER, errno.EOPNOTSUPP),
        (PUNCH_HOLE | KEEP_SIZE, DISK_BYTES, 512, errno.EINVAL),
        (ZERO_RANGE, DISK_BYTES - 512, 513, errno.EINVAL),
        (ZERO_RANGE | KEEP_SIZE, DISK_BYTES - 512, 513, 0),
        (PUNCH_HOLE | KEEP_SIZE, DISK_BYTES - 512, 1 << 40, 0),
    ],
)
async def test_what_a_block_device_does_not_do_a_disk_does_not(
    rig: Rig, mode: int, offset: int, length: int, answer: int
) -> None:
    async with connected(rig.device) as kernel:
        fh = await kernel.open()
        assert (await kernel.call(fuse.FALLOCATE, fuse.fallocate(fh, offset, length, mode))).errno == answer
        assert rig.device.size_bytes == DISK_BYTES
        assert await rig.content() == CONTENT


async def test_holes_and_data_are_found_from_anywhere() -> None:
    rig = await rig_of({TOP: image({1: b"a", 2: b"b", 4: b"c"}).build()})
    async with connected(rig.device) as kernel:
        fh = await kernel.open()

        async def seek(offset: int, whence: int) -> int:
            answer = await kernel.call(fuse.LSEEK, fuse.lseek(fh, offset, whence))
            return answer.number() if not answer.errno else -answer.errno

        assert [await seek(at * CLUSTER + 1, os.SEEK_DATA) for at in range(6)] == [
            *(CLUSTER, CLUSTER + 1, 2 * CLUSTER + 1, 4 * CLUSTER, 4 * CLUSTER + 1, -errno.ENXIO)
        ]
        assert [await seek(at * CLUSTER + 1, os.SEEK_HOLE) for at in range(6)] == [
            *(1, 3 * CLUSTER, 3 * CLUSTER, 3 * CLUSTER + 1, 5 * CLUSTER, 5 * CLUSTER + 1)
        ]
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            assert await seek(DISK_BYTES, whence) == -errno.ENXIO
        assert await seek(0, os.SEEK_CUR) == -errno.EINVAL


async def test_the_size_of_the_disk_and_a_flush_are_what_ioctl_does(rig: Rig) -> None:
    async with connected(rig.device) as kernel:
        fh = await kernel.open()
        answer = await kernel.call(fuse.IOCTL, fuse.ioctl(fh, BLKGETSIZE64, 8))
        assert (answer.number(width=16), answer.number(16)) == (0, DISK_BYTES)
        await rig.device.write(0, b"w")
        since = len(rig.faults.log)
        assert (await kernel.call(fuse.IOCTL, fuse.ioctl(fh, BLKFLSBUF))).body == bytes(16)
        assert ("fsync", TOP) in rig.faults.log[since:]
        assert (await kernel.call(fuse.IOCTL, fuse.ioctl(fh, 0x1260))).errno == errno.ENOTTY


async def test_a_loop_device_believes_in_discard(rig: Rig) -> None:
    async with connected(rig.device) as kernel:
        assert len((await kernel.call(fuse.STATFS)).body) == 80


async def test_a_front_outlives_its_connections(rig: Rig) -> None:
    front = Front(Disk(rig.device))
    assert front.attributes() == front.attributes()


async def test_a_disk_that_came_again_is_another_file_than_it_was(rig: Rig) -> None:
    before, after = (Front(Disk(rig.device)).attributes().number for _ in range(2))
    assert before != after
