"""A filter around any Files that fails or pauses operations on command.

Fault model: a rule answers an operation on a path with an errno before the file below sees it (so nothing of it
happens), or holds it until it is released (so it happens later), or lets it happen and then answers with an errno (the
reply was lost). Open files obey rules made after they were opened."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from ploopfs.engine.file import Buffer, File, Files
from ploopfs.errors import BackendError

T = TypeVar("T")

OPERATIONS = frozenset({"open", "read", "write", "fsync", "stat", "truncate", "punch hole", "lock", "unlock"})


@dataclass(eq=False, slots=True)
class Rule:
    """Applies to `operations` on paths that `path` accepts, `count` times (None: always), after `skip` matches."""

    operations: frozenset[str] = OPERATIONS
    path: Callable[[str], bool] = lambda _path: True
    errno: int | None = None
    released: trio.Event | None = None
    after: bool = False
    count: int | None = None
    skip: int = 0
    hits: int = 0


@dataclass(slots=True)
class Faults:
    """The rules in force. `log` holds every operation that was asked for, in order."""

    rules: list[Rule] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)

    def fail(self, errno: int, *operations: str, count: int | None = None, skip: int = 0, after: bool = False) -> Rule:
        """Answer these operations (all, if none is named) with `errno` until the rule is removed or used up."""
        return self._add(Rule(_chosen(operations), errno=errno, count=count, skip=skip, after=after))

    def pause(self, *operations: str, count: int | None = None) -> Rule:
        """Hold these operations until `rule.released` is set."""
        return self._add(Rule(_chosen(operations), released=trio.Event(), count=count))

    def on(self, path: str, rule: Rule) -> Rule:
        """Restrict a rule to one path."""
        rule.path = path.__eq__
        return rule

    def remove(self, rule: Rule) -> None:
        self.rules.remove(rule)

    def match(self, operation: str, path: str) -> Rule | None:
        self.log.append((operation, path))
        for rule in self.rules:
            if operation in rule.operations and rule.path(path):
                rule.hits += 1
                if rule.hits > rule.skip and (rule.count is None or rule.hits <= rule.skip + rule.count):
                    return rule
        return None

    def _add(self, rule: Rule) -> Rule:
        self.rules.append(rule)
        return rule


def _chosen(operations: tuple[str, ...]) -> frozenset[str]:
    assert OPERATIONS.issuperset(operations), operations
    return frozenset(operations) or OPERATIONS


class FaultyFiles:
    """Files whose operations obey `faults`."""

    def __init__(self, inner: Files, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults

    async def open(self, path: str, *, writable: bool) -> "FaultyFile":
        async def work() -> File:
            return await self._inner.open(path, writable=writable)

        return FaultyFile(await _obeying(self._faults, "open", path, work), self._faults)

    async def is_directory(self, path: str) -> bool:
        async def work() -> bool:
            return await self._inner.is_directory(path)

        return await _obeying(self._faults, "stat", path, work)

    async def real_path(self, path: str) -> str:
        async def work() -> str:
            return await self._inner.real_path(path)

        return await _obeying(self._faults, "stat", path, work)


class FaultyFile:
    """One open file; nothing answers at once, so that every operation can be held."""

    def __init__(self, inner: File, faults: Faults) -> None:
        self.path = inner.path
        self.writable = inner.writable
        self.identity = inner.identity
        self.abandoned = False
        self._inner = inner
        self._faults = faults

    def read_nowait(self, offset: int, length: int) -> bytearray | None:  # noqa: ARG002 -- the File protocol's signature
        return None

    def write_nowait(self, offset: int, data: Buffer) -> int:  # noqa: ARG002 -- the File protocol's signature
        return 0

    async def read(self, offset: int, length: int) -> bytearray:
        async def work() -> bytearray:
            return await self._inner.read(offset, length)

        return await _obeying(self._faults, "read", self.path, work, offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        async def work() -> None:
            await self._inner.write(offset, data)

        await _obeying(self._faults, "write", self.path, work, offset, len(data))

    async def sync(self) -> None:
        await _obeying(self._faults, "fsync", self.path, self._inner.sync)

    async def size(self) -> int:
        return await _obeying(self._faults, "stat", self.path, self._inner.size)

    async def truncate(self, size: int) -> None:
        async def work() -> None:
            await self._inner.truncate(size)

        await _obeying(self._faults, "truncate", self.path, work, size)

    async def punch(self, offset: int, length: int) -> None:
        async def work() -> None:
            await self._inner.punch(offset, length)

        await _obeying(self._faults, "punch hole", self.path, work, offset, length)

    async def lock(self) -> None:
        await _obeying(self._faults, "lock", self.path, self._inner.lock)

    async def unlock(self) -> None:
        await _obeying(self._faults, "unlock", self.path, self._inner.unlock)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _obeying(
    faults: Faults, operation: str, path: str, work: Callable[[], Awaitable[T]], offset: int = 0, length: int = 0
) -> T:
    rule = faults.match(operation, path)
    if rule is not None and rule.released is not None:
        await rule.released.wait()
    fails = rule is not None and rule.errno is not None
    if rule is None or not fails or rule.after:
        result = await work()
        if rule is None or not fails:
            return result
    assert rule.errno is not None
    await trio.lowlevel.checkpoint()
    raise BackendError(rule.errno, operation, path, offset=offset, length=length)
