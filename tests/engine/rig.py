"""Images in memory below a journal below faults, for tests of the order of things and of errors at each step."""

from dataclasses import dataclass, field

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.stack import Stack
from ploopfs.image.header import MUTABLE_START, Header
from ploopfs.testing.faulty import Faults, FaultyFiles
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.engine.journal import Entry, Journal, JournalFiles

CLUSTER = 32768
BASE, TOP = "/memory/base.hds", "/memory/top.hds"
OLD, NEW = b"o" * CLUSTER, b"n" * 4096


@dataclass
class Rig:
    """The journal holds what the storage was really asked to do; `paths` is the stack, base first."""

    memory: MemoryFiles = field(default_factory=MemoryFiles)
    journal: Journal = field(default_factory=Journal)
    faults: Faults = field(default_factory=Faults)
    paths: tuple[str, ...] = (TOP,)
    counters: Counters = field(default_factory=Counters)
    storage: type[FaultyFiles] = FaultyFiles

    def put(self, path: str, clusters: dict[int, bytes]) -> None:
        self.memory.put(path, ImageBuilder(disk_clusters=8, clusters=clusters).build())

    async def open(self) -> Stack:
        files = self.storage(JournalFiles(self.memory, self.journal), self.faults)
        spec = StackSpec(tuple(ImageSpec(path) for path in self.paths))
        return await open_stack(files, spec, read_only=False, counters=self.counters)

    @property
    def header(self) -> Header:
        return Header.parse(self.top, TOP)

    @property
    def top(self) -> bytes:
        return self.memory.bytes_of(TOP)

    def entry(self, slot: int) -> int:
        """What the map of the top's file says, in clusters (the images are v2)."""
        return int.from_bytes(self.top[64 + 4 * slot : 68 + 4 * slot], "little")


def map_writes(journal: Journal) -> list[Entry]:
    return [entry for entry in journal.of("write", path=TOP) if MUTABLE_START < entry.offset < CLUSTER]


def data_writes(journal: Journal) -> list[Entry]:
    return [entry for entry in journal.of("write", path=TOP) if entry.offset >= CLUSTER]
