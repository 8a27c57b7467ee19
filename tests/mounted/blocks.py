"""Loop devices over a disk, and file systems on them; whatever a test did, none is left behind."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@contextmanager
def looped(disk: Path, *, direct_io: bool) -> Iterator[Path]:
    loop = run("losetup", f"--direct-io={'on' if direct_io else 'off'}", "--find", "--show", disk)
    try:
        assert run("losetup", "--list", "--noheadings", "--output", "DIO", loop) == str(int(direct_io))
        yield Path(loop)
    finally:
        run("losetup", "--detach", loop)


@contextmanager
def mounted(block: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run("mount", block, place)
    try:
        yield place
    finally:
        run("umount", place)
