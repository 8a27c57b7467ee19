"""The commands in tools/ as one finds them after cloning: nothing is installed yet."""

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
SETUP = '#!/bin/sh\ncd "$(dirname "$0")/.." && mkdir -p .venv/bin && ln -s /bin/echo .venv/bin/python\n'


@pytest.mark.parametrize("name", ["soak", "torture", "storm", "crash", "mutants", "bench", "scale"])
def test_help_is_there_before_anything_is_installed(tmp_path: Path, name: str) -> None:
    (tmp_path / "tools").mkdir()
    for script, text in ((name, (TOOLS / name).read_text()), ("setup", SETUP)):
        (tmp_path / "tools" / script).write_text(text)
        os.chmod(tmp_path / "tools" / script, 0o755)
    done = subprocess.run([tmp_path / "tools" / name, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert name in done.stdout
    assert done.stdout.endswith(" --help\n")
