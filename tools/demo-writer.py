"""The writer of the demo: what was acknowledged is noted, and can be compared later. See tools/demo."""

import argparse
import errno
import hashlib
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import partial

BLOCK_BYTES = 4096
PATIENCE_S = 30


def block(number: int) -> bytes:
    """Content that no other write has."""
    return hashlib.shake_256(number.to_bytes(8, "little")).digest(BLOCK_BYTES)


def write(disk: str, standby: str, journal_path: str) -> None:
    """Write random blocks through one open file until SIGTERM. A refused write or flush is repeated when standby is
    over."""
    stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    fd = os.open(disk, os.O_RDWR)
    blocks = os.lseek(fd, 0, os.SEEK_END) // BLOCK_BYTES
    chooser = random.Random(1)
    number = refused = 0
    with open(journal_path, "w", encoding="ascii", buffering=1) as journal:
        while not stopping:
            number += 1
            offset = chooser.randrange(blocks) * BLOCK_BYTES
            refused += repeated(partial(os.pwrite, fd, block(number), offset), f"block {number}", standby)
            print(offset, number, file=journal)
            if number % 64 == 0:
                refused += repeated(partial(os.fdatasync, fd), f"flush after block {number}", standby)
    refused += repeated(partial(os.fdatasync, fd), "the last flush", standby)
    os.close(fd)
    print(f"writer: {number} writes acknowledged, {refused} refused and repeated, one open file all along", flush=True)


def repeated(call: Callable[[], object], what: str, standby: str) -> int:
    """Until it succeeds; how often it was refused."""
    refused = 0
    while True:
        try:
            call()
        except OSError as error:
            refused += 1
            print(f"writer: {what}: {errno.errorcode[error.errno or 0]}", flush=True)
            wait_for(standby, "off")
        else:
            return refused


def wait_for(attribute: str, value: str) -> None:
    """Wait by poll(2) until an attribute reads `value`."""
    with open(attribute, "rb", buffering=0) as file:
        poller = select.poll()
        poller.register(file, select.POLLPRI | select.POLLERR)
        while os.pread(file.fileno(), 4096, 0).decode().strip() != value:
            poller.poll()


def verify(disk: str, journal_path: str) -> int:
    """Compare the last acknowledged content of every block."""
    with open(journal_path, encoding="ascii") as journal:
        acknowledged = {int(offset): int(number) for offset, number in map(str.split, journal)}
    expected, found, lost = hashlib.sha256(), hashlib.sha256(), 0
    fd = os.open(disk, os.O_RDONLY)
    for offset, number in sorted(acknowledged.items()):
        data = os.pread(fd, BLOCK_BYTES, offset)
        expected.update(block(number))
        found.update(data)
        lost += data != block(number)
    os.close(fd)
    print(f"{len(acknowledged)} acknowledged blocks, {lost} lost")
    print(f"expected {expected.hexdigest()}\nfound    {found.hexdigest()}")
    return 1 if lost else 0


def wait_lines(path: str, count: int) -> None:
    """Wait until a growing file has `count` lines. It ends when the file grows no more."""
    pause = select.poll()
    found, deadline_s = 0, time.monotonic() + PATIENCE_S
    while (lines := _lines_of(path)) < count:
        if lines > found:
            found, deadline_s = lines, time.monotonic() + PATIENCE_S
        if time.monotonic() > deadline_s:
            sys.exit(f"demo: {path} still has {lines} lines after {PATIENCE_S} s, expected {count}: nobody writes")
        pause.poll(50)


def _lines_of(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return sum(1 for _ in file)
    except FileNotFoundError:
        return 0


def wait_mounted(place: str) -> None:
    """Wait until something is mounted at `place`; the mount table reports changes to poll(2)."""
    with open("/proc/self/mounts", "rb", buffering=0) as table:
        poller = select.poll()
        poller.register(table, select.POLLPRI | select.POLLERR)
        while place.encode() not in [line.split()[1] for line in os.pread(table.fileno(), 1 << 20, 0).splitlines()]:
            if not poller.poll(10_000):
                sys.exit(f"demo: {place} was not mounted within 10 s")


def qemu_source(images: list[str]) -> str:
    """The stack, base first, as one QEMU block device with nested backing files."""
    node: dict[str, object] | None = None
    for path in images:
        upper: dict[str, object] = {"driver": "parallels", "file": {"driver": "file", "filename": path}}
        if node is not None:
            upper["backing"] = node
        node = upper
    return "json:" + json.dumps(node)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, names in {
        "write": ["disk", "standby", "journal"],
        "verify": ["disk", "journal"],
        "wait-lines": ["path", "count"],
        "wait-mounted": ["place"],
    }.items():
        sub = verbs.add_parser(verb)
        for name in names:
            sub.add_argument(name)
    verbs.add_parser("qemu-source").add_argument("images", nargs="+")
    arguments = parser.parse_args()
    match arguments.verb:
        case "write":
            write(arguments.disk, arguments.standby, arguments.journal)
        case "verify":
            return verify(arguments.disk, arguments.journal)
        case "wait-lines":
            wait_lines(arguments.path, int(arguments.count))
        case "wait-mounted":
            wait_mounted(arguments.place)
        case "qemu-source":
            print(qemu_source(arguments.images))
    return 0


if __name__ == "__main__":
    sys.exit(main())
