"""`ploopfs check`: whether images are sound, and on demand their repair, with the original's exit codes.

Works on files that no daemon serves. Invariant: without --repair, and with --dry-run, nothing is written; of a stack
only the top is repaired, since whoever repairs a lower delta has to say that it is this one.
"""

import argparse
import errno
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final

from ploopfs.bounds import SHOWN_CHANGES
from ploopfs.cli import interrupt
from ploopfs.cli.text import ProgressLine, say, size
from ploopfs.engine.checking import Examined, Progress, examine
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.file import File, Files
from ploopfs.engine.holes import known_holes
from ploopfs.engine.opening import StackSpec, resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.repair import carry_out, plan_for
from ploopfs.errors import (
    BackendError,
    BadDescriptor,
    BadImage,
    ImageConverting,
    ImageLocked,
    ImageMismatch,
    PloopError,
    RepairFailed,
    TruncatedImage,
)
from ploopfs.image.check import Verdict
from ploopfs.image.repair import (
    Change,
    ClearEntry,
    ClearMark,
    CopyCluster,
    DropExtension,
    ExtendFile,
    Plan,
    PunchLeak,
    TrimFile,
)
from ploopfs.image.stacking import Layer, check_stack

MEANING: Final = {
    0: "the image is sound; with --repair: it is sound now",
    2: "the command line is wrong",
    4: "an image or descriptor cannot be opened",
    6: "it cannot be read, or ends too early",
    7: "it cannot be written",
    11: "an image breaks a rule of the format; with --repair: it cannot be repaired, or not here (a lower delta)",
    15: "its size cannot be asked for",
    16: "it cannot be flushed",
    17: "a format conversion of it was interrupted",
    18: "it cannot be locked",
    19: "its size cannot be changed",
    20: "a hole cannot be made in it",
    37: "it is in use, or was not closed",
    38: "the images do not form a stack",
    39: "the descriptor is wrong",
}
"""The original's exit codes (`ploop check`). Of several images the first one, base first, that is not sound decides."""
EPILOG = "exit codes, as the original ploop has them:\n" + "\n".join(
    f"  {code}  {text}" for code, text in MEANING.items()
)

_OF_OPERATION: Final = {
    "open": 4,
    "read": 6,
    "write": 7,
    "stat": 15,
    "fsync": 16,
    "lock": 18,
    "truncate": 19,
    "punch hole": 20,
}
_NOT_OPENED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.EROFS})
"""What the storage answers where a name leads to nothing that may be opened, whatever asked it first."""


@dataclass(slots=True)
class Result:
    """What is said of one image. `codes` are the original's for each of its options; `changes` are those that a repair
    makes, at most SHOWN_CHANGES of `change_count`."""

    level: int
    path: str
    format: str
    exit_code: int = 0
    problems: list[str] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    cluster_bytes: int = 0
    file_bytes: int = 0
    leaked_clusters: int = 0
    lost_clusters: int = 0
    change_count: int = 0
    changes: list[str] = field(default_factory=list)
    repaired: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-r", "--repair", action="store_true", help="repair the image, or the top of the stack")
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what --repair would change; write nothing")
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="a disk's directory or DiskDescriptor.xml, or image files, base first"
    )


def check(arguments: argparse.Namespace) -> int:
    image = arguments.paths[0] if len(arguments.paths) == 1 else arguments.paths
    writing = arguments.repair and not arguments.dry_run
    line = ProgressLine()
    try:
        planning = arguments.repair or arguments.dry_run
        results, reason = interrupt.run(partial(_check, image, planning, writing, line.show))
    finally:
        line.clear()
    code = next((one.exit_code for one in results if one.exit_code), 0)
    if reason is not None:
        code = code or code_of(reason)
    if arguments.json:
        stack = "" if reason is None else str(reason)
        images = [_as_json(one) for one in results]
        print(json.dumps({"exit_code": code, "stack_problem": stack, "images": images}, indent=2))
        return code
    for one in reversed(results):
        say("\n".join(_lines(one, written=writing)))
    if reason is not None:
        say(str(reason))
    return code


def code_of(error: PloopError) -> int:
    """The original's exit code for a failure."""
    match error:
        case BackendError() if error.errno in _NOT_OPENED:
            return 4
        case BackendError():
            return _OF_OPERATION.get(error.operation, 1)
        case BadImage() if error.field == "file type":
            return 4
        case BadImage() if error.mapped_errno == errno.ENODATA:
            return 6
        case BadImage() | RepairFailed():
            return Verdict.BROKEN.value
        case TruncatedImage():
            return 6
        case ImageConverting():
            return Verdict.CONVERTING.value
        case ImageLocked():
            return Verdict.NOT_CLOSED.value
        case BadDescriptor():
            return 39
        case _:
            return 38


async def _check(
    image: str | list[str], planning: bool, writing: bool, progress: Progress
) -> tuple[list[Result], PloopError | None]:
    """What is said of each image, base first, and why they form no stack."""
    files = OsFiles()
    try:
        spec = await resolve(files, image)
    except PloopError as error:
        return [], error
    twice = await _named_twice(files, spec)
    if twice is not None:
        return [], twice
    results, layers = [], []
    for level, one in enumerate(spec.images):
        is_top = level == len(spec.images) - 1
        result, layer = await _check_image(files, level, one, planning and is_top, writing and is_top, progress)
        if not is_top and result.exit_code and planning:
            result.problems.append(f"a lower delta: ploopfs check -r {shlex.quote(one.path)} repairs it")
        results.append(result)
        layers.append(layer)
    return results, _stack_problem(spec, [layer for layer in layers if layer is not None])


async def _named_twice(files: Files, spec: StackSpec) -> PloopError | None:
    """One image at two levels, under whatever names. Whoever wants two images checked is not told of a stack first."""
    seen: dict[tuple[int, int], str] = {}
    for image in spec.images:
        try:
            file = await files.open(image.path, writable=False)
        except PloopError:  # its own check says so
            continue
        identity = (file.identity.device_number, file.identity.inode)
        await file.aclose()
        if identity in seen:
            return ImageMismatch(f"{image.path}: is the same image as {seen[identity]}, which is a level of its own")
        seen[identity] = image.path
    return None


def _stack_problem(spec: StackSpec, layers: list[Layer]) -> PloopError | None:
    if len(layers) < len(spec.images):
        return None
    header = layers[-1].header
    try:
        check_stack(layers)
    except PloopError as error:
        return ImageMismatch(str(error))
    if header is not None and spec.cluster_sectors not in (None, header.cluster_sectors):
        return ImageMismatch(
            f"{layers[-1].path}: m_Sectors is {header.cluster_sectors}, expected {spec.cluster_sectors}, the disk's "
            "Blocksize"
        )
    return None


async def _check_image(
    files: Files, level: int, image: ImageSpec, planning: bool, writing: bool, progress: Progress
) -> tuple[Result, Layer | None]:
    """The layer is None where the image does not say what it is."""
    result = Result(level, image.path, "raw" if image.raw else "ploop1")
    try:
        file = await files.open(image.path, writable=writing)
        try:
            await file.lock()
            result.file_bytes = await file.size()
            if image.raw:
                return result, Layer(image.path, None, result.file_bytes)
            examined = await examine(file, progress)
            layer = Layer(image.path, examined.header, examined.file_size_bytes)
            _judge(result, examined)
            if planning:
                with known_holes(image.path) as has_data:
                    plan = plan_for(examined, has_data=has_data)
                    await _repair(result, file, plan, progress if writing else None)
            return result, layer
        finally:
            await file.aclose()
    except PloopError as error:
        result.exit_code = code_of(error)
        result.problems.append(str(error))
        return result, None


async def _repair(result: Result, file: File, plan: Plan | None, progress: Progress | None) -> None:
    """Without `progress` it is only said what would be done."""
    if plan is None:
        return
    _foresee(result, plan)
    if progress is not None and result.change_count:
        if result.lost_clusters:
            # Before anything is written: whoever ends us knows what there was to be lost.
            print(f"ploopfs: {_loss(result, 'will be')}", file=sys.stderr)
        await carry_out(file, plan, progress)
        result.repaired, result.exit_code = True, 0


def _judge(result: Result, examined: Examined) -> None:
    header, problems = examined.header, examined.report.problems
    result.cluster_bytes, result.codes = header.cluster_bytes, examined.codes
    result.leaked_clusters = examined.leaked_clusters
    result.exit_code = examined.report.verdict.value
    if problems and result.exit_code == Verdict.BROKEN.value:
        result.exit_code = code_of(problems[0])
    result.problems = [str(problem) for problem in problems]
    if header.is_marked_in_use:
        result.problems.append(f"{result.path}: m_DiskInUse is {header.in_use:#x}: the image was not closed")


def _foresee(result: Result, plan: Plan) -> None:
    result.lost_clusters = plan.losses
    result.changes = [in_words(change, result.cluster_bytes) for change in islice(plan.changes(), SHOWN_CHANGES)]
    result.change_count = plan.count()


def in_words(change: Change, cluster_bytes: int) -> str:
    match change:
        case DropExtension(why):
            return f"drop the format extension (dirty bitmap): {why}"
        case ExtendFile(size_bytes):
            return f"extend the file to {size_bytes} bytes"
        case CopyCluster(slot, source, target):
            return f"copy cluster {source} to cluster {target} for entry {slot}"
        case ClearEntry(slot, value, fault, lost):
            what = f", its data are LOST ({slot * cluster_bytes} to {(slot + 1) * cluster_bytes} of the disk)"
            return f"clear entry {slot}: {value} {fault.value}{what if lost else ''}"
        case PunchLeak(first, end):
            return f"give back {end - first} clusters from {first} on"
        case TrimFile(size_bytes):
            return f"cut the file at {size_bytes} bytes"
        case ClearMark():
            return "clear the in-use mark, if a second check finds nothing"


def _loss(result: Result, verb: str) -> str:
    return f"{result.lost_clusters} clusters of the disk {verb} cleared, their data cannot be reached"


def _as_json(result: Result) -> dict[str, object]:
    names = [name for name in Result.__slots__ if name != "codes"]
    return {name: getattr(result, name) for name in names} | {
        "leaked_bytes": result.leaked_clusters * result.cluster_bytes,
        "original_codes": result.codes,
    }


def _lines(result: Result, *, written: bool) -> Iterator[str]:
    if result.exit_code:
        state = f"not sound, exit code {result.exit_code}"
    elif result.repaired:
        state = "repaired"
    else:
        state = "raw, has no map" if result.format == "raw" else "sound"
    yield f"level {result.level}: {result.path}: {state}"
    yield from (f"  {problem}" for problem in result.problems)
    if result.leaked_clusters:
        kept = "; kept until the next --repair, as they may be what is lost" if result.lost_clusters else ""
        given = size(result.leaked_clusters * result.cluster_bytes)
        yield f"  {result.leaked_clusters} clusters that no entry names: up to {given} could be given back{kept}"
    if written and result.changes and not result.repaired:
        yield "  the repair was cut off: some of these changes are made, and it can be begun again"
    if result.lost_clusters:
        yield f"  LOST: {_loss(result, 'are' if written else 'would be')}"
    yield from (f"  {'' if written else 'would '}{change}" for change in result.changes)
    if result.change_count > len(result.changes):
        yield f"  and {result.change_count - len(result.changes)} changes more"

