"""A story that is journaled, and everything that a power failure at any moment of it may leave.

A `Story` is told once: a test runs its operations on `files` and says what the disk may show from then on. All images
that a failure may leave are then made from the journal (`pending_at`), by the fault model of ploopfs.testing.pending,
and judged:

- the check finds nothing worse than leaked clusters and the mark; lower deltas are byte for byte what they were;
- the image opens again; everything that was flushed reads back, every other byte is one that was written there since,
  and POISON, which lies wherever nobody has written, never shows;
- an image without its mark has all that was done before it was closed, and no space past it, or nothing was ever done;
- whoever opens an unclosed image, which is checked thereby, and writes on, may have the power cut a second time, at any
  step of that too: the same holds.

Moments: just before the model learns of something, and just before a sync ends. Between two of them what is pending
only grows, and what may be shown stays: whatever a failure leaves earlier, it may leave at the second one as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random

import numpy as np

from ploopfs.engine.counters import Counters
from ploopfs.engine.file import Buffer, Files
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.stack import Stack
from ploopfs.image.check import Verdict
from ploopfs.image.header import HEADER_BYTES, Header
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.pending import Pending
from tests.engine.disk import POISON, assert_ends_with_a_used_cluster, verdict
from tests.engine.journal import Journal, JournalFiles, pending_at

_IN_USE_OFFSET = 44


@dataclass(frozen=True, slots=True)
class State:
    """From `tick` on a stack over `spec` may show `content`. `flushed`: nothing older. `closing`: nothing is going to
    change any more, so the mark may go."""

    tick: int
    content: bytes
    spec: StackSpec
    flushed: bool = False
    closing: bool = False


@dataclass(slots=True)
class History:
    """What one top image is to show, in time; from tick `ended` on it is no top any more."""

    states: list[State] = field(default_factory=list)
    ended: float = inf

    def possible_at(self, at: int) -> list[bytes]:
        """The last flushed content, and every later one that had begun."""
        begun = [state for state in self.states if state.tick <= at]
        last = max(index for index, state in enumerate(begun) if state.flushed)
        return [state.content for state in begun[last:]]

    def closed_at(self, at: int) -> list[bytes]:
        """What the image may show without its mark, and then nothing else."""
        closed = []
        for state in reversed([state for state in self.states if state.tick <= at]):
            if state.closing:
                closed.append(state.content)
            elif not state.flushed:
                break
        return closed

    def was_changed_by(self, at: int) -> bool:
        return any(state.tick <= at and not (state.flushed or state.closing) for state in self.states)

    def spec_at(self, at: int) -> StackSpec:
        return [state for state in self.states if state.tick <= at][-1].spec


class Story:
    """`before` are all images as they were. `files` is where the story is told; `histories` has every image that is, or
    is going to be, a top, by its path."""

    def __init__(self, before: Mapping[str, bytes], *, shuffle: Random | None = None) -> None:
        self.before = dict(before)
        self.journal = Journal(shuffle=shuffle)
        self.memory = MemoryFiles()
        for path, content in before.items():
            self.memory.put(path, content)
        self.files: Files = JournalFiles(self.memory, self.journal)
        self.histories: dict[str, History] = {}

    def shows(self, spec: StackSpec, content: Buffer, *, flushed: bool = False, closing: bool = False) -> None:
        """From now on a stack over `spec` may show this."""
        history = self.histories.setdefault(spec.images[-1].path, History())
        history.states.append(State(self.journal.tick(), bytes(content), spec, flushed, closing))

    def is_no_top(self, path: str) -> None:
        """From now on; another image below or above it may have changed."""
        self.histories[path].ended = self.journal.tick()

    def begins_with(self, spec: StackSpec, content: Buffer) -> None:
        """The image is closed, or durable as it is."""
        self.shows(spec, content, flushed=True, closing=True)

    def histories_at(self, at: int) -> list[History]:
        """Of the images that are, or are about to be, a top then."""
        return [history for history in self.histories.values() if history.states[0].tick <= at < history.ended]

    def moments(self) -> list[int]:
        told = {state.tick - 1 for history in self.histories.values() for state in history.states}
        first = min(history.states[0].tick for history in self.histories.values())
        return sorted(at for at in told | before_syncs(self.journal) if at >= first)


def before_syncs(journal: Journal) -> set[int]:
    """The last tick at which what a sync makes durable is pending still, of each; and the end."""
    return {sync.ended - 1 for sync in journal.of("fsync") if sync.ended is not None} | {journal.tick()}


@dataclass(frozen=True, slots=True)
class Effort:
    """How many outcomes of one moment are looked at. All subsets of up to `pieces` pieces, else of up to `atoms` atoms;
    always none, all, and up to `alone` pieces each alone kept and each alone lost; and `drawn` subsets more of pieces,
    and as many of atoms. `recoveries`: of a whole story, how many outcomes are gone on from, to a second failure."""

    pieces: int = 7
    atoms: int = 5
    alone: int = 6
    drawn: int = 5
    recoveries: int = 5


USUAL = Effort()
LONG = Effort(pieces=10, atoms=8, alone=50, drawn=50, recoveries=30)
_OF_A_RECOVERY = Effort(pieces=5, atoms=3, alone=2, drawn=2, recoveries=0)


def subsets(sizes: Sequence[int], effort: Effort, random: Random) -> Iterator[list[bool]]:
    """Which of the pieces survive; `sizes` are those of the atoms, in pieces."""
    count = sum(sizes)
    if count <= effort.pieces:
        yield from _every(count)
        return
    if len(sizes) <= effort.atoms:
        yield from (_whole(atoms, sizes) for atoms in _every(len(sizes)))
    yield [False] * count
    yield [True] * count
    for place in sorted({0, count - 1, *random.sample(range(count), min(count, effort.alone))}):
        yield [index == place for index in range(count)]
        yield [index != place for index in range(count)]
    for _ in range(effort.drawn):
        share = random.choice((0.1, 0.3, 0.5, 0.7, 0.9))
        yield [random.random() < share for _ in range(count)]
        yield _whole([random.random() < share for _ in sizes], sizes)


def _whole(atoms: Sequence[bool], sizes: Sequence[int]) -> list[bool]:
    return [kept for kept, size in zip(atoms, sizes, strict=True) for _ in range(size)]


def _every(count: int) -> Iterator[list[bool]]:
    for number in range(1 << count):
        yield [bool(number >> index & 1) for index in range(count)]


def outcomes(
    before: Mapping[str, bytes], journal: Journal, at: int, effort: Effort, random: Random
) -> Iterator[dict[str, bytes]]:
    """Of a failure at tick `at`: every image, and none twice."""
    pending = pending_at(before, journal, at)
    sizes = [len(atom) for of_file in pending.values() for atom in of_file.atoms]
    seen: set[int] = set()
    for survivors in subsets(sizes, effort, random):
        decisions = iter(survivors)
        images = {path: left_of(of_file, decisions) for path, of_file in pending.items()}
        key = hash(tuple(images.values()))
        if key not in seen:
            seen.add(key)
            yield images


def left_of(pending: Pending, decisions: Iterator[bool]) -> bytes:
    """`decisions`: one for each piece, and then those for other files."""
    return bytes(pending.left(lambda _piece: next(decisions)))


async def assert_survives(story: Story, random: Random, effort: Effort = USUAL) -> int:
    """How many outcomes of how many moments were found to be sound is the result."""
    assert_only_tops_were_written(story)
    count = 0
    candidates: list[tuple[int, dict[str, bytes]]] = []
    for at in story.moments():
        for images in outcomes(story.before, story.journal, at, effort, random):
            for history in story.histories_at(at):
                await assert_sound(history, at, images)
            count += 1
            # Every outcome is as likely to be gone on from as another.
            if len(candidates) < effort.recoveries:
                candidates.append((at, images))
            elif effort.recoveries and random.randrange(count) < effort.recoveries:
                candidates[random.randrange(effort.recoveries)] = (at, images)
    for at, images in candidates:
        for history in story.histories_at(at):
            again = await recovered(history.spec_at(at), images, random)
            count += await assert_survives(again, random, _OF_A_RECOVERY)
    return count


def assert_only_tops_were_written(story: Story) -> None:
    changed = {entry.path for entry in story.journal.of("write", "truncate", "fallocate", "punch hole")}
    assert changed <= story.histories.keys(), f"{changed - story.histories.keys()} were changed below the top"


async def assert_sound(history: History, at: int, images: Mapping[str, bytes]) -> None:
    spec, possible = history.spec_at(at), history.possible_at(at)
    top = spec.images[-1]
    content = await content_of(spec, images, len(possible[-1]))
    assert_mixed_from(possible, content)
    if top.raw:
        return
    found = verdict(images[top.path], top.path)
    assert found.verdict in (Verdict.CLEAN, Verdict.NOT_CLOSED), (at, found)
    if found.verdict is Verdict.CLEAN:
        closed = [_as_long(state, len(content)) for state in history.closed_at(at)]
        assert content in closed, f"at {at} {top.path} has no mark, and not all that was written"
        if history.was_changed_by(at):
            assert_ends_with_a_used_cluster(images[top.path])


async def content_of(spec: StackSpec, images: Mapping[str, bytes], length: int) -> bytes:
    """It is opened as it is, mark or no mark, so for reading."""
    files = MemoryFiles()
    for path, image in images.items():
        files.put(path, image)
    stack = await open_stack(files, spec, read_only=True, counters=Counters())
    content = bytes(await stack.read(0, min(stack.size_bytes, length)))
    owned = stack.map.owned_by(stack.map.top_level)
    assert owned.max(initial=0) * stack.cluster_bytes <= length, "a cluster that nobody writes has bytes of its own"
    await stack.aclose(clean=False)
    return content


def assert_mixed_from(states: Sequence[bytes], content: bytes) -> None:
    """Each byte is that of one of the states, of which the first is certain to have been reached; what a smaller disk
    did not have are zeroes."""
    assert len(content) >= len(states[0])
    got = np.frombuffer(content, np.uint8)
    known = np.zeros(len(got), dtype=bool)
    for state in dict.fromkeys(states):
        known |= got == np.frombuffer(_as_long(state, len(content)), np.uint8)
    strange = np.flatnonzero(~known)
    poison = " (poison)" if np.any(got[strange] == POISON) else ""
    assert not len(strange), f"{len(strange)} bytes from {strange[0]} on are none that was ever written there{poison}"


def _as_long(state: bytes, length: int) -> bytes:
    return state[:length].ljust(length, b"\0")


# --- after the failure ------------------------------------------------------------------------------------------------


async def recovered(spec: StackSpec, images: Mapping[str, bytes], random: Random) -> Story:
    """The story of a user who takes up the images that a failure left, writes on, and closes them."""
    content = bytearray(await content_of(spec, images, 1 << 20))
    # A flip that was cut off may have marked what is a lower delta in the order that is taken up.
    lower = {image.path: _unmarked(images[image.path]) for image in spec.images[:-1] if not image.raw}
    story = Story({**images, **lower})
    story.shows(spec, content, flushed=True, closing=True)
    stack = await open_stack(story.files, spec, read_only=False, counters=Counters())
    assert not stack.read_only
    for letter in range(1, 8):
        await _write_on(story, spec, stack, content, letter, random)
    story.shows(spec, content, closing=True)
    await stack.aclose(clean=True)
    story.shows(spec, content, flushed=True, closing=True)
    return story


async def _write_on(
    story: Story, spec: StackSpec, stack: Stack, content: bytearray, letter: int, random: Random
) -> None:
    """A part of a cluster, so that what lies around it shows."""
    size = stack.cluster_bytes
    slot = random.randrange(len(content) // size)
    if random.random() < 0.2:
        if stack.map.owned_by_top(slot):
            content[slot * size : (slot + 1) * size] = bytes(size)
        story.shows(spec, content)
        await stack.discard(slot * size, size)
    else:
        offset, data = slot * size + random.randrange(size - 700), bytes([letter]) * 700
        content[offset : offset + 700] = data
        story.shows(spec, content)
        await stack.write(offset, data)
    if random.random() < 0.4:
        await stack.flush()
        story.shows(spec, content, flushed=True)


def _unmarked(image: bytes) -> bytes:
    if not Header.parse(image[:HEADER_BYTES], "image").is_marked_in_use:
        return image
    return image[:_IN_USE_OFFSET] + bytes(4) + image[_IN_USE_OFFSET + 4 :]
