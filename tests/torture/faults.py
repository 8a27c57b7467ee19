"""What happens to the store, a row each: inside `happening` it has happened, afterwards the store is back.

Where `is_loss`, the device goes to standby and is recovered when the store is back; all others are sat out.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from random import Random

from tests.torture.scene import Scene
from tests.torture.store import CHANGING, OPERATIONS

Happening = Callable[[Scene, Random], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """`errno` is what the store answers; None where it answers late, and nobody is told anything."""

    name: str
    happening: Happening
    errno: str | None = "ENOTCONN"
    is_loss: bool = True


@contextmanager
def _killed(scene: Scene, _random: Random) -> Iterator[None]:
    scene.store.kill()
    yield
    scene.store.remount()


@contextmanager
def _crashed(scene: Scene, random: Random) -> Iterator[None]:
    scene.store.crash(random.getrandbits(32))
    yield
    scene.store.remount()


@contextmanager
def _lying(scene: Scene, _random: Random) -> Iterator[None]:
    scene.store.lose_brick()
    yield
    scene.store.return_brick()


@contextmanager
def _hung(scene: Scene, _random: Random) -> Iterator[None]:
    with scene.store.stopped():
        scene.wait_in_flight()
        yield


@contextmanager
def _hung_and_killed(scene: Scene, _random: Random) -> Iterator[None]:
    """What it was asked meanwhile it has never done."""
    with scene.store.stopped():
        scene.wait_in_flight()
        scene.store.kill()
    yield
    scene.store.remount()


def _failing(number: str, operations: frozenset[str], one_in: int = 1) -> Happening:
    @contextmanager
    def happening(scene: Scene, _random: Random) -> Iterator[None]:
        scene.store.fail(number, sorted(operations), one_in=one_in)
        yield
        scene.store.heal()

    return happening


@contextmanager
def _injected(scene: Scene, _random: Random) -> Iterator[None]:
    """By a rule of the daemon's own, above the store."""
    scene.inject("add,op=WRITE,errno=EBUSY")
    yield
    scene.inject("removeall")


KILLED = Fault("killed", _killed)
FAULTS = (
    KILLED,
    Fault("crashed", _crashed),
    Fault("lying", _lying),
    Fault("hung", _hung, errno=None, is_loss=False),
    Fault("hung and killed", _hung_and_killed),
    Fault("lease stolen", _failing("EBUSY", OPERATIONS), "EBUSY"),
    Fault("rule injected", _injected, "EBUSY"),
    Fault("fsync failing", _failing("EIO", frozenset({"fsync"})), "EIO"),
    Fault("flaky", _failing("EIO", CHANGING, one_in=3), "EIO"),
    Fault("full", _failing("ENOSPC", frozenset({"grow"})), "ENOSPC", is_loss=False),
)
