"""A device of either flavour in any sequence of requests, hangs, crashes of its store and operations of an operator.

Nothing waits for anything else: an operation begins while requests are in flight, an fsync or a write that hung ends
after the store was lost, a hang outlasts the bounds. The store forgets at a crash what was not synced. At the end it
works, the device is recovered, and every acknowledged byte is there, also after one more crash.

    python -m tests.device.operations --seeds 5000     so many stories, the scheduler's order drawn from the seed, too
"""

import argparse
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.bounds import Bounds
from ploopfs.device.device import Device
from ploopfs.device.flavour import VZ7, VZ9
from ploopfs.device.messages import answer
from ploopfs.device.registry import Registry
from ploopfs.device.waiting import OnStandby
from ploopfs.engine.checking import examine
from ploopfs.engine.inject.rule import Rule
from ploopfs.engine.repair import carry_out, plan_for
from ploopfs.errors import ImageNotClosed, PloopError
from ploopfs.scst.module import Scst
from ploopfs.testing.faulty import Faults, FaultyFiles
from ploopfs.testing.forgetful import ForgetfulFiles
from tests.device.mapped import line
from tests.device.rig import CLUSTER, DISK_CLUSTERS, STACK, Asked, three_deltas
from tests.storm.run import deterministic

BOUNDS = Bounds(park_timeout_s=1000, quiesce_timeout_s=5)
BLOCK_BYTES = 1000
OFFSETS = [slot * CLUSTER + within for slot in range(DISK_CLUSTERS) for within in (0, CLUSTER - BLOCK_BYTES)]
GROWN_SECTORS = 20000 * CLUSTER // 512
ROUNDS = 50
Story = list[list[tuple[str, int]]]


class Block:
    """`may_be` are the letters that it may read as: the one acknowledged last, and what was never acknowledged."""

    def __init__(self, letter: int) -> None:
        self.may_be = {letter}
        self.write: Asked | None = None


class World:
    """`mapped`: tables are loaded and resumed, else the top is opened again or replaced by a copy."""

    def __init__(self, nursery: trio.Nursery, clock: MockClock, *, mapped: bool, stays_dead: bool) -> None:
        self.nursery, self.clock, self.mapped = nursery, clock, mapped
        self.store, self.faults = ForgetfulFiles(stays_dead=stays_dead), Faults()
        for path, content in three_deltas().items():
            self.store.put(path, content)
        self.paths = list(STACK)
        self.operations: list[Asked] = []
        self.device: Device

    async def open(self, on_standby: OnStandby) -> None:
        registry = Registry()
        name, flavour = ("dm-0", VZ9) if self.mapped else ("ploop0", VZ7)
        files = FaultyFiles(self.store, self.faults)
        self.device = await registry.add(name, flavour=flavour, image=self.paths, files=files, bounds=BOUNDS)
        self.device.queue.set_on_standby(on_standby)
        scst = Scst(registry)
        scst.load()
        scst.attach(self.device)
        content = await self.device.read(0, DISK_CLUSTERS * CLUSTER)
        self.blocks = [Block(content[offset]) for offset in OFFSETS]

    # --- requests -------------------------------------------------------------------------------------------------

    def write(self, number: int, *, fua: bool) -> None:
        """One at a time to each block: of two nobody could say which is the last."""
        index = number % len(OFFSETS)
        block, letter = self.blocks[index], ord("A") + number % 26
        if block.write is None or block.write.ended:
            block.write = Asked(self.nursery, self._write(block, OFFSETS[index], letter, fua=fua))

    async def _write(self, block: Block, offset: int, letter: int, *, fua: bool) -> None:
        block.may_be.add(letter)
        await self.device.write(offset, bytes([letter]) * BLOCK_BYTES, fua=fua)
        block.may_be = {letter}

    def zero(self, number: int, *, unmap: bool) -> None:
        """A whole cluster, with both of its blocks."""
        slot = number % DISK_CLUSTERS
        blocks = self.blocks[2 * slot : 2 * slot + 2]
        if all(block.write is None or block.write.ended for block in blocks):
            asked = Asked(self.nursery, self._zero(blocks, slot * CLUSTER, unmap=unmap))
            for block in blocks:
                block.write = asked

    async def _zero(self, blocks: Sequence[Block], offset: int, *, unmap: bool) -> None:
        for block in blocks:
            block.may_be.add(0)
        await self.device.write_zeroes(offset, CLUSTER, unmap=unmap)
        for block in blocks:
            block.may_be = {0}

    def ask(self, call: Callable[[], Awaitable[object]]) -> None:
        self.operations.append(Asked(self.nursery, call()))

    def read(self, number: int) -> None:
        self.ask(partial(self.device.read, OFFSETS[number % len(OFFSETS)], BLOCK_BYTES))

    # --- the store ------------------------------------------------------------------------------------------------

    def hang(self, operation: str, *, late: bool = False) -> None:
        """The next one on the top."""
        self.faults.on(self.paths[-1], self.faults.pause(operation, count=1, late=late))

    def release(self, number: int) -> None:
        hanging = [rule for rule in self.faults.rules if rule.hits and not _is_released(rule)]
        if hanging:
            released = hanging[number % len(hanging)].released
            assert released is not None
            released.set()

    # --- operators ------------------------------------------------------------------------------------------------

    def operate(self, number: int) -> None:
        """Whatever there is to be done, whether it is the time for it or not."""
        self.ask(self._of_mapped(number) if self.mapped else self._of_ploop(number))

    def _of_mapped(self, number: int) -> Callable[[], Awaitable[object]]:
        mapper = self.device.mapper
        assert mapper is not None
        return (
            mapper.resume,
            mapper.resume,
            partial(self._load, copy=False),
            partial(self._load, copy=True),
            mapper.suspend,
            partial(mapper.suspend, flush=False),
            mapper.clear,
            partial(answer, mapper, f"resize {GROWN_SECTORS}"),
        )[number % 8]

    def _of_ploop(self, number: int) -> Callable[[], Awaitable[object]]:
        return (self.device.reopen, self._replace)[number % 2]

    def _copied_top(self) -> str:
        """Of a device that is in use no copy is complete."""
        path = self.device.queue.stack.deltas[-1].path
        if self.device.queue.is_lost:
            copy = f"/other/{self.store.operations}.hds"
            self.store.put(copy, self.store.bytes_of(path))
            return copy
        return path

    async def _load(self, *, copy: bool) -> None:
        mapper = self.device.mapper
        assert mapper is not None
        lower = [delta.path for delta in self.device.queue.stack.deltas[:-1]]
        top = self._copied_top() if copy else self.device.queue.stack.deltas[-1].path
        await mapper.load(line(*lower, top))

    async def _replace(self) -> None:
        await self.device.replace(self._copied_top())

    # --- the end --------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Until a flush succeeds. The store answers, but whoever has not been told of a crash yet will be."""
        for _ in range(ROUNDS):
            for rule in self.faults.rules:
                if rule.released is not None:
                    rule.released.set()
            self.faults.rules.clear()
            await wait_all_tasks_blocked()
            await self._recover_once()
            await wait_all_tasks_blocked()
            flush = Asked(self.nursery, self.device.flush())
            await wait_all_tasks_blocked()
            everybody = [flush, *self.operations, *(block.write for block in self.blocks if block.write is not None)]
            if flush.ended and not flush.error and all(asked.ended for asked in everybody):
                return
            flush.cancel_scope.cancel()
        raise AssertionError("the device was not to be recovered")

    async def _recover_once(self) -> None:
        mapper, queue = self.device.mapper, self.device.queue
        try:
            if mapper is None:
                if queue.is_lost:
                    await self._reopen()
                return
            if mapper.waiting_is_outdated:
                await mapper.clear()
            if queue.is_lost and not mapper.is_busy:
                await self._load(copy=False)
            await mapper.resume()
        except PloopError:
            if mapper is not None and not mapper._under_way:
                await mapper.clear()

    async def _reopen(self) -> None:
        """A mark of ours is not known from that of somebody who may have had our lock meanwhile: `ploopfs check -r`."""
        try:
            await self.device.reopen()
        except ImageNotClosed:
            top = self.device.queue.stack.top
            assert top.lock_lost
            assert "ploopfs check -r" in self.device.last_error
            await repaired(self.store, top.path)
            await self.device.reopen()

    async def compare(self) -> None:
        content = await self.device.read(0, DISK_CLUSTERS * CLUSTER)
        for offset, block in zip(OFFSETS, self.blocks, strict=True):
            found = set(content[offset : offset + BLOCK_BYTES])
            assert len(found) == 1 and found <= block.may_be, f"at {offset}: {found}, expected {block.may_be}"  # noqa: PT018


async def repaired(store: ForgetfulFiles, path: str) -> None:
    """What `ploopfs check -r` does."""
    file = await store.open(path, writable=True)
    try:
        await file.lock()
        plan = plan_for(await examine(file))
        assert plan is not None
        await carry_out(file, plan)
    finally:
        await file.aclose()


def _is_released(rule: Rule) -> bool:
    return rule.released is None or rule.released.is_set()


DEEDS: dict[str, tuple[int, Callable[[World, int], object]]] = {
    "a write is asked for": (8, lambda world, number: world.write(number, fua=False)),
    "a write through is asked for": (2, lambda world, number: world.write(number, fua=True)),
    "zeroes are asked for": (1, lambda world, number: world.zero(number, unmap=False)),
    "zeroes that give space back are asked for": (2, lambda world, number: world.zero(number, unmap=True)),
    "a read is asked for": (2, lambda world, number: world.read(number)),
    "a flush is asked for": (3, lambda world, _: world.ask(world.device.flush)),
    "the next write hangs": (2, lambda world, _: world.hang("write")),
    "the next write hangs, and happens late": (2, lambda world, _: world.hang("write", late=True)),
    "the next read hangs": (1, lambda world, _: world.hang("read")),
    "the next hole hangs": (1, lambda world, _: world.hang("punch hole")),
    "the next fsync hangs": (3, lambda world, _: world.hang("fsync")),
    "what hangs is let go": (5, lambda world, number: world.release(number)),
    "the store crashes": (3, lambda world, _: world.store.crash()),
    "an operator does something": (9, lambda world, number: world.operate(number)),
    "time passes": (2, lambda world, number: world.clock.jump((1, 6)[number % 2])),
}
"""How often, and what it does; the number says which, where there is a choice."""

WEIGHED = [name for name, (weight, _) in DEEDS.items() for _ in range(weight)]
NUMBERS = 312
Way = tuple[bool, bool, OnStandby]
"""Whether it is mapped, whether a file of a store that crashed stays dead, and what becomes of requests."""


def drawn(random: Random) -> tuple[Story, Way]:
    """A step is what happens before anybody else can run."""
    story = [
        [(random.choice(WEIGHED), random.randrange(NUMBERS)) for _ in range(random.randint(1, 3))]
        for _ in range(random.randint(5, 30))
    ]
    return story, (random.random() < 0.5, random.random() < 0.5, random.choice(list(OnStandby)))


def tell(seed: int) -> None:
    """The story of a seed."""
    clock = MockClock()
    story, way = drawn(Random(seed))
    with deterministic(seed, clock):
        trio.run(live, clock, story, *way, clock=clock)


async def live(clock: MockClock, story: Story, mapped: bool, stays_dead: bool, on_standby: OnStandby) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, clock, mapped=mapped, stays_dead=stays_dead)
        await world.open(on_standby)
        for step in story:
            for name, number in step:
                DEEDS[name][1](world, number)
            await wait_all_tasks_blocked()
        clock.autojump_threshold = 0
        await world.recover()
        await world.compare()
        if world.device.queue.stack.top.file.abandoned:
            nursery.cancel_scope.cancel()  # what was given up on it keeps it from being closed: by design
            return
        world.paths = [delta.path for delta in world.device.queue.stack.deltas]
        assert await world.device.aclose()
        world.store.crash()
        blocks = world.blocks
        await world.open(on_standby)
        world.blocks = blocks
        await world.compare()
        await world.device.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000, help="how many stories; default 1000")
    parser.add_argument("--first", type=int, default=0, help="the first seed, to tell a failed one again; default 0")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    since_s, failed = time.monotonic(), 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        try:
            tell(seed)
        except* Exception as group:
            failed += 1
            print(f"\nseed {seed}: {drawn(Random(seed))[1]}: {_innermost(group)!r}", flush=True)
        if seed % 100 == 99:
            told, took_s = seed + 1 - arguments.first, time.monotonic() - since_s
            print(f"\r{told} stories, {failed} failed, {took_s:.0f} s ", end="", file=sys.stderr)
    print(f"\n{arguments.seeds} stories, {failed} of them failed")
    sys.exit(bool(failed))


def _innermost(error: BaseException) -> BaseException:
    return _innermost(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


if __name__ == "__main__":
    main()
