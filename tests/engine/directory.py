"""What a power failure may leave of files and names that were made with os calls, not through Files (engine/create.py).

`RecordedOs` stands in the place of the module os: every call is done for real, and written down. `Cut` takes the first
so many of the calls and says, by the fault model of ploopfs.testing.pending, which files there may be afterwards.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from random import Random

from ploopfs.testing.pending import Names, Pending, PendingNames
from tests.engine.power import Effort, left_of, subsets


@dataclass(frozen=True, slots=True)
class Call:
    """`operation` on a path; `data` is what was written at `offset`, which of a truncation is the size."""

    operation: str
    path: str
    offset: int = 0
    data: bytes = b""
    target: str = ""


@dataclass
class RecordedOs:
    """Whatever is not recorded is os's own."""

    calls: list[Call] = field(default_factory=list)
    _paths: dict[int, str] = field(default_factory=dict)
    _positions: dict[int, int] = field(default_factory=dict)

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        is_new = flags & os.O_CREAT and not os.path.lexists(path)
        fd = os.open(path, flags, mode)
        self._paths[fd], self._positions[fd] = os.path.abspath(path), 0
        if is_new:
            self.calls.append(Call("create", self._paths[fd]))
        elif flags & os.O_TRUNC:
            self.calls.append(Call("truncate", self._paths[fd]))
        return fd

    def write(self, fd: int, data: bytes) -> int:
        count = os.write(fd, data)
        self.calls.append(Call("write", self._paths[fd], self._positions[fd], bytes(data[:count])))
        self._positions[fd] += count
        return count

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)
        self.calls.append(Call("truncate", self._paths[fd], size))

    def fsync(self, fd: int) -> None:
        os.fsync(fd)
        self.calls.append(Call("fsync", self._paths[fd]))

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)
        self.calls.append(Call("rename", os.path.abspath(source), target=os.path.abspath(target)))

    def unlink(self, path: str) -> None:
        os.unlink(path)
        self.calls.append(Call("unlink", os.path.abspath(path)))

    def makedirs(self, path: str, *, exist_ok: bool) -> None:
        missing = [os.path.abspath(path)]
        while not os.path.lexists(missing[-1]):
            missing.append(os.path.dirname(missing[-1]))
        os.makedirs(path, exist_ok=exist_ok)
        self.calls.extend(Call("mkdir", made) for made in reversed(missing[:-1]))


class Cut:
    """`before` are the files that were there, durable; their directories, and `root` with all above it, stay."""

    def __init__(self, root: str, before: Mapping[str, bytes], calls: list[Call]) -> None:
        self._root = root
        self._files: dict[int, Pending | None] = {}
        """None is a directory."""
        directories = {os.path.dirname(path) for path in before} - {root}
        self._names = PendingNames({path: self._new(None) for path in directories})
        for path, content in before.items():
            self._names.names[path] = self._new(Pending(content))
        for call in calls:
            self._do(call)

    def outcomes(self, effort: Effort, random: Random) -> Iterator[dict[str, bytes]]:
        pending = {number: of_file for number, of_file in self._files.items() if of_file is not None}
        sizes = [len(atom) for of_file in pending.values() for atom in of_file.atoms]
        changes = self._names.changes
        for kept in product((False, True), repeat=len(changes)):
            names = self._names.left(lambda change, kept=kept: kept[changes.index(change)])  # type: ignore[misc]
            for survivors in subsets(sizes, effort, random):
                decisions = iter(survivors)
                left = {number: left_of(of_file, decisions) for number, of_file in pending.items()}
                yield {
                    path: left[number]
                    for path, number in names.items()
                    if number in left and self._is_reached(path, names)
                }

    def _is_reached(self, path: str, names: Mapping[str, int]) -> bool:
        directory = os.path.dirname(path)
        while directory != self._root:
            if directory not in names:
                return False
            directory = os.path.dirname(directory)
        return True

    def _new(self, of_file: Pending | None) -> int:
        number = len(self._files)
        self._files[number] = of_file
        return number

    def _do(self, call: Call) -> None:
        now = self._names.left(_every)
        number = now.get(call.path)
        file = self._files[number] if number is not None else None
        match call.operation:
            case "create":
                self._names.change({call.path: self._new(Pending(b""))})
            case "mkdir":
                self._names.change({call.path: self._new(None)})
            case "rename":
                self._names.change({call.path: None, call.target: now[call.path]})
            case "unlink":
                self._names.change({call.path: None})
            case "fsync" if file is None:
                self._names.settle(call.path)
            case _:
                assert file is not None
                _of_bytes(file, call)


def _every(_names: Names) -> bool:
    return True


def _of_bytes(file: Pending, call: Call) -> None:
    match call.operation:
        case "write":
            file.write(call.offset, call.data)
        case "truncate":
            file.truncate(call.offset)
        case "fsync":
            file.settle(file.changes)
