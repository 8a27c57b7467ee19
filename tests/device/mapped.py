"""A mapped device on the rig's three deltas, and the lines of tables for it."""

from collections.abc import Sequence

from ploopfs.device.bounds import Bounds
from ploopfs.device.flavour import VZ9
from ploopfs.device.mapper import Mapper
from tests.device.rig import DISK_BYTES, STACK, Rig, rig_of, three_deltas

SECTORS = DISK_BYTES // 512
CLUSTER_LOG = 6


def line(*paths: str, sectors: int = SECTORS, options: str = "") -> str:
    return " ".join(["0", str(sectors), "ploop", str(CLUSTER_LOG), *options.split(), *paths])


def mapper_of(rig: Rig) -> Mapper:
    assert rig.device.mapper is not None
    return rig.device.mapper


async def mapped_rig(
    images: dict[str, bytes] | None = None,
    *,
    stack: Sequence[str] | None = None,
    armed: bool = True,
    read_only: bool = False,
    bounds: Bounds | None = None,
) -> Rig:
    """dm-0, both fuses in unless told otherwise."""
    return await rig_of(
        images or three_deltas(),
        stack=stack or (None if images else STACK),
        armed=armed,
        read_only=read_only,
        bounds=bounds,
        name="dm-0",
        flavour=VZ9,
    )


async def reload(rig: Rig, *paths: str) -> None:
    """What a recovery script does, without the suspend before it."""
    mapper = mapper_of(rig)
    await mapper.load(line(*paths))
    await mapper.resume()
