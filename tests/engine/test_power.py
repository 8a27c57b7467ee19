"""The power fails at every step of every operation: what was flushed is there, and nothing else comes to light."""

import struct
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from ploopfs.testing.forgetful import ForgetfulFiles
from tests.engine.disk import POISON
from tests.engine.journal import JournalFiles, pending_at
from tests.engine.model import CLUSTER_BYTES as CLUSTER
from tests.engine.power import Effort, Story, assert_mixed_from, assert_survives, subsets
from tests.engine.scenes import ALONE, BASE, CHAIN, LEAKY, SCENES, TOP, Scene, Told


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each outcome is a copy of all of it."""
    monkeypatch.setattr("ploopfs.engine.room.GROW_AHEAD_MIB", 1)


@pytest.mark.slow
@pytest.mark.parametrize("told", SCENES.values(), ids=SCENES)
async def test_whatever_a_power_failure_leaves_of_an_operation_is_sound(told: Told) -> None:
    scene = Scene(told.levels)
    story = await scene.tell(told.acts)
    assert await assert_survives(story, Random(1)) > 10


# What judges must be able to condemn.


async def _claims_a_flush(scene: Scene) -> None:
    await scene.write(1 * CLUSTER + 100, b"n" * 10)
    scene.shows(flushed=True)


async def _names_a_cluster_that_nobody_wrote(scene: Scene) -> None:
    await scene.write(3 * CLUSTER, bytes(10))
    await scene.stack.top.write(64 + 4 * 4, struct.pack("<I", 3))


async def _clears_the_mark_at_once(scene: Scene) -> None:
    await scene.stack.top.write(44, bytes(4))
    await scene.write(3 * CLUSTER, b"n" * CLUSTER)


async def _names_a_cluster_twice(scene: Scene) -> None:
    await scene.write(3 * CLUSTER, b"n" * CLUSTER)
    scene.content[4 * CLUSTER : 5 * CLUSTER] = b"n" * CLUSTER
    scene.shows()
    await scene.stack.top.write(64 + 4 * 4, scene.story.memory.bytes_of(TOP)[64 + 4 * 3 : 68 + 4 * 3])


async def _writes_below_the_top(scene: Scene) -> None:
    file = await scene.story.files.open(BASE, writable=True)
    await file.write(CLUSTER, b"a")
    await file.aclose()


CRIMES: dict[str, tuple[Told, str]] = {
    "a flush that was none": (Told(ALONE, _claims_a_flush), "none that was ever written there"),
    "old bytes of somebody else": (Told(LEAKY, _names_a_cluster_that_nobody_wrote), "poison"),
    "a mark that went too early": (Told(ALONE, _clears_the_mark_at_once), "has no mark, and not all"),
    "a cluster that two have": (Told(ALONE, _names_a_cluster_twice), "a cluster that no other entry uses"),
    "a write below the top": (Told(CHAIN, _writes_below_the_top), "changed below the top"),
}


@pytest.mark.parametrize(("told", "verdict"), CRIMES.values(), ids=CRIMES)
async def test_a_crime_is_seen(told: Told, verdict: str) -> None:
    scene = Scene(told.levels)
    story = await scene.tell(told.acts)
    with pytest.raises(Exception, match=verdict):
        await assert_survives(story, Random(1))


def test_the_check_of_a_mixture_sees_a_byte_that_was_never_written() -> None:
    states = [bytes(100), b"a" * 100]
    assert_mixed_from(states, b"a" * 50 + bytes(50))
    with pytest.raises(AssertionError, match="1 bytes from 7 on"):
        assert_mixed_from(states, b"a" * 7 + b"b" + bytes(92))
    with pytest.raises(AssertionError, match="poison"):
        assert_mixed_from(states, b"a" * 7 + bytes([POISON]) + bytes(92))


def test_where_pieces_are_few_every_subset_is_looked_at_and_else_each_alone() -> None:
    few = [tuple(kept) for kept in subsets([1, 2], Effort(pieces=3), Random(1))]
    assert len(few) == len(set(few)) == 8
    atoms = {tuple(kept) for kept in subsets([1, 63], Effort(pieces=3, atoms=2, alone=0, drawn=0), Random(1))}
    assert {(a,) + (b,) * 63 for a in (False, True) for b in (False, True)} <= atoms
    many = {tuple(kept) for kept in subsets([50, 50], Effort(alone=100), Random(1))}
    for place in range(100):
        alone = tuple(index == place for index in range(100))
        assert alone in many
        assert tuple(not kept for kept in alone) in many


# The journal and the store that forgets are one model.


@pytest.mark.parametrize("seed", range(5))
async def test_the_journal_knows_what_the_store_that_forgets_has_of_each_file(seed: int) -> None:
    random, image = Random(seed), b"old" * 1000
    store, story = ForgetfulFiles(), Story({TOP: image})
    store.put(TOP, image)
    file = await JournalFiles(store, story.journal).open(TOP, writable=True)
    acts: list[Callable[[int], Awaitable[None]]] = [
        lambda at: file.write(at, b"n" * 700),
        lambda at: file.punch(at, 900),
        file.truncate,
        lambda at: file.allocate(at, 900),
        lambda _at: file.sync(),
    ]
    for _ in range(30):
        await random.choice(acts)(random.randrange(4000))
    pending = pending_at(story.before, story.journal, story.journal.tick())[TOP]
    survivors = [random.random() < 0.5 for _ in pending.pieces]
    left = iter(survivors)
    expected = pending.left(lambda _piece: next(left))
    again = iter(survivors)
    store.survives = lambda: next(again)
    store.crash()
    assert store.bytes_of(TOP) == expected
