"""The numbers of one request queue: what its limits are, and what may be set on it.

Fields bear the names of the attributes that show them. Knows nothing of who shows or parses them. Invariant: limits
follow from the stack alone; nothing that is set here changes what the limits are.
"""

from dataclasses import dataclass

from ploopfs.errors import BadValue

PAGE_KB = 4
MIN_REQUESTS = 4
MAX_HW_SECTORS_KB = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """What the queue of a ploop can take (kernel-ploop.md 4.3): bytes, unless the name says another unit.

    `discard_granularity` is the stack's cluster: only a whole cluster can be given back. The rest are the defaults of a
    queue without request structures, as a bio-based device has them.
    """

    discard_granularity: int
    fua: bool

    logical_block_size: int = 512
    hw_sector_size: int = 512
    physical_block_size: int = 512
    minimum_io_size: int = 512
    optimal_io_size: int = 0
    chunk_sectors: int = 0
    discard_zeroes_data: int = 0
    write_same_max_bytes: int = 0
    write_zeroes_max_bytes: int = 0
    zone_append_max_bytes: int = 0
    zone_write_granularity: int = 0
    nr_zones: int = 0
    max_hw_sectors_kb: int = MAX_HW_SECTORS_KB
    max_segments: int = 128
    max_discard_segments: int = 1
    max_integrity_segments: int = 0
    max_segment_size: int = 65536
    virt_boundary_mask: int = 0
    dma_alignment: int = 511
    dax: bool = False

    @property
    def discard_max_hw_bytes(self) -> int:
        return self.discard_granularity


@dataclass(slots=True)
class QueueSettings:
    """What root may set in `queue/`. The checks are those that a limit decides; the parsing is the tree's."""

    add_random: bool = False
    iostats: bool = True
    rotational: bool = False
    stable_writes: bool = False
    nomerges: int = 0
    rq_affinity: int = 0
    read_ahead_kb: int = 128
    max_sectors_kb: int = MAX_HW_SECTORS_KB
    write_back: bool = True
    discard_max_bytes: int | None = None
    """None until somebody lowers it: the hardware's maximum."""
    scheduler: str | None = None
    """None until somebody chooses another than the flavour's first."""
    nr_requests: int | None = None

    def set_nomerges(self, value: int) -> None:
        self.nomerges = min(value, 1) if value != 2 else 2

    def set_rq_affinity(self, value: int) -> None:
        """Other numbers are accepted and ignored, as the kernel does."""
        if value <= 2:
            self.rq_affinity = value

    def set_scheduler(self, name: str, schedulers: tuple[str, ...]) -> None:
        if name not in schedulers:
            raise BadValue(f"scheduler {name!r} is none of {', '.join(schedulers)}")
        self.scheduler = name

    def set_nr_requests(self, value: int, queue_depth: int) -> None:
        if value > queue_depth:
            raise BadValue(f"nr_requests {value} is more than the queue's depth, {queue_depth}")
        self.nr_requests = max(value, MIN_REQUESTS)

    def set_read_ahead_kb(self, value: int) -> None:
        """Kept in whole pages."""
        self.read_ahead_kb = value - value % PAGE_KB

    def set_max_sectors_kb(self, value: int, limits: QueueLimits) -> None:
        if not PAGE_KB <= value <= limits.max_hw_sectors_kb:
            raise BadValue(f"max_sectors_kb {value} is not between {PAGE_KB} and {limits.max_hw_sectors_kb}")
        self.max_sectors_kb = value

    def set_discard_max_bytes(self, value: int, limits: QueueLimits) -> None:
        """More than the hardware takes becomes what it takes."""
        if value % limits.discard_granularity:
            raise BadValue(f"discard_max_bytes {value} is no multiple of {limits.discard_granularity}")
        self.discard_max_bytes = min(value, limits.discard_max_hw_bytes)


@dataclass(slots=True)
class Tune:
    """The values of `ptune/` with the kernel's defaults (delays and inactivity in ms, the backup's timeout in s)."""

    max_requests: int = 256
    batch_entry_qlen: int = 32
    batch_entry_delay: int = 50
    fsync_max: int = 32
    fsync_delay: int = 100
    min_map_pages: int = 32
    max_map_inactivity: int = 10000
    pass_flushes: int = 1
    pass_fuas: int = 1
    congestion_detection: int = 0
    check_zeros: int = 1
    disable_root_threshold: int = 0
    disable_user_threshold: int = 0
    congestion_high_watermark: int = 192
    congestion_low_watermark: int = 128
    max_active_requests: int = 16
    push_backup_timeout: int = 42
    discard_zeroes_data: int = 0
    trusted: int = 0
