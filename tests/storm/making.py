"""The disks of a run: how many levels, of what format, on which stores, over a raw base or not, as the seed decides.

Knows nothing of what happens to them.
"""

from random import Random

from ploopfs.device.flavour import VZ7, VZ9
from ploopfs.image.header import V1, V2
from ploopfs.testing.images import ImageBuilder
from tests.storm.model import Model
from tests.storm.world import CLUSTER_BYTES, Disk, World

STORES = ("a", "b", "c")


def make_disk(world: World, number: int, *, agents: float, attached: float) -> Disk:
    """`agents` and `attached`: how likely it has an agent, and a target at first."""
    random = world.random
    flavour = random.choice((VZ7, VZ9))
    name = f"ploop{number}" if flavour is VZ7 else f"dm-{number}"
    clusters, levels = random.randrange(3, 9), random.randrange(1, 4)
    has_raw_base = levels > 1 and random.random() < 0.3
    version = V2 if flavour is VZ9 or has_raw_base else random.choice((V1, V2))
    content, paths = bytearray(clusters * CLUSTER_BYTES), []
    for level in range(levels):
        path = f"/{random.choice(STORES)}/{name}-level{level}.hds"
        letters = _some_clusters(random, clusters)
        for slot, cluster in letters.items():
            content[slot * CLUSTER_BYTES : (slot + 1) * CLUSTER_BYTES] = cluster
        if has_raw_base and level == 0:
            raw_clusters = random.randrange(1, clusters + 1)
            del content[raw_clusters * CLUSTER_BYTES :]
            world.platter.put(path, bytes(content))
            content.extend(bytes((clusters - raw_clusters) * CLUSTER_BYTES))
        else:
            world.platter.put(path, ImageBuilder(clusters, version=version, clusters=letters).build())
        paths.append(path)
    disk = Disk(
        name,
        flavour,
        paths,
        Model(bytes(content)),
        has_agent=random.random() < agents,
        starts_attached=random.random() < attached,
        raw_base=paths[0] if has_raw_base else None,
    )
    disk.frozen = {path: world.platter.seen(path) for path in paths[:-1]}
    return disk


def _some_clusters(random: Random, clusters: int) -> dict[int, bytes]:
    return {
        slot: bytes([random.randrange(1, 256)]) * CLUSTER_BYTES for slot in range(clusters) if random.random() < 0.5
    }
