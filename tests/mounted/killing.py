"""Kills a daemon under its users and finds every write that a user was told of; the twin of tests/engine/killing.py."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random

from tests.engine.killing import Change, Disk, Model
from tests.mounted.daemon import HANG_S, device, opened, serving

WRITERS = 4
BLOCK_BYTES = 4096
MOST_WRITES = 200
FSYNC_EVERY = 16


class Writers:
    """Threads with an open disk, each with blocks of its own, until their file answers with an error."""

    def __init__(self, path: Path, model: Model, random: Random) -> None:
        self._path, self._model = path, model
        self._numbers: Iterator[int] = count()
        self._stepped = threading.Condition()
        self._threads = [
            threading.Thread(target=self._write, args=(writer, Random(random.random()))) for writer in range(WRITERS)
        ]
        for thread in self._threads:
            thread.start()

    def wait_writes(self, number: int) -> None:
        with self._stepped:
            aim = self._model.operations + number
            assert self._stepped.wait_for(lambda: self._model.operations >= aim, HANG_S)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(HANG_S)
            assert not thread.is_alive()

    def _write(self, writer: int, random: Random) -> None:
        blocks = range(writer, len(self._model.content) // BLOCK_BYTES, WRITERS)
        # It may be killed before the first of them has opened the disk, too.
        with suppress(OSError), opened(self._path) as fd:
            while True:
                offset = random.choice(blocks) * BLOCK_BYTES
                data = random.randbytes(random.randrange(1, BLOCK_BYTES + 1))
                with self._stepped:
                    number = next(self._numbers)
                    self._model.under_way[number] = Change(offset, len(data), data)
                assert os.pwrite(fd, data, offset) == len(data)
                if number % FSYNC_EVERY == 0:
                    os.fsync(fd)
                with self._stepped:
                    self._model.done(number)
                    self._stepped.notify_all()


def kill_daemon(place: Path, disk: Disk, model: Model, random: Random) -> None:
    with serving(place, device(disk.directory), options=["--replace-stale"]) as daemon:
        assert daemon.value("ro") == "0"
        writers = Writers(daemon.disk(), model, random)
        writers.wait_writes(random.randrange(1, MOST_WRITES))
        daemon.process.kill()
        daemon.wait()
        writers.join()
    model.kills += 1
