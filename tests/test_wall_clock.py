"""The wall clock may jump, so it is only shown: every wait, timeout and duration is of a clock that does not.

CLOCK_MONOTONIC stands still while the machine sleeps: whoever is held does not wait longer for having slept, and nobody
has asked for anything meanwhile."""

from pathlib import Path

from tests.test_tidy import ROOT, names_by_origin

SHOWN = {
    "ploopfs/device/events.py": "when something happened",
    "ploopfs/device/standby.py": "standby_since, in seconds since the epoch",
    "ploopfs/engine/inject/rule.py": "when a rule was hit last",
    "ploopfs/blockfuse/front.py": "times of a file",
    "ploopfs/fuse/entry.py": "times of a file",
    "ploopfs/fuse/operations.py": "times of a file",
    "ploopfs/cli/client.py": "for how long, told to a person",
    "ploopfs/cli/why.py": "for how long, told to a person",
}
WALL = ("time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime")


def readers() -> set[str]:
    found = set()
    for path in (ROOT / "ploopfs").rglob("*.py"):
        for _, name in names_by_origin(path.read_text(encoding="utf-8")):
            if name in WALL[:2] or name.startswith("datetime."):
                found.add(Path(path).relative_to(ROOT).as_posix())
    return found


def test_who_reads_the_wall_clock_only_shows_it() -> None:
    assert readers() == set(SHOWN)
