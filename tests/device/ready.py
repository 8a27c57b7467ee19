"""A storage that has everything at hand, unless a rule says otherwise.

`ReadyFiles` stands where `FaultyFiles` does; what is at hand is answered at once, and a write that needs no task is
taken, and passes the rules."""

from ploopfs.engine.file import Answered, Buffer, File
from ploopfs.engine.ring_write import Pieces, Reply
from ploopfs.errors import BackendError
from ploopfs.testing.faulty import Faults, FaultyFile, FaultyFiles
from ploopfs.testing.soon import write_soon


class ReadyFile(FaultyFile):
    """Answers at once what no rule takes; a rule's errno is an answer, and its wait is none."""

    def read_nowait(self, offset: int, length: int, room: memoryview | None = None) -> Buffer | None:  # type: ignore[override]
        return self._inner.read_nowait(offset, length, room) if self._answers("read") else None

    def write_soon(self, pieces: Pieces, answered: Answered, reply: Reply | None = None) -> bool:  # noqa: ARG002
        return write_soon(self, pieces, answered)

    def _answers(self, name: str) -> bool:
        assert isinstance(self._judge, Faults)
        for rule in self._judge.rules:
            if name in rule.operations and rule.path in (None, self.path):
                if rule.errno is not None:
                    raise BackendError(rule.errno, name, self.path)
                return False
        return True


class ReadyFiles(FaultyFiles):
    def wrap(self, file: File) -> ReadyFile:
        return ReadyFile(file, self.faults)
