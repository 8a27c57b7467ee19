"""Places to keep images in, one interface: the machine's file system, memory, and memory behind the fault filter."""

from pathlib import Path
from typing import Protocol

from ploopfs.engine.file import Files
from ploopfs.engine.inject.grammar import execute
from ploopfs.engine.inject.injector import Injector
from ploopfs.engine.os_file import OsFiles
from ploopfs.testing.faulty import Faults, FaultyFiles
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.forgetful import ForgetfulFiles


class Place(Protocol):
    """`files` opens what `put` has put at `path(name)`; `content` looks at it behind the back of every open file."""

    files: Files

    def path(self, name: str) -> str: ...

    def put(self, path: str, data: bytes) -> None: ...

    def content(self, path: str) -> bytes: ...


class OsPlace:
    def __init__(self, directory: Path) -> None:
        self.files: Files = OsFiles()
        self._directory = directory

    def path(self, name: str) -> str:
        return str(self._directory / name)

    def put(self, path: str, data: bytes) -> None:
        Path(path).write_bytes(data)

    def content(self, path: str) -> bytes:
        return Path(path).read_bytes()


class MemoryPlace:
    """`files` may be exchanged for a filter around `memory`."""

    def __init__(self) -> None:
        self.memory = MemoryFiles()
        self.files: Files = self.memory

    def path(self, name: str) -> str:
        return f"/memory/{name}"

    def put(self, path: str, data: bytes) -> None:
        self.memory.put(path, data)

    def content(self, path: str) -> bytes:
        return self.memory.bytes_of(path)


class FaultyPlace(MemoryPlace):
    """`faults` rules over every operation; without a rule it is to be no different from memory."""

    def __init__(self) -> None:
        super().__init__()
        self.faults = Faults()
        self.files = FaultyFiles(self.memory, self.faults)


class InjectedPlace(OsPlace):
    """The machine's file system behind an injector: without a rule, or with one that takes nothing (`ruled`)."""

    def __init__(self, directory: Path, *, ruled: bool) -> None:
        super().__init__(directory)
        injector = Injector()
        self.files = injector.around(self.files)
        if ruled:
            execute(injector, "add,errno=EIO,level=3")


class ForgetfulPlace(MemoryPlace):
    """While it does not crash it is to be no different from memory."""

    def __init__(self) -> None:
        super().__init__()
        self.forgetful = ForgetfulFiles()
        self.memory, self.files = self.forgetful.memory, self.forgetful

    def put(self, path: str, data: bytes) -> None:
        self.forgetful.put(path, data)
