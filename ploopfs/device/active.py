"""The table in force of a mapped device: its line, its status, and the flags that messages set.

Knows nothing of other tables, or of how one comes into force. Invariant: the images that the table names are those of
the stack in force, whatever put them there.
"""

from dataclasses import replace

from ploopfs.device.queue import RequestQueue
from ploopfs.device.signal import Signal
from ploopfs.device.table import ErrorTarget, PloopTarget, Table, status_line
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.stack import Stack
from ploopfs.engine.tracking import is_tracking
from ploopfs.image.header import SECTOR_BYTES


class ActiveTable:
    """`changed` fires when any of it does. `noresume` forbids to resume. `event_nr` counts what `dmsetup wait` waits
    for: that the storage had no room."""

    def __init__(self, queue: RequestQueue, *, read_only: bool) -> None:
        self.changed = Signal()
        self.noresume = False
        self.event_nr = 0
        self._queue = queue
        self._has_event = False
        stack = queue.stack
        target = PloopTarget(stack.cluster_bytes // SECTOR_BYTES, _images(stack))
        self._table = Table(stack.size_bytes // SECTOR_BYTES, target, read_only)
        queue.changed.subscribe(self._stack_changed)
        queue.storage_full.subscribe(self._note_full)

    @property
    def table(self) -> Table:
        target = self._table.target
        if isinstance(target, ErrorTarget):
            return self._table
        return replace(self._table, target=replace(target, images=_images(self._queue.stack)))

    @property
    def size_bytes(self) -> int:
        """The device ends where its table does, whatever its images have."""
        return self._table.size_bytes

    @property
    def start_bytes(self) -> int:
        """Where the device starts within the disk of its images."""
        target = self._table.target
        return target.off_sectors * SECTOR_BYTES if isinstance(target, PloopTarget) else 0

    @property
    def is_error(self) -> bool:
        return isinstance(self._table.target, ErrorTarget)

    @property
    def falloc_new_clu(self) -> bool:
        target = self._table.target
        return isinstance(target, PloopTarget) and target.falloc_new_clu

    @property
    def is_tracking(self) -> bool:
        stack = self._queue.stack
        return bool(stack.deltas) and is_tracking(stack)

    @property
    def status(self) -> str:
        """What the kernel answers to a status query and to a table query."""
        flags = {"f": self.falloc_new_clu, "t": self.is_tracking, "n": self.noresume, "s": self._has_event}
        return status_line(self.table, "".join(letter for letter, is_set in flags.items() if is_set))

    def put(self, table: Table) -> None:
        """Another table is about to come into force, with its stack."""
        self._table = table
        self.noresume = False

    def set_falloc_new_clu(self, is_set: bool) -> None:
        target = self._table.target
        assert isinstance(target, PloopTarget)
        self._table = replace(self._table, target=replace(target, falloc_new_clu=is_set))
        self._stack_changed()

    def set_noresume(self, is_set: bool) -> None:
        self.noresume = is_set
        self.changed.fire()

    def take_event(self) -> bool:
        """Whether something happened since it was last asked."""
        had_event, self._has_event = self._has_event, False
        self.changed.fire()
        return had_event

    def _stack_changed(self) -> None:
        """Another top has the flags of the table too."""
        stack = self._queue.stack
        if stack.deltas:
            stack.top.preallocates = self.falloc_new_clu
        self.changed.fire()

    def _note_full(self) -> None:
        self._has_event = True
        self.event_nr += 1
        self.changed.fire()


def _images(stack: Stack) -> tuple[ImageSpec, ...]:
    return tuple(ImageSpec(delta.path, raw=delta.header is None) for delta in stack.deltas)
