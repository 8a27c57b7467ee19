"""One run: a seed and a number of steps decide everything, and what comes of it is an outcome.

The first steps of a longer run are those of a shorter one with the same seed. Knows nothing of how outcomes are told.
"""

import contextlib
import itertools
import logging
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from unittest import mock

import trio
from trio._core import _run as trio_run
from trio.testing import MockClock

from ploopfs.errors import PloopError
from tests.device.outage import passes
from tests.storm import faults, invariants, operators, users
from tests.storm.making import STORES, make_disk
from tests.storm.trace import LAST, Trace, Violation
from tests.storm.world import CLUSTER_BYTES, Disk, World

EPOCH_S = 1_700_000_000.0
PATIENCE_S = 200
"""Within so long every operation must have ended when all stores are well."""


@dataclass(frozen=True, slots=True)
class Climate:
    """What comes how often: `weights` of a request, a flow of an operator, a fault, a kill, a close; of `flows` and
    `faults` only those that are named. `attached`: how many disks have a target at first; `agents`: an agent."""

    weights: tuple[float, ...] = (80, 12, 6, 0.5, 0.5)
    flows: frozenset[str] = frozenset(operators.FLOWS)
    faults: frozenset[str] = frozenset(faults.FAULTS)
    attached: float = 0.85
    agents: float = 0.4

    def draw(self, table: Mapping[str, tuple[int, object]], names: frozenset[str], random: Random) -> str:
        chosen = [name for name in table if name in names]
        return random.choices(chosen, [table[name][0] for name in chosen])[0]


TEMPERATE = Climate()


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    steps: int
    disks: int | None = None
    keep: int = LAST
    climate: Climate = TEMPERATE


@dataclass(frozen=True, slots=True)
class Outcome:
    """`violation` is empty if nothing was found; `at_step` is the last step that began."""

    plan: Plan
    violation: str
    at_step: int
    digest: str
    simulated_s: float
    counts: Counter[str] = field(default_factory=Counter)
    lines: tuple[str, ...] = ()


def simulate(plan: Plan) -> Outcome:
    trace = Trace(keep=plan.keep)
    story = Story(plan, trace)
    violation = ""
    threads = threading.active_count()
    with deterministic(plan.seed, story.clock), quiet_log():
        try:
            trio.run(story.tell, clock=story.clock)
        except BaseException as error:
            if not isinstance(error, Exception):
                raise
            violation = _told(error)
    if not violation and threading.active_count() > threads:
        violation = f"{threading.active_count() - threads} threads more than before"
    return Outcome(
        plan, violation, story.step, trace.digest, story.simulated_s, trace.counts + story.tally, tuple(trace.lines)
    )


def _told(error: BaseException) -> str:
    """A violation in its own words, a bug with where it was met."""
    leaves = list(_leaves(error))
    violations = [leaf for leaf in leaves if isinstance(leaf, Violation)]
    if violations:
        return str(violations[0])
    return "".join(traceback.format_exception(leaves[0])[-6:]).strip()


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


@contextlib.contextmanager
def deterministic(seed: int, clock: MockClock) -> Iterator[None]:
    """The scheduler's order is drawn from the seed, and clocks show the time of the run. What reads of a clock differ
    by is what tells requests apart that came in one moment."""
    state = trio_run._r.getstate()
    ticks = itertools.count()

    def monotonic_ns() -> int:
        return int(clock.current_time() * 1e9) + next(ticks)

    def wall_clock_s() -> float:
        return EPOCH_S + clock.current_time()

    patches = (
        mock.patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        mock.patch.object(time, "monotonic_ns", monotonic_ns),
        mock.patch.object(time, "time", wall_clock_s),
    )
    trio_run._r.seed(seed)
    try:
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            yield
    finally:
        trio_run._r.setstate(state)


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """What the product logs is counted by the world and shown to nobody."""
    logger = logging.getLogger("ploopfs")
    before = logger.level, logger.propagate, logger.handlers[:]
    logger.setLevel(logging.INFO)
    logger.propagate, logger.handlers[:] = False, [logging.NullHandler()]
    try:
        yield
    finally:
        logger.level, logger.propagate, logger.handlers[:] = before


class Story:
    """The director: what happens next, and when."""

    def __init__(self, plan: Plan, trace: Trace) -> None:
        self.plan, self.trace = plan, trace
        self.random = Random(plan.seed)
        self.clock = MockClock(autojump_threshold=0)
        self.step = 0
        self.simulated_s = 0.0
        self.tally: Counter[str] = Counter()
        self.world: World

    async def tell(self) -> None:
        self.trace.begin()
        living = trio.lowlevel.current_statistics().tasks_living
        try:
            async with trio.open_nursery() as nursery:
                self.world = World(self.trace, self.random, nursery)
                logging.getLogger("ploopfs").addHandler(self.world.log)
                try:
                    self._build()
                    await self.world.boot()
                    while self.step < self.plan.steps:
                        self.step += 1
                        await self._step()
                    await self._end()
                except BaseException:
                    self.world.stores.let_go()
                    raise
                nursery.cancel_scope.cancel()
        finally:
            self.simulated_s = self.trace.now_s
            self.tally["storage operations"] = self.world.stores.operations
            self.tally["storage errors"] = self.world.stores.errors
            self.tally["made by threads"] = self.world.stores.made
            self.tally["late changes"] = self.world.stores.late
        if trio.lowlevel.current_statistics().tasks_living != living:
            raise Violation(f"{trio.lowlevel.current_statistics().tasks_living - living} tasks more than before")

    # --- the beginning --------------------------------------------------------------------------------------------

    def _build(self) -> None:
        random, world = self.random, self.world
        for name in STORES:
            world.stores.weather_at(f"/{name}/")
        climate = self.plan.climate
        for number in range(self.plan.disks or random.randrange(2, 5)):
            disk = make_disk(world, number, agents=climate.agents, attached=climate.attached)
            world.disks[disk.name] = disk

    # --- a step ---------------------------------------------------------------------------------------------------

    async def _step(self) -> None:
        random, world = self.random, self.world
        disk = random.choice(tuple(world.disks.values()))
        what = random.choices(("request", "flow", "fault", "kill", "close"), self.plan.climate.weights)[0]
        match what:
            case "request":
                request = users.draw(random, disk, CLUSTER_BYTES)
                if disk.requests < users.MAX_REQUESTS and not disk.is_silent:
                    world.daemon.start_soon(users.ask, world, disk, request)
            case "flow":
                self._flow(disk)
            case "fault":
                name = self.plan.climate.draw(faults.FAULTS, self.plan.climate.faults, random)
                told = faults.FAULTS[name][1](world, disk, random)
                if told:
                    self.trace.note(f"fault {name}", told)
            case "kill":
                await self._kill(power=random.random() < 0.5)
            case "close":
                await self._close_and_boot()
        wait_s = random.choice((0, 0, 0.002, 0.01, 0.05, 0.3)) if random.random() < 0.98 else random.choice((2, 10))
        if wait_s:
            await passes(wait_s)
        await world.settle()
        invariants.check(world)

    def _flow(self, disk: Disk) -> None:
        name = self.plan.climate.draw(operators.FLOWS, self.plan.climate.flows, self.random)
        random = Random(self.random.getrandbits(64))
        if name not in operators.LONG or not disk.is_operated:
            self.world.daemon.start_soon(self._operate, name, disk, random)

    async def _operate(self, name: str, disk: Disk, random: Random) -> None:
        is_long = name in operators.LONG
        if is_long and disk.is_operated:
            return
        disk.is_operated |= is_long
        try:
            told = await operators.FLOWS[name][1](self.world, disk, random)
        finally:
            if is_long:
                disk.is_operated = False
        if told:
            self.trace.note(f"flow {name}", f"{disk.name} {told}")

    async def _kill(self, *, power: bool) -> None:
        self.trace.note("power loss" if power else "kill")
        await self.world.kill(power=power)
        faults.calm(self.world)
        await self.world.boot()
        await self._compare("after the kill")

    # --- the end --------------------------------------------------------------------------------------------------

    async def _close_and_boot(self) -> None:
        """As the daemon ends on SIGTERM, whatever the stores are like; a mark that is gone vouches for everything."""
        world = self.world
        self.trace.note("close")
        world.registry.close_gates()
        with trio.move_on_after(30):
            while any(disk.is_operated or disk.requests for disk in world.disks.values()):
                await passes(0.1)
            await world.registry.aclose(deadline_s=10)
        records = world.registry.events.since(0)
        clean = {record.device for record in records if record.event == "device_removed" and record.facts["clean"]}
        for disk in world.disks.values():
            if disk.name in clean and not disk.is_degraded:
                disk.model.flushed(disk.model.mark())
                world.check_images(disk, closed=True)
        await world.kill(power=self.random.random() < 0.5)
        faults.calm(world)
        await world.boot()
        await self._compare("after the close")

    async def _end(self) -> None:
        world = self.world
        self.trace.note("end")
        faults.calm(world)
        with trio.move_on_after(PATIENCE_S) as patience:
            while any(disk.is_operated or disk.requests for disk in world.disks.values()):
                for disk in world.disks.values():
                    await self._bring_back(disk)
                await passes(1)
        if patience.cancelled_caught:
            raise Violation(f"after {PATIENCE_S} s of fine weather somebody still waits")
        for disk in world.disks.values():
            await world.tell(disk, "ploopfs/on_standby", "fail")
            await self._bring_back(disk)
            # A top that something was given up on is never closed cleanly; it is opened again instead.
            await self._bring_back(disk, anew=disk.device.stack.top.file.abandoned)
            invariants.check_nobody_left(disk)
        await world.settle()
        invariants.check(world)
        await self._compare("at the end", repairs=True)
        if not await world.registry.aclose():
            raise Violation("a sound disk was not closed cleanly")
        for disk in world.disks.values():
            world.check_images(disk, closed=True)
            disk.model.flushed(disk.model.mark())
        invariants.check_nothing_open(world)
        await world.kill(power=True)
        await world.boot()
        await self._compare("after the last reopening")

    async def _bring_back(self, disk: Disk, *, anew: bool = False) -> None:
        """With sound stores nothing keeps a disk from being recovered, but for what was given up and may yet happen.
        `anew`: reopen it though it does not say that it is lost, as without a target it may not know."""
        if disk.is_operated:
            return
        device, world = disk.device, self.world
        if device.mapper is not None:
            await world.tell(disk, "ploopfs/clear", "1")
            await world.tell(disk, "ploopfs/resume", "flush")
        error: PloopError | None = None
        for _ in range(12):
            if not disk.is_degraded:
                break
            error = await operators.restore(world, disk)
            await passes(1)
        else:
            raise Violation(f"{disk.name}: its images cannot come back in the place of an error target: {error}")
        for _ in range(12):
            if not device.queue.is_lost and not anew:
                break
            with disk.may_write(disk.top):
                error = await world.tell(disk, "ploopfs/reopen", "1")
            anew &= error is not None
            await passes(1)
        else:
            raise Violation(f"{disk.name}: cannot be reopened from a sound store: {error}")

    async def _compare(self, when: str, *, repairs: bool = False) -> None:
        """All of every disk. With `repairs`, a file that a crash has cost shows that only now."""
        for disk in self.world.disks.values():
            for request in (users.Request("flush"), users.Request("read", 0, length=disk.model.size)):
                error = await users.ask(self.world, disk, request)
                for _ in range(3 if repairs else 0):
                    if error is None:
                        break
                    await self._bring_back(disk, anew=True)
                    error = await users.ask(self.world, disk, request)
                if error is not None:
                    raise Violation(f"{disk.name}: {request} {when}: {error}")
        self.world.raise_violation()
