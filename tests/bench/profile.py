"""Where the time of our server goes while fio runs one case: py-spy beside both.

Knows nothing of figures. Invariant: what is recorded is the server under load, not its start or its end.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench.cases import Case, Plan, fio_options
from tests.bench.fio import BenchError, fio
from tests.bench.groups import one_server
from tests.bench.images import Tell
from tests.mounted.daemon import HANG_S

RATE_HZ = 500


def profile(case: Case, plane: str, to: Path, place: Path, plan: Plan, tell: Tell) -> None:
    spy = _py_spy()
    with one_server(case, f"ploopfs {plane}", place / "profile", plan) as (peer, deep):
        tell(f"{case.name}: recording into {to}")
        form = ("--format", "flamegraph" if to.suffix == ".svg" else "raw")
        told = [spy, "record", *form, "--rate", str(RATE_HZ), "--native", "--pid", str(peer.pids[0]), "-o", str(to)]
        # Without a duration: it ends by the interrupt that tells it to write what it has.
        recording = subprocess.Popen(
            told, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            fio(peer.disk, fio_options(case, plan, 0, deep))
        finally:
            recording.send_signal(2)
            said, _ = recording.communicate(timeout=HANG_S)
        if recording.returncode != 0 or not to.exists():
            raise BenchError(f"py-spy failed with code {recording.returncode}:\n{said}")


def _py_spy() -> str:
    """Beside our interpreter in the environment that tools/bench makes for it, or anywhere."""
    own = Path(sys.executable).parent.parent / "bench" / "bin" / "py-spy"
    found = str(own) if own.exists() else shutil.which("py-spy")
    if found is None:
        raise BenchError("py-spy is missing: tools/bench --profile puts it into .venv/bench")
    return found
