"""What really lies on the storage: for every image the bytes that are seen, and those that a crash leaves.

This one never lies. Knows nothing of errors, of time or of who asks. A change is seen at once and is pending until the
image is synced; a crash keeps any subset of the pending ones, a write torn at sectors.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from ploopfs.engine.file import Buffer
from ploopfs.testing.files import MemoryFiles

SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Change:
    """`data` at `offset` (a write, or the zeroes of a hole); None: the file ends at `offset` from then on."""

    offset: int
    data: bytes | None

    def apply(self, image: bytearray) -> None:
        if self.data is None:
            del image[self.offset :]
            image.extend(bytes(self.offset - len(image)))
            return
        image.extend(bytes(max(0, self.offset - len(image))))
        image[self.offset : self.offset + len(self.data)] = self.data

    def before(self, size: int) -> "Change":
        """What a cut at `size` leaves of a write."""
        data = (self.data or b"")[: max(0, size - self.offset)]
        return Change(self.offset, data) if data else NOTHING

    def survivors(self, random: Random) -> Iterable["Change"]:
        """What a crash leaves of it: all, nothing, or some of its sectors."""
        how = random.random()
        if how < 0.4 or (self.data is None and how < 0.5):
            return
        if self.data is None or how < 0.8:
            yield self
            return
        end = self.offset + len(self.data)
        start = self.offset
        while start < end:
            stop = min(end, start - start % SECTOR_BYTES + SECTOR_BYTES)
            if random.random() < 0.5:
                yield Change(start, self.data[start - self.offset : stop - self.offset])
            start = stop


NOTHING = Change(0, b"")


@dataclass(slots=True)
class Image:
    """`changes` counts all that there ever were. `is_cached`: more is seen than is durable or pending, from the page
    cache of the machine."""

    durable: bytearray
    pending: list[Change] = field(default_factory=list)
    changes: int = 0
    is_cached: bool = False


class Platter:
    """`files` has what is seen; `images` what is durable, by path."""

    def __init__(self) -> None:
        self.files = MemoryFiles(answers_at_once=False)
        self.images: dict[str, Image] = {}

    def put(self, path: str, content: bytes) -> None:
        """A durable image."""
        self.files.put(path, content)
        self.images[path] = Image(bytearray(content))

    def remove(self, path: str) -> None:
        del self.files.images[path], self.images[path]

    def seen(self, path: str) -> bytes:
        return self.files.bytes_of(path)

    def size(self, path: str) -> int:
        return len(self.files.images[path].data)

    def change(self, path: str, change: Change) -> None:
        change.apply(self.files.images[path].data)
        image = self.images[path]
        image.pending.append(change)
        image.changes += 1

    def write(self, path: str, offset: int, data: Buffer) -> None:
        self.change(path, Change(offset, bytes(data)))

    def sync(self, path: str, changes: int) -> None:
        """So many of the first changes are durable."""
        image = self.images[path]
        count = max(0, len(image.pending) - (image.changes - changes))
        for change in image.pending[:count]:
            change.apply(image.durable)
        del image.pending[:count]

    def sync_size(self, path: str, changes: int) -> None:
        """So many of the first changes, as far as they set the size, are durable."""
        image = self.images[path]
        pending = image.pending
        for at in range(max(0, len(pending) - (image.changes - changes))):
            change = pending[at]
            if change.data is None:
                change.apply(image.durable)
                pending[: at + 1] = [*(each.before(change.offset) for each in pending[:at]), NOTHING]

    def fail_sync(self, path: str) -> bool:
        """What was pending never will be durable, though it is seen until somebody reads past the page cache; whether
        there was anything."""
        image = self.images[path]
        dropped = bool(image.pending)
        image.is_cached |= dropped
        image.pending.clear()
        return dropped

    def drop_cache(self, path: str) -> None:
        image = self.images[path]
        if image.is_cached:
            image.is_cached = False
            seen = bytearray(image.durable)
            for change in image.pending:
                change.apply(seen)
            self.files.images[path].data[:] = seen

    def crash(self, path: str, random: Random) -> bool:
        """Whether anything was pending, and may be gone."""
        image = self.images[path]
        image.is_cached = False
        for change in image.pending:
            for survivor in change.survivors(random):
                survivor.apply(image.durable)
        lost = bool(image.pending)
        image.pending.clear()
        self.files.images[path].data[:] = image.durable
        return lost

    def release_locks(self, path: str) -> None:
        self.files.images[path].writers.clear()
        self.files.images[path].readers.clear()

    def locks(self, path: str) -> int:
        image = self.files.images[path]
        return len(image.writers) + len(image.readers)
