"""What the running kernel shows of its own disks, and of those who use ours through a loop device.

Reads proc and sysfs of the kernel alone, which answer at once; asks no file system anything, least of all the mounted
tree, whose server is this very task. Knows nothing of devices but their names. Invariant: it never fails.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence

from ploopfs.sysfs.proc import Use

log = logging.getLogger(__name__)

LOOP_MOUNT = re.compile(r"\d+ \d+ (7:\d+) .* - [^ ]* [^ ]* .*", re.ASCII | re.DOTALL)
"""Of a whole loop device; its partitions have a major of their own. A line of another shape could not be shown."""
LOOP_SWAP = re.compile(r"/dev/(loop\d+)[ \t]+[^ \t].*", re.ASCII | re.DOTALL)


class LinuxHost:
    """`mountpoint` is where the disks will be served: it is looked at now, while nothing is mounted there."""

    def __init__(self, mountpoint: str) -> None:
        self._disks = os.path.join(os.path.realpath(mountpoint), "dev")

    def diskstats(self) -> str:
        return _read("/proc/diskstats")

    def partitions(self) -> str:
        return _read("/proc/partitions")

    def mounts(self) -> Sequence[Use]:
        return tuple(self._mounts())

    def swaps(self) -> Sequence[Use]:
        return tuple(self._swaps())

    def _mounts(self) -> Iterator[Use]:
        for line in _read("/proc/self/mountinfo").split("\n"):
            if found := LOOP_MOUNT.fullmatch(line):
                yield from self._uses(f"dev/block/{found[1]}", line)

    def _swaps(self) -> Iterator[Use]:
        for line in _read("/proc/swaps").split("\n"):
            if found := LOOP_SWAP.fullmatch(line):
                yield from self._uses(f"block/{found[1]}", line)

    def _uses(self, loop: str, line: str) -> Iterator[Use]:
        """The kernel names the file as it was found when the loop device was set up, links resolved."""
        directory, _, device = _read(f"/sys/{loop}/loop/backing_file").removesuffix("\n").rpartition("/")
        if directory == self._disks:
            yield Use(device, line)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        log.debug("%s: %s", path, error.strerror)
        return ""
