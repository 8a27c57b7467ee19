"""The text of a device-mapper table: one line of one target (kernel-ploop.md 2.3 and 2.4), parsed and printed.

Pure. Where the kernel's line has file descriptors this one has absolute paths; a blank or a backslash in a path stands
behind a backslash, as device-mapper splits arguments. Invariant: what `Table.line` prints, `parse_table` reads as the
same table.
"""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ploopfs.bounds import MAX_DELTAS
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.opening import RAW_PREFIX
from ploopfs.errors import BadValue
from ploopfs.image.header import MAX_CLUSTER_SECTORS, MIN_CLUSTER_SECTORS, SECTOR_BYTES

READ_ONLY = "ro"
"""A word before the table: what `dmsetup -r` says beside it."""
MAX_SECTORS = (1 << 63) // SECTOR_BYTES
FALLOC = "falloc_new_clu"
OFFSET = "off="

_LINE = re.compile(r"(?:\\.|[^\\\n])+", re.DOTALL)
_WORD = re.compile(r"(?:\\.|[^\\\s])+", re.DOTALL)
_TO_ESCAPE = re.compile(r"([\\\s])")
_NUMBER = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True, slots=True)
class PloopTarget:
    """A ploop instance: `images` base first; request sectors are shifted by `off_sectors` within the images' disk."""

    cluster_sectors: int
    images: tuple[ImageSpec, ...]
    falloc_new_clu: bool = False
    off_sectors: int = 0


@dataclass(frozen=True, slots=True)
class ErrorTarget:
    """Every request fails."""


@dataclass(frozen=True, slots=True)
class Table:
    """One target over a whole device of `length_sectors`; `read_only` is the mode that it was asked for with."""

    length_sectors: int
    target: PloopTarget | ErrorTarget
    read_only: bool = False

    @property
    def size_bytes(self) -> int:
        return self.length_sectors * SECTOR_BYTES

    @property
    def line(self) -> str:
        """As it can be loaded again."""
        match self.target:
            case ErrorTarget():
                words = [_head(self, "error")]
            case PloopTarget() as target:
                words = [_head(self, "ploop"), str(target.cluster_sectors.bit_length() - 1)]
                words += [FALLOC] if target.falloc_new_clu else []
                words += [f"{OFFSET}{target.off_sectors}"] if target.off_sectors else []
                words += [(RAW_PREFIX if image.raw else "") + _escaped(image.path) for image in target.images]
        return " ".join([READ_ONLY] * self.read_only + words)


def status_line(table: Table, flags: str) -> str:
    """What the kernel prints for both a status and a table query; `flags` is empty if none is set."""
    match table.target:
        case ErrorTarget():
            return _head(table, "error")
        case PloopTarget() as target:
            offset = f" {OFFSET}{target.off_sectors}" if target.off_sectors else ""
            counts = f"{len(target.images)} v2 {target.cluster_sectors}"
            return f"{_head(table, 'ploop')} {counts} {flags or 'o'}{offset}"


def parse_table(text: str) -> Table:
    """Raises BadValue with the word to blame. Blank lines and comments are passed over, as dmsetup does."""
    lines = [line for line in map(str.lstrip, _LINE.findall(text)) if line and not line.startswith("#")]
    if len(lines) != 1:
        raise BadValue(f"the table has {len(lines)} targets, expected one: START LENGTH ploop|error ARGUMENTS")
    words = _WORD.findall(lines[0])
    read_only = words[:1] == [READ_ONLY]
    if read_only:
        del words[0]
    if len(words) < 3:
        raise BadValue(f"the table is {lines[0]!r}, expected START LENGTH ploop|error ARGUMENTS")
    start, length, kind, *arguments = words
    if _number("start", start) != 0:
        raise BadValue(f"start is {start}, expected 0: a device has one target, which covers all of it")
    length_sectors = _number("length", length)
    if not 0 < length_sectors <= MAX_SECTORS:
        raise BadValue(f"length is {length_sectors} sectors, expected 1 to {MAX_SECTORS}")
    match kind:
        case "ploop":
            return Table(length_sectors, _ploop(arguments), read_only)
        case "error":
            return Table(length_sectors, ErrorTarget(), read_only)
    raise BadValue(f"the target type is {kind!r}, expected ploop or error")


def _head(table: Table, kind: str) -> str:
    return f"0 {table.length_sectors} {kind}"


def _ploop(arguments: Sequence[str]) -> PloopTarget:
    if len(arguments) < 2:
        raise BadValue("a ploop target has too few arguments, expected CLUSTER_LOG [OPTIONS] IMAGE...")
    cluster_log, *rest = arguments
    falloc, off_sectors = False, 0
    while rest and (rest[0] == FALLOC or rest[0].startswith(OFFSET)):
        option = rest.pop(0)
        if option == FALLOC:
            falloc = True
        else:
            off_sectors = _number("off", option.removeprefix(OFFSET))
    if not 1 <= len(rest) <= MAX_DELTAS:
        raise BadValue(f"the table names {len(rest)} images, expected 1 to {MAX_DELTAS}")
    images = tuple(_image(word, is_base=level == 0) for level, word in enumerate(rest))
    return PloopTarget(_cluster_sectors(cluster_log), images, falloc, off_sectors)


def _cluster_sectors(cluster_log: str) -> int:
    """`could not parse cluster_log`, in the kernel's words."""
    smallest, largest = MIN_CLUSTER_SECTORS.bit_length() - 1, MAX_CLUSTER_SECTORS.bit_length() - 1
    if _NUMBER.fullmatch(cluster_log) is None or not smallest <= int(cluster_log) <= largest:
        raise BadValue(f"could not parse cluster_log: it is {cluster_log!r}, expected {smallest} to {largest}")
    return 1 << int(cluster_log)


def _image(word: str, *, is_base: bool) -> ImageSpec:
    path = re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL)
    raw = path.startswith(RAW_PREFIX)
    if raw and not is_base:
        raise BadValue(f"the image is {path!r}, expected {RAW_PREFIX} on the first one only")
    path = path.removeprefix(RAW_PREFIX)
    if not posixpath.isabs(path):
        raise BadValue(f"the image is {path!r}, expected an absolute path")
    return ImageSpec(path, raw=raw)


def _escaped(path: str) -> str:
    return _TO_ESCAPE.sub(r"\\\1", path)


def _number(name: str, word: str) -> int:
    if _NUMBER.fullmatch(word) is None:
        raise BadValue(f"{name} is {word!r}, expected a number of sectors")
    return int(word)
