"""The device as its users see it: its ends, its kinds of request, its settings, its close."""

import errno

import pytest

from ploopfs.device.standby import State
from ploopfs.errors import BackendError, BeyondEnd, ReadOnly
from tests.device.rig import (
    CLUSTER,
    CONTENT,
    DISK_BYTES,
    STACK,
    TOP,
    Rig,
    errno_of,
    image,
    rig_of,
    three_deltas,
)

# --- ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 3, 3),
        (0, 0, 0),
        (0, 1 << 40, DISK_BYTES),
        (DISK_BYTES - 2, 3, 2),
        (DISK_BYTES, 1, 0),
        (DISK_BYTES + 9, 5, 0),
    ],
)
async def test_a_read_is_short_at_the_end_and_empty_past_it(rig: Rig, offset: int, length: int, expected: int) -> None:
    data = await rig.device.read(offset, length)
    assert data == CONTENT[offset : offset + length]
    assert len(data) == expected


async def test_a_write_is_short_at_the_end(rig: Rig) -> None:
    assert await rig.device.write(DISK_BYTES - 2, b"wxyz") == 2
    assert await rig.device.read(DISK_BYTES - 3, 9) == b"\0wx"


@pytest.mark.parametrize("offset", [DISK_BYTES, DISK_BYTES + 1])
async def test_a_write_past_the_end_is_enospc(rig: Rig, offset: int) -> None:
    with pytest.raises(BeyondEnd) as refusal:
        await rig.device.write(offset, b"w")
    assert refusal.value.errno == errno.ENOSPC
    assert await rig.device.write(offset, b"") == 0


async def test_a_discard_ends_with_the_disk_and_spares_parts_of_clusters(rig: Rig) -> None:
    await rig.device.discard(2 * CLUSTER - 1, 1 << 40)
    assert await rig.content() == CONTENT[: 2 * CLUSTER] + bytes(4 * CLUSTER)
    await rig.device.discard(DISK_BYTES + CLUSTER, CLUSTER)


# --- kinds of request -------------------------------------------------------------------------------------------------


async def test_a_read_only_device_refuses_changes_with_erofs_and_writes_nothing() -> None:
    rig = await rig_of(three_deltas(), read_only=True)
    for change in (rig.device.write(0, b"w"), rig.device.discard(0, CLUSTER)):
        with pytest.raises(ReadOnly):
            await change
    assert ReadOnly.errno == errno.EROFS
    await rig.device.flush()
    assert await rig.content() == CONTENT
    assert await rig.device.aclose()
    assert {path: rig.store.bytes_of(path) for path in STACK} == three_deltas()


async def test_requests_are_counted_by_the_kernels_names(rig: Rig) -> None:
    counters = rig.device.counters
    await rig.device.read(0, 512)
    await rig.device.write(2 * CLUSTER, b"w")
    await rig.device.write(2 * CLUSTER, b"w", fua=True)
    await rig.device.flush()
    assert (counters.bio_in, counters.bio_out) == (3, 3)
    assert (counters.bio_fua_in, counters.bio_fua_out) == (1, 1)
    assert (counters.bio_flush_in, counters.bio_flush_skip) == (1, 0)


@pytest.mark.expects_warnings
async def test_a_request_that_fails_went_in_and_not_out(rig: Rig) -> None:
    rig.lose(errno.EIO)
    assert await errno_of(rig.device.read(2 * CLUSTER, 1)) == errno.EIO
    assert (rig.device.counters.bio_in, rig.device.counters.bio_out) == (1, 0)


async def test_a_forced_write_is_followed_by_an_fsync_and_a_plain_one_is_not(rig: Rig) -> None:
    for fua, expected in ((False, ["write"]), (True, ["write", "fsync"])):
        rig.faults.log.clear()
        await rig.device.write(2 * CLUSTER, b"w", fua=fua)
        assert [operation for operation, _ in rig.faults.log] == expected


async def test_flushes_and_forced_writes_pass_or_not_as_they_are_tuned(rig: Rig) -> None:
    rig.device.tune.pass_flushes = rig.device.tune.pass_fuas = 0
    rig.faults.log.clear()
    await rig.device.flush()
    await rig.device.write(2 * CLUSTER, b"w", fua=True)
    assert rig.faults.log == [("write", TOP)]
    assert rig.device.counters.bio_flush_skip == 1


async def test_zeroes_take_no_space_unless_the_check_is_tuned_off(rig: Rig) -> None:
    before = len(rig.store.bytes_of(TOP))
    await rig.device.write(4 * CLUSTER, bytes(CLUSTER))
    assert len(rig.store.bytes_of(TOP)) == before
    rig.device.tune.check_zeros = 0
    await rig.device.write(4 * CLUSTER, bytes(CLUSTER))
    assert await rig.device.aclose()  # which cuts off what the file was made longer than it needs
    assert len(rig.store.bytes_of(TOP)) == before + CLUSTER


async def test_openers_are_counted(rig: Rig) -> None:
    rig.device.opened()
    rig.device.opened()
    rig.device.released()
    assert rig.device.open_count == 1


async def test_each_device_has_its_own_number_in_the_sequence_of_disks(rig: Rig, unarmed: Rig) -> None:
    assert rig.device.diskseq != unarmed.device.diskseq


# --- close --------------------------------------------------------------------------------------------------------


async def test_a_clean_close_flushes_and_clears_the_mark(rig: Rig) -> None:
    assert rig.is_marked(TOP)
    await rig.device.write(5 * CLUSTER, b"w")
    assert await rig.device.aclose()
    assert not rig.is_marked(TOP)
    again = await rig_of({path: rig.store.bytes_of(path) for path in STACK})
    assert await again.device.read(5 * CLUSTER, 1) == b"w"


async def test_an_image_that_nobody_wrote_is_closed_as_it_was() -> None:
    data = image({}).build()
    rig = await rig_of({TOP: data})
    await rig.device.flush()
    assert await rig.device.aclose()
    assert rig.store.bytes_of(TOP) == data


@pytest.mark.expects_warnings
async def test_a_lost_storage_is_not_written_to_and_its_image_stays_marked(rig: Rig) -> None:
    rig.faults.remove(await rig.enter_standby(errno.EBUSY))
    old, since = rig.store.bytes_of(TOP), len(rig.faults.log)
    assert not await rig.device.aclose()
    assert rig.changes_of(TOP, since) == []
    assert rig.store.bytes_of(TOP) == old
    assert rig.is_marked(TOP)
    assert not any(image.writers or image.readers for image in rig.store.images.values())


async def test_an_aborted_device_leaves_its_image_marked(rig: Rig) -> None:
    rig.queue.set_aborted(True)
    since = len(rig.faults.log)
    assert not await rig.device.aclose()
    assert rig.changes_of(TOP, since) == []
    assert rig.is_marked(TOP)


async def test_an_aborted_read_only_device_has_nothing_to_lose() -> None:
    rig = await rig_of(three_deltas(), read_only=True)
    rig.queue.set_aborted(True)
    assert await rig.device.aclose()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
async def test_a_close_whose_flush_fails_raises_and_the_mark_stays(rig: Rig, number: int) -> None:
    await rig.device.write(2 * CLUSTER, b"w")
    rig.lose(number, "fsync")
    with pytest.raises(BackendError) as failure:
        await rig.device.aclose()
    assert failure.value.errno == number
    assert rig.is_marked(TOP)
    assert not any(image.writers or image.readers for image in rig.store.images.values())


@pytest.mark.expects_warnings
async def test_a_flush_that_failed_before_cannot_be_made_good_by_a_close(unarmed: Rig) -> None:
    rule = unarmed.lose(errno.EIO, "fsync")
    assert await errno_of(unarmed.device.flush()) == errno.EIO
    unarmed.faults.remove(rule)
    unarmed.queue.set_aborted(False)
    assert not await unarmed.device.aclose()
    assert unarmed.is_marked(TOP)
    assert unarmed.state is State.NOT_SUPPORTED
