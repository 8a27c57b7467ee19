"""What happens to the store, a row each: inside `happening` it has happened, afterwards the store is back.

Where `is_loss`, the device goes to standby and is recovered when the store is back; all others are sat out.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from random import Random

from tests.torture.gluster import Gluster
from tests.torture.lying import Lying
from tests.torture.powered import Powered
from tests.torture.scene import Scene
from tests.torture.setting import BINDFS, GLUSTER, LYING, STORES, Setting
from tests.torture.store import CHANGING, OPERATIONS

Happening = Callable[[Scene, Random], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """`errno` is what the store answers; None where it answers late, and nobody is told anything. `stores` can do it.

    Where it `is_probed`, a probe of the agent meets it; a device that is recovered in spite of it loses its store again
    at once, and again."""

    name: str
    happening: Happening
    errno: str | None = "ENOTCONN"
    is_loss: bool = True
    is_probed: bool = True
    stores: tuple[str, ...] = STORES

    @contextmanager
    def strikes(self, scene: Scene, random: Random) -> Iterator[None]:
        """Who is told of each loss is told of one: none may begin when the fault is thought to be over."""
        tells_each = scene.setting.policy == "fail" and not self.is_probed
        with scene.agent_paused() if tells_each else nullcontext(), self.happening(scene, random):
            yield


@contextmanager
def _killed(scene: Scene, _random: Random) -> Iterator[None]:
    scene.store.kill()
    yield
    scene.store.remount()


@contextmanager
def _crashed(scene: Scene, random: Random) -> Iterator[None]:
    store = scene.store
    assert isinstance(store, Lying | Powered)
    store.crash(random.getrandbits(32))
    yield
    store.remount()


@contextmanager
def _lying(scene: Scene, _random: Random) -> Iterator[None]:
    store = scene.store
    assert isinstance(store, Lying | Gluster)
    store.lose_brick()
    yield
    store.return_brick()


@contextmanager
def _without_power(scene: Scene, _random: Random) -> Iterator[None]:
    """Whoever asks is told EIO, and those who still ask when it is mounted again ENOTCONN."""
    store = scene.store_as(Powered)
    store.lose_power()
    yield
    store.kill()
    store.remount()


@contextmanager
def _full(scene: Scene, _random: Random) -> Iterator[None]:
    store = scene.store_as(Powered)
    store.fill()
    yield
    store.empty()


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
        store = scene.store_as(Lying)
        store.fail(number, sorted(operations), one_in=one_in)
        yield
        store.heal()

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
    Fault("crashed", _crashed, stores=(LYING, BINDFS)),
    Fault("lying", _lying, stores=(LYING, GLUSTER)),
    Fault("hung", _hung, errno=None, is_loss=False),
    Fault("hung and killed", _hung_and_killed),
    Fault("rule injected", _injected, "EBUSY", is_probed=False),
    Fault("lease stolen", _failing("EBUSY", OPERATIONS), "EBUSY", stores=(LYING,)),
    Fault("fsync failing", _failing("EIO", frozenset({"fsync"})), "EIO", stores=(LYING,)),
    Fault("flaky", _failing("EIO", CHANGING, one_in=3), "EIO", is_probed=False, stores=(LYING,)),
    Fault("full", _failing("ENOSPC", frozenset({"grow"})), "ENOSPC", is_loss=False, stores=(LYING,)),
    Fault("without power", _without_power, stores=(BINDFS,)),
    Fault("really full", _full, "ENOSPC", is_loss=False, stores=(BINDFS,)),
)


def faults_on(setting: Setting) -> list[Fault]:
    return [fault for fault in FAULTS if setting.store in fault.stores]
