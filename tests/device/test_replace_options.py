"""What replace_delta takes beyond a path: another level than the top, and comparing before it is trusted."""

import errno
from functools import partial

import pytest

from ploopfs.device.standby import State
from ploopfs.device.verify import Verify
from ploopfs.errors import (
    BackendError,
    BadImage,
    ImageLocked,
    ImageMismatch,
    ImageNotClosed,
    NoSuchEntry,
    RequestFailed,
)
from ploopfs.image.header import IN_USE
from tests.device.rig import BASE, CLUSTER, CONTENT, MIDDLE, NEW, STACK, TOP, Rig, errno_of, image, rig_of, three_deltas

pytestmark = pytest.mark.expects_warnings

# --- level --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "clusters", "content"),
    [
        (0, {0: b"A", 1: b"B", 2: b"C"}, b"Amt"),
        (1, {1: b"M"}, b"aMt"),
        (2, {2: b"T"}, b"amT"),
        (1, {}, b"abt"),
        (0, {}, b"\0mt"),
    ],
    ids=["base", "middle", "top", "an empty middle brings the base to light", "an empty base"],
)
async def test_any_level_can_be_replaced(rig: Rig, level: int, clusters: dict[int, bytes], content: bytes) -> None:
    rig.store.put(NEW, image(clusters).build())
    await rig.device.replace(NEW, level=level)
    assert (await rig.content())[: 3 * CLUSTER : CLUSTER] == content
    assert [delta.path for delta in rig.device.stack.deltas].index(NEW) == level
    assert rig.queue.generation == 2


@pytest.mark.parametrize("level", [0, 1])
async def test_the_top_goes_on_to_be_written_after_a_lower_level_was_replaced(rig: Rig, level: int) -> None:
    await rig.device.write(3 * CLUSTER, b"before")
    rig.copy((BASE, MIDDLE)[level], NEW)
    await rig.device.replace(NEW, level=level)
    await rig.device.write(4 * CLUSTER, b"after")
    await rig.device.write(0, b"up")
    content = await rig.content()
    assert content[3 * CLUSTER :].startswith(b"before")
    assert content[4 * CLUSTER :].startswith(b"after")
    assert content[:3] == b"upa"
    assert rig.changes_of(NEW) == rig.changes_of(BASE) == rig.changes_of(MIDDLE) == []
    assert await rig.device.aclose()
    again = await rig_of({path: rig.store.bytes_of(path) for path in (BASE, MIDDLE, TOP)})
    assert await again.content() == content


@pytest.mark.parametrize("level", [0, 1])
async def test_the_top_stays_marked_in_use_when_a_lower_level_is_replaced(rig: Rig, level: int) -> None:
    rig.copy(STACK[level], NEW)
    await rig.device.write(0, b"x")
    rig.faults.log.clear()
    await rig.device.replace(NEW, level=level)
    assert rig.is_marked(TOP)
    assert rig.changes_of(TOP) == []
    await rig.device.write(4 * CLUSTER, b"y")
    assert await rig.device.aclose()
    assert not rig.is_marked(TOP)


@pytest.mark.parametrize("level", [3, 99])
async def test_a_level_that_is_not_there_is_enoent(rig: Rig, level: int) -> None:
    rig.store.put(NEW, image({}).build())
    with pytest.raises(NoSuchEntry) as refusal:
        await rig.device.replace(NEW, level=level)
    assert (refusal.value.errno, str(refusal.value)) == (
        errno.ENOENT,
        f"level is {level}, and the stack has levels 0 to 2",
    )
    assert rig.queue.generation == 1


async def test_a_lower_level_that_is_marked_in_use_is_refused(rig: Rig) -> None:
    rig.store.put(NEW, image({1: b"M"}, in_use=IN_USE).build())
    with pytest.raises(ImageNotClosed):
        await rig.device.replace(NEW, level=1)
    assert await rig.content() == CONTENT


async def test_a_lower_level_of_another_cluster_size_is_refused(rig: Rig) -> None:
    rig.store.put(NEW, image({}, cluster_sectors=128).build())
    with pytest.raises(BadImage):
        await rig.device.replace(NEW, level=0)
    assert await rig.content() == CONTENT


async def test_any_successful_replace_ends_standby_as_in_the_kernel(rig: Rig) -> None:
    rule = rig.lose(errno.EIO, "read", path=MIDDLE)
    with pytest.raises(RequestFailed, match="EIO"):
        await rig.device.read(CLUSTER, 512)
    assert rig.state is State.ON
    rig.copy(MIDDLE, NEW)
    await rig.device.replace(NEW, level=1)
    assert rig.queue.standby.state is State.OFF
    assert await rig.content() == CONTENT
    rig.faults.remove(rule)


async def test_a_replacement_is_reported_with_its_result(rig: Rig) -> None:
    rig.store.put(NEW, image({1: b"M"}).build())
    await rig.device.replace(NEW, level=1)
    with pytest.raises(NoSuchEntry):
        await rig.device.replace(NEW, level=7)
    records = [(record.event, record.facts) for record in rig.registry.events.since(1)]
    assert records[-4:] == [
        ("replace_begin", {"operation": "replace_delta", "level": 1, "path": NEW}),
        (
            "replace_end",
            {
                "operation": "replace_delta",
                "level": 1,
                "path": NEW,
                "result": "ok",
                "error": "",
                "generation": 2,
            },
        ),
        ("replace_begin", {"operation": "replace_delta", "level": 7, "path": NEW}),
        (
            "replace_end",
            {
                "operation": "replace_delta",
                "level": 7,
                "path": NEW,
                "result": "ENOENT",
                "error": "level is 7, and the stack has levels 0 to 2",
                "generation": 2,
            },
        ),
    ]
    assert rig.device.replace_results == {("replace_delta", "ok"): 1, ("replace_delta", "ENOENT"): 1}


# --- verify -------------------------------------------------------------------------------------------------------


async def test_without_verify_the_content_is_trusted_as_the_kernel_does(rig: Rig) -> None:
    rig.store.put(NEW, image({}).build())
    await rig.device.replace(NEW, verify=Verify.NONE)
    assert (await rig.content())[2 * CLUSTER :: CLUSTER] == b"c\0\0\0"


@pytest.mark.parametrize("how", [Verify.MAP, Verify.FULL])
@pytest.mark.parametrize("level", [None, 0, 1, 2])
async def test_a_copy_passes_every_comparison(rig: Rig, how: Verify, level: int | None) -> None:
    path = TOP if level is None else (BASE, MIDDLE, TOP)[level]
    source = three_deltas()[path]
    rig.store.put(NEW, source)
    await rig.device.replace(NEW, level=level, verify=how)
    assert await rig.content() == CONTENT


@pytest.mark.parametrize(
    ("clusters", "why"),
    [
        ({}, "differs from the old delta's in 1 clusters, first in cluster 2 of the disk"),
        ({1: b"x", 2: b"t"}, "differs from the old delta's in 1 clusters, first in cluster 1 of the disk"),
        ({1: b"x", 5: b"y"}, "differs from the old delta's in 3 clusters, first in cluster 1 of the disk"),
    ],
    ids=["one less", "one more", "others"],
)
@pytest.mark.parametrize("how", [Verify.MAP, Verify.FULL])
async def test_another_map_is_refused_and_the_first_difference_named(
    rig: Rig, clusters: dict[int, bytes], why: str, how: Verify
) -> None:
    rig.store.put(NEW, image(clusters).build())
    with pytest.raises(ImageMismatch, match=why):
        await rig.device.replace(NEW, verify=how)
    assert await rig.content() == CONTENT
    assert rig.is_marked(TOP)
    assert not rig.is_marked(NEW)


async def test_the_maps_agree_wherever_the_clusters_lie_in_the_file() -> None:
    images = three_deltas() | {TOP: image({2: b"t", 3: b"u"}).build()}
    rig = await rig_of(images)
    before = await rig.content()
    rig.store.put(NEW, image({3: b"u", 2: b"t"}).build())
    await rig.device.replace(NEW, verify=Verify.FULL)
    assert await rig.content() == before


async def test_other_data_pass_the_comparison_of_maps_and_fail_that_of_data(rig: Rig) -> None:
    rig.store.put(NEW, image({2: b"X"}).build())
    with pytest.raises(ImageMismatch, match="the data of cluster 2 of the disk differ"):
        await rig.device.replace(NEW, verify=Verify.FULL)
    assert await rig.content() == CONTENT
    await rig.device.replace(NEW, verify=Verify.MAP)
    assert (await rig.content())[2 * CLUSTER :: CLUSTER] == b"X\0\0\0"


async def test_in_standby_the_map_is_compared_with_what_is_known_of_the_lost_top(rig: Rig) -> None:
    rig.store.put(NEW, image({1: b"x"}).build())
    await rig.enter_standby(errno.ENOTCONN)
    with pytest.raises(ImageMismatch):
        await rig.device.replace(NEW, verify=Verify.MAP)
    assert rig.state is State.ON
    rig.store.put(NEW, image({2: b"t"}).build())
    await rig.device.replace(NEW, verify=Verify.MAP)
    assert rig.queue.standby.state is State.OFF


@pytest.mark.parametrize("how", [Verify.MAP, Verify.FULL])
async def test_what_will_be_written_again_may_differ(rig: Rig, how: Verify) -> None:
    """A copy of what a lost storage has kept: it has not the cluster that was acknowledged last."""
    rig.copy(TOP, NEW)
    await rig.device.write(4 * CLUSTER, b"new")
    await rig.device.write(2 * CLUSTER, b"old")
    before = await rig.content()
    rig.lose(errno.EBUSY, "write")
    assert await errno_of(rig.device.write(2 * CLUSTER, b"?")) == errno.EBUSY
    rig.faults.rules.clear()
    await rig.device.replace(NEW, verify=how)
    assert await rig.content() == before


async def test_data_that_cannot_be_read_from_the_lost_top_cannot_be_compared(rig: Rig) -> None:
    rig.store.put(NEW, image({2: b"t"}).build())
    await rig.enter_standby(errno.ENOTCONN)
    with pytest.raises(BackendError) as failure:
        await rig.device.replace(NEW, verify=Verify.FULL)
    assert (failure.value.errno, failure.value.path) == (errno.ENOTCONN, TOP)
    assert rig.state is State.ON


async def test_raw_bases_are_compared_by_size_and_data() -> None:
    raw = b"r" * CLUSTER + b"s" * CLUSTER * 5
    rig = await rig_of({BASE: raw, TOP: image({2: b"t"}).build()}, stack=[f"raw@{BASE}", TOP])
    before = await rig.content()
    rig.store.put(NEW, raw + b"more" * 128)
    with pytest.raises(ImageMismatch, match="expected 196608 as the old delta has"):
        await rig.device.replace(NEW, level=0, verify=Verify.MAP)
    rig.store.put(NEW, raw[:-1] + b"x")
    await rig.device.replace(NEW, level=0, verify=Verify.MAP)
    rig.store.put(BASE, raw)
    with pytest.raises(ImageMismatch, match=f"the data at byte {5 * CLUSTER} differ"):
        await rig.device.replace(BASE, level=0, verify=Verify.FULL)
    rig.store.put(BASE, raw[:-1] + b"x")
    await rig.device.replace(BASE, level=0, verify=Verify.FULL)
    assert await rig.content() == before[:-1] + b"x"


# --- replay -------------------------------------------------------------------------------------------------------


async def test_a_replay_that_fails_leaves_standby_and_takes_its_mark_away_again(rig: Rig) -> None:
    rig.store.put(NEW, image({2: b"t"}).build())
    await rig.device.write(0, b"unflushed")
    await rig.enter_standby(errno.ENOTCONN)
    # The first write is the mark's, the next one is the replay's.
    rule = rig.lose(errno.EIO, "write", path=NEW, skip=1, count=1)
    with pytest.raises(BackendError):
        await rig.device.replace(NEW)
    assert (rule.hits, rig.state, rig.queue.generation) == (1, State.ON, 1)
    assert not rig.is_marked(NEW)
    assert rig.device.unflushed.data_bytes == len(b"unflushed")

    await rig.device.replace(NEW)
    assert rig.state is State.OFF
    assert (await rig.content()).startswith(b"unflushed")
    assert rig.device.unflushed.data_bytes == 0


# --- a target that lets go in standby -----------------------------------------------------------------------------


async def test_a_device_that_was_detached_in_standby_is_still_lost_and_recovers(rig: Rig) -> None:
    rig.copy(TOP, NEW)
    await rig.device.write(0, b"unflushed")
    rule = rig.lose(errno.ENOTCONN)
    with pytest.raises(RequestFailed):
        await rig.device.read(2 * CLUSTER, 512)
    rig.queue.standby.detach()
    assert (rig.state, rig.queue.is_lost) == (State.NOT_SUPPORTED, True)
    changed = len(rig.faults.log)
    rig.faults.remove(rule)

    await rig.device.replace(NEW)
    assert rig.changes_of(TOP, since=changed) == [], "whoever stole the lease may be writing it"
    assert not rig.queue.is_lost
    assert (await rig.content()).startswith(b"unflushed")
    assert rig.device.unflushed.data_bytes == 0


async def test_a_device_that_was_detached_in_standby_is_not_closed_as_if_nothing_had_happened(rig: Rig) -> None:
    await rig.device.write(0, b"unflushed")
    rule = rig.lose(errno.EIO, "read")
    with pytest.raises(RequestFailed):
        await rig.device.read(2 * CLUSTER, 512)
    rig.queue.standby.detach()
    rig.faults.remove(rule)
    assert not await rig.device.aclose()
    assert rig.is_marked(TOP)


async def test_a_device_that_was_detached_in_standby_confirms_no_flush_before_it_is_recovered(rig: Rig) -> None:
    await rig.device.write(2 * CLUSTER, b"unflushed")
    rule = rig.lose(errno.EIO, "read")
    with pytest.raises(RequestFailed):
        await rig.device.read(2 * CLUSTER, 512)
    rig.queue.standby.detach()
    rig.faults.remove(rule)
    for ask in (rig.device.flush, partial(rig.device.write, 0, b"x", fua=True)):
        with pytest.raises(RequestFailed):
            await ask()
        rig.queue.set_aborted(False)  # by an operator who knows no better

    await rig.device.reopen()
    await rig.device.flush()


async def test_what_was_forgotten_by_hand_is_not_written_over_what_somebody_else_wrote(rig: Rig) -> None:
    await rig.device.write(0, b"ours")
    await rig.enter_standby(errno.EBUSY)
    rig.store.put(NEW, image({0: b"n", 2: b"t"}).build())
    rig.device.unflushed.forget()
    await rig.device.replace(NEW)
    assert (await rig.content()).startswith(b"nnnn")


# --- a lower level while the top is lost --------------------------------------------------------------------------


async def test_when_a_lower_level_is_replaced_in_standby_the_top_is_opened_again_before_it_is_written(
    rig: Rig,
) -> None:
    await rig.device.write(0, b"unflushed")
    rule = rig.lose(errno.EBUSY)
    with pytest.raises(RequestFailed):
        await rig.device.read(2 * CLUSTER, 512)
    rig.faults.remove(rule)
    before = rig.device.stack.top
    rig.copy(MIDDLE, NEW)
    await rig.device.replace(NEW, level=1)
    assert rig.queue.standby.state is State.OFF
    assert rig.device.stack.top is not before
    assert rig.is_marked(TOP)
    assert (await rig.content()).startswith(b"unflushed")


async def test_a_lower_level_is_not_replaced_while_the_top_is_somebody_elses(rig: Rig) -> None:
    await rig.device.write(0, b"unflushed")
    rule = rig.lose(errno.EBUSY)
    with pytest.raises(RequestFailed):
        await rig.device.read(2 * CLUSTER, 512)
    rig.faults.remove(rule)
    theirs = await rig.store.open(TOP, writable=True)
    rig.store.images[TOP].writers.clear()
    await theirs.lock()
    changed = len(rig.faults.log)
    rig.copy(MIDDLE, NEW)
    with pytest.raises(ImageLocked):
        await rig.device.replace(NEW, level=1)
    assert rig.state is State.ON
    assert rig.changes_of(TOP, since=changed) == []


async def test_clusters_of_a_raw_top_that_will_be_written_again_are_not_compared() -> None:
    raw = b"r" * CLUSTER * 4
    rig = await rig_of({TOP: raw}, stack=[f"raw@{TOP}"])
    rig.store.put(NEW, raw)
    await rig.device.write(CLUSTER, b"unflushed")
    await rig.enter_standby(errno.ENOTCONN)
    rig.faults.rules.clear()
    await rig.device.replace(NEW, verify=Verify.FULL)
    assert bytes(await rig.device.read(CLUSTER, 9)) == b"unflushed"
