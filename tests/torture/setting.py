"""What a torture is done to: the device, the store under it, the way that its data take, and who recovers it.

Drawn from the torture's seed, so that the seed brings it back.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.mounted.agents import REOPEN
from tests.mounted.daemon import HOLD_MS
from tests.mounted.disks import MIB
from tests.mounted.flavours import KINDS, Kind
from tests.mounted.planes import OWN, PLANES
from tests.torture.gluster import Gluster, gluster
from tests.torture.lying import Lying, lying
from tests.torture.powered import Powered, powered

Store = Lying | Powered | Gluster

LYING, BINDFS, GLUSTER = "lying", "bindfs", "glusterfs"
STORES = (LYING, BINDFS, GLUSTER)

COMMANDS = ("bindfs", "losetup", "mkfs.ext4")
"""What the first two need."""


@dataclass(frozen=True, slots=True)
class Setting:
    """`window_bytes` is how much a store that lies keeps in its memory. Without an `agent` only an operator recovers
    the device; with one, either."""

    kind: Kind
    policy: str
    depth: int
    window_bytes: int = 64 << 10
    size_bytes: int = 16 * MIB
    store: str = LYING
    plane: str = OWN
    agent: bool = False

    def __str__(self) -> str:
        store = f"{self.store} with a window of {self.window_bytes} bytes" if self.store == LYING else self.store
        told = (self.kind.flavour, self.policy, f"{self.depth} deltas", f"plane {self.plane}", f"on {store}")
        return ", ".join((*told, "an agent") if self.agent else told)

    @classmethod
    def of(cls, random: Random) -> "Setting":
        return cls(
            random.choice(KINDS),
            random.choice(("fail", "hold")),
            depth=random.randrange(1, 4),
            window_bytes=random.choice((1, 64 << 10, MIB)),
            store=random.choice(STORES),
            plane=random.choice(PLANES),
            agent=random.random() < 0.5,
        )

    def stored(self, place: Path) -> AbstractContextManager[Store]:
        stores: dict[str, Callable[[], AbstractContextManager[Store]]] = {
            LYING: lambda: lying(place, self.window_bytes),
            BINDFS: lambda: powered(place),
            GLUSTER: lambda: gluster(place),
        }
        return stores[self.store]()

    def configured(self, image: Path) -> dict[str, object]:
        recovery = {"recovery": REOPEN} if self.agent else {}
        return self.kind.configured(image, on_standby=self.policy, hold_timeout_ms=HOLD_MS, **recovery)
