"""The counters of `pstat/`: what a stack did, by the kernel's names.

Knows nothing of who shows them. A counter that has no counterpart in user space stays 0. They outlive a replaced delta,
so a device owns one set and lends it to each stack.
"""

PSTAT_NAMES = [
    "bio_in",
    "bio_fast",
    "bio_full",
    "bio_out",
    "bio_alloc",
    "bio_alloc_whole",
    "bio_splits",
    "coal_back",
    "coal_forw",
    "coal_back2",
    "coal_forw2",
    "coal_oback",
    "coal_oforw",
    "coal_mback",
    "coal_mforw",
    "coal_overlap",
    "coal_flush",
    "bio_barriers",
    "bio_rzero",
    "bio_wzero",
    "bio_syncwait",
    "bio_fsync",
    "bio_cows",
    "bio_whole_cows",
    "merge_neg_cluster",
    "merge_neg_disable",
    "fast_neg_nomap",
    "fast_neg_noem",
    "fast_neg_shortem",
    "fast_neg_backing",
    "bio_lockouts",
    "map_lockouts",
    "merge_lockouts",
    "map_reads",
    "map_merges",
    "map_single_writes",
    "map_multi_writes",
    "map_multi_updates",
    "bio_trans_whole",
    "bio_trans_copy",
    "bio_trans_alloc",
    "bio_trans_index",
    "bio_flush_in",
    "bio_fua_in",
    "bio_flush_out",
    "bio_fua_out",
    "bio_flush_skip",
]


class Counters:
    """One attribute per name of PSTAT_NAMES, all starting at 0."""

    __slots__ = tuple(PSTAT_NAMES)

    bio_in: int
    bio_fast: int
    bio_out: int
    bio_alloc: int
    bio_alloc_whole: int
    bio_splits: int
    bio_rzero: int
    bio_wzero: int
    bio_syncwait: int
    bio_fsync: int
    bio_cows: int
    bio_whole_cows: int
    bio_lockouts: int
    map_reads: int
    map_single_writes: int
    map_multi_writes: int
    map_multi_updates: int
    bio_flush_in: int
    bio_fua_in: int
    bio_flush_out: int
    bio_fua_out: int
    bio_flush_skip: int

    def __init__(self) -> None:
        for name in PSTAT_NAMES:
            setattr(self, name, 0)
