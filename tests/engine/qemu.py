"""QEMU's tools as a second opinion on images and stacks (image-format.md 5)."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ploopfs.engine.delta import ImageSpec

LIMIT_S = 60
"""Only a failing test waits that long."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=LIMIT_S)


def check(path: str) -> tuple[int, str]:
    """Exit code (0: clean, 2: corrupt, 3: leaks) and what it said."""
    done = run("qemu-img", "check", "-f", "parallels", path)
    return done.returncode, done.stdout + done.stderr


def bitmaps(path: str) -> dict[str, int]:
    """The dirty bitmaps that QEMU finds in an image: how many bytes of the disk each says are dirty."""
    node = f"driver=parallels,node-name=image,read-only=on,file.driver=file,file.filename={path.replace(',', ',,')}"
    commands = ("qmp_capabilities", "query-named-block-nodes", "quit")
    done = subprocess.run(
        ["qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "chardev=m", "--blockdev", node],
        input="\n".join(json.dumps({"execute": command}) for command in commands),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line).get("return") for line in done.stdout.splitlines()]
    [nodes] = [answer for answer in answers if isinstance(answer, list)]
    [image] = [node for node in nodes if node["node-name"] == "image"]
    return {one["name"]: one["count"] for one in image.get("dirty-bitmaps", [])}


def options(specs: Sequence[ImageSpec]) -> str:
    """The stack, base first, as one --image-opts argument: top outermost, each lower image its `backing`."""
    parts = []
    for depth, spec in enumerate(reversed(specs)):
        prefix = "backing." * depth
        parts.append(f"{prefix}driver={'raw' if spec.raw else 'parallels'}")
        parts.append(f"{prefix}file.driver=file")
        parts.append(f"{prefix}file.filename={spec.path.replace(',', ',,')}")
    return ",".join(parts)


def content(specs: Sequence[ImageSpec], scratch: Path) -> bytes:
    """The bytes of the disk as QEMU reads them."""
    target = scratch / "converted.raw"
    done = run("qemu-img", "convert", "--image-opts", options(specs), "-O", "raw", str(target))
    assert done.returncode == 0, done.stderr
    return target.read_bytes()


def start_of(specs: Sequence[ImageSpec], scratch: Path, length: int) -> tuple[bytes, int]:
    """The first bytes of a disk, and its size; everything behind them must be zeroes."""
    target = scratch / "converted.raw"
    done = run("qemu-img", "convert", "--image-opts", options(specs), "-O", "raw", str(target))
    assert done.returncode == 0, done.stderr
    with target.open("rb") as file:
        start = file.read(length)
        assert all(chunk.count(0) == len(chunk) for chunk in iter(lambda: file.read(1 << 20), b""))
    return start, target.stat().st_size


def io(specs: Sequence[ImageSpec], *commands: str) -> subprocess.CompletedProcess[str]:
    """qemu-io opens the top for writing. It exits with 0 even if a command fails, so look at its output too."""
    asked = [argument for command in commands for argument in ("-c", command)]
    return run("qemu-io", "--image-opts", *asked, options(specs))


@contextmanager
def holding(specs: Sequence[ImageSpec], *, read_only: bool = False) -> Iterator[int]:
    """The id of a qemu-io that has the stack open for as long as the block runs."""
    flags = ["-r"] if read_only else []
    process = subprocess.Popen(
        ["qemu-io", "--image-opts", *flags, options(specs)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("read 0 512\n")
        process.stdin.flush()
        # The answer to a first command means that the image is open and locked.
        answer = next((line for line in process.stdout if "read 512/512" in line), None)
        assert answer is not None, "qemu-io did not open the image"
        yield process.pid
    finally:
        process.stdin.close()  # the end of its input is the end of qemu-io, which closes the image cleanly
        process.stdout.close()
        process.wait(LIMIT_S)
