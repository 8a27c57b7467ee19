"""Measures fio on a disk of ploopfs and on the same image served by QEMU's storage daemon. Started by tools/bench.

Both serve one byte-identical copy each, through FUSE, at the same time and with nothing else to do; fio asks them in
turn. Knows nothing of the insides of either, and asserts nothing about speed: a number is read, not passed. Invariant:
however it ends, no process of its own, no mount and no file is left.
"""

import argparse
import filecmp
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

MIB = 1 << 20
PLOOPFS = os.environ.get("PLOOPFS") or str(Path(sys.executable).parent / "ploopfs")
QEMU = "qemu-storage-daemon"
PROGRAMS = ("fio", QEMU)
START_TIMEOUT_S = 30
# Longer than ploopfs itself waits for its storage before it gives up: its exit code is to be its own.
END_TIMEOUT_S = 45
FIO_GRACE_S = 60

_QEMU_FILE = "driver=file,cache.direct=off,cache.no-flush=off,aio=threads"
_QEMU_EXPORT = "type=fuse,writable=on,growable=off"

DESCRIPTION = "Compare the speed of ploopfs with that of QEMU's FUSE export, on the same single-delta image."
EPILOG = """\
environment:
  PLOOPFS  the ploopfs to measure; default: the one beside the interpreter
  TMPDIR   where the images are put without --dir

exit codes:
  0  measured
  1  something is missing or failed; the message says what
  2  the command line is wrong
  128 + N  ended by signal N; everything is cleaned up as after a full run

example:
  tools/bench --quick --dir /var/tmp
"""


class BenchError(Exception):
    """Expected: the message is for the user."""


@dataclass(frozen=True, slots=True)
class Case:
    pattern: str
    block: str
    depth: int

    @property
    def name(self) -> str:
        kind = self.pattern.replace("rand", "random ") if "rand" in self.pattern else f"sequential {self.pattern}"
        return f"{self.block.replace('k', ' KiB').replace('m', ' MiB')} {kind}, QD {self.depth}"

    @property
    def unit(self) -> str:
        return "IOPS" if "rand" in self.pattern else "MiB/s"


CASES = (
    Case("randread", "4k", 1),
    Case("randread", "4k", 16),
    Case("randwrite", "4k", 1),
    Case("randwrite", "4k", 16),
    Case("read", "1m", 1),
    Case("write", "1m", 1),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """`disk` is the file that fio opens, `image` the one below the server."""

    name: str
    disk: Path
    image: Path


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of fio. `rate` is in the unit of its case."""

    rate: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class Result:
    """All runs of one case on one peer."""

    rate: float
    p99_us: float
    spread: float
    """From the slowest to the fastest run, as a part of the median: a ratio nearer to 1 than this says nothing."""
    runs: list[Sample]

    @classmethod
    def of(cls, runs: list[Sample]) -> "Result":
        rates = [run.rate for run in runs]
        middle = median(rates)
        return cls(middle, median(run.p99_us for run in runs), (max(rates) - min(rates)) / middle, runs)


class Progress:
    """One line on a terminal that overwrites itself; nothing where no terminal is."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def say(self, text: str = "") -> None:
        if self._shown:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# Servers, and what they leave behind.


@contextmanager
def serving(command: list[str], disk: Path, size_bytes: int, log: Path) -> Iterator[None]:
    """Run a server until `disk` has its size, and to its orderly end. Its own session: a Ctrl-C is not for it."""
    with log.open("ab") as output:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_served(server, disk, size_bytes, log)
        yield
    except BenchError as error:
        if (code := server.poll()) is not None:
            raise BenchError(f"{command[0]} ended by itself, with code {code}:\n{_tail(log)}\n{error}") from error
        raise
    finally:
        _end(server)
    if server.returncode != 0:
        raise BenchError(f"{command[0]} ended with exit code {server.returncode}:\n{_tail(log)}")


def _wait_served(server: "subprocess.Popen[bytes]", disk: Path, size_bytes: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise BenchError(f"{disk} did not appear")
        with suppress(FileNotFoundError):
            if disk.stat().st_size == size_bytes:
                return
        time.sleep(0.02)
    raise BenchError(f"{disk} did not appear within {START_TIMEOUT_S} s:\n{_tail(log)}")


def _end(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _usual_place() -> str:
    """On a disk if the machine has one in a usual place: tmpfs would leave out a part of what is measured."""
    places = (tempfile.gettempdir(), "/var/tmp")
    return next((place for place in places if _filesystem(Path(place)) != "tmpfs"), places[0])


@contextmanager
def scratch_directory(parent: str | None) -> Iterator[Path]:
    """Removed at the end, but never through a mount: what cannot be unmounted is left and named."""
    scratch = Path(tempfile.mkdtemp(prefix="ploopfs-bench-", dir=parent or _usual_place())).resolve()
    try:
        yield scratch
    finally:
        for place in _mounts_below(scratch):
            lazily = ["fusermount3", "-u", "-z"] if shutil.which("fusermount3") else ["umount", "-l"]
            subprocess.run([*lazily, "--", place], stdin=subprocess.DEVNULL, check=False)
        if _mounts_below(scratch):
            print(f"bench: {scratch} is left: a mount in it cannot be removed", file=sys.stderr)
        else:
            shutil.rmtree(scratch)


def _mounts_below(directory: Path) -> list[str]:
    """The innermost first. The kernel writes a blank in a path as three octal digits."""
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    escaped = [line.split()[4] for line in table.splitlines()]
    places = [re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), place) for place in escaped]
    return sorted((place for place in places if place.startswith(f"{directory}/")), reverse=True)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def ploopfs_serving(scratch: Path, image: Path, size_bytes: int) -> tuple[Path, AbstractContextManager[None]]:
    mountpoint = scratch / "mnt"
    mountpoint.mkdir(exist_ok=True)
    config = scratch / "ploopfs.yaml"
    # A JSON string is a YAML string, whatever the path has in it.
    device = f"{{name: ploop0, image: {json.dumps(str(image))}, standby: true}}"
    config.write_text(f"scst: {{loaded: true}}\ndevices: [{device}]\n")
    disk = mountpoint / "dev" / "ploop0"
    return disk, serving([PLOOPFS, "mount", str(config), str(mountpoint)], disk, size_bytes, scratch / "ploopfs.log")


def qemu_serving(scratch: Path, image: Path, size_bytes: int) -> tuple[Path, AbstractContextManager[None]]:
    disk = scratch / "qemu-disk"
    disk.touch()
    command = [
        *(QEMU, "--blockdev", f"{_QEMU_FILE},node-name=file0,filename={_option(image)}"),
        *("--blockdev", "driver=parallels,node-name=ploop0,file=file0"),
        *("--export", f"{_QEMU_EXPORT},id=e0,node-name=ploop0,mountpoint={_option(disk)}"),
    ]
    return disk, serving(command, disk, size_bytes, scratch / "qemu.log")


def _option(path: Path) -> str:
    """QEMU ends an option's value at a comma; two are one that belongs to the value."""
    return str(path).replace(",", ",,")


# Images.


def make_image(scratch: Path, size_bytes: int) -> Path:
    """A new image with every cluster written: holes are answered without any file, and would measure nothing."""
    image = scratch / "ploopfs.hds"
    written = scratch / "written.hds"
    _output([PLOOPFS, "create", f"{size_bytes // MIB}M", str(written)])
    disk, server = ploopfs_serving(scratch, written, size_bytes)
    with server:
        fio(disk, size_bytes, rw="write", bs="1m", ioengine="psync", refill_buffers="1", end_fsync="1")
    # Both images are copies made in one way, so that neither lies on the disk as a server happened to write it.
    copy(written, image)
    written.unlink()
    return image


def copy(source: Path, target: Path) -> None:
    """Byte by byte, never a reflink: the first write to shared blocks would cost one of the peers more."""
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, MIB)
        os.fsync(writing.fileno())


def settle(image: Path) -> None:
    """What a run left dirty is written back before the next one, which may be the other peer's."""
    fd = os.open(image, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def resident_percent(image: Path) -> int | None:
    """How much of a file the page cache holds; None where fincore is missing."""
    if not shutil.which("fincore"):
        return None
    held_bytes = _output(["fincore", "--bytes", "--noheadings", "--output", "RES", str(image)])
    return round(100 * int(held_bytes) / image.stat().st_size)


# fio.


def fio(disk: Path, size_bytes: int, **options: str) -> dict[str, Any]:
    """The report of one job. It runs as a thread: a child of fio would outlive a killed fio."""
    common = {"name": "bench", "filename": disk, "size": size_bytes, "direct": 1, "fallocate": "none"}
    arguments = [f"--{name}={value}" for name, value in {**common, **options}.items()]
    report = ["--thread", "--allow_file_create=0", "--lat_percentiles=1", "--clat_percentiles=0"]
    process = subprocess.Popen(
        ["fio", *arguments, *report, "--output-format=json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=float(options.get("runtime", "540")) + FIO_GRACE_S)
    except subprocess.TimeoutExpired:
        raise BenchError(f"fio on {disk} does not end") from None
    finally:
        # Not waited for if it was killed: a request that hangs in a server ends only with that server.
        process.kill()
    # Notes may precede the report.
    start = output.find("{")
    if process.returncode != 0 or start < 0:
        raise BenchError(f"fio {' '.join(arguments)} failed:\n{output if start < 0 else output[:start]}")
    job: dict[str, Any] = json.loads(output[start:])["jobs"][0]
    return job


def asynchronous_engine(disk: Path) -> dict[str, str]:
    """How 16 requests are kept under way: by one thread if the kernel lets it, else by 16."""
    for engine in ("libaio", "io_uring"):
        with suppress(BenchError):
            fio(disk, 16 * 4096, rw="read", bs="4k", ioengine=engine, iodepth="16")
            return {"ioengine": engine, "iodepth": "16"}
    return {"ioengine": "psync", "numjobs": "16", "group_reporting": "1"}


def sample(case: Case, peer: Peer, size_bytes: int, seconds: int, deep: dict[str, str]) -> Sample:
    engine = deep if case.depth > 1 else {"ioengine": "psync"}
    job = fio(peer.disk, size_bytes, rw=case.pattern, bs=case.block, time_based="1", runtime=str(seconds), **engine)
    settle(peer.image)
    side = job["write" if "write" in case.pattern else "read"]
    if not side["total_ios"]:
        raise BenchError(f"{case.name}: {peer.name} answered no request within {seconds} s")
    rate = side["iops"] if case.unit == "IOPS" else side["bw_bytes"] / MIB
    return Sample(rate, side["lat_ns"]["percentile"]["99.000000"] / 1000)


def measure(
    peers: tuple[Peer, Peer], size_bytes: int, runs: int, seconds: int, deep: dict[str, str], progress: Progress
) -> dict[Case, dict[str, Result]]:
    """The peers take turns, and take turns at being first: a slow minute of the machine hits both."""
    samples: dict[Case, dict[str, list[Sample]]] = {case: {peer.name: [] for peer in peers} for case in CASES}
    order = [
        (run, case, peer)
        for index, case in enumerate(CASES)
        for run in range(runs)
        for peer in (peers if (index + run) % 2 == 0 else reversed(peers))
    ]
    for done, (run, case, peer) in enumerate(order):
        left_s = (len(order) - done) * (seconds + 1)
        progress.say(f"[{done + 1}/{len(order)}] {case.name}: {peer.name}, run {run + 1}; about {left_s} s left")
        samples[case][peer.name].append(sample(case, peer, size_bytes, seconds, deep))
    return {case: {name: Result.of(runs) for name, runs in of.items()} for case, of in samples.items()}


# What is said about it.


def conditions(size_bytes: int, runs: int, seconds: int, deep: dict[str, str], scratch: Path) -> dict[str, str]:
    queue = deep["ioengine"] if "iodepth" in deep else f"{deep['numjobs']} threads of {deep['ioengine']}"
    return {
        "machine": f"Linux {platform.release()}, {os.cpu_count()} CPUs, {_busy():.0%} busy before the first run",
        "versions": f"{_first_line(PLOOPFS)}, {_python()}; {_first_line(QEMU)}; {_first_line('fio')}",
        "image": f"{size_bytes // MIB} MiB, one delta, every cluster written",
        "copies": f"two identical ones on {_filesystem(scratch)}, in {scratch.parent}",
        "ploopfs": "dev/ploop0 of a vz7 device, attached to SCST; image file through the page cache",
        "qemu": f"parallels over {_QEMU_FILE}; export {_QEMU_EXPORT}",
        "fio": f"direct=1; QD 1: psync, QD 16: {queue}; medians of {runs} x {seconds} s, peers in turn",
    }


def _busy() -> float:
    """The share of CPU time that others take: both servers are idle when it is asked. A load average would also count
    whoever waits for a disk, or for a mount that does not answer."""

    def ticks() -> list[int]:
        return [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]

    before = ticks()
    time.sleep(1)
    spent = [after - earlier for after, earlier in zip(ticks(), before, strict=True)]
    idle = spent[3] + spent[4]
    return 1 - idle / (sum(spent) or 1)


def _filesystem(place: Path) -> str:
    return _output(["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(place)])


def _first_line(program: str) -> str:
    return _output([program, "--version"]).splitlines()[0]


def _python() -> str:
    """Of the measured ploopfs, which need not be run by our interpreter."""
    interpreter = Path(PLOOPFS).parent / "python"
    if not interpreter.exists():
        return "unknown Python"
    ask = "import platform as p, importlib.metadata as m; print('Python', p.python_version(), end=''); "
    ask += "print(*(f', {name} {m.version(name)}' for name in ('trio', 'pyfuse3')), sep='')"
    return _output([str(interpreter), "-c", ask])


def table(results: dict[Case, dict[str, Result]]) -> str:
    heads = ("case", "unit", "ploopfs", "spread", "qemu", "spread", "ratio", "p99 us ploopfs", "p99 us qemu")
    rows = [heads]
    for case, of in results.items():
        ours, theirs = of["ploopfs"], of["qemu"]
        rates = (f"{ours.rate:.0f}", f"{ours.spread:.0%}", f"{theirs.rate:.0f}", f"{theirs.spread:.0%}")
        latencies = (f"{ours.p99_us:.0f}", f"{theirs.p99_us:.0f}")
        rows.append((case.name, case.unit, *rates, f"{ours.rate / theirs.rate:.2f}", *latencies))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(rows, aligned, strict=True))


def document(stated: dict[str, str], results: dict[Case, dict[str, Result]]) -> str:
    cases = [
        {"case": case.name, "unit": case.unit, **{name: asdict(result) for name, result in of.items()}}
        | {"ratio": of["ploopfs"].rate / of["qemu"].rate}
        for case, of in results.items()
    ]
    return json.dumps({"conditions": stated, "cases": cases}, indent=2)


def _output(command: list[str]) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


# The command line.


def bench(arguments: argparse.Namespace, scratch: Path, progress: Progress) -> str:
    size_bytes = arguments.size * MIB
    runs, seconds = arguments.runs or (1 if arguments.quick else 3), arguments.seconds or (1 if arguments.quick else 3)
    progress.say("writing the image")
    ours = make_image(scratch, size_bytes)
    theirs = scratch / "qemu.hds"
    progress.say("copying the image")
    copy(ours, theirs)
    # Compared before QEMU and ploopfs open them, which marks both in use. To compare is to read both whole.
    if not filecmp.cmp(ours, theirs, shallow=False):
        raise BenchError(f"{ours} and its copy differ")
    our_disk, ploopfs = ploopfs_serving(scratch, ours, size_bytes)
    their_disk, qemu = qemu_serving(scratch, theirs, size_bytes)
    with ploopfs, qemu:
        peers = (Peer("ploopfs", our_disk, ours), Peer("qemu", their_disk, theirs))
        deep = asynchronous_engine(their_disk)
        stated = conditions(size_bytes, runs, seconds, deep, scratch)
        results = measure(peers, size_bytes, runs, seconds, deep, progress)
        held = {peer.name: resident_percent(peer.image) for peer in peers}
    resident = ", ".join(f"{name} {percent} %" for name, percent in held.items() if percent is not None)
    stated["page cache"] = f"both images read whole before the first run; resident after the last: {resident or '?'}"
    if arguments.json:
        return document(stated, results)
    return "\n".join(f"{name:<11} {text}" for name, text in stated.items()) + "\n\n" + table(results)


def report_warnings(log: Path) -> None:
    """What ploopfs logged that it should not have: fio may not have noticed."""
    if not log.exists():
        return
    for line in log.read_text(errors="replace").splitlines():
        if re.search(r" (WARNING|ERROR|CRITICAL) |^Traceback", line):
            print(f"bench: ploopfs logged: {line}", file=sys.stderr)


def check_machine(scratch: Path, size_bytes: int) -> None:
    missing = [program for program in (*PROGRAMS, PLOOPFS) if not shutil.which(program)]
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing.append("/dev/fuse")
    if missing:
        raise BenchError(f"this machine lacks {', '.join(missing)}")
    needed, free = 2 * size_bytes + 64 * MIB, shutil.disk_usage(scratch).free
    if free < needed:
        raise BenchError(f"{scratch} has {free // MIB} MiB free, {needed // MIB} MiB are needed; see --dir and --size")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tools/bench", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1 run of 1 s per case, if nothing else is said")
    parser.add_argument("--runs", type=_positive, metavar="N", help="runs per case and peer; default 3")
    parser.add_argument("--seconds", type=_positive, metavar="S", help="length of a run; default 3")
    parser.add_argument("--size", type=_positive, metavar="MIB", default=512, help="size of the disk; default 512")
    parser.add_argument("--dir", metavar="DIR", help="where the two images are put; default: a temporary directory")
    parser.add_argument("--json", action="store_true", help="print JSON, with every run, instead of the table")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def _end_on_signals() -> None:
    """The first signal unwinds, which cleans up; the clean-up is bounded and not to be cut short by a second one."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, _frame: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in signals:
        signal.signal(each, end)


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    _end_on_signals()
    progress = Progress()
    try:
        with scratch_directory(arguments.dir) as scratch:
            try:
                check_machine(scratch, arguments.size * MIB)
                report = bench(arguments, scratch, progress)
            finally:
                progress.say()
                report_warnings(scratch / "ploopfs.log")
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
