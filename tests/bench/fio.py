"""Runs fio: one job on one file, and what it counted.

Knows nothing of servers. Invariant: an fio that does not end in its time is killed, and is no result.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.cases import MIB, Case

GRACE_S = 60
LIMIT_S = 600

COMMON = {"name": "bench", "fallocate": "none", "group_reporting": "1", "invalidate": "0"}
"""What is in the page cache stays there: it would be the plain file's alone that is dropped."""
REPORT = ("--thread", "--allow_file_create=0", "--lat_percentiles=1", "--clat_percentiles=0", "--output-format=json")
"""As threads: a child of fio would outlive a killed fio."""


class BenchError(Exception):
    """Expected: the message is for the user."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a run of fio has done."""

    requests: int
    iops: float
    mib_per_s: float
    p99_us: float

    def rate(self, case: Case) -> float:
        return self.iops if case.unit == "IOPS" else self.mib_per_s


def fio(disk: Path, options: dict[str, str], *, direct: bool = True) -> Counted:
    """`direct` false is for a plain file, whose page cache is what the others have under their servers."""
    wanted = {**COMMON, "filename": str(disk), "direct": str(int(direct)), **options}
    command = ["fio", *(f"--{name}={value}" for name, value in wanted.items()), *REPORT]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=float(options.get("runtime", LIMIT_S)) + GRACE_S)
    except subprocess.TimeoutExpired:
        raise BenchError(f"fio on {disk} does not end") from None
    finally:
        # Not waited for if it was killed: a request that hangs in a server ends only with that server.
        process.kill()
    return counted(output, process.returncode, " ".join(command))


def counted(output: str, code: int | None, command: str) -> Counted:
    """Notes may precede the report. Raises BenchError for one that failed, or did nothing."""
    start = output.find("{")
    if code != 0 or start < 0:
        raise BenchError(f"{command} failed:\n{output if start < 0 else output[:start]}")
    job: dict[str, Any] = json.loads(output[start:])["jobs"][0]
    side = max((job["read"], job["write"]), key=lambda each: each["total_ios"])
    if not side["total_ios"]:
        raise BenchError(f"{command}: not one request was answered")
    latency_us = side["lat_ns"]["percentile"]["99.000000"] / 1000
    return Counted(side["total_ios"], side["iops"], side["bw_bytes"] / MIB, latency_us)


def deep_engine(disk: Path) -> dict[str, str]:
    """How several requests are kept under way: by one thread if the kernel lets it, else by as many."""
    for engine in ("libaio", "io_uring"):
        options = {"rw": "read", "bs": "4k", "size": str(16 * 4096), "ioengine": engine, "iodepth": "16"}
        try:
            fio(disk, options)
        except BenchError:
            continue
        return {"ioengine": engine}
    return {"ioengine": "psync"}
