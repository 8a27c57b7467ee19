"""A file system on the disk, through a loop device, while the store dies and returns and the daemon comes and goes.

With `hold` the file system never notices an outage. With `fail`, and whenever the daemon ends under it, it gives up:
then it is unmounted and mounted again, as an operator would. Invariant: whenever it is not mounted its own check finds
nothing but a deletion that was cut short, and whatever fsync has acknowledged is there.
"""

from collections import Counter
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from random import Random

from tests.mounted.blocks import FileSystem, looped, mounted, run
from tests.torture import cut_short
from tests.torture.board import Board, users
from tests.torture.faults import Fault, faults_on
from tests.torture.files import User
from tests.torture.outages import Troubles
from tests.torture.report import Report
from tests.torture.scene import Scene, scene
from tests.torture.setting import Setting

USERS = 2
STEPS = 10

GIVES_UP = ("EIO", "EROFS", "ENOTCONN", "EBUSY", "EUCLEAN", "ESHUTDOWN")
"""What a file system answers that has lost its disk."""


class Mounted:
    """Of a disk that comes and goes. `block` is its loop device."""

    def __init__(self, system: FileSystem, running: Scene, *, direct_io: bool) -> None:
        self.place = running.place / "fs"
        self._system, self._scene, self._direct_io = system, running, direct_io
        self.block = Path()
        self._mounted, self._looped = ExitStack(), ExitStack()

    def make(self) -> None:
        run(*self._system.make, self._scene.served.disk)

    def attach(self) -> None:
        self.block = self._looped.enter_context(looped(self._scene.served.disk, direct_io=self._direct_io))
        self.mount()

    def detach(self) -> None:
        self.unmount()
        self._looped.close()

    def mount(self) -> None:
        self._mounted.enter_context(mounted(self.block, self.place))

    def unmount(self) -> None:
        self._mounted.close()

    def check(self) -> None:
        """While it is not mounted."""
        cut_short.check(self._system, self.block)

    @property
    def complaints(self) -> int:
        return self._system.complaints(self.block)


class Restarts:
    """The daemon ends under the file system and another takes its place."""

    def __init__(self, running: Scene, fs: Mounted, board: Board, random: Random) -> None:
        self._scene, self._fs, self._board, self._random = running, fs, board, random

    def orderly(self) -> str:
        with self._board.paused():
            self._fs.unmount()
            self._fs.check()
            self._fs.detach()
            self._scene.end(compare=False)
            if snapshot := self._random.random() < 0.5:
                self._scene.snapshot()
            self._scene.serve()
            self._fs.attach()
        return "remounted with a snapshot" if snapshot else "remounted"

    def terminated(self) -> str:
        self._lost_by(lambda: self._scene.end(compare=False))
        return "daemon terminated under the file system"

    def killed(self) -> str:
        self._lost_by(self._scene.kill)
        return "daemon killed under the file system"

    def _lost_by(self, end: Callable[[], None]) -> None:
        with self._board.outage(*GIVES_UP):
            end()
            with self._board.paused():
                self._fs.detach()
                self._scene.serve()
                self._fs.attach()
                mount_again(self._fs)


def faults_of(setting: Setting) -> list[Fault]:
    """Not a full store: that is told with either policy, and no file system forgives its disk a write that failed."""
    return [fault for fault in faults_on(setting) if fault.is_loss or fault.errno is None]


def mount_again(fs: Mounted) -> None:
    """What its journal has is done at the first mount; then its check finds nothing but what was cut short."""
    fs.unmount()
    fs.mount()
    fs.unmount()
    fs.check()
    fs.mount()


def torture(place: Path, setting: Setting, system: FileSystem, random: Random, *, troubles: int) -> Report:
    """One disk, from its making to its end."""
    board, holds = Board(USERS), setting.policy == "hold"
    with scene(place, setting) as running, ExitStack() as undo:
        fs = Mounted(system, running, direct_io=random.random() < 0.5)
        fs.make()
        undo.callback(fs.detach)
        fs.attach()
        of = [User(number, fs.place, board, Random(random.getrandbits(32))) for number in range(USERS)]

        def told(fault: Fault) -> Collection[str]:
            return () if holds or fault.errno is None else GIVES_UP

        def settle() -> None:
            if holds:
                assert fs.complaints == 0
            else:
                with board.paused():
                    mount_again(fs)

        met, restarts = Troubles(running, board, random, told=told, settle=settle), Restarts(running, fs, board, random)
        everything = [met.of(fault) for fault in faults_of(setting)]
        everything += [met.lose_again_in_recovery, restarts.orderly, restarts.terminated, restarts.killed]
        with users(board, [user.work for user in of]):
            met.befall(everything, troubles, STEPS)
        mount_again(fs)
        for user in of:
            user.compare()
        fs.detach()
        undo.pop_all()
        running.adopt()
    return Report(str(setting), sum((user.operations for user in of), Counter[str]()), Counter(), board.errors, met.met)
