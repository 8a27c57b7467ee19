"""A process that writes to a disk until it is killed, and says of each operation when it begins and when it is done.

Run as a module it reads lines `SEED DIRECTORY`, forks a victim for each, and says with what status it ended. A victim
runs the real engine on real files: operations that are in flight together, flushes, snapshots, growth, merges, clean
closes and opens. Knows nothing of who kills it. What it says are lines on its standard output, each one write(2), so
that a line that was said is heard whatever happens next.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from random import Random

import trio

from ploopfs.engine.counters import Counters
from ploopfs.engine.create import snapshot_disk
from ploopfs.engine.grow import grown
from ploopfs.engine.merge import copied_up, without_level
from ploopfs.engine.opening import DESCRIPTOR_NAME, open_stack, resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.ring_write import Reply
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError
from tests.engine.disk import Change, draw_disjoint

TOGETHER = 4
MOST_DELTAS = 4
MOST_CLUSTERS = 64
PHASES_BETWEEN_CLOSES = 5


def say(*words: object) -> None:
    os.write(sys.stdout.fileno(), f"{' '.join(map(str, words))}\n".encode())


def data_of(seed: int, number: int, length: int) -> bytes:
    """What the operation of that number writes: whoever knows the seed knows it too. Every fifth is zeroes."""
    return bytes(length) if number % 5 == 0 else Random(seed << 32 | number).randbytes(length)


class Victim:
    def __init__(self, seed: int, directory: str) -> None:
        self._seed, self._directory = seed, directory
        self._random = Random(seed)
        self._files = OsFiles()
        self._stack: Stack
        self._numbers: Iterator[int] = iter(range(1, 1 << 31))

    async def live(self) -> None:
        while True:
            spec = await resolve(self._files, self._directory)
            say("opens", len(spec.images))
            self._stack = await open_stack(self._files, spec, read_only=False, counters=Counters())
            for _ in range(self._random.randrange(1, PHASES_BETWEEN_CLOSES)):
                await self._phase()
            say("closes", len(spec.images))
            await self._stack.aclose(clean=True)
            if len(spec.images) < MOST_DELTAS and self._random.random() < 0.5:
                say("snapshots", len(spec.images))
                snapshot_disk(os.path.join(self._directory, DESCRIPTOR_NAME))

    async def _phase(self) -> None:
        draw = self._random.random()
        if draw < 0.03 and len(self._stack.map) < MOST_CLUSTERS:
            clusters = len(self._stack.map) + 1
            number = self._begins("grow", clusters * self._stack.cluster_bytes, 0)
            self._stack = await grown(self._stack, clusters * self._stack.cluster_bytes // 512)
            say("done", number)
        elif draw < 0.06 and len(self._stack.deltas) > 1:
            say("merges", 0)
            copied = await copied_up(self._stack)
            self._stack = without_level(self._stack, copied)
            await copied.dropped.aclose(clean=False)
        elif draw < 0.2:
            say("flushes", 0)
            await self._stack.flush()
        elif draw < 0.3:
            assert self._stack.room is not None
            await self._stack.room.make()
        else:
            async with trio.open_nursery() as nursery:
                for change in draw_disjoint(self._stack.size_bytes, TOGETHER, self._random):
                    nursery.start_soon(self._run, change)

    async def _run(self, change: Change) -> None:
        match change.kind:
            case "read":
                await self._stack.read(change.offset, change.length)
            case "discard":
                number = self._begins("discard", change.offset, change.length)
                say("done", number, *await self._stack.discard(change.offset, change.length))
            case "zero" | "unmap":
                number = self._begins("zero", change.offset, change.length)
                await self._stack.write_zeroes(change.offset, change.length, unmap=change.kind == "unmap")
                say("done", number)
            case _:
                number = self._begins("write", change.offset, change.length)
                await self._write(number, change.offset, data_of(self._seed, number, change.length))

    async def _write(self, number: int, offset: int, data: bytes) -> None:
        """Without a task where that can be; then the kernel says by itself that it is done."""
        heard: list[BackendError | None] = []
        ended, said = trio.Event(), trio.Event()

        def answered(error: BackendError | None) -> None:
            heard.append(error)
            ended.set()

        reply = Reply(sys.stdout.fileno(), f"done {number}\n".encode(), lambda _result: said.set())
        if not self._stack.write_soon(offset, data, answered, reply):
            await self._stack.write(offset, data)
            say("done", number)
            return
        await ended.wait()
        [error] = heard
        if error is not None:
            raise error
        if reply.is_left:
            await said.wait()
        else:
            say("done", number)

    def _begins(self, kind: str, offset: int, length: int) -> int:
        number = next(self._numbers)
        say("begins", number, kind, offset, length)
        return number


def main() -> None:
    for line in sys.stdin:
        seed, directory = line.rstrip("\n").split(" ", 1)
        told, tell = os.pipe()
        # Nothing has run in trio here, so no thread is missing in the child.
        child = os.fork()
        if not child:
            with suppress(BaseException):
                os.read(told, 1)  # it says nothing before it is said to live
                trio.run(Victim(int(seed), directory).live)
            os._exit(1)  # of its own accord: an error, and whoever waits for a kill is to hear of it
        say("lives", child)
        os.write(tell, b"1")
        os.close(told)
        os.close(tell)
        say("died", os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
