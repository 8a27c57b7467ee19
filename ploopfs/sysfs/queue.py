"""The attributes of `queue/` (kernel-ploop.md 4.3), of a bio-based queue or a request-based one, as the flavour says.

Knows nothing of what the values do. Left out: what only a zoned device or a driver with a timeout hook shows.
"""

from ploopfs.device.device import Device
from ploopfs.device.limits import QueueLimits
from ploopfs.errors import BadValue
from ploopfs.sysfs.parse import line, queue_bool, queue_value
from ploopfs.sysfs.rows import Row, constant, ignoring, refusing, storing

READ_ONLY_LIMITS = (
    "logical_block_size hw_sector_size physical_block_size minimum_io_size optimal_io_size chunk_sectors "
    "discard_granularity discard_max_hw_bytes discard_zeroes_data write_same_max_bytes write_zeroes_max_bytes "
    "zone_append_max_bytes zone_write_granularity nr_zones max_hw_sectors_kb max_segments max_discard_segments "
    "max_integrity_segments max_segment_size virt_boundary_mask dma_alignment fua dax"
)

WRITE_CACHE = {"write back": True, "write through": False, "none": False}
"""Prefixes of what may be written, and whether the cache is then on."""

WBT_MISSING = "write-back throttling is not set up"


def _limits(device: Device) -> QueueLimits:
    return QueueLimits(discard_granularity=device.stack.cluster_bytes, fua=device.flavour.fua)


def _limit(name: str) -> Row[Device]:
    return Row(name, lambda device: str(int(getattr(_limits(device), name))))


def _flag(name: str) -> Row[Device]:
    return Row(
        name,
        lambda device: str(int(getattr(device.settings, name))),
        storing(queue_bool, lambda device, value: setattr(device.settings, name, value)),
    )


def _write_cache(text: str) -> bool:
    for prefix, write_back in WRITE_CACHE.items():
        if text.startswith(prefix):
            return write_back
    raise BadValue(f"{text!r} is no kind of write cache")


def _show_discard_max(device: Device) -> str:
    chosen = device.settings.discard_max_bytes
    return str(_limits(device).discard_max_hw_bytes if chosen is None else chosen)


def _show_wbt_latency(_device: Device) -> str:
    raise BadValue(WBT_MISSING)


def _set_write_back(device: Device, value: bool) -> None:
    device.settings.write_back = value


def _show_scheduler(device: Device) -> str:
    schedulers = device.flavour.schedulers
    active = device.settings.scheduler or schedulers[0] if schedulers else None
    return " ".join(f"[{name}]" if name == active else name for name in schedulers) or "none"


async def _store_scheduler(device: Device, text: str) -> None:
    """A queue that has none takes any word in silence."""
    if device.flavour.schedulers:
        device.settings.set_scheduler(line(text).strip(), device.flavour.schedulers)


def _show_nr_requests(device: Device) -> str:
    chosen = device.settings.nr_requests
    return str(device.flavour.nr_requests if chosen is None else chosen)


async def _store_nr_requests(device: Device, text: str) -> None:
    if not device.flavour.schedulers:
        raise BadValue("there are no request structures to count")
    device.settings.set_nr_requests(queue_value(text), device.flavour.queue_depth)


QUEUE: tuple[Row[Device], ...] = (
    Row("standby", lambda device: device.queue.standby.state.value, signal=lambda device: device.queue.standby.changed),
    *map(_limit, READ_ONLY_LIMITS.split()),
    *map(_flag, ("add_random", "iostats", "rotational", "stable_writes")),
    constant("zoned", "none"),
    Row(
        "nomerges",
        lambda device: str(device.settings.nomerges),
        storing(queue_value, lambda device, value: device.settings.set_nomerges(value)),
    ),
    Row(
        "rq_affinity",
        lambda device: str(device.settings.rq_affinity),
        storing(queue_value, lambda device, value: device.settings.set_rq_affinity(value)),
    ),
    Row(
        "read_ahead_kb",
        lambda device: str(device.settings.read_ahead_kb),
        storing(queue_value, lambda device, value: device.settings.set_read_ahead_kb(value)),
    ),
    Row(
        "max_sectors_kb",
        lambda device: str(device.settings.max_sectors_kb),
        storing(queue_value, lambda device, value: device.settings.set_max_sectors_kb(value, _limits(device))),
    ),
    Row(
        "discard_max_bytes",
        _show_discard_max,
        storing(queue_value, lambda device, value: device.settings.set_discard_max_bytes(value, _limits(device))),
    ),
    Row(
        "write_cache",
        lambda device: "write back" if device.settings.write_back else "write through",
        storing(_write_cache, _set_write_back),
    ),
    Row("scheduler", _show_scheduler, _store_scheduler),
    Row("nr_requests", _show_nr_requests, _store_nr_requests),
    Row("io_poll", lambda _: "0", refusing(BadValue, "there are no poll queues")),
    Row("io_poll_delay", lambda _: "-1", ignoring),
    Row("wbt_lat_usec", _show_wbt_latency, refusing(BadValue, WBT_MISSING)),
)
