"""The messages of a mapped device: what each does to the table in force, and the errno of each refusal."""

import errno

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.device.messages import MESSAGES, answer
from ploopfs.device.standby import State
from ploopfs.device.waiting import OnStandby
from ploopfs.image.header import HEADER_BYTES, Header
from tests.device.mapped import SECTORS, line, mapped_rig, mapper_of, reload
from tests.device.rig import (
    BASE,
    CLUSTER,
    CONTENT,
    DISK_BYTES,
    MIDDLE,
    NEW,
    STACK,
    TOP,
    Asked,
    Rig,
    cluster_of,
    errno_of,
    image,
    rig_of,
)

REQUIRED = (
    "resize merge notify_merged_forward notify_merged_backward get_img_name update_delta_index set_falloc_new_clu "
    "tracking_start tracking_stop tracking_get_next set_noresume flip_upper_deltas get_event"
)


@pytest.fixture
async def rig() -> Rig:
    return await mapped_rig()


async def say(rig: Rig, message: str) -> str:
    return await answer(mapper_of(rig), message)


async def errno_of_message(rig: Rig, message: str) -> int:
    return await errno_of(say(rig, message))


async def content_after(rig: Rig, *paths: str) -> bytes:
    assert await rig.device.aclose()
    again = await rig_of({path: rig.store.bytes_of(path) for path in paths})
    return await again.content()


# --- the words ----------------------------------------------------------------------------------------------------


def test_every_message_of_the_reference_is_known() -> None:
    assert set(MESSAGES) == set(REQUIRED.split())


@pytest.mark.parametrize(
    ("message", "number"),
    [
        ("", errno.EINVAL),
        ("snapshot 5 /dev/x", errno.EOPNOTSUPP),
        ("GET_IMG_NAME 0", errno.EOPNOTSUPP),
        ("get_img_name", errno.EINVAL),
        ("get_img_name 0 1", errno.EINVAL),
        ("get_img_name x", errno.EINVAL),
        ("get_img_name -1", errno.EINVAL),
        ("resize 1M", errno.EINVAL),
        ("set_noresume 2", errno.EINVAL),
        ("set_falloc_new_clu yes", errno.EINVAL),
        ("tracking_restart", errno.EOPNOTSUPP),
        ("update_delta_index 0 1", errno.EINVAL),
        ("update_delta_index 0 1:2;x", errno.EINVAL),
    ],
)
async def test_a_message_that_is_none_is_refused(rig: Rig, message: str, number: int) -> None:
    assert await errno_of_message(rig, message) == number
    assert mapper_of(rig).answer == ""
    assert await rig.content() == CONTENT


async def test_an_error_target_takes_no_messages(rig: Rig) -> None:
    await mapper_of(rig).load("0 8 error")
    await mapper_of(rig).resume()
    assert await errno_of_message(rig, "get_img_name 0") == errno.EINVAL


# --- asking -------------------------------------------------------------------------------------------------------


async def test_names_are_told_level_by_level_until_an_empty_answer(rig: Rig) -> None:
    assert [await say(rig, f"get_img_name {level}") for level in range(4)] == [f"{path}\n" for path in STACK] + [""]
    await say(rig, "get_img_name 1")
    assert mapper_of(rig).answer == f"{MIDDLE}\n"


async def test_names_are_those_of_the_table_in_force(rig: Rig) -> None:
    rig.store.put(NEW, image({2: b"n"}).build())
    await mapper_of(rig).load(line(BASE, MIDDLE, NEW))
    assert await say(rig, "get_img_name 2") == f"{TOP}\n"
    await mapper_of(rig).resume()
    assert await say(rig, "get_img_name 2") == f"{NEW}\n"


async def test_asking_does_not_wait_for_another_message(rig: Rig, nursery: trio.Nursery) -> None:
    released = rig.hang("read", path=MIDDLE)
    merge = Asked(nursery, say(rig, "merge"))
    await wait_all_tasks_blocked()
    assert await say(rig, "get_img_name 0") == f"{BASE}\n"
    assert await errno_of_message(rig, "set_noresume 1") == errno.EBUSY
    released.set()
    await wait_all_tasks_blocked()
    assert merge.errno == 0


@pytest.mark.expects_warnings
async def test_an_event_is_told_once(rig: Rig) -> None:
    assert await say(rig, "get_event") == ""
    rig.lose(errno.ENOSPC, "truncate", "write", count=2)
    assert await errno_of(rig.device.write(3 * CLUSTER, b"w")) == errno.ENOSPC
    assert [await say(rig, "get_event"), await say(rig, "get_event")] == ["event_ENOSPC\n", ""]


# --- flags --------------------------------------------------------------------------------------------------------


async def test_noresume_is_set_and_taken_back_once_each(rig: Rig) -> None:
    mapper = mapper_of(rig)
    assert await errno_of_message(rig, "set_noresume 0") == errno.EBUSY
    await say(rig, "set_noresume 1")
    assert await errno_of_message(rig, "set_noresume 1") == errno.EBUSY
    await mapper.suspend()
    assert await errno_of(mapper.resume()) == errno.EAGAIN
    await say(rig, "set_noresume 0")
    await mapper.resume()


@pytest.mark.expects_warnings
async def test_space_is_allocated_ahead_on_whatever_top_the_device_has(rig: Rig) -> None:
    rig.store.put(NEW, image({2: b"n"}).build())
    await say(rig, "set_falloc_new_clu 1")
    assert mapper_of(rig).active.status == f"0 {SECTORS} ploop 3 v2 64 f"
    await rig.device.write(3 * CLUSTER, b"w")
    await rig.device.replace_top(NEW)
    await rig.device.write(3 * CLUSTER, b"w")
    assert [("fallocate", path) in rig.faults.log for path in (TOP, NEW)] == [True, True]
    await say(rig, "set_falloc_new_clu 0")
    assert mapper_of(rig).active.status.endswith(" o")
    await reload(rig, *STACK)
    since = len(rig.faults.log)
    await rig.device.write(4 * CLUSTER, b"w")
    assert ("fallocate", TOP) not in rig.faults.log[since:]
    await mapper_of(rig).load(line(*STACK, options="falloc_new_clu"))
    await mapper_of(rig).resume()
    await rig.device.write(5 * CLUSTER, b"w")
    assert ("fallocate", TOP) in rig.faults.log[since:]


# --- growing ------------------------------------------------------------------------------------------------------


async def test_a_device_grows_by_a_message_and_a_longer_table(rig: Rig) -> None:
    mapper = mapper_of(rig)
    await say(rig, f"resize {8 * 64}")
    assert rig.device.size_bytes == DISK_BYTES
    assert await errno_of(rig.device.write(DISK_BYTES, b"x")) == errno.ENOSPC
    assert mapper.active.table.line == line(*STACK)
    await mapper.suspend()
    await mapper.load(line(*STACK, sectors=8 * 64))
    await mapper.resume()
    assert rig.device.size_bytes == 8 * CLUSTER
    await rig.device.write(7 * CLUSTER, b"new")
    assert await rig.device.read(0, DISK_BYTES) == CONTENT
    assert await rig.device.aclose()
    assert Header.parse(rig.store.bytes_of(TOP)[:HEADER_BYTES], TOP).size_sectors == 8 * 64


@pytest.mark.expects_warnings
async def test_a_table_longer_than_its_images_is_refused(rig: Rig) -> None:
    assert await errno_of(mapper_of(rig).load(line(*STACK, sectors=8 * 64))) == errno.EBADSLT


@pytest.mark.parametrize(("sectors", "number"), [(SECTORS, 0), (64, errno.EINVAL), (SECTORS + 1, errno.EINVAL)])
async def test_sizes_that_a_device_takes(rig: Rig, sectors: int, number: int) -> None:
    assert await errno_of_message(rig, f"resize {sectors}") == number
    assert await rig.content() == CONTENT


async def test_a_read_only_device_is_not_changed() -> None:
    rig = await mapped_rig(read_only=True)
    for message in (f"resize {8 * 64}", "merge", "tracking_start", "tracking_stop", "tracking_get_next"):
        assert await errno_of_message(rig, message) == errno.EROFS


@pytest.mark.expects_warnings
async def test_a_storage_that_fails_while_the_image_grows_means_standby(rig: Rig) -> None:
    rig.lose(errno.EIO, "write")
    assert await errno_of_message(rig, f"resize {8 * 64}") == errno.EIO
    assert rig.state is State.ON
    assert await errno_of_message(rig, "merge") == errno.EIO


@pytest.mark.expects_warnings
async def test_an_image_that_has_grown_though_the_storage_denied_it_is_ours_when_it_is_opened_again(rig: Rig) -> None:
    rig.faults.on(TOP, rig.faults.fail(errno.EIO, "write", count=1, after=True))
    assert await errno_of_message(rig, f"resize {8 * 64}") == errno.EIO
    assert (rig.state, rig.queue.aborted) == (State.ON, False)
    assert Header.parse(rig.store.bytes_of(TOP)[:HEADER_BYTES], TOP).size_sectors == 8 * 64
    await rig.device.reopen()
    assert await rig.content() == CONTENT


# --- merging ------------------------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
async def test_a_merge_is_not_held_in_standby_since_a_recovery_would_wait_for_it(
    rig: Rig, nursery: trio.Nursery
) -> None:
    rig.queue.set_on_standby(OnStandby.HOLD)
    rule = rig.lose(errno.EBUSY)
    held = Asked(nursery, rig.device.read(2 * CLUSTER, 512))
    await wait_all_tasks_blocked()
    assert await errno_of_message(rig, "merge") == errno.EIO
    rig.faults.remove(rule)
    await rig.device.reopen()
    await wait_all_tasks_blocked()
    assert (held.ended, held.errno) == (True, 0)


@pytest.mark.expects_warnings
async def test_a_merge_that_meets_the_loss_itself_ends_with_it(rig: Rig, nursery: trio.Nursery) -> None:
    rig.queue.set_on_standby(OnStandby.HOLD)
    rule = rig.lose(errno.EBUSY, "write", "truncate")
    assert await errno_of_message(rig, "merge") == errno.EBUSY
    held = Asked(nursery, rig.device.read(2 * CLUSTER, 512))
    await wait_all_tasks_blocked()
    assert (rig.state, held.ended) == (State.ON, False)
    rig.faults.remove(rule)
    await rig.device.reopen()
    await wait_all_tasks_blocked()
    assert held.errno == 0
    assert await say(rig, "merge") == ""


async def test_a_merge_takes_a_level_away_while_requests_are_served(rig: Rig, nursery: trio.Nursery) -> None:
    await rig.device.write(3 * CLUSTER, b"w")
    write = Asked(nursery, rig.device.write(1 * CLUSTER, b"w"))
    assert await say(rig, "merge") == ""
    await wait_all_tasks_blocked()
    assert write.errno == 0
    assert mapper_of(rig).active.table.line == line(BASE, TOP)
    expected = bytearray(CONTENT)
    expected[CLUSTER : CLUSTER + 1] = expected[3 * CLUSTER : 3 * CLUSTER + 1] = b"w"
    assert await rig.content() == expected
    assert rig.store.images[MIDDLE].readers == set()
    await say(rig, "merge")
    assert mapper_of(rig).active.table.line == line(TOP)
    assert await errno_of_message(rig, "merge") == errno.ENOENT
    assert await content_after(rig, TOP) == expected


async def test_a_suspended_device_is_not_merged(rig: Rig) -> None:
    await mapper_of(rig).suspend()
    assert await errno_of_message(rig, "merge") == errno.EBUSY


async def test_what_user_space_has_merged_is_taken_over(rig: Rig) -> None:
    rig.store.images[BASE].data[:] = image({0: b"a", 1: b"m", 2: b"c"}).build()
    await say(rig, "notify_merged_backward 1")
    assert mapper_of(rig).active.table.line == line(BASE, TOP)
    assert await rig.content() == CONTENT


async def test_a_level_that_was_merged_forward_goes(rig: Rig) -> None:
    rig.store.images[MIDDLE].data[:] = image({0: b"a", 1: b"m", 2: b"c"}).build()
    await say(rig, "notify_merged_forward 0")
    assert mapper_of(rig).active.table.line == line(MIDDLE, TOP)
    assert await rig.content() == CONTENT


@pytest.mark.parametrize(
    ("message", "number"),
    [
        ("notify_merged_forward 2", errno.ENOENT),
        ("notify_merged_forward 1", errno.EINVAL),
        ("notify_merged_backward 0", errno.EINVAL),
        ("notify_merged_backward 7", errno.ENOENT),
        ("update_delta_index 2 0:1", errno.ENOENT),
        ("update_delta_index 0 5:1", errno.EINVAL),
        ("update_delta_index 0 9:1", errno.EINVAL),
    ],
)
async def test_levels_that_cannot_be_meant(rig: Rig, message: str, number: int) -> None:
    assert await errno_of_message(rig, message) == number
    assert await rig.content() == CONTENT


async def test_a_raw_base_is_not_merged_and_the_errno_can_travel(rig: Rig) -> None:
    rig = await mapped_rig(
        {"/raw": cluster_of(b"r") * 6, MIDDLE: image({1: b"m"}).build(), TOP: image({2: b"t"}).build()},
        stack=["raw@/raw", MIDDLE, TOP],
    )
    assert mapper_of(rig).active.table.line == line("raw@/raw", MIDDLE, TOP)
    assert await errno_of_message(rig, "notify_merged_forward 0") == errno.EOPNOTSUPP


async def test_clusters_that_user_space_has_moved_are_read_where_they_are(rig: Rig) -> None:
    base = rig.store.images[BASE].data
    base += cluster_of(b"A")
    moved_to = len(base) // CLUSTER - 1
    await say(rig, f"update_delta_index 0 0:{moved_to};")
    assert await rig.device.read(0, CLUSTER) == cluster_of(b"A")


# --- tracking -----------------------------------------------------------------------------------------------------


async def test_tracking_tells_which_clusters_of_the_top_file_were_written(rig: Rig) -> None:
    assert await errno_of_message(rig, "tracking_get_next") == errno.ENOENT
    await say(rig, "tracking_start")
    assert mapper_of(rig).active.status == f"0 {SECTORS} ploop 3 v2 64 t"
    assert await errno_of_message(rig, "tracking_start") == errno.EEXIST
    told = []
    while not await errno_of_message(rig, "tracking_get_next"):
        told.append(mapper_of(rig).answer)
    assert told == ["0\n", "1\n"], "header and map, and the one cluster of the top"
    assert await errno_of_message(rig, "tracking_get_next") == errno.EAGAIN
    await rig.device.write(2 * CLUSTER, b"w")
    assert await say(rig, "tracking_get_next") == "1\n"
    await say(rig, "tracking_stop")
    assert await errno_of_message(rig, "tracking_stop") == errno.ENOENT
    assert mapper_of(rig).active.status.endswith(" o")


async def test_while_tracking_goes_on_the_stack_does_not_change(rig: Rig) -> None:
    await say(rig, "tracking_start")
    for message in (f"resize {8 * 64}", "merge", "notify_merged_forward 0", "update_delta_index 0 0:1"):
        assert await errno_of_message(rig, message) == errno.EBUSY


# --- flipping -----------------------------------------------------------------------------------------------------


async def flippable(rig: Rig) -> Rig:
    """Two deltas that have no cluster in common, suspended, with noresume."""
    rig = await mapped_rig({BASE: image({0: b"a", 1: b"b"}).build(), TOP: image({2: b"t"}).build()})
    await say(rig, "set_noresume 1")
    await mapper_of(rig).suspend()
    return rig


async def test_the_two_upper_deltas_change_places(rig: Rig) -> None:
    rig = await flippable(rig)
    await say(rig, "flip_upper_deltas")
    await say(rig, "set_noresume 0")
    await mapper_of(rig).resume()
    assert mapper_of(rig).active.table.line == line(TOP, BASE)
    assert (rig.is_marked(TOP), rig.is_marked(BASE)) == (False, True)
    old_top = rig.store.bytes_of(TOP)
    await rig.device.write(3 * CLUSTER, b"w")
    expected = cluster_of(b"a") + cluster_of(b"b") + cluster_of(b"t") + b"w" + bytes(3 * CLUSTER - 1)
    assert await rig.content() == expected
    await rig.device.flush()
    assert rig.store.bytes_of(TOP) == old_top
    await say(rig, "merge")
    assert await content_after(rig, BASE) == expected


async def test_flipping_wants_a_suspended_device_that_will_not_be_resumed(rig: Rig) -> None:
    assert await errno_of_message(rig, "flip_upper_deltas") == errno.EBUSY
    await mapper_of(rig).suspend()
    assert await errno_of_message(rig, "flip_upper_deltas") == errno.EBUSY
    await say(rig, "set_noresume 1")
    await say(rig, "tracking_start")
    assert await errno_of_message(rig, "flip_upper_deltas") == errno.EBUSY
    assert mapper_of(rig).active.table.line == line(*STACK)


async def test_deltas_with_a_cluster_in_common_cannot_change_places(rig: Rig) -> None:
    rig = await mapped_rig({BASE: image({0: b"a", 2: b"b"}).build(), TOP: image({2: b"t"}).build()})
    await say(rig, "set_noresume 1")
    await mapper_of(rig).suspend()
    assert await errno_of_message(rig, "flip_upper_deltas") == errno.EEXIST
    assert rig.is_marked(TOP)


@pytest.mark.parametrize("operation", ["open", "lock", "write"])
async def test_a_flip_that_fails_leaves_both_as_they_were(rig: Rig, operation: str) -> None:
    rig = await flippable(rig)
    rig.lose(errno.EACCES, operation, path=BASE, count=1)
    assert await errno_of_message(rig, "flip_upper_deltas") == errno.EACCES
    assert (rig.is_marked(TOP), rig.is_marked(BASE), len(rig.store.images[TOP].writers)) == (True, False, 1)
    assert len(rig.store.images[BASE].readers) == 1
    await say(rig, "set_noresume 0")
    await mapper_of(rig).resume()
    await rig.device.write(0, b"w")
    assert mapper_of(rig).active.table.line == line(BASE, TOP)


# --- tables beside ------------------------------------------------------------------------------------------------


async def test_nothing_changes_the_stack_while_a_table_waits(rig: Rig) -> None:
    await mapper_of(rig).load(line(*STACK))
    for message in (f"resize {8 * 64}", "merge", "notify_merged_forward 0"):
        assert await errno_of_message(rig, message) == errno.EBUSY
    assert await say(rig, "get_img_name 0") == f"{BASE}\n"
    await mapper_of(rig).clear()
    await say(rig, "merge")
