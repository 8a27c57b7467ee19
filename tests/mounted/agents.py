"""Recovery agents that are in a hurry: the patience of a test, as a device is configured with it."""

from tests.mounted.daemon import HANG_S

QUICK: dict[str, object] = {
    "probe_interval_s": 0.05,
    "probe_timeout_s": HANG_S,
    "healthy_probes": 2,
    "backoff_s": 0.1,
    "backoff_max_s": 0.2,
    "settle_s": 0,
}
"""Quick, but for a probe: it flushes, which takes long on a busy disk, and one that is given up is an answer of the
store like another."""

REOPEN: dict[str, object] = {"reopen": True, **QUICK}
