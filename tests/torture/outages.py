"""What befalls a disk while it is used: the store fails in every way and comes back, the daemon ends and comes back.

Knows users only by their board. Invariant: with `hold` no user is told of what the device can wait out.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from random import Random

from tests.torture.board import Board
from tests.torture.faults import KILLED, Fault
from tests.torture.scene import Scene

LONGEST_RECOVERY_S = 0.02
LONGEST_AGENT_S = 0.4
"""About as long as one takes, so that the store goes again before, in the middle of it, and afterwards."""

MOST_STEPS = 1000
"""What users do before it is no more expected that they meet a fault."""

Trouble = Callable[[], str]
"""Its name is the result."""


def nothing() -> None:
    pass


class Troubles:
    """`told` are the errnos that a user may meet in an outage, `settle` is done when the device has recovered from one
    and before the users go on. `met` counts them by name."""

    def __init__(
        self,
        scene: Scene,
        board: Board,
        random: Random,
        *,
        told: Callable[[Fault], Collection[str]],
        settle: Callable[[], None] = nothing,
    ) -> None:
        self.met: Counter[str] = Counter()
        self._scene, self._board, self._random, self._told, self._settle = scene, board, random, told, settle

    def befall(self, everything: Sequence[Trouble], count: int, steps: int) -> None:
        """So many of them in any order, and none a second time before all have been; each user has so many calls
        between two."""
        order: list[Trouble] = []
        while len(order) < count:
            order += self._random.sample(everything, len(everything))
        try:
            for trouble in order[:count]:
                self._board.wait_steps(steps)
                self.met[trouble()] += 1
            self._board.wait_steps(steps)
        except AssertionError as error:
            error.add_note(f"{self._scene.told()}\nmet so far, in their order: {', '.join(self.met)}")
            raise

    def of(self, fault: Fault) -> Trouble:
        def happen() -> str:
            with self._board.outage(*self._told(fault)):
                with fault.strikes(self._scene, self._random):
                    is_met = self._wait_bite(fault)
                    while fault.is_loss and self._random.random() < 0.5:
                        self._scene.try_to_recover(self._random)
                while self._scene.is_in_standby():
                    assert fault.is_loss
                    self._scene.recover(self._random)
                self._settle()
            return fault.name if is_met else f"{fault.name}, and nobody asked"

        return happen

    def lose_again_in_recovery(self) -> str:
        """Whatever it had done by then, the next attempt succeeds."""
        scene = self._scene
        with self._board.outage(*self._told(KILLED)), ThreadPoolExecutor(1) as thread:
            scene.store.kill()
            scene.wait_standby()
            scene.store.remount()
            if scene.setting.agent:
                scene.pause(self._random.uniform(0, LONGEST_AGENT_S))
                scene.store.kill()
            else:
                recovering = thread.submit(scene.try_to_recover, self._random)
                wait([recovering], timeout=self._random.uniform(0, LONGEST_RECOVERY_S))
                scene.store.kill()
                assert recovering.result() in ("success", "ENOTCONN"), recovering.result()
            # All may wait for the end of what they have met before, and a file system that has given up asks no more.
            if scene.setting.policy == "fail":
                scene.ask_store()
            scene.wait_standby()
            scene.store.remount()
            scene.recover(self._random)
            self._settle()
        return "lost again in the recovery"

    def _wait_bite(self, fault: Fault) -> bool:
        """Of a disk that has all its clusters nobody asks for more, and a full store does it no harm."""
        if fault.is_loss:
            self._scene.wait_standby()
        elif fault.errno is not None:
            return self._board.wait_error(fault.errno, MOST_STEPS)
        return True
