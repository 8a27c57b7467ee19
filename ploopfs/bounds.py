"""Every bound that ploopfs sets: how many there may be of a thing, how large it may get, how long it is waited for.

Each says what it counts, what happens to who reaches it, and where it can be set. Knows nothing of who keeps it. What
a format or a protocol prescribes (the size of a cluster, a number in the block map, a LUN, the length of a name) is no
bound of ours and stands with it. Invariant: no other module has a number of its own (tests/test_bounds.py).
"""

from typing import Self

from ploopfs.errors import LimitReached

MIB = 1 << 20


class Bound(int):
    """A number that is kept to. With a `setting` (a key of the configuration) it is the default, and `highest` the most
    that may be set."""

    of: str
    reached: str
    setting: str
    highest: int

    def __new__(cls, value: int, of: str, reached: str, *, setting: str = "", highest: int = 0) -> Self:
        bound = super().__new__(cls, value)
        bound.of, bound.reached, bound.setting, bound.highest = of, reached, setting, highest
        return bound

    def check_room(self, count: int, what: str) -> None:
        """Raises LimitReached if one more would be too many."""
        if count >= self:
            raise LimitReached(f"{self:d} {what} exist, which is the most: remove one first")


def all_bounds() -> dict[str, Bound]:
    """By name, in the order of this module."""
    return {name: value for name, value in globals().items() if isinstance(value, Bound)}


# --- requests of a device -----------------------------------------------------------------------------------------

REQUESTS = Bound(
    1024,
    "requests in the queue of a device, waiting and in flight",
    "the next one fails with EIO",
    setting="limits.requests_per_device",
    highest=65536,
)
HELD_REQUESTS = Bound(
    512,
    "requests held in standby, per device",
    "the next one fails with EIO; event `hold_refused`",
    setting="limits.held_requests",
    highest=65536,
)
HELD_MIB = Bound(
    64,
    "MiB of data in held writes, per device",
    "the next one fails with EIO; event `hold_refused`",
    setting="limits.held_mib",
    highest=4096,
)
UNFLUSHED_MIB = Bound(
    64,
    "MiB of acknowledged writes that are kept for a replay, per device",
    "the images are flushed before the next write is acknowledged; in the background from half of it on",
    setting="limits.unflushed_mib",
    highest=4096,
)
HOLD_TIMEOUT_MS = Bound(
    300_000,
    "ms that a request is held in standby",
    "it fails with EIO; event `hold_timeout`",
    setting="devices[].hold_timeout_ms",
    highest=24 * 3600 * 1000,
)
PARK_TIMEOUT_S = Bound(
    300,
    "s that a request waits in a suspended or quiesced queue",
    "it fails with EIO",
    setting="limits.park_timeout_s",
    highest=3600,
)
QUIESCE_TIMEOUT_S = Bound(
    30,
    "s that an operation waits for requests in flight, and then for the storage",
    "it fails with EBUSY or ETIMEDOUT, and nothing has changed",
    setting="limits.quiesce_timeout_s",
    highest=3600,
)
THREADS = Bound(
    64,
    "threads that wait for the storage of a device",
    "further operations wait for one of them",
    setting="limits.threads_per_device",
    highest=512,
)
RING_WRITES = Bound(
    1024, "writes, of all devices, that the kernel makes without a thread of ours", "the next one takes a thread"
)
LEFT_BEHIND = Bound(
    16, "threads that hang in writes, and for which the event loop waits no more", "the kernel makes all further writes"
)
STAND_IN_US = Bound(
    3000,
    "µs that the event loop waits for a thread that serves whoever writes without a pause",
    "it goes on without the thread",
)
LENT_US = Bound(
    100_000,
    "µs that a thread serves in the place of an event loop that sleeps before the loop looks whether it hangs",
    "it looks, and lends its place again",
)
GROW_AHEAD_MIB = Bound(
    4096,
    "MiB by which the top's file is made longer than its last cluster needs",
    "it is made longer again, with a flush; a clean close cuts it",
)
PACE = Bound(
    32,
    "requests in flight while those that were held or parked are let go",
    "the others wait for one of them: a store that has just come back is not stormed",
)

ZEROES_MAX_BYTES = Bound(
    1 << 30, "bytes of a range that one request makes zero", "the rest are further requests: a replace comes in between"
)
MAX_TRANSFER_BYTES = Bound(MIB, "bytes of one request to a disk's own connection", "the kernel sends several")
DISK_BACKGROUND = Bound(
    512, "asynchronous requests that the kernel sends to a disk's own connection at a time", "it sends them later"
)
BURST_BYTES = Bound(
    MIB, "bytes that a disk's own connection reads or writes in a turn", "the tree and the other disks have their turn"
)
BURST_REQUESTS = Bound(
    32, "requests of a disk's own connection that are served in a turn", "the tree and the other disks have their turn"
)
POLL_US = Bound(
    100, "µs that a disk's own connection looks for the next request before it waits for it", "it waits"
)
POLL_MIB_US = Bound(
    300, "µs that a disk's own connection looks longer for each MiB that it has just read or written", "it waits"
)
POLL_DEEP_US = Bound(
    400, "µs that a thread looks for the next request of a writer who has had several under way at a time", "it waits"
)
POLL_TURN_US = Bound(
    1000, "µs that a disk's own connection serves one quick request after the other", "the others have their turn"
)

# --- devices and images -------------------------------------------------------------------------------------------

MAX_DEVICES = Bound(1024, "devices of a daemon", "a mistake of the configuration; ENOSPC")
OPENING = Bound(
    32, "devices that are opened at the same time when a tree is mounted", "the next one waits for one of them"
)
SPARE_DEVICES = Bound(
    16, "devices that may come while a tree is mounted, beyond those at its start", "ENOSPC: it needs a new mount"
)
MAX_DELTAS = Bound(127, "deltas of a stack: a base and 126 snapshots", "EINVAL")
MAX_MAP_BYTES = Bound(
    256 * MIB, "bytes of header and map of an image: 64 Mi clusters, 64 TiB at the default cluster", "EINVAL"
)
MAX_DISK_CLUSTERS = Bound(
    64 * MIB, "clusters of a disk, whatever it consists of: five bytes of memory for each", "EINVAL"
)
MAX_DESCRIPTOR_BYTES = Bound(MIB, "bytes of a DiskDescriptor.xml", "EINVAL")
MAX_DESCRIPTOR_DEPTH = Bound(64, "elements around an element of a DiskDescriptor.xml", "EINVAL, with its line")

# --- the tree -----------------------------------------------------------------------------------------------------

NAME_LENT_MS = Bound(
    500, "ms that the kernel goes by a device's name in the tree without asking again", "it asks again"
)
NAME_GRACE_MS = Bound(
    50, "ms that the kernel may take until it has seen an answer with such a name", "it may see the name for longer"
)
PAGE_BYTES = Bound(
    4096, "bytes of one write to a control file", "a short write: the rest was not looked at, as in sysfs"
)
MAX_TABLE_BYTES = Bound(64 << 10, "bytes of a device-mapper table or message", "EINVAL")
MAX_OPEN_FILES = Bound(
    65536, "open files and directories of a tree, pollers and readers of events among them", "ENFILE"
)
MAX_OTHERS_FILES = Bound(
    32768, "open files and directories of a tree with which users besides root and its owner may open no more", "ENFILE"
)
MAX_STORES = Bound(128, "writes to control files that are under way in a tree", "EBUSY")
TREE_POLL_US = Bound(
    50, "µs that a tree looks for the next request after a quick one before it waits for it", "it waits"
)
TREE_TURN_US = Bound(
    250, "µs that a tree serves one quick request after the other", "the disks have their turn"
)
STATUS_TASKS = Bound(
    256,
    "requests that the tree serves beside those that wait for the disks",
    "further ones wait; since fewer can wait in stores, status files always answer",
)
MAX_EVENTS = Bound(4096, "events that are kept", "the oldest goes; a reader who had not seen it reads `gap`")
MAX_FACT_CHARACTERS = Bound(4096, "characters of a text in an event", "the rest is cut off, and `...` says so")
MAX_SCST_OBJECTS = Bound(
    1024, "devices, targets, groups, users or initiators in one directory of scst_tgt", "ENOSPC"
)
SYNC_TIMEOUT_S = Bound(30, "s that a write to SCST's `sync` waits for the flush", "ETIMEDOUT")

# --- faults -------------------------------------------------------------------------------------------------------

MAX_RULES = Bound(64, "fault rules of a device", "ENOSPC")
MAX_RULE_CHARACTERS = Bound(4096, "characters of a command to `error_injection`", "EINVAL")
MAX_DELAY_MS = Bound(3_600_000, "ms of `delay_ms`", "EINVAL")

# --- recovery -----------------------------------------------------------------------------------------------------

MAX_ATTEMPTS = Bound(1_000_000, "of `recovery.attempts`", "a mistake of the configuration")
MAX_RECOVERY_S = Bound(86_400, "s of every time in `recovery`", "a mistake of the configuration")
MAX_HEALTHY_PROBES = Bound(1000, "of `recovery.healthy_probes`", "a mistake of the configuration")
MAX_COMMAND_ARGUMENTS = Bound(64, "words of `recovery.command`", "a mistake of the configuration")
OUTPUT_BYTES = Bound(16 << 10, "bytes of a recovery command's output that are kept", "the end is kept")
LOGGED_LINES = Bound(20, "lines of a recovery command's output in the log", "the last ones are logged")
GRACE_S = Bound(5, "s between the request to end and the order, to a command that is over time", "it is killed")
OUTPUT_GRACE_S = Bound(1, "s that the output of a command which has ended is read", "what comes later is lost")
MAX_REREAD_BYTES = Bound(MIB, "bytes of a failed read that a probe tries again", "the rest is not tried")
MESSAGE_TIMEOUT_S = Bound(
    3600, "s of a message that moves clusters (resize, merge)", "ETIMEDOUT, and nothing has changed"
)
VERIFY_TIMEOUT_S = Bound(3600, "s of a replacement with verify=full", "ETIMEDOUT, and nothing has changed")
SEARCH_S = Bound(1, "s that is looked for who holds a lock", "the message says `another process`")
GONE_LOCK_MS = Bound(
    500, "ms that a lock is waited for which no process is seen to hold", "the image is refused: EBUSY"
)
GIVEN_UP_MS = Bound(
    500, "ms that an image is waited for on which an operation was given up", "it is not opened for writing: ETIMEDOUT"
)
CLOSE_TIMEOUT_S = Bound(
    5, "s that is waited for close(2) of an image that is done with", "a thread goes on waiting for it"
)
CLOSE_GRACE_MS = Bound(
    200, "ms that it is waited for when the time of who closes it is over already", "a thread goes on waiting for it"
)

# --- the configuration and the daemon -----------------------------------------------------------------------------

MAX_CONFIG_BYTES = Bound(MIB, "bytes of a configuration or a scenario", "a mistake of the file")
MAX_CONFIG_DEPTH = Bound(16, "levels of nesting in one", "a mistake of the file, with its line")
MAX_ERRORS = Bound(100, "mistakes that are reported of one file", "no further ones are looked for, and it says so")
MAX_NUMBER = Bound(64, "characters of a number in one: YAML has numbers to base 60", "a mistake of the file")
MAX_SHOWN = Bound(60, "characters of a wrong value in a message", "the rest is cut off, and `...` says so")
MAX_ALLOWED_DIRS = Bound(64, "of `allowed_dirs`", "a mistake of the configuration")
RELOAD_TIMEOUT_S = Bound(
    60, "s that a reload waits for one device to be opened or flushed", "this device stays as it was; the event says so"
)
SHUTDOWN_DEADLINE_S = Bound(
    30, "s that an ending daemon waits for requests, and then for images", "images stay marked in use; exit code 6"
)
CONNECTION_TIMEOUT_S = Bound(
    10,
    "s that an operation on a disk's own connection waits for the mount, and for requests of the connection before",
    "EBUSY, and `connection` says what it is now",
)
MAX_BACKGROUND = Bound(
    65535, "asynchronous requests that the kernel sends to a tree: its own limit", "it sends them later"
)
HELPER_TIMEOUT_S = Bound(
    10, "s that a mount waits for the program that raises the kernel's limit of such requests", "it stays as it was"
)

KEPT_MEMORY_MIB = Bound(
    128, "MiB of memory that a daemon keeps for the next requests when it is free again", "the rest goes to the system"
)

# --- commands -----------------------------------------------------------------------------------------------------

MAX_TIMEOUT_S = Bound(2_000_000, "s of `--timeout`, which poll(2) can count", "a wrong command line")
MAX_LAST_EVENTS = Bound(1 << 20, "of `watch --last`, more than a tree keeps", "all that there are")
MAX_RECORD_BYTES = Bound(MIB, "bytes of an event that `watch` takes from a tree", "it ends with a message")
MAX_FILE_BYTES = Bound(64 * MIB, "bytes that a command reads of a file of a tree", "it ends with a message")
SHOWN_CHANGES = Bound(1000, "changes to an image that `check` shows", "the others are counted")
INTERRUPT_GRACE_MS = Bound(
    1000, "ms that a command which works on images takes to put in order what it had begun, after Ctrl-C", "it ends"
)
READ_TIMEOUT_S = Bound(10, "s that `umount` looks for the mark of an image", "the image counts as not closed")
SCENARIO_DEVICES = Bound(8, "devices of a scenario", "a mistake of the scenario")
SCENARIO_STEPS = Bound(1000, "steps of a scenario, or of a `repeat` in it", "a mistake of the scenario")
SCENARIO_REPEATS = Bound(100, "times of a `repeat`", "a mistake of the scenario")
SCENARIO_DEPTH = Bound(16, "deltas of a scenario's device", "a mistake of the scenario")
SCENARIO_SIZE_MIB = Bound(4096, "MiB of a scenario's device", "a mistake of the scenario")
SCENARIO_TIMEOUT_S = Bound(3600, "s of every time in a scenario", "a mistake of the scenario")
SCENARIO_WITHIN_S = Bound(10, "s of `within_s` where an `expect` says nothing", "the rehearsal ends with exit code 7")
SCENARIO_COMMAND_S = Bound(60, "s of `timeout_s` where a step says nothing", "the rehearsal ends with exit code 7")
CLEANUP_TIMEOUT_S = Bound(30, "s that a rehearsal waits for its load to end", "it goes on without")
START_TIMEOUT_S = Bound(30, "s that a rehearsal waits for its mount", "exit code 4")
END_TIMEOUT_S = Bound(60, "s that a rehearsal waits for its daemon to end", "it is killed; exit code 7")
LOG_LINES = Bound(10, "lines of the daemon's log in a rehearsal's report", "the last ones are shown")
