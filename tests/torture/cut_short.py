"""What ext4 leaves over of a deletion or a truncation that the failure of its disk has cut short.

It has a list of these and ends them at its next mount, but where its journal has recorded an error: then it throws the
list away ("Errors on filesystem, clearing orphan list") and leaves the rest to e2fsck, as an operator runs it then.
Nobody was told that they were done: whatever else e2fsck finds is damage.
"""

import re
import subprocess
from pathlib import Path

from tests.mounted.blocks import EXT4, FileSystem, run

MENDED = 1
"""e2fsck's exit status when it has corrected what it found."""

_FINDINGS = re.compile(
    r"""
    Deleted\ inode\ \d+\ has\ zero\ dtime\.
    | Inode\ \d+,\ i_size\ is\ (?P<size>\d+),\ should\ be\ (?P<blocks_end>\d+)\.
    | (?:Block|Inode)\ bitmap\ differences:(?P<differences>.*)
    """,
    re.VERBOSE,
)
_QUESTION = re.compile(r"\s*Fix\? no$")
_OF_EVERY_RUN = re.compile(r"Pass \d.*|.*WARNING: Filesystem still has errors.*|.* files \(.* blocks|e2fsck \d.*|")


def check(system: FileSystem, block: Path) -> None:
    """While it is not mounted: nothing is wrong, or what was cut short is, which is then given back."""
    found = subprocess.run([*system.check, block], capture_output=True, text=True, check=False)
    said = found.stdout + found.stderr
    if found.returncode != 0:
        assert system is EXT4, said
        assert _has_recorded_an_error(block), said
        assert is_only_cut_short(said), said
        mended = subprocess.run(["e2fsck", "-f", "-y", block], capture_output=True, text=True, check=False)
        assert mended.returncode == MENDED, mended.stdout + mended.stderr
        run(*system.check, block)


def is_only_cut_short(said: str) -> bool:
    """By `e2fsck -n`: inodes that nobody names and their blocks are taken, and nothing that is in use is free."""
    return all(_OF_EVERY_RUN.fullmatch(line) or _is_left_over(line) for line in said.splitlines())


def _is_left_over(line: str) -> bool:
    finding = _QUESTION.sub("", line)
    if not finding:
        return True
    match = _FINDINGS.fullmatch(finding)
    if match is None:
        return False
    differences = (match["differences"] or "").split()
    if match["size"] and int(match["size"]) > int(match["blocks_end"]):
        return False
    return all(difference.startswith("-") for difference in differences)


def _has_recorded_an_error(block: Path) -> bool:
    return "clean with errors" in run("dumpe2fs", "-h", block)
